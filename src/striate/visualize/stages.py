"""Which stages of a net give maps, and the choice of one where none is named."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from striate.core.errors import StriateError
from striate.nets.geometry import StageInfo, stage_geometry
from striate.visualize.method import Pixels

if TYPE_CHECKING:
    from striate.model import Model


def with_maps(model: Model) -> list[str]:
    """The names of the stages whose units look at a part of the picture, as far as the net can tell."""
    try:
        return [info.name for info in model.net.spatial_stages()]  # type: ignore[operator]
    except (AttributeError, StriateError):
        return []


def first_with_maps(model: Model) -> str:
    """The first stage that gives maps.

    Raises:
        StriateError: the net does not name its stages.
    """
    # A net that geometry cannot follow is asked for its first stage: running it tells what it gives.
    names = with_maps(model) or list(getattr(model.net, "stage_names", ()))
    if not names:
        raise StriateError("the net does not name its stages", hint="name one of its modules with 'stage'")
    return str(names[0])


def last_with_maps(model: Model, view: Pixels) -> str:
    """The last stage before the head whose output for such a picture is maps of more than one position.

    Raises:
        StriateError: there is none, or the net does not tell.
    """
    infos = infos_of(model, view)
    head = getattr(model.net, "head", None)
    found = [i.name for i in infos if len(i.shape) == 3 and i.shape[1] * i.shape[2] > 1 and i.name != head]
    if not found:
        raise StriateError(
            "no stage of the net is known to give maps", hint="name one of its modules with 'stage'"
        )
    names = [info.name for info in infos]
    before = [name for name in found if head not in names or names.index(name) < names.index(head)]
    return (before or found)[-1]


def infos_of(model: Model, view: Pixels) -> list[StageInfo]:
    """Geometry of every stage for pictures as large as the view; empty where the net cannot tell."""
    height, width, channels = view.shape
    try:
        return stage_geometry(model.net, (height, width), in_channels=channels)
    except StriateError:
        return []


def must_be_maps(model: Model, stage: str, output: object) -> Tensor:
    """The output of a stage as maps (N, C, h, w).

    Raises:
        StriateError: it gives something else; the stages that give maps are listed.
    """
    if isinstance(output, Tensor) and output.ndim == 4:
        return output
    shape = tuple(output.shape[1:]) if isinstance(output, Tensor) else type(output).__name__
    raise StriateError(
        f"stage {stage!r} gives no maps but {shape}", allowed=with_maps(model), hint="name a stage before it"
    )
