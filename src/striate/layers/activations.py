"""Activation functions: PyTorch's own under their papers, the scaled tanh, and maxout."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from striate.core.errors import StriateError
from striate.layers.registry import LAYERS


def _pieces(value: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise StriateError(f"pieces is {value!r}", allowed="a positive whole number")
    return value


@LAYERS.register(
    paper="LeCun 1989; LeCun et al. 1998, Efficient BackProp, section 4.4",
    example=lambda: (ScaledTanh(), torch.randn(2, 3, 5, 4)),
)
class ScaledTanh(nn.Module):
    """The hyperbolic tangent that maps 1 to 1 and -1 to -1: y = 1.7159 tanh(2/3 x), of any shape.

    Values in (-1.7159, 1.7159); the second derivative is largest at 1, so that targets of +-1 keep units
    out of saturation. LeNet of 1989 and LeNet-5 (Proc. IEEE 86(11), appendix A, equation 22).
    """

    def __init__(self, amplitude: float = 1.7159, slope: float = 2 / 3) -> None:
        super().__init__()
        self.amplitude, self.slope = float(amplitude), float(slope)

    def forward(self, x: Tensor) -> Tensor:
        """Apply to every element."""
        return self.amplitude * torch.tanh(self.slope * x)

    def extra_repr(self) -> str:
        """Amplitude and slope, for printing."""
        return f"{self.amplitude:g}, {self.slope:g}"


@LAYERS.register(paper="arXiv:1302.4389, section 3", example=lambda: (Maxout(3), torch.randn(2, 6, 5, 4)))
class Maxout(nn.Module):
    """The largest of each `pieces` neighbouring feature maps: (N, C * pieces, ...) -> (N, C, ...).

    y[c] = max over j < pieces of x[c * pieces + j], at every position; after a convolution with C * pieces
    maps this is the convolutional maxout unit of Goodfellow et al. 2013. Pieces that tie share the gradient.

    Raises:
        StriateError: `pieces` is not a positive whole number, or the channels are not a multiple of it.
    """

    def __init__(self, pieces: int) -> None:
        super().__init__()
        self.pieces = _pieces(pieces)

    def forward(self, x: Tensor) -> Tensor:
        """Take the maximum across maps: (N, C * pieces, ...) -> (N, C, ...)."""
        return maxout(x, self.pieces)

    def extra_repr(self) -> str:
        """The number of pieces, for printing."""
        return f"{self.pieces}"


def maxout(x: Tensor, pieces: int, axis: int = 1) -> Tensor:
    """The largest of each `pieces` neighbours along an axis: (N, C * pieces, ...) -> (N, C, ...)."""
    axis %= x.ndim
    if x.ndim < 2 or x.shape[axis] % pieces:
        raise StriateError(
            f"the input has shape {tuple(x.shape)}", allowed=f"channels that are a multiple of {pieces}"
        )
    before, after = x.shape[:axis], x.shape[axis + 1 :]
    return x.reshape(*before, x.shape[axis] // pieces, pieces, *after).amax(axis + 1)


torch.fx.wrap("maxout")


@LAYERS.register(
    paper="arXiv:1302.4389, section 3, equation 1",
    example=lambda: (MaxoutLinear(5, 3, 4), torch.randn(6, 5)),
)
class MaxoutLinear(nn.Module):
    """A layer of maxout units: y[i] = max over j of (w[i, j] . x + b[i, j]); (N, ..., D) -> (N, ..., M).

    weight is (M * pieces, D) and bias (M * pieces,), the pieces of a unit beside each other. Goodfellow et
    al. 2013. Drawn uniformly within 1 / sqrt(D), as PyTorch draws linear layers.

    Raises:
        StriateError: `pieces` is not a positive whole number.
    """

    def __init__(self, in_features: int, out_features: int, pieces: int, *, bias: bool = True) -> None:
        super().__init__()
        self.in_features, self.out_features, self.pieces = in_features, out_features, _pieces(pieces)
        self.weight = nn.Parameter(torch.empty(out_features * pieces, in_features))
        self.bias = nn.Parameter(torch.empty(out_features * pieces)) if bias else None
        if not self.weight.is_meta:
            bound = 1 / math.sqrt(max(1, in_features))
            for parameter in self.parameters():
                nn.init.uniform_(parameter, -bound, bound)

    def fans(self) -> tuple[float, float]:
        """Inputs of a piece, and pieces that an input reaches."""
        return self.in_features, self.out_features * self.pieces

    def forward(self, x: Tensor) -> Tensor:
        """Apply to the last axis: (N, ..., D) -> (N, ..., M)."""
        return maxout(nn.functional.linear(x, self.weight, self.bias), self.pieces, axis=-1)

    def extra_repr(self) -> str:
        """Sizes, for printing."""
        return f"{self.in_features}, {self.out_features}, pieces={self.pieces}"
