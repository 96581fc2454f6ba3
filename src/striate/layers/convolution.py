"""Convolutions beyond PyTorch's own."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from striate.layers.registry import LAYERS


def same_padding(length: int, kernel: int, stride: int, dilation: int = 1) -> tuple[int, int]:
    """Zeros before and after one axis so that the output has ceil(length / stride) positions.

    TensorFlow's rule "SAME": an odd one goes after.
    """
    total = max(0, (-(-length // stride) - 1) * stride + dilation * (kernel - 1) + 1 - length)
    return total // 2, total - total // 2


def convolve_same(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, dilation: Any, groups: int
) -> Tensor:
    """2-d convolution with `same_padding` on both axes; x (N, C, H, W) -> (N, M, ceil(H/s), ceil(W/s))."""
    top, bottom = same_padding(x.shape[-2], weight.shape[-2], stride[0], dilation[0])
    left, right = same_padding(x.shape[-1], weight.shape[-1], stride[1], dilation[1])
    if top == bottom and left == right:
        return F.conv2d(x, weight, bias, stride, (top, left), dilation, groups)
    x = F.pad(x, (left, right, top, bottom))
    return F.conv2d(x, weight, bias, stride, 0, dilation, groups)


# The padding depends on numbers that symbolic tracing does not have: one node of the graph.
torch.fx.wrap("convolve_same")


@LAYERS.register(paper="tensorflow.org/api_docs/python/tf/nn#same_padding")
class SameConv2d(nn.Conv2d):
    """Convolution with TensorFlow's "same" padding, which is one-sided where an odd number is needed.

    (N, C, H, W) -> (N, M, ceil(H / stride), ceil(W / stride)), floats of any range.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, 0, dilation, groups=groups, bias=bias
        )

    def forward(self, x: Tensor) -> Tensor:
        """Convolve; (N, C, H, W) -> (N, M, ceil(H / stride), ceil(W / stride))."""
        return convolve_same(x, self.weight, self.bias, self.stride, self.dilation, self.groups)
