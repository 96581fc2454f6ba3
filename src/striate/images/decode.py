"""Decoding: image files of any origin to uint8 arrays, by their content and within limits."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from striate.core.errors import BadImage, StriateError
from striate.images.colour import to_uint8
from striate.images.containers import declared
from striate.images.declared import Declared, Malformed
from striate.images.jpeg import Enough, Look, decode_jpeg, reduction, upright
from striate.images.pnm import decode_pnm
from striate.images.rasters import STRIP, hush, open_picture, stored_values, to_array

Source = bytes | str | os.PathLike[str]
Bytes = npt.NDArray[np.uint8]

MAX_SIDE = 65_535  # JPEG's own limit; keeps one row of any decoder small


@dataclass(frozen=True)
class Limits:
    """What an image file may ask for: bytes of the file, pixels, and bytes of memory to decode it."""

    max_bytes: int = 256_000_000
    max_pixels: int = 40_000_000
    max_memory: int = 420_000_000


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True)
class Header:
    """What an image file declares: width and height in pixels as shown (EXIF orientation applied).

    `channels` is 1 where the file can hold grey only, else 3; `orientation` is the EXIF value, 1 to 8.
    """

    format: str
    width: int
    height: int
    channels: int
    orientation: int


def header(source: Source, limits: Limits = DEFAULT_LIMITS) -> Header:
    """The declared format, size and channels of an image file, without decoding it.

    Raises:
        BadImage: no readable image file, or beyond the limits.
    """
    data, name = _read(source, limits)
    info, _ = _declared(data, name, limits, 3, 1)
    height, width = upright(info)
    return Header(info.format, width, height, info.channels, info.orientation)


def decode(
    source: Source,
    *,
    at_least: int | Enough | None = None,
    channels: int = 3,
    limits: Limits = DEFAULT_LIMITS,
    look: Look | None = None,
) -> Bytes:
    """Decode an image file to uint8 (H, W, channels), contiguous, with EXIF orientation applied.

    The kind of file is known by its content: JPEG, PNG, GIF (first frame), WebP, BMP, TIFF (first page),
    PNM. Transparency is laid on white; 16-bit grey is divided by 257 and rounded, 16-bit colour keeps its
    high byte. With `at_least`, a JPEG may come back at 1/2, 1/4 or 1/8 of its size as long as its shorter
    side keeps that many pixels, or its height and width are enough. `look`: the box that is looked at;
    a part of the picture that holds it may come back, and `look` tells which. `channels` is 3 (RGB) or 1
    (grey, ITU-R 601 luma).

    Raises:
        BadImage: missing, truncated, not an image of these formats, or beyond the limits.
    """
    _check_channels(channels)
    data, name = _read(source, limits)
    info, n = _declared(data, name, limits, channels, at_least)
    if look is not None:
        look.n, look.sides = n, upright(info) if info.format == "JPEG" else None
    try:
        if info.format == "JPEG" and not info.cmyk:
            pixels = decode_jpeg(data, info, n, channels, look)
        elif info.format == "PPM":
            pixels = to_uint8(decode_pnm(data, info), channels)
        else:
            pixels = to_array(open_picture(data, info, n), channels)
    except Exception as error:  # decoders raise anything on hostile input: struct, zlib, Syntax, MemoryError
        raise _refused(name, info, error) from error
    return _own(_orient(pixels, info.orientation))


def decode_index(source: Source, limits: Limits = DEFAULT_LIMITS) -> npt.NDArray[np.int32]:
    """Decode an index mask to int32 (H, W): the indices of a palette, or the grey values as stored.

    16-bit values are kept. EXIF orientation is applied as for the image itself.

    Raises:
        BadImage: as `decode`; or a mask in colours or in a lossy format, which holds no class numbers.
    """
    data, name = _read(source, limits)
    info, _ = _declared(data, name, limits, 3, None)
    if info.format in ("JPEG", "WEBP"):
        raise BadImage(
            f"{name} is a {info.format} and holds no exact class numbers",
            hint="save masks as PNG with one grey value or palette index for each class",
        )
    try:
        if info.format == "PPM":
            values = decode_pnm(data, info, stored=True)
        else:
            values = stored_values(open_picture(data, info, 1), info.bits)
    except Exception as error:
        raise _refused(name, info, error) from error
    if values.ndim != 2:
        raise BadImage(
            f"{name} is a mask in colours",
            allowed="palette images and grey images, whose values are class numbers",
            hint="convert its colours to class numbers first",
        )
    return np.ascontiguousarray(_orient(values, info.orientation), dtype=np.int32)


def to_image(value: Any, channels: int = 3, at_least: int | None = None) -> Bytes:
    """Any form of an image to uint8 (H, W, channels): path, file bytes, array or PIL image.

    Arrays are uint8 or uint16 of shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), the fourth being opacity.
    The answer may share its memory with the array given.

    Raises:
        BadImage: another type, shape or kind of number, or a file that `decode` refuses.
    """
    _check_channels(channels)
    if isinstance(value, (bytes, str, os.PathLike)):
        return decode(value, at_least=at_least, channels=channels)
    if isinstance(value, (bytearray, memoryview)):
        return decode(bytes(value), at_least=at_least, channels=channels)
    if isinstance(value, Image.Image):
        return _from_pil(value, channels)
    if isinstance(value, np.ndarray):
        _check_array(value)
        return _own(to_uint8(value, channels))
    raise BadImage(
        f"an image of type {type(value).__name__}", allowed="a path, file bytes, an array, a PIL image"
    )


def _check_channels(channels: int) -> None:
    if channels not in (1, 3):
        raise StriateError(f"channels is {channels!r}", allowed="1 (grey) or 3 (RGB)")


def _check_array(value: npt.NDArray[Any]) -> None:
    if value.dtype not in (np.dtype(np.uint8), np.dtype(np.uint16)):
        floats = np.issubdtype(value.dtype, np.floating)
        raise BadImage(
            f"an image array of {value.dtype}",
            allowed="uint8 (0 to 255) or uint16 (0 to 65535)",
            hint="multiply values of 0 to 1 by 255, then .round().astype('uint8')"
            if floats
            else "convert with .astype('uint8') if the values are 0 to 255",
        )
    if value.ndim not in (2, 3) or (value.ndim == 3 and value.shape[2] not in (1, 3, 4)):
        hint = "move the channels to the end with .transpose(1, 2, 0)" if value.ndim == 3 else None
        raise BadImage(
            f"an image array of shape {value.shape}",
            allowed="(H, W), (H, W, 1), (H, W, 3), (H, W, 4)",
            hint=hint,
        )
    if 0 in value.shape:
        raise BadImage(f"an image array of shape {value.shape}", hint="it has no pixels")


def _read(source: Source, limits: Limits) -> tuple[bytes, str]:
    """The bytes of `source` and how errors name it."""
    if isinstance(source, bytes):
        if len(source) > limits.max_bytes:
            raise BadImage(f"image of {len(source):,} bytes", allowed=f"at most {limits.max_bytes:,} bytes")
        return source, f"the image ({len(source):,} bytes)"
    name = repr(os.fspath(source))
    try:
        status = Path(source).stat()
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise BadImage(f"{name} is {kind}", allowed="an image file")
        if status.st_size <= limits.max_bytes:
            with Path(source).open("rb") as file:
                data = file.read(limits.max_bytes + 1)
            if len(data) <= limits.max_bytes:
                return data, name
    except (OSError, ValueError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise BadImage(f"cannot read {name} ({reason})", hint="check the path") from error
    raise BadImage(f"{name} has {status.st_size:,} bytes", allowed=f"at most {limits.max_bytes:,} bytes")


def _declared(
    data: bytes, name: str, limits: Limits, channels: int, at_least: int | Enough | None
) -> tuple[Declared, int]:
    """What the file declares, once it is within the limits, and by how much it is reduced."""
    if not data:
        raise BadImage(f"{name} is empty", hint="replace the file or remove it from the data")
    try:
        info = declared(data)
    except Malformed as error:
        raise BadImage(f"cannot decode {name} ({error})", hint=_HINT) from error
    size = f"{name} declares {info.width:,}x{info.height:,} pixels"
    if not (0 < info.width <= MAX_SIDE and 0 < info.height <= MAX_SIDE):
        raise BadImage(size, allowed=f"sides of 1 to {MAX_SIDE:,}")
    pixels = info.width * info.height
    if pixels > limits.max_pixels:
        raise BadImage(size, allowed=f"at most {limits.max_pixels:,} pixels", hint="scale it down first")
    # A turned picture is copied once more, after the decoder's memory is free again.
    n = reduction(info, at_least)
    answer = pixels * channels // n**2
    strip = 16 * min(pixels, STRIP) if info.format != "JPEG" or info.cmyk else 0
    memory = len(data) + answer + max(info.working + strip, answer if info.orientation > 1 else 0)
    if memory > limits.max_memory:
        raise BadImage(
            f"{size} and needs {memory:,} bytes to decode",
            allowed=f"at most {limits.max_memory:,}",
            hint="scale it down, or save it as an 8-bit PNG or plain JPEG",
        )
    return info, n


_HINT = "replace the file or remove it from the data"


def _refused(name: str, info: Declared, error: Exception) -> BadImage:
    reason = str(error) if isinstance(error, (ValueError, OSError, SyntaxError)) else type(error).__name__
    return BadImage(f"cannot decode {name} as {info.format} ({reason or type(error).__name__})", hint=_HINT)


def _own(pixels: npt.NDArray[Any]) -> Bytes:
    """`pixels` contiguous and writable."""
    return np.require(pixels, np.uint8, ["C", "W"])


def _from_pil(picture: Image.Image, channels: int) -> Bytes:
    hush()
    try:
        picture.load()
        try:
            orientation = int(picture.getexif().get(0x112, 1))
        except Exception:  # a broken EXIF block says nothing
            orientation = 1
        pixels = to_array(picture, channels)
    except Exception as error:
        raise BadImage(
            f"cannot convert the PIL image ({error or type(error).__name__})", hint=_HINT
        ) from error
    return _own(_orient(pixels, orientation))


def _orient(pixels: npt.NDArray[Any], orientation: int) -> npt.NDArray[Any]:
    """`pixels` turned as the EXIF orientation says (EXIF 2.32, section 4.6.4, tag 0x0112)."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels
