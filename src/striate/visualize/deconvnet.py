"""Projections: which pattern in the picture excites a unit, by running its activation back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from striate.core.errors import StriateError
from striate.core.settings import setting
from striate.nets.geometry import StageInfo, unit_box
from striate.visualize.gradients import coloured
from striate.visualize.method import METHODS, Method, Panel, Picture, Pixels, net_input, together
from striate.visualize.projection import Projector, Unit
from striate.visualize.rules import RULES
from striate.visualize.stages import infos_of, last_with_maps

if TYPE_CHECKING:
    from striate.model import Model


@METHODS.register("deconvnet", images="one or more")
@dataclass(frozen=True)
class Deconvnet(Method):
    """The pattern in the image that excites a unit: its signal run back through the transposed network.

    All units of the stage but one are silent; the signal runs back through the transposed filters, the max
    pools' switches and the rectifiers, by the rule "deconvnet", "guided" or "plain" (the gradient). The unit
    is map `channel` at `row` and `column`, or where that map is strongest; without a channel the `count` maps
    whose largest activations are largest are shown, each at its largest. `crop` cuts image and projection to
    the unit's receptive field.
    arrays: "projection" (images * units, C, H, W) float32, for a signal of 1 at the unit; "units" (images *
    units, 4): image, map, row, column; "activation" (images * units,); "boxes" (images * units, 4) x0, y0,
    x1, y1 of the receptive field; "input" (images, H, W, C) uint8.
    Zeiler and Fergus, Visualizing and Understanding Convolutional Networks (arXiv:1311.2901), section 2.1.

    Raises:
        StriateError: no such stage, map or unit; a unit that is not active, so that no pattern has excited
            it; or activations for which the rule has no meaning.
    """

    name: ClassVar[str] = "deconvnet"

    stage: str | None = setting(None, help="name of the stage; nothing takes the last one that gives maps")
    channel: int | None = setting(None, help="number of the map; nothing takes the strongest ones", minimum=0)
    row: int | None = setting(None, help="row of the unit; nothing takes the map's strongest unit", minimum=0)
    column: int | None = setting(None, help="column of the unit", minimum=0)
    count: int = setting(9, help="maps shown where no channel is named", minimum=1, maximum=1024)
    rule: str = setting("deconvnet", help="what rectifiers do to the signal", choices=tuple(RULES))
    crop: bool = setting(False, help="show the unit's receptive field only")

    def draw(self, model: Model, views: Sequence[Pixels]) -> Picture:
        """The picture; raises StriateError as the class says."""
        if (self.row is None) != (self.column is None) or (self.row is not None and self.channel is None):
            raise StriateError(
                "a unit is named in part", allowed="channel, row and column together, or channel alone"
            )
        stage = self.stage or last_with_maps(model, views[0])
        signals, units, activations, boxes, panels = [], [], [], [], []
        for number, view in enumerate(views):
            height, width = view.shape[:2]
            projector = Projector(model, net_input(model, view), stage)
            chosen = self._units(projector, stage)
            info = next((i for i in infos_of(model, view) if i.name == stage), None)
            for one in projector.project(chosen, self.rule):
                box = _box(info, one.unit, height, width)
                signal = one.whole(height, width).cpu().numpy()
                signals.append(signal)
                units.append((number, *one.unit))
                activations.append(float(projector.maps[one.unit]))
                boxes.append(box)
                x0, y0, x1, y1 = box if self.crop else (0, 0, width, height)
                where = f"map {one.unit[0]} at {one.unit[1]}, {one.unit[2]}"
                panels.append(Panel(np.ascontiguousarray(view[y0:y1, x0:x1]), where))
                panels.append(Panel(coloured(signal[:, y0:y1, x0:x1], 99.5), f"{activations[-1]:.3g}"))
        arrays: dict[str, NDArray[Any]] = {
            **together("projection", signals),
            "units": np.array(units),
            "activation": np.array(activations, np.float32),
            "boxes": np.array(boxes),
            **together("input", views),
        }
        return Picture(
            self.name, self._title(stage), self._note(), arrays, tuple(panels), min(6, 2 * len(units))
        )

    def _units(self, projector: Projector, stage: str) -> list[Unit]:
        """The units to project, strongest first."""
        maps = projector.maps
        channels, height, width = maps.shape
        for name, value, room in (
            ("channel", self.channel, channels),
            ("row", self.row, height),
            ("column", self.column, width),
        ):
            if value is not None and value >= room:
                raise StriateError(f"{name} is {value}", allowed=f"0 to {room - 1} at stage {stage!r}")
        best = maps.flatten(1).max(1)
        if self.channel is None:
            order = torch.argsort(best.values, descending=True, stable=True)[: self.count].tolist()
            order = [c for c in order if best.values[c] > 0] or order[:1]
        else:
            order = [self.channel]
        units: list[Unit] = [(c, *divmod(int(best.indices[c]), width)) for c in order]
        if self.row is not None and self.column is not None:
            units = [(order[0], self.row, self.column)]
        for unit in units:
            if self.rule != "plain" and not maps[unit] > 0:
                raise StriateError(
                    f"unit {unit[1]}, {unit[2]} of map {unit[0]} of {stage!r} is not active on this image "
                    f"({float(maps[unit]):.3g}): no pattern has excited it",
                    hint="take another unit, or the plain rule, which gives the gradient anywhere",
                )
        return units

    def _title(self, stage: str) -> str:
        names = {"deconvnet": "Deconvnet", "guided": "Guided", "plain": "Gradient"}
        which = f"map {self.channel}" if self.channel is not None else "the strongest maps"
        return f"{names[self.rule]} projections of {stage}, {which}"

    def _note(self) -> str:
        where = " Cut to the unit's receptive field." if self.crop else ""
        return (
            f"Beside each image the pattern that excites the unit: grey is 0, scaled for each. Rule: "
            f"{RULES[self.rule]}. Above it the unit's activation.{where}"
        )


def _box(info: StageInfo | None, unit: Unit, height: int, width: int) -> tuple[int, int, int, int]:
    """The receptive field of a unit in the picture; all of it where the net does not tell."""
    if info is None:
        return 0, 0, width, height
    box = unit_box(info, unit[1], unit[2], (height, width))
    return box if box[2] > box[0] and box[3] > box[1] else (0, 0, width, height)
