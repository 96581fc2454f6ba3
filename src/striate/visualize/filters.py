"""Filters: first-layer weights are pictures as they are; those of higher layers are shown slice by slice."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import nn

from striate.core.errors import StriateError
from striate.core.settings import setting
from striate.images import draw
from striate.nets.taps import places, stage
from striate.visualize.method import METHODS, Method, Panel, Picture, Pixels, must_be_numbers

if TYPE_CHECKING:
    from striate.model import Model

SCALINGS = ("each", "joint")
SCALED = {
    "each": "Each is scaled on its own: grey is 0, the ends are its largest absolute weight, plus and minus.",
    "joint": "All share one scale: grey is 0, the ends are the largest absolute weight of all.",
}
MATRIX = {
    "each": "Red is positive, blue negative, each row scaled on its own.",
    "joint": "Red is positive, blue negative, all on one scale.",
}


@METHODS.register("filters", images="none")
@dataclass(frozen=True)
class Filters(Method):
    """The filters of the first convolution in colour; of a linear first layer, each unit's weight image.

    With `stage`, the weights of any layer: of a convolution one grey square for each unit, in it one slice
    for each of its input maps, row by row; of 1 x 1 convolutions and linear layers the matrix, one row a
    unit. For a linear classifier the weight images are the templates of the classes.
    arrays: "weights" (n, C, h, w) or (n, C) float32, as in the net; those of the first layer act on
    normalised input. A weight w is drawn as 1/2 + w / 2m of full brightness, m being the largest |w| of its
    unit ("each") or of all ("joint"); in a matrix red is positive and blue negative.
    Krizhevsky et al., ImageNet Classification with Deep CNNs (2012), figure 3.

    Raises:
        StriateError: no such stage, one that is no layer with weights, or a first layer on no picture.
    """

    name: ClassVar[str] = "filters"
    least_images: ClassVar[int] = 0
    most_images: ClassVar[int] = 0

    stage: str | None = setting(None, help="name of the layer; nothing takes the first one")
    count: int = setting(256, help="filters shown at most, from the first on", minimum=1)
    scaling: str = setting("each", help="scale of the weights", choices=SCALINGS)

    def draw(self, model: Model, views: Sequence[Pixels]) -> Picture:
        """The picture; raises StriateError as the class says."""
        first: tuple[str, nn.Conv2d | nn.Linear, tuple[int, int, int]] | None = None
        if self.stage is None:
            first = _first_layer(model)
        else:
            name, layer = _layer(model, self.stage)
            # The first layer is shown in colour, by whatever name it is asked for.
            with contextlib.suppress(StriateError):
                found = _first_layer(model)
                first = found if found[1] is layer else None
            if first is None:
                return self._higher(name, layer)
        return self._pictures(model, *first)

    def _pictures(
        self, model: Model, name: str, layer: nn.Conv2d | nn.Linear, whole: tuple[int, int, int]
    ) -> Picture:
        """Weights that lie on the picture itself."""
        weights = _weights(name, layer)
        if isinstance(layer, nn.Linear):
            weights = weights.reshape(len(weights), *whole)
        total, shown = len(weights), weights[: self.count]
        templates = isinstance(layer, nn.Linear) and len(model.classes) == total
        what = "class templates" if templates else "weight images"
        if isinstance(layer, nn.Conv2d):
            what = "filters"
        height, width = weights.shape[2:]
        names = model.classes if templates else [""] * total
        levels = drawn_weights(shown, self.scaling)
        panels = tuple(Panel(pixels, text) for pixels, text in zip(levels, names, strict=False))
        return Picture(
            method=self.name,
            title=f"{name}: {total} {what}, {height} x {width} x {weights.shape[1]}",
            note=SCALED[self.scaling] + _left(total, len(shown)),
            arrays={"weights": shown.copy()},
            panels=panels,
            columns=min(16, math.ceil(math.sqrt(len(shown) * 1.6))),
        )

    def _higher(self, name: str, layer: nn.Conv2d | nn.Linear) -> Picture:
        """Weights on the maps of another stage."""
        weights = _weights(name, layer)
        total, shown = len(weights), weights[: self.count]
        inputs, size = weights.shape[1], weights.shape[2:]
        if math.prod(size) == 1:
            matrix = shown.reshape(len(shown), inputs)
            scaled = matrix if self.scaling == "joint" else matrix / _largest(matrix, axes=(1,))
            panels = [Panel(draw.heatmap(scaled, signed=True))]
            note = f"One row a unit, one column an input. {MATRIX[self.scaling]}"
            return Picture(
                self.name,
                f"{name}: weights of {total} units on {inputs} inputs",
                note + _left(total, len(shown)),
                {"weights": matrix.copy()},
                tuple(panels),
                1,
            )
        largest = _largest(shown, axes=(1, 2, 3) if self.scaling == "each" else None)
        levels = np.rint(128 + 127 * shown / largest).astype(np.uint8)
        across = math.ceil(math.sqrt(inputs))
        squares = [
            draw.grid([one[..., None] for one in unit], columns=across, pad=1, fill=255)[..., :1]
            for unit in levels
        ]
        panels = [Panel(np.ascontiguousarray(s), f"unit {n}") for n, s in enumerate(squares)]
        kind = "filters" if layer.weight.ndim == 4 else "units"
        return Picture(
            self.name,
            f"{name}: {total} {kind} on {inputs} maps, {size[0]} x {size[1]}",
            f"One square a unit, in it one slice for each map that it reads, row by row. "
            f"{SCALED[self.scaling]}{_left(total, len(shown))}",
            {"weights": shown.copy()},
            tuple(panels),
            min(16, math.ceil(math.sqrt(len(panels) * 1.6))),
        )


def _weights(name: str, layer: nn.Conv2d | nn.Linear) -> NDArray[np.float32]:
    must_be_numbers(layer.weight, f"the weights of {name!r}")
    found: NDArray[np.float32] = layer.weight.detach().float().cpu().numpy()
    return found


def _left(total: int, shown: int) -> str:
    return f" The first {shown} of {total}." if total > shown else ""


def _largest(weights: NDArray[np.float32], axes: tuple[int, ...] | None) -> NDArray[np.float32]:
    """The largest |w| along the axes, 1 where all are 0."""
    largest = np.abs(weights).max(axis=axes, keepdims=True)
    return np.asarray(np.where(largest > 0, largest, 1), np.float32)


def _layer(model: Model, name: str) -> tuple[str, nn.Conv2d | nn.Linear]:
    """The convolution or linear layer called `name`, or the only one inside the stage of that name.

    Raises:
        StriateError: no such stage, or none or several such layers in it.
    """
    below = [
        (f"{name}.{part}" if part else name, module)
        for part, module in stage(model.net, name).named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
    ]
    if len(below) == 1:
        return below[0]
    layers = [n for n, m in places(model.net).items() if isinstance(m, (nn.Conv2d, nn.Linear))]
    raise StriateError(
        f"stage {name!r} holds {len(below) or 'no'} layers with such weights",
        allowed=[n for n, _ in below] or layers[:40],
        hint="name one of them",
    )


def drawn_weights(weights: NDArray[np.float32], scaling: str) -> list[Pixels]:
    """Weights (n, C, h, w) as n pictures (h, w, C) uint8: 0 is 128, the largest are 255 and 1."""
    # Filters that are all 0 stay grey.
    levels = 128 + 127 * weights / _largest(weights, axes=(1, 2, 3) if scaling == "each" else None)
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
    for tap in getattr(net, "stage_names", None) or found:
        for name, module in found[tap].named_modules():
            yield (f"{tap}.{name}" if name else tap), module
