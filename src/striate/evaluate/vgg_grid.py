"""VGG's table of test protocols: which scales Q go with a net that was trained at scale S."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from striate.core.errors import StriateError
from striate.data.augment import parse
from striate.data.augment_geometry import ScaleJitter
from striate.data.augmentations import RandomResizedCrop
from striate.evaluate.center import Center
from striate.evaluate.dense import Dense
from striate.evaluate.grid import Grid
from striate.evaluate.protocols import Protocol, Scale, Sum, in_pixels
from striate.evaluate.scaled import side_of

if TYPE_CHECKING:
    from striate.model import Model

ALLOWED = "one side, as in 256 or x1.14, or the smallest and the largest, as in 256,512"
# VGG moves Q by 32 pixels for a net of 224.
STEPS = 7


def rows_of_vgg(model: Model, trained: str | None = None) -> tuple[list[tuple[str, Protocol]], list[str]]:
    """The rows of VGG's tables 3 to 6 for a model, with their names, and what there is to say of them.

    With training sides from S_min to S_max (one fixed side S: both), tested at sides Q of the image:
    single scale Q = (S_min + S_max) / 2; several scales Q = S - d, S, S + d for a fixed side, with d = 32
    for a net of 224 pixels, and S_min, (S_min + S_max) / 2, S_max for jittered ones. Dense rows average over
    places and mirror images, multi-crop is a 5 x 5 grid with mirror images at each Q, and the last row is
    the mean of both. Simonyan & Zisserman, arXiv:1409.1556, sections 3.2 and 4. `trained` overrides what
    the model's card tells of its training sides.

    Raises:
        StriateError: `trained` cannot be read, or the model has no size of its own.
    """
    own = side_of(model.preprocess)
    low, high = _asked(trained, model) if trained else training_sides(model)
    middle = round((low + high) / 2)
    step = round(own / STEPS)
    wished = (low - step, low, low + step) if low == high else (low, middle, high)
    several = tuple(dict.fromkeys(max(own, side) for side in wished))
    single = max(own, middle)
    notes = [f"trained at shorter sides of {low}" + (f" to {high}" if high != low else "") + " pixels (S)"]
    if min(*wished, middle) < own:
        notes.append(f"test sides (Q) below the net's own {own} pixels are raised to it")
    dense, crops = Dense(flip=True, scales=several), Grid(5, flip=True, scales=several)
    rows: list[tuple[str, Protocol]] = [
        ("centre crop", Center()),
        ("single scale, dense", Dense(flip=True, scales=(single,))),
        ("multi-scale, dense", dense),
        ("multi-crop", crops),
        ("multi-crop and dense", Sum((crops, dense))),
    ]
    return rows, notes


def training_sides(model: Model) -> tuple[int, int]:
    """The smallest and largest shorter side, in pixels, that images had in training, as the card tells.

    A random resized crop of area `scale` to 1 shows the image at up to 1 / sqrt(scale) times the net's size;
    a crop at jittered scale names its sides. Without either: the side of the centre crop.
    """
    own = side_of(model.preprocess)
    fixed = round(own / model.preprocess.crop)
    recipe = model.card.get("recipe")
    text = str(recipe.get("augment", "")) if isinstance(recipe, Mapping) else ""
    try:
        steps = parse("none" if text == "auto" else text or "none").steps
    except StriateError:  # a card of another version
        return fixed, fixed
    for step in steps:
        if isinstance(step, RandomResizedCrop):
            return own, max(own, round(own / step.scale**0.5))
        if isinstance(step, ScaleJitter):
            return step.low, step.high or step.low
    return fixed, fixed


def _asked(text: str, model: Model) -> tuple[int, int]:
    """Training sides as they are written.

    Raises:
        StriateError: not one or two sides in order.
    """
    sides = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(x?)(\d{1,5}(?:\.\d+)?)\s*", part.lower())
        scale: Scale | None = None
        if found:
            scale = float(found[2]) if found[1] else (int(found[2]) if found[2].isdigit() else None)
        if scale is None:
            raise StriateError(f"trained-side is {text!r}", allowed=ALLOWED)
        sides.append(in_pixels(scale, model.preprocess) or 0)
    if len(sides) > 2 or sides[0] > sides[-1] or sides[0] < 1:
        raise StriateError(f"trained-side is {text!r}", allowed=ALLOWED)
    return sides[0], sides[-1]
