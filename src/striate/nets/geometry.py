"""Where a unit looks: stride, receptive field, and the box in the picture, for every stage of any net."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from striate.core.errors import StriateError
from striate.nets.net import Size, pair
from striate.nets.tracker import BETWEEN, Axis, walk


@dataclass(frozen=True)
class StageInfo:
    """One stage as one picture passes: name, kind (the module's class), output shape without the batch.

    While the output is still a map, unit (y, x) depends on the pixels from `index * axis.stride + axis.low`
    up to, not with, `index * axis.stride + axis.high` along each axis (height, width) of `axes`, padding
    left aside. After the first global operation `axes` is None: each unit depends on the whole picture,
    and `stride` and `receptive_field` are the picture's side.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int
    axes: tuple[Axis, Axis] | None
    image_size: tuple[int, int]

    @property
    def spatial(self) -> bool:
        """Whether the output is still a map whose units look at a part of the picture."""
        return self.axes is not None

    @property
    def stride(self) -> int:
        """Pixels of the picture from one unit to the next; the larger of the two axes."""
        return max(axis.stride for axis in self.axes) if self.axes else max(self.image_size)

    @property
    def receptive_field(self) -> int:
        """Side, in pixels, of the square that a unit depends on, as if the picture had no borders."""
        return max(axis.high - axis.low for axis in self.axes) if self.axes else max(self.image_size)

    @property
    def offset(self) -> int:
        """First pixel row that unit 0 depends on; negative where it lies in the padding."""
        return self.axes[0].low if self.axes else 0


def stage_geometry(
    net: nn.Module, size: Size | None = None, *, in_channels: int | None = None
) -> list[StageInfo]:
    """Shape, stride and receptive field of every stage, in the order in which the stages run.

    Found in one pass without numbers that follows each operator, so that branches (the union of both),
    functional calls and reused modules are right; what is not understood counts as the whole picture.
    `size` is the picture's side or (height, width); the net's own if None. For a module that is not a Net,
    `size` and `in_channels` must be given, and every submodule without children is a stage.

    Raises:
        StriateError: the net cannot take such a picture.
    """
    height_width, channels, names = ask(net, size, in_channels)
    return [
        StageInfo(row.name, row.kind, row.shape, row.parameters, row.reach, height_width)
        for row in walk(net, height_width, channels, names)
        if row.name != BETWEEN
    ]


def unit_box(info: StageInfo, y: int, x: int, image_size: Size | None = None) -> tuple[int, int, int, int]:
    """The part of the picture that unit (y, x) of a stage depends on: (x0, y0, x1, y1), x1 and y1 exclusive.

    Clipped to the picture, whose size is `image_size`, or that of the pass. A unit that sees nothing but
    padding has an empty box at the border.
    """
    height, width = pair(image_size) if image_size is not None else info.image_size
    if info.axes is None:
        return 0, 0, width, height
    rows, columns = info.axes
    x0, x1 = (min(width, max(0, x * columns.stride + edge)) for edge in (columns.low, columns.high))
    y0, y1 = (min(height, max(0, y * rows.stride + edge)) for edge in (rows.low, rows.high))
    return x0, y0, x1, y1


def ask(
    net: nn.Module, size: Size | None, in_channels: int | None
) -> tuple[tuple[int, int], int, tuple[str, ...]]:
    """Picture size, channels and stage names of a net; for another module, as given and its leaves."""
    chosen = size if size is not None else getattr(net, "input_size", None)
    channels = in_channels if in_channels is not None else getattr(net, "in_channels", None)
    if chosen is None or not isinstance(channels, int):
        raise StriateError(
            f"{type(net).__name__} does not say what pictures it takes", hint="give size and in_channels"
        )
    names = getattr(net, "stage_names", None)
    if names is None:
        names = tuple(name for name, module in net.named_modules() if name and not list(module.children()))
    return pair(chosen), channels, tuple(names)
