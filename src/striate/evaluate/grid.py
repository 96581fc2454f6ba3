"""A regular grid of windows at one or several scales: VGG's multi-crop evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from striate.core.settings import setting
from striate.evaluate.protocols import PROTOCOLS, View
from striate.evaluate.scaled import Crops, window


@PROTOCOLS.register("grid", views="count x count a scale, twice with +flip")
@dataclass(frozen=True)
class Grid(Crops):
    """A regular grid of count x count windows over the whole image at every scale.

    The first and last windows touch the image's borders; places are rounded to whole pixels. With 5 x 5
    windows, flips and three scales these are VGG's 150 views: arXiv:1409.1556, section 3.2.
    """

    name: ClassVar[str] = "grid"

    count: int = setting(5, help="windows along each side", minimum=1, maximum=64)

    def windows(self, image: View, size: tuple[int, int], interpolation: str) -> list[View]:
        """The windows row by row; a single one is the centre."""
        rows, columns = (self._starts(image.shape[axis] - size[axis]) for axis in (0, 1))
        return [window(image, y, x, size) for y in rows for x in columns]

    def _starts(self, room: int) -> list[int]:
        if self.count == 1:
            return [room // 2]
        return [int(start) for start in np.linspace(0, room, self.count).round()]
