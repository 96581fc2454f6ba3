"""Whole-pixel maps of a whole batch: one gather of pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from striate.data.augmentations import Floats


def whole_pixels(frames: Floats) -> NDArray[np.bool_]:
    """Which of the maps (N, 3, 3) only shift by whole pixels and mirror: (N,)."""
    diagonal = np.abs(frames[:, [0, 1], [0, 1]])
    shifts = frames[:, :2, 2]
    slant = (frames[:, 0, 1] == 0) & (frames[:, 1, 0] == 0)
    return np.asarray(slant & (diagonal == 1).all(axis=1) & (shifts == np.floor(shifts)).all(axis=1))


def gather(
    stack: NDArray[Any], rows: NDArray[np.int64], frames: Floats, border: str, fill: tuple[int, ...] | None
) -> NDArray[Any]:
    """Whole-pixel maps of images stack[rows] as one gather of pixels: (N, H, W, C).

    fill: what lies beyond the image, None with a border "reflect" or "edge".
    """
    _, height, width, channels = stack.shape
    y, outside_y = _sources(frames[:, 1, 1], frames[:, 1, 2], height, border)
    x, outside_x = _sources(frames[:, 0, 0], frames[:, 0, 2], width, border)
    index = (rows[:, None] * height + y)[:, :, None] * width + x[:, None, :]
    found: NDArray[Any] = stack.reshape(-1, channels).take(index, axis=0)
    if fill is not None:
        found[outside_y[:, :, None] | outside_x[:, None, :]] = fill
    return found


def _sources(
    sign: Floats, shift: Floats, count: int, border: str
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """For each new pixel along one axis the old one, (N, count), and whether that lies beyond the image."""
    # The centre of pixel i is i + 0.5: a mirror sends it to shift - i - 0.5, that is to pixel shift - 1 - i.
    step, start = sign.astype(np.int64)[:, None], (shift - (sign < 0)).astype(np.int64)[:, None]
    place = step * (np.arange(count) - start)
    outside = (place < 0) | (place >= count)
    if border == "reflect" and count > 1:
        period = 2 * (count - 1)
        place %= period
        place = np.minimum(place, period - place)
    return np.clip(place, 0, count - 1), outside


def inverse(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """The map the other way."""
    return np.asarray(np.linalg.inv(matrix), dtype=np.float64)


def carried(points: NDArray[np.float64], matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points (..., 2), in (x, y), moved by an affine map."""
    return np.asarray(points @ matrix[:2, :2].T + matrix[:2, 2])
