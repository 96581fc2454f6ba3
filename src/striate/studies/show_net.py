"""A net on one page: the table of its paper, its cost, and its drawing."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from striate.core.errors import StriateError
from striate.core.files import place_of, write_text
from striate.core.results import Result
from striate.nets.cost import Cost

SUFFIXES = (".svg", ".csv", ".json")


@dataclass(frozen=True)
class NetPage(Result):
    """What `striate nets show` says of a net: name, paper, one line of what it is, its cost, the drawing."""

    name: str
    paper: str
    summary: str
    cost: Cost
    drawing: str

    def lines(self) -> list[str]:
        """The facts in front, the table stage by stage, then the sums."""
        table = self.cost
        height, width = table.size
        told = [self.summary] if self.summary else []
        told += [f"source: {self.paper}"] if self.paper else []
        told += [f"input:  {height}x{width}x{table.in_channels}", "", *table.lines(), ""]
        kinds = ", ".join(f"{_KINDS.get(kind, kind)} {count:,}" for kind, count in table.kinds.items())
        told.append(f"parameters:    {table.params:,} ({kinds})")
        told.append(f"multiply-adds: {table.macs:,} for one picture")
        told.append(f"memory:        {_mb(4 * table.params)} of weights in 32 bits; for each picture")
        kept = table.training_memory
        told.append(
            f"               {_mb(table.memory)} computed, "
            f"{'an unknown part' if kept is None else _mb(kept)} kept for the backward pass in training"
        )
        return told

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write to `path` by its suffix: .svg (the drawing), .csv (the table), .json (everything but it).

        Raises:
            StriateError: another suffix, or the file cannot be written.
        """
        target = Path(path)
        if target.suffix == ".svg":
            return write_text(target, self.drawing)
        if target.suffix not in SUFFIXES:
            raise StriateError(f"cannot save a net's page as {target.name!r}", allowed=SUFFIXES)
        return self.cost.save(target) if target.suffix == ".csv" else super().save(target)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, without the drawing."""
        return {key: value for key, value in super().to_dict().items() if key != "drawing"}

    def _repr_svg_(self) -> str:
        return self.drawing


_KINDS = {"connected": "fully connected", "convolution": "convolutions", "norm": "norms"}


def show_net(
    name: str,
    *,
    size: int | tuple[int, int] | None = None,
    classes: int | None = None,
    in_channels: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> NetPage:
    """The page of a registered net, of a published weight file by its card, or of a model's folder or file.

    `classes` and `in_channels` are the net's usual ones if None, such as ImageNet's 1000 and 3.

    Raises:
        StriateError: an unknown net or option (the nearest is given), or a size that it does not take.
    """
    from striate.nets.cost import cost
    from striate.nets.drawing import draw
    from striate.nets.net import NETS, skeleton, usual
    from striate.nets.weights import CARDS, empty, published

    if name in NETS or not (name in CARDS or place_of(name).exists()):
        entry = NETS.entry(name)
        standard = usual(entry.name)
        net = skeleton(
            name,
            classes if classes is not None else standard["classes"],
            in_channels if in_channels is not None else standard["in_channels"],
            size=size,
            **(options or {}),
        )
        known, summary = entry.capabilities, entry.summary
        return NetPage(name, str(known.get("paper", "")), summary, cost(net), draw(net))
    if classes is not None or in_channels is not None or options:
        raise StriateError(
            f"{name!r} is a trained model", hint="its classes, channels and options are what they are"
        )
    if name in CARDS:
        shown: Any = empty(published(name))
    else:
        from striate.model import load

        shown = load(name).net
    known = NETS.entry(shown.name).capabilities if shown.name in NETS else {}
    page = NetPage(
        shown.name, str(known.get("paper", "")), f"The net of {name}.", cost(shown, size), draw(shown, size)
    )
    return page


def _mb(count: float) -> str:
    return f"{count / 1e6:,.1f} MB"
