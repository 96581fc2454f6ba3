"""Optimisers, schedules and averages against their formulas and PyTorch's own."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from striate.core.errors import StriateError
from striate.train.averages import WeightAverage
from striate.train.optimize import (
    OPTIMIZERS,
    build_optimizer,
    clip_gradients,
    parameter_groups,
    set_rate,
)
from striate.train.recipe import Recipe
from striate.train.schedules import Plan, constant, cosine, one_cycle, plateau, step_
from trials import small_net


def test_norms_and_biases_are_not_decayed() -> None:
    net = small_net(norm=True)
    decayed, plain = parameter_groups(net, 0.1)
    assert decayed["weight_decay"] == 0.1
    assert plain["weight_decay"] == 0.0
    assert {id(p) for p in decayed["params"]} == {id(net[0].weight), id(net[5].weight)}
    assert {id(p) for p in plain["params"]} == {
        id(p) for p in (net[0].bias, net[1].weight, net[1].bias, net[5].bias)
    }
    assert len(parameter_groups(net, 0.1, decay_norms_and_biases=True)) == 1
    net[0].weight.requires_grad_(False)
    assert len(parameter_groups(net, 0.1)[0]["params"]) == 1


def test_parts_with_rates_of_their_own() -> None:
    net = small_net(norm=True)
    rates = {"0": 3.0, "*.bias": 10.0, "1.weight": 0.0}
    optimizer = build_optimizer(net, Recipe(rates=rates, weight_decay=0.1, momentum=0.0))
    set_rate(optimizer, 0.01)
    net(torch.randn(4, 1, 8, 8)).square().sum().backward()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    optimizer.step()
    multiples = {"0.weight": 3, "0.bias": 10, "1.weight": 0, "1.bias": 10, "5.weight": 1, "5.bias": 10}
    for name, p in net.named_parameters():
        assert p.grad is not None
        decay = 0.1 * before[name] if p.ndim > 1 else 0.0
        expected = before[name] - 0.01 * multiples[name] * (p.grad + decay)
        assert torch.allclose(p, expected, atol=1e-7), name


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ({"rates": {"5": -1}}, "-1"),
        ({"rates": {"5": True}}, "numbers from 0"),
        ({"rates": {"6": 2}}, "unknown part of the net in rates '6'"),
        ({"rates": {"5": 2}, "optimizer": "lbfgs"}, "lbfgs takes one rate"),
    ],
)
def test_rates_that_do_not_fit(recipe: dict[str, Any], said: str) -> None:
    with pytest.raises(StriateError, match=said):
        build_optimizer(small_net(), Recipe(**recipe))


def test_first_step_of_each_optimizer_by_hand() -> None:
    """At weight 2, gradient 0.5, rate 0.1, decay 0.1: the formulas of the papers."""
    expected = {
        # d = 0.5 + 0.1 * 2; v = d; Nesterov: step d + 0.9 v
        "sgd": 2 - 0.1 * (0.7 + 0.9 * 0.7),
        # Adam's first step is the sign of the (decayed) gradient
        "adam": 2 - 0.1 * 1.0,
        "adamw": 2 * (1 - 0.1 * 0.1) - 0.1 * 1.0,
    }
    for name, value in expected.items():
        net = nn.Linear(1, 1, bias=False)
        nn.init.constant_(net.weight, 2.0)
        optimizer = build_optimizer(net, Recipe(optimizer=name, weight_decay=0.1, momentum=0.9))
        set_rate(optimizer, 0.1)
        net.weight.grad = torch.full_like(net.weight, 0.5)
        optimizer.step()
        assert net.weight.item() == pytest.approx(value, abs=1e-6), name


def test_unknown_optimizer_names_the_nearest() -> None:
    with pytest.raises(StriateError, match="'adamw'"):
        build_optimizer(small_net(), Recipe(optimizer="adanw"))
    assert OPTIMIZERS.names() == sorted(OPTIMIZERS.names())


def test_groups_may_scale_the_rate() -> None:
    optimizer = torch.optim.SGD([{"params": [nn.Parameter(torch.ones(1))], "lr_scale": 0.5}], lr=1)
    set_rate(optimizer, 0.2)
    assert optimizer.param_groups[0]["lr"] == 0.1


PLAN = Plan(steps=100, steps_per_epoch=10)


def test_step_drops_at_its_milestones() -> None:
    values = [step_(k, PLAN, []) for k in range(100)]
    assert values[:50] == [1.0] * 50
    assert values[50:75] == [0.1] * 25
    assert values[75:] == pytest.approx([0.01] * 25)


def test_plateau_follows_the_scores() -> None:
    plan = Plan(steps=100, steps_per_epoch=10, plateau=2, gamma=0.5)
    scores = [0.1, 0.2, 0.2, 0.15, 0.3, 0.3, 0.3, 0.3, 0.3]
    #          best best  1   drop  best  1   drop  1   drop
    drops = [round(math.log(plateau(0, plan, scores[:k]), 0.5)) for k in range(len(scores) + 1)]
    assert drops == [0, 0, 0, 0, 1, 1, 1, 2, 2, 3]
    scheduler_net = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([scheduler_net], lr=1.0)
    reference = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, mode="max", factor=0.5, patience=1, threshold=0
    )
    for k, score in enumerate(scores):
        reference.step(score)
        assert plateau(0, plan, scores[: k + 1]) == optimizer.param_groups[0]["lr"]


def test_cosine_and_warm_up_against_the_formula() -> None:
    plan = Plan(steps=110, steps_per_epoch=10, warmup=10)
    assert [cosine(k, plan, []) for k in range(10)] == pytest.approx([(k + 1) / 11 for k in range(10)])
    assert cosine(10, plan, []) == 1.0
    assert cosine(60, plan, []) == pytest.approx(0.5)
    assert cosine(110, plan, []) == pytest.approx(0.0)
    assert constant(4, plan, []) == pytest.approx(5 / 11)


def test_restarts_begin_at_the_full_rate() -> None:
    plan = Plan(steps=70, steps_per_epoch=10, restarts=2, growth=2.0)  # cycles of 10, 20, 40 steps
    assert [k for k in range(70) if cosine(k, plan, []) == 1.0] == [0, 10, 30]
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    reference = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=10, T_mult=2)
    for k in range(70):
        assert cosine(k, plan, []) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
        optimizer.step()
        reference.step()


def test_one_cycle_rises_and_falls() -> None:
    plan = Plan(steps=100, steps_per_epoch=10, warmup=25)
    values = [one_cycle(k, plan, []) for k in range(100)]
    assert values[0] == 1 / 25
    assert values[25] == max(values) == 1.0
    assert values[-1] == pytest.approx(1e-4)
    assert values[:26] == sorted(values[:26])
    assert values[25:] == sorted(values[25:], reverse=True)


@given(
    steps=st.integers(1, 500),
    warmup=st.floats(0, 600),
    restarts=st.integers(0, 4),
    growth=st.floats(0.2, 3),
    scores=st.lists(st.floats(0, 1), max_size=20),
)
def test_every_factor_lies_between_0_and_1(
    steps: int, warmup: float, restarts: int, growth: float, scores: list[float]
) -> None:
    plan = Plan(steps=steps, steps_per_epoch=1, warmup=warmup, restarts=restarts, growth=growth)
    for schedule in (constant, step_, plateau, cosine, one_cycle):
        for step in {0, steps // 3, steps - 1}:
            assert 0.0 <= schedule(step, plan, scores) <= 1.0


def test_average_by_hand() -> None:
    net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    nn.init.constant_(net[0].weight, 1.0)
    average = WeightAverage(net, copy.deepcopy(net), 0.5)
    expected = 1.0
    for k, value in enumerate((3.0, -1.0, 2.0, 5.0, 8.0)):
        nn.init.constant_(net[0].weight, value)
        net[1].running_mean.fill_(value)
        net[1].num_batches_tracked += 1
        average.update()
        decay = min(0.5, (1 + k) / (10 + k))
        expected = decay * expected + (1 - decay) * value
        assert average.average[0].weight.item() == pytest.approx(expected, rel=1e-6)
        assert average.average[1].running_mean.item() == value
    assert average.average[1].num_batches_tracked.item() == 5
    assert not any(p.requires_grad for p in average.average.parameters())


def test_clipping_scales_the_whole_gradient() -> None:
    net = nn.Linear(2, 1)
    net.weight.grad = torch.tensor([[3.0, 0.0]])
    net.bias.grad = torch.tensor([4.0])
    assert clip_gradients(net, 1.0).item() == pytest.approx(5.0)
    assert net.weight.grad.tolist()[0] == pytest.approx([0.6, 0.0], abs=1e-5)
    assert net.bias.grad.tolist() == pytest.approx([0.8], abs=1e-5)
    clip_gradients(net, 10.0)
    assert net.bias.grad.tolist() == pytest.approx([0.8], abs=1e-5)
