"""Deep dream: what a net sees in a picture, made stronger, from coarse to fine."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from striate.core.errors import StriateError
from striate.core.results import Result
from striate.images import draw, geometry
from striate.images.decode import to_image
from striate.visualize.animation import write_animation
from striate.visualize.ascent import Ascent
from striate.visualize.fingerprint import of_model, of_pixels
from striate.visualize.forms import Form
from striate.visualize.goals import Norm
from striate.visualize.kept import Keeper
from striate.visualize.objectives import Objective, parse, total
from striate.visualize.references import Guide
from striate.visualize.stages import with_maps
from striate.visualize.studio import Look, Studio, resized, to_picture, to_pixels
from striate.visualize.synthesis import Phase, Watcher, ascend
from striate.visualize.wishes import Dream, words

if TYPE_CHECKING:
    from striate.model import Model

Pixels = NDArray[np.uint8]
# Smaller pictures than this are not dreamt at as an octave of their own.
LEAST_SIDE = 48


@dataclass(frozen=True)
class Made(Result):
    """A picture made by optimisation: its pixels, or those of a film; the objective and its values."""

    verb: str
    objective: str
    frames: tuple[Pixels, ...]
    history: tuple[float, ...]
    rate_of_frames: float = 12.0

    @property
    def pixels(self) -> Pixels:
        """The picture, or the last frame, (H, W, 1 or 3) uint8."""
        return self.frames[-1]

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the picture as .png or .jpg, or all frames as .gif, .webp or .mp4, by the suffix.

        Raises:
            StriateError: another suffix, or the file cannot be written.
        """
        if Path(path).suffix.lower() in (".gif", ".webp", ".mp4"):
            return write_animation(path, self.frames, self.rate_of_frames)
        return draw.save(path, self.pixels)

    def lines(self) -> list[str]:
        """What was made, for people."""
        height, width = self.pixels.shape[:2]
        count = f", {len(self.frames)} frames" if len(self.frames) > 1 else ""
        ends = f", {self.history[0]:.6g} -> {self.history[-1]:.6g}" if self.history else ""
        return [f"{self.verb}: {width} x {height}{count}; {self.objective}{ends}"]

    def to_dict(self) -> dict[str, Any]:
        """Plain values without pixels."""
        return {
            "verb": self.verb, "objective": self.objective, "frames": len(self.frames),
            "height": self.pixels.shape[0], "width": self.pixels.shape[1], "history": list(self.history),
        }  # fmt: skip

    def _repr_png_(self) -> bytes:
        return draw.encode_png(self.pixels)


def dream(
    model: Model,
    image: Any,
    wish: Dream | None = None,
    *,
    watch: Watcher | None = None,
    state: str | os.PathLike[str] | None = None,
    resume: bool = False,
    **wishes: Any,
) -> Made:
    """Raise the activations of stages in a picture: gradient ascent over octaves (Mordvintsev et al. 2015).

    Each octave starts from the image at its size plus the details dreamt so far, enlarged. Steps have one
    mean size. Pictures larger than a tile are computed tile by tile, on another grid in every step; their
    gradients are those of the tiles, so that memory does not grow with the net's activations. With `frames`,
    a zoom: each frame is the last one enlarged, and dreamt at again.

    state: a file to keep the state in; with `resume` a stopped run goes on from it, to equal bytes.

    Raises:
        BadImage: the image cannot be decoded.
        StriateError: an unknown stage or setting, or a net that does not take such pictures.
    """
    wish = dataclasses.replace(wish or Dream(), **wishes) if wishes else wish or Dream()
    pixels = to_image(image, channels=model.preprocess.channels)
    pixels = _sized(pixels, wish.size)
    side = min(wish.tile, *pixels.shape[:2])
    studio = Studio(model, (side, side))
    facts = {"verb": "dream", "wish": wish, "net": of_model(model), "image": of_pixels(pixels)}
    keeper = Keeper(state, facts, resume=resume)
    with studio.open():
        objective = objective_of(model, wish, studio)
        made, history = _frames(studio, objective, pixels, wish, watch, keeper)
    keeper.done()
    return Made("dream", str(objective), tuple(made), tuple(history), wish.rate_of_frames)


def objective_of(model: Model, wish: Dream, studio: Studio) -> Objective:
    """What the wish raises, looked up."""
    if wish.objective is not None:
        return parse(wish.objective).ready(studio)
    stages = words(wish.stages) or [default_stage(model)]
    if wish.guide is not None:
        return total([(1.0, Guide(stage, wish.guide)) for stage in stages]).ready(studio)
    return total([(1.0, Norm(stage)) for stage in stages]).ready(studio)


def default_stage(model: Model) -> str:
    """A stage in the deeper middle of the net, where maps answer to parts of things."""
    names = with_maps(model) or list(getattr(model.net, "stage_names", ()))
    if not names:
        raise StriateError("the net does not name its stages", hint="name one with --stages")
    return names[int(0.6 * (len(names) - 1))]


def _frames(
    studio: Studio,
    objective: Objective,
    pixels: Pixels,
    wish: Dream,
    watch: Watcher | None,
    keeper: Keeper,
) -> tuple[list[Pixels], list[float]]:
    """All frames, and the values of all steps; goes on from the keeper's state."""
    saved = keeper.load()
    frames: list[Pixels] = []
    history: list[float] = []
    if saved is not None:
        frames = [frame.numpy() for frame in saved["frames"]]
        history = [float(value) for value in saved["history"]]
    source = pixels
    for number in range(len(frames), max(1, wish.frames)):
        if number:
            source = zoomed(frames[-1], wish.zoom, wish.turn)
        octaves = wish.octaves if number == 0 else min(2, wish.octaves)
        steps = wish.steps if number == 0 else wish.frame_steps
        around = {"frames": [torch.from_numpy(frame) for frame in frames]}
        at = (number, max(1, wish.frames), octaves, steps)
        picture = _octaves(studio, objective, source, wish, at, watch, keeper, saved, around, history)
        frames.append(to_pixels(picture[0]))
        saved = None
    return frames, history


def _octaves(
    studio: Studio,
    objective: Objective,
    source: Pixels,
    wish: Dream,
    at: tuple[int, int, int, int],
    watch: Watcher | None,
    keeper: Keeper,
    saved: dict[str, Any] | None,
    around: dict[str, Any],
    history: list[float],
) -> Tensor:
    """One picture from coarse to fine."""
    frame, frames, octaves, steps = at
    sizes = octave_sizes((source.shape[0], source.shape[1]), octaves, wish.octave_scale)
    begin = int(saved["octave"]) if saved is not None else 0
    picture: Tensor | None = None
    for octave in range(begin, len(sizes)):
        size = sizes[octave]
        base = to_picture(resized(source, size))
        if picture is not None:
            before = to_picture(resized(source, sizes[octave - 1]))
            detail = F.interpolate(picture - before, size, mode="bicubic", align_corners=False)
            base.add_(detail)
            del before, detail
        form = Form(tuple(base.shape), "pixels")  # type: ignore[arg-type]
        form.values = base.clamp_(0, 1)
        label = f"octave {octave + 1}/{len(sizes)}"
        label = f"frame {frame + 1}/{frames} {label}" if frames > 1 else label
        seed = wish.seed + 7919 * octave + 104729 * frame
        phase = Phase(
            studio, objective, form, Ascent(wish.rate), steps, seed=seed, label=label,
            look=_looker(studio, wish, seed), project=_cut,
        )  # fmt: skip
        past: list[float] = []
        extra = {**around, "octave": octave, "history": list(history)}
        resumed = saved["phase"] if saved is not None and octave == begin else None
        picture = ascend(phase, watch=watch, keeper=keeper, state=resumed, around=extra, history=past)
        history.extend(past)
    assert picture is not None  # there is at least one octave
    return picture


def octave_sizes(size: tuple[int, int], count: int, scale: float) -> list[tuple[int, int]]:
    """Heights and widths from coarse to fine; the last is `size`."""
    found = [size]
    for k in range(1, count):
        smaller = (round(size[0] / scale**k), round(size[1] / scale**k))
        if min(smaller) < min(LEAST_SIDE, *size):
            break
        found.append(smaller)
    return found[::-1]


def bounds(length: int, tile: int, offset: int) -> list[tuple[int, int]]:
    """0 .. length in parts of `tile`, the first one shorter by the draw; none below half a tile."""
    if length <= tile:
        return [(0, length)]
    first = tile // 2 + offset % max(1, tile // 2)
    cuts = [0, *range(first, length, tile), length]
    if cuts[-1] - cuts[-2] < tile // 2 and len(cuts) > 2:
        del cuts[-2]
    return list(itertools.pairwise(cuts))


def tiles(size: tuple[int, int], tile: int, seed: int, step: int) -> Iterator[tuple[slice, slice]]:
    """This step's parts of a picture."""
    draws = np.random.default_rng((seed, step)).integers(0, 2**31, 2)
    for top, bottom in bounds(size[0], tile, int(draws[0])):
        for left, right in bounds(size[1], tile, int(draws[1])):
            yield slice(top, bottom), slice(left, right)


def _looker(studio: Studio, wish: Dream, seed: int) -> Any:
    """Value and gradient of a picture of any size: tile by tile, shifted by this step's jitter."""

    def look(objective: Objective, picture: Tensor, step: int) -> Look:
        height, width = picture.shape[2:]
        values = torch.zeros(len(picture), dtype=torch.float64)
        gradient = torch.empty_like(picture)
        parts: dict[str, float] = {}
        alone = height <= wish.tile and width <= wish.tile
        draws = np.random.default_rng((seed, step, 1))
        reach = (min(wish.jitter, height - 1), min(wish.jitter, width - 1))
        shift = tuple(int(draws.integers(-side, side + 1)) for side in reach) if alone else (0, 0)
        for rows, columns in tiles((height, width), wish.tile, seed, step):
            part = picture[:, :, rows, columns]
            share = part.shape[2] * part.shape[3] / (height * width)
            seen = studio.look(objective, torch.roll(part, shift, (2, 3)).to(studio.device))
            back = torch.roll(seen.gradient, (-shift[0], -shift[1]), (2, 3)).to(picture.device)
            gradient[:, :, rows, columns] = softened(back, wish.smooth) * share
            values += share * seen.values.cpu()
            for name, value in seen.parts.items():
                parts[name] = parts.get(name, 0.0) + share * value
        return Look(values, gradient, None, parts)

    return look


def softened(gradient: Tensor, share: float) -> Tensor:
    """The gradient mixed with its blurred forms, each of one size: coarse shapes beside fine grains."""
    if not share:
        return gradient
    found = (1 - share) * gradient
    size = gradient.square().mean().sqrt().clamp_min(1e-20)
    for width in (3, 7):
        if min(gradient.shape[2:]) <= width:
            break
        half = width // 2
        blurred = F.pad(gradient, (half, half, half, half), mode="reflect")
        blurred = F.avg_pool2d(blurred, width, 1)
        found = found + share / 2 * blurred * (size / blurred.square().mean().sqrt().clamp_min(1e-20))
    return found


def zoomed(frame: Pixels, zoom: float, turn: float) -> Pixels:
    """A frame enlarged and turned about its middle."""
    height, width = frame.shape[:2]
    middle = (width / 2, height / 2)
    matrix = geometry.compose(geometry.scale(zoom, center=middle), geometry.rotate(turn, center=middle))
    return geometry.warp(frame, matrix, (height, width), "bicubic", border="reflect")


def _sized(pixels: Pixels, longer: int) -> Pixels:
    height, width = pixels.shape[:2]
    factor = longer / max(height, width) if longer else 1.0
    return resized(pixels, (max(1, round(height * factor)), max(1, round(width * factor))))


def _cut(values: Tensor) -> Tensor:
    return values.clamp_(0, 1)
