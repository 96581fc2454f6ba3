"""Where the bytes of a data set's images lie: pools of numbered files, arrays in memory, and their unions.

A pool numbers its images from 0 and holds flat arrays (one block of text, offsets), no object per image: a
worker process is sent them quickly.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, overload, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from striate.core.errors import BadImage
from striate.images.decode import DEFAULT_LIMITS

Integers = NDArray[np.int64]
IGNORE = 255
"""The class index of mask pixels that count neither in the loss nor in the scores."""


class Texts(Sequence[str]):
    """A frozen list of texts in one block of memory."""

    def __init__(self, items: Iterable[str]) -> None:
        # "surrogateescape": file names need not be UTF-8, and must come back as they were.
        pieces = [item.encode("utf-8", "surrogateescape") for item in items]
        self._block = b"".join(pieces)
        self._ends = np.cumsum(np.fromiter((len(p) for p in pieces), np.int64, len(pieces)))

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Texts: ...
    def __getitem__(self, index: int | slice) -> str | Texts:
        if isinstance(index, slice):
            return Texts(self[i] for i in range(*index.indices(len(self))))
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        begin = self._ends[index - 1] if index else 0
        return self._block[begin : self._ends[index]].decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        return (self[i] for i in range(len(self)))

    def take(self, rows: Iterable[int]) -> Texts:
        """The texts at `rows`, in that order."""
        return Texts(self[int(row)] for row in rows)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(_same, self, other))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Texts({list(self[:3])}{'...' if len(self) > 3 else ''}, {len(self)})"


def _same(a: object, b: object) -> bool:
    return a == b


@runtime_checkable
class Pool(Protocol):
    """Numbered images: their names, and their bytes (`read`) or all of them as one array (`pictures`)."""

    names: Texts

    @property
    def pictures(self) -> NDArray[Any] | None:
        """(N, H, W, C) uint8 images or (N, H, W) whole-number masks when they are in memory, else None."""

    def read(self, row: int) -> bytes:
        """The encoded bytes of image `row`. Raises BadImage: they cannot be read, or are over the limit."""


class FilePool:
    """Files under one folder; `names` are their paths relative to it, written with `/`."""

    pictures = None

    def __init__(
        self, root: str | os.PathLike[str], paths: Iterable[str], names: Iterable[str] | None = None
    ):
        self.root = str(Path(root).absolute())
        self.paths = Texts(paths)
        self.names = self.paths if names is None else Texts(names)

    def read(self, row: int) -> bytes:
        """The bytes of file `row`; raises BadImage."""
        return read_file(self.place(row))

    def place(self, row: int) -> str:
        """Where file `row` lies."""
        path = self.paths[row]
        return path if path.startswith("/") else f"{self.root}/{path}"


def read_file(path: str, limit: int = DEFAULT_LIMITS.max_bytes) -> bytes:
    """The bytes of a regular file of at most `limit` bytes.

    Raises:
        BadImage: missing, not a regular file (a device or a pipe could block for ever), or too large.
    """
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        try:
            facts = os.fstat(handle)
            if not stat.S_ISREG(facts.st_mode):
                raise BadImage(f"{path!r} is not a regular file")
            if facts.st_size > limit:
                raise BadImage(f"{path!r} holds {facts.st_size:,} bytes", allowed=f"at most {limit:,}")
            # One call for nearly every file; a network's file may come in pieces.
            data = os.read(handle, facts.st_size)
            while len(data) < facts.st_size and (more := os.read(handle, facts.st_size - len(data))):
                data += more
            return data
        finally:
            os.close(handle)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise BadImage(f"cannot read {path!r} ({reason})") from error


class ArrayPool:
    """Images (N, H, W, C) uint8 or masks (N, H, W) whole numbers, in memory or mapped from a file."""

    def __init__(self, pictures: NDArray[Any], names: Iterable[str] | None = None) -> None:
        self._pictures = pictures
        width = len(str(max(len(pictures) - 1, 0)))
        self.names = Texts(f"{i:0{width}d}" for i in range(len(pictures))) if names is None else Texts(names)

    @property
    def pictures(self) -> NDArray[Any]:
        """All of them."""
        return self._pictures

    def read(self, row: int) -> bytes:
        """The raw bytes of one array: what the duplicate search hashes."""
        return np.ascontiguousarray(self._pictures[row]).tobytes()


class JoinedPool:
    """Several pools one after the other."""

    def __init__(self, pools: Sequence[Pool], names: Iterable[str]) -> None:
        self.pools = tuple(pools)
        self.names = Texts(names)
        self._starts = np.cumsum([0, *(len(pool.names) for pool in pools)])
        arrays = [pool.pictures for pool in pools]
        shapes = {array.shape[1:] for array in arrays if array is not None}
        whole = [array for array in arrays if array is not None]
        self._pictures = np.concatenate(whole) if len(whole) == len(arrays) and len(shapes) == 1 else None

    @property
    def pictures(self) -> NDArray[Any] | None:
        """All images when every pool has its own in memory and of one shape."""
        return self._pictures

    def read(self, row: int) -> bytes:
        """The bytes of image `row`; raises BadImage."""
        part = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self.pools[part].read(row - int(self._starts[part]))
