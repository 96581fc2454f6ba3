"""TIFF directories, of which EXIF is one."""

from __future__ import annotations

import struct

from striate.images.declared import Malformed

MAX_TAGS = 4_096  # of a TIFF directory; writers use some twenty
ORIENTATION = 0x112
TIFF_TYPES = {  # type -> bytes
    kind: size
    for size, kinds in {1: (1, 2, 6, 7), 2: (3, 8), 4: (4, 9, 11, 13), 8: (5, 10, 12, 16, 17, 18)}.items()
    for kind in kinds
}


def exif_orientation(exif: bytes) -> int:
    """The orientation (1 to 8) in an EXIF block, a TIFF directory; 1 where it is absent or broken."""
    if exif[:6] == b"Exif\0\0":
        exif = exif[6:]
    try:
        entries = directory(exif)[0]
        for tag, kind, count, place in entries:
            if tag == ORIENTATION and kind == 3 and count == 1:
                value = int(struct.unpack_from(byte_order(exif) + "H", exif, place)[0])
                return value if 1 <= value <= 8 else 1
    except (struct.error, IndexError, OverflowError, Malformed):
        pass
    return 1


def byte_order(data: bytes) -> str:
    """How `struct` writes the byte order that TIFF data declare; raises Malformed."""
    if data[:2] not in (b"II", b"MM"):
        raise Malformed("the byte order mark is missing")
    return "<" if data[:2] == b"II" else ">"


def directory(data: bytes) -> tuple[list[tuple[int, int, int, int]], int]:
    """The entries (tag, type, count, place of the value) of the first TIFF directory, and where they end."""
    order = byte_order(data)
    big = struct.unpack_from(order + "H", data, 2)[0] == 43
    first, number, entry, inline = ("Q", "Q", "HHQ", 8) if big else ("I", "H", "HHI", 4)
    (start,) = struct.unpack_from(order + first, data, 8 if big else 4)
    (count,) = struct.unpack_from(order + number, data, start)
    if count > MAX_TAGS:
        raise Malformed(f"the TIFF directory has {count:,} tags")
    place = start + struct.calcsize(order + number)
    entries = []
    for _ in range(count):
        tag, kind, values = struct.unpack_from(order + entry, data, place)
        where = place + struct.calcsize(order + entry)
        if TIFF_TYPES.get(kind, 1) * values > inline:
            (where,) = struct.unpack_from(order + first, data, where)
        entries.append((tag, kind, values, where))
        place += struct.calcsize(order + entry) + inline
    return entries, place
