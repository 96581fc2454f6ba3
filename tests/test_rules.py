"""Backward rules on any wiring, against transposed networks built by hand."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from little_models import CLASSES, conv_model, found, pictures, preprocess
from striate.core.errors import StriateError
from striate.layers.winograd import tiled
from striate.model import Model
from striate.nets.wrapped import wrap
from striate.tasks.classification import Classification
from striate.visualize import projection
from striate.visualize.method import net_input, visualize
from striate.visualize.projection import Projector
from striate.visualize.rules import RULES, backward_rule


def rectified(rule: str, signal: Tensor, x: Tensor, slope: float = 0.0, top: float = np.inf) -> Tensor:
    """By hand: the signal below a rectifier with input x, from that above it."""
    derivative = torch.where((x > 0) & (x < top), 1.0, slope * (x <= 0))
    through = torch.where(signal > 0, signal, slope * signal)
    return {"plain": derivative * signal, "deconvnet": through, "guided": derivative * through}[rule]


# ---------------------------------------------------------------- one rectifier in every form

FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "module": nn.ReLU(),
    "module in place": nn.ReLU(inplace=True),
    "function": F.relu,
    "function in place": lambda x: F.relu(x, inplace=True),
    "torch": torch.relu,
    "method": lambda x: x.relu(),
    "method in place": lambda x: x.relu_(),
    "clamp": lambda x: x.clamp(min=0),
    "clamp_min": lambda x: torch.clamp_min(x, 0),
    "threshold": lambda x: F.threshold(x, 0, 0),
    "maximum": lambda x: torch.maximum(x, torch.zeros(())),
    "traced": torch.jit.trace(nn.ReLU(), torch.ones(4), check_trace=False),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_relu_by_hand(form: str, rule: str) -> None:
    x = torch.tensor([-2.0, -1.0, 1.0, 2.0], requires_grad=True)
    signal = torch.tensor([-3.0, 3.0, -3.0, 3.0])
    with backward_rule(rule):
        y = FORMS[form](x * 1.0)
        got = torch.autograd.grad(y, x, signal)[0]
    want = {"plain": [0, 0, -3, 3], "deconvnet": [0, 3, 0, 3], "guided": [0, 0, 0, 3]}[rule]
    assert got.tolist() == want


@pytest.mark.parametrize("rule", RULES)
def test_leaky_and_bounded_rectifiers_by_hand(rule: str) -> None:
    x = torch.tensor([-2.0, -1.0, 1.0, 7.0])
    signal = torch.tensor([-3.0, 3.0, -3.0, 3.0])
    slopes = nn.PReLU(1, init=0.25)
    cases: list[tuple[Callable[[Tensor], Tensor], float, float]] = [
        (lambda t: F.leaky_relu(t, 0.1), 0.1, np.inf),
        (nn.LeakyReLU(0.1, inplace=True), 0.1, np.inf),
        (slopes, 0.25, np.inf),
        (nn.ReLU6(), 0.0, 6.0),
        (lambda t: t.clamp(0, 6), 0.0, 6.0),
        (nn.RReLU(0.1, 0.3).eval(), 0.2, np.inf),
    ]
    for function, slope, top in cases:
        leaf = x.clone().requires_grad_()
        with backward_rule(rule):
            got = torch.autograd.grad(function(leaf * 1.0), leaf, signal)[0]
        torch.testing.assert_close(got, rectified(rule, signal, x, slope, top))


@pytest.mark.parametrize(
    "function",
    [
        F.silu, F.gelu, F.elu, F.softplus, F.hardswish, torch.sigmoid, torch.tanh, torch.abs, F.hardtanh,
        lambda x: x * (x > 0), lambda x: x * (x > 0).float(), lambda x: torch.where(x > 0, x, 0.0),
        lambda x: F.leaky_relu(x, -0.1), lambda x: torch.maximum(x, torch.ones(())), lambda x: x.clamp(max=1),
        lambda x: F.softmax(x, 1),
    ],
)  # fmt: skip
@pytest.mark.parametrize("rule", ["deconvnet", "guided"])
def test_what_is_no_rectifier_is_refused(rule: str, function: Callable[[Tensor], Tensor]) -> None:
    x = torch.linspace(-2, 2, 8).reshape(2, 4).requires_grad_()
    with backward_rule(rule), pytest.raises(StriateError, match=f"{rule} rule has no meaning") as told:
        function(x * 1.0).sum().backward()
    assert "\n" not in str(told.value)
    with backward_rule("plain"):
        function(x * 1.0).sum().backward()
    assert x.grad is not None


def test_a_part_overwritten_in_place_is_refused() -> None:
    x = torch.randn(1, 4, requires_grad=True)
    y = x * 1.0
    y[:, :2].relu_()
    with backward_rule("guided"), pytest.raises(StriateError, match="no meaning"):
        y.sum().backward()


def test_weights_may_come_from_anything() -> None:
    # A weight normalised by an exponential is no activation: the rule follows the picture's way alone.
    weight, x = nn.Parameter(torch.randn(3, 3)), torch.randn(2, 3, requires_grad=True)
    with backward_rule("guided") as rule:
        F.relu(F.linear(x, weight.exp())).sum().backward()
    assert rule.rectifiers == 1


def test_the_rule_ends_with_the_block_and_after_an_error() -> None:
    x = torch.tensor([-1.0, 1.0], requires_grad=True)
    y = F.relu(x)
    signal = torch.tensor([1.0, -1.0])
    with pytest.raises(RuntimeError, match="shape"), backward_rule("deconvnet"):
        torch.autograd.grad(y, x, torch.ones(3))
    with backward_rule("deconvnet"):
        assert torch.autograd.grad(y, x, signal, retain_graph=True)[0].tolist() == [1, 0]
    assert torch.autograd.grad(y, x, signal, retain_graph=True)[0].tolist() == [0, -1]
    with backward_rule("guided"):
        torch.autograd.backward(y, signal, retain_graph=True)
    assert x.grad is not None
    assert x.grad.tolist() == [0, 0]
    with pytest.raises(StriateError, match="did you mean 'deconvnet'"), backward_rule("deconv-net"):
        pass


# ---------------------------------------------------------------- nets against transposed nets by hand


class Wired(nn.Module):
    """Functional, reused and in-place ReLUs, a residual sum, a concatenation, leaky ReLU, both pools."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.conv3 = nn.Conv2d(4, 5, 3, stride=2, padding=1)
        self.conv4 = nn.Conv2d(9, 6, 3)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        a = self.relu(self.norm(self.conv1(x)))
        b = F.relu(a + self.conv2(a))
        c = F.leaky_relu(self.conv3(b), 0.2)
        d = F.max_pool2d(b, 2)
        e = self.relu(self.conv4(torch.cat([c, d], 1)))
        return self.fc(F.avg_pool2d(e, 2).mean((2, 3)))  # type: ignore[no-any-return]


def by_hand(net: Wired, x: Tensor, target: int, rule: str) -> Tensor:
    """The signal of a logit at the picture: every layer transposed explicitly, without autograd."""
    scale = net.norm.weight / (net.norm.running_var + net.norm.eps).sqrt()  # type: ignore[operator]
    shift = net.norm.bias - net.norm.running_mean * scale
    p1 = net.conv1(x) * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)
    a = p1.clamp(min=0)
    p2 = a + net.conv2(a)
    b = p2.clamp(min=0)
    p3 = net.conv3(b)
    c = torch.where(p3 > 0, p3, 0.2 * p3)
    d, switches = F.max_pool2d(b, 2, return_indices=True)
    p4 = net.conv4(torch.cat([c, d], 1))
    pooled = F.avg_pool2d(p4.clamp(min=0), 2)
    s = net.fc.weight[target].view(1, -1, 1, 1).expand_as(pooled) / pooled[0, 0].numel()
    up = torch.zeros_like(p4)
    up[..., : 2 * s.shape[2], : 2 * s.shape[3]] = s.repeat_interleave(2, 2).repeat_interleave(2, 3) / 4
    s = rectified(rule, up, p4)
    s = F.conv_transpose2d(s, net.conv4.weight)
    left, right = s[:, :5], s[:, 5:]
    left = rectified(rule, left, p3, 0.2)
    left = F.conv_transpose2d(left, net.conv3.weight, stride=2, padding=1, output_padding=1)
    s = left + F.max_unpool2d(right, switches, 2)
    s = rectified(rule, s, p2)
    s = s + F.conv_transpose2d(s, net.conv2.weight, padding=1)
    s = rectified(rule, s, p1) * scale.view(-1, 1, 1)
    return F.conv_transpose2d(s, net.conv1.weight, padding=1)


def wired_model(seed: int = 0) -> Model:
    torch.manual_seed(seed)
    net = Wired()
    net.norm.running_mean.normal_()  # type: ignore[operator]
    net.norm.running_var.uniform_(0.5, 2)  # type: ignore[operator]
    return Model(wrap(net, size=12).eval(), Classification(CLASSES), preprocess((12, 12)))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("method", "rule"), [("saliency", "plain"), ("guided-backprop", "guided")])
def test_class_signals_are_those_of_the_transposed_net(method: str, rule: str, seed: int) -> None:
    model, image = wired_model(seed), pictures(1, 12, 12, seed=seed)[0]
    arrays = visualize(method, model, image, target=1).arrays
    with torch.no_grad():
        want = by_hand(model.net.module, net_input(model, image), 1, rule)[0].numpy()
    got = arrays["gradient" if rule == "plain" else "signal"][0]
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)
    assert np.abs(want).max() > 1e-4


@pytest.mark.parametrize("rule", RULES)
def test_the_hand_built_net_is_followed_by_every_rule(rule: str) -> None:
    model, image = wired_model(), pictures(1, 12, 12)[0]
    x = net_input(model, image).requires_grad_()
    with backward_rule(rule) as used:
        got = torch.autograd.grad(model.net(x)[0, 2], x)[0]
    with torch.no_grad():
        torch.testing.assert_close(got, by_hand(model.net.module, x, 2, rule), rtol=1e-4, atol=1e-6)
    assert used.rectifiers == (0 if rule == "plain" else 4)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("stage", ["conv4", "conv3", "conv1"])
def test_units_on_boxes_are_those_of_whole_passes(
    stage: str, rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, image = wired_model(1), pictures(1, 12, 12)[0]
    x = net_input(model, image)
    boxes = Projector(model, x, stage)
    assert boxes.plan is not None
    channels, height, width = boxes.maps.shape
    units = [(c, y, z) for c in range(channels) for y in range(height) for z in (0, width // 2, width - 1)]

    def untraceable(*_: object) -> None:
        raise StriateError("cannot be followed")

    monkeypatch.setattr(projection, "make_plan", untraceable)
    passes = Projector(model, x, stage)
    assert passes.plan is None
    for one, other in zip(boxes.project(units, rule), passes.project(units, rule), strict=True):
        assert one.unit == other.unit
        torch.testing.assert_close(one.whole(12, 12), other.whole(12, 12), rtol=1e-4, atol=1e-6)


def test_a_deconvnet_of_two_layers_by_hand() -> None:
    model, image = conv_model(), pictures(1)[0]
    picture = visualize("deconvnet", model, image, stage="relu2", count=3, crop=True)
    net = model.net
    scale = (net.bn1.weight / (net.bn1.running_var + net.bn1.eps).sqrt()).detach().view(-1, 1, 1)
    for (_, c, y, x), got in zip(picture.arrays["units"], picture.arrays["projection"], strict=True):
        start = torch.zeros(1, 8, 8, 8)
        start[0, c, y, x] = 1
        below = F.conv_transpose2d(start, net.conv2.weight, padding=1).clamp(min=0) * scale
        want = F.conv_transpose2d(below, net.conv1.weight, padding=1)[0].detach().numpy()
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)
        x0, y0, x1, y1 = picture.arrays["boxes"][0]
        assert picture.panels[1].pixels.shape == (y1 - y0, x1 - x0, 3)


def test_units_that_cannot_be_projected_are_refused() -> None:
    model, image = conv_model(), pictures(1)[0]
    with torch.no_grad():
        model.net.conv2.bias[3] = -1e3
    for options, told in [
        ({"channel": 3}, "not active"),
        ({"channel": 8}, "allowed: 0 to 7"),
        ({"channel": 0, "row": 1}, "named in part"),
        ({"channel": 0, "row": 8, "column": 0}, "allowed: 0 to 7"),
        ({"stage": "fc3"}, "no maps"),
        ({"stage": "relu9"}, "did you mean"),
    ]:
        with pytest.raises(StriateError, match=told):
            visualize("deconvnet", model, image, **{"stage": "relu2", **options})
    assert (
        not visualize("deconvnet", model, image, channel=3, stage="relu2", rule="plain")
        .arrays["projection"]
        .any()
    )


def test_smooth_nets_are_refused_and_left_as_found() -> None:
    model = wired_model()
    model.net.module.relu = nn.SiLU()
    before = found(model.net)
    for method in ("guided-backprop", "guided-grad-cam", "deconvnet"):
        options = {} if method == "guided-backprop" else {"stage": "conv4"}
        with pytest.raises(StriateError, match="no meaning for the operator 'Silu'"):
            visualize(method, model, pictures(1, 12, 12), **options)
    assert found(model.net) == before
    visualize("smoothgrad", model, pictures(1, 12, 12))


@pytest.mark.parametrize("rule", RULES)
def test_tiled_convolutions_are_passed_as_others_are(rule: str) -> None:
    torch.manual_seed(3)
    net = nn.Sequential(nn.Conv2d(256, 192, 3, padding=1), nn.ReLU(), nn.Conv2d(192, 192, 3, padding=1))
    net.requires_grad_(False)
    x = torch.randn(32, 256, 16, 16).requires_grad_()
    signals = []
    for way in (tiled(net), contextlib.nullcontext()):
        with way, backward_rule(rule):
            out = net(x)
            signals.append(torch.autograd.grad(out.square().sum(), x)[0])
    assert not torch.equal(*signals)
    # A unit within rounding of 0 may be active in one pass alone.
    assert float((signals[0] - signals[1]).norm()) < 3e-3 * float(signals[1].norm())
