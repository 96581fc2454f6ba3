"""What protocols at several scales share: the whole image at a size, windows of it, and pooling."""

from __future__ import annotations

import dataclasses
import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from torch import Tensor

from striate.core.errors import StriateError
from striate.core.settings import setting
from striate.evaluate.protocols import Protocol, Scale, View, in_pixels
from striate.images import geometry

if TYPE_CHECKING:
    from striate.data.preprocess import Preprocess
    from striate.model import Model
    from striate.tasks.task import Task

POOLINGS = ("mean", "max")
VALUES = ("posteriors", "logits")
# AlexNet and VGG cut 224 pixels out of 256: what a net without a crop of its own is tested at.
ROOM = 256 / 224


@dataclass(frozen=True)
class Scaled(Protocol):
    """A protocol whose views are parts of the whole image, resized to one or several scales.

    At a scale of Q pixels the whole image is resized, its aspect kept, so that it covers the net's own view
    enlarged Q / (shorter side of the net's view) times: for square views, its shorter side becomes Q. Models
    that squash or pad do so here too.
    """

    takes_flip: ClassVar[bool] = True
    takes_scales: ClassVar[bool] = True
    takes_maps: ClassVar[bool] = False

    def usual(self, preprocess: Preprocess) -> tuple[Scale, ...]:
        """The scales where none are written: that of the centre crop, which leaves room for windows.

        Where the model's own crop is the whole image, 256 / 224 of the net's side.
        """
        side = side_of(preprocess)
        return (round(side / preprocess.crop) if preprocess.crop < 1 else round(side * ROOM),)

    def sides(self, preprocess: Preprocess) -> tuple[int, ...]:
        """The shorter sides in pixels.

        Raises:
            StriateError: the net takes images of any size and has none of its own.
        """
        side_of(preprocess)
        found = (in_pixels(scale, preprocess) for scale in self.scales or self.usual(preprocess))
        return tuple(side for side in found if side is not None)

    def check(self, model: Model) -> None:
        """Refuse a model that this protocol cannot test.

        Raises:
            StriateError: as of `Protocol.check`; a window larger than the resized image, or no size.
        """
        super().check(model)
        least = side_of(model.preprocess)
        for side in self.sides(model.preprocess):
            if side < least:
                raise StriateError(
                    f"protocol {str(self)!r}: a crop of {least} pixels from an image of {side}",
                    allowed=f"sizes of at least @{least} (@x1) for this model",
                )

    def at_least(self, preprocess: Preprocess) -> int | None:
        """The shorter side, in pixels, that decoding must keep; None = all of it."""
        if preprocess.size is None or preprocess.resize == "none":
            return None
        factor = max(self.sides(preprocess)) / min(preprocess.size)
        return math.ceil(factor * max(preprocess.size))

    def views(self, image: View, preprocess: Preprocess) -> list[View]:
        """The windows at every scale, one scale after the other."""
        if preprocess.size is None:
            return []
        found: list[View] = []
        for side in self.sides(preprocess):
            found += self.windows(at_side(image, preprocess, side), preprocess.size, preprocess.interpolation)
        return found

    @abstractmethod
    def windows(self, image: View, size: tuple[int, int], interpolation: str) -> list[View]:
        """The views of the resized image (H, W, C) uint8, for a net of `size` (height, width)."""


@dataclass(frozen=True)
class Crops(Scaled):
    """A protocol of views of the net's own size, pooled with equal weights."""

    _: KW_ONLY
    by: str = setting("mean", help="the mean over the views, or the maximum", choices=POOLINGS)
    of: str = setting("posteriors", help="what is pooled: after or before softmax", choices=VALUES)

    @property
    def parts(self) -> tuple[Protocol, ...]:
        """One protocol for each scale that is written, where means of posteriors are taken."""
        plain = self.by == "mean" and self.of == "posteriors"
        return by_scale(self) if plain else (self,)

    def pool(self, outputs: Tensor, task: Task) -> Tensor:
        """Outputs (V, N, K) of the views to those of the images (N, K)."""
        return pooled(outputs, task, self.by, self.of)


def pooled(outputs: Tensor, task: Task, by: str, of: str) -> Tensor:
    """Outputs (V, N, K) to (N, K): mean or maximum over V of posteriors or of the outputs themselves.

    A maximum of posteriors is scaled to sum to 1 again. One view passes unchanged.
    """
    if len(outputs) == 1:
        return outputs[0]
    values = outputs
    if of == "posteriors":
        values = task.posterior(outputs.flatten(0, 1)).reshape(outputs.shape)
    values = values.mean(0) if by == "mean" else values.amax(0)
    return task.outputs_of(values) if of == "posteriors" else values


def by_scale(protocol: Protocol) -> tuple[Protocol, ...]:
    """The protocol at each of its written scales alone."""
    if len(protocol.scales) < 2:
        return (protocol,)
    return tuple(dataclasses.replace(protocol, scales=(scale,)) for scale in protocol.scales)


def side_of(preprocess: Preprocess) -> int:
    """The shorter side, in pixels, of the net's own view.

    Raises:
        StriateError: the net takes images as they are.
    """
    if preprocess.size is None:
        raise StriateError(
            "the model takes images of any size and has none of its own", allowed="protocol center"
        )
    return min(preprocess.size)


def at_side(image: View, preprocess: Preprocess, side: int) -> View:
    """The whole image (H, W, C) uint8, resized so that it covers the net's view enlarged to `side`."""
    assert preprocess.size is not None  # checked when the protocol met the model
    height, width = image.shape[:2]
    factor = side / min(preprocess.size)
    rows, columns = (max(length, round(factor * length)) for length in preprocess.size)
    if preprocess.resize == "pad":
        return dataclasses.replace(preprocess, size=(rows, columns)).view(image)
    if preprocess.resize != "squash":
        unit = min(height / rows, width / columns)
        rows, columns = max(rows, round(height / unit)), max(columns, round(width / unit))
    if (rows, columns) == (height, width):
        return image
    whole = geometry.crop_resize((0, 0, width, height), (rows, columns))
    return geometry.warp(image, whole, (rows, columns), interpolation=preprocess.interpolation, border="edge")


def window(image: View, y: int, x: int, size: tuple[int, int]) -> View:
    """The part of an image from row y and column x on, of `size` (height, width)."""
    return np.ascontiguousarray(image[y : y + size[0], x : x + size[1]])


def centre(image: View, size: tuple[int, int]) -> View:
    """The middle of an image, `size` (height, width) of it at most."""
    height, width = image.shape[:2]
    rows, columns = min(size[0], height), min(size[1], width)
    return window(image, (height - rows) // 2, (width - columns) // 2, (rows, columns))


def corners_and_centre(image: View, size: tuple[int, int]) -> list[View]:
    """Five windows: top left, top right, bottom left, bottom right, centre."""
    bottom, right = image.shape[0] - size[0], image.shape[1] - size[1]
    corners = [window(image, y, x, size) for y in (0, bottom) for x in (0, right)]
    return [*corners, centre(image, size)]


def mirrored(views: Sequence[View]) -> list[View]:
    """The views, then their mirror images in the same order."""
    return [*views, *(np.ascontiguousarray(view[:, ::-1]) for view in views)]
