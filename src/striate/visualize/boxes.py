"""Boxes: in each of many changed copies of a picture, the part of a map that the change can have touched."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Span:
    """Along one axis of a map: for each copy the first row `start` (k,); the `length` is common to all."""

    start: Ints
    length: int

    @property
    def end(self) -> Ints:
        """The first row after, (k,)."""
        return self.start + self.length

    def __eq__(self, other: object) -> bool:
        same = isinstance(other, Span) and self.length == other.length
        return same and bool((self.start == other.start).all())  # type: ignore[attr-defined]

    __hash__ = None  # type: ignore[assignment]


def span(low: Ints, high: Ints, room: int) -> Span:
    """Spans of one length, inside 0 .. room, that hold low .. high (not with high) of every copy."""
    length = int(min(room, max(1, (high - low).max())))
    return Span(np.maximum(np.minimum(low, room - length), 0), length)


@dataclass(frozen=True)
class Window:
    """A sliding window along one axis, from `inside` rows to `out` rows; `before` rows of padding."""

    kernel: int
    stride: int
    before: int
    dilation: int
    inside: int
    out: int

    @property
    def reach(self) -> int:
        """Rows from the first to the last one of a window."""
        return (self.kernel - 1) * self.dilation + 1

    @property
    def after(self) -> int:
        """Rows to pad behind, so that the last window is full."""
        return max(0, (self.out - 1) * self.stride + self.reach - self.before - self.inside)

    def touched(self, changed: Span) -> Span:
        """The output rows whose windows hold a changed row."""
        low = -(-(changed.start + self.before - self.reach + 1) // self.stride)
        high = (changed.end - 1 + self.before) // self.stride + 1
        # ndarray.clip takes several times as long as these.
        low = np.minimum(np.maximum(low, 0), self.out - 1)
        return span(low, np.maximum(np.minimum(high, self.out), low + 1), self.out)

    def needed(self, rows: Span) -> Span:
        """The input rows that these output rows see; they may lie in the padding."""
        return Span(rows.start * self.stride - self.before, (rows.length - 1) * self.stride + self.reach)


@dataclass
class Boxes:
    """Changed parts of one map: values (k, C, h, w), at rows `y` and columns `x` of the map."""

    values: Tensor
    y: Span
    x: Span


class Kept:
    """The clean map (1, C, H, W) of one step, and its padded forms."""

    def __init__(self, value: Tensor) -> None:
        self.value = value
        self._padded: dict[tuple[int, int, int, int, float], Tensor] = {}

    def padded(self, sides: tuple[int, int, int, int], fill: float) -> Tensor:
        """The map (C, H, W) with (top, bottom, left, right) rows and columns of `fill` around it."""
        key = (*sides, fill)
        if key not in self._padded:
            top, bottom, left, right = sides
            whole = F.pad(self.value, (left, right, top, bottom), value=fill) if any(sides) else self.value
            self._padded[key] = whole[0]
        return self._padded[key]


def empty(like: Tensor, shape: tuple[int, int, int, int]) -> Tensor:
    """A tensor (k, C, h, w) of the kind and memory layout of a map (..., C, H, W), not filled."""
    last = like.shape[-3] > 1 and like.stride(-3) == 1
    layout = torch.channels_last if last else torch.contiguous_format
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout)


def runs(*places: Ints) -> Iterator[tuple[slice, list[int]]]:
    """Neighbouring copies whose numbers (each (k,)) are all the same, and these numbers.

    On a map coarser than the steps between copies, several have their boxes at one place; one operation then
    does for all of them.
    """
    table = np.stack(places, 1)
    ends = np.flatnonzero((table[1:] != table[:-1]).any(1)) + 1
    edges = [0, *ends.tolist(), len(table)]
    for first, last in itertools.pairwise(edges):
        yield slice(first, last), table[first].tolist()


def gather(source: Tensor, y: Span, x: Span, top: int = 0, left: int = 0) -> Tensor:
    """The parts (k, C, h, w) of one map (C, H, W) that was padded by `top` rows and `left` columns."""
    found = empty(source, (len(y.start), source.shape[0], y.length, x.length))
    for some, (row, column) in runs(y.start + top, x.start + left):
        found[some] = source[:, row : row + y.length, column : column + x.length]
    return found


def fill(
    target: Tensor, clean: Tensor, y: Span, x: Span, boxes: Boxes, top: int = 0, left: int = 0
) -> Tensor:
    """Write into `target` (k, C, h, w) what each copy has at `y`, `x`: boxes, and a clean map around them.

    clean (C, H, W) was padded by `top` rows and `left` columns. Parts of boxes outside of the target are cut.
    """
    if y == boxes.y and x == boxes.x:
        return target.copy_(boxes.values)
    y0, x0 = boxes.y.start - y.start, boxes.x.start - x.start
    for some, (row, column, down, across) in runs(y.start + top, x.start + left, y0, x0):
        part, around = target[some], clean[:, row : row + y.length, column : column + x.length]
        r0, r1 = max(0, down), min(y.length, down + boxes.y.length)
        c0, c1 = max(0, across), min(x.length, across + boxes.x.length)
        part.copy_(around)
        if r1 > r0 and c1 > c0:
            inside = boxes.values[some, :, r0 - down : r1 - down, c0 - across : c1 - across]
            part[..., r0:r1, c0:c1] = inside
    return target


def within(clean: Tensor, boxes: Boxes, y: Span, x: Span, top: int = 0, left: int = 0) -> Tensor:
    """The map of each copy at `y`, `x`: a new tensor filled, or the boxes' own values."""
    if y == boxes.y and x == boxes.x:
        return boxes.values
    target = empty(clean, (len(y.start), clean.shape[0], y.length, x.length))
    return fill(target, clean, y, x, boxes, top, left)


def joined(maps: Sequence[Tensor], parts: Sequence[Boxes], y: Span, x: Span) -> Tensor:
    """The channels of several maps (C, H, W) of each copy, one after the other, at `y`, `x`."""
    channels = [clean.shape[0] for clean in maps]
    target = empty(maps[0], (len(y.start), sum(channels), y.length, x.length))
    for piece, clean, boxes in zip(torch.split(target, channels, 1), maps, parts, strict=True):
        fill(piece, clean, y, x, boxes)
    return target


def whole(kept: Kept, boxes: Boxes) -> Tensor:
    """The map of each copy as a whole, (k, C, H, W), contiguous."""
    count, (height, width) = len(boxes.y.start), kept.value.shape[-2:]
    nothing = np.zeros(count, np.int64)
    full = kept.value.new_empty((count, *kept.value.shape[1:]))
    return fill(full, kept.value[0], Span(nothing, height), Span(nothing, width), boxes)


def shrunk(kept: Kept, boxes: Boxes, tolerance: float) -> Boxes:
    """The smallest boxes that hold every value which differs from the clean one by more than `tolerance`."""
    change = (boxes.values - gather(kept.value[0], boxes.y, boxes.x)).abs_().amax(1) > tolerance
    y, x = (_measured(change.any(axis), old) for axis, old in ((2, boxes.y), (1, boxes.x)))
    if y.length * x.length > 0.9 * boxes.y.length * boxes.x.length:
        return boxes
    smaller = empty(boxes.values, (len(y.start), boxes.values.shape[1], y.length, x.length))
    for some, (row, column) in runs(y.start - boxes.y.start, x.start - boxes.x.start):
        smaller[some] = boxes.values[some, :, row : row + y.length, column : column + x.length]
    return Boxes(smaller, y, x)


def _measured(changed: Tensor, old: Span) -> Span:
    """The span of changed rows (k, length) within an old one."""
    flags = changed.numpy(force=True)
    low = np.where(flags.any(1), flags.argmax(1), 0)
    high = np.where(flags.any(1), flags.shape[1] - flags[:, ::-1].argmax(1), 1)
    inner = span(low.astype(np.int64), high.astype(np.int64), old.length)
    return Span(old.start + inner.start, inner.length)
