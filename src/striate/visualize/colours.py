"""Colours of a painting: those of the content kept, by luminance or by matched statistics."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from striate.images.colour import YIQ, to_grey

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float64]


def luma(pixels: Pixels) -> Pixels:
    """Grey (H, W, 1) of a picture."""
    return to_grey(pixels)


def match_luma(pixels: Pixels, target: Pixels) -> Pixels:
    """A picture whose luma has the mean and deviation of the target's.

    y' = (y - m) s' / s + m' (Gatys et al. 2016, arXiv:1606.05897, section 3.2).
    """
    y, wanted = luma(pixels).astype(np.float64), luma(target).astype(np.float64)
    moved = (y - y.mean()) * (wanted.std() / max(y.std(), 1e-6)) + wanted.mean()
    return _bytes(pixels + (moved - y))


def match_colours(pixels: Pixels, target: Pixels) -> Pixels:
    """A picture whose colours have the mean and covariance of the target's.

    x' = S'^(1/2) S^(-1/2) (x - m) + m', with roots by eigenvalues: the linear histogram matching of Gatys et
    al. 2016 (arXiv:1606.05897, section 3.1).
    """
    source, wanted = (image.reshape(-1, 3).astype(np.float64) for image in (pixels, target))
    before, after = _root(source, -0.5), _root(wanted, 0.5)
    moved = (source - source.mean(0)) @ (after @ before).T + wanted.mean(0)
    return _bytes(moved.reshape(pixels.shape))


def with_colours_of(painted: Pixels, content: Pixels) -> Pixels:
    """The luma of a painting with the two colour axes (YIQ) of the content."""
    yiq = content.astype(np.float64) @ YIQ.T
    yiq[..., 0] = luma(painted)[..., 0]
    return _bytes(yiq @ np.linalg.inv(YIQ).T)


def _root(values: Floats, power: float) -> Floats:
    """The covariance of rows of colours to a power; flat colours keep a grey level of deviation."""
    levels, axes = np.linalg.eigh(np.cov(values.T, bias=True).reshape(3, 3))
    found: Floats = (axes * np.maximum(levels, 1.0) ** power) @ axes.T
    return found


def _bytes(values: Floats) -> Pixels:
    found: Pixels = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return found
