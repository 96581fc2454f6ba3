"""The families: exact counts of the literature, their forms, their parts, and how nets are created."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from built_nets import count
from striate.core.errors import StriateError
from striate.layers.convolution import SameConv2d, same_padding
from striate.layers.normalization import Scale
from striate.layers.pooling import GlobalAveragePool, GlobalMaxPool
from striate.layers.registry import LAYERS
from striate.layers.regularization import DropPath
from striate.nets.cifar_resnet import PadShortcut
from striate.nets.net import NETS, Net, create_net, initialise, pair, skeleton
from toys import ones_conv, summing_net


@pytest.mark.parametrize(
    ("name", "classes", "channels", "parameters"),
    [
        ("linear", 10, 1, 7_850), ("mlp", 10, 1, 784 * 300 + 300 + 3010), ("lenet5", 10, 1, 61_706),
        ("vgg11", 1000, 3, 132_863_336), ("vgg13", 1000, 3, 133_047_848), ("vgg16_c", 1000, 3, 133_638_952),
        ("vgg16", 1000, 3, 138_357_544), ("vgg19", 1000, 3, 143_667_240), ("vgg11_bn", 1000, 3, 132_868_840),
        ("vgg13_bn", 1000, 3, 133_053_736), ("vgg16_bn", 1000, 3, 138_365_992),
        ("vgg19_bn", 1000, 3, 143_678_248), ("resnet18", 1000, 3, 11_689_512),
        ("resnet34", 1000, 3, 21_797_672), ("resnet50", 1000, 3, 25_557_032), ("resnet20", 10, 3, 269_722),
        ("resnet32", 10, 3, 464_154), ("resnet44", 10, 3, 658_586), ("resnet56", 10, 3, 853_018),
        ("resnet9", 10, 3, 6_573_130), ("efficientnet_lite0", 1000, 3, 4_652_008),
    ],
)  # fmt: skip
def test_parameters_of_the_literature(name, classes, channels, parameters):
    assert count(skeleton(name, classes, channels)) == parameters


def test_the_vgg16_table_line_by_line():
    """Weights, without biases, of arXiv:1409.1556's column D."""
    net = skeleton("vgg16", 1000)
    weights = {key.removesuffix(".weight"): p.numel() for key, p in net.named_parameters() if "weight" in key}
    assert weights == {
        "conv1_1": 1_728, "conv1_2": 36_864, "conv2_1": 73_728, "conv2_2": 147_456,
        "conv3_1": 294_912, "conv3_2": 589_824, "conv3_3": 589_824,
        "conv4_1": 1_179_648, "conv4_2": 2_359_296, "conv4_3": 2_359_296,
        "conv5_1": 2_359_296, "conv5_2": 2_359_296, "conv5_3": 2_359_296,
        "fc6": 102_760_448, "fc7": 16_777_216, "fc8": 4_096_000,
    }  # fmt: skip


def test_stage_names_are_those_of_the_papers():
    assert create_net("lenet5", 10, 1).stage_names == (
        "conv1", "relu1", "pool1", "conv2", "relu2", "pool2", "flatten", "fc3", "relu3",
        "fc4", "relu4", "fc5",
    )  # fmt: skip
    blocks = [name for name in skeleton("resnet50", 1000).stage_names if name.startswith("res")]
    assert blocks == [
        f"res{g}{b}" for g, names in ((2, "abc"), (3, "abcd"), (4, "abcdef"), (5, "abc")) for b in names
    ]
    assert skeleton("vgg16", 1000).stage_names[-8:] == (
        "flatten", "fc6", "relu6", "drop6", "fc7", "relu7", "drop7", "fc8",
    )  # fmt: skip
    assert skeleton("vgg16_c", 10).get_submodule("conv3_3").kernel_size == (1, 1)


@pytest.mark.parametrize("size", [4, 8, 12, 15, 16, 20, 27, 28, 29, 32, 40, (20, 33)])
@pytest.mark.parametrize("pool", ["max", "average"])
def test_lenet_takes_any_size(size, pool):
    net = create_net("lenet5", 3, 1, size=size, pool=pool, activation="tanh")
    assert net(torch.zeros(2, 1, *pair(size))).shape == (2, 3)


def test_lenet_at_28_and_32_is_the_same_net():
    assert (
        count(create_net("lenet5", 10, 1, size=28)) == count(create_net("lenet5", 10, 1, size=32)) == 61_706
    )


@pytest.mark.parametrize("size", [28, 33, 64])
@pytest.mark.parametrize("head", ["auto", "512-512", "linear"])
def test_vgg_heads_for_small_pictures(size, head):
    net = skeleton("vgg11", 10, 1, size=size, head=head)
    assert net(torch.zeros(1, 1, size, size, device="meta")).shape == (1, 10)
    assert ("fc6" in net.stage_names) == (head == "512-512")
    assert net.feature_dim == (512 if head == "512-512" else 512 * math.ceil(size / 32) ** 2)


def test_vgg_of_other_sizes_has_its_own_fc6():
    assert skeleton("vgg11", 10, size=128).get_submodule("fc6").in_features == 512 * 4 * 4
    assert skeleton("vgg11", 10, size=(65, 130)).get_submodule("fc6").in_features == 512 * 2 * 4


def test_small_forms_keep_the_maps_large():
    """A 3x3 stem without pooling leaves 4 x 4 of 32 pixels, where the large form would leave 1 x 1."""
    for name in ("resnet18", "resnet50", "efficientnet_lite0"):
        small = {i.name: i for i in skeleton(name, 10, size=32).spatial_stages()}
        large = {i.name: i for i in skeleton(name, 10, size=224).spatial_stages()}
        last = list(small)[-1]
        assert small[last].shape[1:] == (4, 4)
        assert small[last].stride == 8
        assert large[last].stride == 32
        assert large[last].shape[1:] == (7, 7)


def test_residual_blocks_start_as_their_shortcut_with_zero_init():
    net = create_net("resnet20", 3, zero_init=True).eval()
    x = torch.rand(1, 16, 8, 8)
    assert torch.equal(net.get_submodule("res1b")(x), x)
    assert not torch.equal(create_net("resnet20", 3).eval().get_submodule("res1b")(x), x)
    block = create_net("resnet50", 3, size=32, zero_init=True).get_submodule("res2b")
    assert block.bn3.weight.eq(0).all()
    assert block.bn2.weight.eq(1).all()


def test_option_a_shortcut_by_hand():
    x = torch.arange(32.0).reshape(1, 2, 4, 4)
    y = PadShortcut(2, 2)(x)
    assert y.shape == (1, 4, 2, 2)
    assert y[0, :, 0, 0].tolist() == [0.0, 0.0, 16.0, 0.0]
    assert torch.equal(y[0, 1], x[0, 0, ::2, ::2])
    assert y[0, [0, 3]].eq(0).all()
    assert sum(p.numel() for p in PadShortcut(2, 2).parameters()) == 0


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 40), st.integers(1, 7), st.integers(1, 4), st.integers(1, 3))
def test_same_padding_by_its_definition(length, kernel, stride, dilation):
    before, after = same_padding(length, kernel, stride, dilation)
    reach = dilation * (kernel - 1) + 1
    outputs = math.ceil(length / stride)
    assert (length + before + after - reach) // stride + 1 == outputs
    assert 0 <= after - before <= 1
    # No fewer zeros would do, unless none are needed.
    total = before + after
    assert total == 0 or (length + total - 1 - reach) // stride + 1 < outputs


@settings(max_examples=30, deadline=None)
@given(st.integers(5, 12), st.integers(5, 12), st.sampled_from([1, 2, 3, 5]), st.integers(1, 3))
def test_same_convolution_against_its_sum(height, width, kernel, stride):
    conv = SameConv2d(1, 1, kernel, stride=stride).double()
    x = torch.randn(1, 1, height, width, dtype=torch.float64)
    y = conv(x)
    assert y.shape[2:] == (math.ceil(height / stride), math.ceil(width / stride))
    top, left = same_padding(height, kernel, stride)[0], same_padding(width, kernel, stride)[0]
    i, j = y.shape[2] - 1, y.shape[3] // 2
    total = conv.bias.item()
    for a in range(kernel):
        for b in range(kernel):
            row, column = i * stride - top + a, j * stride - left + b
            if 0 <= row < height and 0 <= column < width:
                total += conv.weight[0, 0, a, b].item() * x[0, 0, row, column].item()
    assert y[0, 0, i, j].item() == pytest.approx(total)
    assert torch.autograd.gradcheck(conv, (x.requires_grad_(),))


def test_pools_and_scale():
    x = torch.arange(8.0).reshape(1, 2, 2, 2)
    assert GlobalAveragePool()(x).flatten().tolist() == [1.5, 5.5]
    assert GlobalMaxPool()(x).flatten().tolist() == [3.0, 7.0]
    assert Scale(0.125)(x).max().item() == 0.875
    assert {"SameConv2d", "GlobalAveragePool", "GlobalMaxPool", "Scale", "DropPath"} <= set(LAYERS.names())


def test_drop_path_drops_whole_examples_and_keeps_the_mean():
    torch.manual_seed(0)
    layer = DropPath(0.25)
    x = torch.ones(4000, 3, 2, 2)
    y = layer(x)
    values = y.flatten(1)
    assert values.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert (values == values[:, :1]).all()
    # Five standard deviations of a Bernoulli mean.
    assert abs(y.mean().item() - 1) < 5 * (1 / 3) ** 0.5 / 4000**0.5
    assert layer.eval()(x) is x
    with pytest.raises(StriateError, match="0 to below 1"):
        DropPath(1.0)


@pytest.mark.parametrize(("scheme", "variance"), [("he", 2.0), ("lecun", 1.0), ("uniform", 1 / 3)])
def test_initialisation_variance(scheme, variance):
    torch.manual_seed(0)
    conv = initialise(nn.Conv2d(50, 40, 5), scheme)
    assert conv.weight.var().item() == pytest.approx(variance / 1250, rel=0.05)
    assert conv.bias.eq(0).all() == (scheme != "uniform")
    linear = initialise(nn.Linear(300, 200), "xavier")
    assert linear.weight.var().item() == pytest.approx(2 / 500, rel=0.05)
    with pytest.raises(StriateError, match="unknown initialisation"):
        initialise(conv, "guess")


@pytest.mark.parametrize("size", [8, 32])
def test_he_keeps_the_scale_through_many_layers(size):
    """Also on maps of one pixel, where most of a 3x3 window is padding; max pools of noise add a little."""
    torch.manual_seed(0)
    net = create_net("vgg19", 10, size=size)
    x = torch.randn(8, 3, size, size)
    for name in net.stage_names[: net.stage_names.index("flatten")]:
        x = net.get_submodule(name)(x)
        assert 0.05 < x.square().mean() < 500, name


def test_create_net_refuses():
    with pytest.raises(StriateError, match=r"unknown net 'vgg-16'; .*did you mean 'vgg16'"):
        create_net("vgg-16", 10)
    with pytest.raises(StriateError, match=r"unknown option of net 'vgg16' 'drop_out'.*'dropout'"):
        create_net("vgg16", 10, drop_out=0.1)
    with pytest.raises(StriateError, match="option 'dropout' of net 'vgg16' is 'much'; allowed: a number"):
        skeleton("vgg16", 10, dropout="much")
    with pytest.raises(StriateError, match="'zero_init' of net 'resnet20' is 1; allowed: true or false"):
        create_net("resnet20", 10, zero_init=1)
    with pytest.raises(StriateError, match="unknown head 'huge'"):
        skeleton("vgg16", 10, head="huge")
    with pytest.raises(StriateError, match="width is 5000"):
        skeleton("resnet9", 10, width=5000)
    for classes in (0, -1, 2.5, True, "ten", 10**9):
        with pytest.raises(StriateError, match="classes is"):
            create_net("lenet5", classes)
    with pytest.raises(StriateError, match="in_channels is 0"):
        create_net("lenet5", 10, 0)
    with pytest.raises(StriateError, match="size is 0"):
        create_net("lenet5", 10, 1, size=0)
    with pytest.raises(StriateError, match="size is 4; allowed: at least 8"):
        create_net("resnet9", 10, size=4)
    with pytest.raises(StriateError, match="classes is 0"):
        summing_net().reset_head(0)


def test_dropout_options_reach_the_layers():
    net = skeleton("efficientnet_lite0", 10, dropout=0.5, drop_path=0.4)
    assert net.get_submodule("dropout").p == 0.5
    rates = [m.rate for m in net.modules() if isinstance(m, DropPath)]
    assert rates == sorted(rates)
    # The last residual block is the fifteenth of sixteen, counted from 0.
    assert rates[-1] == pytest.approx(0.4 * 14 / 16)
    assert net.options == {"dropout": 0.5, "drop_path": 0.4}


def test_mlp_layers():
    net = create_net("mlp", 4, 1, size=2, hidden=5, layers=3, dropout=0.1)
    assert net.head == "fc4"
    assert count(net) == 25 + 30 + 30 + 24
    assert "drop3" in net.stage_names


def test_stages_must_have_free_names_and_a_head():
    layer = ones_conv(1, 1, 1)
    with pytest.raises(ValueError, match="'features' is taken"):
        Net([("features", layer)], head="features", in_channels=1, size=4, name="bad")
    with pytest.raises(ValueError, match="is not a stage"):
        Net({"conv1": layer}, head="fc", in_channels=1, size=4, name="bad")


def test_reset_head_of_a_convolution():
    net = Net(
        {"score": nn.Conv2d(3, 5, 3, 2, 1, bias=False)}, head="score", in_channels=3, size=8, name="dense"
    )
    net.double().eval().reset_head(7)
    layer = net.head_layer
    assert (layer.kernel_size, layer.stride, layer.bias, layer.weight.dtype) == (
        (3, 3),
        (2, 2),
        None,
        torch.float64,
    )
    assert not layer.training
    assert (net.classes, net.feature_dim) == (7, 3)


def test_the_largest_net_of_each_family_is_light_as_a_skeleton():
    for entry in NETS:
        assert all(p.is_meta for p in skeleton(entry.name, 2).parameters())


def test_training_reduces_the_loss_of_a_deep_plain_net():
    """VGG-16 without batch norm learns two classes: He's rule lets the gradient through."""
    torch.manual_seed(0)
    net = create_net("vgg16", 2, 1, size=16)
    x = torch.cat([torch.rand(8, 1, 16, 16), -torch.rand(8, 1, 16, 16)])
    y = torch.tensor([0] * 8 + [1] * 8)
    optimiser = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9)
    losses = []
    for _ in range(10):
        optimiser.zero_grad()
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
