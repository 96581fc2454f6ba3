"""Decoded pictures and masks kept in memory: what an epoch has decoded, the next ones need not decode."""

from __future__ import annotations

import heapq
import threading
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from striate.core.machine import free_memory

Bytes = NDArray[np.uint8]
Sides = tuple[int, int]
"""Height and width of a picture at its full size, as shown."""
ONE_SIZE: Sides = (0, 0)
"""Of a picture that comes in its full size only, whatever that is."""
MASK = 0
"""In the place of a reduction: the mask of a picture."""
LEAST_SHARE = 0.1
"""Sizes that fewer views than this ask for are not kept: filling memory takes time, too."""
OVERHEAD = 512
"""Bytes that a picture takes beside its pixels."""
LOOK_EVERY = 64 << 20
"""Bytes after whose growth the free memory is looked at again."""


class Entry(NamedTuple):
    """One picture that is kept: its share for each byte, its share, its bytes, and which it is."""

    worth: float
    share: float
    taken: int
    row: int
    n: int


class Kept:
    """Whole pictures by row and reduction, `most` bytes of them, from a pool of so many rows.

    A random order asks for every picture once an epoch, so none is the likelier to be asked for: to make
    room for its like is to miss another. What counts is the share of its views that a picture in this size
    serves. Those with the smallest share for their bytes make room for one that serves more than they do
    together, or as much in fewer bytes; so what is kept comes to rest. spare: bytes of the machine's memory
    that are left free, whoever takes the rest.
    """

    def __init__(self, most: int, rows: int = 0, spare: int = 0) -> None:
        self.most, self.spare = most, spare
        self.bytes = 0
        self._pictures: dict[tuple[int, int], Bytes] = {}
        self._least: list[Entry] = []  # a heap
        self._sides = np.full((rows if most > 0 else 0, 2), -1, dtype=np.int32)
        self._looked = 0
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[Kept], tuple[int, int, int]]:
        # Another process has its own.
        return Kept, (self.most, len(self._sides), self.spare)

    def __len__(self) -> int:
        return len(self._pictures)

    def sides(self, row: int) -> Sides | None:
        """What `add` was told of this picture; None before."""
        if self.most <= 0 or self._sides[row, 0] < 0:
            return None
        height, width = self._sides[row].tolist()
        return height, width

    def find(self, row: int, n: int) -> Bytes | None:
        """The whole picture at 1/n of its size, as it was decoded; None if it is not here.

        It is not to be written to.
        """
        return self._pictures.get((row, n))

    def wants(self, pixels: int, share: float) -> bool:
        """Whether a picture of so many bytes, which serves this share of its views, would be kept."""
        with self._lock:
            leaving = self._making_room(pixels + OVERHEAD, share)
            for entry in leaving or ():
                heapq.heappush(self._least, entry)
            return leaving is not None

    def add(self, row: int, n: int, sides: Sides, pixels: Bytes, share: float) -> None:
        """Keep a whole picture at 1/n of its size, if there is room or it serves more than what leaves."""
        if self.most <= 0:
            return
        with self._lock:
            self._sides[row] = sides
            self._put(row, n, pixels, share)

    def mask(self, row: int) -> NDArray[np.int32] | None:
        """The mask (H, W) of this picture, the caller's own; None if it is not here."""
        found = self._pictures.get((row, MASK))
        return None if found is None else found.astype(np.int32)

    def add_mask(self, row: int, mask: NDArray[np.int32]) -> None:
        """Keep a mask (H, W) as `add` keeps pictures: it serves all views. Values above 255 are not kept."""
        if self.most <= 0 or not mask.size or mask.min() < 0 or mask.max() > 255:
            return
        with self._lock:
            self._put(row, MASK, mask.astype(np.uint8), 1.0)

    def _put(self, row: int, n: int, pixels: Bytes, share: float) -> None:
        taken = pixels.nbytes + OVERHEAD
        leaving = None if (row, n) in self._pictures else self._making_room(taken, share)
        if leaving is None:
            return
        for entry in leaving:
            self.bytes -= self._pictures.pop((entry.row, entry.n)).nbytes + OVERHEAD
        self.bytes += taken
        self._pictures[row, n] = pixels
        heapq.heappush(self._least, Entry(share / taken, share, taken, row, n))
        self._look()

    def _making_room(self, taken: int, share: float) -> list[Entry] | None:
        """Those that leave for one of so many bytes, off the heap; None, with all on it, if it stays out."""
        if share < LEAST_SHARE or taken > self.most:
            return None
        leaving: list[Entry] = []
        free, lost = self.most - self.bytes, 0.0
        while free < taken and lost < share:
            leaving.append(heapq.heappop(self._least))
            free, lost = free + leaving[-1].taken, lost + leaving[-1].share
        fewer = lost == share and sum(entry.taken for entry in leaving) > taken
        if free >= taken and (lost < share or fewer):
            return leaving
        for entry in leaving:
            heapq.heappush(self._least, entry)
        return None

    def _look(self) -> None:
        """Stop growing where others have taken the memory meanwhile."""
        if self.spare and self.bytes - self._looked >= LOOK_EVERY:
            self._looked = self.bytes
            free = free_memory()
            if free is not None and free < self.spare:
                self.most = self.bytes
