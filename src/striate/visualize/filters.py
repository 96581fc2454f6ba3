"""First-layer filters: the only weights that can be looked at as pictures as they are."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import nn

from striate.core.errors import StriateError
from striate.core.settings import setting
from striate.nets.taps import places
from striate.visualize.method import METHODS, Method, Panel, Picture, Pixels, must_be_numbers

if TYPE_CHECKING:
    from striate.model import Model

SCALINGS = ("each", "joint")
SCALED = {
    "each": "Each is scaled on its own: grey is 0, the ends are its largest absolute weight, plus and minus.",
    "joint": "All share one scale: grey is 0, the ends are the largest absolute weight of all.",
}


@METHODS.register("filters", images="none")
@dataclass(frozen=True)
class Filters(Method):
    """The filters of the first convolution in colour; of a linear first layer, each unit's weight image.

    arrays: "weights" (n, C, h, w) float32, as in the net; they act on normalised input. A weight w is drawn
    as 1/2 + w / 2m of full brightness, m being the largest |w| of its filter ("each") or of all ("joint").
    Krizhevsky et al., ImageNet Classification with Deep CNNs (2012), figure 3.
    """

    name: ClassVar[str] = "filters"
    least_images: ClassVar[int] = 0
    most_images: ClassVar[int] = 0

    count: int = setting(256, help="filters shown at most, from the first on", minimum=1)
    scaling: str = setting("each", help="scale of the weights", choices=SCALINGS)

    def draw(self, model: Model, views: Sequence[Pixels]) -> Picture:
        """The picture; raises StriateError where the first layer's weights are no pictures."""
        stage, layer, whole = _first_layer(model)
        must_be_numbers(layer.weight, f"the weights of {stage!r}")
        weights = layer.weight.detach().float().cpu().numpy()
        if isinstance(layer, nn.Linear):
            weights = weights.reshape(len(weights), *whole)
        total, shown = len(weights), weights[: self.count]
        templates = isinstance(layer, nn.Linear) and len(model.classes) == total
        what = "class templates" if templates else "weight images"
        if isinstance(layer, nn.Conv2d):
            what = "filters"
        height, width = weights.shape[2:]
        note = SCALED[self.scaling]
        if total > len(shown):
            note += f" The first {len(shown)} of {total}."
        names = model.classes if templates else [""] * total
        levels = drawn_weights(shown, self.scaling)
        panels = tuple(Panel(pixels, name) for pixels, name in zip(levels, names, strict=False))
        return Picture(
            method=self.name,
            title=f"{stage}: {total} {what}, {height} x {width} x {weights.shape[1]}",
            note=note,
            arrays={"weights": shown.copy()},
            panels=panels,
            columns=min(16, math.ceil(math.sqrt(len(shown) * 1.6))),
        )


def drawn_weights(weights: NDArray[np.float32], scaling: str) -> list[Pixels]:
    """Weights (n, C, h, w) as n pictures (h, w, C) uint8: 0 is 128, the largest are 255 and 1."""
    largest = np.abs(weights).max(axis=(1, 2, 3), keepdims=True)
    if scaling == "joint":
        largest = np.full_like(largest, largest.max())
    # Filters that are all 0 stay grey.
    levels = 128 + 127 * weights / np.where(largest > 0, largest, 1)
    return list(np.rint(levels).astype(np.uint8).transpose(0, 2, 3, 1))


def _first_layer(model: Model) -> tuple[str, nn.Conv2d | nn.Linear, tuple[int, int, int]]:
    """Name and module of the first layer with weights, and the shape (C, h, w) of what a linear one sees.

    Raises:
        StriateError: it is no convolution or linear layer on the image itself.
    """
    net, channels = model.net, model.preprocess.channels
    size = model.preprocess.size or (0, 0)
    whole = (channels, *size)
    name, layer = next(
        ((n, m) for n, m in _in_order(net) if any(True for _ in m.parameters(False))), ("", None)
    )
    if isinstance(layer, nn.Conv2d) and layer.in_channels == channels and layer.groups == 1:
        return name, layer, whole
    if isinstance(layer, nn.Linear) and layer.in_features == math.prod(whole):
        return name, layer, whole
    if layer is None:
        raise StriateError("the net has no weights", hint="filters shows those of the first layer")
    raise StriateError(
        f"the weights of the first layer {name!r} ({type(layer).__name__}) are no pictures",
        allowed=f"a convolution or linear layer on the {channels} channels of the image itself",
        hint="'feature-maps' shows what any stage makes of an image",
    )


def _in_order(net: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """All modules below the stages under their tap names, stages in the order in which they run."""
    found = places(net)
    for stage in getattr(net, "stage_names", None) or found:
        for name, module in found[stage].named_modules():
            yield (f"{stage}.{name}" if name else stage), module
