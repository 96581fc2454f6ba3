"""The schedules beyond step, plateau, cosine and one-cycle, against their formulas and PyTorch's own."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from striate.core.errors import StriateError
from striate.train.recipe import Recipe
from striate.train.schedules import (
    SCHEDULES,
    Plan,
    cosine,
    exponential,
    polynomial,
    range_test,
    swa,
    triangular,
)

PLAN = Plan(steps=100, steps_per_epoch=10)


def theirs(make, count: int, *, lr: float = 1.0):  # type: ignore[no-untyped-def]
    """Rates of one of PyTorch's schedulers over `count` steps."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=lr)
    scheduler = make(optimizer)
    found = []
    for _ in range(count):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("power", [0.5, 0.9, 1.0, 2.0])
def test_polynomial(power: float) -> None:
    plan = dataclasses.replace(PLAN, power=power)
    expected = theirs(lambda o: torch.optim.lr_scheduler.PolynomialLR(o, total_iters=100, power=power), 100)
    assert [polynomial(k, plan, []) for k in range(100)] == pytest.approx(expected, abs=1e-9)
    floored = dataclasses.replace(plan, floor=0.2)
    assert polynomial(100, floored, []) == pytest.approx(0.2)
    assert polynomial(50, floored, []) == pytest.approx(0.2 + 0.8 * 0.5**power)


def test_exponential() -> None:
    plan = dataclasses.replace(PLAN, floor=1e-2)
    gamma = 1e-2 ** (1 / 100)
    expected = theirs(lambda o: torch.optim.lr_scheduler.ExponentialLR(o, gamma), 100)
    assert [exponential(k, plan, []) for k in range(100)] == pytest.approx(expected, rel=1e-9)
    assert exponential(100, plan, []) == pytest.approx(0.01)


def test_triangular_cycles() -> None:
    plan = dataclasses.replace(PLAN, restarts=4, floor=0.1)  # five cycles of 20 steps
    expected = theirs(
        lambda o: torch.optim.lr_scheduler.CyclicLR(
            o, base_lr=0.1, max_lr=1.0, step_size_up=10, cycle_momentum=False
        ),
        100,
    )
    assert [triangular(k, plan, []) for k in range(100)] == pytest.approx(expected, abs=1e-9)


def test_cosine_with_a_floor_and_restarts_is_sgdr() -> None:
    plan = Plan(steps=70, steps_per_epoch=10, restarts=2, growth=2.0, floor=0.05)
    expected = theirs(
        lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=10, T_mult=2, eta_min=0.05), 70
    )
    assert [cosine(k, plan, []) for k in range(70)] == pytest.approx(expected, abs=1e-9)


def authors_swa(place: float, ratio: float) -> float:
    """The rate of the authors' program (timgaripov/swa, train.py) at part `place` of the way to averaging."""
    if place <= 0.5:
        return 1.0
    if place <= 0.9:
        return 1.0 - (1.0 - ratio) * (place - 0.5) / 0.4
    return ratio


def test_swa_as_the_authors_program() -> None:
    plan = dataclasses.replace(PLAN, swa=0.8, floor=0.2)
    for step in range(100):
        assert swa(step, plan, []) == pytest.approx(authors_swa(step / 80, 0.2))
    assert swa(99, plan, []) == pytest.approx(0.2)


def test_range_test_rises_by_equal_factors() -> None:
    plan = dataclasses.replace(PLAN, floor=1e-6)
    values = [range_test(k, plan, []) for k in range(100)]
    assert values[0] == pytest.approx(1e-6)
    assert values[-1] == 1.0
    factors = {round(b / a, 9) for a, b in itertools.pairwise(values)}
    assert len(factors) == 1


@given(
    steps=st.integers(1, 500),
    warmup=st.floats(0, 600),
    restarts=st.integers(0, 4),
    growth=st.floats(0.2, 3),
    floor=st.floats(0, 1),
    power=st.floats(0.1, 4),
    part=st.floats(0.01, 1),
)
def test_every_factor_lies_between_0_and_1(
    steps: int, warmup: float, restarts: int, growth: float, floor: float, power: float, part: float
) -> None:
    plan = Plan(
        steps=steps, steps_per_epoch=1, warmup=warmup, restarts=restarts, growth=growth, floor=floor,
        power=power, swa=part,
    )  # fmt: skip
    for schedule in (polynomial, exponential, triangular, cosine, swa, range_test):
        for step in {0, steps // 3, steps - 1}:
            assert 0.0 <= schedule(step, plan, []) <= 1.0 + 1e-12


def test_a_recipe_gives_the_plan() -> None:
    plan = Plan.of(Recipe(schedule="swa", swa=0.6, epochs=10), 7)
    assert (plan.steps, plan.swa, plan.floor) == (70, 0.6, 0.2)
    assert Plan.of(Recipe(schedule="cosine"), 7).floor == 0.0
    assert Plan.of(Recipe(schedule="exponential", floor=0.5), 7).floor == 0.5
    assert SCHEDULES.entry("plateau").capabilities["needs_scores"]
    with pytest.raises(StriateError, match=r"floor is 0; allowed: above 0|floor is 0"):
        Recipe(schedule="exponential", floor=0.0)
