"""The objectives themselves: units, channels, classes, directions, norms, and what regularises a picture."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from striate.core.errors import StriateError
from striate.visualize.method import class_index
from striate.visualize.objectives import HIDDEN, OBJECTIVES, OUTPUT, Leaf, Place

if TYPE_CHECKING:
    from striate.visualize.studio import Studio


def positions(maps: Tensor) -> Tensor:
    """Maps (N, C, h, w) as rows of positions (N, h w, C), without a copy where they lie so in memory."""
    return maps.permute(0, 2, 3, 1).flatten(1, 2)


def _channel(objective: Leaf, channel: int, maps: Tensor) -> int:
    if not -maps.shape[1] <= channel < maps.shape[1]:
        raise StriateError(
            f"{objective.text()}: channel {channel}",
            allowed=f"0 to {maps.shape[1] - 1} at stage {objective.where()!r}",
        )
    return channel


@OBJECTIVES.register("unit")
@dataclass(frozen=True, repr=False)
class Unit(Leaf):
    """The activation of one unit: a channel of a stage at one position, the middle one unless told."""

    name: ClassVar[str] = "unit"

    stage: str
    channel: int
    row: int | None = None
    column: int | None = None

    def gather(self, maps: Tensor, place: Place) -> Tensor:
        """The unit's activation (N,), or 0 where it does not lie in these maps."""
        y = place.height // 2 if self.row is None else self.row
        x = place.width // 2 if self.column is None else self.column
        if not (0 <= y < place.height and 0 <= x < place.width):
            raise StriateError(
                f"{self.text()} is not in the map",
                allowed=f"rows below {place.height}, columns {place.width}",
            )
        channel = _channel(self, self.channel, maps)
        if not place.inside(maps, y, x):
            return maps.new_zeros(len(maps))
        return maps[:, channel, y - place.y, x - place.x]

    def score(self, sums: Tensor, place: Place) -> Tensor:
        """The activation itself."""
        return sums


@OBJECTIVES.register("channel")
@dataclass(frozen=True, repr=False)
class Channel(Leaf):
    """The mean of one feature map."""

    name: ClassVar[str] = "channel"

    stage: str
    channel: int

    def gather(self, maps: Tensor, place: Place) -> Tensor:
        """Sum of the map (N,)."""
        return maps[:, _channel(self, self.channel, maps)].sum((1, 2))


@OBJECTIVES.register("class")
@dataclass(frozen=True, repr=False)
class ClassScore(Leaf):
    """The score of a class before the softmax (Simonyan et al. 2013, section 2); for masks its mean."""

    name: ClassVar[str] = "class"

    target: int | str
    stage: str = field(default=OUTPUT, metadata=HIDDEN, compare=False)

    def ready(self, studio: Studio) -> Leaf:
        """With the number of the class, and the stage that gives scores."""
        number = class_index(self.target, studio.model.classes)
        return dataclasses.replace(self, target=number, stage=studio.scores_stage())

    def gather(self, maps: Tensor, place: Place) -> Tensor:
        """Sum of the class's scores (N,)."""
        if not isinstance(self.target, int):
            raise StriateError(f"{self.text()} has not been looked up", hint="call ready() first")
        return maps[:, _channel(self, self.target, maps)].sum((1, 2))


@OBJECTIVES.register("direction")
@dataclass(frozen=True, repr=False)
class Direction(Leaf):
    """The mean over positions of a . v, v scaled to length 1; with `cosine` p times cos(a, v)^p.

    Without a vector, a random one of `seed`. In the written form the vector is numbers with blanks between.
    """

    name: ClassVar[str] = "direction"

    stage: str
    vector: tuple[float, ...] = ()
    cosine: float = 0.0
    seed: int = 0

    def gather(self, maps: Tensor, place: Place) -> Tensor:
        """Sum over positions (N,)."""
        if self.vector and len(self.vector) != maps.shape[1]:
            raise StriateError(
                f"the direction has {len(self.vector)} numbers",
                allowed=f"{maps.shape[1]}, one for each channel of {self.stage!r}",
            )
        if self.vector:
            vector = torch.tensor(self.vector, dtype=maps.dtype)
        else:
            draws = torch.Generator().manual_seed(self.seed)
            vector = torch.randn(maps.shape[1], generator=draws, dtype=torch.float64).to(maps.dtype)
        along: Tensor = positions(maps) @ (vector / vector.norm().clamp_min(1e-12)).to(maps.device)
        if self.cosine:
            length = positions(maps).square().sum(-1).add(1e-12).sqrt()
            along = along * torch.pow((along / length).clamp_min(0.1), self.cosine)
        return along.sum(1)


@OBJECTIVES.register("norm")
@dataclass(frozen=True, repr=False)
class Norm(Leaf):
    """The mean square of all activations of a stage: what deep dream raises (Mordvintsev et al. 2015)."""

    name: ClassVar[str] = "norm"

    stage: str

    def gather(self, maps: Tensor, place: Place) -> Tensor:
        """Sum over positions of the mean square over channels (N,)."""
        return maps.square().sum((1, 2, 3)) / maps.shape[1]


@OBJECTIVES.register("tv")
@dataclass(frozen=True, repr=False)
class TotalVariation(Leaf):
    """Mean over pixels of (dx^2 + dy^2 + e)^(power / 2), channels added, e = 1e-8, of the picture in 0 .. 1.

    dx and dy are differences to the next pixel, 0 at the border (Mahendran & Vedaldi 2014, section 3).
    """

    name: ClassVar[str] = "tv"

    power: float = 2.0

    def gather(self, maps: Tensor, place: Place) -> Tensor:
        """The sum over pixels (N,); the picture comes whole."""
        down = torch.nn.functional.pad(maps[:, :, 1:] - maps[:, :, :-1], (0, 0, 0, 1))
        right = torch.nn.functional.pad(maps[:, :, :, 1:] - maps[:, :, :, :-1], (0, 1))
        squares: Tensor = (down.square() + right.square()).sum(1)
        powers = squares if self.power == 2 else torch.pow(squares + 1e-8, self.power / 2)
        return powers.sum((1, 2))


@OBJECTIVES.register("lp")
@dataclass(frozen=True, repr=False)
class Lp(Leaf):
    """Mean over pixels and channels of |2 x - 1|^power: keeps a picture in 0 .. 1 near mid grey.

    power 2 is the L2 term of Simonyan et al. 2013 (equation 1), 6 that of Mahendran & Vedaldi 2014.
    """

    name: ClassVar[str] = "lp"

    power: float = 2.0

    def gather(self, maps: Tensor, place: Place) -> Tensor:
        """The sum over pixels of the mean over channels (N,)."""
        values = 2 * maps - 1
        powers = values.square() if self.power == 2 else values.abs().pow(self.power)
        return powers.sum((1, 2, 3)) / maps.shape[1]


@OBJECTIVES.register("diversity")
@dataclass(frozen=True, repr=False)
class Diversity(Leaf):
    """How unlike the pictures of one batch are at a stage: minus the mean cosine of their Gram matrices.

    Olah et al. 2017, "Feature Visualization". A batch of one picture has 0.
    """

    name: ClassVar[str] = "diversity"

    stage: str

    def gather(self, maps: Tensor, place: Place) -> Tensor:
        """Gram matrices (N, C, C)."""
        rows = positions(maps)
        return rows.transpose(1, 2) @ rows

    def score(self, sums: Tensor, place: Place) -> Tensor:
        """For each picture, minus the mean cosine to the others (N,)."""
        flat = sums.flatten(1)
        flat = flat / flat.square().sum(1, keepdim=True).add(1e-12).sqrt()
        others = (flat @ flat.T) * (1 - torch.eye(len(flat), dtype=flat.dtype, device=flat.device))
        return -others.sum(1) / max(1, len(flat) - 1)


@dataclass(frozen=True, repr=False)
class Each(Leaf):
    """A different objective of one stage for every picture of a batch; has no written form."""

    name: ClassVar[str] = "each"

    stage: str
    leaves: tuple[Leaf, ...] = ()

    def ready(self, studio: Studio) -> Leaf:
        """With every leaf looked up."""
        leaves = tuple(leaf.ready(studio) for leaf in self.leaves)
        return dataclasses.replace(self, leaves=leaves, stage=leaves[0].where() or OUTPUT)

    def gather(self, maps: Tensor, place: Place) -> Tensor:
        """Each leaf's sum of its own picture (N, ...)."""
        found: list[Any] = [leaf.gather(maps[n : n + 1], place) for n, leaf in enumerate(self.leaves)]
        return torch.cat(found)

    def score(self, sums: Tensor, place: Place) -> Tensor:
        """Each leaf's value of its own picture (N,)."""
        parts = [leaf.score(sums[n : n + 1], place) for n, leaf in enumerate(self.leaves)]
        return torch.cat(parts)
