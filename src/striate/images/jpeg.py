"""JPEG by libjpeg-turbo: decoded at a fraction of its size, and no further down than it is looked at."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import simplejpeg

from striate.images.containers import Declared

Bytes = npt.NDArray[np.uint8]
Rows = Callable[[int, int], int]
"""For a picture of some height and width: how many of its upper rows are looked at."""
Enough = Callable[[int, int], bool]
"""Whether a picture reduced to some height and width still holds all that is looked at."""

# libjpeg's complaints that leave the picture whole, if the file also has its end mark.
_HARMLESS = re.compile(
    "extraneous bytes before marker|Invalid SOS parameters|Unknown Adobe color|Unsupported JFIF"
)


def reduction(info: Declared, at_least: int | Enough | None) -> int:
    """The largest of 1, 2, 4, 8 by which a JPEG can shrink with its shorter side still `at_least`.

    Or by which it is still enough, as shown upright. Other fractions are decoded more slowly than the whole.
    """
    if at_least is None or info.format != "JPEG":
        return 1
    sides = (info.width, info.height) if info.orientation >= 5 else (info.height, info.width)
    for n in (8, 4, 2):
        height, width = -(-sides[0] // n), -(-sides[1] // n)
        if at_least(height, width) if callable(at_least) else min(height, width) >= at_least:
            return n
    return 1


def decode_jpeg(data: bytes, info: Declared, n: int, channels: int, rows: Rows | None = None) -> Bytes:
    """The picture at 1/n of its size, uint8 (H, W, channels), not yet turned.

    With `rows`, those below the ones looked at may hold anything. The others are exactly those of the whole
    picture. Damage below them is not noticed.

    Raises:
        ValueError: the file is damaged.
    """
    colours = "RGB" if channels == 3 else "GRAY"
    if rows is not None and info.rows_at and info.orientation == 1:
        upper = _upper(data, info, n, channels, colours, rows)
        if upper is not None:
            return upper
    try:
        pixels = simplejpeg.decode_jpeg(data, colorspace=colours, **_scaled(info.height, info.width, n))
    except ValueError as error:
        whole = data.rfind(b"\xff\xd9") > data.rfind(b"\xff\xda") > 0
        if not (whole and _HARMLESS.search(str(error))):
            raise
        pixels = simplejpeg.decode_jpeg(
            data, colorspace=colours, strict=False, **_scaled(info.height, info.width, n)
        )
    return cast(Bytes, pixels)


def _scaled(height: int, width: int, n: int) -> dict[str, Any]:
    # libjpeg takes its smallest scale k/8 that keeps these sides; rounding up makes that exactly 1/n.
    return {"min_height": -(-height // n), "min_width": -(-width // n)} if n > 1 else {}


def _upper(data: bytes, info: Declared, n: int, channels: int, colours: str, rows: Rows) -> Bytes | None:
    """The picture decoded as far as it is looked at; None where that is all of it, or does not go well.

    The frame header is given a smaller height. A coded row of blocks stands for 8 lines, times the vertical
    sampling; the decoder looks one line of colours further down, which the added lines cover.
    """
    height, width = -(-info.height // n), -(-info.width // n)
    kept = (rows(height, width) * n // info.lines + 1) * info.lines
    if kept >= info.height:
        return None
    changed = bytearray(data)
    struct.pack_into(">H", changed, info.rows_at, kept)
    picture = np.empty((height, width, channels), dtype=np.uint8)
    upper = picture[: -(-kept // n)]
    try:
        simplejpeg.decode_jpeg(changed, colorspace=colours, buffer=upper, **_scaled(kept, info.width, n))
    except ValueError as error:
        # The first complaint is told: with this one, all went well as far as the picture was decoded.
        if "extraneous bytes before marker" not in str(error):
            return None
    return picture
