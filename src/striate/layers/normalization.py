"""Layers that set the scale of what passes through."""

from __future__ import annotations

from torch import Tensor, nn

from striate.layers.registry import LAYERS


@LAYERS.register()
class Scale(nn.Module):
    """Multiply by a constant: y = factor * x, of any shape."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = float(factor)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply."""
        return x * self.factor

    def extra_repr(self) -> str:
        """The factor, for printing."""
        return f"{self.factor:g}"
