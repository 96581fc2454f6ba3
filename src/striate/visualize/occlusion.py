"""Occlusion: what a net makes of an image when one part of it after the other is covered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from striate.core.errors import StriateError
from striate.core.settings import setting
from striate.images import draw
from striate.images.colour import palette
from striate.nets.taps import capture
from striate.visualize.gradients import blurred
from striate.visualize.incremental import Incremental, Outcome, Patches
from striate.visualize.method import (
    METHODS,
    Method,
    Panel,
    Picture,
    Pixels,
    class_index,
    must_be_numbers,
    net_input,
    together,
)
from striate.visualize.scores import run as run_net
from striate.visualize.stages import last_with_maps, must_be_maps

if TYPE_CHECKING:
    from striate.model import Model

FILLS = ("grey", "mean", "blur", "noise")
WAYS = ("auto", "full")
# Covered pictures that pass the whole net at once, by their bytes and by their number.
FULL_BYTES, FULL_MOST = 20_000_000, 32
# The boxes must save this factor of the multiply-adds, or the full pass is as fast.
WORTH = 1.15
MOST_POSITIONS = 100_000


@dataclass(frozen=True)
class Occluded:
    """What occlusion found for one image: grids (rows, columns) of positions, and how it was computed.

    probability: of the class `target`; predicted: the most probable class; activation: total of map
    `channel` of `stage`; outputs (rows, columns, K). clean_...: the same of the image itself.
    multiply_adds: of one position as computed, and of the full pass (0 where that is not known).
    """

    target: int
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    probability: NDArray[np.float32]
    predicted: NDArray[np.int64]
    activation: NDArray[np.float32]
    outputs: NDArray[np.float32]
    clean_probability: float
    clean_activation: float
    stage: str
    channel: int
    way: str
    multiply_adds: tuple[float, float]


@METHODS.register("occlusion", images="one or more", target=True)
@dataclass(frozen=True)
class Occlusion(Method):
    """What the net makes of the image while a square covers one part of it after the other.

    For each position of the square: the probability of the class, the most probable class, and the total
    activation of one map of a stage, the one that is strongest (largest total) on the image itself. The
    square has `size` pixels of what the net sees, and moves by `stride`; the last row and column of positions
    touch the border. Its content: "grey" (128), "mean" (the preprocessing's mean colour), "blur" (the image
    without detail), "noise" (random pixels, fixed seed).

    Only what the square can have touched is recomputed, in all operations up to the first that looks at the
    whole map; where a net cannot be followed so, every picture passes it as a whole, and the note says so.
    arrays, each (images, rows, columns): "probability" float32, "predicted" class numbers, "activation"
    float32; "target", "clean_probability", "clean_activation", "channel" (images,); "rows", "columns" the
    first pixels of the squares; "multiply_adds" (images, 2) of one position, as computed and in full;
    "input" (images, H, W, C) uint8.
    Zeiler and Fergus, Visualizing and Understanding Convolutional Networks (arXiv:1311.2901), section 4.2.

    Raises:
        StriateError: a task without one answer an image, a square that does not fit, or an unknown stage.
    """

    name: ClassVar[str] = "occlusion"

    target: int | str | None = setting(
        None, help="the true class by name or number; nothing takes the predicted one"
    )
    size: int | None = setting(
        None, help="side of the square in pixels; nothing takes a seventh of the image", minimum=1
    )
    stride: int | None = setting(
        None, help="pixels from one position to the next; nothing takes a quarter of the square", minimum=1
    )
    fill: str = setting("grey", help="what covers the image", choices=FILLS)
    stage: str | None = setting(
        None, help="stage whose strongest map is watched; nothing takes the last with maps"
    )
    way: str = setting(
        "auto", help="auto: recompute what changed; full: the whole net at every position", choices=WAYS
    )

    def draw(self, model: Model, views: Sequence[Pixels]) -> Picture:
        """The picture; raises StriateError as the class says."""
        found = [self.occlude(model, view) for view in views]
        panels: list[Panel] = []
        for view, one in zip(views, found, strict=True):
            panels += self._panels(model, view, one)
        arrays: dict[str, NDArray[Any]] = {
            "target": np.array([one.target for one in found]),
            "channel": np.array([one.channel for one in found]),
            "clean_probability": np.array([one.clean_probability for one in found], np.float32),
            "clean_activation": np.array([one.clean_activation for one in found], np.float32),
            "multiply_adds": np.array([one.multiply_adds for one in found]),
        }
        for key in ("probability", "predicted", "activation", "rows", "columns"):
            arrays |= together(key, [getattr(one, key) for one in found])
        arrays |= together("input", views)
        side, step = self._square(views[0])
        title = f"Occlusion by a {self.fill} square of {side} x {side}, stride {step}"
        return Picture(self.name, title, self._note(model, found), arrays, tuple(panels), 4)

    def occlude(self, model: Model, view: Pixels) -> Occluded:
        """The numbers of one view; raises StriateError as the class says."""
        if model.task.dense:
            raise StriateError("occlusion is for one answer an image, not for masks")
        wanted = None if self.target is None else class_index(self.target, model.classes)
        patches, shape = self._patches(model, view)
        stage = self.stage or last_with_maps(model, view)
        with torch.no_grad():
            with capture(model.net, [stage]) as seen:
                clean = run_net(model, patches.clean)
            maps = must_be_maps(model, stage, seen[stage])
            totals = maps[0].double().sum((1, 2))
            channel = int(totals.argmax())
            outcome, way, full = compute(model, patches, stage, maps, channel, auto=self.way == "auto")
            must_be_numbers(outcome.outputs, "the network's outputs")
            posterior = model.task.posterior(outcome.outputs).float().cpu()
            before = model.task.posterior(clean).float().cpu()[0]
        target = int(before.argmax()) if wanted is None else wanted
        assert outcome.totals is not None  # a stage was given
        return Occluded(
            target=target,
            rows=np.unique(patches.y),
            columns=np.unique(patches.x),
            probability=posterior[:, target].numpy().reshape(shape),
            predicted=posterior.argmax(1).numpy().reshape(shape),
            activation=outcome.totals.numpy().reshape(shape),
            outputs=outcome.outputs.float().cpu().numpy().reshape(*shape, -1),
            clean_probability=float(before[target]),
            clean_activation=float(totals[channel]),
            stage=stage,
            channel=channel,
            way=way,
            multiply_adds=(outcome.multiply_adds, full),
        )

    def _square(self, view: Pixels) -> tuple[int, int]:
        """Side and stride of the square."""
        shorter = min(view.shape[:2])
        side = self.size or max(1, round(shorter / 7))
        if side > shorter:
            raise StriateError(
                f"size is {side}", allowed=f"1 to {shorter}: the net sees {view.shape[0]} x {view.shape[1]}"
            )
        return side, self.stride or max(1, side // 4)

    def _patches(self, model: Model, view: Pixels) -> tuple[Patches, tuple[int, int]]:
        """The squares, row by row, and how many rows and columns of them there are."""
        side, step = self._square(view)
        rows, columns = (starts(length, side, step) for length in view.shape[:2])
        if len(rows) * len(columns) > MOST_POSITIONS:
            raise StriateError(
                f"{len(rows)} x {len(columns)} positions", allowed=f"at most {MOST_POSITIONS}",
                hint="take a larger stride",
            )  # fmt: skip
        y, x = (grid.ravel() for grid in np.meshgrid(rows, columns, indexing="ij"))
        cover = self._cover(model, view)
        return Patches(net_input(model, view), cover, y, x, side), (len(rows), len(columns))

    def _cover(self, model: Model, view: Pixels) -> Tensor:
        """What shows through the square, as the net's input."""
        if self.fill == "mean":
            return torch.zeros_like(net_input(model, view))
        if self.fill == "blur":
            return net_input(model, blurred(view))
        if self.fill == "noise":
            draws = np.random.default_rng(0)
            return net_input(model, draws.integers(0, 256, view.shape, dtype=np.uint8))
        return net_input(model, np.full_like(view, 128))

    def _panels(self, model: Model, view: Pixels, one: Occluded) -> list[Panel]:
        present, first = np.unique(one.predicted, return_inverse=True)
        colours = palette(len(present))[first.reshape(one.predicted.shape)]
        most = model.classes[int(np.bincount(one.predicted.ravel()).argmax())]
        activation = draw.heatmap(
            one.activation, low=min(0.0, float(one.activation.min())), high=_above(one.activation)
        )
        return [
            Panel(view, model.classes[one.target]),
            Panel(draw.heatmap(one.probability, low=0.0, high=_above(one.probability)), "probability"),
            Panel(colours, f"{len(present)} classes, most {most}" if len(present) > 1 else most),
            Panel(activation, f"{one.stage} map {one.channel}"),
        ]

    def _note(self, model: Model, found: Sequence[Occluded]) -> str:
        highest = max(float(one.probability.max()) for one in found)
        ways = " ".join(dict.fromkeys(one.way for one in found))
        return (
            "At each position of the square: the probability of the class (dark is 0, bright the largest, "
            f"{highest:.3g}), the most probable class (a colour each), and the total activation of the map "
            f"that is strongest on the image itself. {ways}"
        )


def starts(length: int, side: int, step: int) -> NDArray[np.int64]:
    """First pixels of a square of `side` along an axis: every `step`, and flush with the end."""
    found = np.arange(0, length - side + 1, step)
    return found if found[-1] == length - side else np.append(found, length - side)


def compute(
    model: Model, patches: Patches, stage: str, maps: Tensor, channel: int, *, auto: bool = True
) -> tuple[Outcome, str, float]:
    """Outputs and totals for every position, how they were computed in words, and the full multiply-adds.

    maps: what the stage gives for the clean picture. Where the net cannot be followed, where what was
    followed is not what runs, or where little would be saved, the full pass is taken.
    """
    if not auto:
        return full_pass(model, patches, stage, channel), "The whole net ran at every position.", 0.0
    try:
        incremental = Incremental(model.net, patches.clean, stage=stage)
    except StriateError as error:
        why = f"The whole net ran at every position: {error}."
        return full_pass(model, patches, stage, channel), why, 0.0
    full, predicted = float(incremental.full_macs()), incremental.predicted(patches)
    watched = incremental.plan.watched_clean
    reason = ""
    if watched is None or watched.shape != maps.shape or not _near(watched, maps):
        reason = f"what stage {stage!r} gives was not found in the net's graph"
    elif full < WORTH * predicted:
        reason = "the square touches nearly all of what the net computes"
    else:
        outcome = incremental.run(patches, channel)
        if _right(model, patches, stage, channel, outcome):
            ratio = full / outcome.multiply_adds
            return (
                outcome,
                f"Only what the square can have touched was recomputed: 1/{ratio:.2g} of it.",
                full,
            )
        reason = "its graph does not give what the net gives"
    outcome = full_pass(model, patches, stage, channel)
    return outcome, f"The whole net ran at every position: {reason}.", full


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


def _right(model: Model, patches: Patches, stage: str, channel: int, outcome: Outcome) -> bool:
    """Whether one position, done in full, gives what was computed for it."""
    chosen = np.array([len(patches) // 2])
    some = Patches(patches.clean, patches.source, patches.y[chosen], patches.x[chosen], patches.side)
    want = full_pass(model, some, stage, channel)
    assert want.totals is not None  # a stage was given
    assert outcome.totals is not None
    place = int(chosen[0])
    return _near(outcome.outputs[place : place + 1], want.outputs) and _near(
        outcome.totals[place : place + 1], want.totals
    )


def _near(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= 1e-3 * float(b.abs().max()) + 1e-6)


def _above(values: NDArray[np.float32]) -> float:
    return float(values.max()) or 1.0
