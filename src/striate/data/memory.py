"""Data sets that fit in memory: one uint8 array, augmented a batch at a time."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Generator, Iterator

import numpy as np
from numpy.typing import NDArray

from striate.core.errors import BadImage, StriateError
from striate.core.machine import processors
from striate.data.augment import NONE, Pipeline
from striate.data.preprocess import Preprocess
from striate.data.reader import LEFT_OUT, Bytes, Integers, Reader
from striate.data.samples import Split
from striate.data.stream import Gathered, Span, Workers, ordered

LIMIT = 1 << 30
"""Bytes of views up to which a data set is kept in memory."""
SMALL = 64
SAMPLE = 64
BLOCK = 64


class Memory:
    """All views of a split in one array; batches are gathered from it in a thread ahead of the consumer."""

    def __init__(self, reader: Reader, workers: int, prefetch: int) -> None:
        self.reader, self.prefetch = reader, prefetch
        self.workers = Workers(min(workers, 1))
        # The stack holds views, so the view of each is itself; one that is padded moves with its bars.
        resize = "pad" if reader.preprocess.resize == "pad" else "crop"
        self.preprocess = dataclasses.replace(reader.preprocess, crop=1.0, resize=resize)
        self._lock = threading.Lock()
        self._stack: Bytes | None = None
        self._rows: Integers | None = None
        self._masks: NDArray[np.int32] | None = None

    def close(self) -> None:
        """Nothing to end: the thread lives only while batches are asked for."""

    def batches(self, spans: Iterator[Span]) -> Generator[Gathered, None, None]:
        """One batch for each span, in order; the arrays are the caller's own.

        Raises:
            StriateError: no image can be read, or views of different sizes without a size to bring them to.
        """
        self.load()
        with self.workers.calling() as call:
            yield from ordered(lambda span: call(self._collect, span), spans, self.prefetch + 1)

    def load(self) -> None:
        """Read all images, in threads; the unreadable are listed in the reader's `bad`."""
        with self._lock:
            if self._stack is not None:
                return
            split = self.reader.split
            whole = split.pool.pictures
            preprocess = self.reader.preprocess
            if whole is not None and same(whole, preprocess) and not self.reader.has_masks:
                self._rows = np.asarray(split.rows, dtype=np.int64)
                self._stack = whole
            else:
                self._rows = np.arange(len(split))
                self._stack, self._masks = self._read_all()

    def _read_all(self) -> tuple[Bytes, NDArray[np.int32] | None]:
        reader = self.reader
        plain = Reader(reader.split, reader.preprocess, NONE, reader.seed, train=False)
        stack: Bytes | None = None
        masks: NDArray[np.int32] | None = None
        count, none = len(reader.split), np.empty((BLOCK, 0))
        with Workers(processors()).calling() as call:
            parts = ordered(
                lambda low: call(plain.read, 0, low, none[: min(BLOCK, count - low)]),
                iter(range(0, count, BLOCK)),
                2 * processors(),
            )
            for low, part in zip(range(0, count, BLOCK), parts, strict=True):
                for i, (view, mask) in enumerate(zip(part.views, part.masks, strict=True), start=low):
                    if view is None:
                        continue
                    if stack is None:
                        stack = np.zeros((count, *view.shape), dtype=np.uint8)
                        masks = None if mask is None else np.zeros((count, *mask.shape), dtype=np.int32)
                    if stack.shape[1:] != view.shape:
                        sizes = " and ".join(f"{h} x {w}" for h, w in (stack.shape[1:3], view.shape[:2]))
                        raise StriateError(f"images of {sizes} cannot share a batch", hint="give a size")
                    stack[i] = view
                    if masks is not None and mask is not None:
                        masks[i] = mask
        reader.bad.update(plain.bad)
        if stack is None:
            raise StriateError(
                f"none of the {count} images of split {reader.split.name!r} can be read",
                hint="see 'striate data check'",
            )
        return stack, masks

    def _collect(self, span: Span) -> Gathered:
        reader, pipeline = self.reader, self.reader.pipeline
        stack, rows = self._stack, self._rows
        assert stack is not None
        assert rows is not None
        numbers = reader.order(span.epoch)[span.begin : span.end]
        u = reader.draw(span.epoch, numbers, span.begin)
        if reader.bad:
            found = [
                next(reader.candidates(span.epoch, place), LEFT_OUT) for place in range(span.begin, span.end)
            ]
            numbers = np.array(found, dtype=np.int64)
            kept = numbers != LEFT_OUT
            numbers, u = numbers[kept], u[kept]
        views = pipeline.batch(stack, rows[numbers], u, self.preprocess)
        masks = None
        if self._masks is not None:
            masks = pipeline.batch_masks(self._masks, numbers, u, self.preprocess)
        return Gathered(views, masks, numbers)


def same(pictures: NDArray[np.uint8], preprocess: Preprocess) -> bool:
    """Whether pictures (N, H, W, C) are already what the net sees of them."""
    _, height, width, channels = pictures.shape
    return channels == preprocess.channels and preprocess.same_pixels(height, width)


def fits_memory(split: Split, preprocess: Preprocess, pipeline: Pipeline) -> bool:
    """Whether a split is kept in memory: at most 1 GiB of views and masks, and nothing lost by keeping those.

    That is so when the images are their own views, as 64 of them tell; or when the views are small (at
    most 64 pixels) and no crop is drawn from the full image.
    """
    sizes = set()
    for index in np.unique(np.linspace(0, len(split) - 1, SAMPLE).astype(int)) if len(split) else ():
        try:
            _, height, width = split.header_channels_size(int(index))
        except BadImage:
            continue
        sizes.add((height, width))
        if preprocess.size is None and len(sizes) > 1:
            return False
    if not sizes:
        return False
    size = preprocess.size or next(iter(sizes))
    mask = 4 if split.targets is None and split.masks is not None else 0
    if len(split) * size[0] * size[1] * (preprocess.channels + mask) > LIMIT:
        return False
    if all(preprocess.same_pixels(*found) for found in sizes):
        return True
    return max(size) <= SMALL and not pipeline.crops
