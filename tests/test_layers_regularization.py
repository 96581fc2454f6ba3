"""DropConnect and drop path against loops over their masks, and against the moments over many samples."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from striate.core.errors import StriateError
from striate.layers import regularization
from striate.layers.regularization import (
    ACTIVATIONS,
    DropConnectLinear,
    DropConnectWindows,
    DropPath,
    expectation,
)

SAMPLES = 20_000


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def layer_and_input(activation: str = "linear", rate: float = 0.3, bias: bool = True):
    torch.manual_seed(0)
    layer = DropConnectLinear(6, 4, rate, activation=activation, bias=bias).double()
    return layer, torch.randn(6, dtype=torch.float64)


@pytest.mark.parametrize("bias", [True, False])
def test_training_is_what_loops_over_the_masks_give(bias):
    """The layer draws the weights' masks, then the biases'; loops with the same draws."""
    layer, _ = layer_and_input("tanh", bias=bias)
    x = torch.randn(5, 6, dtype=torch.float64)
    torch.manual_seed(7)
    y = layer(x)
    torch.manual_seed(7)
    masks = torch.empty(5, 4, 6, dtype=torch.float64).bernoulli_(0.7)
    bias_masks = torch.empty(5, 4, dtype=torch.float64).bernoulli_(0.7) if bias else None
    for n in range(5):
        for m in range(4):
            total = sum(masks[n, m, d] * layer.weight[m, d] * x[n, d] for d in range(6))
            if bias:
                total = total + bias_masks[n, m] * layer.bias[m]
            torch.testing.assert_close(y[n, m], torch.tanh(total))
    assert len({tuple(mask.flatten().tolist()) for mask in masks}) == 5


def test_each_row_has_its_own_masks():
    layer, x = layer_and_input()
    y = layer(x.expand(2, 50, 6))
    assert y.shape == (2, 50, 4)
    assert len(y.flatten(0, 1).unique(dim=0)) > 90


def test_moments_over_many_samples():
    """Mean p (W x + b), variance p (1 - p) (W^2 x^2 + b^2) (Wan et al. 2013, section 3.2)."""
    layer, x = layer_and_input()
    with torch.no_grad():
        y = layer(x.expand(SAMPLES, 6))
    mean = 0.7 * (layer.weight @ x + layer.bias)
    variance = 0.21 * (layer.weight.square() @ x.square() + layer.bias.square())
    assert ((y.mean(0) - mean).abs() < 5 * (variance / SAMPLES).sqrt()).all()
    torch.testing.assert_close(y.var(0), variance.detach(), rtol=0.05, atol=0)
    torch.testing.assert_close(layer.eval()(x), mean)


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_evaluation_is_the_mean_over_gaussian_inputs(activation):
    """As the paper's algorithm 2 does it: samples of the matched Gaussian, through the activation."""
    layer, x = layer_and_input(activation)
    mean = 0.7 * (layer.weight @ x + layer.bias)
    std = (0.21 * (layer.weight.square() @ x.square() + layer.bias.square())).sqrt()
    act = ACTIVATIONS[activation] or (lambda value: value)
    with torch.no_grad():
        samples = act(mean + std * torch.randn(SAMPLES, 4, dtype=torch.float64))
        y = layer.eval()(x[None])[0]
    assert ((samples.mean(0) - y).abs() < 5 * samples.std(0) / math.sqrt(SAMPLES)).all()


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_evaluation_is_the_mean_over_the_masks(activation):
    """With many inputs, sums over masks are near Gaussian: training's mean is evaluation's output."""
    torch.manual_seed(0)
    layer = DropConnectLinear(64, 5, 0.5, activation=activation)
    x = torch.randn(64)
    with torch.no_grad():
        samples = torch.cat([layer(x.expand(SAMPLES // 4, 64)) for _ in range(4)])
        y = layer.eval()(x)
        plain = (ACTIVATIONS[activation] or (lambda value: value))(
            0.5 * F.linear(x, layer.weight, layer.bias)
        )
    error = 5 * samples.std(0) / math.sqrt(SAMPLES)
    assert ((samples.mean(0) - y).abs() < error + 0.003).all()
    if activation == "relu":
        # The activation of the mean, which plain dropout would give, is not the mean of the activation.
        assert ((samples.mean(0) - plain).abs() > error).any()


def test_the_trapezoid_rule_agrees_with_exact_integrals():
    mean = torch.linspace(-3, 3, 13, dtype=torch.float64)
    std = torch.linspace(0.1, 2.5, 13, dtype=torch.float64)
    fine = torch.linspace(-9, 9, 20_001, dtype=torch.float64)
    density = torch.exp(-0.5 * fine.square())
    density = density / density.sum()
    for activation in ("relu", "tanh", "sigmoid"):
        act = ACTIVATIONS[activation]
        exact = (act(mean[:, None] + std[:, None] * fine) * density).sum(1)
        torch.testing.assert_close(expectation(activation, mean, std), exact, rtol=0, atol=2e-6)


def saved_numbers(layer: DropConnectLinear, x: Tensor) -> tuple[int, Tensor]:
    """How many numbers the largest tensor kept for the backward pass has; and the output."""
    largest = 0

    def keep(tensor: Tensor) -> Tensor:
        nonlocal largest
        largest = max(largest, tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = layer(x)
    return largest, y


def test_large_batches_keep_no_masks(monkeypatch):
    """In parts of 3 rows: the same distribution, right gradients, and no masks of all rows in memory."""
    layer, _ = layer_and_input()
    x = torch.randn(8, 6, dtype=torch.float64, requires_grad=True)
    assert saved_numbers(layer, x)[0] >= 8 * 24
    monkeypatch.setattr(regularization, "MASKED_AT_ONCE", 3 * 24)
    largest, y = saved_numbers(layer, x)
    assert largest < 3 * 24
    torch.manual_seed(7)
    y = layer(x)
    y.square().sum().backward()
    torch.manual_seed(7)
    rows = []
    for part in x.detach().split(3):
        masks = torch.empty(len(part), 4, 6, dtype=torch.float64).bernoulli_(0.7)
        bias_masks = torch.empty(len(part), 4, dtype=torch.float64).bernoulli_(0.7)
        rows += [
            (m * layer.weight) @ v + b * layer.bias for m, b, v in zip(masks, bias_masks, part, strict=True)
        ]
    expected = torch.stack(rows)
    torch.testing.assert_close(y, expected)
    for parameter in (layer.weight, layer.bias):
        (gradient,) = torch.autograd.grad(expected.square().sum(), parameter, retain_graph=True)
        torch.testing.assert_close(parameter.grad, gradient)
    with torch.no_grad():
        many = layer(x[:1].expand(3000, 6))
    mean = 0.7 * F.linear(x[0], layer.weight, layer.bias)
    assert ((many.mean(0) - mean).abs() < 5 * many.std(0) / math.sqrt(3000)).all()


def test_without_dropping_it_is_a_linear_layer():
    layer, x = layer_and_input("relu", rate=0.0)
    expected = F.linear(x, layer.weight, layer.bias).relu()
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer.eval()(x), expected)


def test_an_input_of_zeros_has_finite_gradients():
    layer, _ = layer_and_input("relu", bias=False)
    for mode in (True, False):
        x = torch.zeros(2, 6, dtype=torch.float64, requires_grad=True)
        y = layer.train(mode)(x)
        y.sum().backward()
        assert y.abs().max() < 1e-5
        assert x.grad.isfinite().all()
        assert layer.weight.grad.isfinite().all()


def test_drop_path_keeps_the_mean_and_drops_whole_examples():
    torch.manual_seed(0)
    x = torch.ones(SAMPLES, 2, 1, 2)
    y = DropPath(0.25)(x)
    values = y.flatten(1)
    assert values.unique().tolist() == pytest.approx([0, 4 / 3])
    assert (values == values[:, :1]).all()
    assert abs(y.mean().item() - 1) < 5 * math.sqrt(1 / 3 / SAMPLES)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: DropConnectLinear(2, 2, 1.0), "rate is 1.0"),
        (lambda: DropConnectLinear(2, 2, -0.1), "0 to below 1"),
        (lambda: DropConnectLinear(2, 2, activation="rellu"), "did you mean 'relu'"),
        (lambda: DropPath(1.5), "rate is 1.5"),
    ],
)
def test_mistakes_are_named(build, message):
    with pytest.raises(StriateError, match=message):
        build()


def test_windows_drop_connections_as_the_layer_does_on_each() -> None:
    """Both modes, from the same seed; as many units as inputs, which tells a window from a vector."""
    torch.manual_seed(0)
    layer = DropConnectLinear(12, 12, 0.3, activation="relu").double()
    windows = DropConnectWindows(layer, (2, 2))
    maps = torch.randn(2, 3, 4, 3, dtype=torch.float64)
    places = torch.stack(
        [maps[i, :, r : r + 2, c : c + 2].flatten() for i in range(2) for r in range(3) for c in range(2)]
    )
    for mode in (True, False):
        torch.manual_seed(1)
        wanted = layer.train(mode)(places)
        torch.manual_seed(1)
        found = windows.train(mode)(maps)
        torch.testing.assert_close(found.permute(0, 2, 3, 1).reshape(-1, 12), wanted)
    with pytest.raises(StriateError, match="windows of 5 x 1 for a layer of 12 inputs"):
        DropConnectWindows(layer, (5, 1))
