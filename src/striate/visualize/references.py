"""Objectives that compare with another picture: content, style, guide."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from striate.core.errors import StriateError
from striate.visualize.goals import positions
from striate.visualize.objectives import HIDDEN, OBJECTIVES, Leaf, Place

if TYPE_CHECKING:
    from striate.visualize.studio import Studio


@OBJECTIVES.register("content")
@dataclass(frozen=True, repr=False)
class Content(Leaf):
    """The squared distance of a stage's maps F to those of an image P: sum (F - P)^2 / sum P^2.

    Gatys et al. 2015 (equation 1) and, as the normalised error of feature inversion, Mahendran & Vedaldi
    2014 (equation 2). The image is brought to the size of the picture. `plain` gives Gatys's
    sum (F - P)^2 / 2 without the division.
    """

    name: ClassVar[str] = "content"

    stage: str
    image: Any
    plain: int = 0
    target: Tensor | None = field(default=None, metadata=HIDDEN, compare=False)
    scale: float = field(default=1.0, metadata=HIDDEN, compare=False)

    def ready(self, studio: Studio) -> Leaf:
        """With the maps P (1, C, h, w) of the image."""
        if self.target is not None:
            return self
        target = studio.maps(studio.picture(self.image), self.stage)
        scale = 0.5 if self.plain else 1 / max(float(target.double().square().sum()), 1e-12)
        return dataclasses.replace(self, target=target, scale=scale)

    def gather(self, maps: Tensor, place: Place) -> Tensor:
        """Scaled squared distances (N,) of these maps."""
        target = _looked_up(self, self.target)
        if target.shape[1:] != (maps.shape[1], place.height, place.width):
            raise StriateError(
                f"{self.text()}: maps of {place.height} x {place.width}",
                allowed=f"{target.shape[2]} x {target.shape[3]}, as of the image",
            )
        difference = maps - place.cut(target, maps).to(maps)
        return self.scale * difference.square().sum((1, 2, 3))

    def score(self, sums: Tensor, place: Place) -> Tensor:
        """The sum itself."""
        return sums


@OBJECTIVES.register("gram")
@dataclass(frozen=True, repr=False)
class Gram(Leaf):
    """The squared distance of a stage's Gram matrix to that of an image: style.

    With F the C x M matrix of the maps and G = F F^T / M (means of products, so that sizes may differ), and
    A the same of the image: sum (G - A)^2 / sum A^2; `plain` gives sum (G - A)^2 / (4 C^2), which is the
    E of Gatys et al. 2015 (equation 4) where both have one size. The image is scaled so that its area is
    `scale`^2 of the picture's. A mask (h, w) of 0 .. 1 restricts it to a region of the picture, and
    `image_mask` to one of the image: F is multiplied by the root of the mask, and M is the mask's sum (Gatys
    et al. 2017, section 4.1).
    """

    name: ClassVar[str] = "gram"

    stage: str
    image: Any
    scale: float = 1.0
    plain: int = 0
    mask: Any = field(default=None, metadata=HIDDEN, compare=False)
    image_mask: Any = field(default=None, metadata=HIDDEN, compare=False)
    target: Tensor | None = field(default=None, metadata=HIDDEN, compare=False)

    def ready(self, studio: Studio) -> Leaf:
        """With the Gram matrix A (C, C) of the image."""
        if self.target is not None:
            return self
        picture = studio.picture(self.image, area=self.scale)
        masked = dataclasses.replace(self, mask=self.image_mask, target=None)
        sums, place = studio.gathered(picture, masked)
        weight = masked._weight(place)
        target = sums[0] / (place.positions if weight is None else float(weight.sum()))
        return dataclasses.replace(self, target=target)

    def gather(self, maps: Tensor, place: Place) -> Tensor:
        """F F^T (N, C, C) of these maps."""
        weight = self._weight(place)
        if weight is not None:
            maps = maps * place.cut(weight, maps).to(maps).sqrt()
        if maps.is_contiguous():
            flat = maps.flatten(2)
            return flat @ flat.transpose(1, 2)
        rows = positions(maps)
        return rows.transpose(1, 2) @ rows

    def score(self, sums: Tensor, place: Place) -> Tensor:
        """The distance (N,)."""
        target = _looked_up(self, self.target).to(sums)
        weight = self._weight(place)
        gram = sums / (place.positions if weight is None else max(float(weight.sum()), 1e-6))
        distance = (gram - target).square().sum((1, 2))
        if self.plain:
            return distance / (4 * len(target) ** 2)
        return distance / target.square().sum().clamp_min(1e-20)

    def _weight(self, place: Place) -> Tensor | None:
        """The mask over the whole map, (height, width), by mean over areas."""
        if self.mask is None:
            return None
        mask = torch.as_tensor(self.mask, dtype=torch.float32)
        return F.interpolate(mask[None, None], (place.height, place.width), mode="area")[0, 0]


@OBJECTIVES.register("guide")
@dataclass(frozen=True, repr=False)
class Guide(Leaf):
    """For each position the dot product with the most similar position of an image, mean over positions.

    Deep dream guided by a second image (Mordvintsev et al. 2015). Only `count` positions of the image,
    evenly spread, are compared, so that memory stays small.
    """

    name: ClassVar[str] = "guide"

    stage: str
    image: Any
    count: int = 1024
    target: Tensor | None = field(default=None, metadata=HIDDEN, compare=False)

    def ready(self, studio: Studio) -> Leaf:
        """With the features (count, C) of the image's positions."""
        if self.target is not None:
            return self
        rows = positions(studio.maps(studio.picture(self.image, area=1.0), self.stage))[0]
        chosen = torch.linspace(0, len(rows) - 1, min(self.count, len(rows))).round().long()
        return dataclasses.replace(self, target=rows[chosen].clone())

    def gather(self, maps: Tensor, place: Place) -> Tensor:
        """Sum over positions of the best dot products, over the number of channels (N,)."""
        target = _looked_up(self, self.target).to(maps)
        rows = positions(maps)
        with torch.no_grad():
            chunks = torch.split(rows, math.ceil(2**22 / len(target)), 1)
            best = [(part @ target.T).argmax(-1) for part in chunks]
        return (rows * target[torch.cat(best, 1)]).sum((1, 2)) / maps.shape[1]


def _looked_up(leaf: Leaf, target: Tensor | None) -> Tensor:
    if target is None:
        raise StriateError(f"{leaf.text()} has not been looked up", hint="call ready() first")
    return target
