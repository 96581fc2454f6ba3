"""Policies: augmentations that draw which operations to apply, and how strongly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from striate.core.settings import setting
from striate.data.augmentations import AUGMENTATIONS, BORDERS, Affine, Colour, Floats, Geometry, identities
from striate.images import colour, tone

Bytes = NDArray[np.uint8]
OPERATIONS = (
    "identity",
    "auto-contrast",
    "equalize",
    "rotate",
    "solarize",
    "colour",
    "posterize",
    "contrast",
    "brightness",
    "sharpness",
    "shear-x",
    "shear-y",
    "translate-x",
    "translate-y",
)
"""The list of RandAugment, arXiv:1909.13719, figure 2; TrivialAugment's is the same."""
BORDER = "what is seen beyond the image; by default as other steps say, else zero: the mean colour"


@dataclass(frozen=True)
class Ranges:
    """What the operations do at strength 1; at strength s they do s times as much.

    rotate: degrees; shear: pixels a pixel; translate: pixels, or with `relative` a fraction of the side;
    enhance: colour, contrast, brightness and sharpness become 1 +- this; bits: how many posterize takes.
    """

    rotate: float
    shear: float
    translate: float
    relative: bool
    enhance: float
    bits: int


class Policy(Geometry, Colour):
    """Operations one after another; all of their geometry is part of the pipeline's one warp, before colours.

    Strength s does: rotate by +-s * rotate about the centre; shear along x by x + slope * y from the view's
    upper left corner, the same along y; translate; colour, contrast, brightness, sharpness by the factor
    1 +- s * enhance; posterize to 8 - round(s * bits) bits; solarize from 256 * (1 - s) on; identity,
    auto-contrast and equalize know no strength. Signs are even.
    """

    fallback: ClassVar[str | None] = "zero"
    ranges: ClassVar[Ranges]

    def drawn(self, u: Floats) -> tuple[NDArray[np.int64], Floats]:
        """Numbers of the operations (N, n) and their signed strengths (N, n), for numbers u (N, draws)."""
        raise NotImplementedError

    def matrices(self, u: Floats, height: int, width: int) -> Floats:
        whole = identities(len(u))
        operations, strengths = self.drawn(u)
        for operation, strength in zip(operations.T, strengths.T, strict=True):
            whole = self._maps(operation, strength, height, width) @ whole
        return whole

    def _maps(self, operation: NDArray[np.int64], strength: Floats, height: int, width: int) -> Floats:
        found, ranges = identities(len(operation)), self.ranges
        across, down = (ranges.translate * (side if ranges.relative else 1) for side in (width, height))
        for name, row, column, unit in (
            ("shear-x", 0, 1, ranges.shear),
            ("shear-y", 1, 0, ranges.shear),
            ("translate-x", 0, 2, across),
            ("translate-y", 1, 2, down),
        ):
            chosen = operation == OPERATIONS.index(name)
            found[chosen, row, column] = strength[chosen] * unit
        turned = operation == OPERATIONS.index("rotate")
        numbers = np.full((int(turned.sum()), Affine.draws), 0.5)
        numbers[:, 0] = (strength[turned] + 1) / 2
        found[turned] = Affine(rotate=ranges.rotate).matrices(numbers, height, width)
        return found

    def change(self, image: Bytes, u: Floats, fill: tuple[int, ...]) -> Bytes:
        operations, strengths = self.drawn(u[None])
        for number, strength in zip(operations[0].tolist(), strengths[0].tolist(), strict=True):
            image = self._toned(image, OPERATIONS[number], strength)
        return image

    def _toned(self, image: Bytes, name: str, strength: float) -> Bytes:
        factor, size = 1 + strength * self.ranges.enhance, abs(strength)
        if name == "auto-contrast":
            return tone.autocontrast(image)
        if name == "equalize":
            return tone.equalize(image)
        if name == "solarize":
            return tone.solarize(image, 256 * (1 - size))
        if name == "posterize":
            return tone.posterize(image, 8 - round(size * self.ranges.bits))
        if name == "sharpness":
            return tone.sharpness(image, factor)
        if name == "brightness":
            return colour.jitter(image, brightness=factor)
        if name == "contrast":
            return colour.jitter(image, contrast=factor)
        if name == "colour":
            return colour.jitter(image, saturation=factor)
        return image


def choice(u: Floats, count: int) -> NDArray[np.int64]:
    """Even numbers of 0..count-1 from even numbers in (0, 1)."""
    return np.minimum((u * count).astype(np.int64), count - 1)


@AUGMENTATIONS.register("rand-augment", kind="policy")
@dataclass(frozen=True)
class RandAugment(Policy):
    """`n` operations of 14, drawn evenly and with replacement, each at strength m / 10.

    Cubuk et al., arXiv:1909.13719, section 3; ranges of AutoAugment, arXiv:1805.09501, table 6: rotate 30
    degrees, shear 0.3, translate 150 / 331 of the side, factors 0.1 to 1.9, posterize 4 bits, solarize 0 to
    256. Every strength counts from "nothing" (m = 0), brightness and its like up or down.
    """

    n: int = setting(2, help="operations an image", minimum=1, maximum=8)
    m: float = setting(9.0, help="strength, 10 being the full range", minimum=0.0, maximum=10.0)
    border: str | None = setting(None, help=BORDER, choices=BORDERS)

    ranges: ClassVar[Ranges] = Ranges(30.0, 0.3, 150 / 331, True, 0.9, 4)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "draws", 2 * self.n)

    def drawn(self, u: Floats) -> tuple[NDArray[np.int64], Floats]:
        sign = np.where(u[:, 1::2] < 0.5, -1.0, 1.0)
        return choice(u[:, ::2], len(OPERATIONS)), sign * self.m / 10


@AUGMENTATIONS.register("trivial-augment", kind="policy")
@dataclass(frozen=True)
class TrivialAugment(Policy):
    """One operation of 14, drawn evenly, at a strength drawn evenly from 0, 1/30, ..., 1.

    Mueller & Hutter, arXiv:2103.10158, section 3, with the wide ranges: rotate 135 degrees, shear 0.99,
    translate 32 pixels, factors 0.01 to 1.99, posterize 6 bits, solarize 0 to 256.
    """

    draws: ClassVar[int] = 3
    border: str | None = setting(None, help=BORDER, choices=BORDERS)

    ranges: ClassVar[Ranges] = Ranges(135.0, 0.99, 32.0, False, 0.99, 6)

    def drawn(self, u: Floats) -> tuple[NDArray[np.int64], Floats]:
        sign = np.where(u[:, 1:2] < 0.5, -1.0, 1.0)
        return choice(u[:, :1], len(OPERATIONS)), sign * choice(u[:, 2:3], 31) / 30
