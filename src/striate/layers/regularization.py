"""Layers that act in training only."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from striate.core.errors import StriateError
from striate.layers.registry import LAYERS


@LAYERS.register(
    paper="arXiv:1603.09382, section 3", example=lambda: (DropPath(0.5), torch.randn(4, 3, 5, 4))
)
class DropPath(nn.Module):
    """Stochastic depth: in training, a residual branch of an example is dropped with probability `rate`.

    y = x * b / (1 - rate), b ~ Bernoulli(1 - rate) per example; in evaluation y = x. Any shape (N, ...).
    Huang et al., section 3; divided in training rather than multiplied in evaluation.

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
        keep = x.new_empty((x.shape[0], *[1] * (x.ndim - 1))).bernoulli_(1 - self.rate)
        return x * keep.div_(1 - self.rate)

    def extra_repr(self) -> str:
        """The rate, for printing."""
        return f"{self.rate:g}"
