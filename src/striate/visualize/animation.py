"""Films from frames: animated GIF and WebP by Pillow, MP4 by OpenCV, each written in one step."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from striate.core.errors import StriateError
from striate.core.files import write_bytes
from striate.images import draw

SUFFIXES = (".gif", ".webp", ".mp4")


def write_animation(path: str | os.PathLike[str], frames: Sequence[NDArray[np.uint8]], rate: float) -> Path:
    """Write frames (H, W, 1 or 3) uint8 of one size, `rate` a second, by the suffix.

    Raises:
        StriateError: another suffix, or this OpenCV cannot write MP4.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise StriateError(f"cannot write a film as {suffix or 'a file without suffix'!r}", allowed=SUFFIXES)
    pictures = [np.ascontiguousarray(draw.rgb(frame)) for frame in frames]
    return write_bytes(path, _mp4(pictures, rate) if suffix == ".mp4" else _pillow(pictures, rate, suffix))


def _pillow(pictures: Sequence[NDArray[np.uint8]], rate: float, suffix: str) -> bytes:
    images = [Image.fromarray(picture) for picture in pictures]
    if suffix == ".gif":
        images = [image.quantize(256, dither=Image.Dither.FLOYDSTEINBERG) for image in images]
    buffer = io.BytesIO()
    options = {"quality": 85, "method": 4} if suffix == ".webp" else {}
    images[0].save(
        buffer, suffix[1:].upper(), save_all=True, append_images=images[1:], duration=round(1000 / rate),
        loop=0, **options,
    )  # fmt: skip
    return buffer.getvalue()


def _mp4(pictures: Sequence[NDArray[np.uint8]], rate: float) -> bytes:
    # MPEG-4 takes even sides only.
    height, width = (side - side % 2 for side in pictures[0].shape[:2])
    if min(height, width) < 2:
        raise StriateError("an MP4 film of less than 2 x 2 pixels", hint="write a .gif or .webp")
    with tempfile.TemporaryDirectory() as folder:
        name = Path(folder) / "film.mp4"
        writer = cv2.VideoWriter(str(name), cv2.VideoWriter.fourcc(*"mp4v"), rate, (width, height))
        try:
            if not writer.isOpened():
                raise StriateError("this OpenCV cannot write MP4", hint="write a .gif or .webp")
            for picture in pictures:
                writer.write(np.ascontiguousarray(picture[:height, :width, ::-1]))
        finally:
            writer.release()
        return name.read_bytes()
