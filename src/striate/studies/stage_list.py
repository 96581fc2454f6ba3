"""The stages of a net by name: shape, stride and receptive field; the rows of `striate list stages`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from striate.core.errors import unknown
from striate.core.files import place_of
from striate.studies.catalogue import Listing

if TYPE_CHECKING:
    from striate.nets.geometry import StageInfo

HEADINGS = ("stage", "kind", "output", "stride", "receptive field", "parameters")


@dataclass(frozen=True)
class Stages(Listing):
    """The stages in the order in which they run.

    shape: of the output (C, H, W), without the batch; stride and receptive_field in pixels of a picture of
    `size`, None once a unit depends on the whole picture.
    """

    ROWS = ("names", "kinds", "shape", "stride", "receptive_field", "parameters")  # type: tuple[str, ...]

    kinds: Sequence[str] = ()
    shape: Sequence[tuple[int, ...]] = ()
    stride: Sequence[int | None] = ()
    receptive_field: Sequence[int | None] = ()
    parameters: Sequence[int] = ()
    size: tuple[int, int] = (0, 0)

    def lines(self) -> list[str]:
        """A table with headings."""
        from striate.nets.cost import table

        cells: list[tuple[str, ...]] = [HEADINGS]
        rows = zip(
            self.names,
            self.kinds,
            self.shape,
            self.stride,
            self.receptive_field,
            self.parameters,
            strict=True,
        )
        for name, kind, shape, stride, field, parameters in rows:
            wide = ("", "all") if field is None else (str(stride), str(field))
            cells.append((name, kind, "x".join(map(str, shape)), *wide, f"{parameters:,}"))
        return table(cells, texts=3)


def stages(name: str) -> Stages:
    """The stages of a net by its name, of a published net, a run folder or a .safetensors file.

    Raises:
        StriateError: there is no such net or model; near matches are given.
    """
    from striate.nets.geometry import stage_geometry

    infos = stage_geometry(_net(name), None)
    return Stages(
        "stages",
        [info.name for info in infos],
        [_text(info) for info in infos],
        [info.kind for info in infos],
        [info.shape for info in infos],
        [info.stride if info.spatial else None for info in infos],
        [info.receptive_field if info.spatial else None for info in infos],
        [info.parameters for info in infos],
        infos[0].image_size if infos else (0, 0),
    )


def _net(name: str) -> Any:
    from striate.model import load
    from striate.nets.net import NETS, skeleton, usual
    from striate.nets.weights import CARDS, empty, published

    if name in CARDS:
        return empty(published(name))
    if name in NETS:
        return skeleton(name, **usual(name))
    if place_of(name).exists() or Path(name).suffix or len(Path(name).parts) > 1:
        return load(name).net
    raise unknown(
        "net or model", name, {*NETS.names(), *CARDS}, hint="or give a run folder or a .safetensors file"
    )


def _text(info: StageInfo) -> str:
    where = (
        f"stride {info.stride}, receptive field {info.receptive_field}"
        if info.spatial
        else "the whole picture"
    )
    return f"{info.kind} {'x'.join(map(str, info.shape))}, {where}, {info.parameters:,} parameters"
