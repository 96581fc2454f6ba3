"""Learning-rate schedules: pure functions of the step, the plan of the run, and the scores so far."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from striate.core.registry import Registry
from striate.train.recipe import Recipe

# The lowest rate, as a part of the highest, of schedules that do not fall to 0 by themselves.
FLOORS = {"exponential": 1e-3, "swa": 0.2, "range-test": 1e-6}
# Where averaging begins, of a recipe that names the schedule "swa" but no averaging.
SWA_START = 0.75


@dataclass(frozen=True)
class Plan:
    """What a schedule may know: lengths in optimiser steps, and the recipe's figures."""

    steps: int
    steps_per_epoch: int
    warmup: float = 0.0  # steps
    milestones: tuple[float, ...] = (0.5, 0.75)  # parts of `steps`
    gamma: float = 0.1
    plateau: int = 5  # epochs
    restarts: int = 0
    growth: float = 1.0
    power: float = 1.0
    floor: float = 0.0  # part of the highest rate
    swa: float = SWA_START  # part of `steps`

    @classmethod
    def of(cls, recipe: Recipe, steps_per_epoch: int) -> Plan:
        """The plan of a recipe; a warm-up not given is a quarter of the run for one-cycle, else none."""
        warmup, floor = recipe.warmup, recipe.floor
        if warmup is None:
            warmup = 0.25 * recipe.epochs if recipe.schedule == "one-cycle" else 0.0
        return cls(
            steps=recipe.epochs * steps_per_epoch,
            steps_per_epoch=steps_per_epoch,
            warmup=warmup * steps_per_epoch,
            milestones=recipe.milestones,
            gamma=recipe.gamma,
            plateau=recipe.plateau,
            restarts=recipe.restarts,
            growth=recipe.growth,
            power=recipe.power,
            floor=FLOORS.get(recipe.schedule, 0.0) if floor is None else floor,
            swa=recipe.swa or SWA_START,
        )

    def part(self, step: float) -> float:
        """How much of the run after the warm-up is done, 0 to 1; 1 at `steps`."""
        return min(1.0, max(0.0, (step - self.warmup) / max(self.steps - self.warmup, 1e-9)))

    def cycle(self, step: float) -> float:
        """How much of its cycle is done, 0 to 1; each of restarts + 1 cycles is `growth` times as long."""
        cycles = [self.growth**k for k in range(self.restarts + 1)]
        unit = max(self.steps - self.warmup, 1e-9) / sum(cycles)
        place = step - self.warmup
        for cycle in cycles[:-1]:
            if place < unit * cycle:
                return place / (unit * cycle)
            place -= unit * cycle
        return min(1.0, place / (unit * cycles[-1]))


# A schedule is a pure function: (step from 0, plan, scores of the epochs so far) -> factor on the rate.
# Nothing of it needs saving, so resuming and extending a run need no more than the step and the scores.
Schedule = Callable[[int, Plan, Sequence[float]], float]
SCHEDULES: Registry[Schedule] = Registry("schedule", "striate.train")


def rising(step: int, plan: Plan) -> float:
    """The linear warm-up's factor: (step + 1) / (warmup + 1) before `warmup` steps, then 1."""
    return min(1.0, (step + 1) / (plan.warmup + 1))


def between(floor: float, part: float) -> float:
    """The value at `part`, 0 to 1, of the way from the floor to 1."""
    return floor + (1.0 - floor) * part


@SCHEDULES.register("constant")
def constant(step: int, plan: Plan, scores: Sequence[float]) -> float:
    """The same rate throughout, after the warm-up."""
    return rising(step, plan)


@SCHEDULES.register("step")
def step_(step: int, plan: Plan, scores: Sequence[float]) -> float:
    """The rate times `gamma` after each milestone (He et al. 2015: 1/2 and 3/4 of the run)."""
    drops = sum(step >= part * plan.steps for part in plan.milestones)
    return float(rising(step, plan) * plan.gamma**drops)


@SCHEDULES.register("plateau", needs_scores=True)
def plateau(step: int, plan: Plan, scores: Sequence[float]) -> float:
    """The rate times `gamma` after each `plateau` epochs without a better validation score: AlexNet's, by 10.

    Higher scores are better. Krizhevsky et al. 2012, section 5.
    """
    best, stale, drops = -math.inf, 0, 0
    for score in scores:
        if score > best:
            best, stale = score, 0
        else:
            stale += 1
            if stale >= plan.plateau:
                drops, stale = drops + 1, 0
    return float(rising(step, plan) * plan.gamma**drops)


@SCHEDULES.register("polynomial")
def polynomial(step: int, plan: Plan, scores: Sequence[float]) -> float:
    """From the rate to `floor` by (1 - t / T)^power after the warm-up; a straight line for power 1.

    Power 0.5 in BVLC's GoogLeNet, 0.9 in DeepLab (arXiv:1606.00915, section 4.1).
    """
    if step < plan.warmup:
        return rising(step, plan)
    return between(plan.floor, float((1.0 - plan.part(step)) ** plan.power))


@SCHEDULES.register("exponential")
def exponential(step: int, plan: Plan, scores: Sequence[float]) -> float:
    """From the rate to `floor` (0.001 unless given) by equal factors: floor^(t / T), after the warm-up."""
    if step < plan.warmup:
        return rising(step, plan)
    return float(plan.floor ** plan.part(step))


@SCHEDULES.register("cosine")
def cosine(step: int, plan: Plan, scores: Sequence[float]) -> float:
    """Half a cosine from the rate to `floor`, after the warm-up; with `restarts`, SGDR's warm restarts.

    Cycle lengths grow by `growth` (SGDR: Loshchilov and Hutter 2016, arXiv:1608.03983, equation 5).
    """
    if step < plan.warmup:
        return rising(step, plan)
    return between(plan.floor, 0.5 * (1 + math.cos(math.pi * plan.cycle(step))))


@SCHEDULES.register("triangular")
def triangular(step: int, plan: Plan, scores: Sequence[float]) -> float:
    """Straight up from `floor` to the rate and down again, in restarts + 1 cycles, after the warm-up.

    Cyclical learning rates: Smith 2015, arXiv:1506.01186, section 3.1.
    """
    if step < plan.warmup:
        return rising(step, plan)
    return between(plan.floor, 1.0 - abs(2.0 * plan.cycle(step) - 1.0))


@SCHEDULES.register("one-cycle")
def one_cycle(step: int, plan: Plan, scores: Sequence[float]) -> float:
    """Half a cosine from 1/25 up to the rate over the warm-up, and half a cosine down to 1/10000 of it.

    Source: Smith and Topin 2017, arXiv:1708.07120; the ends are those of common practice.
    """
    low, end = 1 / 25, 1e-4
    if step < plan.warmup:
        return low + (1 - low) * 0.5 * (1 - math.cos(math.pi * step / plan.warmup))
    part = min(1.0, (step - plan.warmup) / max(plan.steps - 1 - plan.warmup, 1e-9))
    return end + (1 - end) * 0.5 * (1 + math.cos(math.pi * part))


@SCHEDULES.register("swa")
def swa(step: int, plan: Plan, scores: Sequence[float]) -> float:
    """The rate, then straight down to `floor` (0.2 unless given) before averaging begins, and constant there.

    With s where averaging begins (`swa`): the rate until s / 2, `floor` of it from 0.9 s on. Izmailov et
    al. 2018, arXiv:1803.05407, section 3.2, with the ends of the authors' program.
    """
    place = step / max(plan.swa * plan.steps, 1e-9)
    down = min(1.0, max(0.0, (place - 0.5) / 0.4))
    return rising(step, plan) * between(plan.floor, 1.0 - down)


@SCHEDULES.register("range-test", trains=False)
def range_test(step: int, plan: Plan, scores: Sequence[float]) -> float:
    """From `floor` (1e-6 unless given) to the rate by equal factors: the learning-rate range test's.

    floor^(1 - t / (T - 1)); Smith 2015, arXiv:1506.01186, section 3.3, there along a straight line.
    """
    return float(plan.floor ** (1.0 - min(1.0, step / max(plan.steps - 1, 1))))
