"""What an image file says of itself before any decoder is started."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass


class Malformed(ValueError):
    """A container that breaks the rules of its format; the text is the reason."""


INDEX_MARK, INDEX_NAME = 0xEA, b"Striate tiles\0"
"""The segment of a JPEG header that lists the bytes from each restart marker to the next, it included."""


@dataclass(frozen=True)
class Scan:
    """The one scan of a sequential JPEG, coded unit by unit (MCU), row by row.

    size_at: where the frame keeps the height, then the width, two bytes each; at: where the coded data begin;
    lines, columns: pixels of a unit; restart: units from one restart marker to the next, 0 without markers;
    index: where the header lists the bytes of the codes between them, and how many numbers of two bytes.
    """

    size_at: int
    at: int
    lines: int
    columns: int
    restart: int = 0
    index: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Declared:
    """What an image file says of itself: size in pixels as stored, EXIF orientation 1 to 8.

    `channels` is 1 where the file holds grey only, else 3; `bits` is the sample depth; `working` is the
    decoder's own memory in bytes beside the file and the answer; `clean` gives the bytes to decode.
    `scan` is how a sequential JPEG of one scan is coded, None in other files.
    """

    format: str
    width: int
    height: int
    channels: int = 3
    orientation: int = 1
    bits: int = 8
    working: int = 0
    cmyk: bool = False
    clean: Callable[[], io.BytesIO] | None = None
    scan: Scan | None = None
