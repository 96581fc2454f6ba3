"""The classic nets but LeNet: the counts and shapes of their papers, their options, their sizes."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from built_nets import count, shapes, weights_and_biases
from striate.core.errors import StriateError
from striate.nets.cost import cost
from striate.nets.lenet import connections
from striate.nets.net import NETS, create_net, pair, skeleton
from striate.nets.taps import capture


@pytest.mark.parametrize(
    ("name", "classes", "channels", "options", "parameters"),
    [
        ("lenet1989", 10, 1, {}, 9_760),
        ("lenet5_1998", 10, 1, {}, 60_000 + 850),
        ("lenet5_1998", 10, 1, {"output": "rbf"}, 60_000 + 840),
        ("alexnet", 1000, 3, {}, 60_965_224),
        ("alexnet", 1000, 3, {"groups": 1}, 62_378_344),
        ("alexnet", 10, 3, {"size": 28}, 1_387_786),
        ("alexnet_single", 1000, 3, {}, 61_100_840),
        ("zfnet", 1000, 3, {}, 62_357_608),
        ("zfnet_512", 1000, 3, {}, 107_627_624),
        ("overfeat_fast", 1000, 3, {}, 145_920_872),
        ("overfeat_accurate", 1000, 3, {}, 144_656_488),
        ("nin", 1000, 3, {}, 7_595_176),
        ("nin", 10, 3, {"size": 32}, 966_986),
        ("allcnn", 10, 3, {}, 1_369_738),
        ("allcnn", 1000, 3, {"size": 224}, 9_372_840),
        ("maxout_cifar", 10, 3, {}, 16_247_830),
        ("stochastic_cifar", 10, 3, {}, 220_042),
        ("stochastic_cifar", 10, 3, {"last": 128}, 220_042 + 64 * 1600 + 64 + 64 * 160),
        ("vgg11_lrn", 1000, 3, {}, 132_863_336),
    ],
)
def test_parameters_of_the_literature(name, classes, channels, options, parameters):
    assert count(skeleton(name, classes, channels, **options)) == parameters


def test_alexnet_line_by_line():
    net = skeleton("alexnet", 1000)
    assert net.input_size == (227, 227)
    seen = shapes(net)
    lines = [
        ("conv1", (96, 55, 55)), ("relu1", (96, 55, 55)), ("norm1", (96, 55, 55)), ("pool1", (96, 27, 27)),
        ("conv2", (256, 27, 27)), ("relu2", (256, 27, 27)), ("norm2", (256, 27, 27)),
        ("pool2", (256, 13, 13)), ("conv3", (384, 13, 13)), ("relu3", (384, 13, 13)),
        ("conv4", (384, 13, 13)), ("relu4", (384, 13, 13)), ("conv5", (256, 13, 13)),
        ("relu5", (256, 13, 13)), ("pool5", (256, 6, 6)), ("flatten", (9216,)),
        ("fc6", (4096,)), ("relu6", (4096,)), ("drop6", (4096,)),
        ("fc7", (4096,)), ("relu7", (4096,)), ("drop7", (4096,)), ("fc8", (1000,)),
    ]  # fmt: skip
    assert list(seen.items()) == lines
    # The numbers of neurons under figure 2; its first, 253,440, belongs to no map of 96.
    sizes = [math.prod(seen[f"conv{n}"]) for n in range(2, 6)]
    assert sizes == [186_624, 64_896, 64_896, 43_264]


def test_alexnet_costs_line_by_line():
    found = cost(skeleton("alexnet", 1000))
    work = {n: m for n, m in zip(found.stage, found.multiply_adds, strict=True) if m}
    assert work == {
        "conv1": 105_415_200, "conv2": 223_948_800, "conv3": 149_520_384, "conv4": 112_140_288,
        "conv5": 74_760_192, "fc6": 37_748_736, "fc7": 16_777_216, "fc8": 4_096_000,
    }  # fmt: skip
    assert weights_and_biases(skeleton("alexnet", 1000)) == {
        "conv1": 34_944, "conv2": 307_456, "conv3": 885_120, "conv4": 663_936, "conv5": 442_624,
        "fc6": 37_752_832, "fc7": 16_781_312, "fc8": 4_097_000,
    }  # fmt: skip


def test_alexnet_in_groups_sees_one_half():
    grouped, whole = skeleton("alexnet", 10), skeleton("alexnet", 10, groups=1)
    for name, inputs in (("conv2", 96), ("conv4", 384), ("conv5", 384)):
        assert grouped.get_submodule(name).weight.shape[1] == inputs // 2
        assert whole.get_submodule(name).weight.shape[1] == inputs
    assert grouped.get_submodule("conv3").weight.shape[1] == 256
    norm = grouped.get_submodule("norm1")
    assert (norm.size, norm.alpha, norm.beta, norm.k, norm.average) == (5, 1e-4, 0.75, 2.0, False)


def test_alexnet_single_column_is_the_form_of_published_weights():
    """Keys in their order and shapes, as torchvision's file holds them."""
    net = skeleton("alexnet_single", 1000)
    assert {key: tuple(t.shape) for key, t in net.state_dict().items() if key.endswith("weight")} == {
        "conv1.weight": (64, 3, 11, 11), "conv2.weight": (192, 64, 5, 5), "conv3.weight": (384, 192, 3, 3),
        "conv4.weight": (256, 384, 3, 3), "conv5.weight": (256, 256, 3, 3), "fc6.weight": (4096, 9216),
        "fc7.weight": (4096, 4096), "fc8.weight": (1000, 4096),
    }  # fmt: skip
    seen = shapes(net)
    assert [seen[name] for name in ("conv1", "pool1", "pool2", "conv5", "pool5")] == [
        (64, 55, 55), (64, 27, 27), (192, 13, 13), (256, 13, 13), (256, 6, 6),
    ]  # fmt: skip
    assert net.stage_names[-8:] == ("flatten", "drop6", "fc6", "relu6", "drop7", "fc7", "relu7", "fc8")
    assert cost(net).macs == 714_188_480


@pytest.mark.parametrize("name", ["alexnet", "alexnet_single"])
@pytest.mark.parametrize("size", [16, 28, 32, 33, 64, 67, (67, 90), 224])
def test_alexnet_of_other_sizes(name, size):
    net = skeleton(name, 10, 1, size=size)
    assert net(torch.empty(2, 1, *pair(size), device="meta")).shape == (2, 10)
    assert ("fc8" in net.stage_names) == (min(pair(size)) > 64)


def test_zfnet_line_by_line():
    """The sizes in figure 3."""
    seen = shapes(skeleton("zfnet", 1000))
    lines = {
        "conv1": (96, 110, 110), "pool1": (96, 55, 55), "norm1": (96, 55, 55), "conv2": (256, 26, 26),
        "pool2": (256, 13, 13), "norm2": (256, 13, 13), "conv3": (384, 13, 13), "conv4": (384, 13, 13),
        "conv5": (256, 13, 13), "pool5": (256, 6, 6), "fc6": (4096,), "fc7": (4096,), "fc8": (1000,),
    }  # fmt: skip
    assert {name: seen[name] for name in lines} == lines
    wide = shapes(skeleton("zfnet_512", 1000))
    assert [wide[f"conv{n}"][0] for n in range(1, 6)] == [96, 256, 512, 1024, 512]
    first = skeleton("zfnet", 1000).get_submodule("conv1")
    assert (first.kernel_size, first.stride) == ((7, 7), (2, 2))


def test_overfeat_line_by_line():
    """The input sizes in tables 1 and 3; of the fast model's layer 2, the size before the pool."""
    fast = shapes(skeleton("overfeat_fast", 1000))
    lines = {
        "conv1": (96, 56, 56), "pool1": (96, 28, 28), "conv2": (256, 24, 24), "pool2": (256, 12, 12),
        "conv3": (512, 12, 12), "conv4": (1024, 12, 12), "conv5": (1024, 12, 12), "pool5": (1024, 6, 6),
        "fc6": (3072,), "fc7": (4096,), "fc8": (1000,),
    }  # fmt: skip
    assert {name: fast[name] for name in lines} == lines
    accurate = shapes(skeleton("overfeat_accurate", 1000))
    lines = {
        "conv1": (96, 108, 108), "pool1": (96, 36, 36), "conv2": (256, 30, 30), "pool2": (256, 15, 15),
        "conv3": (512, 15, 15), "conv4": (512, 15, 15), "conv5": (1024, 15, 15), "conv6": (1024, 15, 15),
        "pool6": (1024, 5, 5), "fc7": (4096,), "fc8": (4096,), "fc9": (1000,),
    }  # fmt: skip
    assert {name: accurate[name] for name in lines} == lines


@pytest.mark.parametrize(
    ("name", "millions", "connected"), [("overfeat_fast", 145, 2810), ("overfeat_accurate", 144, 5369)]
)
def test_overfeat_as_table_4_counts(name, millions, connected):
    """Millions of parameters, cut off; its connections are within one in 250 of what the layers have."""
    net = skeleton(name, 1000)
    assert count(net) // 10**6 == millions
    assert sum(connections(net).values()) / 1e6 == pytest.approx(connected, rel=0.004)


def test_vgg_columns():
    table = {"A": 133, "A-LRN": 133, "B": 133, "C": 134, "D": 138, "E": 144}
    for column, millions in table.items():
        plain = [name for name in NETS.names(family="vgg", column=column) if not name.endswith("_bn")]
        assert len(plain) == 1
        assert round(count(skeleton(plain[0], 1000)) / 1e6) == millions
    plain, normed = skeleton("vgg11", 1000).stage_names, skeleton("vgg11_lrn", 1000).stage_names
    assert [name for name in normed if name not in plain] == ["norm1_1"]
    assert normed[:4] == ("conv1_1", "relu1_1", "norm1_1", "pool1")


def test_the_vgg16_table_line_by_line():
    """Maps of each line; weights of the convolutions in all, and of the connected layers."""
    net = skeleton("vgg16", 1000)
    seen = shapes(net)
    side, lines = 224, {}
    for group, (maps, layers) in enumerate(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)), start=1):
        lines |= {f"conv{group}_{number}": (maps, side, side) for number in range(1, layers + 1)}
        side //= 2
        lines[f"pool{group}"] = (maps, side, side)
    lines |= {"fc6": (4096,), "fc7": (4096,), "fc8": (1000,)}
    assert {name: shape for name, shape in seen.items() if name in lines} == lines
    weights = {k: p.numel() for k, p in net.named_parameters() if k.endswith("weight")}
    assert sum(n for k, n in weights.items() if k.startswith("conv")) == 14_710_464
    assert [weights[f"fc{n}.weight"] for n in (6, 7, 8)] == [102_760_448, 16_777_216, 4_096_000]
    assert count(net) == 138_357_544


def test_vgg_widths():
    net = skeleton("vgg13", 10, size=32, width=16)
    assert [net.get_submodule(f"conv{n}_1").out_channels for n in range(1, 6)] == [16, 32, 64, 128, 128]
    assert net.feature_dim == 128


def test_nin_line_by_line():
    small = shapes(skeleton("nin", 10, size=32))
    lines = {
        "conv1": (192, 32, 32), "cccp1": (160, 32, 32), "cccp2": (96, 32, 32), "pool1": (96, 16, 16),
        "conv2": (192, 16, 16), "cccp3": (192, 16, 16), "cccp4": (192, 16, 16), "pool2": (192, 8, 8),
        "conv3": (192, 8, 8), "cccp5": (192, 8, 8), "cccp6": (10, 8, 8), "pool3": (10, 1, 1),
    }  # fmt: skip
    assert {name: small[name] for name in lines} == lines
    assert list(small)[-4:] == ["cccp6", "relu_cccp6", "pool3", "flatten"]
    large = shapes(skeleton("nin", 1000))
    lines = {
        "conv1": (96, 54, 54), "pool1": (96, 27, 27), "conv2": (256, 27, 27), "pool2": (256, 13, 13),
        "conv3": (384, 13, 13), "pool3": (384, 6, 6), "conv4": (1024, 6, 6), "cccp7": (1024, 6, 6),
        "cccp8": (1000, 6, 6), "pool4": (1000, 1, 1),
    }  # fmt: skip
    assert {name: large[name] for name in lines} == lines
    assert [name for name in large if name.startswith("drop")] == ["drop3"]


@pytest.mark.parametrize("name", ["nin", "allcnn"])
def test_class_maps_are_averaged_and_features_are_means(name):
    torch.manual_seed(0)
    net = create_net(name, 5, 3, size=32, width=16).eval()
    x = torch.randn(2, 3, 32, 32)
    with capture(net, net.stage_names) as seen, torch.no_grad():
        y = net(x)
    maps = seen[net.head]
    torch.testing.assert_close(y, maps.relu().mean((2, 3)))
    before = net.stage_names[net.stage_names.index(net.head) - 1]
    torch.testing.assert_close(net.features(x), seen[before].mean((2, 3)))
    assert (maps > 0).all(), "a class map that starts below 0 would never learn"
    assert net.reset_head(7).head_layer.bias.eq(1).all()
    # Larger pictures have larger class maps, and give one answer all the same.
    assert net(torch.randn(1, 3, 40, 52)).shape == (1, 7)


@pytest.mark.parametrize(
    ("model", "base", "more"),
    [("A", 839_242, 1_254_250), ("B", 885_610, 1_300_618), ("C", 954_730, 1_369_738)],
)
def test_all_cnn_tables_1_and_2(model, base, more):
    found = {}
    for variant in ("base", "strided", "convpool", "all"):
        net = skeleton("allcnn", 10, model=model, variant=variant)
        found[variant] = count(net)
        seen = shapes(net)
        # Averages over 6 x 6, whatever the reductions are.
        assert seen[net.head] == (10, 6, 6)
        assert sum(name.startswith("pool") for name in seen) == (2 if variant in ("base", "convpool") else 0)
        assert [name for name in seen if name.startswith("drop")] == ["drop0", "drop1", "drop2"]
    assert found == {"base": base, "strided": base, "convpool": more, "all": more}


def test_all_cnn_for_imagenet():
    """Twelve convolutions in appendix B, and averages over 6 x 6."""
    net = skeleton("allcnn", 1000, size=224)
    seen = shapes(net)
    assert [seen[f"conv{n}"] for n in (1, 3, 6, 9, 10, 11, 12)] == [
        (96, 55, 55), (96, 27, 27), (256, 13, 13), (384, 6, 6), (1024, 6, 6), (1024, 6, 6), (1000, 6, 6),
    ]  # fmt: skip
    assert net.head == "conv12"
    assert count(net) < 10_000_000
    with pytest.raises(StriateError, match="allowed: model B, variant 'all'"):
        skeleton("allcnn", 1000, size=224, model="C")
    with pytest.raises(StriateError, match="allowed: model B, variant 'all'"):
        skeleton("allcnn", 1000, size=224, variant="strided")


def test_maxout_line_by_line():
    """The sizes of the authors' settings: 33 and 15 divide among their processors."""
    seen = shapes(skeleton("maxout_cifar", 10))
    lines = {
        "conv1": (192, 33, 33), "maxout1": (96, 33, 33), "pool1": (96, 16, 16), "conv2": (384, 15, 15),
        "maxout2": (192, 15, 15), "pool2": (192, 7, 7), "conv3": (384, 9, 9), "maxout3": (192, 9, 9),
        "pool3": (192, 5, 5), "fc4": (2500,), "maxout4": (500,), "fc5": (10,),
    }  # fmt: skip
    assert {name: seen[name] for name in lines} == lines


def test_stochastic_pooling_line_by_line():
    seen = shapes(skeleton("stochastic_cifar", 10))
    assert [seen[f"pool{n}"] for n in (1, 2, 3)] == [(64, 16, 16), (64, 8, 8), (64, 4, 4)]
    for pool in ("max", "average"):
        assert shapes(skeleton("stochastic_cifar", 10, pool=pool)) == seen
    norm = skeleton("stochastic_cifar", 10).get_submodule("norm1")
    assert (norm.size, norm.alpha, norm.beta, norm.k, norm.average) == (9, 1e-3, 0.75, 1.0, True)


def test_stochastic_pooling_draws_in_training_only():
    torch.manual_seed(0)
    net = create_net("stochastic_cifar", 3, 1, size=16, width=8, last=8)
    x = torch.randn(2, 1, 16, 16)
    with torch.no_grad():
        assert not torch.equal(net(x), net(x))
        torch.manual_seed(1)
        first = net(x)
        torch.manual_seed(1)
        assert torch.equal(net(x), first)
        net.eval()
        assert torch.equal(net(x), net(x))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("lenet1989", {"output": "softmax"}, "unknown output"),
        ("lenet5_1998", {"output": "rfb"}, "did you mean 'rbf'"),
        ("alexnet", {"groups": 3}, "groups is 3; allowed: 1 or 2"),
        ("alexnet", {"dropout": 1.0}, "dropout is 1.0"),
        ("alexnet_single", {"dropout": -0.1}, "dropout is -0.1"),
        ("zfnet", {"width": 2}, "width is 2; allowed: 4 to 384"),
        ("zfnet_512", {"dropout": 2}, "dropout is 2"),
        ("overfeat_fast", {"width": 1000}, "width is 1000"),
        ("overfeat_accurate", {"dropout": 1}, "dropout is 1"),
        ("nin", {"width": 0}, "width is 0"),
        ("nin", {"dropout": 5.0}, "dropout is 5.0"),
        ("allcnn", {"model": "D"}, "unknown model"),
        ("allcnn", {"variant": "stride"}, "did you mean 'strided'"),
        ("allcnn", {"input_dropout": -1.0}, "input_dropout is -1.0"),
        ("maxout_cifar", {"pieces": 0}, "pieces is 0; allowed: 1 to 16"),
        ("maxout_cifar", {"width": 3}, "width is 3"),
        ("stochastic_cifar", {"pool": "mean"}, "unknown pooling"),
        ("stochastic_cifar", {"last": 1}, "last is 1"),
        ("vgg11_lrn", {"width": 1}, "width is 1; allowed: 4 to 256"),
    ],
)
def test_options_out_of_range_are_refused(name, options, message):
    with pytest.raises(StriateError, match=message):
        skeleton(name, 10, **options)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("lenet1989", {}), ("lenet5_1998", {"output": "rbf"}), ("alexnet", {}),
        ("nin", {"width": 12, "dropout": 0.0}), ("stochastic_cifar", {"width": 8, "last": 8}),
        ("allcnn", {"width": 12, "model": "A", "variant": "convpool", "dropout": 0.0, "input_dropout": 0.0}),
        ("maxout_cifar", {"width": 12, "dropout": 0.0, "input_dropout": 0.0}),
    ],
)  # fmt: skip
def test_they_learn(name, options):
    """Two kinds of stripes: the loss falls, through class maps behind a ReLU, codes, and drawn units."""
    torch.manual_seed(0)
    net = create_net(name, 2, 1, size=16, **options)
    stripes = torch.sign(torch.sin(torch.arange(16) * 1.6)).expand(16, 16)
    x = torch.stack([stripes, stripes.T]).repeat(4, 1, 1).unsqueeze(1) + 0.3 * torch.randn(8, 1, 16, 16)
    y = torch.tensor([0, 1] * 4)
    optimiser = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], 3e-3)
    losses = []
    for _ in range(25):
        optimiser.zero_grad()
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
