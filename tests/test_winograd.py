"""Convolutions on tiles: the same numbers and gradients as the convolution itself."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from striate.layers import winograd

SIDES, PADS = st.integers(1, 15), st.integers(0, 2)


def close(found: Tensor, wanted: Tensor) -> bool:
    return bool((found - wanted).abs().max() <= 3e-5 * wanted.abs().max() + 1e-6)


@settings(max_examples=40, deadline=None)
@given(
    SIDES, SIDES, st.integers(0, 2), st.integers(0, 2), st.integers(1, 3), st.booleans(), st.integers(0, 9)
)
def test_any_size_and_padding_gives_the_convolution(
    height: int, width: int, top: int, left: int, count: int, bias: bool, seed: int
) -> None:
    if height + 2 * top < 3 or width + 2 * left < 3:
        return
    torch.manual_seed(seed)
    x, weight = torch.randn(count, 3, height, width), torch.randn(5, 3, 3, 3)
    shift = torch.randn(5) if bias else None
    found = winograd.convolve_tiles(x, winograd.filters(weight), shift, (top, left))
    assert close(found, F.conv2d(x, weight, shift, 1, (top, left)))


@pytest.mark.parametrize("block", [1, 3, 7, 1000])
def test_blocks_do_not_show(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(3, 4, 17, 9), torch.randn(6, 4, 3, 3)
    monkeypatch.setattr(winograd, "BLOCK", block)
    wanted = F.conv2d(x, weight, None, 1, 1)
    assert close(winograd.convolve_tiles(x, winograd.filters(weight)), wanted)
    slopes = torch.randn_like(wanted)
    gradient = torch.nn.grad.conv2d_weight(x, weight.shape, slopes, padding=1)
    assert close(winograd.filters_gradient(x, slopes, (1, 1)), gradient)


@pytest.mark.parametrize("padding", [0, 1, 2, (0, 2)])
@pytest.mark.parametrize("last", [False, True])
def test_gradients_of_a_module(padding: int | tuple[int, int], last: bool) -> None:
    torch.manual_seed(1)
    layer = nn.Conv2d(256, 192, 3, padding=padding)
    plain = copy.deepcopy(layer)
    assert winograd.tile(layer) == 1
    layout = torch.channels_last if last else torch.contiguous_format
    x = torch.randn(32, 256, 16, 16).contiguous(memory_format=layout).requires_grad_()
    y = x.detach().clone().requires_grad_()
    out, wanted = layer(x), plain(y)
    assert type(out.grad_fn).__name__ == "TiledBackward"
    assert close(out, wanted)
    slopes = torch.randn_like(wanted)
    out.backward(slopes)
    wanted.backward(slopes)
    pairs = [(x.grad, y.grad), (layer.weight.grad, plain.weight.grad), (layer.bias.grad, plain.bias.grad)]
    for found, true in pairs:
        assert found is not None
        assert true is not None
        assert close(found, true)


def test_changed_weights_are_seen() -> None:
    torch.manual_seed(2)
    layer = nn.Conv2d(128, 128, 3, padding=1).requires_grad_(False)
    x = torch.randn(8, 128, 16, 16)
    with winograd.tiled(layer):
        layer(x)
        layer.weight.mul_(2)
        assert close(layer(x), F.conv2d(x, layer.weight, layer.bias, 1, 1))
        layer.weight = nn.Parameter(torch.randn_like(layer.weight), requires_grad=False)
        assert close(layer(x), F.conv2d(x, layer.weight, layer.bias, 1, 1))
        twin = copy.deepcopy(layer)
        twin.weight.zero_()
        assert close(twin(x), F.conv2d(x, twin.weight, twin.bias, 1, 1))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(128, 128, 3, stride=2), nn.Conv2d(128, 128, 3, dilation=2), nn.Conv2d(128, 128, 5),
        nn.Conv2d(128, 128, 3, groups=2), nn.Conv2d(128, 128, 3, padding="same"), nn.Conv2d(3, 64, 3),
        nn.Conv2d(128, 128, 3, padding=1, padding_mode="reflect"), nn.Linear(3, 3),
    ],
)  # fmt: skip
def test_other_layers_stay_as_they_are(layer: nn.Module) -> None:
    assert winograd.tile(layer) == 0


def test_the_block_leaves_nothing_behind() -> None:
    net = nn.Sequential(nn.Conv2d(128, 128, 3), nn.ReLU(), nn.Conv2d(128, 128, 3))
    before = [dict(module.__dict__) for module in net.modules()]
    with pytest.raises(KeyboardInterrupt), winograd.tiled(net):
        raise KeyboardInterrupt
    assert [module.__dict__.keys() for module in net.modules()] == [kept.keys() for kept in before]


def test_other_tensors_take_the_convolution() -> None:
    layer = nn.Conv2d(128, 128, 3, padding=1)
    winograd.tile(layer)
    double = copy.deepcopy(layer).double()
    x = torch.randn(4, 128, 16, 16)
    assert torch.equal(double(x.double()), F.conv2d(x.double(), double.weight, double.bias, 1, 1))
    small = torch.randn(1, 128, 3, 3)
    assert torch.equal(layer(small), F.conv2d(small, layer.weight, layer.bias, 1, 1))
    assert layer.to("meta")(x.to("meta")).shape == x.shape
    traced = torch.fx.symbolic_trace(nn.Sequential(nn.Conv2d(128, 128, 3)))
    assert [node.op for node in traced.graph.nodes] == ["placeholder", "call_module", "output"]


def test_deep_nets_keep_their_answers() -> None:
    torch.manual_seed(3)
    layers = [m for _ in range(10) for m in (nn.Conv2d(128, 128, 3, padding=1), nn.ReLU())]
    net = nn.Sequential(*layers).requires_grad_(False)
    for layer in net[::2]:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    x = torch.randn(2, 128, 32, 32)
    wanted = net.double()(x.double())
    direct = net.float()(x)
    with winograd.tiled(net):
        found = net(x)
    assert not torch.equal(found, direct)
    assert float((found - wanted).abs().max() / wanted.abs().max()) < 3e-5
