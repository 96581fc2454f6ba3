"""The modern families: exact counts, the tables of the papers, small-image forms."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from built_nets import count
from striate.core.errors import StriateError
from striate.nets.cost import cost
from striate.nets.googlenet import TABLE, inception
from striate.nets.net import create_net, skeleton
from striate.nets.taps import capture


@cache
def passed(name: str, size: int | None = None) -> tuple[dict[str, tuple[int, ...]], int]:
    """Stage -> (C, H, W) of one picture of the registered size, and multiply-adds by PyTorch's counter."""
    net = skeleton(name, 1000, size=size).eval()
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad(), capture(net, net.stage_names) as seen:
        net(torch.empty(1, 3, *net.input_size, device="meta"))
    return {stage: tuple(value.shape[1:]) for stage, value in seen.items()}, counter.get_total_flops() // 2


@pytest.mark.parametrize(
    ("name", "options", "parameters"),
    [
        ("googlenet", {}, 6_998_552), ("googlenet_bn", {}, 6_624_904),
        ("googlenet_bn", {"aux": True}, 13_004_888),
        ("inception_v3", {}, 23_834_568), ("inception_v3", {"aux": True}, 27_161_264),
        ("inception_v4", {}, 42_679_816), ("inception_resnet_v2", {}, 55_843_464),
        ("resnet101", {}, 44_549_160), ("resnet152", {}, 60_192_808), ("squeezenet1_0", {}, 1_248_424),
        ("squeezenet1_1", {}, 1_235_496), ("mobilenet_v2", {}, 3_504_872),
        ("mobilenet_v2", {"width": 1.4}, 6_108_776), ("mobilenet_v2", {"width": 0.5}, 1_968_680),
        ("efficientnet_lite0", {}, 4_652_008), ("efficientnet_lite1", {}, 5_416_680),
        ("efficientnet_lite2", {}, 6_092_072),
    ],
)  # fmt: skip
def test_parameters_of_the_published_weights(name, options, parameters):
    assert count(skeleton(name, 1000, **options)) == parameters


@pytest.mark.parametrize(
    ("name", "billions", "within"),
    [
        ("googlenet_bn", 1.498, 1e-3), ("inception_v3", 5.713, 1e-3), ("resnet101", 7.801, 1e-3),
        ("resnet152", 11.514, 1e-3), ("squeezenet1_0", 0.819, 1e-3), ("squeezenet1_1", 0.349, 1e-3),
        ("mobilenet_v2", 0.301, 1e-3), ("inception_v4", 12.28, 4e-3), ("inception_resnet_v2", 13.18, 4e-3),
        # Counted with the norms.
        ("efficientnet_lite0", 0.407, 0.06), ("efficientnet_lite1", 0.631, 0.06),
        ("efficientnet_lite2", 0.899, 0.06),
    ],
)  # fmt: skip
def test_multiply_adds_as_published(name, billions, within):
    """By those who published the weights: torchvision, timm and the authors of the Lite nets."""
    assert passed(name)[1] / 1e9 == pytest.approx(billions, rel=within)


@pytest.mark.parametrize(("layers", "blocks"), [(20, 3), (32, 5), (44, 7), (56, 9), (110, 18), (1202, 200)])
def test_cifar_nets_by_their_formula(layers, blocks):
    """Table 6 of arXiv:1512.03385: 0.27, 0.46, 0.66, 0.85, 1.7 and 19.4 M; and the plain nets, as many."""
    weights = 9 * 3 * 16 + 10 * 64 + 10 + 2 * 16
    for width, before in ((16, 16), (32, 16), (64, 32)):
        convolutions = 9 * before * width + (2 * blocks - 1) * 9 * width * width
        weights += convolutions + 2 * blocks * 2 * width
    assert count(skeleton(f"resnet{layers}", 10)) == weights
    if layers < 1202:
        assert count(skeleton(f"plain{layers}", 10)) == weights
        millions = {20: 0.27, 32: 0.46, 44: 0.66, 56: 0.85, 110: 1.7}[layers]
        assert weights / 1e6 == pytest.approx(millions, abs=0.05)
    else:
        assert round(weights / 1e6, 1) == 19.4


@pytest.mark.parametrize("layers", [18, 34])
def test_plain_nets_are_residual_nets_without_shortcuts(layers):
    plain, residual = skeleton(f"plain{layers}", 1000), skeleton(f"resnet{layers}", 1000)
    projections = sum(p.numel() for key, p in residual.named_parameters() if "shortcut" in key)
    assert count(plain) == count(residual) - projections
    kernels = [
        m.weight.shape for m in residual.modules() if isinstance(m, nn.Conv2d) and m.kernel_size != (1, 1)
    ]
    assert [m.weight.shape for m in plain.modules() if isinstance(m, nn.Conv2d)] == kernels
    # Layers with weights, as the papers count them.
    assert sum(isinstance(m, (nn.Conv2d, nn.Linear)) for m in plain.modules()) == layers
    assert not any("res" in name for name in plain.stage_names)


def test_a_plain_net_is_its_layers_in_a_row():
    torch.manual_seed(0)
    net = create_net("plain20", 4, width=4).eval()
    residual = create_net("resnet20", 4, width=4).eval()
    # The same weights with all shortcuts cut off compute the same.
    ours, theirs = net.state_dict(), residual.state_dict()
    names = [key for key in theirs if key.startswith("res") and "num_batches" not in key]
    plain = [key for key in ours if "_" in key.split(".")[0] and "num_batches" not in key]
    for mine, key in zip(plain, names, strict=True):
        ours[mine].copy_(theirs[key])
    for key in ("conv1.weight", "fc.weight", "fc.bias"):
        ours[key].copy_(theirs[key])
    x = torch.randn(2, 3, 16, 16)
    y = x
    for name in residual.stage_names:
        module = residual.get_submodule(name)
        if name.startswith("res"):
            y = module.relu1(module.bn1(module.conv1(y)))
            y = module.relu2(module.bn2(module.conv2(y)))
        else:
            y = module(y)
    torch.testing.assert_close(net(x), y)


def test_the_inception_example():
    """28 x 28 x 256 in; 128, 192 and 96 filters: the naive module, and one with bottlenecks of 64.

    The lecture that made the example known (Stanford CS231n, 2017, lecture 9) sums the second up to 358 M,
    which counts its 3x3 convolution twice; its own list of terms adds up to 271 M.
    """
    naive = cost(inception(256, (128, 0, 192, 0, 96, 0), reduce=False), 28, 256)
    assert naive.macs == 28 * 28 * 256 * (128 + 9 * 192 + 25 * 96) == 854_196_224
    module = inception(256, (128, 64, 192, 64, 96, 64))
    reduced = cost(module, 28, 256)
    terms = [128 * 256, 64 * 256, 64 * 256, 192 * 9 * 64, 96 * 25 * 64, 64 * 256]
    assert reduced.macs == 28 * 28 * sum(terms) == 271_351_808
    assert reduced.macs + 28 * 28 * 192 * 9 * 64 == 358_055_936
    x = torch.empty(1, 256, 28, 28, device="meta")
    assert module.to("meta")(x).shape == (1, 480, 28, 28)
    assert inception(256, (128, 0, 192, 0, 96, 0), reduce=False).to("meta")(x).shape == (1, 672, 28, 28)


def test_table_1_of_googlenet():
    """Sizes, and operations in millions, of arXiv:1409.4842; conv1's and conv2's maps before their pools."""
    net = skeleton("googlenet", 1000)
    found, total = passed("googlenet")
    expected = {
        "conv1": (64, 112, 112), "pool1": (64, 56, 56), "conv2": (192, 56, 56), "pool2": (192, 28, 28),
        "inception_3a": (256, 28, 28), "inception_3b": (480, 28, 28), "pool3": (480, 14, 14),
        "inception_4a": (512, 14, 14), "inception_4b": (512, 14, 14), "inception_4c": (512, 14, 14),
        "inception_4d": (528, 14, 14), "inception_4e": (832, 14, 14), "pool4": (832, 7, 7),
        "inception_5a": (832, 7, 7), "inception_5b": (1024, 7, 7), "pool5": (1024, 1, 1), "fc": (1000,),
    }  # fmt: skip
    assert {stage: found[stage] for stage in expected} == expected

    def operations(stage: str) -> int:
        """Every weight of a convolution of stride 1 works at each position of the output."""
        weights = (p.numel() for p in net.get_submodule(stage).parameters() if p.ndim == 4)
        return sum(weights) * math.prod(found[stage][1:])

    # The table's 54 for inception_5a does not follow from its numbers of maps, which make 51.
    millions = (128, 304, 73, 88, 100, 119, 170, 51, 71)
    for place, known in zip(TABLE, millions, strict=True):
        assert operations(f"inception_{place}") / 1e6 == pytest.approx(known, abs=1), place
    assert (operations("conv2_reduce") + operations("conv2")) / 1e6 == pytest.approx(360, abs=1)
    stem = ("conv1", "conv2_reduce", "conv2")
    assert total == sum(map(operations, (*stem, *(f"inception_{place}" for place in TABLE)))) + 1024 * 1000
    assert set(dict(net.get_submodule("inception_4c").named_children())) == {
        "conv1x1", "conv3x3_reduce", "conv3x3", "conv5x5_reduce", "conv5x5", "pool", "pool_proj",
    }  # fmt: skip


def test_naive_googlenet_grows_with_every_module():
    net = skeleton("googlenet", 10, reduce=False)
    # Each module's pool passes all maps on: 192 + 64 + 128 + 32 after the first.
    widths = [net.get_submodule(f"inception_{place}").out_channels for place in TABLE]
    assert widths[0] == 416
    assert widths == sorted(widths)
    assert net.feature_dim == 192 + sum(a + b + c for a, _, b, _, c, _ in TABLE.values())
    assert count(net) > 5 * count(skeleton("googlenet", 10))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # Table 1 of arXiv:1512.00567, and the released net where the table has other numbers of maps.
        ("inception_v3", {
            "Conv2d_1a_3x3": (32, 149, 149), "Conv2d_2a_3x3": (32, 147, 147), "Conv2d_2b_3x3": (64, 147, 147),
            "maxpool1": (64, 73, 73), "Conv2d_3b_1x1": (80, 73, 73), "Conv2d_4a_3x3": (192, 71, 71),
            "maxpool2": (192, 35, 35), "Mixed_5b": (256, 35, 35), "Mixed_5d": (288, 35, 35),
            "Mixed_6a": (768, 17, 17), "Mixed_6e": (768, 17, 17), "Mixed_7a": (1280, 8, 8),
            "Mixed_7b": (2048, 8, 8), "Mixed_7c": (2048, 8, 8), "avgpool": (2048, 1, 1),
        }),
        # Figures 3 and 9 of arXiv:1602.07261.
        ("inception_v4", {
            "stem_conv1": (32, 149, 149), "stem_conv2": (32, 147, 147), "stem_conv3": (64, 147, 147),
            "stem_mixed1": (160, 73, 73), "stem_mixed2": (192, 71, 71), "stem_mixed3": (384, 35, 35),
            "inception_a4": (384, 35, 35), "reduction_a": (1024, 17, 17), "inception_b7": (1024, 17, 17),
            "reduction_b": (1536, 8, 8), "inception_c3": (1536, 8, 8), "avgpool": (1536, 1, 1),
        }),
        # Figure 15, with the released net's maps.
        ("inception_resnet_v2", {
            "stem_mixed": (320, 35, 35), "inception_resnet_a10": (320, 35, 35), "reduction_a": (1088, 17, 17),
            "inception_resnet_b20": (1088, 17, 17), "reduction_b": (2080, 8, 8),
            "inception_resnet_c10": (2080, 8, 8), "top_conv": (1536, 8, 8),
        }),
        # Table 2 of arXiv:1801.04381: the input of each row.
        ("mobilenet_v2", {
            "stem_conv": (32, 112, 112), "bottleneck1a": (16, 112, 112), "bottleneck2b": (24, 56, 56),
            "bottleneck3c": (32, 28, 28), "bottleneck4d": (64, 14, 14), "bottleneck5c": (96, 14, 14),
            "bottleneck6c": (160, 7, 7), "bottleneck7a": (320, 7, 7), "top_conv": (1280, 7, 7),
        }),
        # Table 1 of arXiv:1512.03385.
        ("resnet152", {
            "conv1": (64, 112, 112), "pool1": (64, 56, 56), "res2c": (256, 56, 56), "res3b7": (512, 28, 28),
            "res4b35": (1024, 14, 14), "res5c": (2048, 7, 7), "pool5": (2048, 1, 1),
        }),
        ("plain34", {
            "conv2_6": (64, 56, 56), "conv3_8": (128, 28, 28), "conv4_12": (256, 14, 14),
            "conv5_6": (512, 7, 7),
        }),
        ("resnet110", {"res1r": (16, 32, 32), "res2r": (32, 16, 16), "res3r": (64, 8, 8)}),
        ("efficientnet_lite2", {
            "stem_conv": (32, 130, 130), "block1a": (16, 130, 130), "block2c": (24, 65, 65),
            "block3c": (48, 33, 33), "block4d": (88, 17, 17), "block5d": (120, 17, 17),
            "block6e": (208, 9, 9), "block7a": (352, 9, 9), "top_conv": (1280, 9, 9),
        }),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_stages_have_the_sizes_of_the_tables(name, expected):
    found = passed(name)[0]
    assert {stage: found.get(stage) for stage in expected} == expected


def test_table_1_of_squeezenet():
    """Its sizes are those of pictures of 227 pixels, as its published definition takes them."""
    found = passed("squeezenet1_0", 227)[0]
    expected = {
        "conv1": (96, 111, 111), "pool1": (96, 55, 55), "fire2": (128, 55, 55), "fire4": (256, 55, 55),
        "pool4": (256, 27, 27), "fire8": (512, 27, 27), "pool8": (512, 13, 13), "fire9": (512, 13, 13),
        "conv10": (1000, 13, 13), "pool10": (1000, 1, 1),
    }  # fmt: skip
    assert {stage: found[stage] for stage in expected} == expected
    assert list(expected) == [
        stage for stage in skeleton("squeezenet1_0", 10).stage_names if stage in expected
    ]
    net = skeleton("squeezenet1_1", 10)
    order = [s for s in net.stage_names if s.startswith(("fire", "pool"))]
    assert order == [
        "pool1", "fire2", "fire3", "pool3", "fire4", "fire5", "pool5", "fire6", "fire7", "fire8", "fire9",
        "pool10",
    ]  # fmt: skip


def test_blocks_have_the_names_of_the_published_models():
    names = [name for name in skeleton("resnet101", 10).stage_names if name.startswith("res")]
    assert names[:8] == ["res2a", "res2b", "res2c", "res3a", "res3b1", "res3b2", "res3b3", "res4a"]
    assert names[-4:] == ["res4b22", "res5a", "res5b", "res5c"]
    assert "res4f" in skeleton("resnet50", 10).stage_names
    deep = skeleton("resnet1202", 10).stage_names
    assert deep[3:5] == ("res1a", "res1b1")
    assert "res3b199" in deep
    assert len(skeleton("resnet1202", 10, blocks=2).stage_names) == 3 + 6 + 3


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("googlenet", 8), ("googlenet_bn", 8), ("inception_v3", 8), ("inception_v4", 8),
        ("inception_resnet_v2", 8), ("squeezenet1_0", 4), ("squeezenet1_1", 4), ("mobilenet_v2", 4),
        ("efficientnet_lite2", 4), ("plain18", 4), ("resnet101", 4), ("plain110", 8),
    ],
)  # fmt: skip
def test_small_forms_keep_the_maps_large(name, side):
    small = skeleton(name, 10, size=32)
    assert small.spatial_stages()[-1].shape[1:] == (side, side)
    assert small.min_size == 1
    # The weights behind the stem do not depend on the form, but for the stem's own kernel.
    if name.startswith(("inception", "mobilenet", "efficientnet", "plain110")):
        assert count(small) == count(skeleton(name, 10))


@pytest.mark.parametrize(
    ("name", "options", "least"),
    [
        ("googlenet", {}, 31), ("googlenet", {"aux": True}, 79), ("googlenet_bn", {}, 15),
        ("inception_v3", {}, 75), ("inception_v3", {"aux": True}, 107), ("inception_v4", {}, 75),
        ("inception_resnet_v2", {}, 75), ("squeezenet1_0", {}, 21), ("squeezenet1_1", {}, 17),
    ],
)  # fmt: skip
def test_the_smallest_picture_of_the_large_forms(name, options, least):
    net = skeleton(name, 10, **options).train()
    assert net.min_size == least
    net(torch.empty(2, 3, least, least, device="meta"))
    with pytest.raises(StriateError, match=f"at least {least} x {least}"):
        net(torch.empty(2, 3, least, least - 1, device="meta"))
    # It is the least indeed.
    net.min_size = 1
    with pytest.raises((RuntimeError, ValueError)):
        net(torch.empty(2, 3, least - 1, least - 1, device="meta"))
