"""Covered copies of a picture through a net: on boxes where that pays, as a whole elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from striate.core.errors import StriateError
from striate.nets.cost import cost
from striate.nets.taps import capture
from striate.visualize.incremental import Incremental, Outcome, Patches
from striate.visualize.scores import run as run_net

if TYPE_CHECKING:
    from striate.model import Model

# Covered pictures that pass the whole net at once, by their bytes and by their number.
FULL_BYTES, FULL_MOST = 20_000_000, 32
# The boxes must save this factor of the multiply-adds, or the full pass is as fast.
WORTH = 1.15
# Clean maps that boxes may keep: twice, as they are and padded.
HELD_BYTES = 700_000_000
# Pictures of so many pixels need no look at that.
SMALL = 512 * 512


class Copies:
    """Runs covered copies of one picture; decides once, for the positions in `patches`, how.

    maps: what `stage` gives for the clean picture, whose map `channel` is watched. The full pass is taken
    where the net cannot be followed, where what was followed is not what runs (one position is done both
    ways), and where little would be saved or much kept; `reason` says why, and is empty otherwise.
    full: multiply-adds of the full pass for one copy; 0 where that is not known.
    """

    def __init__(
        self, model: Model, patches: Patches, stage: str, maps: Tensor, channel: int, *, auto: bool = True
    ) -> None:
        self.model, self.stage, self.channel = model, stage, channel
        self.full, self.reason = 0.0, ""
        self._incremental: Incremental | None = None
        self._work, self._count = 0.0, 0
        if not auto:
            return
        held = _held(model, patches.clean)
        if held > HELD_BYTES:
            self.reason = f"its maps take {held / 1e9:.1f} GB"
            return
        try:
            incremental = Incremental(model.net, patches.clean, stage=stage)
        except StriateError as error:
            self.reason = str(error)
            return
        self.full = float(incremental.full_macs())
        watched = incremental.plan.watched_clean
        if watched is None or watched.shape != maps.shape or not _near(watched, maps):
            self.reason = f"what stage {stage!r} gives was not found in the net's graph"
        elif self.full < WORTH * incremental.predicted(patches):
            self.reason = "the square touches nearly all of what the net computes"
        else:
            middle = patches.some(np.array([len(patches) // 2]))
            if _same(incremental.run(middle, channel), full_pass(model, middle, stage, channel)):
                self._incremental = incremental
            else:
                self.reason = "its graph does not give what the net gives"

    def run(self, patches: Patches) -> Outcome:
        """Outputs and totals of these copies."""
        if self._incremental is None:
            return full_pass(self.model, patches, self.stage, self.channel)
        outcome = self._incremental.run(patches, self.channel)
        self._work += outcome.multiply_adds * len(patches)
        self._count += len(patches)
        return outcome

    @property
    def multiply_adds(self) -> float:
        """Those done for one copy, mean over all so far; 0 for full passes."""
        return self._work / self._count if self._count else 0.0

    @property
    def way(self) -> str:
        """How the copies were run, in words."""
        if self._incremental is None:
            return "The whole net ran at every position" + (f": {self.reason}." if self.reason else ".")
        ratio = self.full / self.multiply_adds
        return f"Only what the square can have touched was recomputed: 1/{ratio:.2g} of it."


def full_pass(model: Model, patches: Patches, stage: str, channel: int, batch: int | None = None) -> Outcome:
    """Every covered picture through the whole net, `batch` at once."""
    most = max(1, min(FULL_MOST, FULL_BYTES // patches.clean.nbytes)) if batch is None else batch
    outputs, totals = [], []
    with torch.no_grad():
        for first in range(0, len(patches), most):
            chosen = np.arange(first, min(len(patches), first + most))
            with capture(model.net, [stage]) as seen:
                outputs.append(run_net(model, patches.pictures(chosen)))
            totals.append(seen[stage][:, channel].double().sum((1, 2)).float().cpu())
    return Outcome(torch.cat(outputs), torch.cat(totals), 0.0)


def _held(model: Model, clean: Tensor) -> int:
    """Bytes of all maps of the clean picture; 0 where it is small, or the net does not tell."""
    _, channels, height, width = clean.shape
    if height * width <= SMALL:
        return 0
    try:
        return cost(model.net, (height, width), in_channels=channels, training=False).memory
    except StriateError:
        return 0


def _same(one: Outcome, other: Outcome) -> bool:
    assert one.totals is not None  # a stage was given
    assert other.totals is not None
    return _near(one.outputs, other.outputs) and _near(one.totals, other.totals)


def _near(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= 1e-3 * float(b.abs().max()) + 1e-6)
