"""What makes members of an ensemble: snapshots of one cyclic run, and training sets drawn by bootstrap."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from striate.core.errors import StriateError
from striate.data import philox
from striate.train.checkpoint import read_checkpoint, write_checkpoint
from striate.train.recipe import Recipe

if TYPE_CHECKING:
    from striate.data.preprocess import Preprocess
    from striate.data.samples import Split
    from striate.train.schedules import Plan

# The folder of a run that holds the model of each cycle, and the file of its input statistics' arrays.
SNAPSHOTS, ARRAYS = "snapshots", "input.safetensors"
CYCLIC = ("cosine", "triangular")
# The draws of the bootstrap are those of an epoch that no run has.
EPOCH = 0xFFFFFFFF


def check_snapshots(recipe: Recipe) -> None:
    """Snapshots are of a schedule with several cycles.

    Raises:
        StriateError: it has but one, or more than epochs.
    """
    if recipe.snapshots and recipe.restarts + 1 > recipe.epochs:
        raise StriateError(
            f"snapshots are wanted of {recipe.restarts + 1} cycles in {recipe.epochs} epochs",
            allowed="at least an epoch for each cycle", hint="lower --restarts, or raise --epochs",
        )  # fmt: skip
    if recipe.snapshots and (recipe.schedule not in CYCLIC or not recipe.restarts):
        raise StriateError(
            f"snapshots are wanted of schedule {recipe.schedule!r} with {recipe.restarts} restarts",
            hint="give --schedule cosine and --restarts 4, for five cycles",
        )


@functools.lru_cache(maxsize=4)
def cycle_ends(plan: Plan) -> tuple[int, ...]:
    """The number of steps done at the end of each cycle of the rate; the last is the end of the run."""
    done = [plan.cycle(step) for step in range(plan.steps)]
    return (*(step for step in range(1, plan.steps) if done[step] < done[step - 1]), plan.steps)


def snapshot_path(folder: Path, plan: Plan, step: int) -> Path | None:
    """The file for the model after so many steps, where they end a cycle: snapshots/cycle-1.safetensors."""
    ends = cycle_ends(plan)
    return folder / SNAPSHOTS / f"cycle-{ends.index(step) + 1}.safetensors" if step in ends else None


def bootstrap(split: Split, seed: int) -> Split:
    """As many images, drawn with replacement: about 63 % of them, some several times.

    Breiman 1996, "Bagging predictors", Machine Learning 24, section 1. Which ones depends on the seed and
    on nothing else.
    """
    count = len(split)
    drawn = philox.uniforms(seed, EPOCH, np.arange(count), 1)[:, 0]
    return split.select(np.sort((drawn * count).astype(np.int64)))


def write_arrays(folder: Path, preprocess: Preprocess) -> None:
    """Keep the arrays of the input statistics, where there are any, for a run that is taken up again."""
    if preprocess.arrays is None:
        with contextlib.suppress(OSError):
            (folder / ARRAYS).unlink()
    else:
        cpu = torch.device("cpu")
        write_checkpoint(folder / ARRAYS, {"arrays": preprocess.arrays.on(cpu)})


def with_arrays(folder: Path, written: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run with the arrays that `write_arrays` kept."""
    path = folder / ARRAYS
    if not path.exists():
        return dict(written)
    return {**written, "arrays": read_checkpoint(path).get("arrays")}
