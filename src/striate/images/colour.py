"""Colour: jitter, grey and palettes on uint8 arrays."""

from __future__ import annotations

import colorsys
import math
from typing import Any, cast

import cv2
import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]

LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, section 2.5.1
# RGB to YIQ (NTSC): luma, and two colour axes in whose plane a turn is a change of hue.
YIQ = np.array([[0.299, 0.587, 0.114], [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])


def to_grey(image: Bytes) -> Bytes:
    """uint8 (H, W, 3) or (H, W, 1) to grey (H, W, 1): 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601), rounded."""
    if image.shape[2] == 1:
        return image
    return cast(Bytes, cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)[..., None])


def to_uint8(values: npt.NDArray[Any], channels: int) -> Bytes:
    """uint8 or uint16 (H, W[, 1|3|4]) to uint8 (H, W, channels): scaled, laid on white, grey or RGB."""
    if values.dtype == np.uint16:
        values = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if values.ndim == 2:
        values = values[..., None]
    if values.shape[2] == 4:
        alpha = values[..., 3:].astype(np.uint16)
        values = ((values[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    if channels == 1:
        return to_grey(values)
    return cast(Bytes, np.repeat(values, 3, axis=2) if values.shape[2] == 1 else values)


def jitter(
    image: Bytes, brightness: float = 1.0, contrast: float = 1.0, saturation: float = 1.0, hue: float = 0.0
) -> Bytes:
    """Change brightness, contrast, saturation and hue of uint8 (H, W, 1|3) in one linear step.

    Factors of 1 and a hue of 0 change nothing. In this order: x = brightness * x; contrast mixes x with its
    mean grey m: m + contrast * (x - m); saturation mixes x with its own grey y: y + saturation * (x - y);
    hue turns the colour plane of YIQ by `hue` of a full turn. Values are clipped once, at the end. Grey
    images have neither saturation nor hue.
    """
    if image.shape[2] == 1:
        mean = float(image.mean()) * brightness if contrast != 1 else 0.0
        table = contrast * brightness * np.arange(256) + (1 - contrast) * mean
        return cast(Bytes, np.clip(np.rint(table), 0, 255).astype(np.uint8)[image])
    matrix = np.eye(3) * (brightness * contrast)
    offset = 0.0
    if contrast != 1:
        offset = (1 - contrast) * brightness * float(LUMA @ np.array(cv2.mean(image)[:3]))
    if saturation != 1:
        matrix = (saturation * np.eye(3) + (1 - saturation) * LUMA[None, :]) @ matrix
    if hue != 0:
        c, s = math.cos(2 * math.pi * hue), math.sin(2 * math.pi * hue)
        matrix = np.linalg.inv(YIQ) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]]) @ YIQ @ matrix
    # Neither saturation nor hue moves a grey, so that the offset stays what it was.
    full = np.concatenate([matrix, np.full((3, 1), offset)], axis=1)
    return cast(Bytes, cv2.transform(np.ascontiguousarray(image), full))


def palette(n: int) -> Bytes:
    """`n` distinct colours as uint8 (n, 3): hues a golden angle apart, in changing strength and lightness."""
    golden = (math.sqrt(5) - 1) / 2
    colours: list[tuple[int, int, int]] = []
    step = 0
    while len(colours) < n:
        strength, value = (0.85, 0.55, 0.95)[step % 3], (0.90, 0.75, 0.60, 0.98)[step % 4]
        red, green, blue = colorsys.hsv_to_rgb((0.58 + step * golden) % 1.0, strength, value)
        colour = (round(255 * red), round(255 * green), round(255 * blue))
        if colour not in colours:
            colours.append(colour)
        step += 1
    return np.array(colours, np.uint8).reshape(n, 3)
