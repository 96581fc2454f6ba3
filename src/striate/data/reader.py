"""Reading one sample: decode, augment, view; and what takes the place of an image that cannot be read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from striate.core.errors import BadImage, StriateError
from striate.data.augment import Pipeline
from striate.data.kept import Kept
from striate.data.preprocess import Preprocess
from striate.data.samples import Split
from striate.images.jpeg import Look
from striate.images.tiles import Box

Bytes = NDArray[np.uint8]
Integers = NDArray[np.int64]
LEFT_OUT = -1


@dataclass
class Part:
    """A few neighbouring samples of a batch, as a worker hands them over.

    numbers: the sample numbers really read, LEFT_OUT where an image is left out; views and masks: the
    arrays, unless the worker wrote them in place; bad: number -> reason.
    """

    numbers: Integers
    views: list[Bytes | None] = field(default_factory=list)
    masks: list[NDArray[np.int32] | None] = field(default_factory=list)
    bad: dict[int, str] = field(default_factory=dict)


class Reader:
    """Reads the samples of one split; no thread, lock or open file: it can be sent to a process.

    In training an unreadable image is replaced by the next readable one in the epoch's order; in testing
    it is left out. Neither depends on which worker met it, or when. The pictures in `kept` change no result.
    """

    def __init__(
        self, split: Split, preprocess: Preprocess, pipeline: Pipeline, seed: int, train: bool
    ) -> None:
        self.split, self.preprocess, self.pipeline = split, preprocess, pipeline
        self.seed, self.train = seed, train
        self.has_masks = split.targets is None and split.masks is not None
        self.bad: dict[int, str] = {}
        self.kept = Kept(0)
        # An image is decoded whole once, which finds any damage; then little more than is looked at.
        self._sound = np.zeros(len(split), dtype=np.bool_)
        self._order: tuple[int, Integers] = (-1, np.arange(len(split)))

    def order(self, epoch: int) -> Integers:
        """The sample numbers in the order of this epoch: random in training, the data's own in testing."""
        if not self.train:
            return self._order[1]
        if self._order[0] != epoch:
            self._order = (epoch, self.pipeline.order(self.seed, epoch, len(self.split)))
        return self._order[1]

    def draw(self, epoch: int, numbers: Integers, first: int = 0) -> NDArray[np.float64]:
        """The random numbers (N, draws) of samples of this epoch; first: the place of the first in it."""
        return self.pipeline.draw(self.seed, epoch, numbers, first)

    def candidates(self, epoch: int, position: int) -> Iterator[int]:
        """The sample at this place of the epoch, and in training those that could stand in for it.

        Raises:
            StriateError: in training, when all are used up.
        """
        order = self.order(epoch)
        for step in range(len(order) if self.train else 1):
            number = int(order[(position + step) % len(order)])
            if number not in self.bad:
                yield number
        if self.train:
            raise StriateError(
                f"none of the {len(order)} images of split {self.split.name!r} can be read",
                hint="see 'striate data check'",
            )

    def sample(
        self,
        number: int,
        u: NDArray[np.float64],
        frame: NDArray[np.float64] | None = None,
        out: Bytes | None = None,
    ) -> tuple[Bytes, NDArray[np.int32] | None]:
        """View and mask (None without masks) of one sample; raises BadImage.

        out: memory of the view, which may be used for it.
        """
        preprocess, pipeline = self.preprocess, self.pipeline
        size = preprocess.size
        at_least = pipeline.at_least(u, preprocess)
        row = int(self.split.rows[number])
        image, place = self.kept.find(row, at_least), None
        if image is None:
            look = Look()
            whole = not self._sound[number] or self.kept.wants(row, at_least)
            sliced = pipeline.crops and preprocess.interpolation == "bilinear" and not whole
            if sliced and size is not None and pipeline.mirrored(u, size, frame) is not None:
                look.box = partial(self._seen, u, size)
            image = self.split.image(number, at_least=at_least, channels=preprocess.channels, look=look)
            self._sound[number] = True
            if look.size is not None:
                place = (look.x, look.y, *look.size)
            else:
                self.kept.add(row, image, look)
        view = pipeline.view(image, u, preprocess, frame, out, place)
        if not self.has_masks:
            return view, None
        shape = image.shape[:2] if place is None else place[2:]
        mask = pipeline.mask_view(self.split.mask(number), u, preprocess, shape, frame)
        return view, mask

    def _seen(self, u: NDArray[np.float64], size: tuple[int, int], height: int, width: int) -> Box:
        """The box of an image of this height and width that is looked at."""
        return self.pipeline.slice_of(u, height, width, size) or (0, 0, width, height)

    def read(
        self,
        epoch: int,
        position: int,
        u: NDArray[np.float64],
        views: Bytes | None = None,
        masks: NDArray[np.int32] | None = None,
    ) -> Part:
        """The samples from `position` on, one for each row of `u`; put into `views` and `masks` if given."""
        size = self.preprocess.size
        # For all of them at once: a small matrix costs numpy as much as many.
        frames = None if size is None else self.pipeline.frames(u, *size)
        part = Part(np.full(len(u), LEFT_OUT, dtype=np.int64))
        for i in range(len(u)):
            view = mask = None
            out = None if views is None else views[i]
            for number in self.candidates(epoch, position + i):
                try:
                    view, mask = self.sample(
                        number,
                        u[i],
                        None if frames is None else frames[i],
                        out,
                    )
                except BadImage as error:
                    part.bad[number] = self.bad[number] = str(error)
                    continue
                part.numbers[i] = number
                break
            if out is None:
                part.views.append(view)
                part.masks.append(mask)
            elif view is not None:
                if view is not out:
                    out[...] = view
                if masks is not None and mask is not None:
                    masks[i] = mask
        return part
