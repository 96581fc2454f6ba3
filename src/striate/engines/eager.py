"""PyTorch without a compiler: batch norm folded, the better of two memory layouts."""

from __future__ import annotations

import copy
from typing import ClassVar

import torch
from torch import Tensor

from striate.engines.engine import ENGINES, Engine, Form, computing_with
from striate.engines.source import Source


@ENGINES.register("eager")
class Eager(Engine):
    """PyTorch as it is, with batch norm folded into the layers before it, in the better memory layout."""

    layouts: ClassVar[tuple[str, ...]] = ("nchw", "channels-last")
    setup = 0.1

    def __init__(self, source: Source, images: Tensor, form: Form) -> None:
        self.threads = form.threads
        self.memory = torch.channels_last if form.layout == "channels-last" else torch.contiguous_format
        self.net = source.folded()
        if form.layout == "channels-last":
            with torch.inference_mode(False), torch.no_grad():
                self.net = copy.deepcopy(self.net).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @classmethod
    def missing(cls, device: torch.device) -> str | None:
        """PyTorch is always there."""
        return None

    def __call__(self, images: Tensor) -> Tensor:
        """Run the folded net."""
        with computing_with(self.threads):
            outputs: Tensor = self.net(images.contiguous(memory_format=self.memory))
        return outputs
