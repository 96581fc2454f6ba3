"""A corpus of hostile image files: seeded mutations of every format, and bombs written byte by byte."""

from __future__ import annotations

import functools
import io
import random
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

SUFFIXES = (".jpg", ".png", ".gif", ".webp", ".bmp", ".tif", ".ppm", "", ".txt")


def picture(height: int = 24, width: int = 37) -> np.ndarray:
    """A smooth coloured uint8 picture (height, width, 3) whose four quarters all differ."""
    y, x = np.mgrid[0:height, 0:width]
    red, green = 255 * x / (width - 1), 255 * y / (height - 1)
    return np.stack([red, green, 255 - (red + green) / 2], axis=-1).round().astype(np.uint8)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    """The bytes of `image` as Pillow writes them."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(
    width: int, height: int, rows: bytes, *, bits: int = 8, colour: int = 2, interlace: int = 0, **more
) -> bytes:
    """A PNG of these filtered rows; `more` are chunks by name, put before the pixels."""
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlace)
    parts = [("IHDR", head), *more.items(), ("IDAT", zlib.compress(rows, 1)), ("IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(name.encode(), content) for name, content in parts)


def chunk(name: bytes, content: bytes) -> bytes:
    """One PNG chunk."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def interlaced(pixels: np.ndarray) -> bytes:
    """An Adam7 interlaced PNG of uint8 (H, W, 3) (PNG specification, section 8.2)."""
    passes = [
        (0, 8, 0, 8),
        (0, 8, 4, 8),
        (4, 8, 0, 4),
        (0, 4, 2, 4),
        (2, 4, 0, 2),
        (0, 2, 1, 2),
        (1, 2, 0, 1),
    ]
    rows = b""
    for top, down, left, right in passes:
        part = pixels[top::down, left::right]
        if part.size:
            rows += b"".join(b"\0" + row.tobytes() for row in part)
    return png(pixels.shape[1], pixels.shape[0], rows, interlace=1)


def tiff(entries: list[tuple[int, int, int, int]], tail: bytes = b"", count: int | None = None) -> bytes:
    """A little-endian TIFF of these tags (tag, type, count, value or place), `tail` after the directory."""
    body = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    number = len(entries) if count is None else count
    return b"II*\0" + struct.pack("<IH", 8, number) + body + bytes(4) + tail


def exif(orientation: int) -> bytes:
    """An EXIF block that holds the orientation alone."""
    return b"Exif\0\0MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x112, 3, 1, orientation, 0, 0)


def bmp(width: int, height: int, body: bytes, *, bits: int = 24, compression: int = 0) -> bytes:
    """A BMP with the 40-byte header."""
    table = bytes(range(256)) * 4 if bits == 8 else b""
    start = 54 + len(table)
    head = struct.pack("<iiHHIIiiII", width, height, 1, bits, compression, len(body), 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHII", start + len(body), 0, 0, start, 40) + head + table + body


def webp(kind: bytes, content: bytes) -> bytes:
    """A WebP of one chunk."""
    body = b"WEBP" + kind + struct.pack("<I", len(content)) + content
    return b"RIFF" + struct.pack("<I", len(body)) + body


@functools.cache
def good() -> dict[str, bytes]:
    """Small whole files of every kind that Striate reads."""
    pixels = picture()
    image = Image.fromarray(pixels)
    grey, turned = image.convert("L"), [image, image.rotate(90), image.rotate(180)]
    alpha = Image.fromarray(np.dstack([pixels, pixels[..., 0]]))
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    lossless = {"lossless": True}
    frames = {"save_all": True, "append_images": turned[1:]}
    rle = b"".join(bytes([37, row]) + b"\0\0" for row in range(24)) + b"\0\1"
    return {
        "jpeg": encoded(image, "JPEG", quality=90),
        "jpeg-progressive": encoded(image, "JPEG", progressive=True),
        "jpeg-grey": encoded(grey, "JPEG"),
        "jpeg-cmyk": encoded(image.convert("CMYK"), "JPEG"),
        "jpeg-exif": encoded(image, "JPEG", exif=exif(6)),
        "png": encoded(image, "PNG"),
        "png-palette": encoded(image.quantize(16), "PNG", transparency=3),
        "png-alpha": encoded(alpha, "PNG"),
        "png-16": encoded(deep, "PNG"),
        "png-1": encoded(image.convert("1"), "PNG"),
        "png-interlaced": interlaced(pixels),
        "png-animated": encoded(image, "PNG", **frames),
        "gif": encoded(image.quantize(32), "GIF"),
        "gif-animated": encoded(image, "GIF", **frames, duration=10, loop=0),
        "webp": encoded(image, "WEBP"),
        "webp-lossless": encoded(alpha, "WEBP", **lossless),
        "webp-animated": encoded(image, "WEBP", **frames, **lossless),
        "bmp": encoded(image, "BMP"),
        "bmp-palette": encoded(image.quantize(200), "BMP"),
        "bmp-rle": bmp(37, 24, rle, bits=8, compression=1),
        "tiff": encoded(image, "TIFF"),
        "tiff-lzw": encoded(image, "TIFF", compression="tiff_lzw"),
        "tiff-deflate": encoded(alpha, "TIFF", compression="tiff_adobe_deflate"),
        "tiff-jpeg": encoded(image, "TIFF", compression="jpeg"),
        "tiff-16": encoded(deep, "TIFF"),
        "tiff-fax": encoded(image.convert("1"), "TIFF", compression="group4"),
        "tiff-pages": encoded(image, "TIFF", **frames),
        "tiff-big": encoded(image, "TIFF", big_tiff=True),
        "ppm": encoded(image, "PPM"),
        "pgm-digits": b"P2 # grey\n3 2\n# top\n15\n0 5 10\n15 1 2\n",
    }


def png_bombs() -> dict[str, bytes]:
    zeros = bytes(6000 * 6001)
    packed = zlib.compress(zeros, 1)
    return {
        "png-30000": png(30_000, 30_000, zeros, bits=1, colour=0),
        "png-10-gigabytes": png(50_000, 50_000, zeros[:1000], colour=6),
        "png-too-much": png(64, 64, zeros),
        "png-too-little": png(5000, 5000, bytes(1000)),
        "png-at-limit": png(6000, 6000, zeros, colour=0),
        "png-profile": png(8, 8, bytes(25 * 8), iCCP=b"x\0\0" + packed),
        "png-text": png(8, 8, bytes(25 * 8), zTXt=b"x\0\0" + packed, iTXt=b"x\0\1\0\0\0" + packed),
        "png-chunks": png(8, 8, bytes(25 * 8)).replace(b"\0\0\0\0IEND", chunk(b"zzZz", b"") * 200_000),
    }


def tiff_bombs() -> dict[str, bytes]:
    size = [(256, 4, 1, 100_000), (257, 4, 1, 100_000), (258, 3, 1, 8), (262, 3, 1, 1)]
    small = [
        (256, 4, 1, 64),
        (257, 4, 1, 64),
        (258, 3, 1, 8),
        (262, 3, 1, 1),
        (273, 4, 1, 8),
        (279, 4, 1, 4096),
    ]
    tile = [(322, 4, 1, 1 << 20), (323, 4, 1, 1 << 20), (324, 4, 1, 8), (325, 4, 1, 1 << 20)]
    many = [(1000 + i, 1, 1 << 20, 8) for i in range(4000)]
    return {
        "tiff-huge": tiff(size),
        "tiff-tags": tiff(small, bytes(1 << 20), count=65_535),
        "tiff-overlap": tiff([*small, *many], bytes(1 << 20)),
        "tiff-tile": tiff([*small[:4], *tile], bytes(1 << 20)),
        "tiff-strips": tiff([*small[:4], (273, 4, 1 << 28, 8), (279, 4, 1 << 28, 8)], bytes(1 << 20)),
        "tiff-samples": tiff([*small, (277, 4, 1, 1 << 30)], bytes(4096)),
        "tiff-exif": tiff([*small, (34665, 4, 1, 8), (34853, 4, 1, 8), (330, 4, 1, 8)], bytes(4096)),
        "tiff-loop": tiff(small)[:-4] + struct.pack("<I", 8) + bytes(4096),
        "tiff-bigtiff": b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 2**62) + bytes(400),
        "tiff-far": b"II*\0\xff\xff\xff\xff" + bytes(400),
    }


@functools.cache
def bombs() -> dict[str, bytes]:
    """Files that ask for far more memory or time than they are long."""
    whole = good()
    scans = bytearray(whole["jpeg-progressive"])
    frame = scans.index(b"\xff\xc2")
    scans[frame + 5 : frame + 9] = struct.pack(">HH", 6000, 6000)
    last = scans.rindex(b"\xff\xda")
    huge_jpeg = bytearray(whole["jpeg"])
    frame = huge_jpeg.index(b"\xff\xc0")
    huge_jpeg[frame + 5 : frame + 9] = b"\xff\xff\xff\xff"
    start = 13 + (3 << (whole["gif"][10] & 7) + 1)
    gif, image = whole["gif"][:start], whole["gif"][whole["gif"].index(b",", start) :]
    comment = b"!\xfe" + (b"\xff" + bytes(255)) * 40_000 + b"\0"
    return (
        png_bombs()
        | tiff_bombs()
        | {
            "jpeg-65535": bytes(huge_jpeg),
            "jpeg-scans": bytes(scans[:last] + scans[last:-2] * 500 + b"\xff\xd9"),
            "jpeg-segments": b"\xff\xd8" + b"\xff\xe2\0\2" * 500_000 + whole["jpeg"][2:],
            "jpeg-fill": b"\xff\xd8" + b"\xff" * 5_000_000,
            "gif-65535": gif[:6] + b"\xff\xff\xff\xff" + gif[10:] + image,
            "gif-frame": gif + b"," + struct.pack("<HHHHB", 0, 0, 65_535, 65_535, 0) + image[10:],
            "gif-dispose": gif
            + b"!\xf9\x04\x09\0\0\0\0"
            + b","
            + struct.pack("<HHHHB", 9, 9, 65_535, 2600, 0)
            + b"\x02\0;",
            "gif-comment": gif + comment + image,
            "gif-comments": gif + b"!\xfe\0" * 500_000 + image,
            "gif-frames": gif + image[:-1] * 50_000 + b";",
            "webp-canvas": webp(b"VP8X", b"\x10\0\0\0" + b"\xff" * 6),
            "webp-16383": webp(b"VP8L", b"/" + struct.pack("<I", 16_382 | 16_382 << 14) + bytes(50)),
            "webp-lossy": webp(
                b"VP8 ", b"\x10\0\0\x9d\x01\x2a" + struct.pack("<HH", 16_383, 16_383) + bytes(50)
            ),
            "bmp-huge": bmp(100_000, 100_000, bytes(100)),
            "bmp-negative": bmp(-(2**31), -(2**31), bytes(100)),
            "bmp-short": bmp(6000, 6000, bytes(100)),
            "bmp-delta": bmp(60_000, 60, b"\0\2\xff\xff" * 1000, bits=8, compression=1),
            "bmp-wide": bmp(40_000_000, 1, b"\0\2\xff\xff", bits=8, compression=1),
            "bmp-runs": bmp(2000, 2000, b"\1\1" * 990_000, bits=8, compression=1),
            "ppm-huge": b"P6\n100000 100000\n255\n" + bytes(100),
            "ppm-digits": b"P3 1000 1000 255\n" + b"1 " * 3_900_000,
            "ppm-comments": b"P3 100 100 255\n" + b"#\n" * 500_000,
            "ppm-head": b"P6\n" + b"#\n" * 500_000 + b"1 1 255\n...",
            "zip": b"PK\x03\x04" + bytes(100),
            "text": b"<!DOCTYPE html><html>not found</html>",
            "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        }
    )


def mutate(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """One seeded accident or attack on the bytes of a file."""
    changed = bytearray(data)
    place = rng.randrange(len(changed))
    early = rng.randrange(min(len(changed), 120))
    kind = rng.randrange(9)
    if kind == 0:
        return data[:place]
    if kind == 1:
        for _ in range(rng.choice((1, 1, 2, 5, 20))):
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    elif kind == 2:
        changed[early] ^= 1 << rng.randrange(8)
    elif kind == 3:
        changed[early : early + 4] = rng.choice((b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"\0\1\0\0"))
    elif kind == 4:
        changed[place:place] = rng.randbytes(rng.choice((1, 4, 100)))
    elif kind == 5:
        del changed[place : place + rng.choice((1, 4, 100))]
    elif kind == 6:
        end = rng.randrange(place, len(changed))
        changed[place:place] = changed[place:end] * rng.choice((1, 3))
    elif kind == 7:
        return data[:place] + other[rng.randrange(len(other)) :]
    else:
        changed[place : place + 16] = rng.randbytes(16)
    return bytes(changed)


def hostile(count: int = 1000, seed: int = 20) -> Iterator[tuple[str, bytes]]:
    """`count` files as (file name, bytes): the bombs, whole files under wrong names, and mutations."""
    rng = random.Random(seed)
    whole = good()
    names = sorted(whole)
    made = 0
    for name, data in [*bombs().items(), *((f"whole-{name}", whole[name]) for name in names)]:
        yield f"{made:04d}-{name}{rng.choice(SUFFIXES)}", data
        made += 1
    while made < count:
        name = names[made % len(names)]
        yield f"{made:04d}-{name}{rng.choice(SUFFIXES)}", mutate(whole[name], whole[rng.choice(names)], rng)
        made += 1
