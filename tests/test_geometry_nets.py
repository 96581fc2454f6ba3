"""Receptive fields, strides and boxes, checked against the gradient: the pixels that do change a unit."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from striate.core.errors import StriateError
from striate.layers.convolution import SameConv2d
from striate.nets.geometry import StageInfo, stage_geometry, unit_box
from striate.nets.net import Net, create_net
from striate.nets.taps import capture
from toys import Branch, Functional, ones_conv, summing_net


def seen_box(net: nn.Module, name: str, y: int, x: int, size: int, channels: int) -> tuple[int, ...]:
    """The pixels whose change changes unit (y, x), over all maps, from the gradient; () for none."""
    picture = torch.rand(1, channels, size, size, dtype=torch.float64, requires_grad=True)
    with capture(net, [name], grad=True) as seen:
        net(picture)
    (gradient,) = torch.autograd.grad(seen[name][0, :, y, x].sum(), picture)
    rows, columns = gradient[0].abs().sum(0).nonzero(as_tuple=True)
    if not len(rows):
        return ()
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


def positive(net: nn.Module) -> nn.Module:
    """Positive weights, averages for maxima: nothing cancels, so the gradient reaches all that it can."""
    for parameter in net.parameters():
        nn.init.uniform_(parameter, 0.1, 1.0)
    for module in list(net.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.MaxPool2d):
                pool = nn.AvgPool2d(child.kernel_size, child.stride, child.padding, child.ceil_mode)
                setattr(module, name, pool)
    return net.double().eval()


def check_against_gradient(net: nn.Module, infos: list[StageInfo], size: int, channels: int) -> None:
    for info in infos:
        if not info.spatial:
            continue
        _, height, width = info.shape
        for y, x in {(0, 0), (height // 2, width // 2), (height - 1, width - 1)}:
            assert unit_box(info, y, x) == seen_box(net, info.name, y, x, size, channels), (info.name, y, x)


def test_values_of_the_literature():
    """LeNet-5 and the first stages of VGG and ResNet-18, by the recurrence of arXiv:1603.07285."""
    lenet = {info.name: info for info in stage_geometry(create_net("lenet5", 10, 1, size=32))}
    found = [
        (lenet[n].receptive_field, lenet[n].stride, lenet[n].offset)
        for n in ("conv1", "pool1", "conv2", "pool2")
    ]
    assert found == [(5, 1, 0), (6, 2, 0), (14, 2, 0), (16, 4, 0)]
    assert not lenet["flatten"].spatial
    assert (lenet["fc5"].receptive_field, lenet["fc5"].stride) == (32, 32)
    with torch.device("meta"):
        vgg = {info.name: info for info in stage_geometry(create_net("vgg16", 1000))}
        resnet = {info.name: info for info in stage_geometry(create_net("resnet18", 1000))}
    assert (vgg["pool5"].receptive_field, vgg["pool5"].stride) == (212, 32)
    assert (vgg["conv5_3"].receptive_field, vgg["conv5_3"].stride) == (196, 16)
    assert (resnet["res5b"].receptive_field, resnet["res5b"].stride) == (435, 32)
    assert (resnet["pool1"].receptive_field, resnet["pool1"].offset) == (11, -5)
    assert resnet["res2a"].kind == "BasicBlock"
    assert resnet["res5b"].shape == (512, 7, 7)


@pytest.mark.parametrize(
    ("name", "size", "options"),
    [
        ("lenet5", 28, {"pool": "average"}),
        ("resnet20", 32, {}),
        ("resnet9", 32, {"width": 4}),
        ("airbench", 32, {"width": 4}),
    ],
)
def test_real_nets_against_the_gradient(name, size, options):
    torch.manual_seed(0)
    net = positive(create_net(name, 3, 1, size=size, **options))
    infos = stage_geometry(net)
    if name == "resnet20":
        infos = [
            info for info in infos if info.name in ("conv1", "res1b", "res2a", "res2b", "res3a", "avgpool")
        ]
    check_against_gradient(net, infos, size, 1)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["conv", "max", "average", "same", "dilated", "pad", "slice"]),
            st.integers(1, 4),
            st.integers(1, 3),
            st.integers(0, 2),
        ),
        min_size=1,
        max_size=4,
    ),
    st.integers(20, 31),
)
def test_any_chain_of_windows_against_the_gradient(parts, size):
    layers = []
    for number, (kind, kernel, stride, padding) in enumerate(parts):
        padding = min(padding, kernel // 2)
        layer = {
            "conv": lambda k=kernel, s=stride, p=padding: ones_conv(1, 1, k, s, p),
            "max": lambda k=kernel, s=stride, p=padding: nn.MaxPool2d(k, s, p),
            "average": lambda k=kernel, s=stride, p=padding: nn.AvgPool2d(k, s, p),
            "same": lambda k=kernel, s=stride: SameConv2d(1, 1, k, stride=s),
            "dilated": lambda k=kernel, p=padding: nn.Conv2d(1, 1, k, 1, p, dilation=2),
            "pad": lambda k=kernel, p=padding: nn.ZeroPad2d((p, k, k, p)),
            "slice": lambda s=stride, p=padding: Cut(p, s),
        }[kind]()
        layers.append((f"stage{number}", layer))
    layers.append(("score", nn.Conv2d(1, 2, 1)))
    net = positive(Net(layers, head="score", in_channels=1, size=size, name="chain"))
    try:
        infos = stage_geometry(net)
    except StriateError:
        with pytest.raises(RuntimeError):
            net(torch.zeros(1, 1, size, size, dtype=torch.float64))
        return
    for info in infos:
        _, height, width = info.shape
        y, x = height // 2, width // 2
        box = unit_box(info, y, x)
        if box[0] < box[2] and box[1] < box[3]:
            seen = seen_box(net, info.name, y, x, size, 1)
            if not seen:
                continue  # nothing but padding
            # A window may step over pixels (stride above kernel), so the gradient can reach less, never more.
            assert box[0] <= seen[0]
            assert box[1] <= seen[1]
            assert box[2] >= seen[2]
            assert box[3] >= seen[3]
            # Where nothing is stepped over, and no window after the first looks into padding, it is exact.
            dense = all(p[0] not in ("slice", "dilated") and p[1] >= p[2] for p in parts)
            if dense and all(p[0] not in ("same", "pad") and min(p[3], p[1] // 2) == 0 for p in parts[1:]):
                assert box == seen


class Cut(nn.Module):
    def __init__(self, start: int, step: int) -> None:
        super().__init__()
        self.start, self.step = start, step

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :, self.start :: self.step, self.start : -1]


class Wiring(nn.Module):
    """One form of wiring behind a 3x3 convolution."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.conv = ones_conv(1, 2, 3, padding=1)
        self.wide = ones_conv(2, 2, 5, padding=2)
        self.relu = nn.ReLU(inplace=True)
        self.norm = nn.LocalResponseNorm(2)
        self.out = ones_conv(2, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        if self.kind == "cat":
            x = torch.cat([x[:, :1], self.wide(x)[:, 1:]], 1)
        elif self.kind == "in place":
            y = self.wide(self.relu(x))
            y += x
            x = y
        elif self.kind == "gate":
            x = x * x.mean((2, 3), keepdim=True).sigmoid()
        elif self.kind == "norm":
            x = self.norm(self.wide(x))
        elif self.kind == "shuffle":
            n, c, h, w = x.shape
            x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        elif self.kind == "upsample":
            x = F.interpolate(F.avg_pool2d(x, 2), scale_factor=2)
        elif self.kind == "softmax":
            x = x.softmax(1)
        elif self.kind == "transposed":
            x = x.transpose(2, 3)
        elif self.kind == "view written":
            y = x.clone()
            y[:, :1] += self.wide(x)[:, :1]
            x = y
        elif self.kind == "two grids":
            x = F.pad(x[:, :, ::2, ::2], (0, 8, 0, 8)) + x
        return self.out(x)


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        ("cat", 7), ("in place", 7), ("norm", 7), ("shuffle", 3), ("softmax", 3),
        # Each unit depends on all pixels, or the grid is not one that can be told: the whole picture.
        ("gate", None), ("upsample", None), ("transposed", None), ("view written", None), ("two grids", None),
    ],
)  # fmt: skip
def test_wirings(kind, field):
    net = positive(Wiring(kind))
    info = stage_geometry(net, 16, in_channels=1)[-1]
    assert info.name == "out"
    if field is None:
        assert not info.spatial
        assert unit_box(info, 3, 3) == (0, 0, 16, 16)
    else:
        assert info.receptive_field == field
        check_against_gradient(net, [info], 16, 1)


def test_branches_take_the_union():
    stages = [("branch", Branch()), ("score", ones_conv(1, 1, 1))]
    net = positive(Net(stages, head="score", in_channels=1, size=20, name="branch"))
    infos = stage_geometry(net)
    assert [(i.receptive_field, i.stride, i.offset) for i in infos] == [(7, 1, -3)] * 2
    check_against_gradient(net, infos, 20, 1)


def test_axes_may_differ():
    conv = nn.Conv2d(1, 1, (1, 7), (1, 2), (0, 3))
    net = Net([("conv", conv)], head="conv", in_channels=1, size=(9, 20), name="wide")
    (info,) = stage_geometry(net)
    assert [(a.stride, a.low, a.high) for a in info.axes] == [(1, 0, 1), (2, -3, 4)]
    assert (info.receptive_field, info.stride) == (7, 2)
    assert unit_box(info, 4, 5) == (7, 4, 14, 5)
    assert unit_box(info, 0, 0) == (0, 0, 4, 1)
    assert unit_box(info, 8, 9, (9, 20)) == (15, 8, 20, 9)


def test_reach_of_functional_calls_between_modules():
    net = Functional()
    infos = {info.name: info for info in stage_geometry(net, 16, in_channels=3)}
    assert infos["conv"].receptive_field == 3
    # The ReLU runs twice: its first run is the one that a tap sees.
    assert infos["relu"].receptive_field == 3
    assert "unused" not in infos
    assert not infos["out"].spatial


def test_the_net_is_left_as_it_was():
    net = summing_net()
    net.get_submodule("conv1").weight.grad = torch.ones(1, 1, 3, 3)
    stage_geometry(net)
    assert net.training
    assert net.get_submodule("conv1").weight.grad is not None
    assert not net.get_submodule("conv1").weight.is_meta


def test_spatial_stages_and_errors():
    net = summing_net()
    assert [info.name for info in net.spatial_stages()] == ["conv1", "relu1", "pool1"]
    with pytest.raises(StriateError, match="the net takes 4 x 4 only"):
        stage_geometry(net, 6)
    with pytest.raises(StriateError, match="give size and in_channels"):
        stage_geometry(nn.ReLU())
    with pytest.raises(StriateError, match="cannot take a picture of 1 x 2 x 2"):
        stage_geometry(nn.Sequential(nn.Conv2d(1, 1, 5)), 2, in_channels=1)
