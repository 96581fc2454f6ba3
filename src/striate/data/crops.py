"""Boxes of whole pixels resampled by the triangle filter, straight into the memory of a batch."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from striate.images import geometry
from striate.images.tiles import Box

Bytes = NDArray[np.uint8]
Place = tuple[int, int, int, int]
"""Where a part of a picture lies: x, y, and the height and width of the whole."""

EXACT = torch.backends.cpu.get_cpu_capability() != "DEFAULT"
"""Whether PyTorch's filter has its vector instructions (AVX2) here; without them it takes 8 times as long."""


def crop_view(image: Bytes, box: Box, size: tuple[int, int], turned: bool, out: Bytes | None = None) -> Bytes:
    """The pixels x0, y0, x1, y1 of a picture (H, W, C) uint8, C at most 4, resampled to `size` (h, w).

    The filter is a triangle, widened by the reduction where the picture shrinks, in two passes of whole
    numbers: Pillow's antialiased bilinear, to within one level. Where EXACT does not hold, it is
    `images.geometry.warp`'s "bilinear". turned: mirrored left and right; out: contiguous memory (h, w, C)
    to put it into.
    """
    x0, y0, x1, y1 = box
    part = image[y0:y1, x0:x1]
    if out is None:
        out = np.empty((*size, image.shape[2]), dtype=np.uint8)
    if not EXACT:
        out[...] = geometry.slice_view(image, box, size, turned)
        return out
    # Mirrored first, which also makes it contiguous: PyTorch's own copy would start its threads.
    mirror: Bytes = np.asarray(cv2.flip(part, 1), np.uint8) if turned else part
    whole = np.ascontiguousarray(mirror).reshape(part.shape)
    if whole.shape == out.shape:
        np.copyto(out, whole)
    else:
        # The operator under torch.nn.functional.interpolate, which cannot be told where to write.
        torch.ops.aten._upsample_bilinear2d_aa.out(_planes(whole), size, False, out=_planes(out))
    return out


def mirrored(frame: NDArray[np.float64], width: int) -> bool | None:
    """Whether a map of a view of this width onto itself (3, 3) mirrors it; None if it does anything else."""
    across, down, _ = frame.tolist()
    return {(1, 0, 0): False, (-1, 0, width): True}.get(tuple(across)) if down == [0, 1, 0] else None


def _planes(image: Bytes) -> torch.Tensor:
    """(H, W, C) as (1, C, H, W), in the same memory."""
    return torch.from_numpy(image).permute(2, 0, 1)[None]
