"""Memory for batches, used again when nobody holds the batch: fresh pages cost more than filling them."""

from __future__ import annotations

import itertools
import mmap
import os
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from striate.core.errors import StriateError

KEPT = 4
"""Buffers kept at most: the batch in use, the one made next, and those that a slow consumer holds."""
MOST_OPENED = 16
"""Buffers of another process that one holds on to."""
Name = tuple[int, str]
"""A number that no other buffer of the process ever has, and a path."""
_numbers = itertools.count()
_opened: dict[int, NDArray[Any]] = {}


class Buffers:
    """Flat float32 tensors on the CPU; one is handed out again once no tensor shares its memory any more.

    shared: other processes can open them by `name_of`, while this one holds them; where `can_share`.
    """

    def __init__(self, kept: int = KEPT, shared: bool = False) -> None:
        self._kept, self._shared = kept, shared
        self._arrays: list[NDArray[Any]] = []
        self._names: dict[int, Name] = {}

    def take(self, count: int) -> Tensor:
        """`count` values, of any content."""
        self._arrays = [array for array in self._arrays if array.size >= count]
        for array in self._arrays:
            # A tensor made of an array holds a reference to it as long as anything shares the tensor's
            # memory. Without such: the list, the name `array`, and the argument of getrefcount.
            if sys.getrefcount(array) == 3:
                return torch.from_numpy(array)[:count]
        array = self._open(count) if self._shared else torch.empty(count, dtype=torch.float32).numpy()
        if len(self._arrays) < self._kept:
            self._arrays.append(array)
        return torch.from_numpy(array)

    def name_of(self, tensor: Tensor) -> Name:
        """What `opened` takes in another process, for a shared tensor as `take` gave it."""
        return self._names[tensor.data_ptr()]

    def _open(self, count: int) -> NDArray[Any]:
        # Memory of no file: nothing is left behind, however this process ends.
        handle = os.memfd_create("striate-batch")
        os.truncate(handle, 4 * count)
        mapped = mmap.mmap(handle, 4 * count)
        # The mapping has a handle of its own; this one gives the name, as long as there is the mapping.
        weakref.finalize(mapped, os.close, handle)
        array: NDArray[Any] = np.frombuffer(mapped, np.float32)
        address = array.__array_interface__["data"][0]
        self._names[address] = (next(_numbers), f"/proc/{os.getpid()}/fd/{handle}")
        return array


def can_share() -> bool:
    """Whether buffers can be shared with other processes here."""
    return hasattr(os, "memfd_create") and Path("/proc/self/fd").is_dir()


def opened(name: Name) -> NDArray[Any]:
    """A shared buffer of another process, as flat float32 values.

    Raises:
        StriateError: this process may not look at that one.
    """
    number, path = name
    if number not in _opened:
        try:
            with open(path, "r+b") as file:
                array: NDArray[Any] = np.frombuffer(mmap.mmap(file.fileno(), 0), np.float32)
        except OSError as error:
            hint = "leave out the mode 'processes'"
            raise StriateError(
                f"a loader process cannot share memory ({error.strerror})", hint=hint
            ) from error
        while len(_opened) >= MOST_OPENED:
            del _opened[min(_opened)]
        _opened[number] = array
    return _opened[number]
