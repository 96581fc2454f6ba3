"""Augmentations that move pixels: crops at jittered scale, shifts, turns, stretches, the bend of a lens."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from striate.core.errors import StriateError
from striate.core.settings import setting
from striate.data.augmentations import (
    AUGMENTATIONS,
    BORDER,
    BORDERS,
    Affine,
    Bend,
    Crop,
    Floats,
    Geometry,
    identities,
)

WHOLE = 64


@AUGMENTATIONS.register("scale-jitter", kind="crop")
@dataclass(frozen=True)
class ScaleJitter(Crop):
    """A random crop of the view's size from the image at a shorter side S drawn from [low, high].

    S: uniform over the whole numbers (pixels), without `high` always `low`; place: uniform; the aspect is
    kept. Simonyan & Zisserman, arXiv:1409.1556, section 3.1: S = 256 or 384, or [256, 512], for views of
    224. The crop is taken straight from the image, in one resampling; there its sides are rounded to whole
    pixels where both have 64 or more.
    """

    draws: ClassVar[int] = 3
    in_full: ClassVar[bool] = True
    low: int = setting(256, help="least shorter side of the image in pixels", minimum=1, maximum=16384)
    high: int | None = setting(None, help="largest shorter side; none: `low`", minimum=1, maximum=16384)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.high is not None and self.high < self.low:
            raise StriateError(f"shorter sides of {self.low} to {self.high}", allowed="the smaller one first")

    def side(self, u: Floats) -> int:
        """The image's shorter side in pixels, for numbers u (draws,)."""
        high = self.low if self.high is None else self.high
        return self.low + min(high - self.low, int(float(u[0]) * (high - self.low + 1)))

    def box(
        self, u: Floats, height: int, width: int, size: tuple[int, int]
    ) -> tuple[float, float, float, float]:
        side, shorter = self.side(u), min(height, width)
        unit = shorter / side
        rows, columns = size[0] * unit, size[1] * unit
        if rows > height + 0.5 or columns > width + 0.5:
            raise StriateError(
                f"a crop of {size[0]} x {size[1]} from an image of {height} x {width} at shorter side {side}",
                allowed=f"sides of at least {max(size)}",
            )
        rows, columns = min(rows, float(height)), min(columns, float(width))
        if min(rows, columns) < WHOLE:
            x0, y0 = float(u[1]) * (width - columns), float(u[2]) * (height - rows)
            return x0, y0, x0 + columns, y0 + rows
        # A slice of the image: no pixel outside of it is read.
        rows, columns = float(round(rows)), float(round(columns))
        x0 = float(int(float(u[1]) * (width - columns + 1)))
        y0 = float(int(float(u[2]) * (height - rows + 1)))
        return x0, y0, x0 + columns, y0 + rows

    def enough(self, u: Floats, height: int, width: int, size: tuple[int, int]) -> bool:
        return min(height, width) >= self.side(u)


@AUGMENTATIONS.register("vertical-flip", kind="geometry")
@dataclass(frozen=True)
class VerticalFlip(Geometry):
    """Mirror up and down with probability p: for images without an up, such as those from above."""

    draws: ClassVar[int] = 1
    p: float = setting(0.5, help="probability", minimum=0.0, maximum=1.0)

    def matrices(self, u: Floats, height: int, width: int) -> Floats:
        found = identities(len(u))
        mirrored = u[:, 0] < self.p
        found[mirrored, 1, 1], found[mirrored, 1, 2] = -1, height
        return found


@AUGMENTATIONS.register("translate", kind="geometry")
@dataclass(frozen=True)
class Translate(Geometry):
    """Shift along each axis by up to a fraction of that side, uniform, in whole pixels.

    Krizhevsky et al. (AlexNet, NIPS 2012), section 4.1, shift 256-pixel images by up to 32.
    """

    draws: ClassVar[int] = 2
    fallback: ClassVar[str | None] = "reflect"
    fraction: float = setting(0.1, help="largest shift as a fraction of the side", minimum=0.0, maximum=1.0)
    border: str | None = setting(None, help=BORDER, choices=BORDERS)

    def matrices(self, u: Floats, height: int, width: int) -> Floats:
        found = identities(len(u))
        limits = np.floor(self.fraction * np.array([width, height]) + 1e-9)
        found[:, :2, 2] = np.floor(u * (2 * limits + 1)) - limits
        return found


@AUGMENTATIONS.register("rotate", kind="geometry")
@dataclass(frozen=True)
class Rotate(Geometry):
    """Turn about the centre of the view by an angle uniform in [-degrees, degrees].

    Wu et al., "Deep Image", arXiv:1501.02876, section 3.2.
    """

    draws: ClassVar[int] = 1
    fallback: ClassVar[str | None] = "reflect"
    degrees: float = setting(10.0, help="largest angle, either way", minimum=0.0, maximum=180.0)
    border: str | None = setting(None, help=BORDER, choices=BORDERS)

    def matrices(self, u: Floats, height: int, width: int) -> Floats:
        return _affine(Affine(rotate=self.degrees), 0, u[:, 0], height, width)


@AUGMENTATIONS.register("stretch", kind="geometry")
@dataclass(frozen=True)
class Stretch(Geometry):
    """Stretch or squeeze each axis about the centre.

    Factors: log-uniform in [1 / (1 + factor), 1 + factor], one for each axis.

    Wu et al., "Deep Image", arXiv:1501.02876, section 3.2: horizontal and vertical stretching.
    """

    draws: ClassVar[int] = 2
    fallback: ClassVar[str | None] = "reflect"
    factor: float = setting(0.2, help="largest magnification less 1", minimum=0.0, maximum=10.0)
    border: str | None = setting(None, help=BORDER, choices=BORDERS)

    def matrices(self, u: Floats, height: int, width: int) -> Floats:
        found = identities(len(u))
        factors = np.exp((2 * u - 1) * math.log1p(self.factor))
        centre = np.array([width / 2, height / 2])
        found[:, [0, 1], [0, 1]] = factors
        found[:, :2, 2] = centre - factors * centre
        return found


@AUGMENTATIONS.register("shear", kind="geometry")
@dataclass(frozen=True)
class Shear(Geometry):
    """Slant along each axis about the centre, by angles uniform in [-degrees, degrees].

    x grows by tan(a) times the height over the centre, then y by tan(b) times the new x. Simard et al.,
    "Best practices for convolutional neural networks", ICDAR 2003, section 2.
    """

    draws: ClassVar[int] = 2
    fallback: ClassVar[str | None] = "reflect"
    degrees: float = setting(10.0, help="largest angle, either way", minimum=0.0, maximum=80.0)
    border: str | None = setting(None, help=BORDER, choices=BORDERS)

    def matrices(self, u: Floats, height: int, width: int) -> Floats:
        along = _affine(Affine(shear=self.degrees), 4, u[:, 0], height, width)
        across = identities(len(u))
        slope = np.tan(np.deg2rad((2 * u[:, 1] - 1) * self.degrees))
        across[:, 1, 0], across[:, 1, 2] = slope, -slope * width / 2
        return across @ along


@AUGMENTATIONS.register("lens", kind="bend")
@dataclass(frozen=True)
class Lens(Bend):
    """Radial distortion about the centre: what is seen at radius r comes from radius r (1 + k r^2).

    k: uniform in [-strength, strength], barrels for k > 0, pincushions for k < 0; r = 1 at the corner of the
    view. Beyond it the curve goes on as its tangent. D. C. Brown, "Decentering distortion of lenses", 1966
    (its radial term); as augmentation: Wu et al., "Deep Image", arXiv:1501.02876, section 3.2.
    """

    draws: ClassVar[int] = 1
    fallback: ClassVar[str | None] = "reflect"
    strength: float = setting(0.2, help="largest k, either way", minimum=0.0, maximum=0.3)
    border: str | None = setting(None, help=BORDER, choices=BORDERS)

    def sources(self, points: Floats, u: Floats, height: int, width: int) -> Floats:
        k, centre, unit = self._drawn(u, height, width)
        away = (points - centre) / unit
        radius = np.hypot(away[..., 0], away[..., 1])
        tangent = (1 + k) + (1 + 3 * k) * (radius - 1)
        curve = np.where(radius > 1, tangent / np.maximum(radius, 1), 1 + k * radius**2)
        return np.asarray(centre + away * curve[..., None] * unit)

    def places(self, points: Floats, u: Floats, height: int, width: int) -> Floats:
        k, centre, unit = self._drawn(u, height, width)
        away = (points - centre) / unit
        wanted = np.hypot(away[..., 0], away[..., 1])
        radius = np.where(wanted > 1 + k, 1 + (wanted - 1 - k) / (1 + 3 * k), np.minimum(wanted, 1))
        inside = wanted <= 1 + k
        # Newton's steps on r + k r^3 come from one side: the curve bends one way.
        for _ in range(40):
            step = (radius + k * radius**3 - wanted) / (1 + 3 * k * radius**2)
            radius = np.where(inside, radius - step, radius)
        factor = np.divide(radius, wanted, out=np.ones_like(wanted), where=wanted > 0)
        return np.asarray(centre + away * factor[..., None] * unit)

    def _drawn(self, u: Floats, height: int, width: int) -> tuple[float, Floats, float]:
        """k, the centre, and the distance that counts as 1: half a diagonal."""
        k = (2 * float(u[0]) - 1) * self.strength
        return k, np.array([width / 2, height / 2]), math.hypot(width, height) / 2


def _affine(step: Affine, place: int, u: Floats, height: int, width: int) -> Floats:
    """The maps of `step` with `u` as its number `place`, all others in the middle."""
    numbers = np.full((len(u), step.draws), 0.5)
    numbers[:, place] = u
    return step.matrices(numbers, height, width)
