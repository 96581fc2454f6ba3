"""Images as they are given: one or several, by path, bytes, array or folder."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from striate.core.errors import StriateError

_READ = "jpg jpeg jpe jfif png gif webp bmp dib tif tiff ppm pgm pbm pnm"
IMAGE_SUFFIXES = tuple(f".{name}" for name in _READ.split(" "))
"""Of files that are taken for images; what they are their content decides."""


def is_one(images: Any) -> bool:
    """Whether `images` is one image: a file, bytes, an array (H, W[, C]), a PIL image; a folder is several.

    Raises:
        StriateError: neither an image nor an iterable.
    """
    if isinstance(images, (str, os.PathLike)):
        return not Path(images).is_dir()
    if isinstance(images, (bytes, bytearray, memoryview)):
        return True
    if hasattr(images, "__array__") or hasattr(images, "convert"):
        return len(getattr(images, "shape", ())) < 4
    if not isinstance(images, Iterable):
        raise StriateError(
            f"an image is given as {type(images).__name__}",
            allowed="a path, bytes, an array, a PIL image, or an iterable of them",
        )
    return False


def several(images: Any) -> Iterable[Any]:
    """The images of an iterable, or the files below a folder."""
    return image_files(images) if isinstance(images, (str, os.PathLike)) else images


def image_files(folder: str | os.PathLike[str]) -> list[Path]:
    """The image files below a folder, in order of their paths.

    Raises:
        StriateError: there is none, or a folder in it may not be read.
    """

    def refuse(error: OSError) -> None:
        raise StriateError(
            f"cannot read the folder {str(error.filename)!r} ({error.strerror})", hint="check its permissions"
        ) from error

    files = (Path(place, name) for place, _, names in os.walk(folder, onerror=refuse) for name in names)
    found = sorted(
        path
        for path in files
        # Names with a leading dot are what systems leave beside pictures, such as macOS's ._photo.jpg.
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()
    )
    if not found:
        raise StriateError(f"there is no image in the folder {os.fspath(folder)!r}", allowed=IMAGE_SUFFIXES)
    return found


def name_of(image: Any, number: int) -> str:
    """The path of an image, or its number."""
    return os.fspath(image) if isinstance(image, (str, os.PathLike)) else f"image {number}"
