"""Netpbm's picture files (PBM, PGM, PPM; in digits or in bytes), read with NumPy."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import numpy.typing as npt

from striate.images.declared import Declared, Malformed

MAX_DIGITS = 8_000_000  # bytes of a file written in digits: about a second


def decode_pnm(data: bytes, info: Declared, *, stored: bool = False) -> npt.NDArray[Any]:
    """The samples of a PBM, PGM or PPM file as uint8 or uint16 (H, W[, 3]), scaled to the full range.

    stored: as they are stored, not scaled; of a PBM 1 is black.

    Raises:
        Malformed: the header or the samples are broken; ValueError where there are too few samples.
    """
    shape = (info.height, info.width, 3) if info.channels == 3 else (info.height, info.width)
    count = int(np.prod(shape))
    found = re.match(
        rb"P([1-6])" + rb"(?:\s|#[^\r\n]*[\r\n])+\d+" * (2 if info.bits == 1 else 3) + rb"\s", data
    )
    if not found:
        raise Malformed("its header is broken")
    kind, start = int(found[1]), found.end()
    top = 1 if info.bits == 1 else int(re.findall(rb"\d+", found[0])[-1])
    if not 0 < top < 65536:
        raise Malformed(f"its maximum is {top}")
    if kind <= 3:
        values = _plain_numbers(data[start:], count, bitmap=kind == 1)
    elif kind == 4:
        row = -(-info.width // 8)
        packed = np.frombuffer(data, np.uint8, row * info.height, start).reshape(info.height, row)
        values = np.unpackbits(packed, axis=1)[:, : info.width]
    else:
        values = np.frombuffer(data, np.uint8 if top < 256 else ">u2", count, start)
    values = values.reshape(shape)
    if stored:
        return values
    if kind in (1, 4):
        return np.asarray(np.where(values, 0, 255), dtype=np.uint8)
    full = 255 if top < 256 else 65535
    scaled: npt.NDArray[Any] = values
    if top != full:
        scaled = (np.minimum(values, top).astype(np.uint32) * full + top // 2) // top
    return np.asarray(scaled, dtype=np.uint8 if full == 255 else np.uint16)


def _plain_numbers(body: bytes, count: int, *, bitmap: bool) -> npt.NDArray[Any]:
    if len(body) > MAX_DIGITS:
        raise Malformed(f"a PNM written in digits may have at most {MAX_DIGITS:,} bytes")
    if bitmap:
        digits = np.frombuffer(b"".join(body.split()), np.uint8)[:count] - 48
        if len(digits) < count or digits.max(initial=0) > 1:
            raise Malformed("its digits are cut off or broken")
        return digits
    if not re.fullmatch(rb"[\d\s]*", body):
        raise Malformed("it holds other characters than digits")
    values = np.fromstring(body.decode("ascii"), dtype=np.int64, sep=" ")[:count]
    if len(values) < count or values.max(initial=0) > 65535:
        raise Malformed("its digits are cut off or too large")
    return values
