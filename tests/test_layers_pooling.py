"""Pooling against loops over every window, and drawing against its probabilities."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from striate.core.errors import StriateError
from striate.layers.activations import Maxout
from striate.layers.convolution import TableConv2d
from striate.layers.normalization import LocalResponseNorm
from striate.layers.pooling import (
    LpPool2d,
    MaxPoolSwitches,
    MaxUnpool,
    SpatialPyramidPool,
    StochasticPool2d,
    SumPool2d,
    TrainableSubsample,
)
from striate.nets.geometry import stage_geometry
from striate.nets.net import Net

# Kernel, stride, padding, ceil_mode: apart, overlapping, padded, with gaps, with a last window hanging over.
WINDOWS = [
    (2, 2, 0, False),
    (3, 2, 0, True),
    (3, 2, 1, False),
    (3, 1, 1, False),
    (2, 3, 0, True),
    ((2, 3), (1, 2), (1, 0), False),
]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def pool_by_loops(x: Tensor, rule, kernel, stride, padding=0, ceil_mode=False) -> Tensor:
    """rule(values of a window that exist) for every window; PyTorch only tells how many windows there are."""
    (kh, kw), (sh, sw), (ph, pw) = (v if isinstance(v, tuple) else (v, v) for v in (kernel, stride, padding))
    height, width = x.shape[2:]
    shape = F.max_pool2d(x, (kh, kw), (sh, sw), (ph, pw), ceil_mode=ceil_mode).shape
    y = torch.zeros(shape, dtype=x.dtype)
    for n, c, i, j in itertools.product(*map(range, shape)):
        rows = [r for r in range(i * sh - ph, i * sh - ph + kh) if 0 <= r < height]
        columns = [k for k in range(j * sw - pw, j * sw - pw + kw) if 0 <= k < width]
        y[n, c, i, j] = rule([float(x[n, c, r, k]) for r in rows for k in columns])
    return y


def maps(*shape: int) -> Tensor:
    return torch.randn(*(shape or (2, 2, 7, 6)), dtype=torch.float64)


@pytest.mark.parametrize(("kernel", "stride", "padding", "ceil_mode"), WINDOWS)
def test_sums_and_norms_are_what_loops_give(kernel, stride, padding, ceil_mode):
    x = maps()
    x[0, 0, :4, :4] = 0
    layer = SumPool2d(kernel, stride, padding, ceil_mode=ceil_mode)
    torch.testing.assert_close(layer(x), pool_by_loops(x, sum, kernel, stride, padding, ceil_mode))
    for p in (1, 2, 3, 4.5):

        def norm(values: list[float], p: float = p) -> float:
            return sum(abs(v) ** p for v in values) ** (1 / p)

        layer = LpPool2d(p, kernel, stride, padding, ceil_mode=ceil_mode)
        torch.testing.assert_close(layer(x), pool_by_loops(x, norm, kernel, stride, padding, ceil_mode))


def test_the_norm_of_zeros_has_no_slope_and_a_large_p_takes_the_maximum():
    x = torch.zeros(1, 1, 4, 4, requires_grad=True)
    y = LpPool2d(2, 2)(x)
    y.sum().backward()
    assert y.abs().sum() == 0
    assert x.grad.abs().sum() == 0
    x = maps()
    torch.testing.assert_close(LpPool2d(200, 2)(x), F.max_pool2d(x.abs(), 2), rtol=0.01, atol=0)


def test_subsampling_starts_as_the_mean_and_scales_the_sum():
    x = maps(2, 3, 7, 6)
    layer = TrainableSubsample(3).double()
    torch.testing.assert_close(layer(x), F.avg_pool2d(x, 2))
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([1.0, 2.0, -1.0]))
        layer.bias.copy_(torch.tensor([0.0, 1.0, 2.0]))
    sums = pool_by_loops(x, sum, 2, 2)
    torch.testing.assert_close(layer(x)[:, 1], 2 * sums[:, 1] + 1)
    torch.testing.assert_close(layer(x)[:, 2], 2 - sums[:, 2])
    # LeNet-5 (Proc. IEEE 86(11), section II.B): S2 has 12 parameters, S4 32.
    assert [sum(p.numel() for p in TrainableSubsample(n).parameters()) for n in (6, 16)] == [12, 32]


@pytest.mark.parametrize(("kernel", "stride", "padding", "ceil_mode"), WINDOWS)
def test_stochastic_pooling_weighs_in_evaluation(kernel, stride, padding, ceil_mode):
    def weighted(values: list[float]) -> float:
        values = [max(v, 0.0) for v in values]
        total = sum(values)
        return sum(v * (v / total) for v in values) if total else 0.0

    x = maps()
    x[1, 1] = -x[1, 1].abs()
    layer = StochasticPool2d(kernel, stride, padding, ceil_mode=ceil_mode).eval()
    torch.testing.assert_close(layer(x), pool_by_loops(x, weighted, kernel, stride, padding, ceil_mode))


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "ceil_mode"),
    [(2, 2, 0, False), (3, 2, 0, True), (2, 3, 0, True), (3, 2, 1, False), (3, 2, 1, True)],
)
def test_stochastic_pooling_draws_units_of_its_window(kernel, stride, padding, ceil_mode):
    x = maps().requires_grad_()
    layer = StochasticPool2d(kernel, stride, padding, ceil_mode=ceil_mode)
    y = layer(x)
    shape = F.max_pool2d(x, kernel, stride, padding, ceil_mode=ceil_mode).shape
    bordered = F.pad(x, (padding,) * 4)
    assert y.shape == shape
    for n, c, i, j in itertools.product(*map(range, shape)):
        window = bordered[n, c, i * stride : i * stride + kernel, j * stride : j * stride + kernel].relu()
        if window.sum() > 0:
            assert y[n, c, i, j] > 0
        assert (window == y[n, c, i, j]).any()
    # The gradient goes to the drawn units, and to them alone.
    y.sum().backward()
    assert x.grad.sum() == (y > 0).sum()
    assert (x.grad[x <= 0] == 0).all()


def test_stochastic_pooling_draws_with_the_probabilities_of_the_paper():
    """arXiv:1301.3557, figure 1: a window with 1.6 and 2.4 draws them with 0.4 and 0.6."""
    torch.manual_seed(0)
    count = 20_000
    window = torch.tensor([[0.0, 1.6, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 2.4]])
    y = StochasticPool2d(3)(window.expand(count, 1, 3, 3)).flatten()
    share = (y > 2).double().mean().item()
    assert y.unique().tolist() == pytest.approx([1.6, 2.4])
    assert abs(share - 0.6) < 5 * math.sqrt(0.24 / count)
    # The mean over many draws is what evaluation gives.
    expected = StochasticPool2d(3).eval()(window[None, None]).item()
    assert expected == pytest.approx(0.4 * 1.6 + 0.6 * 2.4)
    assert abs(y.double().mean().item() - expected) < 5 * 0.8 * math.sqrt(0.24 / count)


def test_overlapping_windows_draw_for_themselves():
    """Two windows share the middle column: all pairs of winners come as often as independence says."""
    torch.manual_seed(0)
    count = 20_000
    x = torch.tensor([[1.0, 3.0, 2.0]]).expand(count, 1, 1, 3)
    y = StochasticPool2d((1, 2), 1)(x).view(count, 2)
    for left, right, chance in [
        (1, 3, 0.25 * 0.6),
        (1, 2, 0.25 * 0.4),
        (3, 3, 0.75 * 0.6),
        (3, 2, 0.75 * 0.4),
    ]:
        share = ((y[:, 0] == left) & (y[:, 1] == right)).double().mean().item()
        assert abs(share - chance) < 5 * math.sqrt(chance * (1 - chance) / count)


def test_windows_of_one_unit_draw_it():
    x = maps()
    assert torch.equal(StochasticPool2d(1)(x), x.relu())
    assert torch.equal(StochasticPool2d(1, 2)(x), x.relu()[:, :, ::2, ::2])


@pytest.mark.parametrize("mode", ["training", "evaluation"])
def test_a_window_without_positive_values_gives_zero_and_no_gradient(mode):
    x = torch.tensor([[0.0, -1.0], [-2.0, 0.0]])[None, None].requires_grad_()
    y = StochasticPool2d(2).train(mode == "training")(x)
    y.sum().backward()
    assert y.item() == 0
    assert x.grad.abs().sum() == 0


@pytest.mark.parametrize(("kernel", "stride", "padding", "ceil_mode"), WINDOWS)
@pytest.mark.parametrize("size", [(7, 6), (5, 9), (4, 4)])
def test_switches_and_unpooling(kernel, stride, padding, ceil_mode, size):
    x = maps(2, 2, *size)
    values, switches = MaxPoolSwitches(kernel, stride, padding, ceil_mode=ceil_mode)(x)
    assert torch.equal(values, pool_by_loops(x, max, kernel, stride, padding, ceil_mode))
    assert torch.equal(x.flatten(2).gather(2, switches.flatten(2)).view_as(values), values)
    # Unpooling what was pooled gives every maximum at its place, 0 elsewhere, also where windows overlap.
    won = torch.zeros_like(x).flatten(2).scatter(2, switches.flatten(2), 1.0).view_as(x)
    torch.testing.assert_close(MaxUnpool()(values, switches, size), x * won)
    # Other values: loops, for both rules.
    other = torch.randn_like(values)
    sums, times = torch.zeros_like(x), torch.zeros_like(x)
    for n, c, i, j in itertools.product(*map(range, values.shape)):
        row, column = divmod(int(switches[n, c, i, j]), size[1])
        sums[n, c, row, column] += other[n, c, i, j]
        times[n, c, row, column] += 1
    torch.testing.assert_close(MaxUnpool("sum")(other, switches, size), sums)
    torch.testing.assert_close(MaxUnpool("mean")(other, switches, size), sums / times.clamp_min(1))
    # The sum is the transposed map: the gradient of max pooling.
    leaf = x.clone().requires_grad_()
    F.max_pool2d(leaf, kernel, stride, padding, ceil_mode=ceil_mode).backward(other)
    torch.testing.assert_close(MaxUnpool("sum")(other, switches, size), leaf.grad)


@pytest.mark.parametrize("mode", ["max", "average"])
@pytest.mark.parametrize("size", [(7, 6), (13, 10), (2, 3), (1, 1)])
def test_the_pyramid_is_what_loops_give(mode, size):
    x = maps(2, 3, *size)
    expected = []
    for n in (1, 2, 3):
        level = torch.zeros(2, 3, n, n, dtype=torch.float64)
        for i, j in itertools.product(range(n), repeat=2):
            rows = slice(math.floor(i * size[0] / n), math.ceil((i + 1) * size[0] / n))
            columns = slice(math.floor(j * size[1] / n), math.ceil((j + 1) * size[1] / n))
            block = x[:, :, rows, columns]
            level[:, :, i, j] = block.amax((2, 3)) if mode == "max" else block.mean((2, 3))
        expected.append(level.flatten(1))
    y = SpatialPyramidPool((1, 2, 3), mode)(x)
    assert y.shape == (2, 3 * 14)
    torch.testing.assert_close(y, torch.cat(expected, 1))


def test_where_a_unit_looks_is_known_behind_these_layers():
    """By hand: 3 pixels after conv1, 5 after windows of 3 at stride 1, 9 after 3 units 2 pixels apart."""
    stages = [
        ("conv1", nn.Conv2d(1, 4, 3)),
        ("norm1", LocalResponseNorm(3)),
        ("maxout1", Maxout(2)),
        ("pool1", StochasticPool2d(3, 2)),
        ("conv2", TableConv2d([[0], [0, 1], [1]], 3)),
        ("pool2", TrainableSubsample(3)),
        ("flatten", nn.Flatten()),
        ("fc", nn.Linear(12, 2)),
    ]
    net = Net(stages, head="fc", in_channels=1, size=16, name="toy", fixed_size=True)
    found = {info.name: (info.receptive_field, info.stride) for info in stage_geometry(net)}
    assert found["norm1"] == found["maxout1"] == (3, 1)
    assert found["pool1"] == (5, 2)
    assert found["conv2"] == (9, 2)
    assert found["pool2"] == (11, 4)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SumPool2d(2, padding=2), "half of the kernel"),
        (lambda: SumPool2d(0), "kernel is 0"),
        (lambda: LpPool2d(0.5, 2), "p is 0.5"),
        (lambda: LpPool2d(math.inf, 2), "p is inf"),
        (lambda: StochasticPool2d(3)(torch.zeros(1, 1, 2, 5)), "at least 3 x 3"),
        (lambda: SpatialPyramidPool(()), "no levels"),
        (lambda: SpatialPyramidPool((1, 0)), "level is 0"),
        (lambda: SpatialPyramidPool(mode="mx"), "did you mean 'max'"),
        (lambda: MaxUnpool("add"), "unknown overlap"),
        (lambda: MaxUnpool()(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 3, 3).long(), (4, 4)), "same shape"),
        (lambda: MaxUnpool()(torch.zeros(1, 1, 1, 1), torch.full((1, 1, 1, 1), 16), (4, 4)), "outside"),
    ],
)
def test_mistakes_are_named(build, message):
    with pytest.raises(StriateError, match=message):
        build()
