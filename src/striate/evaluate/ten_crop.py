"""Ten views: the corners and the centre of the image, and their mirror images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from striate.evaluate.protocols import PROTOCOLS, View
from striate.evaluate.scaled import Crops, centre, corners_and_centre, mirrored


@PROTOCOLS.register("ten-crop", views="10 a scale")
@dataclass(frozen=True)
class TenCrop(Crops):
    """The four corners and the centre of the whole resized image, each also mirrored: 10 views a scale.

    The corners are those of the image itself; `alexnet` takes those of its central square.
    """

    name: ClassVar[str] = "ten-crop"
    takes_flip: ClassVar[bool] = False

    def windows(self, image: View, size: tuple[int, int], interpolation: str) -> list[View]:
        """Five windows, then their mirror images."""
        return mirrored(corners_and_centre(image, size))


@PROTOCOLS.register("alexnet", views="10 a scale")
@dataclass(frozen=True)
class AlexNet(Crops):
    """AlexNet's: corners and centre of the image's central square, each also mirrored: 10 views a scale.

    The shorter side is resized to 256 for a net of 224, the central 256 x 256 square is cut out, and the
    softmax outputs of the ten views are averaged. Krizhevsky et al., NIPS 2012, sections 2 and 4.1.
    """

    name: ClassVar[str] = "alexnet"
    takes_flip: ClassVar[bool] = False

    def windows(self, image: View, size: tuple[int, int], interpolation: str) -> list[View]:
        """Five windows of the central square, then their mirror images."""
        factor = min(image.shape[0] / size[0], image.shape[1] / size[1])
        square = (max(size[0], round(factor * size[0])), max(size[1], round(factor * size[1])))
        return mirrored(corners_and_centre(centre(image, square), size))
