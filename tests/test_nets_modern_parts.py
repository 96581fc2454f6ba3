"""The modern families: their parts by hand, forms and options, auxiliary classifiers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from striate.core.errors import StriateError
from striate.nets.efficientnet import GROUPS, counts
from striate.nets.mixing import AuxiliaryNet, Branches, Builder, Conv, ConvReLU, Outputs, Pool
from striate.nets.mobilenet import InvertedResidual, round_maps
from striate.nets.net import create_net, skeleton
from striate.nets.squeezenet import Fire


def test_branches_by_hand():
    """Two branches of one step, and a fork of which both outputs are kept, in order."""

    def times(factor: float) -> nn.Module:
        unit = ConvReLU(1, 1, eps=None)
        nn.init.constant_(unit.conv.weight, factor)
        nn.init.zeros_(unit.conv.bias)
        return unit

    module = Branches(
        1,
        [
            [[("by_double", times(2))]],
            [[("pool", nn.MaxPool2d(3, 1, 1))]],
            [[("by_triple", times(3))], [("by_five", times(5)), ("by_seven", times(7))]],
        ],
    )
    assert module.plan == ((("by_double",),), (("pool",),), (("by_triple",), ("by_five", "by_seven")))
    assert module.out_channels == 4
    x = torch.tensor([[[[1.0, 2.0], [0.0, 4.0]]]])
    y = module(x)
    assert y.shape == (1, 4, 2, 2)
    assert y[0, :, 0, 1].tolist() == [4.0, 4.0, 30.0, 42.0]
    # A negative value is rectified between the steps.
    assert module(-x)[0, :, 0, 1].tolist() == [0.0, 0.0, 0.0, 0.0]


def test_builder_pads_as_told():
    def made(padded: bool) -> tuple[tuple[int, ...], list[str]]:
        b = Builder(3, times=0.5, padded=padded)
        b.conv(Conv(8, 3, 2, "first"))
        b.mix("mixed", (Pool("max", 2),), (Conv(4), Conv(6, (1, 7)), Conv(6, 3, 2)))
        net = nn.Sequential(*(module for _, module in b.stages))
        assert b.channels == 4 + 3
        return tuple(net(torch.zeros(2, 3, 33, 33)).shape), list(dict(b.stages[1][1].named_children()))

    assert made(padded=False) == ((2, 7, 7, 7), ["branch0_0", "branch1_0", "branch1_1", "branch1_2"])
    assert made(padded=True)[0] == (2, 7, 9, 9)


def test_averages_leave_the_padding_out_where_the_published_nets_do():
    x = torch.ones(1, 1, 3, 3)
    corner = {
        count_padding: Builder(1, count_padding=count_padding).pooling(Pool("average"))(x)[0, 0, 0, 0].item()
        for count_padding in (True, False)
    }
    assert corner == {True: pytest.approx(4 / 9), False: 1.0}
    for name, counted in (("inception_v3", True), ("inception_v4", False), ("inception_resnet_v2", False)):
        pools = [m for m in skeleton(name, 10).modules() if isinstance(m, nn.AvgPool2d)]
        assert pools
        assert all(m.count_include_pad == counted for m in pools)


def test_residual_branches_are_scaled():
    net = create_net("inception_resnet_v2", 3, size=32, width=0.0625).eval()
    block, last = net.get_submodule("inception_resnet_b3"), net.get_submodule("inception_resnet_c10")
    x = torch.randn(1, block.conv.out_channels, 4, 4)
    torch.testing.assert_close(block(x), F.relu(x + 0.1 * block.conv(block.branches(x))))
    # The last block is linear and not scaled.
    x = torch.randn(1, last.conv.out_channels, 4, 4)
    y = last(x)
    torch.testing.assert_close(y, x + last.conv(last.branches(x)))
    assert (y < 0).any()
    factors = [net.get_submodule(f"inception_resnet_{place}").scale.factor for place in ("a1", "c9", "c10")]
    assert factors == [0.17, 0.2, 1.0]


def test_fire_by_hand():
    fire = Fire(2, 1, 1)
    for p in fire.parameters():
        nn.init.ones_(p)
    y = fire(torch.ones(1, 2, 3, 3))
    # Squeeze 1 + 1 + 1; expand 3 + 1; and nine threes (four in the corner) + 1.
    assert y[0, :, 1, 1].tolist() == [4.0, 28.0]
    assert y[0, :, 0, 0].tolist() == [4.0, 13.0]


def test_inverted_residuals():
    torch.manual_seed(0)
    block = InvertedResidual(8, 8, 3, 1, 6).eval()
    nn.init.zeros_(block.project_bn.weight)
    x = torch.randn(2, 8, 5, 5)
    # A sum where the shape stays, linear behind the projection.
    assert torch.equal(block(x), x)
    nn.init.constant_(block.project_bn.bias, -100.0)
    assert (block(x) < 0).all()
    assert not InvertedResidual(8, 8, 3, 2, 6).residual
    assert not InvertedResidual(8, 16, 3, 1, 6).residual
    assert InvertedResidual(8, 16, 5, 2, 1, same=True)(x).shape == (2, 16, 3, 3)
    assert not hasattr(InvertedResidual(8, 16, 3, 1, 1), "expand_conv")


def test_compound_scaling_of_the_lite_nets():
    assert [round_maps(1.1 * maps) for _, _, _, _, maps in GROUPS] == [16, 24, 48, 88, 120, 208, 352]
    assert [round_maps(n) for n in (3.2, 8, 11.9, 12, 19.2, 44.8)] == [8, 8, 16, 16, 24, 48]
    assert counts(1.0) == tuple(blocks for _, blocks, *_ in GROUPS)
    assert counts(1.1) == counts(1.2) == (1, 3, 3, 4, 4, 5, 1)


def test_forms_of_the_lite_nets():
    """The weights trained in TensorFlow and those trained in PyTorch want other padding and eps."""
    tensorflow, pytorch = (
        create_net("efficientnet_lite0", 3, width=0.25, form=f) for f in ("tensorflow", "pytorch")
    )
    assert tensorflow.state_dict().keys() == pytorch.state_dict().keys()
    pytorch.load_state_dict(tensorflow.state_dict())
    x = torch.randn(1, 3, 224, 224)
    a, b = tensorflow.get_submodule("stem_conv")(x), pytorch.get_submodule("stem_conv")(x)
    assert a.shape == b.shape
    # "same" pads even sides at the end only: the one is the other, a pixel further.
    torch.testing.assert_close(
        a[..., :-1, :-1], F.conv2d(x, pytorch.get_submodule("stem_conv").weight, stride=2)
    )
    assert not torch.allclose(a, b)
    with pytest.raises(StriateError, match="unknown form 'caffe'"):
        skeleton("efficientnet_lite0", 3, form="caffe")


@pytest.mark.parametrize(
    ("name", "options", "eps"),
    [
        ("googlenet_bn", {}, 1e-3), ("inception_v3", {}, 1e-3), ("inception_v4", {}, 1e-3),
        ("inception_resnet_v2", {}, 1e-3), ("efficientnet_lite1", {}, 1e-3),
        ("efficientnet_lite1", {"form": "pytorch"}, 1e-5), ("mobilenet_v2", {}, 1e-5),
        ("resnet101", {}, 1e-5),
    ],
)  # fmt: skip
def test_norms_have_the_eps_of_the_published_weights(name, options, eps):
    norms = [m for m in skeleton(name, 10, **options).modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    assert {norm.eps for norm in norms} == {eps}


@pytest.mark.parametrize(
    ("name", "heads", "weight"),
    [
        ("googlenet", ["aux1", "aux2"], 0.3), ("googlenet_bn", ["aux1", "aux2"], 0.3),
        ("inception_v3", ["AuxLogits"], 0.4),
    ],
)  # fmt: skip
def test_auxiliary_classifiers_run_in_training_only(name, heads, weight):
    torch.manual_seed(0)
    net = create_net(name, 5, size=32, width=0.0625, aux=True)
    assert isinstance(net, AuxiliaryNet)
    assert list(net.auxiliary) == heads
    assert not set(heads) & set(net.stage_names)
    x = torch.randn(4, 3, 32, 32)
    assert net.eval()(x).shape == (4, 5)
    out = net.train()(x)
    assert isinstance(out, Outputs)
    assert out.logits.shape == (4, 5)
    assert [logits.shape for logits in out.auxiliary] == [(4, 5)] * len(heads)
    targets = torch.arange(4)
    total = out.loss(F.cross_entropy, targets)
    parts = [F.cross_entropy(logits, targets) for logits in (out.logits, *out.auxiliary)]
    assert total.item() == pytest.approx((parts[0] + weight * sum(parts[1:])).item())
    assert 1 < parts[-1] < 3
    total.backward()
    assert all(p.grad is not None for p in net.parameters())
    # Nothing behind the last stage with a head hears of its loss; everything before does.
    net.zero_grad()
    net.train()(x).auxiliary[-1].sum().backward()
    assert net.head_layer.weight.grad is None
    assert net.reset_head(3) is net
    assert net.eval()(x).shape == (4, 3)
    assert [logits.shape[1] for logits in net.train()(x).auxiliary] == [3] * len(heads)
    with pytest.raises(StriateError, match="channels"):
        net(x[:, :1])


def test_without_auxiliary_classifiers_nothing_is_left_of_them():
    net = create_net("googlenet_bn", 3, size=32, width=0.0625).train()
    assert not any("aux" in key for key in net.state_dict())
    assert net(torch.randn(2, 3, 32, 32)).shape == (2, 3)


def test_auxiliary_grids_of_the_papers():
    """4 x 4 from 14 x 14 by windows of 5 with stride 3; 5 x 5 from 17 x 17, of which nothing is changed."""
    x = torch.randn(1, 2, 14, 14)
    aux = skeleton("googlenet", 10, aux=True).get_submodule("aux1")
    torch.testing.assert_close(aux.fit(aux.pool(x)), F.avg_pool2d(x, 5, 3))
    x = torch.randn(1, 2, 17, 17)
    aux = skeleton("inception_v3", 10, aux=True).get_submodule("AuxLogits")
    torch.testing.assert_close(aux.fit(aux.pool(x)), F.avg_pool2d(x, 5, 3))


def test_options_are_refused():
    for name, options, message in (
        ("googlenet", {"dropout": 1.0}, "dropout is 1.0"), ("googlenet", {"width": 0.0}, "width is 0.0"),
        ("googlenet_bn", {"five": 4}, "five is 4; allowed: 3 or 5"),
        ("inception_v3", {"width": 9}, "width is 9"),
        ("inception_v3", {"aux": 1}, "'aux' of net 'inception_v3' is 1; allowed: true or false"),
        ("inception_v4", {"aux": True}, "unknown option of net 'inception_v4' 'aux'"),
        ("inception_resnet_v2", {"dropout": -0.1}, "dropout is -0.1"),
        ("resnet101", {"width": 0}, "width is 0"),
        ("plain18", {"zero_init": True}, "unknown option"), ("resnet1202", {"blocks": 0}, "blocks is 0"),
        ("squeezenet1_0", {"width": -1}, "width is -1"), ("mobilenet_v2", {"drop_path": 1}, "drop_path is 1"),
        ("efficientnet_lite2", {"drop_path": 2.0}, "drop_path is 2.0"),
        ("inception_v3", {"size": 70}, "at least 75"),
    ):  # fmt: skip
        with pytest.raises(StriateError, match=message):
            skeleton(name, 10, **options)


def test_the_five_of_googlenet():
    kernels = {
        five: skeleton("googlenet_bn", 10, five=five).get_submodule("inception_4a.conv5x5.conv")
        for five in (3, 5)
    }
    assert {five: conv.kernel_size for five, conv in kernels.items()} == {3: (3, 3), 5: (5, 5)}
    assert skeleton("googlenet", 10).get_submodule("inception_4a.conv5x5.conv").kernel_size == (5, 5)
