"""Drawing: grids, masks, heat maps and labels as uint8 pictures, and writing them to files."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, ImageDraw, ImageFont

from striate.core.errors import StriateError
from striate.core.files import write_bytes
from striate.images.colour import palette

Bytes = npt.NDArray[np.uint8]

# Dark to bright, even steps of lightness; and blue over white to red for signed values.
RISING = ((0, 0, 4), (66, 10, 104), (147, 38, 103), (221, 81, 58), (252, 165, 10), (252, 255, 164))
SIGNED = ((33, 74, 160), (116, 160, 214), (247, 247, 247), (230, 130, 100), (165, 15, 30))
UNKNOWN = (128, 128, 128)


def rgb(image: npt.NDArray[Any]) -> Bytes:
    """uint8 (H, W), (H, W, 1) or (H, W, 3) to (H, W, 3).

    Raises:
        StriateError: another dtype or shape.
    """
    if (
        image.dtype != np.uint8
        or image.ndim not in (2, 3)
        or (image.ndim == 3 and image.shape[2] not in (1, 3))
    ):
        raise StriateError(
            f"a picture of {image.dtype} and shape {image.shape}",
            allowed="uint8 (H, W), (H, W, 1) or (H, W, 3)",
        )
    flat = image[..., None] if image.ndim == 2 else image
    return cast(Bytes, np.repeat(flat, 3, axis=2) if flat.shape[2] == 1 else flat)


def grid(images: Sequence[Bytes], columns: int | None = None, pad: int = 2, fill: int = 255) -> Bytes:
    """Pictures side by side in rows of `columns` (about a square when left out), `pad` pixels apart.

    Each lies in the middle of a cell of the largest height and width; the rest is `fill`.

    Raises:
        StriateError: no pictures, or fewer than one column.
    """
    if not images or (columns is not None and columns < 1):
        raise StriateError(
            f"a grid of {len(images)} pictures in {columns} columns", allowed="at least 1 of each"
        )
    pictures = [rgb(image) for image in images]
    across = min(columns or int(np.ceil(np.sqrt(len(pictures)))), len(pictures))
    down = -(-len(pictures) // across)
    h, w = max(p.shape[0] for p in pictures), max(p.shape[1] for p in pictures)
    canvas = np.full((down * (h + pad) + pad, across * (w + pad) + pad, 3), fill, np.uint8)
    for i, picture in enumerate(pictures):
        top = pad + i // across * (h + pad) + (h - picture.shape[0]) // 2
        left = pad + i % across * (w + pad) + (w - picture.shape[1]) // 2
        canvas[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return canvas


def overlay_mask(
    image: Bytes,
    mask: npt.NDArray[np.integer[Any]],
    colours: Bytes | None = None,
    alpha: float = 0.5,
    ignore: int = 255,
) -> Bytes:
    """Lay the class colours of an index mask (H, W) over a picture: (1 - alpha) * image + alpha * colour.

    Pixels of the class `ignore`, and classes beyond the list of colours, show the picture itself.

    Raises:
        StriateError: the mask is not as large as the picture.
    """
    picture = rgb(image)
    if mask.shape != picture.shape[:2]:
        raise StriateError(
            f"a mask of shape {mask.shape} on a picture of {picture.shape[:2]}", allowed="equal sizes"
        )
    table = palette(max(1, int(mask[mask != ignore].max(initial=0)) + 1)) if colours is None else colours
    shown = (mask != ignore) & (mask >= 0) & (mask < len(table))
    colour = table[np.where(shown, mask, 0)]
    mixed = np.rint((1 - alpha) * picture + alpha * colour).astype(np.uint8)
    return np.where(shown[..., None], mixed, picture)


def heatmap(
    values: npt.NDArray[Any], *, signed: bool = False, low: float | None = None, high: float | None = None
) -> Bytes:
    """Numbers (H, W) as colours: dark to bright, or with `signed` blue, white at 0, red.

    The range is that of the finite values, or `low` to `high`; signed ranges are made equal on both sides.
    Values that are not finite are grey.
    """
    numbers = np.asarray(values, float)
    finite = np.isfinite(numbers)
    some = numbers[finite] if finite.any() else np.zeros(1)
    low, high = float(some.min()) if low is None else low, float(some.max()) if high is None else high
    if signed:
        high = max(abs(low), abs(high))
        low = -high
    # Halves first: the width of an extreme range would overflow.
    width = high / 2 - low / 2
    level = (
        (np.where(finite, numbers, low) / 2 - low / 2) / width if width > 0 else np.full(numbers.shape, 0.5)
    )
    anchors = np.array(SIGNED if signed else RISING, float)
    places = np.linspace(0, 1, len(anchors))
    colours = np.stack([np.interp(level.clip(0, 1), places, anchors[:, c]) for c in range(3)], axis=-1)
    return np.where(finite[..., None], np.rint(colours), UNKNOWN).astype(np.uint8)


def caption(image: Bytes, text: str, height: int = 18) -> Bytes:
    """The picture with a white bar of `height` pixels under it that holds `text`, cut to fit."""
    picture = rgb(image)
    bar = Image.new("RGB", (picture.shape[1], height), "white")
    line = text.replace("\n", " ").encode("latin-1", "replace").decode("latin-1")
    ImageDraw.Draw(bar).text((3, 2), line, fill="black", font=ImageFont.load_default())
    return np.concatenate([picture, np.asarray(bar)], axis=0)


def legend(names: Sequence[str], colours: Bytes, side: int = 224) -> Bytes:
    """Names beside squares of their colours (k, 3), one below the other: (side, side, 3) uint8."""
    picture = Image.new("RGB", (side, side), "white")
    pen, step = ImageDraw.Draw(picture), 18
    rows = max(1, (side - 6) // step)
    shown = len(names) if len(names) <= rows else rows - 1
    for number in range(shown):
        top = 6 + number * step
        pen.rectangle((6, top, 17, top + 11), fill=tuple(colours[number].tolist()))
        line = names[number].replace("\n", " ").encode("latin-1", "replace").decode("latin-1")
        pen.text((24, top), line, fill="black", font=ImageFont.load_default())
    if shown < len(names):
        text = f"and {len(names) - shown} more"
        pen.text((24, 6 + shown * step), text, fill="black", font=ImageFont.load_default())
    return np.asarray(picture)


def encode_png(image: Bytes) -> bytes:
    """uint8 (H, W), (H, W, 1) or (H, W, 3) as the bytes of a PNG file, without loss."""
    grey = image.ndim == 2 or image.shape[2] == 1
    picture = rgb(image)
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture[..., 0] if grey else picture)).save(
        buffer, "PNG", compress_level=6
    )
    return buffer.getvalue()


def encode_jpeg(image: Bytes, quality: int = 85) -> bytes:
    """uint8 (H, W), (H, W, 1) or (H, W, 3) as the bytes of a JPEG file of `quality` 1 to 100."""
    if image.ndim == 2 or image.shape[2] == 1:
        grey = np.ascontiguousarray(rgb(image)[..., :1])
        return bytes(simplejpeg.encode_jpeg(grey, quality, colorspace="GRAY", colorsubsampling="Gray"))
    return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(rgb(image)), quality, colorsubsampling="420"))


def save(path: str | os.PathLike[str], image: Bytes) -> Path:
    """Write a picture to `path` by its suffix: .png or .jpg.

    Raises:
        StriateError: another suffix, or the file cannot be written.
    """
    suffix = Path(path).suffix.lower()
    if suffix == ".png":
        return write_bytes(path, encode_png(image))
    if suffix in (".jpg", ".jpeg"):
        return write_bytes(path, encode_jpeg(image))
    raise StriateError(
        f"cannot save a picture as {suffix or 'a file without suffix'!r}", allowed=".png, .jpg"
    )
