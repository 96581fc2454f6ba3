"""Tone: changes of values that colour jitter has not: tables of levels, sharpness, blur.

All take and give uint8 (H, W, 1|3) and leave their input as it is.
"""

from __future__ import annotations

import math
from typing import cast

import cv2
import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]

# Pillow's SMOOTH filter, of which ImageEnhance.Sharpness takes the degenerate picture.
SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13


def autocontrast(image: Bytes) -> Bytes:
    """Each channel stretched so that its darkest value becomes 0 and its brightest 255."""
    levels = np.arange(256, dtype=np.float64)
    tables = []
    for channel in range(image.shape[2]):
        low, high = int(image[..., channel].min()), int(image[..., channel].max())
        scale = 255.0 / (high - low) if high > low else 1.0
        table = levels * scale - (low * scale if high > low else 0.0)
        tables.append(np.clip(np.trunc(table), 0, 255).astype(np.uint8))
    return looked_up(image, np.stack(tables, axis=1))


def equalize(image: Bytes) -> Bytes:
    """Each channel's histogram made even: level v becomes (step / 2 + pixels below v) / step.

    step = (pixels - pixels of the brightest level) / 255; divisions round down. A channel with step 0, or
    of one level, stays as it is.
    """
    tables = []
    for channel in range(image.shape[2]):
        counts = np.bincount(image[..., channel].ravel(), minlength=256)
        last = counts[np.flatnonzero(counts)[-1]]
        step = int(counts.sum() - last) // 255
        below = np.concatenate([[0], np.cumsum(counts)[:-1]])
        table = np.arange(256) if step == 0 else (step // 2 + below) // step
        tables.append(np.clip(table, 0, 255).astype(np.uint8))
    return looked_up(image, np.stack(tables, axis=1))


def looked_up(image: Bytes, tables: Bytes) -> Bytes:
    """Values replaced by those of `tables`, (256, C)."""
    if image.shape[2] == 1:
        return tables[:, 0][image]
    return cast(Bytes, cv2.LUT(np.ascontiguousarray(image), tables[None]))


def posterize(image: Bytes, bits: int) -> Bytes:
    """The upper `bits` of every value, 0 to 8; the others are 0."""
    return image & np.uint8(256 - (1 << (8 - bits))) if bits else np.zeros_like(image)


def solarize(image: Bytes, threshold: float) -> Bytes:
    """Values from `threshold` on inverted: v becomes 255 - v."""
    levels = np.arange(256)
    return np.where(levels < threshold, levels, 255 - levels).astype(np.uint8)[image]


def sharpness(image: Bytes, factor: float) -> Bytes:
    """s + factor * (image - s), s a 3x3 mean whose centre weighs 5; 0 is blurred, 1 the image itself.

    The outermost pixels stay as they are.
    """
    flat = np.ascontiguousarray(image)
    smooth = cv2.filter2D(flat, -1, SMOOTH, borderType=cv2.BORDER_REPLICATE).reshape(image.shape)
    smooth[[0, -1]], smooth[:, [0, -1]] = image[[0, -1]], image[:, [0, -1]]
    return cast(Bytes, cv2.addWeighted(flat, factor, smooth, 1 - factor, 0).reshape(image.shape))


def blur(image: Bytes, sigma: float) -> Bytes:
    """Gaussian blur of standard deviation `sigma` pixels, cut off at 3 sigma; mirrored at the edge."""
    side = 2 * max(1, math.ceil(3 * sigma)) + 1
    flat = np.ascontiguousarray(image)
    blurred = cv2.GaussianBlur(flat, (side, side), sigma, borderType=cv2.BORDER_REFLECT_101)
    return cast(Bytes, blurred.reshape(image.shape))


def shift(image: Bytes, colour: npt.NDArray[np.float64]) -> Bytes:
    """`colour` (C,), in levels, added to every pixel."""
    levels = np.arange(256)[:, None] + np.asarray(colour, np.float64)[None]
    return looked_up(image, np.clip(np.rint(levels), 0, 255).astype(np.uint8))
