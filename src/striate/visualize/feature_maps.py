"""Feature maps: what a stage of a net makes of an image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from striate.core.errors import StriateError
from striate.core.settings import setting
from striate.images import draw
from striate.nets.geometry import stage_geometry
from striate.nets.taps import capture
from striate.visualize.filters import SCALINGS
from striate.visualize.method import (
    METHODS,
    Method,
    Panel,
    Picture,
    Pixels,
    must_be_numbers,
    net_input,
    together,
)
from striate.visualize.stages import first_with_maps, must_be_maps

if TYPE_CHECKING:
    from striate.model import Model

SCALED = {
    "each": "Each map is scaled on its own, over all images shown",
    "joint": "All maps share one scale",
}


@METHODS.register("feature-maps", images="one or more")
@dataclass(frozen=True)
class FeatureMaps(Method):
    """The strongest feature maps of any stage for one or several images.

    The strength of a map is its mean absolute activation over positions and images; every image shows the
    same maps. arrays: "maps" (images, n, h, w) float32; "channels" (n,) their numbers, strongest first;
    "strength" (C,) of all maps; "input" (images, H, W, C) uint8, what the net saw.
    """

    name: ClassVar[str] = "feature-maps"

    stage: str | None = setting(None, help="name of the stage; nothing takes the first one that gives maps")
    count: int = setting(16, help="maps shown at most, the strongest", minimum=1, maximum=1024)
    scaling: str = setting("each", help="scale of the activations", choices=SCALINGS)

    def draw(self, model: Model, views: Sequence[Pixels]) -> Picture:
        """The picture; raises StriateError for an unknown stage, or one without maps."""
        stage = self.stage or first_with_maps(model)
        # One image at a time, and twice rather than all kept: memory does not grow with the images.
        activations = (_maps(model, stage, view) for view in views)
        strength = np.mean([np.abs(maps).mean(axis=(1, 2)) for maps in activations], axis=0)
        channels = np.argsort(-strength, kind="stable")[: self.count]
        chosen = [_maps(model, stage, view)[channels] for view in views]
        signed = min(float(maps.min()) for maps in chosen) < 0
        panels = self._panels(views, chosen, channels, signed)
        across = len(channels) + 1
        columns = across if len(views) > 1 else math.ceil(math.sqrt(across * 1.5))
        how = "red is positive, white 0, blue negative" if signed else "dark is 0, bright the largest value"
        n, total = len(channels), len(strength)
        shown = f"The {n} strongest of {total} maps" if n < total else f"All {n} maps, the strongest first"
        arrays: dict[str, NDArray[Any]] = {"channels": channels, "strength": strength.astype(np.float32)}
        arrays |= {**together("maps", chosen), **together("input", views)}
        return Picture(
            method=self.name,
            title=_title(model, stage, views[0], chosen[0].shape[1:], len(strength)),
            note=f"{shown} (mean absolute activation). {SCALED[self.scaling]}: {how}.",
            arrays=arrays,
            panels=tuple(panels),
            columns=columns,
        )

    def _panels(
        self, views: Sequence[Pixels], chosen: list[NDArray[np.float32]], channels: NDArray[Any], signed: bool
    ) -> list[Panel]:
        tops = np.max([np.abs(maps).max(axis=(1, 2)) for maps in chosen], axis=0)
        if self.scaling == "joint":
            tops = np.full_like(tops, tops.max())
        panels = []
        for view, maps in zip(views, chosen, strict=True):
            panels.append(Panel(view, "input"))
            for number, values, top in zip(channels, maps, tops, strict=True):
                # A map that is 0 everywhere is drawn as 0, not as the middle of an empty range.
                high = float(top) if top > 0 else 1.0
                low = -high if signed else 0.0
                panels.append(Panel(draw.heatmap(values, signed=signed, low=low, high=high), f"map {number}"))
        return panels


def _maps(model: Model, stage: str, view: Pixels) -> NDArray[np.float32]:
    """The output (C, h, w) of a stage for one view."""
    with torch.no_grad(), capture(model.net, [stage]) as seen:
        model.net(net_input(model, view))
    output = must_be_maps(model, stage, seen[stage])
    must_be_numbers(output, f"the activations of {stage!r}")
    maps: NDArray[np.float32] = output[0].float().cpu().numpy()
    return maps


def _title(model: Model, stage: str, view: Pixels, shape: Sequence[int], total: int) -> str:
    """Stage, maps, and where the net can tell, stride and receptive field."""
    title = f"{stage}: {total} maps of {shape[0]} x {shape[1]}"
    try:
        height, width, channels = view.shape
        infos = stage_geometry(model.net, (height, width), in_channels=channels)
    except StriateError:
        return title
    for info in infos:
        if info.name == stage and info.spatial:
            return f"{title}, stride {info.stride}, receptive field {info.receptive_field}"
    return title
