"""A part of a JPEG as a JPEG of its own: coded units between restart markers, cut out and put together."""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from striate.images.declared import Scan

Box = tuple[int, int, int, int]
Integers = npt.NDArray[np.int64]
_FIRST_MARK = 0xD0
_END = b"\xff\xd9"
_ROUND = np.resize(np.arange(_FIRST_MARK, _FIRST_MARK + 8, dtype=np.uint8), 4096)


class Cut(NamedTuple):
    """A file that holds a part of a picture: its place in it, and its size, in pixels."""

    data: bytearray
    x: int
    y: int
    width: int
    height: int


def cut(data: bytes, scan: Scan, size: tuple[int, int], box: Box) -> Cut | None:
    """The smallest part of a picture of this size (height, width) that holds the box x0, y0, x1, y1.

    The codes between two restart markers stand for themselves (ITU-T T.81, E.1.4). Where they are a piece
    of one row of units, as many in each row, or whole rows, any rectangle of them is a picture with the same
    codes. None where they are not, where the marks are not found, or the part is the whole.
    """
    height, width = size
    across, down = -(-width // scan.columns), -(-height // scan.lines)
    tile = tile_of(scan.restart, across)
    if tile is None:
        return None
    wide, high = tile[0] * scan.columns, tile[1] * scan.lines
    columns, rows = -(-across // tile[0]), -(-down // tile[1])
    left, right = max(0, box[0] // wide), min(columns, -(-box[2] // wide))
    top, bottom = max(0, box[1] // high), min(rows, -(-box[3] // high))
    if left >= right or top >= bottom or (right - left) * (bottom - top) == columns * rows:
        return None
    lengths = tile_lengths(data, scan, columns * rows)
    if lengths is None:
        return None
    ends = np.cumsum(lengths)
    ends += scan.at
    taken = lengths.reshape(rows, columns)[top:bottom, left:right].ravel()
    # Where rows of tiles begin and stop in the file; the first one has no tile before it.
    stops = ends[top * columns + right - 1 : bottom * columns : columns].tolist()
    begins = (ends - lengths)[top * columns + left : bottom * columns : columns].tolist()
    part = (min(height, bottom * high) - top * high, min(width, right * wide) - left * wide)
    head = bytearray(data[: scan.at])
    struct.pack_into(">HH", head, scan.size_at, *part)
    whole = head + b"".join([data[i:j] for i, j in zip(begins, stops, strict=True)])
    codes = np.frombuffer(whole, np.uint8)
    marks = np.cumsum(taken)
    marks += scan.at - 1
    if marks[-1] != len(whole) - 1 or not ((codes[marks - 1] == 0xFF) & (codes[marks] >> 4 == 0xD)).all():
        return None  # a list that is not of these codes
    codes[marks] = _ROUND[: len(marks)] if len(marks) <= len(_ROUND) else np.resize(_ROUND, len(marks))
    whole[-1] = _END[1]
    return Cut(whole, left * wide, top * high, part[1], part[0])


def tile_of(restart: int, across: int) -> tuple[int, int] | None:
    """Columns and rows of units between two markers, of a picture so many units wide; None: no rectangle."""
    if restart and across % restart == 0:
        return restart, 1
    if restart and restart % across == 0:
        return across, restart // across
    return None


def tile_lengths(data: bytes, scan: Scan, count: int) -> Integers | None:
    """The bytes of each of `count` tiles, its marker counted; None where they are not to be found."""
    place, listed = scan.index
    if listed == count and place + 2 * count <= len(data):
        return np.frombuffer(data, ">u2", count, place).astype(np.int64)
    coded = np.frombuffer(data, np.uint8)[scan.at :]
    fills = np.flatnonzero(coded[:-1] == 0xFF)
    marks = fills[(coded[fills + 1] & 0xF8) == _FIRST_MARK] + 2
    if len(marks) < count - 1:
        return None
    marks = marks[: count - 1]
    last = data.find(_END, scan.at + (int(marks[-1]) if count > 1 else 0))
    return None if last < 0 else np.diff(marks, prepend=0, append=last + 2 - scan.at)
