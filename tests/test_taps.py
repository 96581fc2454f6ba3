"""Taps: what passes through a stage is seen as it is, replaced, and the net is left as it was found."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from striate.core.errors import StriateError
from striate.nets.net import create_net
from striate.nets.taps import capture, leaves_as_found, places, replace, shadow, stage, stepping
from toys import InPlace, Overwriting, crashing_net, hooks, summing_net

ONES = torch.ones(1, 1, 4, 4)


def test_capture_sees_the_values_worked_out_by_hand():
    net = summing_net()
    with capture(net, ["conv1", "pool1", "fc"]) as seen:
        out = net(ONES)
    assert seen["conv1"].tolist() == [[[[9.0, 9.0], [9.0, 9.0]]]]
    assert seen["pool1"].tolist() == [[[[9.0]]]]
    assert torch.equal(seen["fc"], out)
    assert out.tolist() == [[9.0, 18.0]]
    assert not seen["conv1"].requires_grad
    assert hooks(net) == 0


def test_capture_takes_one_name_and_dotted_names():
    net = create_net("resnet20", 10).eval()
    x = torch.randn(1, 3, 8, 8)
    with capture(net, "res1a.bn2") as seen, torch.no_grad():
        net(x)
    block = net.get_submodule("res1a")
    inner = net.get_submodule("relu1")(net.get_submodule("bn1")(net.get_submodule("conv1")(x)))
    expected = block.bn2(block.conv2(block.relu1(block.bn1(block.conv1(inner)))))
    torch.testing.assert_close(seen["res1a.bn2"], expected.detach())


def test_gradient_of_a_stage():
    net = summing_net()
    with capture(net, ["conv1", "pool1"], grad=True) as seen:
        out = net(torch.arange(16.0).reshape(1, 1, 4, 4))
    out[0, 1].backward()
    # The second logit is twice the pooled maximum, which is conv1's last unit.
    assert seen["pool1"].grad.tolist() == [[[[2.0]]]]
    assert seen["conv1"].grad.tolist() == [[[[0.0, 0.0], [0.0, 2.0]]]]


def test_gradient_with_frozen_weights():
    net = summing_net().requires_grad_(False)
    with capture(net, ["pool1"], grad=True) as seen:
        net(ONES)[0, 0].backward()
    assert seen["pool1"].grad.item() == 1.0


@pytest.mark.parametrize("grad", [False, True])
def test_an_in_place_relu_does_not_change_what_was_seen(grad):
    net = InPlace()
    with capture(net, ["conv", "relu"], grad=grad) as seen:
        out = net(torch.ones(1, 1, 2, 2))
    assert seen["conv"].flatten().tolist() == [-1.0] * 4
    assert seen["relu"].flatten().tolist() == [0.0] * 4
    torch.testing.assert_close(out, net(torch.ones(1, 1, 2, 2)))
    if grad:
        (out.sum() + seen["conv"].sum()).backward()
        assert seen["conv"].grad.flatten().tolist() == [1.0] * 4
        assert torch.equal(seen["relu"].grad.flatten(), net.fc.weight.sum(0).detach())


def test_an_output_overwritten_unseen_is_refused():
    net = Overwriting()
    overwritten = pytest.raises(StriateError, match="overwritten in place")
    with torch.no_grad(), overwritten, capture(net, ["conv"]):
        net(torch.ones(1, 1, 2, 2))
    assert hooks(net) == 0


def test_a_stage_that_runs_twice_gives_its_first_output():
    relu = nn.ReLU()
    net = nn.Sequential(relu, nn.Linear(2, 2))
    with capture(net, ["0"]) as seen:
        net(torch.tensor([[1.0, -1.0]]))
        net(torch.tensor([[5.0, 5.0]]))
    assert seen["0"].tolist() == [[1.0, 0.0]]
    assert seen.calls == {"0": 2}


def test_unknown_and_not_run_stages():
    net = summing_net()
    with (
        pytest.raises(StriateError, match=r"unknown stage 'conv_1'.*'conv1'"),
        capture(net, ["fc", "conv_1"]),
    ):
        pass
    assert hooks(net) == 0
    with capture(net, ["fc"]) as seen:
        pass
    with pytest.raises(StriateError, match="has not run"):
        seen["fc"]
    with pytest.raises(StriateError, match="unknown captured stage"):
        seen["conv1"]
    with pytest.raises(StriateError, match="unknown stage"):
        stage(net, "")


def test_an_output_that_is_no_tensor_is_refused():
    net = nn.Sequential(nn.LSTM(2, 2))
    with pytest.raises(StriateError, match="gives tuple"), capture(net, ["0"]):
        net(torch.zeros(1, 2))
    assert hooks(net) == 0


def test_a_crash_inside_the_net_leaves_no_hook():
    net = crashing_net()
    with pytest.raises(RuntimeError, match="crash inside"), capture(net, net.stage_names, grad=True):
        net(ONES)
    assert hooks(net) == 0
    with pytest.raises(RuntimeError, match="crash inside"), replace(net, {"conv1": torch.relu}):
        net(ONES)
    assert hooks(net) == 0
    with pytest.raises(KeyboardInterrupt), capture(net, ["conv1"]):
        raise KeyboardInterrupt
    assert hooks(net) == 0


def test_hooks_of_others_stay():
    net = summing_net()
    calls = []
    handle = net.get_submodule("conv1").register_forward_hook(lambda *_: calls.append(1))
    with capture(net, ["conv1"]):
        net(ONES)
    net(ONES)
    assert len(calls) == 2
    handle.remove()
    assert hooks(net) == 0


def test_replace_changes_what_follows():
    net = summing_net()
    with replace(net, {"conv1": lambda y: y + 1, "pool1": lambda y: y * 10}):
        assert net(ONES).tolist() == [[100.0, 200.0]]
    assert net(ONES).tolist() == [[9.0, 18.0]]
    with pytest.raises(StriateError, match="unknown stage"), replace(net, {"conv9": torch.relu}):
        pass


def test_stepping_tells_the_order():
    net = summing_net()
    steps = []
    with stepping(
        net,
        ["pool1", "conv1"],
        enter=lambda name, inputs: steps.append((name, tuple(inputs[0].shape[2:]))),
        leave=lambda name, output: steps.append(name),
    ):
        net(ONES)
    assert steps == [("conv1", (4, 4)), "conv1", ("pool1", (2, 2)), "pool1"]


def test_leaves_as_found_restores_everything():
    net = create_net("resnet20", 3, 1)
    net.get_submodule("bn1").eval()
    net.get_submodule("fc").weight.requires_grad_(False)
    first = net.get_submodule("conv1").weight
    first.grad = torch.full_like(first, 7.0)
    kept = first.grad
    modes = [m.training for m in net.modules()]
    state = {key: value.clone() for key, value in net.state_dict().items()}
    torch.manual_seed(5)
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="inside"), leaves_as_found(net):  # noqa: PT012
        assert first.grad is None
        net.train()
        net.requires_grad_(True)
        net(torch.randn(2, 1, 8, 8)).sum().backward()
        assert first.grad is not None
        raise ValueError("inside")
    assert [m.training for m in net.modules()] == modes
    assert not net.get_submodule("fc").weight.requires_grad
    assert first.grad is kept
    assert kept.eq(7).all()
    assert net.get_submodule("bn2" if "bn2" in net.stage_names else "bn1").weight.grad is None
    assert torch.equal(torch.get_rng_state(), before)
    for key, value in net.state_dict().items():
        assert torch.equal(value, state[key]), key


def test_a_shadow_takes_no_memory_and_touches_nothing():
    net = summing_net()
    net.get_submodule("conv1").register_forward_hook(lambda *_: pytest.fail("a hook ran on the shadow"))
    copied = shadow(net)
    assert all(p.is_meta for p in copied.parameters())
    assert copied(torch.ones(1, 1, 4, 4, device="meta")).shape == (1, 2)
    assert not any(p.is_meta for p in net.parameters())
    assert net.training


def test_places_lists_every_dotted_name():
    names = list(places(create_net("resnet20", 10)))
    assert names[:4] == ["conv1", "bn1", "relu1", "res1a"]
    assert "res3c.relu2" in names
    assert "" not in names
