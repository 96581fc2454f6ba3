"""Progressive resizing: the first epochs see smaller images, which cost less."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from striate.core.errors import StriateError

if TYPE_CHECKING:
    from torch import Tensor

    from striate.train.recipe import Recipe

FORM = re.compile(r"(\d+)@(0?\.\d+|0|1(?:\.0*)?)")
ALLOWED = "'SIZE@PART', the shorter side in pixels until that part of the run, such as '24@0.5,28@0.8'"


def parse_steps(text: str) -> tuple[tuple[int, float], ...]:
    """The written form `24@0.4,28@0.7` as ((24, 0.4), (28, 0.7)): size until which part of the run, 0 to 1.

    An empty text gives no steps.

    Raises:
        StriateError: another form, sizes that do not rise, or parts that do not.
    """
    steps = []
    for item in filter(None, (item.strip() for item in text.split(","))):
        match = FORM.fullmatch(item)
        if match is None:
            raise StriateError(f"progressive holds {item!r}", allowed=ALLOWED)
        steps.append((int(match[1]), float(match[2])))
    for (small, early), (large, late) in itertools.pairwise(steps):
        if small >= large or early >= late:
            raise StriateError(
                f"progressive is {text!r}", hint="give sizes and parts of the run that both rise"
            )
    return tuple(steps)


def check_steps(recipe: Recipe, kind: str) -> None:
    """The recipe's smaller sizes fit its input and its kind of data.

    Raises:
        StriateError: a size not below the input's own, inputs of no common size, or masks, which would
            have to shrink too.
    """
    steps = parse_steps(recipe.progressive)
    if steps and kind == "segmentation":
        raise StriateError("progressive resizing of masks is not possible", hint="leave out --progressive")
    size = recipe.size if isinstance(recipe.size, tuple) else (recipe.size or 0,)
    for side, _ in steps:
        if not 0 < side < min(size):
            raise StriateError(
                f"progressive holds the size {side}",
                allowed=f"1 to {min(size) - 1}: below the input's own size",
            )


def side_at(steps: Sequence[tuple[int, float]], epoch: int, epochs: int) -> int | None:
    """The shorter side in this epoch, from 0; None is the input's own size.

    A step holds while the epoch begins before its part of the run: epoch / epochs < part.
    """
    return next((side for side, part in steps if epoch / epochs < part), None)


def shrink(images: Tensor, side: int | None) -> Tensor:
    """Images (N, C, H, W) float, brought to `side` on the shorter side by an antialiased bilinear filter.

    The aspect ratio is kept to the nearest pixel; None changes nothing.
    """
    if side is None:
        return images
    from torch.nn.functional import interpolate  # the recipe reads this file, and imports no PyTorch

    height, width = images.shape[-2:]
    scale = side / min(height, width)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    return interpolate(images, size=size, mode="bilinear", antialias=True)
