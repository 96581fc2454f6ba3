"""What every registered optimiser and schedule must keep."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
from torch import nn

from striate.train.checkpoint import optimizer_state, pack, restore_optimizer, unpack
from striate.train.optimize import OPTIMIZERS, build_optimizer, set_rate
from striate.train.recipe import Recipe
from striate.train.schedules import SCHEDULES, Plan


def make(name: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 16, 3))
    net = net.to(memory_format=torch.channels_last)
    return net, build_optimizer(net, Recipe(optimizer=name))


def steps(net: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> list[float]:
    losses = []
    targets = torch.arange(6) % 3
    for k in range(first, last):
        images = torch.randn(6, 3, 6, 6, generator=torch.Generator().manual_seed(k % 2))
        set_rate(optimizer, 0.01 / (1 + k))

        def closure(images: torch.Tensor = images) -> torch.Tensor:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(images), targets)
            loss.backward()
            return loss

        losses.append(optimizer.step(closure).item())
    return losses


@pytest.mark.parametrize("name", OPTIMIZERS.names())
def test_optimizer_lowers_the_loss_and_resumes_bit_for_bit(name: str) -> None:
    net, optimizer = make(name)
    losses = steps(net, optimizer, 0, 6)
    assert losses[-1] < losses[0]

    other, second = make(name)
    steps(other, second, 0, 3)
    tensors: dict[str, torch.Tensor] = {}
    tree = pack({"net": other.state_dict(), "optimizer": optimizer_state(second)}, tensors)
    saved = unpack(tree, tensors)
    third, fresh = make(name)
    third.load_state_dict(saved["net"])
    restore_optimizer(fresh, saved["optimizer"])
    steps(third, fresh, 3, 6)
    for ours, theirs in zip(net.state_dict().values(), third.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", OPTIMIZERS.names())
def test_optimizer_says_what_it_is(name: str) -> None:
    entry = OPTIMIZERS.entry(name)
    assert entry.summary.endswith(".")
    assert entry.capabilities["lr"] > 0
    assert isinstance(entry.capabilities["adaptive"], bool)
    assert entry.capabilities["decay"] in ("coupled", "decoupled", None)
    moments = entry.capabilities["moments"]
    assert (moments(Recipe()) if callable(moments) else moments) >= 0


@pytest.mark.parametrize("name", SCHEDULES.names())
@pytest.mark.parametrize(("warmup", "floor"), [(0.0, 0.0), (7.0, 0.1)])
def test_schedule_is_a_pure_function_with_values_in_0_to_1(name: str, warmup: float, floor: float) -> None:
    entry = SCHEDULES.entry(name)
    assert entry.summary.endswith(".")
    plan = Plan(steps=60, steps_per_epoch=6, warmup=warmup, restarts=1, floor=floor)
    scores = [0.1, 0.3, 0.2]
    forward = [entry.value(step, plan, scores) for step in range(60)]
    backward = [entry.value(step, plan, list(scores)) for step in reversed(range(60))]
    assert forward == backward[::-1]
    assert all(math.isfinite(value) and 0 <= value <= 1 for value in forward)
    assert max(forward) > 0
    assert list(inspect.signature(entry.value).parameters) == ["step", "plan", "scores"]
