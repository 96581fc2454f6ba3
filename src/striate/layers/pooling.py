"""Pooling beyond PyTorch's own."""

from __future__ import annotations

from torch import Tensor, nn

from striate.layers.registry import LAYERS


@LAYERS.register(paper="arXiv:1312.4400, section 3.2")
class GlobalAveragePool(nn.Module):
    """The mean of each feature map: (N, C, H, W) -> (N, C, 1, 1)."""

    def forward(self, x: Tensor) -> Tensor:
        """Average over height and width."""
        return x.mean((2, 3), keepdim=True)


@LAYERS.register(paper="arXiv:1312.4400, section 3.2 (with the maximum)")
class GlobalMaxPool(nn.Module):
    """The maximum of each feature map: (N, C, H, W) -> (N, C, 1, 1)."""

    def forward(self, x: Tensor) -> Tensor:
        """Maximum over height and width; where several positions tie, they share the gradient."""
        return x.amax((2, 3), keepdim=True)
