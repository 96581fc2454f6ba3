"""What is kept of one stage while images stream by: its units' strongest images, and sums over all."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from striate.core.errors import StriateError
from striate.visualize.method import must_be_numbers

EMPTY = -torch.inf
# Images whose responses are ranked and added together: many small operations cost as much for a few.
TOGETHER = 512
# Values that a reduction takes side by side.
WIDE = 512


@dataclass(frozen=True)
class Facts:
    """What is known of one batch: sample numbers and pixel digests (N,), and whose positions are counted."""

    index: Tensor
    digests: Tensor
    sampled: slice

    def to(self, device: torch.device) -> Facts:
        """The same on a device."""
        return Facts(self.index.to(device), self.digests.to(device), self.sampled)


@dataclass(frozen=True)
class Responses:
    """Of some images the units' responses and flat places in the maps (N, C), numbers and digests (N,)."""

    values: Tensor
    places: Tensor
    index: Tensor
    digests: Tensor


class Running:
    """One stage: for each of its C units the k strongest images, and sums for the statistics.

    A unit's response to an image is its largest value over the map's positions. Of equal responses the
    earlier image is the stronger, of equal positions the first one in reading order; pixels that a kept
    image has already do not count again. Memory: C * k entries, sums, and C * C for the correlation where C
    is at most `widest`.
    """

    def __init__(self, stage: str, k: int, widest: int) -> None:
        self.stage, self.k, self.widest = stage, k, widest
        self.shape: tuple[int, ...] = ()
        self.images = 0
        self.positions = 0
        self._waiting: list[Responses] = []

    def see(self, output: object, facts: Facts) -> None:
        """Take in what the stage gives for one batch: maps (N, C, h, w) or values (N, C).

        Raises:
            StriateError: it gives something else, another number of units than before, or as `settle`.
        """
        maps = self._maps(output)
        # What is no stronger than the weakest kept value is never ranked.
        found, places = strongest(maps, self.values[:, -1].to(maps) if self.shape else None)
        found = found.float()
        if not self.shape:
            self._start(maps, found)
        elif maps.shape[1] != self.shape[0]:
            raise StriateError(
                f"stage {self.stage!r} gives {maps.shape[1]} units after {self.shape[0]} before",
                hint="units are told apart by their number: name a stage with a fixed number of them",
            )
        self._count(maps, facts)
        self._waiting.append(Responses(found, places, facts.index, facts.digests))
        if sum(len(one.index) for one in self._waiting) >= TOGETHER:
            self.settle()

    def settle(self) -> None:
        """Take in the responses that wait for others: before anything is read.

        Raises:
            StriateError: they are no numbers.
        """
        if self._waiting:
            columns = ("values", "places", "index", "digests")
            some = Responses(*(torch.cat([getattr(one, c) for one in self._waiting]) for c in columns))
            self._waiting = []
            must_be_numbers(some.values, f"the activations of {self.stage!r}")
            with torch.inference_mode():
                self._rank(some)
                self._add(some.values)

    def _maps(self, output: object) -> Tensor:
        if isinstance(output, Tensor) and output.ndim == 2 and output.is_floating_point():
            return output[:, :, None, None]
        if isinstance(output, Tensor) and output.ndim == 4 and output.is_floating_point():
            return output
        shape = tuple(output.shape[1:]) if isinstance(output, Tensor) else type(output).__name__
        raise StriateError(
            f"stage {self.stage!r} gives {shape}, which are no units",
            allowed="maps (units, height, width) or values (units,) of each image",
        )

    def _start(self, maps: Tensor, found: Tensor) -> None:
        units, device = maps.shape[1], maps.device
        self.shape = tuple(maps.shape[1:])
        self.values = torch.full((units, self.k), EMPTY, device=device)
        self.index = torch.full((units, self.k), -1, dtype=torch.int64, device=device)
        self.places = torch.full((units, self.k, 2), -1, dtype=torch.int64, device=device)
        self.digests = torch.zeros((units, self.k), dtype=torch.int64, device=device)
        # Sums are taken of differences from the first image's values: they do not cancel.
        kind = torch.float32 if device.type == "mps" else torch.float64
        self.origin = found[0].to(kind, copy=True)
        self.total = torch.zeros(units, dtype=kind, device=device)
        self.square = torch.zeros_like(self.total)
        self.active = torch.zeros_like(self.total)
        self.rectified, self.rectified_square = torch.zeros_like(self.total), torch.zeros_like(self.total)
        cross = units <= self.widest
        self.cross = torch.zeros((units, units), dtype=kind, device=device) if cross else None
        self.middle = maps[0].mean((1, 2)).float()
        self.sums = torch.zeros((3, units), dtype=kind, device=device)

    def _rank(self, some: Responses) -> None:
        """Put the images that are stronger than a unit's weakest kept one in their places."""
        # Of images with the same pixels the first counts.
        first = np.unique(some.digests.cpu().numpy(), return_index=True)[1]
        fresh_pixels = torch.zeros(len(some.digests), dtype=torch.bool)
        fresh_pixels[torch.from_numpy(first)] = True
        better = (some.values > self.values[:, -1]) & fresh_pixels.to(some.values.device)[:, None]
        images, units = better.nonzero(as_tuple=True)
        if len(images) == 0:
            return
        known = (self.digests[units] == some.digests[images][:, None]) & (self.index[units] >= 0)
        twins = known.any(1)
        better[images[twins], units[twins]] = False
        chosen = better.any(0).nonzero()[:, 0]
        if len(chosen) == 0:
            return
        fresh = some.values.masked_fill(~better, EMPTY).T[chosen]
        # A stable sort of what is kept, then the batch in its order: of equals the earlier image wins.
        values, order = torch.cat([self.values[chosen], fresh], 1).sort(dim=1, descending=True, stable=True)
        values, order = values[:, : self.k], order[:, : self.k]
        new = (order >= self.k) & (values > EMPTY)
        batch = order - self.k
        old = order.clamp(max=self.k - 1)
        inside = batch.clamp(min=0)
        index = torch.where(new, some.index[inside], self.index[chosen].gather(1, old))
        digests = torch.where(new, some.digests[inside], self.digests[chosen].gather(1, old))
        places = self.places[chosen].gather(1, old[..., None].expand(-1, -1, 2))
        empty = values == EMPTY
        index[empty], places[empty] = -1, -1
        rows, slots = new.nonzero(as_tuple=True)
        flat, width = some.places[batch[rows, slots], chosen[rows]], self.shape[2]
        places[rows, slots] = torch.stack([flat // width, flat % width], 1)
        self.values[chosen], self.index[chosen] = values, index
        self.places[chosen], self.digests[chosen] = places, digests

    def _add(self, found: Tensor) -> None:
        kind = self.total.dtype
        apart = found.to(kind) - self.origin
        above = found.clamp(min=0).to(kind)
        self.images += len(found)
        self.total += apart.sum(0)
        self.square += (apart * apart).sum(0)
        self.active += (found > 0).sum(0)
        self.rectified += above.sum(0)
        self.rectified_square += (above * above).sum(0)
        if self.cross is not None:
            self.cross += apart.T @ apart

    def _count(self, maps: Tensor, facts: Facts) -> None:
        """Add the values at all positions, of the images that are sampled."""
        if facts.sampled.start >= len(maps):
            return
        some = maps[facts.sampled].permute(0, 2, 3, 1).reshape(-1, maps.shape[1]).float()
        apart = some - self.middle
        self.positions += len(some)
        # Sums over rows as products: reductions of narrow rows are slow.
        ones = torch.ones(1, len(some), device=some.device)
        self.sums[2] += (ones @ (some > 0).to(some))[0]
        self.sums[0] += (ones @ apart)[0]
        self.sums[1] += (ones @ apart.square_())[0]

    # --- what has been found ----------------------------------------------------------------------------

    def statistics(self) -> dict[str, NDArray[np.float64]]:
        """The statistics (C,) by name, as `units.StageUnits` tells them."""
        n, m = self.images, self.positions
        total, square = self.total.cpu().double(), self.square.cpu().double()
        sums, middle = self.sums.cpu().double(), self.middle.cpu().double()
        mean = sums[0] / m
        share = self.rectified.cpu().double() ** 2 / (n * self.rectified_square.cpu().double())
        figures = {
            "mean": mean + middle,
            "variance": (sums[1] / m - mean * mean).clamp(min=0),
            "active": sums[2] / m,
            "response_mean": total / n + self.origin.cpu().double(),
            "response_variance": (square / n - (total / n) ** 2).clamp(min=0),
            "response_active": self.active.cpu().double() / n,
            # One image alone cannot tell; a unit that is never active has no share (0 / 0).
            "sparseness": (1 - share) / (1 - 1 / n) if n > 1 else torch.full_like(mean, torch.nan),
        }
        return {name: values.numpy() for name, values in figures.items()}

    def correlation(self) -> NDArray[np.float32] | None:
        """Pearson's correlation (C, C) of the responses; NaN for units whose response never varies."""
        if self.cross is None:
            return None
        mean = self.total.cpu().double() / self.images
        covariance = self.cross.cpu().double() / self.images - mean[:, None] * mean
        variance = covariance.diagonal().clone()
        # Rounding leaves a constant response some 1e-16 of its square: that is no variance.
        scale = self.square.cpu().double() / self.images
        variance[variance <= 1e-12 * scale] = torch.nan
        deviation = variance.sqrt()
        matrix = (covariance / (deviation[:, None] * deviation)).clamp(-1, 1)
        found: NDArray[np.float32] = matrix.float().numpy()
        return found


def strongest(maps: Tensor, above: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The largest value of each map (N, C, h, w) and its first place in reading order, flat, each (N, C).

    Places are sought for values `above` (C,) only, where that is given; the others are 0.
    """
    height, width = maps.shape[2:]
    if maps.is_contiguous() or height * width == 1:
        found = maps.flatten(2).max(2)
        return found.values, found.indices
    values = largest(maps)
    if above is not None:
        images, units = (values > above).nonzero(as_tuple=True)
        if len(images) <= maps.shape[1]:
            places = torch.zeros(values.shape, dtype=torch.int64, device=values.device)
            places[images, units] = maps[images, units].flatten(1).argmax(1)
            return values, places
    # A reduction with places over the outer axes of channels_last memory is ten times as slow as pooling.
    return values, F.max_pool2d(maps, (height, width), return_indices=True)[1][:, :, 0, 0]


def largest(maps: Tensor) -> Tensor:
    """The largest value of each channels_last map, (N, C): over wide rows of several positions first."""
    rows = maps.permute(0, 2, 3, 1).flatten(1)
    positions, wide = maps.shape[2] * maps.shape[3], 1
    while wide * maps.shape[1] < WIDE and positions % (2 * wide) == 0:
        wide *= 2
    return rows.view(len(maps), positions // wide, -1).amax(1).view(len(maps), wide, -1).amax(1)
