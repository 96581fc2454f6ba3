"""Occlusion: recomputing what the square can have touched gives what the whole net gives, on any wiring."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from little_models import CLASSES, conv_model, found, linear_model, pictures, preprocess
from striate.core.errors import StriateError
from striate.layers.normalization import LocalResponseNorm
from striate.model import Model
from striate.nets.net import create_net
from striate.nets.wrapped import wrap
from striate.tasks.classification import Classification
from striate.visualize.boxes import Span, Window
from striate.visualize.incremental import Incremental, Patches
from striate.visualize.method import net_input, visualize
from striate.visualize.occlusion import Occlusion, starts


class Functions(nn.Module):
    """One body under test, then global average and a linear head."""

    def __init__(self, channels: int = 6) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv3 = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        self.deep = nn.Conv2d(channels, channels, 3, padding=2, dilation=2, groups=2)
        self.norm = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.lrn = LocalResponseNorm(3, alpha=0.3)
        self.fc = nn.Linear(channels, 3)
        self.body = ""

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = BODIES[self.body](self, x)
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


def residual(net: Functions, x: Tensor) -> Tensor:
    a = net.relu(net.norm(net.conv1(x)))
    b = net.conv2(a)
    b += a
    return F.relu(b) + F.avg_pool2d(a, 3, 1, 1)


def dense(net: Functions, x: Tensor) -> Tensor:
    a = net.relu(net.conv1(x))
    b, c = torch.chunk(torch.cat([a, F.leaky_relu(net.conv2(a), 0.1)], 1), 2, 1)
    return net.conv3(b * 0.5 - c)


def overwritten(net: Functions, x: Tensor) -> Tensor:
    # The sum reads what the ReLU in place has left in a, not what the convolution gave.
    a = net.conv1(x)
    b = net.conv2(net.relu(a))
    return (a + b).relu_()


def gated(net: Functions, x: Tensor) -> Tensor:
    # The gate looks at the whole map: from there on the net runs as usual.
    a = net.relu(net.conv1(x))
    return net.conv2(a * torch.sigmoid(a.mean((2, 3), keepdim=True)))


BODIES: dict[str, Callable[[Functions, Tensor], Tensor]] = {
    "residual": residual,
    "dense": dense,
    "overwritten": overwritten,
    "gated": gated,
    "strides": lambda n, x: F.max_pool2d(n.conv3(n.relu(n.conv1(x))), 3, 2, 1, ceil_mode=True),
    "dilated": lambda n, x: n.relu(n.deep(n.relu(n.conv3(n.conv1(x))))),
    "averages": lambda n, x: F.avg_pool2d(n.conv1(x), 3, 2, 1, ceil_mode=True, count_include_pad=False),
    "norms": lambda n, x: n.lrn(F.max_pool2d(n.norm(n.conv1(x)).relu(), 2)),
    "padded": lambda n, x: n.conv3(F.pad(n.conv1(x), (1, 2, 0, 3), value=0.5)),
    "reused": lambda n, x: n.relu(n.conv2(n.relu(n.conv2(n.relu(n.conv1(x)))))),
    "skipping": lambda n, x: F.conv2d(n.conv1(x), n.conv2.weight[:, :, :1, :1], stride=3),
}


def body_model(body: str, size: tuple[int, int]) -> Model:
    torch.manual_seed(len(body))
    net = Functions()
    net.body = body
    net.norm.running_mean.normal_()  # type: ignore[operator]
    net.norm.running_var.uniform_(0.5, 2)  # type: ignore[operator]
    net.eval()
    with torch.no_grad():
        # Probabilities that are neither all alike nor all 0 and 1.
        logits = net(torch.randn(1, 3, *size))
        net.fc.weight.div_(float(logits.std()))
    return Model(wrap(net, size=size).eval(), Classification(CLASSES), preprocess(size))


def same(model: Model, image: np.ndarray, **options: object) -> dict[str, np.ndarray]:
    quick = visualize("occlusion", model, image, **options).arrays
    slow = visualize("occlusion", model, image, way="full", **options).arrays
    np.testing.assert_allclose(quick["probability"], slow["probability"], atol=1e-4)
    np.testing.assert_array_equal(quick["predicted"], slow["predicted"])
    scale = float(np.abs(slow["activation"]).max())
    np.testing.assert_allclose(quick["activation"], slow["activation"], atol=1e-4 * scale)
    assert np.ptp(slow["probability"]) > 1e-5
    return quick


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize(("size", "square", "stride"), [((33, 28), 5, 4), ((24, 37), 4, 7)])
def test_boxes_give_what_the_whole_net_gives(
    body: str, size: tuple[int, int], square: int, stride: int
) -> None:
    model, image = body_model(body, size), pictures(1, *size, seed=7)[0]
    arrays = same(model, image, size=square, stride=stride, stage="conv1", fill="noise")
    done, full = arrays["multiply_adds"][0]
    assert full > 0
    if body != "gated":
        assert done < 0.7 * full


@pytest.mark.parametrize("name", ["resnet20", "vgg11", "efficientnet_lite0"])
def test_registered_nets(name: str) -> None:
    torch.manual_seed(0)
    size = 64 if name == "efficientnet_lite0" else 32
    options = {"width": 8} if name == "vgg11" else {}
    net = create_net(name, 3, size=size, **options).eval()
    model = Model(net, Classification(CLASSES), preprocess((size, size)))
    picture = pictures(1, size, size, seed=7)[0]
    # Logits two apart: those of new nets have any scale, and a saturated softmax would show nothing.
    spread = float(np.ptp(model.forward(picture[None]).numpy()))
    with torch.no_grad():
        net.head_layer.weight.mul_(2 / spread)
    same(model, picture, size=6, stride=13, fill="mean")


def test_shrinking_boxes_changes_nothing_but_the_work() -> None:
    model, image = body_model("reused", (40, 40)), pictures(1, 40, 40)[0]
    patches, _ = Occlusion(size=6, stride=5)._patches(model, image)
    with torch.no_grad():
        # Where most units are silent, most changes are gone behind the ReLU.
        model.net.module.conv1.bias.sub_(1.5)
        some, all_of_it = (Incremental(model.net, patches.clean, shrink=shrink) for shrink in (True, False))
        one, other = some.run(patches), all_of_it.run(patches)
    torch.testing.assert_close(one.outputs, other.outputs, rtol=1e-4, atol=1e-5)
    assert one.multiply_adds < other.multiply_adds
    assert other.multiply_adds == pytest.approx(all_of_it.predicted(patches))


def test_multiply_adds_by_hand() -> None:
    model = conv_model(size=16)
    one = Incremental(model.net, torch.zeros(1, 3, 16, 16))
    assert one.full_macs() == 256 * (3 * 9 * 6 + 6 * 9 * 8) + 8 * 3
    centre = Patches(torch.zeros(1, 3, 16, 16), torch.ones(1, 3, 16, 16), np.array([6]), np.array([6]), 2)
    # A square of 2 changes 4 x 4 positions behind the first convolution, 6 x 6 behind the second.
    assert one.predicted(centre) == 16 * 162 + 36 * 432 + 24
    corner = Patches(centre.clean, centre.source, np.array([0]), np.array([0]), 2)
    assert one.predicted(corner) == 9 * 162 + 16 * 432 + 24


def test_the_three_pictures_by_hand() -> None:
    image = np.array([[255, 0], [0, 255]], np.uint8)
    with pytest.raises(StriateError, match="no stage"):
        visualize("occlusion", linear_model(torch.ones(3, 4)), image)
    conv = conv_model(channels=1, size=2)
    picture = visualize("occlusion", conv, image, size=1, stride=1, stage="conv1", fill="mean")
    x = net_input(conv, image[..., None])
    with torch.no_grad():
        channel = int(conv.net.conv1(x)[0].sum((1, 2)).argmax())
        for y in range(2):
            for z in range(2):
                covered = x.clone()
                covered[..., y, z] = 0
                posterior = conv.net(covered).softmax(1)[0]
                total = float(conv.net.conv1(covered)[0, channel].sum())
                target = int(picture.arrays["target"][0])
                assert picture.arrays["probability"][0, y, z] == pytest.approx(
                    float(posterior[target]), abs=1e-5
                )
                assert picture.arrays["predicted"][0, y, z] == int(posterior.argmax())
                assert picture.arrays["activation"][0, y, z] == pytest.approx(total, abs=1e-4)
    assert picture.arrays["channel"].tolist() == [channel]


class Untraceable(nn.Module):
    """Its control flow depends on what the tensors hold."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = self.conv(x)
        if float(x.sum()) > 0:
            x = x * 2
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


def test_what_cannot_be_followed_runs_in_full_and_says_so() -> None:
    net = Untraceable()
    model = Model(wrap(net, size=12).eval(), Classification(CLASSES), preprocess((12, 12)))
    image = pictures(1, 12, 12)[0]
    picture = visualize("occlusion", model, image, stage="conv", size=3)
    assert "The whole net ran at every position" in picture.note
    assert "control flow" in picture.note
    full = visualize("occlusion", model, image, stage="conv", size=3, way="full")
    np.testing.assert_array_equal(picture.arrays["probability"], full.arrays["probability"])
    quick = visualize("occlusion", body_model("strides", (24, 24)), pictures(1, 24, 24), stage="conv3")
    assert "Only what the square can have touched" in quick.note


def test_a_net_whose_graph_lies_runs_in_full() -> None:
    model = body_model("strides", (24, 24))
    model.net.module.conv1.register_forward_hook(lambda *a: a[2] * 3)
    picture = visualize("occlusion", model, pictures(1, 24, 24), stage="conv1", size=4)
    assert "The whole net ran at every position" in picture.note


def test_an_error_in_the_middle_leaves_the_net_as_found(monkeypatch: pytest.MonkeyPatch) -> None:
    model = body_model("residual", (24, 24))
    model.net.train()
    before = found(model.net)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Incremental, "_rest", stop)
    with pytest.raises(KeyboardInterrupt):
        visualize("occlusion", model, pictures(1, 24, 24), stage="conv1", size=4)
    assert found(model.net) == before


def test_squares_that_do_not_fit_are_refused() -> None:
    with pytest.raises(StriateError, match="size is 9; allowed: 1 to 8"):
        visualize("occlusion", conv_model(), pictures(1), size=9)
    with pytest.raises(StriateError, match="not for masks"):
        visualize("occlusion", conv_model("segmentation"), pictures(1))
    assert visualize("occlusion", conv_model(), pictures(1), size=8).arrays["probability"].shape == (1, 1, 1)


def test_positions_reach_the_border() -> None:
    assert starts(224, 32, 8).tolist() == list(range(0, 193, 8))
    assert starts(10, 3, 4).tolist() == [0, 4, 7]
    assert starts(3, 3, 4).tolist() == [0]


@given(
    st.integers(1, 5), st.integers(1, 4), st.integers(0, 3), st.integers(1, 3), st.integers(5, 30), st.data()
)
def test_touched_rows_are_those_that_change(
    kernel: int, stride: int, before: int, dilation: int, inside: int, data: st.DataObject
) -> None:
    reach = (kernel - 1) * dilation + 1
    before = min(before, reach - 1)
    out = (inside + 2 * before - reach) // stride + 1
    if out < 1:
        return
    window = Window(kernel, stride, before, dilation, inside, out)
    low = data.draw(st.integers(0, inside - 1))
    length = data.draw(st.integers(1, inside - low))
    x = torch.zeros(1, 1, inside)
    x[..., low : low + length] = 1
    y = F.conv1d(x, torch.ones(1, 1, kernel), None, stride, before, dilation)[0, 0]
    changed = y.nonzero().flatten().tolist()
    rows = window.touched(Span(np.array([low]), length))
    covered = range(int(rows.start[0]), int(rows.end[0]))
    assert set(changed) <= set(covered)
    assert 0 <= covered[0] <= covered[-1] < out
    # Dilated windows step over rows: the span may hold more than what changes, else not.
    if changed and dilation == 1:
        assert [changed[0], changed[-1]] == [covered[0], covered[-1]]
    needs = window.needed(rows)
    assert needs.start[0] >= -window.before
    assert needs.end[0] <= inside + window.after
