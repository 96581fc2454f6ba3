"""Conversions by hand and by trial: windows against the dense form, norms against their formula."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from striate.core.errors import StriateError
from striate.layers.pooling import GlobalAveragePool, GlobalMaxPool
from striate.nets.convert import ablate, dense, fold_batch_norm, grow, removable
from striate.nets.geometry import stage_geometry
from striate.nets.net import Net, create_net, skeleton
from striate.nets.wrapped import wrap
from toys import Branch, hooks, summing_net


def net_of(*stages: tuple[str, nn.Module], head: str, size: int = 8, channels: int = 2) -> Net:
    return Net(list(stages), head=head, in_channels=channels, size=size, name="toy", fixed_size=True).eval()


def normed(norm: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        norm.running_mean.normal_(generator=generator)
        norm.running_var.uniform_(0.5, 2.0, generator=generator)
        if norm.affine:
            norm.weight.uniform_(0.5, 2.0, generator=generator)
            norm.bias.normal_(generator=generator)
    return norm


# --- dense form ---------------------------------------------------------------------------------------


def test_the_dense_form_of_the_summing_net_by_hand():
    net = summing_net()
    before = torch.get_rng_state()
    form = dense(net)
    assert torch.equal(torch.get_rng_state(), before)
    assert form.get_submodule("fc").weight.shape == (2, 1, 1, 1)
    assert form(torch.ones(1, 1, 4, 4)).flatten().tolist() == [9, 18]
    # Ones of 6 x 8: four and six sums of nine, pooled to 2 x 3.
    assert torch.equal(form(torch.ones(1, 1, 6, 8))[0, 1], torch.full((2, 3), 18.0))


@pytest.mark.parametrize("options", [{}, {"drop_connect": 0.5}])
def test_each_position_is_the_classifier_on_its_window(options):
    """Without padding the map is exactly the classifier, window by window, at the net's stride."""
    torch.manual_seed(0)
    net = create_net("lenet5", 10, 1, size=32, **options).eval()
    form = dense(net)
    picture = torch.randn(1, 1, 44, 40)
    stride = next(info for info in stage_geometry(form) if info.name == "fc5").stride
    assert stride == 4
    with torch.no_grad():
        found = form(picture)
        assert found.shape == (1, 10, 4, 3)
        for row in range(4):
            for column in range(3):
                window = picture[..., row * 4 : row * 4 + 32, column * 4 : column * 4 + 32]
                torch.testing.assert_close(found[..., row, column], net(window), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pool", [GlobalAveragePool, GlobalMaxPool, lambda: nn.AdaptiveAvgPool2d(2)])
def test_global_pooling_becomes_a_window(pool):
    torch.manual_seed(0)
    units = 4 * (4 if isinstance(pool(), nn.AdaptiveAvgPool2d) else 1)
    net = net_of(
        ("conv", nn.Conv2d(2, 4, 3)), ("pool", pool()), ("flatten", nn.Flatten()), ("drop", nn.Dropout(0.5)),
        ("fc", nn.Linear(units, 5)), head="fc",
    )  # fmt: skip
    form = dense(net)
    x = torch.randn(3, 2, 8, 8)
    torch.testing.assert_close(form(x).flatten(1), net(x), rtol=1e-5, atol=1e-6)
    larger = torch.randn(1, 2, 10, 9)
    if units == 4:
        assert form(larger).shape == (1, 5, 3, 2)
        torch.testing.assert_close(form(larger)[..., 2, 1], net(larger[..., 2:, 1:]), rtol=1e-5, atol=1e-6)


def test_norms_and_activations_between_fully_connected_layers():
    torch.manual_seed(0)
    net = net_of(
        ("flatten", nn.Flatten()), ("fc1", nn.Linear(128, 6, bias=False)), ("bn1", normed(nn.BatchNorm1d(6))),
        ("tanh1", nn.Tanh()), ("fc2", nn.Linear(6, 3)), ("softmax", nn.Softmax(1)), head="fc2",
    )  # fmt: skip
    x = torch.randn(4, 2, 8, 8)
    form = dense(net)
    torch.testing.assert_close(form(x).flatten(1), net(x))
    assert form.get_submodule("fc1").bias is None
    torch.testing.assert_close(form(torch.randn(1, 2, 9, 9)).sum(1), torch.ones(1, 2, 2))


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([("pool", nn.AdaptiveAvgPool2d(3)), ("flatten", nn.Flatten()), ("fc", nn.Linear(18, 2))], "'pool'"),
        ([("flatten", nn.Flatten()), ("norm", nn.LayerNorm(128)), ("fc", nn.Linear(128, 2))], "'norm'"),
        ([("flatten", nn.Flatten()), ("odd", nn.Softmax(-1)), ("fc", nn.Linear(128, 2))], "'odd'"),
        ([("ln", nn.LayerNorm([2, 8, 8])), ("v", nn.Flatten()), ("fc", nn.Linear(128, 2))], "'ln'.*one size"),
    ],
)  # fmt: skip
def test_what_has_no_dense_form_is_named(stages, message):
    with pytest.raises(StriateError, match=f"stage {message}"):
        dense(net_of(*stages, head="fc"))


def test_too_small_pictures_and_foreign_modules_are_refused():
    form = dense(summing_net())
    with pytest.raises(StriateError, match="at least 4 x 4, the classifier's own size"):
        form(torch.ones(1, 1, 4, 3))
    wrapped = wrap(nn.Sequential(nn.Flatten(), nn.Linear(48, 2)), size=4)
    with pytest.raises(StriateError, match="named stages"):
        dense(wrapped)


def test_the_dense_form_of_vgg_on_the_meta_device():
    form = dense(skeleton("vgg16", 1000))
    assert tuple(form.get_submodule("fc6").weight.shape) == (4096, 512, 7, 7)
    assert form(torch.empty(1, 3, 384, 512, device="meta")).shape == (1, 1000, 6, 10)
    assert sum(p.numel() for p in form.parameters()) == 138_357_544


# --- batch norm ---------------------------------------------------------------------------------------


def test_folding_by_hand():
    conv, norm = nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1, eps=0.0)
    with torch.no_grad():
        for tensor, value in (
            (conv.weight, 2), (conv.bias, 1), (norm.running_mean, 3), (norm.running_var, 4),
            (norm.weight, 10), (norm.bias, 5),
        ):  # fmt: skip
            tensor.fill_(value)
    folded = fold_batch_norm(nn.Sequential(conv, norm))
    # (2 x + 1 - 3) / 2 * 10 + 5 = 10 x - 5
    assert (folded[0].weight.item(), folded[0].bias.item()) == (10, -5)
    assert isinstance(folded[1], nn.Identity)
    assert isinstance(norm, nn.BatchNorm2d)
    assert conv.weight.item() == 2


@pytest.mark.parametrize(
    ("layers", "shape"),
    [
        ([nn.Linear(6, 4, bias=False), nn.BatchNorm1d(4)], (5, 6)),
        ([nn.Conv2d(2, 4, 3, groups=2), nn.Dropout(0.3), nn.BatchNorm2d(4, affine=False)], (2, 2, 6, 6)),
        ([nn.ConvTranspose2d(2, 3, 3, 2), nn.BatchNorm2d(3)], (2, 2, 4, 4)),
        ([nn.Conv3d(1, 2, 2), nn.BatchNorm3d(2)], (2, 1, 3, 3, 3)),
        ([nn.Conv2d(2, 4, 3), nn.MaxPool2d(2), nn.BatchNorm2d(4)], (2, 2, 6, 6)),
        ([nn.Conv2d(2, 4, 3), nn.AvgPool2d(2, ceil_mode=True), nn.BatchNorm2d(4)], (2, 2, 5, 5)),
        ([nn.Conv2d(2, 4, 3), GlobalAveragePool(), nn.BatchNorm2d(4)], (2, 2, 6, 6)),
    ],
)  # fmt: skip
def test_what_can_be_folded(layers, shape):
    torch.manual_seed(0)
    net = nn.Sequential(*layers).eval()
    normed(net[-1])
    folded = fold_batch_norm(net)
    assert isinstance(folded[-1], nn.Identity)
    x = torch.randn(shape)
    torch.testing.assert_close(folded(x), net(x), rtol=1e-5, atol=1e-5)
    assert hooks(folded) == 0


class Twice(nn.Module):
    """One convolution before two norms; or its output beside the norm's."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.conv = nn.Conv2d(2, 2, 1)
        self.other = nn.Conv2d(2, 2, 1)
        if way == "shared":
            self.other.weight = self.conv.weight
        self.bn = normed(nn.BatchNorm2d(2))
        self.bn2 = normed(nn.BatchNorm2d(2))

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "reused":
            return self.bn(self.conv(x)) + self.bn2(self.conv(x + 1))
        if self.way == "used":
            y = self.conv(x)
            return self.bn(y) + y
        if self.way == "read":
            return self.bn(self.conv(x)) + F.conv2d(x, self.conv.weight)
        if self.way == "relu":
            return self.bn(F.relu(self.conv(x)))
        if self.way == "norm twice":
            return self.bn(self.conv(x)) + self.bn(self.other(x))
        if self.way == "values":
            return self.bn(self.conv(x)) if x.sum() > 0 else x
        return self.bn(self.conv(x)) + self.bn2(self.other(x))


@pytest.mark.parametrize(
    ("way", "reason"),
    [
        ("reused", "runs 2 times"), ("used", "used elsewhere"), ("read", "serve elsewhere"),
        ("relu", "no layer stands before"), ("norm twice", "runs 2 times"), ("values", "cannot be followed"),
        ("shared", "serve elsewhere"),
    ],
)  # fmt: skip
def test_what_cannot_be_folded_is_refused_with_the_reason(way, reason):
    net = Twice(way).eval()
    with pytest.raises(StriateError, match=reason):
        fold_batch_norm(net)
    if way != "values":
        x = torch.randn(2, 2, 3, 3)
        torch.testing.assert_close(fold_batch_norm(net, keep=True)(x), net(x))


class Doubled(nn.Conv2d):
    """A convolution that does more than its weights say."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) ** 2


def test_kinds_that_nobody_knows_are_not_folded():
    for before in (Doubled(2, 2, 1), nn.AvgPool2d(3, 1, 1), nn.LPPool2d(2, 1), nn.InstanceNorm2d(2)):
        net = nn.Sequential(nn.Conv2d(2, 2, 1), before, normed(nn.BatchNorm2d(2))).eval()
        with pytest.raises(StriateError, match="1 of 1 batch norms cannot be folded"):
            fold_batch_norm(net)
    net = nn.Sequential(nn.Conv2d(1, 1, 1), nn.MaxPool2d(1), normed(nn.BatchNorm2d(1))).eval()
    with torch.no_grad():
        net[2].weight.neg_()
    with pytest.raises(StriateError, match="negative, and a maximum"):
        fold_batch_norm(net)
    with pytest.raises(StriateError, match="keeps no running mean"):
        fold_batch_norm(nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1, track_running_stats=False)))
    with pytest.raises(StriateError, match="no batch norm"):
        fold_batch_norm(nn.Sequential(nn.Conv2d(1, 1, 1)))
    with pytest.raises(StriateError, match="no weights yet"):
        fold_batch_norm(skeleton("resnet20", 10))


def test_a_foreign_net_is_folded_where_it_is_wrapped():
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)
            self.bn = normed(nn.BatchNorm2d(3))
            self.fc = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc((x + F.relu(self.bn(self.conv(x)))).mean((2, 3)))

    net = wrap(Block(), size=8).eval()
    folded = fold_batch_norm(net)
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(folded(x), net(x))
    assert isinstance(folded.tapped.bn, nn.Identity)
    assert isinstance(net.tapped.bn, nn.BatchNorm2d)


def test_folding_resnet18_takes_every_norm():
    torch.manual_seed(0)
    net = create_net("resnet18", 10, size=32).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            normed(module)
    folded = fold_batch_norm(net)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        wanted = net(x)
        assert ((folded(x) - wanted).abs().max() / wanted.abs().max()) < 1e-5
    assert folded.name == "resnet18-folded"


# --- ablation -----------------------------------------------------------------------------------------


def test_a_stage_that_keeps_the_shape_goes_without_a_trace():
    net = create_net("resnet20", 10).eval()
    less = ablate(net, ["res2b", "res3c"])
    assert (less.removed, less.redrawn) == (("res2b", "res3c"), ())
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        y = x
        for name in net.stage_names:
            if name not in ("res2b", "res3c"):
                y = net.get_submodule(name)(y)
        torch.testing.assert_close(less(x), y)
    assert len(net.stage_names) == len(less.stage_names) + 2


def test_layers_that_get_other_maps_are_drawn_anew():
    """Table 3 of arXiv:1311.2901: without layers 3 and 4, without 6 and 7."""
    torch.manual_seed(0)
    net = create_net("vgg11_bn", 10, size=32)
    less = ablate(net, ["conv3_1", "bn3_1", "relu3_1", "conv3_2", "bn3_2", "relu3_2"])
    assert less.redrawn == ("conv4_1",)
    layer = less.get_submodule("conv4_1")
    assert (layer.in_channels, tuple(layer.weight.shape)) == (128, (512, 128, 3, 3))
    assert layer.weight.std().item() == pytest.approx((2 / (128 * 9)) ** 0.5, rel=0.02)
    assert torch.equal(less.get_submodule("conv1_1").weight, net.get_submodule("conv1_1").weight)
    assert less.eval()(torch.rand(1, 3, 32, 32)).shape == (1, 10)
    headless = ablate(create_net("vgg11", 10, size=32, head="512-512"), ["fc6", "relu6", "fc7", "relu7"])
    assert headless.redrawn == ()
    fewer = ablate(create_net("lenet5", 10, 1), "fc4")
    assert fewer.redrawn == ("fc5",)
    assert fewer.get_submodule("fc5").in_features == 120


def test_what_cannot_go_is_refused_with_what_can():
    net = create_net("resnet20", 10)
    with pytest.raises(StriateError, match=r"without res2a .* does not fit: res2b .*res2b, res2c, res3b"):
        ablate(net, "res2a")
    assert "res2a" not in removable(net)
    with pytest.raises(StriateError, match="did you mean 'res2b'"):
        ablate(net, "res2-b")
    with pytest.raises(StriateError, match="is the head"):
        ablate(net, "fc")
    with pytest.raises(StriateError, match="no stage to leave out"):
        ablate(net, [])


def test_ablation_draws_from_the_seed_and_leaves_the_net_alone():
    net = create_net("lenet5", 10, 1)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    torch.manual_seed(3)
    one = ablate(net, "conv2").state_dict()
    torch.manual_seed(3)
    two = ablate(net, "conv2").state_dict()
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


# --- growing ------------------------------------------------------------------------------------------


def test_vgg_grows_as_the_paper_says():
    """Section 3.1: the first four convolutions and the last three layers of net A, the rest drawn."""
    torch.manual_seed(0)
    options = {"size": 32, "head": "512-512"}
    shallow, deep = create_net("vgg11", 10, **options), create_net("vgg16", 10, **options)
    drawn = deep.get_submodule("conv2_2").weight.clone()
    copied = grow(deep, shallow)
    assert copied == ("conv1_1", "conv2_1", "conv3_1", "conv3_2", "fc6", "fc7", "fc8")
    for name in copied:
        assert torch.equal(deep.get_submodule(name).weight, shallow.get_submodule(name).weight)
        assert torch.equal(deep.get_submodule(name).bias, shallow.get_submodule(name).bias)
    assert torch.equal(deep.get_submodule("conv2_2").weight, drawn)
    assert not torch.equal(deep.get_submodule("conv4_1").weight, shallow.get_submodule("conv4_1").weight)


def test_growing_takes_the_norms_along_and_leaves_another_head():
    shallow, deep = create_net("vgg11_bn", 10, size=32), create_net("vgg13_bn", 7, size=32)
    assert grow(deep, shallow, convolutions=2) == ("conv1_1", "bn1_1", "conv2_1", "bn2_1")
    shallow, deep = create_net("resnet18", 10, size=32), create_net("resnet34", 10, size=32)
    assert grow(deep, shallow, convolutions=0) == ("fc",)
    assert "res2b.conv1" in grow(deep, shallow)


def test_growing_from_nothing_alike_is_refused():
    with pytest.raises(StriateError, match="no layer of linear fits one of vgg11"):
        grow(create_net("vgg11", 10, size=32), create_net("linear", 3))
    with pytest.raises(StriateError, match="no weights yet"):
        grow(create_net("vgg11", 10, size=32), skeleton("vgg11", 10, size=32))
    with pytest.raises(StriateError, match="convolutions is -1"):
        grow(summing_net(), summing_net(), convolutions=-1)


def test_branches_do_not_matter_to_ablation():
    net = net_of(
        ("branch", Branch()), ("flatten", nn.Flatten()), ("fc", nn.Linear(64, 2)), head="fc", channels=1
    )
    assert removable(net) == ("branch",)
