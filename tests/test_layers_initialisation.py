"""How weights begin: variances by their formulas, orthogonality by its definition, LSUV by its promise."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from striate.core.errors import StriateError
from striate.layers.activations import MaxoutLinear
from striate.layers.convolution import PaddedConv2d, TableConv2d, UntiedBiasConv2d
from striate.layers.initialisation import (
    fans,
    gaussian,
    he,
    lecun,
    orthogonal,
    uniform,
    weighted,
    xavier,
)
from striate.layers.regularization import DropConnectLinear
from striate.layers.tiled import TiledConv2d
from striate.nets.lsuv import lsuv
from striate.nets.net import create_net
from striate.nets.taps import capture
from toys import hooks

# Layer, inputs of a unit, units of an input.
LAYERS = [
    (nn.Linear(300, 200), 300, 200),
    (nn.Conv2d(30, 60, 5), 30 * 25, 60 * 25),
    (nn.Conv2d(40, 60, 5, groups=2), 20 * 25, 30 * 25),
    (PaddedConv2d(40, 80, (3, 5), groups=40), 15, 30),
    (nn.ConvTranspose2d(60, 30, 4, stride=2), 60 * 4, 30 * 16),
    (TiledConv2d(20, 30, 3, tiles=3, groups=2), 10 * 9, 15 * 9),
    (TableConv2d([[0, 1, 2]] * 100 + [[0]] * 100, 5), 50, 25 * 400 / 3),
    (UntiedBiasConv2d(20, 40, 5, 4), 20 * 25, 40 * 25),
    (MaxoutLinear(300, 50, 4), 300, 200),
    (DropConnectLinear(300, 200), 300, 200),
]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(("layer", "inputs", "outputs"), LAYERS, ids=lambda v: type(v).__name__)
def test_variances_are_those_of_the_formulas(layer, inputs, outputs):
    torch.manual_seed(0)
    assert fans(layer) == pytest.approx((inputs, outputs))
    count = layer.weight.numel()
    for rule, variance in (
        (lambda m: gaussian(m, 0.01), 1e-4),
        (he, 2 / inputs),
        (lambda m: he(m, slope=0.5), 1.6 / inputs),
        (xavier, 2 / (inputs + outputs)),
        (lecun, 1 / inputs),
        (uniform, 1 / (3 * inputs)),
    ):
        nn.init.ones_(layer.bias)
        assert rule(layer) is layer
        if rule is uniform:
            assert 0 < layer.bias.abs().max() <= inputs**-0.5
        else:
            assert layer.bias.abs().sum() == 0
        weights = layer.weight.detach().double()
        found = weights.square().mean().item()
        # The variance of a sample variance of normal values is 2 sigma^4 / n; less for uniform ones.
        assert abs(found / variance - 1) < 5 * math.sqrt(2 / count)
        assert abs(weights.mean().item()) < 5 * math.sqrt(variance / count)
        if rule is xavier:
            assert weights.abs().max() <= math.sqrt(6 / (inputs + outputs))
        if rule is uniform:
            assert weights.abs().max() <= inputs**-0.5


def test_gradients_can_still_flow_and_the_seed_decides():
    layer = nn.Linear(4, 3)
    torch.manual_seed(1)
    first = he(layer).weight.clone()
    torch.manual_seed(1)
    assert torch.equal(he(layer).weight, first)
    assert layer.weight.requires_grad
    assert layer.weight.is_leaf
    assert gaussian(layer, 0).weight.abs().sum() == 0


@pytest.mark.parametrize(
    ("layer", "matrices"),
    [
        (nn.Linear(20, 7), lambda w: [w]),
        (nn.Linear(7, 20), lambda w: [w.T]),
        (nn.Conv2d(3, 8, 3), lambda w: [w.flatten(1)]),
        (nn.Conv2d(4, 6, 3, groups=2), lambda w: [w[:3].flatten(1), w[3:].flatten(1)]),
        (TiledConv2d(2, 4, 3, tiles=2), lambda w: [m.flatten(1) for m in w.flatten(0, 1)]),
        (TableConv2d([[0, 1], [1, 2], [0]], 3), lambda w: [w[:4].reshape(2, 18), w[4:].flatten(1)]),
    ],
    ids=lambda v: type(v).__name__,
)
def test_orthogonal_rows(layer, matrices):
    orthogonal(layer.double(), gain=2.0)
    for matrix in matrices(layer.weight.detach()):
        torch.testing.assert_close(matrix @ matrix.T, 4 * torch.eye(len(matrix), dtype=torch.float64))


def test_all_layers_below_a_module_are_drawn_and_norms_stay():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Sequential(nn.Linear(3, 4)), nn.PReLU())
    assert [type(layer) for layer in weighted(net)] == [nn.Conv2d, nn.Linear]
    gaussian(net, 0)
    assert net[0].weight.abs().sum() == net[2][0].weight.abs().sum() == 0
    assert torch.equal(net[1].weight, torch.ones(2))
    assert net[3].weight.item() == 0.25
    with torch.device("meta"):
        assert list(weighted(nn.Linear(3, 4))) == []


@pytest.mark.parametrize("name", ["plain", "resnet20", "lenet5"])
def test_lsuv_gives_every_layer_unit_variance(name):
    torch.manual_seed(0)
    options = {"resnet20": {"width": 4}}.get(name, {})
    size = 28 if name == "lenet5" else 32
    if name == "plain":
        net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Tanh(), nn.Flatten())
        net.append(nn.Linear(8 * 28 * 28, 5))
    else:
        net = create_net(name, 10, 3, size=size, **options)
    batch = 3 + 2 * torch.randn(16, 3, size, size)
    net.train()
    buffers = {key: b.clone() for key, b in net.named_buffers()}
    assert lsuv(net, batch) is net
    assert net.training
    assert hooks(net) == 0
    assert all(torch.equal(b, buffers[key]) for key, b in net.named_buffers())
    layers = {id(layer) for layer in weighted(net)}
    names = [key for key, module in net.named_modules() if id(module) in layers]
    with torch.no_grad(), capture(net.eval(), names) as seen:
        net(batch)
    for key in names:
        assert seen[key].var().item() == pytest.approx(1, abs=0.02), key
    # Rows of one layer stay orthogonal: only the scale was set.
    weight = net.get_submodule(names[0]).weight.detach().flatten(1)
    gram = weight @ weight.T if len(weight) <= weight.shape[1] else weight.T @ weight
    torch.testing.assert_close(gram / gram[0, 0], torch.eye(len(gram)), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: gaussian(nn.Linear(1, 1), -1), "std is -1"),
        (lambda: lsuv(nn.Sequential(nn.Linear(2, 2)), torch.zeros(4, 2)), "layer '0' gives a variance of 0"),
        (lambda: lsuv(nn.Sequential(nn.Linear(2, 2)), torch.zeros(4, 2), tolerance=0), "above 0"),
    ],
)
def test_mistakes_are_named(build, message):
    with pytest.raises(StriateError, match=message):
        build()
