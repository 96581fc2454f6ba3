"""JPEG by libjpeg-turbo: decoded at a fraction of its size, and little more of it than is looked at."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import simplejpeg

from striate.images.declared import Declared, Scan
from striate.images.tiles import Box, cut

Bytes = npt.NDArray[np.uint8]
Enough = Callable[[int, int], bool]
"""Whether a picture reduced to some height and width still holds all that is looked at."""


@dataclass
class Look:
    """The box of a picture that is looked at; what of it came back.

    box: for a picture of some height and width, x0, y0, x1, y1; None: all of it. After decoding, `size` is
    the whole picture's (height, width) and x, y the place in it of what came back; size is None where that
    is all of it. n: it came back at 1/n of its size; sides: its height and width as shown, before that,
    or None where it has but one size to come back in. doubtful: the file breaks rules, and parts of it may
    have other pixels than they have in the whole.
    """

    box: Callable[[int, int], Box] | None = None
    x: int = 0
    y: int = 0
    size: tuple[int, int] | None = None
    n: int = 1
    sides: tuple[int, int] | None = None
    doubtful: bool = False


# libjpeg's complaints that leave the picture whole, if the file also has its end mark.
_HARMLESS = re.compile(
    "extraneous bytes before marker|Invalid SOS parameters|Unknown Adobe color|Unsupported JFIF"
)


def reduction(info: Declared, at_least: int | Enough | None) -> int:
    """The largest of 1, 2, 4, 8 by which a JPEG can shrink with its shorter side still `at_least`.

    Or by which it is still enough, as shown upright. Other fractions are decoded more slowly than the whole.
    """
    return 1 if info.format != "JPEG" else fraction(upright(info), at_least)


def upright(info: Declared) -> tuple[int, int]:
    """Height and width as shown."""
    return (info.width, info.height) if info.orientation >= 5 else (info.height, info.width)


def fraction(sides: tuple[int, int], at_least: int | Enough | None) -> int:
    """`reduction` of a JPEG of this height and width."""
    if at_least is None:
        return 1
    for n in (8, 4, 2):
        height, width = -(-sides[0] // n), -(-sides[1] // n)
        if at_least(height, width) if callable(at_least) else min(height, width) >= at_least:
            return n
    return 1


def decode_jpeg(data: bytes, info: Declared, n: int, channels: int, look: Look | None = None) -> Bytes:
    """The picture at 1/n of its size, uint8 (H, W, channels), not yet turned.

    With `look`, perhaps a part of it that holds the box looked at, with exactly the pixels of the whole.
    Damage beside it is not noticed.

    Raises:
        ValueError: the file is damaged.
    """
    colours = "RGB" if channels == 3 else "GRAY"
    if look is not None and look.box is not None and info.scan is not None and info.orientation == 1:
        size = (-(-info.height // n), -(-info.width // n))
        part = _part(data, info, info.scan, n, colours, look.box(*size))
        if part is not None:
            look.size, look.x, look.y = size, *part[1:]
            return part[0]
    try:
        pixels = simplejpeg.decode_jpeg(data, colorspace=colours, **_scaled(info.height, info.width, n))
    except ValueError as error:
        whole = data.rfind(b"\xff\xd9") > data.rfind(b"\xff\xda") > 0
        if not (whole and _HARMLESS.search(str(error))):
            raise
        if look is not None:
            look.doubtful = True
        pixels = simplejpeg.decode_jpeg(
            data, colorspace=colours, strict=False, **_scaled(info.height, info.width, n)
        )
    return cast(Bytes, pixels)


def _scaled(height: int, width: int, n: int) -> dict[str, Any]:
    # libjpeg takes its smallest scale k/8 that keeps these sides; rounding up makes that exactly 1/n.
    return {"min_height": -(-height // n), "min_width": -(-width // n)} if n > 1 else {}


Part = tuple[Bytes, int, int]


def _part(data: bytes, info: Declared, scan: Scan, n: int, colours: str, box: Box) -> Part | None:
    """What holds the box, and its place: the tiles between restart markers, or the upper lines."""
    found = _tiles(data, info, scan, n, colours, box) if scan.restart else None
    return _upper(data, info, scan, n, colours, box[3]) if found is None else found


def _tiles(data: bytes, info: Declared, scan: Scan, n: int, colours: str, box: Box) -> Part | None:
    # Colours are smoothed over the next one, at most two pixels away.
    margin = 2 * n
    x0, y0, x1, y1 = (n * edge for edge in box)
    part = cut(data, scan, (info.height, info.width), (x0 - margin, y0 - margin, x1 + margin, y1 + margin))
    if part is None or max(part.height, part.width) < 8:
        return None
    try:
        pixels = simplejpeg.decode_jpeg(part.data, colorspace=colours, **_scaled(part.height, part.width, n))
    except ValueError:
        return None
    # Parts of four columns and fewer have their colours spread without smoothing.
    if pixels.shape[:2] != (-(-part.height // n), -(-part.width // n)) or pixels.shape[1] < 5:
        return None
    return pixels, part.x // n, part.y // n


def _upper(data: bytes, info: Declared, scan: Scan, n: int, colours: str, bottom: int) -> Part | None:
    """The lines that are looked at; None where that is all of them, or does not go well.

    The frame header is given a smaller height. The decoder looks one line of colours further down, which
    the added lines cover.
    """
    kept = (bottom * n // scan.lines + 1) * scan.lines
    if kept >= info.height:
        return None
    changed = bytearray(data)
    struct.pack_into(">H", changed, scan.size_at, kept)
    upper = np.empty((-(-kept // n), -(-info.width // n), 1 if colours == "GRAY" else 3), dtype=np.uint8)
    try:
        simplejpeg.decode_jpeg(changed, colorspace=colours, buffer=upper, **_scaled(kept, info.width, n))
    except ValueError as error:
        # The first complaint is told: with this one, all went well as far as the picture was decoded.
        if "extraneous bytes before marker" not in str(error):
            return None
    return upper, 0, 0
