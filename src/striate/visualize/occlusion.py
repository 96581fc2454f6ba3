"""Occlusion: what a net makes of an image when one part of it after the other is covered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
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
from striate.visualize.coarse import Refined, refine
from striate.visualize.covered import Copies
from striate.visualize.gradients import blurred
from striate.visualize.incremental import Patches
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
from striate.visualize.scores import must_have_rivals
from striate.visualize.scores import run as run_net
from striate.visualize.stages import last_with_maps, must_be_maps

if TYPE_CHECKING:
    from striate.model import Model

FILLS = ("grey", "mean", "blur", "noise")
WAYS = ("auto", "full")
MOST_POSITIONS = 100_000


@dataclass(frozen=True)
class Occluded:
    """What occlusion found for one image: grids (rows, columns) of positions, and how it was computed.

    probability: of the class `target`; predicted: the most probable class; activation: total of map
    `channel` of `stage`; outputs (rows, columns, K). clean_...: the same of the image itself.
    computed: where these are exact, not interpolated; error: the largest one found in probability, and in
    activation as a part of the clean one; checked, share: at so many positions, and the part of the
    interpolated ones that may lie further off with 95% confidence.
    multiply_adds: of one position as computed, and of the full pass (0 where that is not known).
    """

    target: int
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    probability: NDArray[np.float32]
    predicted: NDArray[np.int64]
    activation: NDArray[np.float32]
    outputs: NDArray[np.float32]
    computed: NDArray[np.bool_]
    error: NDArray[np.float32]
    checked: int
    share: float
    clean_outputs: NDArray[np.float32]
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

    With a `tolerance` the grid is filled from coarse to fine: squares that together cover the image first,
    then, halving the distance, the positions between those that differ in probability, or in activation as
    a part of the clean one, by more than the tolerance, or in the most probable class. All other positions
    are interpolated. How far off these are is measured: 29 of them, drawn at random, are computed after all,
    and the largest difference found is the bound that is stated, for all but a tenth of them at most with
    95% confidence. Computed positions are exact.
    arrays, each (images, rows, columns): "probability" float32, "predicted" class numbers, "activation"
    float32, "computed" bool; "error" (images, 2); "target", "clean_probability", "clean_activation",
    "channel" (images,); "rows", "columns" the first pixels of the squares; "multiply_adds" (images, 2) of
    one position, as computed and in full; "input" (images, H, W, C) uint8.
    Zeiler and Fergus, Visualizing and Understanding Convolutional Networks (arXiv:1311.2901), section 4.2.

    Raises:
        StriateError: a task without one answer an image, a single class, a square that does not fit, or an
            unknown stage.
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
    tolerance: float | None = setting(
        None,
        help="coarse to fine: interpolate between positions that differ by no more; nothing computes all",
        minimum=0,
        maximum=1,
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
            "error": np.stack([one.error for one in found]),
        }
        for key in ("probability", "predicted", "activation", "computed", "rows", "columns"):
            arrays |= together(key, [getattr(one, key) for one in found])
        arrays |= together("input", views)
        side, step = self._square(views[0])
        title = f"Occlusion by a {self.fill} square of {side} x {side}, stride {step}"
        return Picture(self.name, title, self._note(model, found), arrays, tuple(panels), 5)

    def occlude(self, model: Model, view: Pixels) -> Occluded:
        """The numbers of one view; raises StriateError as the class says."""
        if model.task.dense:
            raise StriateError("occlusion is for one answer an image, not for masks")
        must_have_rivals(model, "occlusion")
        wanted = None if self.target is None else class_index(self.target, model.classes)
        patches, shape = self._patches(model, view)
        stage = self.stage or last_with_maps(model, view)
        with torch.no_grad():
            with capture(model.net, [stage]) as seen:
                clean = run_net(model, patches.clean)
            maps = must_be_maps(model, stage, seen[stage])
            totals = maps[0].double().sum((1, 2))
            channel = int(totals.argmax())
            before = model.task.posterior(clean).float().cpu()[0]
            target = int(before.argmax()) if wanted is None else wanted
            copies = Copies(model, patches, stage, maps, channel, auto=self.way == "auto")
            scale = abs(float(totals[channel])) or 1.0
            found = self._fill(model, patches, shape, copies, target, scale)
        outputs = found.values[..., 2:].astype(np.float32)
        return Occluded(
            target=target,
            rows=np.unique(patches.y),
            columns=np.unique(patches.x),
            probability=found.values[..., 0].astype(np.float32),
            predicted=outputs.argmax(-1),
            activation=(found.values[..., 1] * scale).astype(np.float32),
            outputs=outputs,
            computed=found.computed,
            error=found.error.astype(np.float32),
            checked=found.checked,
            share=found.share,
            clean_outputs=clean[0].float().cpu().numpy(),
            clean_probability=float(before[target]),
            clean_activation=float(totals[channel]),
            stage=stage,
            channel=channel,
            way=copies.way,
            multiply_adds=(copies.multiply_adds, copies.full),
        )

    def relevance(self, model: Model, view: Pixels, target: int) -> NDArray[np.float32]:
        """How much each pixel speaks for a class (H, W): the mean loss of its logit over squares on it.

        Where no stride is given the square moves by half its side.
        """
        side, _ = self._square(view)
        stride = self.stride or max(1, side // 2)
        one = replace(self, target=target, stride=stride).occlude(model, view)
        lost = one.clean_outputs[target] - one.outputs[..., target]
        total, count = np.zeros(view.shape[:2], np.float64), np.zeros(view.shape[:2], np.int64)
        for y, some in zip(one.rows.tolist(), lost.tolist(), strict=True):
            for x, value in zip(one.columns.tolist(), some, strict=True):
                total[y : y + side, x : x + side] += value
                count[y : y + side, x : x + side] += 1
        # A stride beyond the side leaves pixels that no square covers.
        return np.asarray(total / count.clip(1), np.float32)

    def _fill(
        self,
        model: Model,
        patches: Patches,
        shape: tuple[int, int],
        copies: Copies,
        target: int,
        scale: float,
    ) -> Refined:
        """For every position the probability, the activation over `scale`, and the outputs."""

        def compute(chosen: NDArray[np.int64]) -> NDArray[np.float64]:
            outcome = copies.run(patches.some(chosen))
            must_be_numbers(outcome.outputs, "the network's outputs")
            posterior = model.task.posterior(outcome.outputs)[:, target]
            assert outcome.totals is not None  # a stage was given
            parts = posterior.double().cpu(), outcome.totals.double() / scale
            outputs = outcome.outputs.double().cpu()
            return torch.cat([*(part[:, None] for part in parts), outputs], 1).numpy()

        if self.tolerance is None:
            values = compute(np.arange(len(patches))).reshape(*shape, -1)
            return Refined(values, np.ones(shape, bool), np.zeros(2), 0, 0.0)
        side, stride = patches.side, self._stride(patches.side)
        # The first squares still cover the image.
        step = 1
        while 2 * step * stride <= side:
            step *= 2
        return refine(shape, step, self.tolerance, 2, compute)

    def _square(self, view: Pixels) -> tuple[int, int]:
        """Side and stride of the square."""
        shorter = min(view.shape[:2])
        side = self.size or max(1, round(shorter / 7))
        if side > shorter:
            raise StriateError(
                f"size is {side}", allowed=f"1 to {shorter}: the net sees {view.shape[0]} x {view.shape[1]}"
            )
        return side, self._stride(side)

    def _stride(self, side: int) -> int:
        return self.stride or max(1, side // 4)

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
        present, first, count = np.unique(one.predicted, return_inverse=True, return_counts=True)
        order = np.argsort(-count, kind="stable")
        colours = palette(len(present))
        # The class that is most often the most probable one has the first colour.
        drawn = colours[np.argsort(order)[first].reshape(one.predicted.shape)]
        low, high = float(one.probability.min()), float(one.probability.max())
        names = [model.classes[int(present[k])] for k in order]
        return [
            Panel(view, model.classes[one.target]),
            Panel(draw.heatmap(one.probability), f"probability {low:.2g} to {high:.2g}"),
            Panel(drawn, f"{len(present)} classes, most {names[0]}" if len(present) > 1 else names[0]),
            Panel(draw.legend(names, colours, max(224, *view.shape[:2])), "most probable class"),
            Panel(draw.heatmap(one.activation), f"{one.stage} map {one.channel}"),
        ]

    def _note(self, model: Model, found: Sequence[Occluded]) -> str:
        ways = " ".join(dict.fromkeys(one.way for one in found))
        return (
            "At each position of the square: the probability of the class (dark the lowest, bright the "
            "highest), the most probable class (a colour each), and the total activation of the map that is "
            f"strongest on the image itself. {ways}{self._filled(found)}"
        )

    def _filled(self, found: Sequence[Occluded]) -> str:
        """What was interpolated, and how far off it may be."""
        if self.tolerance is None:
            return ""
        part = float(np.mean([one.computed.mean() for one in found]))
        if part == 1:
            return (
                " Every position was computed: the grid is too coarse, or differs too much, to interpolate."
            )
        error = np.max([one.error for one in found], axis=0)
        share, checked = max(one.share for one in found), min(one.checked for one in found)
        sure = (
            f", for all but {100 * share:.0f} % of the others at most with 95 % confidence" if share else ""
        )
        return (
            f" {100 * part:.0f} % of the positions were computed, the others interpolated: at {checked} of "
            f"them, drawn at random, the error was at most {error[0]:.2g} in probability and "
            f"{100 * error[1]:.2g} % of the clean activation{sure}."
        )


def starts(length: int, side: int, step: int) -> NDArray[np.int64]:
    """First pixels of a square of `side` along an axis: every `step`, and flush with the end."""
    found = np.arange(0, length - side + 1, step)
    return found if found[-1] == length - side else np.append(found, length - side)
