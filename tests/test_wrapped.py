"""Modules from elsewhere under the contract of a net."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from striate.core.errors import StriateError
from striate.nets.cost import cost
from striate.nets.net import create_net
from striate.nets.taps import capture
from striate.nets.wrapped import wrap
from toys import Crash, Functional, InPlace, hooks


def sequential() -> nn.Sequential:
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    return nn.Sequential(body, nn.Flatten(), nn.Linear(4, 6))


def test_names_head_and_questions():
    module = sequential()
    net = wrap(module, size=16)
    assert net.stage_names == ("0.0", "0.1", "0.2", "0.3", "1", "2")
    assert (net.head, net.classes, net.feature_dim, net.in_channels, net.size) == ("2", 6, 4, 3, 16)
    assert net.reused == net.inplace == net.not_run == ()
    assert not net.functional
    net.eval()
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(net(x), module(x))
    torch.testing.assert_close(module[2](net.features(x)), net(x))
    assert [info.name for info in net.spatial_stages()] == ["0.0", "0.1", "0.2"]
    assert cost(net).params == sum(p.numel() for p in module.parameters())
    with capture(net, ["0.1"]) as seen:
        net(x)
    assert torch.equal(seen["0.1"], module[0][1](module[0][0](x)))
    assert hooks(net) == 0


def test_reset_head_reaches_into_the_module():
    module = sequential()
    net = wrap(module, size=16).reset_head(9)
    assert net.classes == 9
    assert module[2].out_features == 9
    assert net(torch.randn(2, 3, 16, 16)).shape == (2, 9)


def test_the_module_is_left_as_it_was():
    module = sequential()
    module[0][1].eval()
    state = copy.deepcopy(module.state_dict())
    modes = [m.training for m in module.modules()]
    rng = torch.get_rng_state()
    wrap(module, size=16)
    assert [m.training for m in module.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), rng)
    assert hooks(module) == 0


def test_reused_and_functional_work_is_told():
    net = wrap(Functional(), size=16)
    assert net.stage_names == ("conv", "relu", "out")
    assert net.reused == ("relu",)
    assert net.not_run == ("unused",)
    assert net.functional
    assert net.head == "out"


def test_in_place_layers_are_told_and_tapped_truly():
    net = wrap(InPlace(), in_channels=1, size=2)
    assert net.inplace == ("relu",)
    with capture(net, ["conv"]) as seen:
        net(torch.ones(1, 1, 2, 2))
    assert seen["conv"].unique().tolist() == [-1.0]


class OnlyReal(nn.Module):
    """Asks for a number, which the meta device does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.fc = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(x)
        x = x * 2 if float(x.sum()) > 0 else x
        return self.fc(x.mean((2, 3)))


def test_a_module_that_needs_numbers_is_run_for_real_and_restored():
    module = OnlyReal()
    net = wrap(module, size=8)
    assert net.stage_names == ("norm", "fc")
    assert module.training
    assert module.norm.num_batches_tracked.item() == 0
    assert module.norm.running_var.eq(1).all()


def test_a_convolution_can_be_the_head():
    net = wrap(nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 5, 1)), in_channels=1, size=8)
    assert (net.head, net.classes) == ("2", 5)
    assert net.reset_head(2)(torch.zeros(1, 1, 8, 8)).shape == (1, 2, 6, 6)
    assert wrap(sequential(), size=16, head="0.0").classes == 4


def test_refusals():
    with pytest.raises(StriateError, match=r"unknown head '0.00'.*'0.0'"):
        wrap(sequential(), size=16, head="0.00")
    with pytest.raises(StriateError, match="no linear layer and no convolution"):
        wrap(nn.Sequential(nn.ReLU()))
    with pytest.raises(StriateError, match="is a net already"):
        wrap(create_net("lenet5", 10, 1))
    with pytest.raises(StriateError, match=r"allowed: a torch\.nn\.Module"):
        wrap("resnet18")
    with pytest.raises(StriateError, match="cannot take a picture of 1 x 16 x 16"):
        wrap(sequential(), in_channels=1, size=16)
    with pytest.raises(StriateError, match="crash inside the net"):
        wrap(nn.Sequential(nn.Conv2d(3, 3, 1), Crash()))
    with pytest.raises(StriateError, match="has 1 channels, the net takes 3"):
        wrap(sequential(), size=16)(torch.zeros(1, 1, 16, 16))
