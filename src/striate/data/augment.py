"""Pipelines of augmentations: drawn once a sample; one warp moves image, mask and boxes alike."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from striate.core.errors import StriateError
from striate.data import philox
from striate.data.augmentations import AUGMENTATIONS, Augmentation, Colour, Crop, Floats, Geometry, build
from striate.data.pools import IGNORE
from striate.data.preprocess import Preprocess
from striate.images import geometry

__all__ = ["AUGMENTATIONS", "NONE", "Pipeline", "parse"]

_CORNERS = [0, 1, 2, 1, 2, 3, 0, 3]
_STEP = re.compile(r"\s*([A-Za-z][\w-]*)\s*(?:\(([^()]*)\))?\s*")


@dataclass(frozen=True)
class Pipeline:
    """Augmentations in order, applied after one another to the view that the preprocessing makes.

    A sample's numbers are a row `u` of `draw`; the same row moves its image, its mask and its boxes alike.

    Raises:
        StriateError: two crops, or two different borders: all geometry is one warp.
    """

    steps: tuple[Augmentation, ...] = ()

    def __post_init__(self) -> None:
        crops = [step for step in self.steps if isinstance(step, Crop)]
        borders = {step.border for step in self.steps if isinstance(step, Geometry) and step.border}
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
        pairs = list(zip(self.steps, places, strict=True))
        object.__setattr__(self, "_places", pairs)
        object.__setattr__(self, "_crop", next((p for p in pairs if isinstance(p[0], Crop)), None))
        object.__setattr__(self, "_geometry", [p for p in pairs if isinstance(p[0], Geometry)])
        object.__setattr__(self, "_colour", [p for p in pairs if isinstance(p[0], Colour)])

    draws: int = dataclasses.field(init=False, repr=False, compare=False)
    _places: list[tuple[Augmentation, slice]] = dataclasses.field(init=False, repr=False, compare=False)
    _border: str | None = dataclasses.field(init=False, repr=False, compare=False)
    _crop: tuple[Crop, slice] | None = dataclasses.field(init=False, repr=False, compare=False)
    _geometry: list[tuple[Geometry, slice]] = dataclasses.field(init=False, repr=False, compare=False)
    _colour: list[tuple[Colour, slice]] = dataclasses.field(init=False, repr=False, compare=False)

    def __bool__(self) -> bool:
        return bool(self.steps)

    def __str__(self) -> str:
        return self.text

    @property
    def text(self) -> str:
        """The written form; `parse` takes it back."""
        return "+".join(_unparse(step) for step in self.steps) or "none"

    def describe(self) -> str:
        """One line for each augmentation: its written form and what it does."""
        lines = [f"{_unparse(step)}: {AUGMENTATIONS.entry(_name(step)).summary}" for step in self.steps]
        return "\n".join(lines) or "none"

    @property
    def crops(self) -> bool:
        """Whether a crop chooses the box of the image that is seen."""
        return self._crop is not None

    # ------------------------------------------------------------------ drawing

    def draw(self, seed: int, epoch: int, numbers: ArrayLike) -> Floats:
        """The numbers of these samples, (N, draws) in (0, 1): row i from (seed, epoch, numbers[i])."""
        u = philox.uniforms(seed, epoch, numbers, self.draws)
        places = [place for step, place in self._places if step.alternates]
        if places:
            first = philox.uniforms(seed, 0, numbers, self.draws)
            for place in places:
                u[:, place] = 1 - first[:, place] if epoch % 2 else first[:, place]
        return u

    def at_least(self, u: Floats, preprocess: Preprocess) -> int | None:
        """The shorter side below which an image would lose detail in this sample's view; None = all of it."""
        if self._crop is None or preprocess.size is None:
            return preprocess.at_least()
        crop, place = self._crop
        return max(1, int(np.ceil(max(preprocess.size) / crop.shrink(u[place]))))

    # ------------------------------------------------------------------ geometry

    def frames(self, u: Floats, height: int, width: int) -> Floats | None:
        """(N, 3, 3) maps from old to new coordinates (x, y) of views of this size; None without geometry."""
        whole: Floats | None = None
        for step, place in self._geometry:
            found = step.matrices(u[:, place], height, width)
            whole = found if whole is None else found @ whole
        return whole

    def matrix(
        self, u: Floats, height: int, width: int, preprocess: Preprocess, frame: Floats | None = None
    ) -> Floats:
        """The 3x3 map from an image of this height and width to its view, for one row `u`.

        frame: the sample's row of `frames` for views of this size, where it is known already.
        """
        size = preprocess.view_size(height, width)
        if self._crop is None:
            whole = preprocess.matrix(height, width)
        else:
            crop, place = self._crop
            whole = geometry.crop_resize(crop.box(u[place], height, width, size), size)
        if frame is None and self._geometry:
            frames = self.frames(u[None], *size)
            frame = None if frames is None else frames[0]
        return whole if frame is None else frame @ whole

    def border(self, preprocess: Preprocess) -> str:
        """What is seen beyond the image: "reflect", "edge" or "constant" (the mean colour; 255 in a mask)."""
        if self._border is None:
            return preprocess.border
        return "constant" if self._border == "zero" else self._border

    # ------------------------------------------------------------------ applying

    def view(
        self, image: NDArray[np.uint8], u: Floats, preprocess: Preprocess, frame: Floats | None = None
    ) -> NDArray[np.uint8]:
        """What the net sees of an image in training: (H, W, C) uint8 -> (h, w, C); `frame` as in `matrix`."""
        if self._crop is None and not self._geometry:
            seen = preprocess.view(image)
        else:
            height, width = image.shape[:2]
            seen = geometry.warp(
                image,
                self.matrix(u, height, width, preprocess, frame),
                preprocess.view_size(height, width),
                interpolation=preprocess.interpolation,
                border=self.border(preprocess),
                fill=preprocess.fill,
            )
        return self.change_colour(seen, u)

    def change_colour(self, image: NDArray[np.uint8], u: Floats) -> NDArray[np.uint8]:
        """The colour changes alone, in order."""
        for step, place in self._colour:
            image = step.change(image, u[place])
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
        if self._crop is None and not self._geometry:
            return preprocess.mask_view(mask)
        rows, columns = mask.shape
        height, width = image_size or (rows, columns)
        matrix = self.matrix(u, height, width, preprocess, frame)
        matrix = matrix @ np.diag([width / columns, height / rows, 1.0])
        size = preprocess.view_size(height, width)
        return geometry.warp(
            mask, matrix, size, interpolation="nearest", border=self.border(preprocess), fill=IGNORE
        )

    def boxes_view(
        self, boxes: ArrayLike, u: Floats, image_size: tuple[int, int], preprocess: Preprocess
    ) -> Floats:
        """The same for boxes (N, 4) x0, y0, x1, y1 in image pixels: what encloses each, cut to the view."""
        corners = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)[:, _CORNERS].reshape(-1, 2)
        moved = geometry.transform_points(corners, self.matrix(u, *image_size, preprocess)).reshape(-1, 4, 2)
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
        if self._same_places(height, width, preprocess) and (frames is None or _whole_pixels(frames)):
            fill = preprocess.fill if self.border(preprocess) == "constant" else None
            seen = (
                stack[rows] if frames is None else _gather(stack, rows, frames, self.border(preprocess), fill)
            )
            for i in range(len(seen) if self._colour else 0):
                seen[i] = self.change_colour(seen[i], u[i])
            return seen
        each = [None] * len(rows) if frames is None else frames
        return np.stack([self.view(stack[row], u[i], preprocess, each[i]) for i, row in enumerate(rows)])

    def batch_masks(
        self, stack: NDArray[Any], rows: NDArray[np.int64], u: Floats, preprocess: Preprocess
    ) -> NDArray[Any]:
        """The masks (N, H, W) of the same batch; raises and agrees as `batch` does."""
        height, width = stack.shape[1:3]
        frames = self.frames(u, *preprocess.view_size(height, width))
        whole = self._same_places(height, width, preprocess)
        if whole and frames is None:
            return stack[rows]
        if whole and frames is not None and _whole_pixels(frames):
            fill = (IGNORE,) if self.border(preprocess) == "constant" else None
            return _gather(stack[..., None], rows, frames, self.border(preprocess), fill)[..., 0]
        each = [None] * len(rows) if frames is None else frames
        size = (height, width)
        return np.stack(
            [self.mask_view(stack[row], u[i], preprocess, size, each[i]) for i, row in enumerate(rows)]
        )

    def _same_places(self, height: int, width: int, preprocess: Preprocess) -> bool:
        """Whether only the geometries move pixels: the view is the image itself, and there is no crop."""
        return self._crop is None and preprocess.same_pixels(height, width)


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
    plain = text.strip()
    if plain in ("", "none"):
        return NONE
    steps = []
    for part in re.split(r"\+(?![^()]*\))", plain):
        match = _STEP.fullmatch(part)
        if match is None:
            raise StriateError(
                f"augmentation {part.strip()!r}",
                allowed="name or name(value, key=value), joined by +",
                hint="or 'none'",
            )
        positional: list[Any] = []
        named: dict[str, Any] = {}
        for item in filter(None, (piece.strip() for piece in (match[2] or "").split(","))):
            key, equals, value = item.partition("=")
            if equals:
                named[key.strip()] = _value(value)
            elif named:
                raise StriateError(
                    f"{item!r} after a named setting in {part.strip()!r}",
                    hint="values without a name come first",
                )
            else:
                positional.append(_value(item))
        steps.append(build(match[1], positional, named))
    return Pipeline(tuple(steps))


def _value(text: str) -> Any:
    text = text.strip()
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _name(step: Augmentation) -> str:
    return next(entry.name for entry in AUGMENTATIONS if entry.value is type(step))


def _unparse(step: Augmentation) -> str:
    given = []
    for field in dataclasses.fields(step):
        value = getattr(step, field.name)
        if value != field.default:
            given.append(f"{field.name}={value}")
    return _name(step) + (f"({', '.join(given)})" if given else "")


def _whole_pixels(frames: Floats) -> bool:
    """Whether all of the maps only shift by whole pixels and mirror."""
    diagonal = np.abs(frames[:, [0, 1], [0, 1]])
    shifts = frames[:, :2, 2]
    return bool(
        (frames[:, 0, 1] == 0).all()
        and (frames[:, 1, 0] == 0).all()
        and (diagonal == 1).all()
        and (shifts == np.floor(shifts)).all()
    )


def _gather(
    stack: NDArray[Any], rows: NDArray[np.int64], frames: Floats, border: str, fill: tuple[int, ...] | None
) -> NDArray[Any]:
    """Whole-pixel maps of images stack[rows] as one gather of pixels: (N, H, W, C)."""
    _, height, width, channels = stack.shape
    y, outside_y = _sources(frames[:, 1, 1], frames[:, 1, 2], height, border)
    x, outside_x = _sources(frames[:, 0, 0], frames[:, 0, 2], width, border)
    index = (rows[:, None] * height + y)[:, :, None] * width + x[:, None, :]
    found: NDArray[Any] = stack.reshape(-1, channels).take(index, axis=0)
    if fill is not None:
        found[outside_y[:, :, None] | outside_x[:, None, :]] = fill
    return found


def _sources(
    sign: Floats, shift: Floats, count: int, border: str
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """For each new pixel along one axis the old one, (N, count), and whether that lies beyond the image."""
    # The centre of pixel i is i + 0.5: a mirror sends it to shift - i - 0.5, that is to pixel shift - 1 - i.
    step, start = sign.astype(np.int64)[:, None], (shift - (sign < 0)).astype(np.int64)[:, None]
    place = step * (np.arange(count) - start)
    outside = (place < 0) | (place >= count)
    if border == "reflect" and count > 1:
        period = 2 * (count - 1)
        place %= period
        place = np.minimum(place, period - place)
    return np.clip(place, 0, count - 1), outside
