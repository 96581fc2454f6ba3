"""What excites a unit: the part of the picture that it sees, and the pattern in it, for many at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from striate.core.errors import StriateError
from striate.images.geometry import resize
from striate.nets.geometry import StageInfo
from striate.nets.taps import stepping
from striate.visualize.gradients import coloured
from striate.visualize.method import Pixels, must_be_numbers
from striate.visualize.rules import backward_rule

if TYPE_CHECKING:
    from striate.model import Model

# Of the pixels of a projection, so many per cent are drawn below full strength.
CLIP = 99.5
GREY = 128
T = TypeVar("T")


class Place(NamedTuple):
    """One unit at one position of one picture of a batch."""

    picture: int
    unit: int
    row: int
    column: int


class Box(NamedTuple):
    """A part of a picture, x1 and y1 exclusive; it may reach beyond the picture."""

    x0: int
    y0: int
    x1: int
    y1: int


class _Enough(Exception):
    """The stage has run: what follows it is not needed."""


def receptive_box(info: StageInfo | None, row: int, column: int, height: int, width: int) -> Box:
    """The part of a picture that a unit sees, padding included, of one size for all units of a stage.

    Along an axis where the receptive field is as large as the picture, or where the net does not tell, it is
    the whole picture.
    """
    if info is None or info.axes is None:
        return Box(0, 0, width, height)
    ends = []
    for axis, place, room in zip(info.axes, (row, column), (height, width), strict=True):
        low, side = place * axis.stride + axis.low, axis.high - axis.low
        ends.append((low, low + side) if side < room else (0, room))
    (y0, y1), (x0, x1) = ends
    return Box(x0, y0, x1, y1)


def cut(image: Pixels, box: Box, fill: Sequence[int] | int = GREY) -> Pixels:
    """The part of an image (H, W, C) in the box; `fill` where it reaches beyond the image."""
    height, width, channels = image.shape
    found = np.empty((box.y1 - box.y0, box.x1 - box.x0, channels), np.uint8)
    found[:] = np.asarray(fill, np.uint8)
    top, left = max(0, box.y0), max(0, box.x0)
    bottom, right = min(height, box.y1), min(width, box.x1)
    if bottom > top and right > left:
        found[top - box.y0 : bottom - box.y0, left - box.x0 : right - box.x0] = image[top:bottom, left:right]
    return found


def tile(image: Pixels, side: int) -> Pixels:
    """The image with its longer side at most `side` pixels, its shape kept."""
    height, width = image.shape[:2]
    scale = side / max(height, width)
    if scale >= 1:
        return image
    return resize(image, (max(1, round(height * scale)), max(1, round(width * scale))))


def drawn_signal(signal: Tensor, box: Box) -> Pixels:
    """A signal (C, H, W) in the box as a picture (h, w, C): grey is 0, scaled by what lies in the box."""
    values = signal.float().cpu().numpy()
    top, left = max(0, box.y0), max(0, box.x0)
    inside = values[:, top : max(top + 1, box.y1), left : max(left + 1, box.x1)]
    pixels = coloured(inside, CLIP)
    return cut(pixels, Box(box.x0 - left, box.y0 - top, box.x1 - left, box.y1 - top), GREY)


def project(
    model: Model, x: Tensor, stage: str, places: Sequence[Place], rules: Sequence[str]
) -> list[Tensor]:
    """The signals (n, C, H, W) at the pictures of all places, from 1 at the unit of each, by each rule.

    x: the pictures (N, C, H, W) as the net's input, the net being in evaluation mode. A picture is run up to
    the stage once for each of its places; all places go there and back together.

    Raises:
        StriateError: no such stage, or a rule has no meaning on the way to it.
    """
    chosen = x.detach()[[place.picture for place in places]].requires_grad_()
    signals = []
    with torch.enable_grad():
        maps = _run_to(model, chosen, stage)
        flat = maps.flatten(2) if maps.ndim == 4 else maps[:, :, None]
        width = maps.shape[3] if maps.ndim == 4 else 1
        where = torch.tensor([p.row * width + p.column for p in places], device=maps.device)
        which = torch.tensor([p.unit for p in places], device=maps.device)
        # Pictures do not mix in evaluation: the sum sends each its own signal.
        asked = flat[torch.arange(len(places), device=maps.device), which, where].sum()
        for rule in rules:
            with backward_rule(rule):
                signal = None
                if asked.requires_grad:
                    signal = torch.autograd.grad(asked, chosen, retain_graph=True, allow_unused=True)[0]
            if signal is None:
                raise StriateError(f"stage {stage!r} does not depend on the image by any differentiable path")
            must_be_numbers(signal, "the signals")
            signals.append(signal.detach())
    return signals


def in_batches(items: Sequence[T], batch: int) -> Iterator[Sequence[T]]:
    """The items in parts of at most `batch`."""
    for first in range(0, len(items), batch):
        yield items[first : first + batch]


def _run_to(model: Model, x: Tensor, stage: str) -> Tensor:
    """What a stage gives, in the graph; the net stops there."""
    found: list[Tensor] = []

    def leave(_: str, output: object) -> None:
        if not isinstance(output, Tensor) or output.ndim not in (2, 4):
            raise StriateError(f"stage {stage!r} gives no units", allowed="maps or values of each image")
        found.append(output)
        raise _Enough

    with stepping(model.net, [stage], leave=leave):
        try:
            # A copy: the net may change its input in place, which a leaf of the graph forbids.
            model.net(x.clone())
        except _Enough:
            return found[0]
    raise StriateError(f"stage {stage!r} does not run in evaluation", hint="leave it out")
