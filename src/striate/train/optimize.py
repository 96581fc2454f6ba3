"""Optimisers, learning-rate schedules, weight averages: what turns gradients into new weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from striate.core.registry import Registry
from striate.train.recipe import Recipe

Groups = list[dict[str, Any]]

OPTIMIZERS: Registry[Callable[[Groups, Recipe], torch.optim.Optimizer]] = Registry(
    "optimizer", "striate.train"
)


def parameter_groups(net: nn.Module, weight_decay: float, *, decay_norms_and_biases: bool = False) -> Groups:
    """Two groups of the trainable parameters: decayed, and not decayed (scales, shifts and biases).

    Rule: tensors of at most one dimension are norms' weights and biases; they are not decayed
    (He et al. 2019, "Bag of tricks", arXiv:1812.01187, section 3.1).
    """
    seen = [parameter for parameter in net.parameters() if parameter.requires_grad]
    if decay_norms_and_biases or weight_decay == 0.0:
        return [{"params": seen, "weight_decay": weight_decay}]
    decayed = [parameter for parameter in seen if parameter.ndim > 1]
    plain = [parameter for parameter in seen if parameter.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def fused(groups: Groups) -> bool:
    """Whether PyTorch has a fused step for all these parameters: floating point on the CPU, CUDA or MPS."""
    tensors = [parameter for group in groups for parameter in group["params"]]
    return all(p.device.type in ("cpu", "cuda", "mps") and torch.is_floating_point(p) for p in tensors)


@OPTIMIZERS.register("sgd", lr=0.1, adaptive=False)
def sgd(groups: Groups, recipe: Recipe) -> torch.optim.Optimizer:
    """Stochastic gradient descent with momentum, Nesterov's form on request; weight decay as L2."""
    nesterov = recipe.nesterov and recipe.momentum > 0
    return torch.optim.SGD(groups, lr=0.1, momentum=recipe.momentum, nesterov=nesterov, fused=fused(groups))


@OPTIMIZERS.register("adam", lr=1e-3, adaptive=True)
def adam(groups: Groups, recipe: Recipe) -> torch.optim.Optimizer:
    """Adam (Kingma and Ba 2014, arXiv:1412.6980); weight decay as L2."""
    return torch.optim.Adam(groups, lr=1e-3, betas=recipe.betas, fused=fused(groups))


@OPTIMIZERS.register("adamw", lr=1e-3, adaptive=True)
def adamw(groups: Groups, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW: Adam with decoupled weight decay (Loshchilov and Hutter 2017, arXiv:1711.05101)."""
    return torch.optim.AdamW(groups, lr=1e-3, betas=recipe.betas, fused=fused(groups))


def build_optimizer(net: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimiser over the net's trainable parameters.

    Raises:
        StriateError: no optimiser of that name.
    """
    groups = parameter_groups(net, recipe.weight_decay, decay_norms_and_biases=recipe.decay_norms_and_biases)
    return OPTIMIZERS.get(recipe.optimizer)(groups, recipe)


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

    @classmethod
    def of(cls, recipe: Recipe, steps_per_epoch: int) -> Plan:
        """The plan of a recipe; a warm-up not given is a quarter of the run for one-cycle, else none."""
        warmup = recipe.warmup
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
        )


# A schedule is a pure function: (step from 0, plan, scores of the epochs so far) -> factor on the rate.
# Nothing of it needs saving, so resuming and extending a run need no more than the step and the scores.
Schedule = Callable[[int, Plan, Sequence[float]], float]
SCHEDULES: Registry[Schedule] = Registry("schedule", "striate.train")


def rising(step: int, plan: Plan) -> float:
    """The linear warm-up's factor: (step + 1) / (warmup + 1) before `warmup` steps, then 1."""
    return min(1.0, (step + 1) / (plan.warmup + 1))


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
    """The rate times `gamma` after each `plateau` epochs without a better (higher) validation score."""
    best, stale, drops = -math.inf, 0, 0
    for score in scores:
        if score > best:
            best, stale = score, 0
        else:
            stale += 1
            if stale >= plan.plateau:
                drops, stale = drops + 1, 0
    return float(rising(step, plan) * plan.gamma**drops)


@SCHEDULES.register("cosine")
def cosine(step: int, plan: Plan, scores: Sequence[float]) -> float:
    """Half a cosine from the rate to 0 after the warm-up; with `restarts`, one for each cycle.

    Cycle lengths grow by `growth` (SGDR: Loshchilov and Hutter 2016, arXiv:1608.03983, equation 5).
    """
    if step < plan.warmup:
        return rising(step, plan)
    cycles = [plan.growth**k for k in range(plan.restarts + 1)]
    unit = max(plan.steps - plan.warmup, 1e-9) / sum(cycles)
    place = step - plan.warmup
    for k, cycle in enumerate(cycles):
        length = unit * cycle
        if place < length or k == plan.restarts:
            return 0.5 * (1 + math.cos(math.pi * min(1.0, place / length)))
        place -= length
    raise AssertionError("unreachable")


@SCHEDULES.register("linear")
def linear(step: int, plan: Plan, scores: Sequence[float]) -> float:
    """A straight rise over the warm-up, then a straight line down to 0 just after the last step.

    Source: Defazio et al. 2023, arXiv:2310.07831, section 2: the last steps count, and so do the middle ones.
    """
    if step < plan.warmup:
        return rising(step, plan)
    return max(0.0, (plan.steps - step) / max(plan.steps - plan.warmup, 1e-9))


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


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group the rate, times its own `lr_scale` where it has one."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)


class WeightAverage:
    """An exponential moving average of a net's weights, in a net of its own.

    w' <- d w' + (1 - d) w with d = min(decay, (1 + t) / (10 + t)) at update t from 0, so that the first
    weights are soon forgotten. Buffers (batch norm's mean and variance) are copied.
    """

    def __init__(self, net: nn.Module, average: nn.Module, decay: float) -> None:
        self.net, self.average, self.decay = net, average, decay
        self.updates = 0
        average.load_state_dict(net.state_dict())
        average.requires_grad_(False).eval()

    @torch.no_grad()
    def update(self) -> None:
        """Take the net's present weights in."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        ours: list[Tensor] = list(self.average.parameters())
        theirs: list[Tensor] = list(self.net.parameters())
        torch._foreach_lerp_(ours, theirs, 1 - decay)
        copy_all(self.average.buffers(), self.net.buffers())
        self.updates += 1


@torch.no_grad()
def copy_all(targets: Iterable[Tensor], sources: Iterable[Tensor]) -> None:
    """Copy tensors pairwise, each into the memory of its target."""
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)


def clip_gradients(net: nn.Module, largest: float) -> Tensor:
    """Scale all gradients so that their common Euclidean norm is at most `largest`; returns it before."""
    parameters = [parameter for parameter in net.parameters() if parameter.grad is not None]
    return nn.utils.clip_grad_norm_(parameters, largest)
