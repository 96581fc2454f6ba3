"""Augmentations: each says how many random numbers a sample needs and what they do to it.

A crop chooses which box of the image fills the view, in place of the preprocessing's own box. A geometry is
an affine map of the view onto itself, a bend any other. A colour changes values. A policy draws which
geometries and colours to apply. All crops, geometries and bends of a pipeline become one warp. A mixer makes
one sample of two, images and targets; repeats show an image several times a batch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from striate.core import settings
from striate.core.errors import StriateError
from striate.core.registry import Registry
from striate.core.settings import setting
from striate.images import colour

if TYPE_CHECKING:
    from striate.data.preprocess import Preprocess
    from striate.data.samples import Split

Floats = NDArray[np.float64]
BORDERS = ("reflect", "zero", "edge")
BORDER = "what is seen beyond the image; by default as other steps say, else reflect"


@dataclass(frozen=True)
class Augmentation:
    """Base of all augmentations: a frozen dataclass of settings.

    draws: how many random numbers in (0, 1) one sample takes. alternates: a sample's numbers are drawn for
    the first epoch; after it, they are 1 minus those of the epoch before. in_full: the written form names
    the settings that have their default, too.
    """

    draws: ClassVar[int] = 0
    alternates: ClassVar[bool] = False
    in_full: ClassVar[bool] = False

    def __post_init__(self) -> None:
        settings.check(self)

    def fitted(self, split: Split, preprocess: Preprocess) -> Augmentation:
        """The same with what it takes from the training images, where it takes anything."""
        return self


class Crop(Augmentation):
    """Chooses the box of the image that fills the view."""

    def box(
        self, u: Floats, height: int, width: int, size: tuple[int, int]
    ) -> tuple[float, float, float, float]:
        """The box (x0, y0, x1, y1) in pixels of an image of this height and width, for numbers u (draws,)."""
        raise NotImplementedError

    def enough(self, u: Floats, height: int, width: int, size: tuple[int, int]) -> bool:
        """Whether an image reduced to this height and width has a crop that loses no detail in the view."""
        raise NotImplementedError


class Moving(Augmentation):
    """Moves pixels; `border` says what is seen beyond the image, None: as another step, else `fallback`."""

    border: str | None = None
    fallback: ClassVar[str | None] = None


class Geometry(Moving):
    """An affine map of the view onto itself."""

    def matrices(self, u: Floats, height: int, width: int) -> Floats:
        """(N, 3, 3) maps from old to new view coordinates (x, y), for numbers u (N, draws)."""
        raise NotImplementedError


class Bend(Moving):
    """A map of the view onto itself that is not affine; points are (..., 2) coordinates (x, y)."""

    def sources(self, points: Floats, u: Floats, height: int, width: int) -> Floats:
        """The old points that are seen at these new ones, for numbers u (draws,)."""
        raise NotImplementedError

    def places(self, points: Floats, u: Floats, height: int, width: int) -> Floats:
        """The new places of these old points: the inverse of `sources`."""
        raise NotImplementedError


class Colour(Augmentation):
    """Changes values, never places."""

    def change(self, image: NDArray[np.uint8], u: Floats, fill: tuple[int, ...]) -> NDArray[np.uint8]:
        """The changed image (h, w, C) uint8, for numbers u (draws,); fill: the mean colour; `image` stays."""
        raise NotImplementedError


class Mixer(Augmentation):
    """Makes one sample of two of a batch, images and targets, with probability `p`.

    mixing: how many random numbers that takes; they are no part of the view's.
    """

    mixing: ClassVar[int] = 0
    p: float

    def weights(self, u: Floats, height: int, width: int) -> tuple[Floats, NDArray[np.int64] | None]:
        """How much of itself each sample keeps, (N,), and the box that the other one fills, (N, 4) or None.

        u: (N, mixing) numbers. Without boxes the images are averaged with these weights. Boxes: x0, y0, x1,
        y1 in pixels.
        """
        raise NotImplementedError


class Repeats(Augmentation):
    """Shows each image of a batch `times` times."""

    times: int


AUGMENTATIONS: Registry[type[Augmentation]] = Registry("augmentation", "striate.data")


@AUGMENTATIONS.register("random-resized-crop", kind="crop")
@dataclass(frozen=True)
class RandomResizedCrop(Crop):
    """A random box of the image, of random area and aspect, stretched over the view.

    Area: uniform in [scale, 1] of the image; aspect (width / height): log-uniform in [1 / ratio, ratio];
    place: uniform. A box larger than the image is shrunk until it fits, its aspect kept. Szegedy et al.,
    "Going deeper with convolutions", arXiv:1409.4842, section 6.
    """

    draws: ClassVar[int] = 4
    scale: float = setting(
        0.08, help="least area of the box, as a fraction of the image", minimum=0.001, maximum=1.0
    )
    ratio: float = setting(4 / 3, help="largest aspect of the box, wide or tall", minimum=1.0, maximum=10.0)

    def _shape(self, u: Floats) -> tuple[float, float]:
        area = self.scale + (1 - self.scale) * float(u[0])
        return math.sqrt(area), math.exp((float(u[1]) - 0.5) * math.log(self.ratio))

    def box(
        self, u: Floats, height: int, width: int, size: tuple[int, int]
    ) -> tuple[float, float, float, float]:
        side, root = self._shape(u)
        side *= math.sqrt(height * width)
        box_width, box_height = side * root, side / root
        fit = min(1.0, width / box_width, height / box_height)
        # Whole pixels: the box is then a slice, and no pixel outside of it is read.
        columns, rows = max(1, round(box_width * fit)), max(1, round(box_height * fit))
        x0 = min(int(float(u[2]) * (width - columns + 1)), width - columns)
        y0 = min(int(float(u[3]) * (height - rows + 1)), height - rows)
        return float(x0), float(y0), float(x0 + columns), float(y0 + rows)

    def enough(self, u: Floats, height: int, width: int, size: tuple[int, int]) -> bool:
        if height < size[0] or width < size[1]:
            return False
        x0, y0, x1, y1 = self.box(u, height, width, size)
        return y1 - y0 >= size[0] and x1 - x0 >= size[1]


@AUGMENTATIONS.register("pad-crop", kind="geometry")
@dataclass(frozen=True)
class PadCrop(Geometry):
    """Shift by a whole number of pixels, uniform in [-pixels, pixels] along each axis.

    The same as padding by `pixels` and cropping back: Lee et al., arXiv:1409.5185, section 4, and He et al.,
    arXiv:1512.03385, section 4.2 (border "zero").
    """

    draws: ClassVar[int] = 2
    pixels: int = setting(4, help="largest shift in pixels", minimum=0, maximum=4096)
    fallback: ClassVar[str | None] = "reflect"
    border: str | None = setting(None, help=BORDER, choices=BORDERS)

    def matrices(self, u: Floats, height: int, width: int) -> Floats:
        found = identities(len(u))
        found[:, :2, 2] = np.floor(u * (2 * self.pixels + 1)) - self.pixels
        return found


@AUGMENTATIONS.register("flip", kind="geometry")
@dataclass(frozen=True)
class Flip(Geometry):
    """Mirror left and right with probability p."""

    draws: ClassVar[int] = 1
    p: float = setting(0.5, help="probability", minimum=0.0, maximum=1.0)

    def matrices(self, u: Floats, height: int, width: int) -> Floats:
        found = identities(len(u))
        mirrored = u[:, 0] < self.p
        found[mirrored, 0, 0], found[mirrored, 0, 2] = -1, width
        return found


@AUGMENTATIONS.register("alternating-flip", kind="geometry")
@dataclass(frozen=True)
class AlternatingFlip(Geometry):
    """Mirror left and right in every other epoch, a random half of the images in the first.

    Two epochs show each image both ways, where random flips show half of them the same way twice. Jordan
    2024, arXiv:2404.00498, section 3.6.
    """

    draws: ClassVar[int] = 1
    alternates: ClassVar[bool] = True

    def matrices(self, u: Floats, height: int, width: int) -> Floats:
        return Flip().matrices(u, height, width)


@AUGMENTATIONS.register("affine", kind="geometry")
@dataclass(frozen=True)
class Affine(Geometry):
    """Rotate, translate, scale and shear about the centre of the view.

    Angle and shear: uniform within the degrees given, either way; shift: uniform within `translate` of
    each side;
    magnification: log-uniform in [1 / (1 + scale), 1 + scale].
    """

    draws: ClassVar[int] = 5
    rotate: float = setting(0.0, help="largest rotation in degrees, either way", minimum=0.0, maximum=180.0)
    translate: float = setting(0.0, help="largest shift as a fraction of the side", minimum=0.0, maximum=1.0)
    scale: float = setting(0.0, help="largest magnification less 1", minimum=0.0, maximum=10.0)
    shear: float = setting(0.0, help="largest shear in degrees, either way", minimum=0.0, maximum=80.0)
    fallback: ClassVar[str | None] = "reflect"
    border: str | None = setting(None, help=BORDER, choices=BORDERS)

    def matrices(self, u: Floats, height: int, width: int) -> Floats:
        spread = 2 * u - 1
        angle, shear = np.deg2rad(spread[:, 0] * self.rotate), np.tan(np.deg2rad(spread[:, 4] * self.shear))
        size = np.exp(spread[:, 3] * math.log1p(self.scale))
        cos, sin = np.cos(angle) * size, np.sin(angle) * size
        found = identities(len(u))
        # Shear, then turn (counter-clockwise as seen) and enlarge, all about the centre; then shift.
        found[:, 0, 0], found[:, 0, 1] = cos, cos * shear + sin
        found[:, 1, 0], found[:, 1, 1] = -sin, cos - sin * shear
        centre = np.array([width / 2, height / 2])
        shift = spread[:, 1:3] * self.translate * [width, height]
        found[:, :2, 2] = centre + shift - found[:, :2, :2] @ centre
        return found


@AUGMENTATIONS.register("colour", kind="colour")
@dataclass(frozen=True)
class ColourJitter(Colour):
    """Random brightness, contrast and saturation (factors uniform in 1 +- strength) and hue (turns, +- hue).

    `brightness`, `contrast` and `saturation` take the place of `strength` for one of the three.
    """

    draws: ClassVar[int] = 4
    strength: float = setting(0.2, help="largest change of the three factors", minimum=0.0, maximum=1.0)
    hue: float = setting(0.0, help="largest turn of the colour circle, either way", minimum=0.0, maximum=0.5)
    brightness: float | None = setting(None, help="largest change of brightness", minimum=0.0, maximum=1.0)
    contrast: float | None = setting(None, help="largest change of contrast", minimum=0.0, maximum=1.0)
    saturation: float | None = setting(None, help="largest change of saturation", minimum=0.0, maximum=1.0)

    def change(self, image: NDArray[np.uint8], u: Floats, fill: tuple[int, ...]) -> NDArray[np.uint8]:
        spread = (2 * u - 1).tolist()
        limits = [
            self.strength if x is None else x for x in (self.brightness, self.contrast, self.saturation)
        ]
        b, c, s = (1 + x * limit for x, limit in zip(spread, limits, strict=False))
        return colour.jitter(image, brightness=b, contrast=c, saturation=s, hue=spread[3] * self.hue)


def build(name: str, positional: list[Any], named: Mapping[str, Any]) -> Augmentation:
    """One augmentation by name; values without a name are its settings in order.

    Raises:
        StriateError: an unknown name or setting (near matches given), too many values, or one not allowed.
    """
    kind = AUGMENTATIONS.get(name)
    fields = [field.name for field in dataclasses.fields(kind)]
    if len(positional) > len(fields):
        raise StriateError(
            f"{name} takes {len(fields)} settings, not {len(positional)}", allowed=fields or "none"
        )
    values = dict(zip(fields, positional, strict=False))
    twice = [key for key in named if key.replace("-", "_") in values]
    if twice:
        raise StriateError(f"{name}: {twice[0]!r} is given twice")
    try:
        return settings.from_dict(kind, {**values, **named})
    except StriateError as error:
        raise StriateError(
            f"augmentation {name}: {error.given}", allowed=error.allowed, hint=error.hint
        ) from error


def identities(count: int) -> Floats:
    """(count, 3, 3) maps that leave every point in place."""
    return np.tile(np.eye(3), (count, 1, 1))
