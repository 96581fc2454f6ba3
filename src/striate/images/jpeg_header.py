"""The headers of a JPEG: size, orientation, and how its pixels are coded."""

from __future__ import annotations

import struct

from striate.images.declared import INDEX_MARK, INDEX_NAME, Declared, Malformed, Scan
from striate.images.tags import exif_orientation

MAX_SEGMENTS = 20_000  # before its pixels
MAX_SCAN_PIXELS = 1_000_000_000  # scans x pixels of a JPEG: each scan walks over the whole picture


def jpeg_declared(data: bytes) -> Declared:
    """What the headers of a JPEG declare; raises Malformed, struct.error or IndexError for a broken one."""
    place, orientation = 2, 1
    for _ in range(MAX_SEGMENTS):
        place = data.find(b"\xff", place)
        if place < 0:
            break
        marker = data[place + 1]
        if marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD8:
            place += 1 if marker == 0xFF else 2
            continue
        if marker in (0xD9, 0xDA):
            break
        (length,) = struct.unpack_from(">H", data, place + 2)
        if marker == 0xE1 and orientation == 1 and data[place + 4 : place + 10] == b"Exif\0\0":
            orientation = exif_orientation(data[place + 4 : place + 2 + length])
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            # A tail of the segments is left unread: EXIF stands before the frame header.
            return _jpeg_frame(data, place, marker, orientation)
        place += 2 + length
    raise Malformed("the JPEG has no frame header before its pixels")


def _jpeg_frame(data: bytes, place: int, marker: int, orientation: int) -> Declared:
    bits, height, width, parts = struct.unpack_from(">BHHB", data, place + 4)
    sampling = [data[place + 11 + 3 * i] for i in range(parts)]
    areas = [(s >> 4) * (s & 15) for s in sampling]
    if parts not in (1, 3, 4) or bits != 8 or not all(areas):
        raise Malformed(f"a JPEG of {parts} parts with {bits} bits is not supported")
    # FF DA is the start of a scan; within the coded data FF is always followed by 00 or a restart marker.
    # A sequential picture whose first scan holds all parts has no other: the bytes need not be searched.
    scan = _scan(data, place, sampling) if marker in (0xC0, 0xC1) else None
    scans = 1 if scan is not None else data.count(b"\xff\xda", place)
    pixels = width * height
    if scans * pixels > MAX_SCAN_PIXELS and scans > 1:
        raise Malformed(f"the JPEG has {scans} scans over {width}x{height} pixels")
    coefficients = 2 * pixels * sum(areas) // max(areas) if marker == 0xC2 or scans > 1 else 0
    working = coefficients + (4 * pixels if parts == 4 else 0)
    channels = 1 if parts == 1 else 3
    return Declared("JPEG", width, height, channels, orientation, bits, working, parts == 4, None, scan)


def _scan(data: bytes, frame: int, sampling: list[int]) -> Scan | None:
    """The first scan after the frame header at `frame`; None where it lacks parts, or is not plain."""
    place, restart, index = frame, 0, (0, 0)
    for _ in range(MAX_SEGMENTS):
        (length,) = struct.unpack_from(">H", data, place + 2)
        place += 2 + length
        if data[place : place + 2] == b"\xff\xda":
            break
        if data[place] != 0xFF or data[place + 1] not in (0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)):
            return None
        if data[place + 1] == 0xDD:
            (restart,) = struct.unpack_from(">H", data, place + 4)
        elif data[place + 1] == INDEX_MARK and data.startswith(INDEX_NAME, place + 4):
            (length,) = struct.unpack_from(">H", data, place + 2)
            index = (place + 4 + len(INDEX_NAME), (length - 2 - len(INDEX_NAME)) // 2)
    else:
        return None
    if data[place + 4] != len(sampling):
        return None
    (length,) = struct.unpack_from(">H", data, place + 2)
    # A scan of one part has units of one block, whatever its sampling says.
    across, down = (max(s >> 4 for s in sampling), max(s & 15 for s in sampling))
    unit = (8, 8) if len(sampling) == 1 else (8 * down, 8 * across)
    return Scan(frame + 5, place + 2 + length, *unit, restart, index)
