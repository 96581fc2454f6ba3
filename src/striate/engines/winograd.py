"""PyTorch without a compiler, 3 x 3 convolutions by Winograd's minimal filtering."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from striate.engines.eager import Eager
from striate.engines.engine import ENGINES, Form, processor
from striate.engines.source import Source
from striate.layers.winograd import tile, tileable


@ENGINES.register("winograd")
class Winograd(Eager):
    """The folded net in channels-last memory, with a quarter of the products in wide 3 x 3 convolutions."""

    layouts = ("channels-last",)
    setup = 0.3
    gain = 0.2

    def __init__(self, source: Source, images: Tensor, form: Form) -> None:
        super().__init__(source, images, form)
        tile(self.net.requires_grad_(False))

    @classmethod
    def suits(cls, net: nn.Module) -> bool:
        """Nets with 3 x 3 convolutions of many maps."""
        return any(map(tileable, net.modules()))

    @classmethod
    def missing(cls, device: torch.device) -> str | None:
        """It is written for processors: graphics cards filter so by themselves."""
        return processor(device)
