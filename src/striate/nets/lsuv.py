"""Layer-sequential unit variance: weights that begin with the scale that a batch of pictures shows right."""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import Tensor, nn

from striate.core.errors import StriateError
from striate.layers.initialisation import INITIALISATIONS, orthogonal, weighted
from striate.nets.taps import leaves_as_found, places, stepping

M = TypeVar("M", bound=nn.Module)


@INITIALISATIONS.register(paper="arXiv:1511.06422, algorithm 1", pictures=True)
def lsuv(module: M, batch: Tensor, tolerance: float = 0.01, passes: int = 10) -> M:
    """Orthogonal weights, scaled layer after layer until each gives outputs of variance 1 on `batch`.

    Mishkin & Matas 2015. batch: (N, C, H, W) floats, normalised as in training, some hundred pictures are
    enough. As the layers' biases are 0, dividing weights by the standard deviation divides the output
    likewise, so that one pass sets all layers in the order in which they run; more follow only while a
    variance is further than `tolerance` from 1 (layers that bend their own outputs). Modes and
    running means stay as they were; the passes are made in evaluation mode, so what runs in training only
    (auxiliary classifiers) is orthogonal and unscaled.

    Raises:
        StriateError: a layer gives a constant, so that no scale helps; `tolerance` is not above 0, `passes`
            no whole number from 1.
    """
    if not tolerance > 0 or passes < 1 or passes != int(passes):
        raise StriateError(
            f"tolerance {tolerance!r}, {passes!r} passes",
            allowed="a tolerance above 0, and a whole number of passes from 1",
        )
    orthogonal(module)
    chosen = {id(layer) for layer in weighted(module)}
    found = {name: layer for name, layer in places(module).items() if id(layer) in chosen}
    worst = 0.0

    def scale(name: str, output: Tensor) -> Tensor:
        nonlocal worst
        layer = found[name]
        weight = layer.weight
        assert isinstance(weight, Tensor)  # by `weighted`
        variance = float(output.var())
        if not 0 < variance < float("inf"):
            raise StriateError(
                f"layer {name!r} gives a variance of {variance:g}", hint="give a batch of different pictures"
            )
        worst = max(worst, abs(variance - 1))
        weight.div_(math.sqrt(variance))
        return output / math.sqrt(variance)

    with leaves_as_found(module), torch.no_grad(), stepping(module, found, leave=scale):
        module.eval()
        for _ in range(int(passes)):
            worst = 0.0
            module(batch)
            if worst <= tolerance:
                break
    return module
