"""Stochastic pooling and DropConnect as options of any net."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from striate.core.errors import StriateError
from striate.layers.pooling import StochasticPool2d
from striate.layers.regularization import expectation
from striate.nets.net import create_net, skeleton

# Pools from 2x2 to 3x3 with padding and ceil_mode, in small and large forms.
POOLED = {"lenet5": 28, "nin": 32, "vgg11_bn": 32, "resnet18": 224, "alexnet": 224, "googlenet_bn": 224}


@pytest.mark.parametrize(("name", "size"), POOLED.items())
def test_stochastic_pools_have_the_windows_of_those_they_replace(name: str, size: int) -> None:
    """The shapes after every stage are those of the net's own form, and so are the keys of its weights."""
    own, net = (
        skeleton(name, 10, size=size, **options).eval() for options in ({}, {"stochastic_pooling": True})
    )
    x = y = torch.empty(2, 3, size, size, device="meta")
    count = 0
    for stage in own.stage_names:
        x, y = getattr(own, stage)(x), getattr(net, stage)(y)
        assert x.shape == y.shape
        count += isinstance(getattr(net, stage), StochasticPool2d)
    assert count
    assert own.state_dict().keys() == net.state_dict().keys()


def test_pools_are_stochastic_in_training_and_weighted_in_evaluation() -> None:
    torch.manual_seed(0)
    net = create_net("lenet5", 10, 1, size=28, stochastic_pooling=True)
    x = torch.randn(2, 1, 28, 28)
    a = F.relu(net.conv1(x))
    windows = F.unfold(a, 2, stride=2).view(2, 6, 4, -1)
    weighted = (windows.square().sum(2) / windows.sum(2).clamp_min(1e-30)).view(2, 6, 14, 14)
    torch.testing.assert_close(net.eval().pool1(a), weighted)
    net.train()
    assert not torch.equal(net(x), net(x))
    assert net.options == {"stochastic_pooling": True}


def test_dropped_connections_by_the_formula() -> None:
    """Training: a mean over many masks; evaluation: the mean ReLU over the Gaussian with these moments."""
    torch.manual_seed(0)
    net = create_net("mlp", 3, 1, size=4, hidden=5, drop_connect=0.5)
    plain = create_net("mlp", 3, 1, size=4, hidden=5)
    plain.load_state_dict(net.state_dict())
    x = torch.randn(1, 16)
    weight, bias = net.fc1.weight, net.fc1.bias
    mean = 0.5 * plain.fc1(x)
    spread = (0.25 * (x.square() @ weight.square().T + bias.square())).sqrt()
    torch.testing.assert_close(net.eval().fc1(x), expectation("relu", mean, spread))
    # The ReLU that follows leaves it as it is, and the head keeps all its connections.
    torch.testing.assert_close(net(x.view(1, 1, 4, 4)), net.fc2(net.fc1(x)))
    drawn = net.train().fc1(x.expand(20_000, 16))
    torch.testing.assert_close(drawn.mean(0), net.eval().fc1(x)[0], rtol=0.05, atol=0.02)


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("resnet20", {"stochastic_pooling": True}, "no stage of max pooling"),
        ("airbench", {"stochastic_pooling": True}, "pools in 'pool1' what no ReLU made positive"),
        ("resnet20", {"drop_connect": 0.5}, "no hidden fully connected stage"),
        ("mlp", {"drop_connect": 1.0}, "DropConnect rate is 1.0; allowed: 0 to below 1"),
        ("mlp", {"drop_connect": "much"}, "allowed: a number"),
        ("lenet5", {"stochastic_pooling": 1}, "allowed: true or false"),
    ],
)
def test_nets_without_a_place_for_it_say_so(name: str, options: dict[str, object], told: str) -> None:
    with pytest.raises(StriateError, match=told):
        skeleton(name, 10, **options)
