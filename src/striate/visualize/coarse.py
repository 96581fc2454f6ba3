"""A grid of positions from coarse to fine: computed where neighbours differ, interpolated elsewhere."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
# Interpolated positions that are computed after all, to say how far off the others are.
CHECKED = 29
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Refined:
    """values (rows, columns, q) at every position; `computed` (rows, columns) where they are exact.

    error (watched,): the largest difference between interpolated and exact values at `checked` positions,
    drawn at random from those left to interpolation, and exact since; share: with 95% confidence no larger
    part of the positions that are still interpolated lies further off than that.
    """

    values: Floats
    computed: NDArray[np.bool_]
    error: Floats
    checked: int
    share: float


def refine(
    shape: tuple[int, int], step: int, tolerance: float, watched: int, compute: Callable[[Ints], Floats]
) -> Refined:
    """Values of a grid, computed at every `step`-th position first, and between them where it changes.

    compute: position numbers, row by row (n,) -> values (n, q). A cell of four computed corners is left to
    bilinear interpolation where the first `watched` values differ by at most `tolerance` between its
    corners, and all corners have the largest of the other values in the same place; elsewhere it is halved.
    """
    grid = _Grid(shape, compute)
    rows, columns = (_lattice(length, step) for length in shape)
    grid.add([(r, c) for r in rows for c in columns])
    cells = [(a, b, c, d) for a, b in _pairs(rows) for c, d in _pairs(columns)]
    while cells:
        halved, wanted = [], []
        for cell in cells:
            a, b, c, d = cell
            if b - a <= 1 and d - c <= 1:
                continue
            if not grid.differ(cell, watched, tolerance):
                grid.interpolate(cell)
                continue
            rows, columns = sorted({a, (a + b) // 2, b}), sorted({c, (c + d) // 2, d})
            wanted += [(r, q) for r in rows for q in columns]
            halved += [(r, s, p, q) for r, s in _pairs(rows) for p, q in _pairs(columns)]
        grid.add(wanted)
        cells = halved
    return grid.checked(watched)


class _Grid:
    """Values so far, and which of them are computed."""

    def __init__(self, shape: tuple[int, int], compute: Callable[[Ints], Floats]) -> None:
        self.shape, self.compute = shape, compute
        self.computed = np.zeros(shape, bool)
        self.values = np.zeros((*shape, 0))

    def add(self, places: list[tuple[int, int]]) -> None:
        """Compute what is not computed yet."""
        numbers = [r * self.shape[1] + c for r, c in sorted(set(places)) if not self.computed[r, c]]
        if numbers:
            self.set(np.array(numbers, np.int64))

    def set(self, numbers: Ints) -> None:
        """Compute these positions."""
        found = self.compute(numbers)
        if not self.values.shape[-1]:
            self.values = np.zeros((*self.shape, found.shape[1]))
        self.values.reshape(-1, found.shape[1])[numbers] = found
        self.computed.ravel()[numbers] = True

    def differ(self, cell: tuple[int, int, int, int], watched: int, tolerance: float) -> bool:
        """Whether the corners of a cell do."""
        a, b, c, d = cell
        corners = self.values[[a, a, b, b], [c, d, c, d]]
        labels = corners[:, watched:].argmax(1)
        return bool((np.ptp(corners[:, :watched], axis=0) > tolerance).any() or np.ptp(labels) > 0)

    def interpolate(self, cell: tuple[int, int, int, int]) -> None:
        """Fill a cell between its corners, but for what is computed."""
        a, b, c, d = cell
        down = (np.arange(a, b + 1) - a)[:, None, None] / max(1, b - a)
        across = (np.arange(c, d + 1) - c)[None, :, None] / max(1, d - c)
        v = self.values
        above = v[a, c] * (1 - across) + v[a, d] * across
        below = v[b, c] * (1 - across) + v[b, d] * across
        part = v[a : b + 1, c : d + 1]
        part[...] = np.where(
            self.computed[a : b + 1, c : d + 1, None], part, above * (1 - down) + below * down
        )

    def checked(self, watched: int) -> Refined:
        """What is there, with some of the interpolated positions computed."""
        left = np.flatnonzero(~self.computed)
        some = np.sort(np.random.default_rng(0).permutation(left)[:CHECKED])
        error, share = np.zeros(watched), 0.0
        if len(some):
            flat = self.values.reshape(-1, self.values.shape[-1])
            said = flat[some].copy()
            self.set(some)
            error = np.abs(flat[some] - said)[:, :watched].max(0)
            # If a larger part were worse, n draws would all miss it with less than 1 - CONFIDENCE.
            share = 0.0 if len(some) == len(left) else 1 - (1 - CONFIDENCE) ** (1 / len(some))
        return Refined(self.values, self.computed, error, len(some), share)


def _lattice(length: int, step: int) -> list[int]:
    """Every `step`-th number below `length`, and the last."""
    found = list(range(0, length, step))
    return found if found[-1] == length - 1 else [*found, length - 1]


def _pairs(numbers: list[int]) -> list[tuple[int, int]]:
    """Neighbours; a single number is its own."""
    return list(itertools.pairwise(numbers)) or [(numbers[0], numbers[0])]
