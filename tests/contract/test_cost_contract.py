"""What the cost of every registered net must hold: a second counter, and what PyTorch really keeps."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from math import prod
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from built_nets import build, counted, quick, side
from striate.nets.blocks import blocks
from striate.nets.drawing import render
from striate.nets.kept import kept_bytes
from striate.nets.net import NETS, skeleton
from striate.nets.taps import stepping

NAMES = NETS.names()


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
def test_the_second_counter_agrees_exactly_and_the_drawing_is_well_formed(name: str) -> None:
    net = skeleton(name, 10, 2, size=side(name), **quick(name))
    shown, found = blocks(net)
    assert 2 * found.macs == counted(net, 2, net.input_size)
    assert found.params == sum(found.parameters) == sum(found.kinds.values())
    assert sum(found.weights) + sum(found.biases) == found.params
    assert found.macs >= by_formula(net, 2, net.input_size)
    # Every parameter and every product is in a block, or in a norm that is a stripe.
    assert sum(block.multiply_adds for block in shown) <= found.macs
    root = ElementTree.fromstring(render(shown, found, name=name))
    told = " ".join(root.itertext())
    assert name in told
    assert net.head in told
    keys = ("x", "y", "width", "height")
    numbers = [float(value) for e in root.iter() for key, value in e.attrib.items() if key in keys]
    assert all(0 <= value < 20_000 for value in numbers)


@pytest.mark.parametrize("name", NAMES)
def test_training_keeps_what_is_told(name: str) -> None:
    net = build(name)
    told = kept_bytes(net, net.input_size, 2, net.stage_names)
    assert told is not None
    two, three = (really_kept(net, torch.rand(count, 2, *net.input_size)) for count in (2, 3))
    assert sum(told.values()) == three - two
