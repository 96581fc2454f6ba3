"""GoogLeNet's 144 views of an image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from striate.evaluate.protocols import PROTOCOLS, Scale, View
from striate.evaluate.scaled import Crops, corners_and_centre, mirrored, side_of, window
from striate.images import geometry

if TYPE_CHECKING:
    from striate.data.preprocess import Preprocess

# The paper's four shorter sides for a net of 224 pixels.
SIDES, OWN = (256, 288, 320, 352), 224


@PROTOCOLS.register("googlenet-144", views="144")
@dataclass(frozen=True)
class GoogLeNet144(Crops):
    """GoogLeNet's: 4 scales, 3 squares, 6 windows of each, and their mirror images: 144 views.

    The shorter side is resized to 256, 288, 320 and 352 pixels for a net of 224 (other nets: in
    proportion); of each, the left, central and right square (top, central and bottom of upright images) is
    taken, and of each square its four corners, its centre, and the whole of it resized to the net's size.
    The softmax outputs are averaged. Szegedy et al., arXiv:1409.4842, section 7.
    """

    name: ClassVar[str] = "googlenet-144"
    takes_flip: ClassVar[bool] = False

    def usual(self, preprocess: Preprocess) -> tuple[Scale, ...]:
        """The paper's four scales."""
        return tuple(round(side_of(preprocess) * side / OWN) for side in SIDES)

    def windows(self, image: View, size: tuple[int, int], interpolation: str) -> list[View]:
        """Six windows of each of three squares, then their mirror images."""
        height, width = image.shape[:2]
        factor = min(height / size[0], width / size[1])
        square = (
            min(height, max(size[0], round(factor * size[0]))),
            min(width, max(size[1], round(factor * size[1]))),
        )
        places = np.linspace((0, 0), (height - square[0], width - square[1]), 3).round().astype(int)
        found: list[View] = []
        for y, x in places.tolist():
            part = window(image, y, x, square)
            found += [*corners_and_centre(part, size), geometry.resize(part, size, interpolation)]
        return mirrored(found)
