"""Saliency, guided and deconvnet signals on nets of every wiring, against transposed nets built by hand.

The nets by hand use no autograd and no convolution: windows are matrices (unfold), and what comes back is
their transpose (fold).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from little_models import CLASSES, found, pictures, preprocess
from striate.core.errors import StriateError
from striate.model import Model
from striate.nets.wrapped import wrap
from striate.tasks.classification import Classification
from striate.visualize.method import net_input, visualize
from striate.visualize.projection import Projector
from striate.visualize.rules import RULES
from striate.visualize.scores import class_gradient

SIDE = 12


@dataclass(eq=False)
class Value:
    """A tensor of the net by hand, and what its signal becomes at each parent."""

    tensor: Tensor
    parents: tuple[Value, ...] = ()
    send: Callable[[Tensor], tuple[Tensor, ...]] = lambda signal: ()
    signal: Tensor | None = field(default=None, repr=False)


class Hand:
    """Operations computed by hand, with their transposes, by one backward rule."""

    def __init__(self, rule: str) -> None:
        self.rule, self.made = rule, list[Value]()

    def note(
        self, tensor: Tensor, parents: tuple[Value, ...], send: Callable[[Tensor], tuple[Tensor, ...]]
    ) -> Value:
        self.made.append(Value(tensor, parents, send))
        return self.made[-1]

    def conv(self, x: Value, layer: nn.Conv2d) -> Value:
        shape, groups = x.tensor.shape, layer.groups
        window = {"kernel_size": layer.kernel_size, "dilation": layer.dilation, "padding": layer.padding,
                  "stride": layer.stride}  # fmt: skip
        outs, height, width = layer.weight.shape[0], *layer(x.tensor).shape[2:]
        matrices = layer.weight.reshape(groups, outs // groups, -1)
        columns = F.unfold(x.tensor, **window).reshape(groups, matrices.shape[2], -1)
        y = (matrices @ columns).reshape(1, outs, height, width)
        if layer.bias is not None:
            y = y + layer.bias.view(1, -1, 1, 1)

        def send(signal: Tensor) -> tuple[Tensor, ...]:
            back = matrices.transpose(1, 2) @ signal.reshape(groups, outs // groups, -1)
            return (F.fold(back.reshape(1, -1, height * width), shape[2:], **window),)

        return self.note(y, (x,), send)

    def rectify(self, x: Value, slope: float | Tensor = 0.0, top: float = np.inf) -> Value:
        t = x.tensor
        y = torch.where(t > 0, t, slope * t).clamp(max=top)

        def send(signal: Tensor) -> tuple[Tensor, ...]:
            derivative = torch.where((t > 0) & (t < top), torch.ones_like(t), slope * (t <= 0))
            if self.rule == "plain":
                return (derivative * signal,)
            through = torch.where(signal > 0, signal, slope * signal)
            return (through if self.rule == "deconvnet" else derivative * through,)

        return self.note(y, (x,), send)

    def pool(self, x: Value, kernel: int, stride: int, padding: int, *, mean: bool = False) -> Value:
        t, window = x.tensor, {"kernel_size": kernel, "stride": stride, "padding": 0}
        wide = F.pad(t, (padding,) * 4, value=0.0 if mean else -np.inf)
        inside = F.unfold(F.pad(torch.ones_like(t), (padding,) * 4), **window)
        columns = F.unfold(torch.nan_to_num(wide, neginf=-1e9), **window)
        shape = (t.shape[1], kernel * kernel, columns.shape[-1])
        columns, inside = columns.reshape(shape), inside.reshape(shape)
        if mean:
            share = inside / inside.sum(1, keepdim=True)
        else:
            share = F.one_hot(columns.argmax(1), kernel * kernel).transpose(1, 2).float()
        out = (wide.shape[2] - kernel) // stride + 1
        y = (columns * share).sum(1).reshape(1, t.shape[1], out, -1)

        def send(signal: Tensor) -> tuple[Tensor, ...]:
            spread = (share * signal.reshape(t.shape[1], 1, -1)).reshape(1, -1, shape[2])
            whole = F.fold(spread, wide.shape[2:], **window)
            return (whole[..., padding : padding + t.shape[2], padding : padding + t.shape[3]],)

        return self.note(y, (x,), send)

    def norm(self, x: Value, layer: nn.BatchNorm2d) -> Value:
        scale = (layer.weight / (layer.running_var + layer.eps).sqrt()).view(1, -1, 1, 1)  # type: ignore[operator]
        y = (x.tensor - layer.running_mean.view(1, -1, 1, 1)) * scale + layer.bias.view(1, -1, 1, 1)  # type: ignore[operator]
        return self.note(y, (x,), lambda signal: (signal * scale,))

    def add(self, a: Value, b: Value) -> Value:
        return self.note(a.tensor + b.tensor, (a, b), lambda signal: (signal, signal))

    def join(self, *parts: Value) -> Value:
        sizes = [part.tensor.shape[1] for part in parts]
        y = torch.cat([part.tensor for part in parts], 1)
        return self.note(y, parts, lambda signal: signal.split(sizes, 1))

    def head(self, x: Value, layer: nn.Linear) -> Value:
        """The mean of every map, and the linear layer."""
        places = x.tensor.shape[2] * x.tensor.shape[3]
        y = x.tensor.mean((2, 3)) @ layer.weight.T + layer.bias
        return self.note(
            y, (x,), lambda signal: ((signal @ layer.weight)[:, :, None, None].expand_as(x.tensor) / places,)
        )

    def back(self, at: Value, picture: Value, signal: Tensor) -> Tensor:
        """The signal at the picture, from one at a value."""
        at.signal = signal
        for value in reversed(self.made):
            if value.signal is None:
                continue
            for parent, part in zip(value.parents, value.send(value.signal), strict=True):
                parent.signal = part if parent.signal is None else parent.signal + part
            value.signal = None
        assert picture.signal is not None
        return picture.signal


# ---------------------------------------------------------------- the wirings, and the same by hand


class Body(nn.Module):
    """Layers for every wiring; `wiring` says which forward pass runs."""

    def __init__(self, wiring: str) -> None:
        super().__init__()
        self.wiring = wiring
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.strided = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.grouped = nn.Conv2d(4, 6, 3, padding=2, dilation=2, groups=2, bias=False)
        self.pointed = nn.Conv2d(4, 2, 1)
        self.norm = nn.BatchNorm2d(4)
        self.relu = nn.ReLU()
        self.inplace = nn.ReLU(inplace=True)
        self.slopes = nn.PReLU(4, init=0.3)
        self.block = nn.ModuleDict({"body": nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU6())})
        self.four, self.six = nn.Linear(4, 3), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return NETS[self.wiring][0](self, x)


def functional(n: Body, x: Tensor) -> Tensor:
    x = F.max_pool2d(F.relu(n.first(x)), 2)
    return n.six(torch.relu(n.strided(x.clone())).mean((2, 3)))


def functional_hand(n: Body, h: Hand, x: Value) -> tuple[Value, Value]:
    x = h.pool(h.rectify(h.conv(x, n.first)), 2, 2, 0)
    stage = h.conv(x, n.strided)
    return stage, h.head(h.rectify(stage), n.six)


def in_place(n: Body, x: Tensor) -> Tensor:
    x = n.inplace(n.norm(n.first(x)))
    x = n.second(x).relu_()
    x = n.strided(x)
    return n.six(F.relu(x, inplace=True).mean((2, 3)))


def in_place_hand(n: Body, h: Hand, x: Value) -> tuple[Value, Value]:
    x = h.rectify(h.norm(h.conv(x, n.first), n.norm))
    x = h.rectify(h.conv(x, n.second))
    stage = h.conv(x, n.strided)
    return stage, h.head(h.rectify(stage), n.six)


def reused(n: Body, x: Tensor) -> Tensor:
    x = n.relu(n.first(x))
    for _ in range(3):
        x = n.relu(n.second(x))
    return n.six(n.relu(n.strided(x)).mean((2, 3)))


def reused_hand(n: Body, h: Hand, x: Value) -> tuple[Value, Value]:
    x = h.rectify(h.conv(x, n.first))
    for _ in range(3):
        x = h.rectify(h.conv(x, n.second))
    stage = h.conv(x, n.strided)
    return stage, h.head(h.rectify(stage), n.six)


def residual(n: Body, x: Tensor) -> Tensor:
    a = n.inplace(n.first(x))
    b = n.second(a)
    b += a
    b = b.relu_()
    c = torch.add(b, n.norm(n.second(b)))
    return n.six(n.strided(F.relu(c)).relu().mean((2, 3)))


def residual_hand(n: Body, h: Hand, x: Value) -> tuple[Value, Value]:
    a = h.rectify(h.conv(x, n.first))
    b = h.rectify(h.add(h.conv(a, n.second), a))
    c = h.rectify(h.add(b, h.norm(h.conv(b, n.second), n.norm)))
    stage = h.conv(c, n.strided)
    return stage, h.head(h.rectify(stage), n.six)


def joined(n: Body, x: Tensor) -> Tensor:
    a = F.relu(n.first(x))
    parts = [n.pointed(a), F.max_pool2d(n.pointed(a), 3, 1, 1)]
    a = torch.cat(parts, dim=1).relu()
    return n.six(n.relu(n.strided(torch.cat((a[:, :2], n.pointed(a)), 1))).mean((2, 3)))


def joined_hand(n: Body, h: Hand, x: Value) -> tuple[Value, Value]:
    a = h.rectify(h.conv(x, n.first))
    narrow = h.conv(a, n.pointed)
    a = h.rectify(h.join(narrow, h.pool(h.conv(a, n.pointed), 3, 1, 1)))
    half = h.note(a.tensor[:, :2], (a,), lambda s: (torch.cat([s, torch.zeros_like(s)], 1),))
    stage = h.conv(h.join(half, h.conv(a, n.pointed)), n.strided)
    return stage, h.head(h.rectify(stage), n.six)


def leaky(n: Body, x: Tensor) -> Tensor:
    x = n.slopes(F.leaky_relu(n.first(x), 0.1))
    return n.six(F.leaky_relu(n.strided(x), 0.2, inplace=True).mean((2, 3)))


def leaky_hand(n: Body, h: Hand, x: Value) -> tuple[Value, Value]:
    x = h.rectify(h.conv(x, n.first), 0.1)
    stage = h.conv(h.rectify(x, n.slopes.weight.view(1, -1, 1, 1)), n.strided)
    return stage, h.head(h.rectify(stage, 0.2), n.six)


def averages(n: Body, x: Tensor) -> Tensor:
    x = F.avg_pool2d(n.relu(n.first(x)), 3, 2, 1, count_include_pad=False)
    x = F.avg_pool2d(n.relu(n.second(x)), 2)
    return n.six(n.relu(n.strided(x)).mean((2, 3)))


def averages_hand(n: Body, h: Hand, x: Value) -> tuple[Value, Value]:
    x = h.pool(h.rectify(h.conv(x, n.first)), 3, 2, 1, mean=True)
    x = h.pool(h.rectify(h.conv(x, n.second)), 2, 2, 0, mean=True)
    stage = h.conv(x, n.strided)
    return stage, h.head(h.rectify(stage), n.six)


def overlapping(n: Body, x: Tensor) -> Tensor:
    x = F.max_pool2d(n.relu(n.first(x)), 3, 2, 1)
    return n.six(n.relu(n.grouped(n.relu(n.second(x)))).mean((2, 3)))


def overlapping_hand(n: Body, h: Hand, x: Value) -> tuple[Value, Value]:
    x = h.pool(h.rectify(h.conv(x, n.first)), 3, 2, 1)
    stage = h.conv(h.rectify(h.conv(x, n.second)), n.grouped)
    return stage, h.head(h.rectify(stage), n.six)


def foreign(n: Body, x: Tensor) -> Tensor:
    x = n.first(x).clamp(min=0)
    x = n.block["body"](x) + x
    return n.six(torch.maximum(n.strided(x), torch.zeros(())).mean((2, 3)))


def foreign_hand(n: Body, h: Hand, x: Value) -> tuple[Value, Value]:
    x = h.rectify(h.conv(x, n.first))
    x = h.add(h.rectify(h.conv(x, n.block["body"][0]), top=6.0), x)  # type: ignore[index]
    stage = h.conv(x, n.strided)
    return stage, h.head(h.rectify(stage), n.six)


NETS = {
    "functional": (functional, functional_hand, "strided"),
    "in place": (in_place, in_place_hand, "strided"),
    "reused": (reused, reused_hand, "strided"),
    "residual": (residual, residual_hand, "strided"),
    "joined": (joined, joined_hand, "strided"),
    "leaky": (leaky, leaky_hand, "strided"),
    "averages": (averages, averages_hand, "strided"),
    "overlapping": (overlapping, overlapping_hand, "grouped"),
    "foreign": (foreign, foreign_hand, "strided"),
}


def a_model(wiring: str, seed: int = 0) -> Model:
    torch.manual_seed(seed)
    net = Body(wiring)
    net.norm.running_mean.normal_()  # type: ignore[operator]
    net.norm.running_var.uniform_(0.5, 2)  # type: ignore[operator]
    with torch.no_grad():
        net.norm.weight.uniform_(-0.5, 2)
        net.norm.bias.uniform_(0, 1)
        # Rectifiers that are open for some units, and a class whose signal they let back.
        net.six.weight[1].abs_()
        for layer in (net.first, net.second, net.strided, net.pointed):
            layer.bias.add_(0.2)
    return Model(wrap(net, size=SIDE).eval(), Classification(CLASSES), preprocess((SIDE, SIDE)))


def by_hand(model: Model, image: np.ndarray, rule: str) -> tuple[Hand, Value, Value, Value]:
    """The net by hand on an image: itself, the picture, the stage and the logits."""
    hand, picture = Hand(rule), Value(net_input(model, image))
    body = model.net.module
    stage, logits = NETS[body.wiring][1](body, hand, picture)
    return hand, picture, stage, logits


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("wiring", NETS)
def test_signals_of_a_class_by_hand(wiring: str, rule: str) -> None:
    model, image = a_model(wiring), pictures(1, SIDE, SIDE, seed=3)[0]
    before = found(model.net)
    with torch.no_grad():
        hand, picture, _, logits = by_hand(model, image, rule)
        torch.testing.assert_close(logits.tensor, model.net(picture.tensor.clone()), rtol=1e-4, atol=1e-5)
        want = hand.back(logits, picture, torch.eye(3)[1:2])[0].numpy()
    assert np.abs(want).max() > 1e-5
    if rule == "deconvnet":
        got = class_gradient(model, image, 1, rule)[2]
    elif rule == "guided":
        got = visualize("guided-backprop", model, image, target=1).arrays["signal"][0]
    else:
        got = visualize("saliency", model, image, target=1).arrays["gradient"][0]
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * np.abs(want).max())
    assert found(model.net) == before


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("wiring", NETS)
def test_projections_of_units_by_hand(wiring: str, rule: str) -> None:
    model, image = a_model(wiring, seed=1), pictures(1, SIDE, SIDE, seed=4)[0]
    name = NETS[wiring][2]
    x = net_input(model, image)
    projector = Projector(model, x, name)
    assert projector.plan is not None
    channels, height, width = projector.maps.shape
    units = [
        (0, 0, 0),
        (channels - 1, height - 1, 0),
        (1, height // 2, width // 2),
        (2, height - 1, width - 1),
    ]
    for one in projector.project(units, rule):
        with torch.no_grad():
            hand, picture, stage, _ = by_hand(model, image, rule)
            torch.testing.assert_close(projector.maps, stage.tensor[0], rtol=1e-4, atol=1e-5)
            start = torch.zeros_like(stage.tensor)
            start[0, *one.unit] = 1
            want = hand.back(stage, picture, start)[0]
        torch.testing.assert_close(one.whole(SIDE, SIDE), want, rtol=1e-4, atol=1e-6)
    active = [(int(c), int(y), int(z)) for c, y, z in (projector.maps > 0).nonzero()[:1]]
    options = dict(zip(("channel", "row", "column"), active[0], strict=True))
    shown = visualize("deconvnet", model, image, stage=name, rule=rule, **options).arrays["projection"]
    again = next(iter(projector.project(active, rule))).whole(SIDE, SIDE).numpy()
    np.testing.assert_array_equal(shown[0], again)


@pytest.mark.parametrize("method", ["guided-backprop", "guided-grad-cam", "deconvnet"])
@pytest.mark.parametrize("smooth", [nn.GELU, nn.SiLU, nn.Tanh, nn.ELU, nn.Hardswish])
def test_activations_without_meaning_are_refused(method: str, smooth: type[nn.Module]) -> None:
    model = a_model("reused")
    model.net.module.relu = smooth()
    before = found(model.net)
    options = {} if method == "guided-backprop" else {"stage": "strided"}
    if method == "deconvnet":
        options |= {"count": 1}
    with pytest.raises(StriateError, match="no meaning"):
        visualize(method, model, pictures(1, SIDE, SIDE)[0], **options)
    assert found(model.net) == before


def test_an_activation_that_the_unit_does_not_use_is_no_obstacle() -> None:
    model = a_model("foreign")
    # Behind the stage: the unit's own way runs through rectifiers alone.
    model.net.module.six = nn.Sequential(nn.Linear(6, 3), nn.Tanh())
    assert (
        visualize("deconvnet", model, pictures(1, SIDE, SIDE)[0], stage="strided", count=1)
        .arrays["projection"]
        .any()
    )
    with pytest.raises(StriateError, match="no meaning"):
        visualize("guided-backprop", model, pictures(1, SIDE, SIDE)[0])
