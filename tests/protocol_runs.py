"""Protocols run on a few images, for the tests of both."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from striate.evaluate.protocols import Protocol, View, parse_protocol
from striate.evaluate.runner import Runner
from striate.model import Model


def run(model: Model, text: str | Protocol, images: Sequence[View], batch: int = 64) -> Tensor:
    """The outputs of all images, in order."""
    runner = Runner(parse_protocol(text), model, batch=batch)
    rows: dict[int, Tensor] = {}
    for places, outputs in runner.outputs([runner.views(image) for image in images]):
        rows |= dict(zip(places, outputs, strict=True))
    return torch.stack([rows[place] for place in range(len(images))])
