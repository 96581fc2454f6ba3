"""The contract of an engine: a net in evaluation, prepared once for batches of one shape."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from striate.core.registry import Registry
from striate.engines.source import Source

# Outputs a and b are the same answers where |a - b| <= TOLERANCE + RELATIVE |b| everywhere.
TOLERANCE, RELATIVE = 1e-4, 1e-5


class Unusable(Exception):
    """Why an engine cannot run this net here; a note for the user, not an error."""


@dataclass(frozen=True)
class Form:
    """One engine with what can be chosen about it.

    layout: of the activations in memory, where the engine lets it be chosen ("nchw", "channels-last" or "");
    threads: that one pass computes with.
    """

    engine: str
    layout: str = ""
    threads: int = 1

    def __str__(self) -> str:
        words = [self.layout] if self.layout else []
        return ", ".join([self.engine, *words, f"{self.threads} thread{'' if self.threads == 1 else 's'}"])


class Engine(ABC):
    """A net in evaluation mode, prepared for images (N, C, H, W) float32 of one shape.

    A subclass is one file, registered in `ENGINES`. `layouts` are those that it can be built with. Before
    anything is measured, `setup` is a guess of the seconds that building takes, and `gain` of the part of the
    net's own time that it saves. `reads_graph`: it is built from the ONNX graph. `any_batch`: batches of
    another length than the first run as they are (else they are padded to it).

    Raises:
        Unusable: the engine cannot take this net.
    """

    layouts: ClassVar[tuple[str, ...]] = ("",)
    setup: ClassVar[float] = 1.0
    gain: ClassVar[float] = 0.1
    reads_graph: ClassVar[bool] = False
    any_batch: ClassVar[bool] = True

    @abstractmethod
    def __init__(self, source: Source, images: Tensor, form: Form) -> None: ...

    @classmethod
    @abstractmethod
    def missing(cls, device: torch.device) -> str | None:
        """Why this machine, or this device, does not have the engine and what to do; None if it has."""

    @classmethod
    def suits(cls, net: nn.Module) -> bool:
        """Whether there is anything in the net that the engine does otherwise than the others."""
        return True

    @classmethod
    def versions(cls) -> dict[str, str]:
        """Package -> version of what the engine's speed depends on."""
        return {}

    @abstractmethod
    def __call__(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) float32, any memory format, to the net's outputs (N, ...) float32."""


ENGINES: Registry[type[Engine]] = Registry("engine", "striate.engines")
# The net itself, as every other room runs it: what all engines must agree with.
PLAIN = Form("plain")


class Plain(Engine):
    """The net as it is."""

    setup = 0.0

    def __init__(self, source: Source, images: Tensor, form: Form) -> None:
        self.net = source.net

    @classmethod
    def missing(cls, device: torch.device) -> str | None:
        """PyTorch is always there."""
        return None

    def __call__(self, images: Tensor) -> Tensor:
        """Run the net."""
        outputs: Tensor = self.net(images)
        return outputs


def difference(outputs: Tensor, wanted: Tensor) -> str | None:
    """None where two outputs are the same answers; else what differs, in words."""
    if outputs.shape != wanted.shape:
        return f"its outputs are {tuple(outputs.shape)}, not {tuple(wanted.shape)}"
    outputs, wanted = outputs.detach().float(), wanted.detach().float()
    off = (outputs - wanted).abs()
    fine = (off <= TOLERANCE + RELATIVE * wanted.abs()) | (outputs == wanted)
    if bool(fine.all()):
        return None
    return f"its outputs differ by up to {float(off[~fine].nan_to_num(nan=torch.inf).max()):.2g}"


def is_hooked(net: nn.Module) -> bool:
    """Whether hooks would see or change a pass: then only the net itself may run."""
    return any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


@contextmanager
def computing_with(threads: int) -> Iterator[None]:
    """PyTorch computes with so many threads in the block."""
    before = torch.get_num_threads()
    if before == threads:
        yield
        return
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Evaluation mode for the block; afterwards every module's mode is what it was."""
    modes = [(module, module.training) for module in net.modules() if module.training]
    net.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def processor(device: torch.device) -> str | None:
    """Why an engine for processors cannot serve this device; None if it can."""
    return None if device.type == "cpu" else f"it runs on the processor, the model is on {device.type}"
