"""The atlas of units: for every unit of a stage the patches that excite it most, beside their projections."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from striate.core.errors import StriateError, unknown
from striate.data.samples import Split
from striate.images import draw
from striate.layers.winograd import tiled
from striate.nets.geometry import StageInfo
from striate.nets.taps import leaves_as_found
from striate.visualize.method import Pixels
from striate.visualize.patches import (
    Box,
    Place,
    cut,
    drawn_signal,
    in_batches,
    project,
    receptive_box,
    tile,
)  # fmt: skip
from striate.visualize.rules import RULES
from striate.visualize.stages import infos_of
from striate.visualize.units import StageUnits, Tell

if TYPE_CHECKING:
    from striate.model import Model

PATCHES = "patches"
# Pixels of a whole picture of a stage, the sides of its tiles, and gaps within and between units.
MOST_PIXELS = 24_000_000
LEAST_SIDE, SHOWN_SIDE = 12, 48
GAP, APART = 1, 6
GAP_COLOUR = 90


@dataclass(frozen=True)
class StageTiles:
    """The drawings of one stage's units.

    numbers (n,): of the units drawn; tiles: name -> (n, k, h, w, C) uint8, "patches" first, then one entry
    for each backward rule; seen (n, k): whether there is such an image and the unit is above 0 on it: other
    tiles are grey. stride and side: of the units in the picture, in pixels; 0 where the net does not tell.
    """

    found: StageUnits
    numbers: NDArray[np.int64]
    tiles: dict[str, Pixels]
    seen: NDArray[np.bool_]
    stride: int = 0
    side: int = 0
    view: tuple[int, int] = (0, 0)


class Spot(NamedTuple):
    """A tile: sample number of its image, place of its unit among those drawn, and its rank."""

    image: int
    row: int
    slot: int


@dataclass
class _Views:
    """The views of a few images, read as they are needed."""

    model: Model
    split: Split
    kept: dict[int, Pixels] = field(default_factory=dict)

    def get(self, numbers: Sequence[int]) -> list[Pixels]:
        """The views of these images; those of others are forgotten."""
        self.kept = {number: self.kept[number] for number in numbers if number in self.kept}
        preprocess = self.model.preprocess
        for number in numbers:
            if number not in self.kept:
                image = self.split.image(number, at_least=preprocess.at_least(), channels=preprocess.channels)
                self.kept[number] = preprocess.view(image)
        return [self.kept[number] for number in numbers]


def draw_stage(
    model: Model,
    split: Split,
    found: StageUnits,
    *,
    rules: Sequence[str] = ("deconvnet",),
    numbers: Sequence[int] | None = None,
    side: int = 64,
    batch: int = 16,
    tell: Tell | None = None,
) -> StageTiles:
    """The patches of the strongest images of a stage's units, and their projections by each rule.

    split: that of the pass; numbers: of the units, None for all; side: the longer side of a tile at most,
    in pixels; batch: patches run back together. A patch is the receptive field of the position where the
    unit is strongest; outside of the picture it has the mean colour. tell(done, all) is called after each
    batch. The net is left as it was found.

    Raises:
        StriateError: no such unit or rule, or a rule that has no meaning for the net.
    """
    for rule in rules:
        if rule not in RULES:
            raise unknown("backward rule", rule, RULES)
    chosen = np.arange(len(found)) if numbers is None else np.asarray(numbers, np.int64).reshape(-1)
    if len(chosen) == 0 or chosen.min() < 0 or chosen.max() >= len(found):
        raise StriateError(
            f"units {list(map(int, chosen))[:8]} of stage {found.stage!r}", allowed=f"0 to {len(found) - 1}"
        )
    artist = _Artist(model, split, found, chosen, side)
    spots = artist.spots()
    # Pictures of different sizes do not fit into one batch.
    at_once = batch if model.preprocess.size is not None else 1
    with leaves_as_found(model.net), tiled(model.net):
        model.net.eval().requires_grad_(False)
        done = 0
        for part in in_batches(spots, at_once):
            artist.draw(part, rules)
            done += len(part)
            if tell is not None:
                tell(done, len(spots))
    return artist.finished(rules)


class _Artist:
    """Draws the tiles of one stage, some at a time."""

    def __init__(
        self, model: Model, split: Split, found: StageUnits, numbers: NDArray[np.int64], side: int
    ) -> None:
        self.model, self.found, self.numbers, self.side = model, found, numbers, side
        self.views = _Views(model, split)
        self.seen = (found.index[numbers] >= 0) & (found.values[numbers] > 0)
        self.tiles: dict[str, Pixels] = {}
        self.info: StageInfo | None = None
        self.size: tuple[int, int] = (0, 0)

    def spots(self) -> list[Spot]:
        """All tiles that hold something, image by image."""
        rows, slots = np.nonzero(self.seen)
        images = self.found.index[self.numbers[rows], slots]
        order = np.lexsort((slots, rows, images))
        return [Spot(int(images[i]), int(rows[i]), int(slots[i])) for i in order]

    def draw(self, spots: Sequence[Spot], rules: Sequence[str]) -> None:
        """Draw the tiles of these spots."""
        numbers = list(dict.fromkeys(spot.image for spot in spots))
        views = self.views.get(numbers)
        if self.size != views[0].shape[:2]:
            self.size = (views[0].shape[0], views[0].shape[1])
            self.info = next((i for i in infos_of(self.model, views[0]) if i.name == self.found.stage), None)
        places = []
        for spot in spots:
            unit = int(self.numbers[spot.row])
            row, column = self.found.places[unit, spot.slot].tolist()
            places.append(Place(numbers.index(spot.image), unit, row, column))
        fill = self.model.preprocess.fill
        boxes = [receptive_box(self.info, place.row, place.column, *self.size) for place in places]
        for spot, place, box in zip(spots, places, boxes, strict=True):
            self._put(PATCHES, spot, cut(views[place.picture], box, fill))
        if not rules:
            return
        x = self.model.preprocess.normalise(torch.from_numpy(np.stack(views))).to(self.model.device)
        signals = project(self.model, x, self.found.stage, places, rules)
        for rule, several in zip(rules, signals, strict=True):
            for spot, signal, box in zip(spots, several, boxes, strict=True):
                self._put(rule, spot, drawn_signal(signal, box))

    def _put(self, name: str, spot: Spot, pixels: Pixels) -> None:
        small = tile(pixels, self.side)
        if name not in self.tiles:
            shape = (*self.seen.shape, *small.shape)
            self.tiles[name] = np.full(shape, 128, np.uint8)
        room = self.tiles[name].shape[2:4]
        if small.shape[:2] != room:
            # Pictures of different sizes: the tile is that of the first one.
            small = np.ascontiguousarray(cut(small, _middle(small, room)))
        self.tiles[name][spot.row, spot.slot] = small

    def finished(self, rules: Sequence[str]) -> StageTiles:
        """All tiles; grey ones where nothing was seen at all."""
        blank = np.full((*self.seen.shape, 1, 1, self.model.preprocess.channels), 128, np.uint8)
        tiles = {name: self.tiles.get(name, blank) for name in (PATCHES, *rules)}
        stride, side = (0, 0) if self.info is None else (self.info.stride, self.info.receptive_field)
        return StageTiles(self.found, self.numbers, tiles, self.seen, stride, side, self.size)


def block(tiles: Pixels, factor: int = 1) -> Pixels:
    """The k tiles (k, h, w, C) of one unit in a square, (H, W, 3), enlarged by a whole factor."""
    columns = math.ceil(math.sqrt(len(tiles)))
    large = [np.repeat(np.repeat(draw.rgb(one), factor, axis=0), factor, axis=1) for one in tiles]
    grid = draw.grid(large, columns=columns, pad=GAP, fill=GAP_COLOUR)
    return np.ascontiguousarray(grid[GAP:-GAP, GAP:-GAP])


def enlargement(tiles: Pixels, side: int = SHOWN_SIDE) -> int:
    """The whole factor by which small tiles (..., h, w, C) are enlarged to about `side` pixels."""
    longest: int = max(tiles.shape[-3:-1])
    return max(1, round(side / longest))


def sheet(drawn: StageTiles) -> Pixels:
    """All units of a stage in one picture: patches beside projections, the unit's number beneath.

    Zeiler and Fergus, Visualizing and Understanding Convolutional Networks (arXiv:1311.2901), figure 2.
    Tiles become smaller where the picture would have more than 24 million pixels.
    """
    patches = drawn.tiles[PATCHES]
    count, k = patches.shape[:2]
    across = math.ceil(math.sqrt(k))
    largest = max(patches.shape[2:4])
    factor = enlargement(patches)
    room = MOST_PIXELS / (count * len(drawn.tiles) * across * -(-k // across))
    limit = max(LEAST_SIDE, int(math.sqrt(room)) - 2)
    while factor > 1 and factor * largest > limit:
        factor -= 1
    shrunk = {
        name: [[tile(one, limit) for one in unit] for unit in several] if largest > limit else list(several)
        for name, several in drawn.tiles.items()
    }
    units = []
    for place, number in enumerate(drawn.numbers.tolist()):
        parts = [block(np.stack(several[place]), factor) for several in shrunk.values()]
        joined = draw.grid(parts, columns=len(parts), pad=2)
        units.append(draw.caption(joined, str(number)))
    height, width = units[0].shape[:2]
    columns = max(1, round(math.sqrt(count * height / width * 1.5)))
    return draw.grid(units, columns=columns, pad=APART)


def about(drawn: StageTiles) -> str:
    """One line about a stage: its units, and what each of them sees."""
    found = drawn.found
    shape = " x ".join(map(str, found.shape[1:]))
    text = f"{len(found)} units" + (f", maps of {shape}" if math.prod(found.shape[1:]) > 1 else "")
    if drawn.side:
        whole = " (more than the picture)" if drawn.side > min(drawn.view) else ""
        text += f", stride {drawn.stride}, receptive field {drawn.side}{whole}"
    if len(drawn.numbers) < len(found):
        text += f"; {len(drawn.numbers)} of them are shown"
    return f"{text}."


def _middle(image: Pixels, room: tuple[int, ...]) -> Box:
    top, left = (image.shape[0] - room[0]) // 2, (image.shape[1] - room[1]) // 2
    return Box(left, top, left + room[1], top + room[0])
