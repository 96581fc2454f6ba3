"""Normalisation and activations against loops, and against what their papers say of them."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from striate.core.errors import StriateError
from striate.layers.activations import Maxout, MaxoutLinear, ScaledTanh
from striate.layers.normalization import (
    DivisiveNorm,
    LocalContrastNorm,
    LocalResponseNorm,
    SubtractiveNorm,
)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def maps(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 9])
@pytest.mark.parametrize("average", [False, True])
def test_response_norm_is_what_loops_give(size, average):
    x = maps(2, 6, 3, 2)
    alpha, beta, k = 0.3, 0.6, 1.5
    y = LocalResponseNorm(size, alpha, beta, k, average=average)(x)
    for n, c, i, j in itertools.product(*map(range, x.shape)):
        neighbours = [float(x[n, m, i, j]) for m in range(6) if c - size // 2 <= m <= c + (size - 1) // 2]
        energy = sum(v * v for v in neighbours) / (size if average else 1)
        assert float(y[n, c, i, j]) == pytest.approx(float(x[n, c, i, j]) / (k + alpha * energy) ** beta)
    if average:
        torch.testing.assert_close(y, F.local_response_norm(x, size, alpha, beta, k))


def test_response_norm_has_the_constants_of_the_paper():
    """One channel of value 100 alone: 100 / (2 + 1e-4 * 100^2)^0.75 = 100 / 3^0.75."""
    x = torch.zeros(1, 11, 1, 1, dtype=torch.float64)
    x[0, 5] = 100.0
    assert LocalResponseNorm()(x)[0, 5].item() == pytest.approx(100 / 3**0.75)
    # Maps up to two away see it, the third does not.
    x[0, [0, 2, 3, 7, 8]] = 1.0
    y = LocalResponseNorm()(x).flatten()
    near = (2 + 1e-4 * 10_002) ** -0.75
    assert y[3].item() == pytest.approx(near, rel=1e-6)
    assert y[7].item() == pytest.approx(near, rel=1e-6)
    assert y[8].item() == pytest.approx((2 + 2e-4) ** -0.75)
    assert y[2].item() == pytest.approx((2 + 3e-4) ** -0.75)


def test_response_norm_takes_vectors_and_sequences():
    x = maps(3, 6)
    y = LocalResponseNorm(3)(x)
    torch.testing.assert_close(LocalResponseNorm(3)(x[:, :, None, None])[:, :, 0, 0], y)
    torch.testing.assert_close(LocalResponseNorm(3)(x[:, :, None])[:, :, 0], y)


def local_mean_by_loops(x: Tensor, size: int, std: float) -> Tensor:
    """(N, 1, H, W): the weighted mean over the positions that exist, all maps alike."""
    height, width = x.shape[2:]
    flat = x.mean(1)
    mean = torch.zeros(len(x), 1, height, width, dtype=x.dtype)
    for i, j in itertools.product(range(height), range(width)):
        total = weights = 0.0
        for p, q in itertools.product(range(-(size // 2), size // 2 + 1), repeat=2):
            if 0 <= i + p < height and 0 <= j + q < width:
                weight = math.exp(-(p * p + q * q) / (2 * std * std))
                weights += weight
                total = total + weight * flat[:, i + p, j + q]
        mean[:, 0, i, j] = total / weights
    return mean


@pytest.mark.parametrize(("size", "std"), [(7, None), (9, None), (3, 0.8), (5, 4.0), (1, 1.0)])
@pytest.mark.parametrize("shape", [(2, 3, 9, 8), (2, 1, 3, 12), (1, 2, 1, 1)])
def test_contrast_norm_is_what_loops_give(size, std, shape):
    x = maps(*shape)
    # Jarrett et al. 2009: 1.591 for the window of 9.
    used = 1.591 * size / 9 if std is None else std
    v = x - local_mean_by_loops(x, size, used)
    torch.testing.assert_close(SubtractiveNorm(size, std)(x), v)
    sigma = local_mean_by_loops(x * x, size, used).sqrt()
    floor = sigma.mean((2, 3), keepdim=True)
    torch.testing.assert_close(DivisiveNorm(size, std)(x), x / torch.maximum(sigma, floor))
    sigma = local_mean_by_loops(v * v, size, used).sqrt().clamp_min(1e-4)
    floor = sigma.mean((2, 3), keepdim=True)
    torch.testing.assert_close(LocalContrastNorm(size, std)(x), v / torch.maximum(sigma, floor))


def test_contrast_norm_takes_away_brightness_and_contrast():
    x = maps(1, 3, 12, 11)
    norm = LocalContrastNorm()
    y = norm(x)
    torch.testing.assert_close(norm(5 * x + 3), y)
    # A constant picture has no contrast: 0 everywhere, at the borders too, and gradients are numbers.
    flat = torch.full((1, 3, 12, 11), 7.0, requires_grad=True)
    out = norm(flat)
    assert out.abs().max() < 0.05
    out.sum().backward()
    assert flat.grad.isfinite().all()
    black = torch.zeros(1, 3, 12, 11, requires_grad=True)
    norm(black).sum().backward()
    assert black.grad.isfinite().all()


def test_a_large_quiet_part_is_not_blown_up():
    """Where the contrast is below the picture's mean, the mean divides (Jarrett et al.: c = mean sigma)."""
    x = torch.zeros(1, 1, 30, 30, dtype=torch.float64)
    x[..., :10] = maps(1, 1, 30, 10)
    x[..., 20:] = 1e-3 * maps(1, 1, 30, 10)
    y = LocalContrastNorm()(x)
    assert y[..., :6].square().mean().sqrt() > 0.5
    assert y[..., 24:].abs().max() < 0.02


@pytest.mark.parametrize("pieces", [1, 2, 3, 6])
def test_maxout_is_what_loops_give(pieces):
    x = maps(2, 6, 3, 4)
    y = Maxout(pieces)(x)
    assert y.shape == (2, 6 // pieces, 3, 4)
    for n, c, i, j in itertools.product(*map(range, y.shape)):
        assert y[n, c, i, j] == max(float(x[n, c * pieces + p, i, j]) for p in range(pieces))
    assert torch.equal(Maxout(pieces)(x[:, :, 0, 0]), y[:, :, 0, 0])


def test_linear_maxout_is_what_loops_give():
    layer = MaxoutLinear(5, 4, 3).double()
    x = maps(2, 7, 5)
    with torch.no_grad():
        y = layer(x)
    weight, bias = layer.weight.detach(), layer.bias.detach()
    assert y.shape == (2, 7, 4)
    for n, t, m in itertools.product(range(2), range(7), range(4)):
        rows = range(3 * m, 3 * m + 3)
        pieces = [float((weight[r] * x[n, t]).sum() + bias[r]) for r in rows]
        assert float(y[n, t, m]) == pytest.approx(max(pieces))
    assert MaxoutLinear(5, 4, 3, bias=False).bias is None


def test_the_mean_of_maxout_over_many_samples():
    """The expected largest of 2 (3) standard normal values is 1 / sqrt(pi) (3 / (2 sqrt(pi)))."""
    torch.manual_seed(0)
    for pieces, expected in ((2, 1 / math.sqrt(math.pi)), (3, 1.5 / math.sqrt(math.pi))):
        y = Maxout(pieces)(torch.randn(40_000, pieces, 1, 1))
        assert abs(y.mean().item() - expected) < 5 * y.std().item() / 200


def test_maxout_of_two_is_a_relu_or_an_absolute_value():
    """arXiv:1302.4389, figure 1: max(x, 0) and max(x, -x)."""
    x = maps(4, 1, 3, 3)
    assert torch.equal(Maxout(2)(torch.cat([x, torch.zeros_like(x)], 1)), x.relu())
    assert torch.equal(Maxout(2)(torch.cat([x, -x], 1)), x.abs())


def test_the_scaled_tanh_maps_one_to_one():
    """Efficient BackProp, section 4.4: f(+-1) = +-1, and the second derivative is extreme there."""
    x = torch.tensor([1.0, -1.0, 0.0, 1e6], dtype=torch.float64)
    torch.testing.assert_close(
        ScaledTanh()(x), torch.tensor([1.0, -1.0, 0.0, 1.7159], dtype=torch.float64), rtol=1e-4, atol=1e-5
    )
    grid = torch.linspace(0, 3, 3001, dtype=torch.float64)
    bend = torch.diff(ScaledTanh()(grid), n=2).abs()
    assert abs(grid[1 + bend.argmax()].item() - 1) < 0.02


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: LocalResponseNorm(0), "size is 0"),
        (lambda: LocalContrastNorm(6), "odd"),
        (lambda: SubtractiveNorm(5, 0.0), "more than 0"),
        (lambda: Maxout(0), "pieces is 0"),
        (lambda: Maxout(4)(torch.zeros(1, 6, 2, 2)), "multiple of 4"),
        (lambda: MaxoutLinear(2, 2, True), "pieces is True"),
    ],
)
def test_mistakes_are_named(build, message):
    with pytest.raises(StriateError, match=message):
        build()
