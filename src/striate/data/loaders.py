"""Loaders: a split as batches for a net, the same bytes whatever the number of workers."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from striate.core.errors import StriateError, unknown
from striate.core.machine import check_threads, processors
from striate.data.augment import Pipeline, parse
from striate.data.augment_mix import Mixing
from striate.data.buffers import Buffers
from striate.data.kept import Kept
from striate.data.memory import Memory, fits_memory
from striate.data.preprocess import Preprocess
from striate.data.reader import Reader
from striate.data.samples import Split
from striate.data.stream import Span, Stream

MOST_GIB = 1_000_000
MODES = ("auto", "memory", "stream", "processes")


@dataclass(frozen=True)
class Batch:
    """What a step of training or testing needs.

    images: (N, C, h, w) float32, normalised, channels_last; targets: (N,) int64 classes, (N, K) float32
    zeros and ones, or (N, h, w) int64 masks with 255 = ignored; where samples are mixed, (N, K) float32
    shares of the classes instead of class numbers; index: (N,) sample numbers within the split.
    """

    images: Tensor
    targets: Tensor
    index: NDArray[np.int64]


class Loader:
    """A split in batches.

    Training: a random order a pass, augmented; every draw depends on (seed, epoch, sample number) alone.
    Unreadable images are replaced by the next readable one in the order. Testing: the data's own order,
    nothing dropped, unreadable images left out. Both list them in `bad`.

    batch: images for each process; world and rank: of `batch * world` neighbours in the order, each
    process takes its part. drop_last leaves out a last batch that is not full (None: in training).
    mode: "memory" (all views in one array), "stream" (decoded as needed, in threads), "processes" (the
    same in processes), or "auto": memory when `fits_memory`. workers: threads or processes, None = one for
    each processor; 0 = none, all work is done in the caller. prefetch: batches made ahead. classes: how many
    there are, where samples of class numbers are mixed. cache: GiB of memory for decoded pictures, which
    later passes over files need not decode again; loader processes share them out.

    Raises:
        StriateError: an unknown mode or augmentation, numbers out of range, or targets that cannot be mixed.
    """

    def __init__(
        self,
        split: Split,
        preprocess: Preprocess,
        *,
        batch: int,
        seed: int = 0,
        train: bool = False,
        augment: str | Pipeline = "none",
        workers: int | None = None,
        mode: str = "auto",
        rank: int = 0,
        world: int = 1,
        drop_last: bool | None = None,
        prefetch: int = 4,
        classes: int | None = None,
        cache: float = 0.0,
    ) -> None:
        if mode not in MODES:
            raise unknown("loader mode", mode, MODES)
        for name, value, low in (
            ("batch", batch, 1),
            ("prefetch", prefetch, 1),
        ):
            if not isinstance(value, int) or value < low:
                raise StriateError(f"{name} is {value!r}", allowed=f"a whole number of at least {low}")
        check_threads(workers, "workers")
        if not isinstance(cache, (int, float)) or not 0 <= cache <= MOST_GIB:
            raise StriateError(f"cache is {cache!r}", allowed=f"GiB of memory, 0 to {MOST_GIB:,}")
        if not 0 <= rank < world:
            raise StriateError(f"rank is {rank} of {world}", allowed=f"0 to {world - 1}")
        self.split, self.preprocess, self.batch, self.seed, self.train = split, preprocess, batch, seed, train
        self.rank, self.world = rank, world
        self.pipeline = parse(augment).fitted(split, preprocess)
        if not train and (self.pipeline.mixers or self.pipeline.times > 1):
            raise StriateError(f"{self.pipeline.text!r} in testing", hint="mix and repeat in training only")
        self._mixing = Mixing(self.pipeline, split, seed, classes) if self.pipeline.mixers else None
        self.drop_last = train if drop_last is None else drop_last
        self.waited = 0.0
        self._buffers = Buffers()
        # OpenCV's own threads would compete with the loader's and with the net's.
        cv2.setNumThreads(0)
        if mode == "auto":
            mode = "memory" if fits_memory(split, preprocess, self.pipeline) else "stream"
        self.mode = mode
        count = processors() if workers is None else workers
        self._readers = max(1, count) if mode == "processes" else 1
        self.reader = Reader(split, preprocess, self.pipeline, seed, train)
        self.keep(int(cache * (1 << 30)))
        self._source: Memory | Stream = (
            Memory(self.reader, count, prefetch)
            if mode == "memory"
            else Stream(self.reader, count, prefetch, processes=mode == "processes")
        )

    def __len__(self) -> int:
        """Batches an epoch: the same on every process."""
        whole = self.batch * self.world
        full = len(self.split) // whole
        # A set smaller than one batch is better one small batch than none.
        return full if self.drop_last and full else -(-len(self.split) // whole)

    @property
    def bad(self) -> list[tuple[str, str]]:
        """(name, reason) of the images that could not be read so far, each once, in the order of the data."""
        return [(self.split.name_of(number), reason) for number, reason in sorted(self.reader.bad.items())]

    @property
    def room(self) -> int:
        """Bytes of memory for decoded pictures, in all loader processes."""
        return self.reader.kept.most * self._readers

    def keep(self, room: int, spare: int = 0) -> None:
        """Keep up to so many bytes of decoded pictures, from the first batch on; spare: as of `Kept`."""
        # In the one array each is decoded once, anyway; so is what is in memory as pixels.
        used = self.mode != "memory" and self.split.pool.pictures is None
        self.reader.kept = Kept(room // self._readers if used else 0, len(self.split.pool.names), spare)

    def close(self) -> None:
        """End loader processes, and give up the pictures kept; threads end with each `batches`."""
        self._source.close()
        self.keep(0)

    def batches(self, epoch: int, start: int = 0) -> Generator[Batch, None, None]:
        """The batches of an epoch from number `start` on: the same bytes as those of the whole epoch.

        Leaving the loop early, an error or Ctrl-C ends all threads once the generator is closed.

        Raises:
            StriateError: `start` is out of range, no image can be read, or sizes differ within a batch.
        """
        if not 0 <= start <= len(self):
            raise StriateError(f"start is {start}", allowed=f"0 to {len(self)}")
        return self._batches(epoch, start)

    def _batches(self, epoch: int, start: int) -> Generator[Batch, None, None]:
        began = time.perf_counter()
        source = self._source.batches(self._spans(epoch, start))
        try:
            for span, found in zip(self._spans(epoch, start), source, strict=False):
                if not len(found.numbers):
                    continue
                images = found.images
                if images is None:
                    assert found.views is not None
                    # A copy at the same time: the loader's own array is used again.
                    images = self.preprocess.normalise(found.views, self._buffers.take(found.views.size))
                if found.masks is not None:
                    targets = torch.from_numpy(found.masks.astype(np.int64))
                else:
                    targets = self._targets(found.numbers)
                if self._mixing is not None:
                    images, targets = self._mixing(images, targets, epoch, span.begin)
                self.waited += time.perf_counter() - began
                yield Batch(images, targets, found.numbers)
                began = time.perf_counter()
        finally:
            source.close()

    def _spans(self, epoch: int, start: int) -> Iterator[Span]:
        whole, count = self.batch * self.world, len(self.split)
        for number in range(start, len(self)):
            begin = number * whole
            size = min(whole, count - begin)
            # A last batch that is not full is shared out evenly.
            parts = [begin + size * rank // self.world for rank in (self.rank, self.rank + 1)]
            if parts[0] < parts[1]:
                yield Span(epoch, *parts)

    def _targets(self, numbers: NDArray[np.int64]) -> Tensor:
        targets = self.split.targets
        if targets is None:
            return torch.full((len(numbers),), -1, dtype=torch.int64)
        chosen = torch.from_numpy(np.ascontiguousarray(targets[numbers]))
        return chosen.to(torch.int64 if chosen.ndim == 1 else torch.float32)
