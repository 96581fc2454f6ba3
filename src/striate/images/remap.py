"""Warps that no matrix describes: each pixel says which point of the input it shows."""

from __future__ import annotations

from typing import Any, TypeVar, cast

import cv2
import numpy as np
import numpy.typing as npt

from striate.images.geometry import (
    CV_BORDERS,
    CV_FLAGS,
    Fill,
    antialiased,
    fetched,
    fill_values,
)

T = TypeVar("T", bound=npt.NDArray[Any])


def centres(size: tuple[int, int]) -> npt.NDArray[np.float64]:
    """The centres (x, y) of the pixels of a picture of this height and width: (height, width, 2)."""
    x, y = np.meshgrid(np.arange(size[1]) + 0.5, np.arange(size[0]) + 0.5)
    return np.stack([x, y], axis=2)


def remap(
    image: T,
    sources: npt.NDArray[np.float64],
    interpolation: str = "bilinear",
    border: str = "constant",
    fill: Fill = 0,
) -> T:
    """The picture (h, w) whose pixels show the points `sources` (h, w, 2), in (x, y), of `image`.

    dtype (uint8, int32 with "nearest", float32) and channels are kept; borders, fill and antialiasing are
    those of `geometry.warp`, the reduction being the mean one over the picture.
    """
    if interpolation == "nearest":
        places = np.floor(sources + 1e-9).astype(np.int64)
        return cast(T, fetched(image, places[..., 0], places[..., 1], border, fill))
    across = np.diff(sources, axis=1).reshape(-1, 2) if sources.shape[1] > 1 else np.ones((1, 2))
    down = np.diff(sources, axis=0).reshape(-1, 2) if sources.shape[0] > 1 else np.ones((1, 2))
    x, y = np.hypot(np.abs(across).mean(axis=0), np.abs(down).mean(axis=0))
    reduced, sx, sy = antialiased(image, float(x), float(y), interpolation)
    maps = (sources * [sx, sy] - 0.5).astype(np.float32)
    found = cv2.remap(
        reduced,
        maps[..., 0],
        maps[..., 1],
        CV_FLAGS[interpolation],
        borderMode=CV_BORDERS[border],
        borderValue=fill_values(reduced, fill),
    )
    return cast(T, found.reshape(*sources.shape[:2], *image.shape[2:]))
