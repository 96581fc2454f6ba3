"""Layers that act in training only, or differently there."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from striate.core.errors import StriateError, unknown
from striate.layers.registry import LAYERS
from striate.layers.windows import windows_of


@LAYERS.register(
    paper="arXiv:1603.09382, section 3", example=lambda: (DropPath(0.5), torch.randn(4, 3, 5, 4))
)
class DropPath(nn.Module):
    """Stochastic depth: in training, a residual branch of an example is dropped with probability `rate`.

    y = x * b / (1 - rate), b ~ Bernoulli(1 - rate) per example; in evaluation y = x. Any shape (N, ...).
    Huang et al. 2016, section 3; divided in training rather than multiplied in evaluation.

    Raises:
        StriateError: `rate` is not in [0, 1).
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise StriateError(f"drop-path rate is {rate!r}", allowed="0 to below 1")
        self.rate = float(rate)

    def forward(self, x: Tensor) -> Tensor:
        """Drop whole examples of the branch, in training only."""
        if not self.training or self.rate == 0:
            return x
        return drop_examples(x, self.rate)

    def extra_repr(self) -> str:
        """The rate, for printing."""
        return f"{self.rate:g}"


def drop_examples(x: Tensor, rate: float) -> Tensor:
    """Each example of (N, ...) becomes 0 with probability `rate`, and is divided by 1 - rate otherwise."""
    keep = x.new_empty((x.shape[0], *[1] * (x.ndim - 1))).bernoulli_(1 - rate)
    return x * keep.div_(1 - rate)


# The shape of the mask depends on numbers that symbolic tracing does not have: one node of the graph.
torch.fx.wrap("drop_examples")

# Weights of all examples whose masks are in memory at once: 64 MB of single precision.
MASKED_AT_ONCE = 1 << 24
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor] | None] = {
    "linear": None,
    "relu": F.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}
# Points of the trapezoid rule, in standard deviations: exact to 1e-8 for inputs that spread by less than 5.
GRID = tuple(i / 10 for i in range(-60, 61))


@LAYERS.register(
    paper="Wan, Zeiler, Zhang, LeCun & Fergus, ICML 2013, sections 3 and 3.2",
    example=lambda: (DropConnectLinear(6, 4, 0.5, activation="relu"), torch.randn(5, 6)),
)
class DropConnectLinear(nn.Module):
    """A linear layer whose single weights are dropped, for each example others, and its activation.

    Training: y = a((M * W) x + m * b), each element of M (out, in) and m (out,) is 1 with probability p =
    1 - rate, drawn for each example; nothing is divided by p. Evaluation: the units' inputs are taken as
    Gaussian with the moments of that, mean p (W x + b) and variance p (1 - p) (W^2 x^2 + b^2), and y is the
    mean of a over them (Wan et al. 2013, algorithm 2): in closed form for "linear" and "relu", else by the
    trapezoid rule, where the paper draws samples. (N, ..., in) -> (N, ..., out); each row is an example.

    Masks take rows * in * out numbers. At most `MASKED_AT_ONCE` are held: of larger batches, parts follow
    each other, and the backward pass draws their masks again.

    `activation` is "linear", "relu", "tanh" or "sigmoid"; weights are drawn uniformly within 1 / sqrt(in).

    Raises:
        StriateError: `rate` is not in [0, 1), or an unknown activation.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rate: float = 0.5,
        *,
        activation: str = "linear",
        bias: bool = True,
    ) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise StriateError(f"DropConnect rate is {rate!r}", allowed="0 to below 1")
        if activation not in ACTIVATIONS:
            raise unknown("activation", activation, ACTIVATIONS)
        self.in_features, self.out_features = in_features, out_features
        self.rate, self.activation = float(rate), activation
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None
        if not self.weight.is_meta:
            bound = 1 / math.sqrt(max(1, in_features))
            for parameter in self.parameters():
                nn.init.uniform_(parameter, -bound, bound)

    def fans(self) -> tuple[float, float]:
        """Inputs of a unit, and units that an input reaches."""
        return self.in_features, self.out_features

    def forward(self, x: Tensor) -> Tensor:
        """Drop connections in training, average over them in evaluation."""
        act = ACTIVATIONS[self.activation]
        if self.rate == 0:
            y = self._summed(x, self.weight, self.bias)
        elif self.training:
            y = self._masked(x)
        else:
            return self._expected(x)
        return act(y) if act is not None else y

    def _expected(self, x: Tensor) -> Tensor:
        keep = 1 - self.rate
        mean = keep * self._summed(x, self.weight, self.bias)
        if self.activation == "linear":
            return mean
        energy = None if self.bias is None else self.bias.square()
        variance = keep * self.rate * self._summed(x.square(), self.weight.square(), energy)
        # A unit without inputs has no spread; the root has an infinite slope there.
        return expectation(self.activation, mean, variance.clamp_min(1e-12).sqrt())

    def _summed(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)

    def _masked(self, x: Tensor) -> Tensor:
        return masked_linear(x, self.weight, self.bias, self.rate)

    def extra_repr(self) -> str:
        """Sizes, rate and activation, for printing."""
        return f"{self.in_features}, {self.out_features}, rate={self.rate:g}, {self.activation}"


class DropConnectWindows(DropConnectLinear):
    """DropConnectLinear on the window at every place of a map: (N, C, H, W) -> (N, out, h, w), stride 1.

    The layer's weights, copied, in its order of a window: channel by channel, row by row. In training every
    place of every picture is an example with masks of its own.

    Raises:
        StriateError: the windows have another number of values than the layer takes.
    """

    def __init__(self, layer: DropConnectLinear, kernel: tuple[int, int]) -> None:
        nn.Module.__init__(self)
        if layer.in_features % (kernel[0] * kernel[1]):
            raise StriateError(
                f"windows of {kernel[0]} x {kernel[1]} for a layer of {layer.in_features} inputs",
                allowed="windows whose pixels divide the inputs",
            )
        self.in_features, self.out_features, self.kernel = layer.in_features, layer.out_features, kernel
        self.rate, self.activation = layer.rate, layer.activation
        self.weight, self.bias = copy.deepcopy(layer.weight), copy.deepcopy(layer.bias)

    def _summed(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(x, weight.view(self.out_features, -1, *self.kernel), bias)

    def _masked(self, x: Tensor) -> Tensor:
        places = windows_of(x, self.kernel)
        return masked_linear(places, self.weight, self.bias, self.rate).permute(0, 3, 1, 2)


def expectation(activation: str, mean: Tensor, std: Tensor) -> Tensor:
    """The mean of an activation over Gaussian inputs of these moments; the shape stays."""
    act = ACTIVATIONS[activation]
    if act is None:
        return mean
    if activation == "relu":
        z = mean / std
        density = torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi)
        return mean * 0.5 * torch.erfc(-z / math.sqrt(2)) + std * density
    weights = [math.exp(-0.5 * t * t) for t in GRID]
    total = torch.zeros_like(mean)
    for t, weight in zip(GRID, weights, strict=True):
        total = total + weight / sum(weights) * act(mean + t * std)
    return total


def masked_linear(x: Tensor, weight: Tensor, bias: Tensor | None, rate: float) -> Tensor:
    """(M * weight) x + m * bias with new masks for each row of x: (..., in) -> (..., out)."""
    rows = x.reshape(-1, x.shape[-1])
    at_once = max(1, MASKED_AT_ONCE // max(1, weight.numel()))
    if len(rows) <= at_once:
        y = _masked(rows, weight, bias, rate)
    else:
        parts = [
            checkpoint(_masked, part, weight, bias, rate, use_reentrant=False)
            for part in torch.split(rows, at_once)
        ]
        y = torch.cat(parts)
    return y.view(*x.shape[:-1], len(weight))


def _masked(x: Tensor, weight: Tensor, bias: Tensor | None, rate: float) -> Tensor:
    masks = weight.new_empty(len(x), *weight.shape).bernoulli_(1 - rate)
    y = torch.bmm(masks * weight, x.unsqueeze(2)).squeeze(2)
    if bias is None:
        return y
    return y + bias * bias.new_empty(len(x), len(bias)).bernoulli_(1 - rate)


torch.fx.wrap("masked_linear")
