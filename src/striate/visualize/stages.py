"""Which stages of a net give maps, and the choice of one where none is named."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from striate.core.errors import StriateError
from striate.nets.geometry import StageInfo, stage_geometry
from striate.nets.taps import capture
from striate.visualize.method import Pixels, net_input

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
    shapes = {info.name: info.shape for info in infos_of(model, view)} or _run_shapes(model, view)
    names, head = list(shapes), getattr(model.net, "head", None)
    before = names[: names.index(head)] if head in names else names
    found = [name for name in before if len(shapes[name]) == 3 and shapes[name][1] * shapes[name][2] > 1]
    if not found:
        raise StriateError(
            "no stage of the net is known to give maps", hint="name one of its modules with 'stage'"
        )
    return found[-1]


def _run_shapes(model: Model, view: Pixels) -> dict[str, tuple[int, ...]]:
    """Output shapes of the stages without the batch, where a pass with the picture itself must tell."""
    names = list(getattr(model.net, "stage_names", ()))
    with torch.no_grad(), capture(model.net, names) as seen:
        model.net(net_input(model, view))
    return {name: tuple(seen[name].shape[1:]) for name in names if seen.calls[name]}


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
