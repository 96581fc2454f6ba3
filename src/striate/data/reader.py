"""Reading one sample: decode, augment, view; and what takes the place of an image that cannot be read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial

import numpy as np
from numpy.typing import NDArray

from striate.core.errors import BadImage, StriateError
from striate.data.augment import Pipeline
from striate.data.crops import Place
from striate.data.kept import ONE_SIZE, Kept, Sides
from striate.data.preprocess import Preprocess
from striate.data.samples import Split
from striate.images.jpeg import Enough, Look, fraction
from striate.images.tiles import Box

Bytes = NDArray[np.uint8]
Integers = NDArray[np.int64]
LEFT_OUT = -1
ASKED = 64
"""Views by which it is told in which sizes pictures are asked for."""
MOST_SHARES = 4096


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
        self._shares: dict[Sides, Counter[int]] = {}
        # An image is decoded whole once, which finds any damage; then little more than is looked at.
        self._sound = np.zeros(len(split), dtype=np.bool_)
        # Height and width of what was decoded whole, which its mask must have.
        self._sides = np.zeros((len(split) if self.has_masks else 0, 2), dtype=np.int32)
        self._order: tuple[int, Integers] = (-1, np.arange(len(split)))

    def __getstate__(self) -> dict[str, object]:
        # What views ask for are functions, which cannot be sent; they are found again.
        return {name: value for name, value in vars(self).items() if name != "_asked"}

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
        image, place = self._picture(number, u, frame)
        view = pipeline.view(image, u, preprocess, frame, out, place)
        if not self.has_masks:
            return view, None
        shape = image.shape[:2] if place is None else place[2:]
        return view, pipeline.mask_view(self._mask(number), u, preprocess, shape, frame)

    def _mask(self, number: int) -> NDArray[np.int32]:
        """The mask of a sample, (H, W) class indices."""
        row = int(self.split.rows[number])
        mask = self.kept.mask(row)
        if mask is None:
            height, width = self._sides[number].tolist()
            mask = self.split.mask(number, (height, width) if height else None)
            self.kept.add_mask(row, mask)
        return mask

    def _picture(
        self, number: int, u: NDArray[np.float64], frame: NDArray[np.float64] | None
    ) -> tuple[Bytes, Place | None]:
        """The picture that a sample is seen in, and its place in the whole one where it is a part of that."""
        preprocess, pipeline, kept = self.preprocess, self.pipeline, self.kept
        at_least, row = pipeline.at_least(u, preprocess), int(self.split.rows[number])
        sides, wanted = kept.sides(row), False
        if sides is not None:
            n = 1 if sides == ONE_SIZE else fraction(sides, at_least)
            found = kept.find(row, n)
            if found is not None:
                return found, None
            pixels = -(-sides[0] // n) * -(-sides[1] // n) * preprocess.channels
            wanted = kept.wants(pixels, self._share(sides, n))
        look, size = Look(), preprocess.size
        sliced = pipeline.crops and preprocess.interpolation == "bilinear" and not wanted
        sliced = sliced and bool(self._sound[number])
        if sliced and size is not None and pipeline.mirrored(u, size, frame) is not None:
            look.box = partial(self._seen, u, size)
        image = self.split.image(number, at_least=at_least, channels=preprocess.channels, look=look)
        self._sound[number] = not look.doubtful
        if look.size is not None:
            return image, (look.x, look.y, *look.size)
        if self.has_masks:
            self._sides[number] = look.sides or image.shape[:2]
        if kept.most > 0:
            sides = look.sides or ONE_SIZE
            kept.add(row, look.n, sides, image, self._share(sides, look.n))
        return image, None

    def _share(self, sides: Sides, n: int) -> float:
        """The share of the views of a picture of this height and width that ask for it at 1/n of its size."""
        if sides == ONE_SIZE:
            return 1.0
        found = self._shares.get(sides)
        if found is None:
            found = Counter(fraction(sides, least) for least in self._asked)
            if len(self._shares) >= MOST_SHARES:
                self._shares.clear()
            self._shares[sides] = found
        return found[n] / len(self._asked)

    @cached_property
    def _asked(self) -> list[int | Enough | None]:
        """What some views ask of their pictures."""
        u = self.draw(0, np.arange(ASKED))
        return [self.pipeline.at_least(one, self.preprocess) for one in u]

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
