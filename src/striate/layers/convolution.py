"""Convolutions beyond PyTorch's own."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from striate.core.errors import StriateError
from striate.layers.registry import LAYERS
from striate.layers.windows import (
    Padding,
    Size,
    check_padding,
    pad_map,
    pair,
    sides_of,
)
from striate.layers.windows import same_padding as same_padding


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: Padding,
    dilation: tuple[int, int],
    groups: int,
    value: float = 0.0,
) -> Tensor:
    """2-d convolution with any of the paddings: x (N, C, H, W), weight (M, C / groups, kh, kw).

    What is added around the map has the value `value`.
    """
    kernel = (weight.shape[-2], weight.shape[-1])
    top, bottom, left, right = sides_of(padding, (x.shape[-2], x.shape[-1]), kernel, stride, dilation)
    if value == 0 and top == bottom and left == right:
        return F.conv2d(x, weight, bias, stride, (top, left), dilation, groups)
    return F.conv2d(pad_map(x, (top, bottom, left, right), value), weight, bias, stride, 0, dilation, groups)


# The padding depends on numbers that symbolic tracing does not have: one node of the graph.
torch.fx.wrap("convolve")


@LAYERS.register(
    paper="Krizhevsky, Sutskever & Hinton, NIPS 2012, section 3.5 (groups); arXiv:1603.07285 (padding)",
    example=lambda: (
        PaddedConv2d(4, 6, 3, stride=2, padding=(1, 2, 0, 1), pad_value=-1.0, groups=2),
        torch.randn(2, 4, 7, 6),
    ),
)
class PaddedConv2d(nn.Conv2d):
    """Convolution with "valid", "same" or any other padding, of any value, at any stride, in groups.

    (N, C, H, W) -> (N, M, ...), floats of any range. `padding` is "valid" (none), "same" (ceil(length /
    stride) positions, the odd row or column after), a number for all sides, (vertical, horizontal) or (top,
    bottom, left, right). What is added has the value `pad_value` (LeNet of 1989: -1, its background). In
    `groups`, maps see the maps of their own group only (Krizhevsky et al. 2012: 2).

    Raises:
        StriateError: another padding.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        *,
        stride: Size = 1,
        padding: Padding = "valid",
        pad_value: float = 0.0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            pair(kernel_size, "kernel"),
            pair(stride, "stride"),
            0,
            pair(dilation, "dilation"),
            groups=groups,
            bias=bias,
        )
        self.sides = check_padding(padding)
        self.pad_value = float(pad_value)

    def forward(self, x: Tensor) -> Tensor:
        """Pad and convolve."""
        stride, dilation = pair(self.stride), pair(self.dilation)  # type: ignore[arg-type]
        return convolve(x, self.weight, self.bias, stride, self.sides, dilation, self.groups, self.pad_value)

    def extra_repr(self) -> str:
        """Sizes and padding, for printing."""
        return f"{nn.Conv2d.extra_repr(self)}, sides={self.sides}"  # type: ignore[no-untyped-call]


@LAYERS.register(
    paper="tensorflow.org/api_docs/python/tf/nn#same_padding",
    example=lambda: (SameConv2d(3, 4, 3, stride=2), torch.randn(2, 3, 6, 5)),
)
class SameConv2d(PaddedConv2d):
    """Convolution with TensorFlow's "same" padding, which is one-sided where an odd number is needed.

    (N, C, H, W) -> (N, M, ceil(H / stride), ceil(W / stride)), floats of any range; tensorflow.org, tf.nn.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        *,
        stride: Size = 1,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding="same",
            dilation=dilation,
            groups=groups,
            bias=bias,
        )


class OwnWeights(nn.Module):
    """Stride and padding of a convolution whose weights are not one bank of filters for all positions."""

    def __init__(self, kernel_size: Size, stride: Size, padding: Padding, pad_value: float) -> None:
        super().__init__()
        self.kernel_size, self.stride = pair(kernel_size, "kernel"), pair(stride, "stride")
        self.sides = check_padding(padding)
        self.pad_value = float(pad_value)

    def extra_repr(self) -> str:
        """Kernel, stride and padding, for printing."""
        return f"kernel_size={self.kernel_size}, stride={self.stride}, sides={self.sides}"


def add_bias(y: Tensor, bias: Tensor | None) -> Tensor:
    """Add a bias for each map (M,) or each unit (M, H, W) to (N, M, H, W)."""
    if bias is None:
        return y
    if bias.ndim == 1:
        return y + bias.view(-1, 1, 1)
    if y.shape[-2:] != bias.shape[-2:]:
        raise StriateError(
            f"the maps are {tuple(y.shape[-2:])}, the biases are for {tuple(bias.shape[1:])}",
            hint="build the layer with that out_size",
        )
    return y + bias


torch.fx.wrap("add_bias")


@LAYERS.register(
    paper="LeCun et al., Neural Computation 1(4), 1989, section 4",
    example=lambda: (
        UntiedBiasConv2d(3, 4, 3, (4, 3), stride=2, padding=1, pad_value=-1.0),
        torch.randn(2, 3, 7, 6),
    ),
)
class UntiedBiasConv2d(OwnWeights):
    """Convolution that shares its weights over positions, while each unit has a bias of its own.

    y[m, i, j] = (weight[m] * x)[i, j] + bias[m, i, j]; (N, C, H, W) -> (N, M, h, w) with `out_size` (h, w).
    weight is (M, C, kh, kw), bias (M, h, w). Drawn uniformly within 2.4 / inputs of a unit, biases 0, as the
    paper does; padding and `pad_value` as in PaddedConv2d (there -1). LeCun et al. 1989, section 4.

    Raises:
        StriateError: a map of another size than `out_size` would result.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        out_size: Size,
        *,
        stride: Size = 1,
        padding: Padding = "valid",
        pad_value: float = 0.0,
    ) -> None:
        super().__init__(kernel_size, stride, padding, pad_value)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, *self.kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels, *pair(out_size, "out_size")))
        draw_lecun_1989(self.weight, [self.weight[0].numel()] * out_channels)

    def fans(self) -> tuple[float, float]:
        """Inputs of a unit, and units that an input reaches, at stride 1."""
        area = math.prod(self.kernel_size)
        return self.in_channels * area, self.out_channels * area

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, and add each unit's bias."""
        y = convolve(x, self.weight, None, self.stride, self.sides, (1, 1), 1, self.pad_value)
        return add_bias(y, self.bias)


@LAYERS.register(
    paper="LeCun et al., Neural Computation 1(4), 1989, section 4; Proc. IEEE 86(11), 1998, table I",
    example=lambda: (TableConv2d([[0, 1], [2, 1], [0, 1, 2]], 3), torch.randn(2, 3, 5, 6)),
)
class TableConv2d(OwnWeights):
    """Convolution in which each map sees the input maps that a table lists for it.

    `table` has one row for each output map: the numbers of the input maps it sees. Only these connections
    have weights: weight is (connections, kh, kw), row after row of the table. The bias is (M,), or, with
    `out_size` (h, w), one for each unit as in LeNet of 1989: (M, h, w). (N, C, H, W) -> (N, M, ...), and C
    is `in_channels`, or one more than the largest number in the table. Drawn uniformly within 2.4 / inputs
    of the unit, biases 0 (both papers).

    Raises:
        StriateError: an empty table or row, a number twice in a row, or out of range.
    """

    def __init__(
        self,
        table: Sequence[Sequence[int]],
        kernel_size: Size,
        *,
        stride: Size = 1,
        padding: Padding = "valid",
        pad_value: float = 0.0,
        in_channels: int | None = None,
        out_size: Size | None = None,
    ) -> None:
        super().__init__(kernel_size, stride, padding, pad_value)
        self.table = tuple(tuple(int(n) for n in row) for row in table)
        largest = max((n for row in self.table for n in row), default=-1)
        self.in_channels = largest + 1 if in_channels is None else in_channels
        self.out_channels = len(self.table)
        for row in self.table:
            if not row or len(set(row)) < len(row) or not 0 <= min(row) <= max(row) < self.in_channels:
                raise StriateError(
                    f"a row of the table is {list(row)}",
                    allowed=f"different input maps, from 0 to {self.in_channels - 1}, at least one",
                )
        if not self.table:
            raise StriateError("the table is empty", allowed="a row of input maps for each output map")
        units = () if out_size is None else pair(out_size, "out_size")
        self.weight = nn.Parameter(torch.empty(sum(map(len, self.table)), *self.kernel_size))
        self.bias = nn.Parameter(torch.zeros(self.out_channels, *units))
        area = math.prod(self.kernel_size)
        draw_lecun_1989(self.weight, [len(row) * area for row in self.table for _ in row])

    def fans(self) -> tuple[float, float]:
        """Inputs of a unit, and units that an input reaches at stride 1; means over the maps."""
        return self.weight.numel() / self.out_channels, self.weight.numel() / self.in_channels

    def matrices(self) -> list[Tensor]:
        """The weights as matrices with a unit a row: one for all neighbouring maps that see equally many."""
        parts, at = [], 0
        for count, rows in itertools.groupby(map(len, self.table)):
            maps = len(list(rows))
            parts.append(self.weight[at : at + count * maps].view(maps, -1))
            at += count * maps
        return parts

    def forward(self, x: Tensor) -> Tensor:
        """Convolve along the connections of the table, and add the biases."""
        y = table_convolve(
            x, self.weight, self.table, self.in_channels, self.stride, self.sides, self.pad_value
        )
        return add_bias(y, self.bias)

    def dense_weight(self) -> Tensor:
        """The weights as of a full convolution, (M, C, kh, kw), 0 where the table has no connection."""
        full = self.weight.new_zeros(self.out_channels, self.in_channels, *self.kernel_size)
        out = [m for m, row in enumerate(self.table) for _ in row]
        full[out, [n for row in self.table for n in row]] = self.weight
        return full


def table_convolve(
    x: Tensor,
    weight: Tensor,
    table: Sequence[Sequence[int]],
    channels: int,
    stride: tuple[int, int],
    padding: Padding,
    value: float,
) -> Tensor:
    """The convolution along the connections of a table, without products where there is none."""
    if x.shape[1] != channels:
        raise StriateError(f"the input has {x.shape[1]} maps, the table is for {channels}")
    parts, at = [], 0
    # Neighbouring rows of equal length are one convolution in groups.
    for count, rows in itertools.groupby(table, len):
        maps = list(rows)
        seen = torch.cat([x[:, first:end] for row in maps for first, end in _runs(row)], 1)
        part = weight[at : at + count * len(maps)].view(len(maps), count, *weight.shape[1:])
        parts.append(convolve(seen, part, None, stride, padding, (1, 1), len(maps), value))
        at += count * len(maps)
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


torch.fx.wrap("table_convolve")


def _runs(row: Sequence[int]) -> list[tuple[int, int]]:
    """The row as slices (first, end) of numbers that follow each other."""
    runs: list[tuple[int, int]] = []
    for n in row:
        if runs and runs[-1][1] == n:
            runs[-1] = (runs[-1][0], n + 1)
        else:
            runs.append((n, n + 1))
    return runs


def draw_lecun_1989(weight: Tensor, inputs: Sequence[int]) -> None:
    """Draw each row of `weight` uniformly within 2.4 / inputs (LeCun et al. 1989, section 3)."""
    if not weight.is_meta:
        bound = 2.4 / torch.tensor(inputs, dtype=weight.dtype, device=weight.device)
        with torch.no_grad():
            weight.uniform_(-1, 1).mul_(bound.view(-1, *[1] * (weight.ndim - 1)))
