"""Memory for batches, used again when nobody holds the batch: fresh pages cost more than filling them."""

from __future__ import annotations

import sys
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

KEPT = 4
"""Buffers kept at most: the batch in use, the one made next, and those that a slow consumer holds."""


class Buffers:
    """Flat float32 tensors on the CPU; one is handed out again once no tensor shares its memory any more."""

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._arrays: list[NDArray[Any]] = []

    def take(self, count: int) -> Tensor:
        """`count` values, of any content."""
        self._arrays = [array for array in self._arrays if array.size >= count]
        for array in self._arrays:
            # A tensor made of an array holds a reference to it as long as anything shares the tensor's
            # memory. Without such: the list, the name `array`, and the argument of getrefcount.
            if sys.getrefcount(array) == 3:
                return torch.from_numpy(array)[:count]
        array = torch.empty(count, dtype=torch.float32).numpy()
        if len(self._arrays) < self._kept:
            self._arrays.append(array)
        return torch.from_numpy(array)
