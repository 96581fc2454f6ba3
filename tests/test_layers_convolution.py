"""Convolutions against loops over every output unit, and against the counts of the papers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from striate.core.errors import StriateError
from striate.layers.convolution import (
    PaddedConv2d,
    TableConv2d,
    UntiedBiasConv2d,
)
from striate.layers.tiled import TiledConv2d
from striate.layers.windows import window_count

# Proc. IEEE 86(11), table I: which maps of S2 each map of C3 sees.
LENET5_C3 = [
    [0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 5], [0, 4, 5], [0, 1, 5],
    [0, 1, 2, 3], [1, 2, 3, 4], [2, 3, 4, 5], [0, 3, 4, 5], [0, 1, 4, 5], [0, 1, 2, 5],
    [0, 1, 3, 4], [1, 2, 4, 5], [0, 2, 3, 5],
    [0, 1, 2, 3, 4, 5],
]  # fmt: skip


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def framed(x: Tensor, sides: tuple[int, int, int, int], value: float) -> Tensor:
    top, bottom, left, right = sides
    height, width = x.shape[-2:]
    full = torch.full((*x.shape[:2], height + top + bottom, width + left + right), value, dtype=x.dtype)
    full[:, :, top : top + height, left : left + width] = x
    return full


@torch.no_grad()
def by_loops(x: Tensor, weight_at, bias_at, maps: int, kernel, stride, dilation=(1, 1)) -> Tensor:
    """y[n, m, i, j] = sum of weight_at(m, i, j) * window + bias; weights (C, kh, kw), 0 for no connection."""
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    rows, columns = ((x.shape[a + 2] - reach[a]) // stride[a] + 1 for a in (0, 1))
    y = torch.zeros(len(x), maps, rows, columns, dtype=x.dtype)
    for m in range(maps):
        for i in range(rows):
            for j in range(columns):
                top, left = i * stride[0], j * stride[1]
                window = x[:, :, top : top + reach[0] : dilation[0], left : left + reach[1] : dilation[1]]
                y[:, m, i, j] = (window * weight_at(m, i, j)).sum((1, 2, 3)) + bias_at(m, i, j)
    return y


def grouped(weight: Tensor, m: int, channels: int, groups: int) -> Tensor:
    """The kernel of map m over all input channels, 0 outside of its group."""
    own = channels // groups
    group = m // (len(weight) // groups)
    full = torch.zeros(channels, *weight.shape[2:], dtype=weight.dtype)
    full[group * own : (group + 1) * own] = weight[m]
    return full


PADDINGS = [
    ("valid", (0, 0, 0, 0), 1, 1, 1, 0.0),
    (2, (2, 2, 2, 2), 2, 1, 2, 0.0),
    ((1, 0), (1, 1, 0, 0), 1, 2, 1, -1.0),
    ((1, 2, 0, 3), (1, 2, 0, 3), 2, 1, 4, 0.5),
    # 7 x 6 at stride 2 and kernel 3: 4 x 3 positions reach over 9 x 7 pixels; the odd column after.
    ("same", (1, 1, 0, 1), 2, 1, 2, -1.0),
    ("same", (1, 1, 1, 1), 1, 1, 1, 0.0),
    ("same", (2, 2, 2, 2), 1, 2, 1, 0.0),
]


@pytest.mark.parametrize(("padding", "sides", "stride", "dilation", "groups", "value"), PADDINGS)
def test_padded_convolution_is_what_loops_give(padding, sides, stride, dilation, groups, value):
    layer = PaddedConv2d(
        4, 8, 3, stride=stride, padding=padding, dilation=dilation, groups=groups, pad_value=value
    ).double()
    x = torch.randn(2, 4, 7, 6, dtype=torch.float64)
    expected = by_loops(
        framed(x, sides, value),
        lambda m, i, j: grouped(layer.weight, m, 4, groups),
        lambda m, i, j: layer.bias[m],
        8,
        (3, 3),
        (stride, stride),
        (dilation, dilation),
    )
    torch.testing.assert_close(layer(x), expected)
    if padding == "same":
        assert expected.shape[2:] == (-(-7 // stride), -(-6 // stride))


def test_kernels_and_strides_may_differ_along_the_axes():
    layer = PaddedConv2d(2, 3, (1, 4), stride=(2, 1), padding="same").double()
    x = torch.randn(1, 2, 5, 6, dtype=torch.float64)
    expected = by_loops(
        framed(x, (0, 0, 1, 2), 0.0),
        lambda m, i, j: layer.weight[m],
        lambda m, i, j: layer.bias[m],
        3,
        (1, 4),
        (2, 1),
    )
    assert layer(x).shape == (1, 3, 3, 6)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("tiles", [1, 2, 3, 9])
def test_tiled_convolution_is_what_loops_give(tiles, stride):
    layer = TiledConv2d(
        4, 6, (3, 2), tiles=tiles, stride=stride, padding=(1, 0, 2, 1), groups=2, pad_value=0.5
    ).double()
    x = torch.randn(2, 4, 8, 5, dtype=torch.float64)
    expected = by_loops(
        framed(x, (1, 0, 2, 1), 0.5),
        lambda m, i, j: grouped(layer.weight[i % tiles, j % tiles], m, 4, 2),
        lambda m, i, j: layer.bias[i % tiles, j % tiles, m],
        6,
        (3, 2),
        (stride, stride),
    )
    torch.testing.assert_close(layer(x), expected)


def test_one_tile_is_a_convolution_and_equal_tiles_are_one():
    x = torch.randn(2, 3, 7, 7)
    layer = TiledConv2d(3, 4, 3, tiles=1)
    torch.testing.assert_close(layer(x), F.conv2d(x, layer.weight[0, 0], layer.bias[0, 0]))
    many = TiledConv2d(3, 4, 3, tiles=2)
    with torch.no_grad():
        many.weight.copy_(layer.weight.expand_as(many.weight))
        many.bias.copy_(layer.bias.expand_as(many.bias))
    torch.testing.assert_close(many(x), layer(x))


def test_as_many_tiles_as_positions_are_a_locally_connected_layer():
    """Each unit reaches weights that no other unit does."""
    layer = TiledConv2d(1, 2, 3, tiles=4, bias=False)
    y = layer(torch.rand(1, 1, 6, 6) + 0.5)
    assert y.shape == (1, 2, 4, 4)
    y[0, 1, 2, 3].backward()
    touched = layer.weight.grad.flatten(3).abs().sum(-1) > 0
    assert touched.nonzero().tolist() == [[2, 3, 1]]


def test_tiles_cost_no_more_products_than_a_convolution():
    x = torch.randn(1, 3, 13, 11)
    counts = []
    for layer in (nn.Conv2d(3, 4, 3), TiledConv2d(3, 4, 3, tiles=3)):
        with FlopCounterMode(display=False) as counter:
            layer(x)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1]


def test_untied_biases_are_added_to_their_units():
    layer = UntiedBiasConv2d(3, 4, 5, (4, 3), stride=2, padding=(2, 1, 1, 2), pad_value=-1.0).double()
    nn.init.normal_(layer.bias)
    x = torch.randn(2, 3, 8, 7, dtype=torch.float64)
    expected = by_loops(
        framed(x, (2, 1, 1, 2), -1.0),
        lambda m, i, j: layer.weight[m],
        lambda m, i, j: layer.bias[m, i, j],
        4,
        (5, 5),
        (2, 2),
    )
    torch.testing.assert_close(layer(x), expected)
    with pytest.raises(StriateError, match="biases are for"):
        layer(torch.zeros(1, 3, 16, 16, dtype=torch.float64))


@pytest.mark.parametrize("untied", [False, True])
@pytest.mark.parametrize("table", [LENET5_C3, [[5, 0], [1, 3], [4, 2]], [[3]], [[1], [0, 5], [2], [5, 1, 3]]])
def test_table_convolution_is_what_loops_give(table, untied):
    layer = TableConv2d(
        table, 3, stride=2, padding=(1, 0, 0, 1), in_channels=6, out_size=(3, 3) if untied else None
    ).double()
    nn.init.normal_(layer.bias)
    x = torch.randn(2, 6, 7, 6, dtype=torch.float64)
    first = [sum(map(len, table[:m])) for m in range(len(table))]

    def kernel(m: int, i: int, j: int) -> Tensor:
        full = torch.zeros(6, 3, 3, dtype=torch.float64)
        for place, n in enumerate(table[m]):
            full[n] = layer.weight[first[m] + place]
        return full

    expected = by_loops(
        framed(x, (1, 0, 0, 1), 0.0),
        kernel,
        lambda m, i, j: layer.bias[m, i, j] if untied else layer.bias[m],
        len(table),
        (3, 3),
        (2, 2),
    )
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(
        layer.dense_weight(), torch.stack([kernel(m, 0, 0) for m in range(len(table))])
    )


def test_lenet5_counts():
    """C3 of 1998: 1,516 free parameters, 151,600 connections at 10 x 10 units (section II.B)."""
    layer = TableConv2d(LENET5_C3, 5)
    assert sum(p.numel() for p in layer.parameters()) == 1516
    with FlopCounterMode(display=False) as counter:
        y = layer(torch.randn(1, 6, 14, 14))
    assert y.shape == (1, 16, 10, 10)
    assert counter.get_total_flops() // 2 + y.numel() == 151_600


def test_lenet_1989_counts():
    """H1: 768 units, 19,968 connections, 1,068 parameters; H2: 192, 38,592, 2,592 (section 4)."""
    h1 = UntiedBiasConv2d(1, 12, 5, 8, stride=2, padding=(1, 2, 1, 2), pad_value=-1.0)
    table = [[(m + n) % 12 for n in range(8)] for m in range(12)]
    h2 = TableConv2d(table, 5, stride=2, padding=(1, 2, 1, 2), pad_value=-1.0, out_size=4)
    x = torch.randn(1, 1, 16, 16)
    for layer, units, connections, parameters in ((h1, 768, 19_968, 1_068), (h2, 192, 38_592, 2_592)):
        with FlopCounterMode(display=False) as counter:
            x = layer(x)
        assert x.numel() == units
        assert counter.get_total_flops() // 2 + units == connections
        assert sum(p.numel() for p in layer.parameters()) == parameters


def test_weights_of_the_lenets_begin_within_their_bounds():
    layer = TableConv2d([[0], [0, 1, 2, 3]], 5)
    bounds = torch.tensor([2.4 / 25] + [2.4 / 100] * 4)
    largest = layer.weight.detach().abs().flatten(1).amax(1)
    assert (largest <= bounds).all()
    assert (largest > 0.7 * bounds).all()
    assert layer.bias.abs().sum() == 0
    untied = UntiedBiasConv2d(2, 3, 5, 4)
    assert 0.9 * 2.4 / 50 < untied.weight.abs().max() <= 2.4 / 50


@pytest.mark.parametrize("ceil_mode", [False, True])
def test_windows_are_counted_as_pytorch_counts(ceil_mode):
    for length in range(1, 12):
        for kernel in range(1, min(length, 4) + 1):
            for stride in range(1, 5):
                for padding in range(kernel // 2 + 1):
                    pool = nn.MaxPool2d((1, kernel), (1, stride), (0, padding), ceil_mode=ceil_mode)
                    found = pool(torch.zeros(1, 1, 1, length, device="meta")).shape[-1]
                    assert window_count(length, kernel, stride, padding, ceil_mode) == found


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: PaddedConv2d(1, 1, 3, padding="full"), "padding is 'full'"),
        (lambda: PaddedConv2d(1, 1, 3, padding=(1, 2, 3)), "bottom, left, right"),
        (lambda: PaddedConv2d(1, 1, 3, padding=-1), "padding is -1"),
        (lambda: PaddedConv2d(1, 1, 0), "kernel is 0"),
        (lambda: TiledConv2d(1, 1, 3, tiles=0), "tiles is 0"),
        (lambda: TiledConv2d(3, 2, 3, tiles=1, groups=2), "multiples of the groups"),
        (lambda: TiledConv2d(1, 1, 5, tiles=2)(torch.zeros(1, 1, 4, 9)), "at least 5 x 5"),
        (lambda: TableConv2d([], 3), "table is empty"),
        (lambda: TableConv2d([[0], []], 3), r"row of the table is \[\]"),
        (lambda: TableConv2d([[0, 0]], 3), "different input maps"),
        (lambda: TableConv2d([[0, 3]], 3, in_channels=3), "from 0 to 2"),
        (lambda: TableConv2d([[0, 1]], 3)(torch.zeros(1, 3, 5, 5)), "3 maps, the table is for 2"),
        (lambda: UntiedBiasConv2d(1, 1, 3, (4, 0)), "out_size is"),
    ],
)
def test_mistakes_are_named(build, message):
    with pytest.raises(StriateError, match=message):
        build()
