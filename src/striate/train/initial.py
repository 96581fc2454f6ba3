"""How a new net's weights begin: by the net's own rule, or by one of `striate list initialisations`."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from striate.core.errors import StriateError, unknown
from striate.core.written import read_call
from striate.layers.initialisation import INITIALISATIONS as INITIALISATIONS
from striate.nets import lsuv  # registers its rule
from striate.train.recipe import Recipe

OWN = "own"
# What a rule sees that goes by pictures; of 224 x 224 pixels 41, for which a VGG's first maps take half a GB.
PICTURES, PIXELS = 128, 128 * 128 * 128


def rule_of(text: str) -> tuple[Callable[..., nn.Module], bool]:
    """The rule that `text` writes, with its settings, and whether it goes by a batch of pictures.

    text: a name, or with numbers in brackets, in order or by name: `gaussian(0.01)`, `he(slope=0.1)`.

    Raises:
        StriateError: an unknown rule or setting (with the nearest), a value that is no finite
            number, or no such form.
    """
    call = read_call(text, "initialisation", hint="'own' leaves them as the net has them")
    if call.name not in INITIALISATIONS:
        raise unknown("initialisation", call.name, [OWN, *INITIALISATIONS.names()])
    entry = INITIALISATIONS.entry(call.name)
    by_pictures = bool(entry.capabilities.get("pictures"))
    known = list(inspect.signature(entry.value).parameters)[1 + by_pictures :]
    if len(call.positional) > len(known):
        raise StriateError(
            f"{len(call.positional)} values in initialisation {text!r}",
            allowed=f"{call.name}({', '.join(known)})" if known else call.name,
        )
    values = dict(zip(known, call.positional, strict=False))
    for key, value in call.named.items():
        if key not in known:
            raise unknown(f"setting of initialisation {call.name!r}", key, known)
        if key in values:
            raise StriateError(f"{key} is given twice in initialisation {text!r}")
        values[key] = value
    wrong = [value for value in values.values() if isinstance(value, str) or not math.isfinite(value)]
    if wrong:
        raise StriateError(f"{wrong[0]!r} in initialisation {text!r}", allowed="finite numbers")
    return partial(entry.value, **values), by_pictures


def check_initialisation(recipe: Recipe) -> None:
    """The setting writes a rule with values that it takes, and no other setting begins the layers after it.

    Raises:
        StriateError: as `rule_of`; a value that the rule does not take; a rule that goes by pictures, which
            sets layer after layer to the scale of what comes from the one before, beside another beginning of
            the first layers.
    """
    if recipe.initialisation == OWN:
        return
    rule, by_pictures = rule_of(recipe.initialisation)
    others = {"first_layer": recipe.first_layer == "whitened", "grow_from": bool(recipe.grow_from)}
    for name, given in others.items():
        if by_pictures and given:
            raise StriateError(
                f"initialisation {recipe.initialisation!r} and {name} both say how the first layers begin",
                hint="leave one out",
            )
    with torch.random.fork_rng(devices=[]):
        rule(nn.Linear(1, 1), *([torch.tensor([[0.0], [1.0]])] if by_pictures else []))


def begin(net: nn.Module, text: str, pictures: Callable[[int, int], Tensor]) -> None:
    """Draw the net's weights by the rule that `text` writes, in place; 'own' leaves them as they are.

    Every convolution and linear layer below the net is drawn, its head too, and biases are 0 (but by
    `uniform`). pictures: gives at most so many training images of at most so many pixels together,
    (N, C, H, W) as the net sees them.

    Raises:
        StriateError: as `rule_of`; a value that the rule does not take; no readable images.
    """
    if text == OWN:
        return
    rule, by_pictures = rule_of(text)
    rule(net, pictures(PICTURES, PIXELS)) if by_pictures else rule(net)


__all__ = ["INITIALISATIONS", "begin", "check_initialisation", "lsuv", "rule_of"]
