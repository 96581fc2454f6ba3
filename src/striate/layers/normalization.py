"""Layers that set the scale of what passes through."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from striate.core.errors import StriateError
from striate.layers.registry import LAYERS

# Jarrett et al. 2009 take a standard deviation of 1.591 for their window of 9: the same share for others.
GAUSSIAN_SHARE = 1.591 / 9


@LAYERS.register(
    paper="D. Page 2018, How to Train Your ResNet", example=lambda: (Scale(0.125), torch.randn(2, 3, 5, 4))
)
class Scale(nn.Module):
    """Multiply by a constant: y = factor * x, of any shape; logits by 1/8 in Page 2018."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = float(factor)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply."""
        return x * self.factor

    def extra_repr(self) -> str:
        """The factor, for printing."""
        return f"{self.factor:g}"


@LAYERS.register(
    paper="Krizhevsky, Sutskever & Hinton, NIPS 2012, section 3.3",
    example=lambda: (LocalResponseNorm(3, alpha=0.2), torch.randn(2, 5, 4, 3)),
)
class LocalResponseNorm(nn.Module):
    """Each activation divided by what its neighbours in `size` adjacent feature maps do at its position.

    y[c] = x[c] / (k + alpha * sum of x[j]^2 over |j - c| <= size / 2)^beta, the sum over existing maps only;
    (N, C, ...) of any range. The defaults are AlexNet's (k = 2, n = 5, alpha = 1e-4, beta = 0.75). With
    `average` alpha is divided by `size`, as Caffe and PyTorch count. Of an even `size`,
    the longer half lies before. Krizhevsky et al. 2012, section 3.3.

    Raises:
        StriateError: `size` is not a positive whole number.
    """

    def __init__(
        self, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 2.0, *, average: bool = False
    ) -> None:
        super().__init__()
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise StriateError(f"size is {size!r}", allowed="a positive whole number of feature maps")
        self.size, self.alpha, self.beta, self.k, self.average = size, alpha, beta, k, average

    def forward(self, x: Tensor) -> Tensor:
        """Normalise across maps; the shape stays."""
        alpha = self.alpha / self.size if self.average else self.alpha
        return x * (self.k + alpha * neighbour_energy(x, self.size)) ** -self.beta

    def extra_repr(self) -> str:
        """The constants, for printing."""
        average = ", average" if self.average else ""
        return f"{self.size}, alpha={self.alpha:g}, beta={self.beta:g}, k={self.k:g}{average}"


def neighbour_energy(x: Tensor, size: int) -> Tensor:
    """The sum of squares over `size` adjacent maps around each: (N, C, ...) -> (N, C, ...)."""
    channels = x.shape[1]
    padding = [0, 0] * (x.ndim - 2) + [size // 2, (size - 1) // 2]
    padded = F.pad(x.square(), padding)
    # Sums of shifted slices keep any memory format, and autograd stores nothing of them.
    total = padded[:, :channels]
    for shift in range(1, size):
        total = total + padded[:, shift : shift + channels]
    return total


torch.fx.wrap("neighbour_energy")


def gaussian_window(size: int, std: float, like: Tensor) -> Tensor:
    """Weights (size,) of a Gaussian along one axis, with sum 1; in the number type of `like`."""
    places = torch.arange(size, device=like.device, dtype=like.dtype) - (size - 1) / 2
    weights = torch.exp(-0.5 * (places / std).square())
    return weights / weights.sum()


def local_mean(x: Tensor, size: int, std: float) -> Tensor:
    """The Gaussian-weighted mean around each position, over all maps: (N, C, H, W) -> (N, 1, H, W).

    At the borders, the weights of the positions that exist have the sum 1: a constant picture keeps its
    value everywhere. `size` is odd.
    """
    height, width = x.shape[-2:]
    weights = gaussian_window(size, std, x)
    mean = x.mean(1, keepdim=True)
    mean = F.conv2d(mean, weights.view(1, 1, size, 1), padding=(size // 2, 0))
    mean = F.conv2d(mean, weights.view(1, 1, 1, size), padding=(0, size // 2))
    return mean / (_coverage(weights, height).view(-1, 1) * _coverage(weights, width))


def _coverage(weights: Tensor, length: int) -> Tensor:
    """For each of `length` positions, the sum of the weights whose places exist; (length,)."""
    size = len(weights)
    sums = F.pad(weights.cumsum(0), (1, 0))
    places = torch.arange(length, device=weights.device)
    first = (size // 2 - places).clamp(min=0)
    end = (length + size // 2 - places).clamp(max=size)
    return sums[end] - sums[first]


torch.fx.wrap("local_mean")


class _Window(nn.Module):
    """A Gaussian window over positions and all maps."""

    def __init__(self, size: int = 7, std: float | None = None) -> None:
        super().__init__()
        if not isinstance(size, int) or isinstance(size, bool) or size < 1 or size % 2 == 0:
            raise StriateError(f"size is {size!r}", allowed="an odd number of pixels")
        chosen = GAUSSIAN_SHARE * size if std is None else float(std)
        if not chosen > 0:
            raise StriateError(f"std is {std!r}", allowed="more than 0 pixels")
        self.size, self.std = size, chosen

    def extra_repr(self) -> str:
        """The window, for printing."""
        return f"{self.size}, std={self.std:.4g}"


@LAYERS.register(
    paper="Jarrett, Kavukcuoglu, Ranzato & LeCun, ICCV 2009, section 2 (N layer)",
    example=lambda: (SubtractiveNorm(5), torch.randn(2, 3, 7, 6)),
)
class SubtractiveNorm(_Window):
    """Each value less the Gaussian-weighted mean around it, over all maps; (N, C, H, W) of any range.

    v[c, y, x] = x[c, y, x] - sum over maps and window of w * x, where the weights have the sum 1, at the
    borders too: a constant picture becomes 0 everywhere. `size` is the window's side, `std` its standard
    deviation in pixels (0.177 of the side if None). Jarrett et al. 2009.

    Raises:
        StriateError: an even `size`, or `std` not above 0.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Subtract the local mean; the shape stays."""
        return x - local_mean(x, self.size, self.std)


@LAYERS.register(
    paper="Jarrett, Kavukcuoglu, Ranzato & LeCun, ICCV 2009, section 2 (N layer)",
    example=lambda: (DivisiveNorm(5), torch.randn(2, 3, 7, 6)),
)
class DivisiveNorm(_Window):
    """Each value divided by the Gaussian-weighted root mean square around it, over all maps.

    y = v / max(mean sigma, sigma[y, x]), sigma[y, x] = sqrt(sum over maps and window of w * v^2); the mean is
    that of the example's own sigma, so that flat parts are not blown up. Weights have the sum 1, at the
    borders too. An example of zeros stays 0. (N, C, H, W) of any range; `size` and `std` as in
    SubtractiveNorm; sigma below `eps` counts as `eps`, or rounding would be blown up. Jarrett et al. 2009.

    Raises:
        StriateError: an even `size`, or `std` not above 0.
    """

    def __init__(self, size: int = 7, std: float | None = None, *, eps: float = 1e-4) -> None:
        super().__init__(size, std)
        self.eps = float(eps)

    def forward(self, x: Tensor) -> Tensor:
        """Divide by the local contrast; the shape stays."""
        # Clamped before the root, whose slope at 0 is infinite.
        sigma = local_mean(x.square(), self.size, self.std).clamp_min(self.eps**2).sqrt()
        return x / torch.maximum(sigma, sigma.mean((2, 3), keepdim=True))


@LAYERS.register(
    paper="Jarrett, Kavukcuoglu, Ranzato & LeCun, ICCV 2009, section 2 (N layer)",
    example=lambda: (LocalContrastNorm(5), torch.randn(2, 3, 7, 6)),
)
class LocalContrastNorm(nn.Module):
    """Local contrast normalisation: SubtractiveNorm, then DivisiveNorm; (N, C, H, W) of any range.

    Two windows of `size` x `size` positions across all maps, Gaussian, `std` 0.177 of the side if None
    (1.591 for the 9 x 9 of Jarrett et al. 2009).

    Raises:
        StriateError: an even `size`, or `std` not above 0.
    """

    def __init__(self, size: int = 7, std: float | None = None, *, eps: float = 1e-4) -> None:
        super().__init__()
        self.subtract = SubtractiveNorm(size, std)
        self.divide = DivisiveNorm(size, std, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """Subtract the local mean, divide by the local contrast; the shape stays."""
        out: Tensor = self.divide(self.subtract(x))
        return out
