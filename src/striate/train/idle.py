"""Settings that were given and that nothing reads beside the others."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from types import CodeType
from typing import Any

from striate.core.registry import Registry
from striate.train.growing import to_train_first
from striate.train.optimize import OPTIMIZERS
from striate.train.recipe import Recipe
from striate.train.schedules import SCHEDULES, Plan

DEFAULTS = Recipe()
OF_OPTIMIZERS = (
    "momentum", "nesterov", "betas", "epsilon", "rms_decay", "lbfgs_iterations", "lbfgs_history",
)  # fmt: skip
OF_SCHEDULES = ("milestones", "gamma", "plateau", "restarts", "growth", "power", "floor")


def idle_settings(recipe: Recipe) -> list[str]:
    """A line for each setting, other than its default, that has no effect beside the others."""
    found = _unread(recipe, OF_OPTIMIZERS, OPTIMIZERS, recipe.optimizer)
    found += _unread(recipe, OF_SCHEDULES, SCHEDULES, recipe.schedule)
    if _given(recipe, "swa_every") and not recipe.swa:
        found.append("swa_every has no effect without swa")
    if recipe.norm_batches and not (recipe.swa or recipe.ema):
        found.append("norm_batches has no effect without ema or swa")
    if recipe.grow_epochs is not None and not to_train_first(recipe):
        found.append("grow_epochs has no effect without a net to train first in grow_from")
    if recipe.cache and recipe.mode == "memory":
        found.append("cache has no effect with mode memory, which keeps every image")
    if recipe.warmup is not None and recipe.warmup >= recipe.epochs:
        found.append(
            f"warmup is {recipe.warmup:g} of {recipe.epochs} epochs: the rate never comes to its highest"
        )
    return found


def _given(recipe: Recipe, name: str) -> bool:
    return bool(getattr(recipe, name) != getattr(DEFAULTS, name))


def _unread(
    recipe: Recipe, names: Iterable[str], registry: Registry[Callable[..., Any]], chosen: str
) -> list[str]:
    """Of these settings, those that some choice in the registry reads and the chosen one does not."""
    given = [name for name in names if _given(recipe, name)]
    if not given:
        return []
    readers = {name: [e.name for e in registry if name in _names(e.value)] for name in given}
    return [
        f"{name} has no effect with the {registry.kind} {chosen}; it is for {' and '.join(users)}"
        for name, users in readers.items()
        if users and chosen not in users
    ]


def _names(function: Callable[..., Any]) -> set[str]:
    """The attributes that a function names, and the methods of `Plan` that it calls name."""
    code = getattr(function, "__code__", None)
    if code is None:
        return {field.name for field in dataclasses.fields(Recipe)}  # who knows what it reads
    found = _attributes(code)
    for method in found & {name for name in vars(Plan) if not name.startswith("_")}:
        found |= _attributes(getattr(getattr(Plan, method), "__code__", code))
    return found


def _attributes(code: CodeType) -> set[str]:
    inner = (part for part in code.co_consts if isinstance(part, CodeType))
    return set(code.co_names).union(*map(_attributes, inner))
