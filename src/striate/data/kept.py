"""Decoded pictures kept in memory: what an epoch has decoded, the next ones need not decode again."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from striate.images.jpeg import Enough, Look, fraction

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Picture:
    """A whole picture at 1/n of its size; sides: its height and width whole, None: n can be no other."""

    pixels: Bytes
    n: int
    sides: tuple[int, int] | None


class Kept:
    """Whole pictures by row, `most` bytes of them; what is full takes no more, and gives none away.

    A random order asks for every picture once an epoch: to make room for one is to miss another. Of each
    picture there is one size, the smallest that was asked for: of a photograph from which crops are drawn
    that is the one that most crops need, and the cheapest to keep.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.bytes = 0
        self._pictures: dict[int, Picture] = {}
        self._full = most <= 0
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[Kept], tuple[int]]:
        # Another process has its own.
        return Kept, (self.most,)

    def __len__(self) -> int:
        return len(self._pictures)

    def clear(self) -> None:
        """Give all up."""
        with self._lock:
            self._pictures.clear()
            self.bytes, self._full = 0, self.most <= 0

    def find(self, row: int, at_least: int | Enough | None) -> Bytes | None:
        """The whole picture in the size in which `decode` would give it; None where it is not there.

        It is not to be written to.
        """
        picture = self._pictures.get(row)
        if picture is None:
            return None
        same = picture.sides is None or fraction(picture.sides, at_least) == picture.n
        return picture.pixels if same else None

    def wants(self, row: int, at_least: int | Enough | None) -> bool:
        """Whether a picture that is decoded now is better decoded whole, to be kept."""
        picture = self._pictures.get(row)
        if picture is None:
            return not self._full
        return picture.sides is not None and fraction(picture.sides, at_least) > picture.n

    def add(self, row: int, pixels: Bytes, look: Look) -> None:
        """Keep a whole picture as `decode` gave it with this look, if there is room."""
        with self._lock:
            before = self._pictures.get(row)
            if before is not None and before.n >= look.n:
                return
            grown = self.bytes + pixels.nbytes - (0 if before is None else before.pixels.nbytes)
            if grown > self.most:
                self._full = True
                return
            self._full = self._full and before is None
            self.bytes = grown
            self._pictures[row] = Picture(pixels, look.n, look.sides)
