"""Image containers read byte by byte: kind, size and orientation, known before any decoder is started.

The decoders get only the parts that draw the first picture (`Declared.clean`): the profiles, comments,
further frames and private tags that hostile files use to fill memory or time never reach them.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Callable, Iterator

from striate.images.declared import Declared, Malformed
from striate.images.jpeg_header import jpeg_declared
from striate.images.tags import ORIENTATION, TIFF_TYPES, byte_order, directory, exif_orientation

MAX_CHUNKS = 100_000  # of a PNG or WebP: 40 million pixels in 8 KiB chunks are 20,000
MAX_SEGMENTS = 20_000  # of a GIF before its first frame
MAX_TAG_VALUES = 2_000_000  # numbers in a TIFF directory: strip offsets and sizes
MAX_RUNS = 4_000_000  # pixels of a run-length coded BMP, which Pillow reads run by run in Python

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, SAMPLES = 256, 257, 258, 259, 262, 277
ROWS, TILE_WIDTH, TILE_HEIGHT = 278, 322, 323
# What libtiff and Pillow need for the pixels: geometry, colour, strips, tiles, predictor, JPEG tables.
TIFF_TAGS = frozenset(
    (254, 256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325)
) | frozenset((332, 338, 339, 347, 512, 513, 514, 515, 519, 520, 521, 529, 530, 531, 532))
PNG_CHUNKS = frozenset((b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"))


def declared(data: bytes) -> Declared:
    """What the image file `data` declares, by its content.

    Raises:
        Malformed: no image of an allowed format, or a broken one.
    """
    kind = sniff(data)
    try:
        return _READERS[kind](data)
    except (struct.error, IndexError, OverflowError) as error:
        raise Malformed(f"the {kind} header is cut off or broken") from error


def sniff(data: bytes) -> str:
    """The name of the format of `data` by its first bytes; raises as `declared` does."""
    for name, pattern in _MAGIC:
        if pattern.match(data):
            return name
    head = data[:512].lstrip().lower()
    for name, pattern in _REFUSED:
        if pattern.match(head if name in ("HTML", "SVG or XML") else data):
            raise Malformed(f"it is {name}, not an image of the formats {', '.join(_READERS)}")
    raise Malformed(f"it is none of the formats {', '.join(_READERS)}")


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """The name, first content byte and length of each PNG chunk that lies wholly or partly in `data`."""
    place = 8
    for _ in range(MAX_CHUNKS):
        if place + 8 > len(data):
            return
        (length,) = struct.unpack_from(">I", data, place)
        yield data[place + 4 : place + 8], place + 8, length
        place += length + 12
    raise Malformed(f"the PNG has more than {MAX_CHUNKS:,} chunks")


def _png(data: bytes) -> Declared:
    width, height, bits, colour = struct.unpack_from(">IIBB", data, 16)
    interlaced = data[28]
    if data[12:16] != b"IHDR":
        raise Malformed("the PNG does not begin with its header")
    kept, orientation, grey_palette = [(0, 8)], 1, False
    for name, place, length in _chunks(data):
        if name in PNG_CHUNKS:
            kept.append((place - 8, place + length + 4))
        if name == b"eXIf":
            orientation = exif_orientation(data[place : place + min(length, 1 << 16)])
        elif name == b"PLTE":
            palette = data[place : place + min(length, 768)]
            grey_palette = palette[0::3] == palette[1::3] == palette[2::3]
        elif name == b"IEND":
            break
    grey = colour in (0, 4) or (colour == 3 and grey_palette)

    def clean() -> io.BytesIO:
        return io.BytesIO(b"".join(data[start:stop] for start, stop in kept))

    working = (
        width * height * (4 if colour in (2, 4, 6) else 2) + len(data) + (width * 16 if interlaced else 0)
    )
    return Declared("PNG", width, height, 1 if grey else 3, orientation, bits, working, clean=clean)


def _gif(data: bytes) -> Declared:
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    place = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    palette = data[13:place]
    head, control = data[:place], b""
    for _ in range(MAX_SEGMENTS):
        if data[place] == 0x2C:
            break
        if data[place] != 0x21:
            place += 1
            continue
        start, label = place, data[place + 1]
        place += 2
        while data[place]:
            place += data[place] + 1
        place += 1
        if label == 0xF9:
            control = data[start:place]
    else:
        raise Malformed(f"the GIF has more than {MAX_SEGMENTS:,} blocks before its first frame")
    left, top, frame_width, frame_height, frame_flags = struct.unpack_from("<HHHHB", data, place + 1)
    if frame_flags & 0x80:
        palette = data[place + 10 : place + 10 + (3 << (frame_flags & 7) + 1)]
    width, height = max(width, left + frame_width), max(height, top + frame_height)
    if not frame_width * frame_height:
        raise Malformed("the first frame of the GIF is empty")
    grey = palette[0::3] == palette[1::3] == palette[2::3]

    def clean() -> io.BytesIO:
        return io.BytesIO(head + control + data[place:])

    return Declared(
        "GIF", width, height, 1 if grey else 3, working=2 * width * height + len(data), clean=clean
    )


def _webp(data: bytes) -> Declared:
    kind, orientation = data[12:16], 1
    if kind == b"VP8X":
        width = 1 + int.from_bytes(data[24:27], "little")
        height = 1 + int.from_bytes(data[27:30], "little")
        place = 12
        for _ in range(MAX_CHUNKS):
            if place + 8 > len(data):
                break
            (length,) = struct.unpack_from("<I", data, place + 4)
            if data[place : place + 4] == b"EXIF":
                orientation = exif_orientation(data[place + 8 : place + 8 + min(length, 1 << 16)])
                break
            place += 8 + length + (length & 1)
        else:
            raise Malformed(f"the WebP has more than {MAX_CHUNKS:,} chunks")
    elif kind == b"VP8 ":
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    else:
        (packed,) = struct.unpack_from("<I", data, 21)
        width, height = 1 + (packed & 0x3FFF), 1 + (packed >> 14 & 0x3FFF)
    # Two canvases in the decoder, the frame handed over, and the picture: 4 bytes a pixel each.
    return Declared("WEBP", width, height, 3, orientation, working=14 * width * height + len(data))


def _bmp(data: bytes) -> Declared:
    (size,) = struct.unpack_from("<I", data, 14)
    compression, colours = 0, 0
    if size == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
    else:
        width, height, _, bits, compression = struct.unpack_from("<iiHHI", data, 18)
        (colours,) = struct.unpack_from("<I", data, 46)
    width, height = abs(width), abs(height)
    if compression in (1, 2) and max(width * height, 2 * len(data)) > MAX_RUNS:
        raise Malformed(f"a run-length coded BMP may have at most {MAX_RUNS:,} pixels and half as many bytes")
    grey = False
    if bits <= 8:
        step = 3 if size == 12 else 4
        palette = data[14 + size :][: step * min(colours or 1 << bits, 256)]
        grey = palette[0::step] == palette[1::step] == palette[2::step]
    return Declared("BMP", width, height, 1 if grey else 3, bits=bits, working=4 * width * height)


def _tiff(data: bytes) -> Declared:
    order, (entries, end) = byte_order(data), directory(data)
    big = struct.unpack_from(order + "H", data, 2)[0] == 43
    known: dict[int, int] = {}
    read = {1: "B", 3: "H", 4: "I", 16: "Q"}
    values = claimed = 0
    for tag, kind, count, place in entries:
        if tag not in TIFF_TAGS and tag != ORIENTATION:
            continue
        if kind in read and count and tag not in known:
            (known[tag],) = struct.unpack_from(order + read[kind], data, place)
        values += count if kind not in (1, 2, 7) else 0
        claimed += count * TIFF_TYPES.get(kind, 1)
    if values > MAX_TAG_VALUES or claimed > len(data):
        raise Malformed("the tags of the TIFF claim more than the file holds")
    if WIDTH not in known or HEIGHT not in known:
        raise Malformed("the TIFF does not say its width and height")
    width, height, orientation = known[WIDTH], known[HEIGHT], known.get(ORIENTATION, 1)
    samples, bits = known.get(SAMPLES, 1), known.get(BITS, 1)
    if samples > 16 or bits > 64:
        raise Malformed(f"a TIFF of {samples} samples of {bits} bits is not supported")
    grey = known.get(PHOTOMETRIC, 0) in (0, 1)
    size = 20 if big else 12

    def clean() -> io.BytesIO:
        # Type 0 makes both readers pass over a tag; no next directory leaves one page.
        copy = io.BytesIO(data)
        for i, (tag, *_rest) in enumerate(entries):
            if tag not in TIFF_TAGS:
                copy.seek(end - size * (len(entries) - i) + 2)
                copy.write(b"\0\0")
        copy.seek(end)
        copy.write(bytes(8 if big else 4))
        copy.seek(0)
        return copy

    # Pillow's picture, the copy of the file, and a strip or tile as it is stored (libtiff).
    picture = width * height * (4 if samples > 1 or bits > 16 else 2)
    strip = width * min(known.get(ROWS, height), height)
    tile = known.get(TILE_WIDTH, 0) * known.get(TILE_HEIGHT, 0)
    stored = 0 if known.get(COMPRESSION, 1) == 1 else max(strip, tile) * samples * bits // 8
    turned = orientation if 1 <= orientation <= 8 else 1
    working = picture + len(data) + max(stored, tile)
    return Declared("TIFF", width, height, 1 if grey else 3, turned, bits, working, clean=clean)


_SPACE = rb"(?:\s|#[^\r\n]*[\r\n])+"
_PNM = re.compile(rb"P([1-6])" + (_SPACE + rb"(\d{1,9})") * 2)


def _ppm(data: bytes) -> Declared:
    found = _PNM.match(data, 0, 65536)
    if not found:
        raise Malformed("the PNM header is cut off or broken")
    kind, width, height = (int(part) for part in found.groups())
    count = width * height * (3 if kind in (3, 6) else 1)
    # The digits are parsed to 64 bits; bytes beside the range 0..255 are scaled in 32 bits.
    working = count * (24 if kind <= 3 else 1 if len(data) < 2 * count else 10)
    return Declared("PPM", width, height, 3 if kind in (3, 6) else 1, 1, 1 if kind in (1, 4) else 8, working)


_READERS: dict[str, Callable[[bytes], Declared]] = {
    "JPEG": jpeg_declared,
    "PNG": _png,
    "GIF": _gif,
    "WEBP": _webp,
    "BMP": _bmp,
    "TIFF": _tiff,
    "PPM": _ppm,
}
_MAGIC = [
    ("JPEG", re.compile(rb"\xff\xd8\xff", re.S)),
    ("PNG", re.compile(rb"\x89PNG\r\n\x1a\n", re.S)),
    ("GIF", re.compile(rb"GIF8[79]a", re.S)),
    ("WEBP", re.compile(rb"RIFF....WEBPVP8[ LX]", re.S)),
    ("BMP", re.compile(rb"BM.{12}(\x0c|\x28|\x34|\x38|\x40|\x6c|\x7c)\0\0\0", re.S)),
    ("TIFF", re.compile(rb"II[\x2a\x2b]\0|MM\0[\x2a\x2b]", re.S)),
    ("PPM", re.compile(rb"P[1-6][\s#]", re.S)),
]
_REFUSED = [
    ("a Photoshop file", re.compile(rb"8BPS")),
    ("a PDF file", re.compile(rb"%PDF")),
    ("a PostScript file", re.compile(rb"%!PS|\xc5\xd0\xd3\xc6", re.S)),
    ("a HEIC or AVIF file", re.compile(rb"....ftyp(heic|heix|mif1|msf1|avif|avis)", re.S)),
    ("a zip archive", re.compile(rb"PK\x03\x04", re.S)),
    ("a gzip archive", re.compile(rb"\x1f\x8b", re.S)),
    ("HTML", re.compile(rb"<!doctype html|<html")),
    ("SVG or XML", re.compile(rb"<svg|<\?xml")),
]
