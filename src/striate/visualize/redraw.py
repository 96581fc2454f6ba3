"""Copies of a net that lose what they have learned, from the head downwards."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import nn

from striate.core.errors import StriateError
from striate.layers.initialisation import he, weighted
from striate.nets.taps import stage as stage_of


def drawn_anew(net: nn.Module, levels: int) -> Iterator[tuple[str, nn.Module]]:
    """A copy of the net whose stages lose their weights from the head downwards, in `levels` steps.

    The first step takes the head alone, the last leaves nothing. The same copy is given each time, with the
    name of the lowest stage drawn. Draws come from PyTorch's random state, seeded with 0.

    Raises:
        StriateError: the net cannot be copied.
    """
    try:
        other = copy.deepcopy(net)
    except (RuntimeError, TypeError, ValueError) as error:
        raise StriateError(f"{type(net).__name__} cannot be copied ({error})") from error
    torch.manual_seed(0)
    names = [
        name
        for name in getattr(net, "stage_names", ())
        if next(stage_of(other, name).parameters(), None) is not None
    ]
    head = getattr(net, "head", None)
    if head in names:
        # Auxiliary heads may run behind the one that answers.
        names.append(names.pop(names.index(head)))
    inside = {id(p) for name in names for p in stage_of(other, name).parameters()}
    groups: list[list[str]] = [names[-1:]] if names else []
    lower = names[-2::-1]
    if lower and levels > 1:
        groups += [list(part) for part in np.array_split(lower, min(levels - 1, len(lower)))]
    elif lower:
        groups[0] = names[::-1]
    for number, group in enumerate(groups):
        for name in group:
            redraw(stage_of(other, name))
        if number + 1 == len(groups):
            _redraw_own([p for p in other.parameters() if id(p) not in inside])
        yield group[-1], other
    if not groups:
        redraw(other)
        yield "all", other


def redraw(module: nn.Module) -> None:
    """Draw all weights below `module` as if it had never been trained.

    He's normal weights and zero biases in layers with weights, norms as they begin, everything else normal
    with the deviation that it has.
    """
    layers = {id(layer) for layer in weighted(module)}
    he(module)
    for part in module.modules():
        if id(part) in layers:
            continue
        begin = getattr(part, "reset_parameters", None)
        if hasattr(part, "running_mean") or isinstance(part, (nn.GroupNorm, nn.LayerNorm)):
            if callable(begin):
                begin()
        else:
            _redraw_own([p for p in part._parameters.values() if p is not None])


def _redraw_own(parameters: Sequence[nn.Parameter]) -> None:
    with torch.no_grad():
        for parameter in parameters:
            spread = float(parameter.float().std()) if parameter.numel() > 1 else 0.0
            parameter.normal_(float(parameter.float().mean()), spread)
