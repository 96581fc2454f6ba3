"""What the cost of every registered net must hold: a second counter, and what PyTorch really keeps."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from math import prod
from typing import Any

import pytest
import torch
from test_nets_contract import build, quick, side
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from striate.nets.cost import cost
from striate.nets.drawing import draw
from striate.nets.net import NETS, skeleton
from striate.nets.taps import stepping

NAMES = NETS.names()


def counted(net: nn.Module, channels: int, size: tuple[int, int]) -> int:
    """Floating-point operations of one picture by PyTorch's counter, two for a multiply-add."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        net.eval()(torch.empty(1, channels, *size, device="meta"))
    return counter.get_total_flops()


def by_formula(net: nn.Module, channels: int, size: tuple[int, int]) -> int:
    """Multiply-adds of plain convolutions and linear layers, from what they are and what they give."""
    layers = {n: m for n, m in net.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    found = 0

    def leave(name: str, output: Any) -> None:
        nonlocal found
        layer = layers[name]
        if isinstance(layer, nn.Linear):
            found += output.numel() * layer.in_features
        else:
            found += output.numel() * layer.in_channels // layer.groups * prod(layer.kernel_size)

    with torch.no_grad(), stepping(net, layers, leave=leave):
        net.eval()(torch.empty(1, channels, *size, device="meta"))
    return found


def really_kept(net: nn.Module, x: Tensor) -> int:
    """Bytes of memory that a pass of training on the CPU keeps for the backward pass."""
    own = {t.untyped_storage().data_ptr() for t in (*net.parameters(), *net.buffers())}
    held: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        held.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = net.train()(x)
    assert output is not None
    return sum(t.untyped_storage().nbytes() for address, t in held.items() if address not in own)


@pytest.mark.parametrize("name", NAMES)
def test_the_second_counter_agrees_exactly(name: str) -> None:
    net = skeleton(name, 10, 2, size=side(name), **quick(name))
    found = cost(net)
    assert 2 * found.macs == counted(net, 2, net.input_size)
    assert found.params == sum(found.parameters) == sum(found.kinds.values())
    assert sum(found.weights) + sum(found.biases) == found.params
    plain = [m for m in net.modules() if any(True for _ in m.parameters(recurse=False))]
    if all(type(m).__module__.startswith("torch.nn") or hasattr(m, "stride") for m in plain):
        assert found.macs >= by_formula(net, 2, net.input_size)


@pytest.mark.parametrize("name", [n for n in NAMES if not n.endswith(("110", "1202"))])
def test_the_second_counter_agrees_on_the_net_of_the_paper(name: str) -> None:
    with torch.device("meta"):
        net = NETS.get(name)()
    assert 2 * cost(net).macs == counted(net, net.in_channels, net.input_size)


@pytest.mark.parametrize("name", NAMES)
def test_training_keeps_what_is_told(name: str) -> None:
    net = build(name)
    told = cost(net).training_memory
    pictures = [torch.rand(count, 2, *net.input_size) for count in (2, 3)]
    two, three = (really_kept(net, x) for x in pictures)
    assert told == three - two


@pytest.mark.parametrize("name", NAMES)
def test_the_drawing_is_well_formed_and_names_every_block(name: str) -> None:
    net = skeleton(name, 10, 2, size=side(name), **quick(name))
    root = ElementTree.fromstring(draw(net))
    told = " ".join(root.itertext())
    assert name in told
    assert net.head in told
    numbers = [
        float(v) for e in root.iter() for k, v in e.attrib.items() if k in ("x", "y", "width", "height")
    ]
    assert all(0 <= value < 20_000 for value in numbers)
