"""Pipelines of augmentations: drawn once a sample; one warp moves image, mask and boxes alike."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from striate.core.errors import StriateError
from striate.data import philox
from striate.data.augment_batch import carried, gather, inverse, whole_pixels
from striate.data.augment_text import name_of, steps_of, written
from striate.data.augmentations import (
    AUGMENTATIONS,
    Augmentation,
    Bend,
    Colour,
    Crop,
    Floats,
    Geometry,
    Mixer,
    Moving,
    Repeats,
)  # fmt: skip
from striate.data.crops import Bytes, Place, crop_view, mirrored
from striate.data.pools import IGNORE
from striate.data.preprocess import Preprocess
from striate.data.samples import Split
from striate.images import geometry
from striate.images.jpeg import Enough
from striate.images.remap import centres, remap

__all__ = ["AUGMENTATIONS", "NONE", "Pipeline", "parse"]

EDGE = 16
"""Points along each edge of a box that is bent."""


@dataclass(frozen=True)
class Pipeline:
    """Augmentations in order, applied after one another to the view that the preprocessing makes.

    A sample's numbers are a row `u` of `draw`; the same row moves its image, its mask and its boxes alike.

    Raises:
        StriateError: two crops, two repeats, or two different borders: all geometry is one warp.
    """

    steps: tuple[Augmentation, ...] = ()

    def __post_init__(self) -> None:
        crops = [step for step in self.steps if isinstance(step, Crop)]
        moving = [step for step in self.steps if isinstance(step, Moving)]
        borders = {step.border for step in moving if step.border}
        fallbacks = sorted({step.fallback for step in moving if step.fallback})  # reflect before zero
        repeats = [step.times for step in self.steps if isinstance(step, Repeats)]
        if len(repeats) > 1:
            raise StriateError(f"{len(repeats)} repeats in {self.text!r}", allowed="one")
        if len(crops) > 1:
            raise StriateError(
                f"{len(crops)} crops in {self.text!r}", allowed="one: a crop chooses the whole view"
            )
        if len(borders) > 1:
            raise StriateError(
                f"borders {' and '.join(sorted(borders))} in {self.text!r}",
                allowed="one border: all geometry is one warp",
            )
        places, start = [], 0
        for step in self.steps:
            places.append(slice(start, start + step.draws))
            start += step.draws
        object.__setattr__(self, "draws", start)
        object.__setattr__(self, "_border", next(iter(borders), None))
        object.__setattr__(self, "_fallback", next(iter(fallbacks), None))
        pairs = list(zip(self.steps, places, strict=True))
        object.__setattr__(self, "_places", pairs)
        object.__setattr__(self, "_crop", next((p for p in pairs if isinstance(p[0], Crop)), None))
        object.__setattr__(self, "_moving", [p for p in pairs if isinstance(p[0], (Geometry, Bend))])
        object.__setattr__(self, "_bends", any(isinstance(step, Bend) for step in moving))
        object.__setattr__(self, "_colour", [p for p in pairs if isinstance(p[0], Colour)])
        object.__setattr__(self, "mixers", tuple(step for step in self.steps if isinstance(step, Mixer)))
        object.__setattr__(self, "times", repeats[0] if repeats else 1)

    draws: int = dataclasses.field(init=False, repr=False, compare=False)
    _places: list[tuple[Augmentation, slice]] = dataclasses.field(init=False, repr=False, compare=False)
    _border: str | None = dataclasses.field(init=False, repr=False, compare=False)
    _fallback: str | None = dataclasses.field(init=False, repr=False, compare=False)
    _crop: tuple[Crop, slice] | None = dataclasses.field(init=False, repr=False, compare=False)
    _moving: list[tuple[Geometry | Bend, slice]] = dataclasses.field(init=False, repr=False, compare=False)
    _bends: bool = dataclasses.field(init=False, repr=False, compare=False)
    _colour: list[tuple[Colour, slice]] = dataclasses.field(init=False, repr=False, compare=False)
    mixers: tuple[Mixer, ...] = dataclasses.field(init=False, repr=False, compare=False)
    times: int = dataclasses.field(init=False, repr=False, compare=False)

    def __bool__(self) -> bool:
        return bool(self.steps)

    def __str__(self) -> str:
        return self.text

    @property
    def text(self) -> str:
        """The written form; `parse` takes it back."""
        return "+".join(written(step) for step in self.steps) or "none"

    def describe(self) -> str:
        """One line for each augmentation: its written form and what it does."""
        lines = [f"{written(step)}: {AUGMENTATIONS.entry(name_of(step)).summary}" for step in self.steps]
        return "\n".join(lines) or "none"

    @property
    def crops(self) -> bool:
        """Whether a crop chooses the box of the image that is seen."""
        return self._crop is not None

    def fitted(self, split: Split, preprocess: Preprocess) -> Pipeline:
        """The same with what its steps take from the training images, where they take anything."""
        steps = tuple(step.fitted(split, preprocess) for step in self.steps)
        return self if all(a is b for a, b in zip(steps, self.steps, strict=True)) else Pipeline(steps)

    # ------------------------------------------------------------------ drawing

    def order(self, seed: int, epoch: int, count: int) -> NDArray[np.int64]:
        """The sample numbers of a training epoch, (count,): a permutation; with repeats, the first of it."""
        return philox.permutation(seed, epoch, count).repeat(self.times)[:count]

    def draw(self, seed: int, epoch: int, numbers: ArrayLike, first: int = 0) -> Floats:
        """The numbers of these samples, (N, draws) in (0, 1): row i from (seed, epoch, numbers[i]).

        first: the place of the first of them in the epoch's order: repeats of an image differ.
        """
        numbers = np.asarray(numbers, dtype=np.int64).reshape(-1)
        if self.times > 1:
            numbers = numbers + ((np.arange(first, first + len(numbers)) % self.times) << 40)
        u = philox.uniforms(seed, epoch, numbers, self.draws)
        places = [place for step, place in self._places if step.alternates]
        if places:
            begun = philox.uniforms(seed, 0, numbers, self.draws)
            for place in places:
                u[:, place] = 1 - begun[:, place] if epoch % 2 else begun[:, place]
        return u

    def at_least(self, u: Floats, preprocess: Preprocess) -> int | Enough | None:
        """The shorter side below which an image would lose detail in this sample's view; None = all of it.

        With a crop: whether an image of some height and width loses none.
        """
        if self._crop is None or preprocess.size is None:
            return preprocess.at_least()
        (crop, place), size = self._crop, preprocess.size
        return lambda height, width: crop.enough(u[place], height, width, size)

    # ------------------------------------------------------------------ geometry

    def frames(self, u: Floats, height: int, width: int) -> Floats | None:
        """(N, 3, 3) maps from old to new coordinates (x, y) of views of this size; None without one.

        There is none without geometry, nor with a bend.
        """
        whole: Floats | None = None
        for step, place in () if self._bends else self._moving:
            assert isinstance(step, Geometry)
            found = step.matrices(u[:, place], height, width)
            whole = found if whole is None else found @ whole
        return whole

    def matrix(
        self, u: Floats, height: int, width: int, preprocess: Preprocess, frame: Floats | None = None
    ) -> Floats:
        """The 3x3 map from an image of this height and width to its view, for one row `u`; bends left out.

        frame: the sample's row of `frames` for views of this size, where it is known already.
        """
        whole = self._framed(u, height, width, preprocess)
        if frame is not None:
            return frame @ whole
        size = preprocess.view_size(height, width)
        for step, place in self._moving:
            if isinstance(step, Geometry):
                whole = step.matrices(u[None, place], *size)[0] @ whole
        return whole

    def sources(self, u: Floats, height: int, width: int, preprocess: Preprocess) -> Floats:
        """The points (h, w, 2), in (x, y), of an image of this height and width that its view shows."""
        size = preprocess.view_size(height, width)
        points = centres(size)
        for step, place in reversed(self._moving):
            if isinstance(step, Bend):
                points = step.sources(points, u[place], *size)
            else:
                points = carried(points, inverse(step.matrices(u[None, place], *size)[0]))
        return carried(points, inverse(self._framed(u, height, width, preprocess)))

    def places(
        self, points: ArrayLike, u: Floats, image_size: tuple[int, int], preprocess: Preprocess
    ) -> Floats:
        """Where points (..., 2) of an image, in (x, y), come to lie in its view."""
        size = preprocess.view_size(*image_size)
        found = carried(np.asarray(points, dtype=np.float64), self._framed(u, *image_size, preprocess))
        for step, place in self._moving:
            if isinstance(step, Bend):
                found = step.places(found, u[place], *size)
            else:
                found = carried(found, step.matrices(u[None, place], *size)[0])
        return found

    def _framed(self, u: Floats, height: int, width: int, preprocess: Preprocess) -> Floats:
        """The map from an image to its view before anything else moves it."""
        if self._crop is None:
            return preprocess.matrix(height, width)
        crop, place = self._crop
        size = preprocess.view_size(height, width)
        return geometry.crop_resize(crop.box(u[place], height, width, size), size)

    def slice_of(
        self, u: Floats, height: int, width: int, size: tuple[int, int]
    ) -> tuple[int, int, int, int] | None:
        """The crop's box (x0, y0, x1, y1) in an image, where it is whole pixels of it; else None."""
        if self._crop is None or self._bends:
            return None
        crop, place = self._crop
        x0, y0, x1, y1 = box = crop.box(u[place], height, width, size)
        whole = all(map(float.is_integer, box)) and 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
        return (int(x0), int(y0), int(x1), int(y1)) if whole else None

    def mirrored(self, u: Floats, size: tuple[int, int], frame: Floats | None = None) -> bool | None:
        """As `crops.mirrored` for this sample's views of this size; `frame` as in `matrix`."""
        if not self._moving:
            return False
        frames = self.frames(u[None], *size) if frame is None else frame[None]
        return None if frames is None else mirrored(frames[0], size[1])

    def border(self, preprocess: Preprocess) -> str:
        """What is seen beyond the image: "reflect", "edge" or "constant" (the mean colour; 255 in a mask)."""
        # A view that is padded has its bars in training, too, unless a border is asked for.
        padded = preprocess.resize == "pad" and self._crop is None
        border = self._border or (None if padded else self._fallback) or preprocess.border
        return "constant" if border == "zero" else border

    # ------------------------------------------------------------------ applying

    def view(
        self, image: Bytes, u: Floats, preprocess: Preprocess, frame: Floats | None = None,
        out: Bytes | None = None, place: Place | None = None,
    ) -> Bytes:  # fmt: skip
        """What the net sees of an image in training: (H, W, C) uint8 -> (h, w, C); `frame` as in `matrix`.

        out: memory of the view, which may be used for it. place: of `image`, where it is a part
        of the whole that holds `slice_of`.
        """
        return self.change_colour(self.moved(image, u, preprocess, frame, out, place), u, preprocess)

    def moved(
        self, image: Bytes, u: Floats, preprocess: Preprocess, frame: Floats | None = None,
        out: Bytes | None = None, place: Place | None = None,
    ) -> Bytes:  # fmt: skip
        """The view before its values are changed: all geometry, in one warp; or a crop's box, resampled."""
        if self._crop is None and not self._moving:
            return preprocess.view(image)
        left, top, height, width = place or (0, 0, *image.shape[:2])
        size = preprocess.size
        if self._crop is not None and size is not None and preprocess.interpolation == "bilinear":
            box, turned = self.slice_of(u, height, width, size), self.mirrored(u, size, frame)
            if box is not None and turned is not None:
                x0, y0, x1, y1 = box
                return crop_view(image, (x0 - left, y0 - top, x1 - left, y1 - top), size, turned, out)
        how: dict[str, Any] = {
            "interpolation": preprocess.interpolation, "border": self.border(preprocess),
            "fill": preprocess.fill,
        }  # fmt: skip
        if self._bends:
            return remap(image, self.sources(u, height, width, preprocess), **how)
        matrix = self.matrix(u, height, width, preprocess, frame)
        return geometry.warp(image, matrix, preprocess.view_size(height, width), **how)

    def change_colour(self, image: NDArray[np.uint8], u: Floats, preprocess: Preprocess) -> NDArray[np.uint8]:
        """The changes of values alone, in order."""
        for step, place in self._colour:
            image = step.change(image, u[place], preprocess.fill)
        return image

    def mask_view(
        self,
        mask: NDArray[np.int32],
        u: Floats,
        preprocess: Preprocess,
        image_size: tuple[int, int] | None = None,
        frame: Floats | None = None,
    ) -> NDArray[np.int32]:
        """The same geometry for a mask: (H, W) int32 -> (h, w) int32, nearest; 255 beyond a constant border.

        image_size: height and width of the image as `view` got it, where the mask's differ (a scaled decode).
        """
        if self._crop is None and not self._moving:
            return preprocess.mask_view(mask)
        rows, columns = mask.shape
        height, width = image_size or (rows, columns)
        border = self.border(preprocess)
        if self._bends:
            points = self.sources(u, height, width, preprocess) * [columns / width, rows / height]
            return remap(mask, points, "nearest", border, IGNORE)
        matrix = self.matrix(u, height, width, preprocess, frame)
        matrix = matrix @ np.diag([width / columns, height / rows, 1.0])
        return geometry.warp(
            mask, matrix, preprocess.view_size(height, width), "nearest", border=border, fill=IGNORE
        )

    def boxes_view(
        self, boxes: ArrayLike, u: Floats, image_size: tuple[int, int], preprocess: Preprocess
    ) -> Floats:
        """The same for boxes (N, 4) x0, y0, x1, y1 in image pixels: what encloses each, cut to the view."""
        edges = np.asarray(boxes, dtype=np.float64).reshape(-1, 1, 4)
        t = np.linspace(0, 1, EDGE + 1 if self._bends else 2)
        across, down = np.concatenate([t, t, 0 * t, 0 * t + 1]), np.concatenate([0 * t, 0 * t + 1, t, t])
        x = edges[..., 0] + across * (edges[..., 2] - edges[..., 0])
        y = edges[..., 1] + down * (edges[..., 3] - edges[..., 1])
        moved = self.places(np.stack([x, y], axis=-1), u, image_size, preprocess)
        rows, columns = preprocess.view_size(*image_size)
        found = np.concatenate([moved.min(axis=1), moved.max(axis=1)], axis=1)
        return np.asarray(np.clip(found, 0, [columns, rows, columns, rows]), dtype=np.float64)

    def batch(
        self, stack: NDArray[np.uint8], rows: NDArray[np.int64], u: Floats, preprocess: Preprocess
    ) -> NDArray[np.uint8]:
        """Many views at once: images stack[rows] of one size, (N, H, W, C) uint8, numbers u (N, draws).

        Gives the same bytes as `view` on each; shifts and flips by whole pixels are one gather over the
        whole batch.
        """
        height, width = stack.shape[1:3]
        frames = self.frames(u, *preprocess.view_size(height, width))
        seen = self._gathered(stack, rows, frames, preprocess, preprocess.fill)
        if seen is None:
            each = [None] * len(rows) if frames is None else frames
            return np.stack([self.view(stack[row], u[i], preprocess, each[i]) for i, row in enumerate(rows)])
        for i in range(len(seen) if self._colour else 0):
            seen[i] = self.change_colour(seen[i], u[i], preprocess)
        return seen

    def batch_masks(
        self, stack: NDArray[Any], rows: NDArray[np.int64], u: Floats, preprocess: Preprocess
    ) -> NDArray[Any]:
        """The masks (N, H, W) of the same batch; raises and agrees as `batch` does."""
        height, width = stack.shape[1:3]
        frames = self.frames(u, *preprocess.view_size(height, width))
        seen = self._gathered(stack[..., None], rows, frames, preprocess, (IGNORE,))
        if seen is not None:
            return seen[..., 0]
        each = [None] * len(rows) if frames is None else frames
        size = (height, width)
        return np.stack(
            [self.mask_view(stack[row], u[i], preprocess, size, each[i]) for i, row in enumerate(rows)]
        )

    def _gathered(
        self,
        stack: NDArray[Any],
        rows: NDArray[np.int64],
        frames: Floats | None,
        preprocess: Preprocess,
        fill: tuple[int, ...],
    ) -> NDArray[Any] | None:
        """Images stack[rows] moved by `frames` in one gather; None where not by whole pixels."""
        if self._crop is not None or self._bends or not preprocess.same_pixels(*stack.shape[1:3]):
            return None
        if frames is None:
            found: NDArray[Any] = stack[rows]
            return found
        if not whole_pixels(frames).all():
            return None
        border = self.border(preprocess)
        return gather(stack, rows, frames, border, fill if border == "constant" else None)


NONE = Pipeline()


def parse(text: str | Pipeline) -> Pipeline:
    """A pipeline from its written form: `name(value, key=value)` joined by `+`, or `none`.

    "random-resized-crop(scale=0.35)+flip+colour(0.2)", "pad-crop(4, border=zero)+flip", "affine(rotate=10)".

    Raises:
        StriateError: not of that form, an unknown name or setting (near matches given), or a value not
        allowed.
    """
    if isinstance(text, Pipeline):
        return text
    steps = steps_of(text)
    return Pipeline(steps) if steps else NONE
