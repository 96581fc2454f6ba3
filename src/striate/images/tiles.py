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
    ends = tile_ends(data, scan, columns * rows)
    if ends is None:
        return None
    part = (min(height, bottom * high) - top * high, min(width, right * wide) - left * wide)
    first = np.arange(top, bottom) * columns + left
    begins, stops = ends[first], ends[first + right - left]
    head = bytearray(data[: scan.at])
    struct.pack_into(">HH", head, scan.size_at, *part)
    pieces = [data[i:j] for i, j in zip(begins.tolist(), stops.tolist(), strict=True)]
    whole = head + b"".join(pieces)
    # Where the marker after each tile has come to lie: those of the old places that were taken, moved.
    moved = scan.at + np.cumsum(stops - begins) - stops
    marks = (ends[first[:, None] + np.arange(1, right - left + 1)] + moved[:, None]).ravel()
    codes = np.frombuffer(whole, np.uint8)
    if not ((codes[marks - 2] == 0xFF) & (codes[marks - 1] >= _FIRST_MARK)).all():
        return None  # a list that is not of these codes
    codes[marks - 1] = _FIRST_MARK + np.arange(len(marks)) % 8
    whole[-2:] = _END
    return Cut(whole, left * wide, top * high, part[1], part[0])


def tile_of(restart: int, across: int) -> tuple[int, int] | None:
    """Columns and rows of units between two markers, of a picture so many units wide; None: no rectangle."""
    if restart and across % restart == 0:
        return restart, 1
    if restart and restart % across == 0:
        return across, restart // across
    return None


def tile_ends(data: bytes, scan: Scan, count: int) -> Integers | None:
    """Where the first of `count` tiles begins, then where each ends, the two bytes of its marker counted."""
    place, listed = scan.index
    if listed == count and place + 2 * count <= len(data):
        lengths = np.frombuffer(data, ">u2", count, place)
        ends = np.empty(count + 1, np.int64)
        ends[0] = scan.at
        np.cumsum(lengths, out=ends[1:])
        ends[1:] += scan.at
        if ends[-1] <= len(data):
            return ends
    coded = np.frombuffer(data, np.uint8)[scan.at :]
    fills = np.flatnonzero(coded[:-1] == 0xFF)
    marks = fills[(coded[fills + 1] & 0xF8) == _FIRST_MARK] + scan.at + 2
    if len(marks) < count - 1:
        return None
    marks = marks[: count - 1]
    last = data.find(_END, int(marks[-1]) if count > 1 else scan.at)
    return None if last < 0 else np.concatenate([[scan.at], marks, [last + 2]])
