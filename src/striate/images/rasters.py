"""Pillow at arm's length: its plugins run one by one, quietly, on bytes that were looked at before."""

from __future__ import annotations

import contextlib
import ctypes
import io
import logging
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from striate.images.colour import to_uint8
from striate.images.declared import Declared, Malformed

STRIP = 1 << 20  # pixels converted at a time, so that no second copy of a large picture is made
_OPAQUE = ("RGB", "L", "1", "P", "CMYK", "YCbCr", "HSV", "LAB", "RGBX")
_PLUGINS: dict[str, type[ImageFile.ImageFile]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
}
# Without a handler Python itself would print Pillow's log lines; a program's own handlers still get them.
logging.getLogger("PIL").addHandler(logging.NullHandler())


def open_picture(data: bytes, info: Declared, reduction: int) -> Image.Image:
    """The decoded Pillow image, in the file's own mode; raises anything."""
    hush()
    picture = _PLUGINS[info.format](info.clean() if info.clean else io.BytesIO(data))
    if sorted(picture.size) != sorted((info.width, info.height)):
        raise Malformed(f"its parts disagree on the size: {info.width}x{info.height} and {picture.size}")
    if reduction > 1:
        picture.draft(None, (-(-info.width // reduction), -(-info.height // reduction)))
    picture.load()
    return picture


def hush() -> None:
    """Keep Pillow's remarks on broken TIFF tags from the terminal: such files are refused or whole."""
    # A filter set once, not `catch_warnings`: that is not safe while several threads decode.
    if _FILTER not in warnings.filters:
        warnings.filterwarnings("ignore", module=_PLUGIN_MODULES)
    if not _hushed:
        _hushed.append(True)
        # Pillow's own libtiff prints to the terminal from C; the errors themselves come as exceptions.
        for library in Path(Image.__file__).parents[1].glob("pillow.libs/libtiff*"):
            with contextlib.suppress(OSError, AttributeError):
                ctypes.CDLL(str(library)).TIFFSetErrorHandler(None)


_INDEX_MODES = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L", "I;16N")
_PHOTOMETRIC = 262  # TIFF's tag: 0 where 0 is white, 1 where it is black
_hushed: list[bool] = []
_PLUGIN_MODULES = r"PIL\.(Tiff|Png|Gif|WebP|Bmp|Jpeg)ImagePlugin"
_FILTER = ("ignore", None, Warning, re.compile(_PLUGIN_MODULES), 0)


def to_array(picture: Image.Image, channels: int) -> npt.NDArray[np.uint8]:
    """A loaded Pillow image to uint8 (H, W, channels), strip by strip; raises anything."""
    width, height = picture.size
    answer = np.empty((height, width, channels), np.uint8)
    key = picture.info.get("transparency")
    rows = max(1, STRIP // max(1, width))
    for top in range(0, height, rows):
        strip = picture.crop((0, top, width, min(top + rows, height))) if rows < height else picture
        answer[top : top + rows] = to_uint8(_strip(strip, key, picture.format == "PNG"), channels)
    return answer


def stored_values(picture: Image.Image, bits: int) -> npt.NDArray[Any]:
    """Grey values (H, W) of so many bits, or palette indices, as they are stored; (1, 1, 3) for colours."""
    if picture.mode not in _INDEX_MODES:
        return np.zeros((1, 1, 3))
    values = np.asarray(picture)
    if picture.mode not in ("1", "L"):
        return values
    # Pillow stretches 2 and 4 bits to 0..255, and turns a TIFF round in which 0 is white.
    if picture.mode == "L" and bits in (2, 4) and picture.format in ("PNG", "TIFF"):
        values = values // (255 // ((1 << bits) - 1))
    if picture.format == "TIFF" and picture.tag_v2.get(_PHOTOMETRIC, 0) == 0:  # type: ignore[attr-defined]
        values = ((1 << bits) - 1) - values.astype(np.uint8)
    return values


def _strip(strip: Image.Image, key: Any, wide: bool) -> npt.NDArray[Any]:
    """The samples of a Pillow image as uint8 or uint16 grey, RGB or RGBA."""
    mode = strip.mode
    if mode in ("RGBa", "La"):
        strip, mode = strip.convert(mode.upper()), mode.upper()
    if mode in ("RGBA", "LA", "PA") or (key is not None and mode == "P"):
        return np.asarray(strip.convert("RGBA"))
    if mode.startswith("I"):
        values = np.asarray(strip)
        # Older releases of Pillow hold the 16 bits of a PNG in 32.
        if mode == "I" and (not wide or values.min() < 0 or values.max() > 65535):
            raise Malformed("pixels of 32 bits have no fixed range; convert to 8 or 16 bits")
        return _keyed(values.astype(np.uint16), key, 65535)
    if mode not in _OPAQUE:
        raise Malformed(f"pixels of mode {mode} have no fixed range; convert to 8 or 16 bits")
    if mode in ("1", "L"):
        return _keyed(np.asarray(strip.convert("L")), key, 255)
    return _keyed(np.asarray(strip.convert("RGB")), key, 255)


def _keyed(values: npt.NDArray[Any], key: Any, top: int) -> npt.NDArray[Any]:
    """`values` with the pixels of the transparent colour `key` (grey number or RGB triple) made white."""
    if key is None or isinstance(key, bytes):
        return values
    if values.ndim == 2 and isinstance(key, int):
        return np.where(values == key, values.dtype.type(top), values)
    if values.ndim == 3 and isinstance(key, tuple) and len(key) == 3 and max(key) <= 255:
        return np.where((values == np.asarray(key)).all(2, keepdims=True), values.dtype.type(top), values)
    return values
