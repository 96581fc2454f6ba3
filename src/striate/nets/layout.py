"""Sizes of maps behind a chain of convolutions and pools, and the smallest picture that the chain takes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from striate.core.errors import StriateError
from striate.layers.windows import window_count
from striate.nets.net import LIMITS, SMALL, Size, pair

Stages = Iterable[tuple[str, nn.Module]]


def map_size(stages: Stages, size: Size, *, name: str, small: bool = False) -> tuple[int, int]:
    """Height and width of the last map of `stages`, for pictures of `size`.

    Only the windows of modules with a kernel, a stride and a padding count; all else keeps the size.
    `small` says that the net has another form for small pictures.

    Raises:
        StriateError: the picture is too small for the windows; names the smallest size.
    """
    windows = _windows(stages)
    height, width = (_length(windows, n) for n in pair(size))
    if min(height, width) < 1:
        form = f", or at most {SMALL} for its small-image form" if small else ""
        raise StriateError(
            f"size is {size!r}",
            allowed=f"at least {smallest(stages)} for net {name!r}{form}",
            hint="enlarge the pictures",
        )
    return height, width


def smallest(stages: Stages) -> int:
    """The smallest side of a picture, in pixels, that leaves a map after the last of `stages`."""
    windows = _windows(stages)
    return next(n for n in range(1, LIMITS["size"] + 1) if _length(windows, n) >= 1)


def _windows(stages: Stages) -> list[tuple[int, int, int, bool]]:
    return [
        (
            _side(module.kernel_size),
            _side(module.stride),
            _side(module.padding),
            bool(getattr(module, "ceil_mode", False)),
        )
        for _, module in stages
        if hasattr(module, "kernel_size")
    ]


def _side(value: Any) -> int:
    """A window's side; the nets here have square ones only."""
    return int(value[0]) if isinstance(value, tuple) else int(value)


def _length(windows: Iterable[tuple[int, int, int, bool]], length: int) -> int:
    """Positions behind all windows along one axis; 0 where one of them does not fit."""
    for kernel, stride, padding, ceil_mode in windows:
        length = window_count(length, kernel, stride, padding, ceil_mode)
        if length < 1:
            return 0
    return length
