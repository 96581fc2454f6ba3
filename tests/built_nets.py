"""Nets for tests: every registered one at its smallest, and what nets hold."""

from __future__ import annotations

import copy
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from striate.nets.cost import cost
from striate.nets.net import NETS, Net, create_net

SMALL_SIDE = 16


def quick(name: str) -> dict[str, Any]:
    """The options with which the net keeps its form and is small enough for a quick test."""
    return NETS.entry(name).capabilities.get("quick", {})


def side(name: str) -> int:
    """The side of the pictures of these tests: the registered least one where 16 pixels are too few."""
    known = NETS.entry(name).capabilities
    return max(min(SMALL_SIDE, known["size"]), known.get("min_size", 1))


@lru_cache(maxsize=4)
def built(name: str, classes: int, seed: int) -> Net:
    torch.manual_seed(seed)
    return create_net(name, classes, 2, size=side(name), **quick(name))


def build(name: str, classes: int = 3, seed: int = 0) -> Net:
    """A net of its own; drawn once, as drawing takes longer than copying."""
    return copy.deepcopy(built(name, classes, seed))


def pictures(name: str, count: int = 2, channels: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, channels, side(name), side(name), generator=generator)


def count(net: nn.Module) -> int:
    """Parameters."""
    return sum(p.numel() for p in net.parameters())


def weights_and_biases(net: nn.Module) -> dict[str, int]:
    """Parameters by the stage that holds them."""
    found: dict[str, int] = {}
    for key, parameter in net.named_parameters():
        name = key.split(".")[0]
        found[name] = found.get(name, 0) + parameter.numel()
    return found


def shapes(net: Net) -> dict[str, tuple[int, ...]]:
    """The shape of each stage's output."""
    table = cost(net)
    return dict(zip(table.stage, table.shape, strict=True))


def counted(net: nn.Module, channels: int, size: tuple[int, int]) -> int:
    """Floating-point operations of one picture by PyTorch's counter, two for a multiply-add."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        net.eval()(torch.empty(1, channels, *size, device="meta"))
    return counter.get_total_flops()
