"""LeNet of 1989 and LeNet-5: units, connections and parameters as their papers count, and their wiring."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from built_nets import count, shapes, weights_and_biases
from striate.layers.convolution import TableConv2d, UntiedBiasConv2d
from striate.nets.lenet import C3_TABLE, H2_TABLE, RadialBasis, connections
from striate.nets.net import Net, create_net, pair


def tally(net: Net) -> dict[str, int]:
    """The connections of each layer, counted by running it: all weights, biases and inputs are 1."""
    found: dict[str, int] = {}
    shape: tuple[int, ...] = (net.in_channels, *net.input_size)
    for name, after in shapes(net).items():
        layer = net.get_submodule(name)
        if isinstance(layer, (UntiedBiasConv2d, TableConv2d)):
            # The background counts as an input.
            layer.pad_value = 1.0
        if list(layer.parameters()):
            with torch.no_grad():
                for parameter in layer.parameters():
                    parameter.fill_(0.0 if isinstance(layer, RadialBasis) else 1.0)
                found[name] = round(layer(torch.ones(1, *shape)).abs().sum().item())
        shape = after
    return found


def test_lenet_of_1989_as_its_paper_counts():
    net = create_net("lenet1989", 10, 1)
    assert weights_and_biases(net) == {
        "H1": 768 + 25 * 12,
        "H2": 192 + 200 * 12,
        "H3": 192 * 30 + 30,
        "output": 310,
    }
    seen = shapes(net)
    assert (seen["H1"], seen["H2"], seen["H3"]) == ((12, 8, 8), (12, 4, 4), (30,))
    units = 256 + sum(math.prod(seen[name]) for name in ("H1", "H2", "H3", "output"))
    assert units == 1_256
    wired = connections(net)
    assert wired == {"H1": 19_968, "H2": 38_592, "H3": 5_790, "output": 310}
    assert sum(wired.values()) == 64_660
    assert count(net) == 9_760
    assert tally(net) == wired


def test_lenet5_as_its_paper_counts():
    net = create_net("lenet5_1998", 10, 1, output="rbf")
    assert weights_and_biases(net) == {
        "C1": 156, "S2": 12, "C3": 1_516, "S4": 32, "C5": 48_120, "F6": 10_164, "output": 840,
    }  # fmt: skip
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == 60_000
    seen = shapes(net)
    assert [seen[name] for name in ("C1", "S2", "C3", "S4", "C5", "F6")] == [
        (6, 28, 28), (6, 14, 14), (16, 10, 10), (16, 5, 5), (120, 1, 1), (84,),
    ]  # fmt: skip
    wired = connections(net)
    assert wired == {
        "C1": 122_304, "S2": 5_880, "C3": 151_600, "S4": 2_000, "C5": 48_120, "F6": 10_164, "output": 840,
    }  # fmt: skip
    assert sum(wired.values()) == 340_908
    assert tally(net) == wired


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("lenet5", {"size": 28}), ("lenet5_1998", {"size": 20}), ("lenet1989", {"size": (9, 14)}),
        ("lenet5_1998", {"size": 12, "output": "rbf"}), ("stochastic_cifar", {"size": 16, "width": 4}),
    ],
)  # fmt: skip
def test_connections_by_two_counts(name, options):
    """With ones everywhere a unit gives the number of its inputs: counted without its padding."""
    net = create_net(name, 4, 2, **options)
    wired = connections(net)
    padded = {
        key
        for key, layer in net.named_modules()
        if isinstance(layer, nn.Conv2d) and any(n > 0 for n in layer.padding)
    }
    for key, found in tally(net).items():
        assert found < wired[key] if key in padded else found == wired[key], key


def test_the_table_of_lenet_1989():
    assert all(len(set(row)) == len(row) == 8 for row in H2_TABLE)
    assert [sum(n in row for row in H2_TABLE) for n in range(12)] == [8] * 12
    assert len(set(H2_TABLE)) == 12


def test_the_table_of_lenet5():
    """Six contiguous threes, six contiguous fours, three other fours, and all: around a ring of six."""

    def contiguous(row: tuple[int, ...]) -> bool:
        return sum((n + 1) % 6 in row for n in row) == len(row) - 1

    assert [len(row) for row in C3_TABLE] == [3] * 6 + [4] * 9 + [6]
    assert all(contiguous(row) for row in C3_TABLE[:12])
    assert not any(contiguous(row) for row in C3_TABLE[12:15])
    assert len(set(C3_TABLE)) == 16
    assert [sum(n in row for row in C3_TABLE) for n in range(6)] == [10] * 6


def test_a_map_of_c3_sees_the_maps_of_its_row_only():
    net = create_net("lenet5_1998", 10, 1)
    layer = net.get_submodule("C3")
    x = torch.randn(1, 6, 14, 14, requires_grad=True)
    for number, row in enumerate(C3_TABLE):
        (slope,) = torch.autograd.grad(layer(x)[0, number].sum(), x)
        assert tuple(n for n in range(6) if slope[0, n].abs().sum() > 0) == row


def test_outside_of_the_picture_is_background():
    """A picture of background, -1, gives the same in the corner as in the middle."""
    net = create_net("lenet1989", 10, 1)
    maps = net.get_submodule("H1")(torch.full((1, 1, 16, 16), -1.0))
    torch.testing.assert_close(maps, maps[..., 3:4, 3:4].expand_as(maps))
    ink = net.get_submodule("H1")(torch.zeros(1, 1, 16, 16))
    assert not torch.allclose(ink[..., 0, 0], ink[..., 3, 3])


def test_every_unit_of_lenet_1989_has_its_own_bias():
    net = create_net("lenet1989", 10, 1)
    layer = net.get_submodule("H2")
    x = torch.randn(1, 12, 8, 8)
    before = layer(x)
    with torch.no_grad():
        layer.bias[3, 1, 2] += 1.0
    change = layer(x) - before
    assert change[0, 3, 1, 2].item() == pytest.approx(1.0)
    assert change.count_nonzero() == 1


def test_old_lenets_start_within_the_bounds_of_their_papers():
    torch.manual_seed(0)
    net = create_net("lenet1989", 10, 1)
    for name, inputs in (("H1", 25), ("H2", 200), ("H3", 192), ("output", 30)):
        layer = net.get_submodule(name)
        assert 0.9 * 2.4 / inputs < layer.weight.abs().max() <= 2.4 / inputs
        assert layer.bias.eq(0).all()


def test_radial_output_by_hand():
    torch.manual_seed(0)
    net = create_net("lenet5_1998", 3, 1, output="rbf").eval()
    codes = net.head_layer.weight
    assert codes.shape == (3, 84)
    assert codes.abs().eq(1).all()
    x = torch.randn(2, 84)
    slow = torch.tensor([[-((a - b) ** 2).sum().item() for b in codes] for a in x])
    torch.testing.assert_close(net.head_layer(x), slow, rtol=1e-4, atol=1e-4)
    # A unit that reproduces a code is at distance 0, and a trained code would collapse.
    assert net.head_layer(codes).diagonal().tolist() == pytest.approx([0, 0, 0], abs=1e-4)
    net(torch.rand(2, 1, 32, 32)).sum().backward()
    assert codes.grad is None
    assert net.get_submodule("F6").weight.grad.abs().sum() > 0
    assert type(net.reset_head(4).head_layer) is nn.Linear


@pytest.mark.parametrize("size", [5, 16, 21, (9, 30)])
def test_lenet_1989_takes_any_size(size):
    net = create_net("lenet1989", 3, 2, size=size, output="tanh")
    y = net(torch.randn(2, 2, *pair(size)))
    assert y.shape == (2, 3)
    assert y.abs().max() < 1.7159
    assert net.stage_names[-1] == "tanh4"


@pytest.mark.parametrize("size", [4, 11, 16, 28, 31, 33, (20, 40)])
def test_lenet5_1998_takes_any_size(size):
    assert create_net("lenet5_1998", 3, 1, size=size)(torch.zeros(2, 1, *pair(size))).shape == (2, 3)
