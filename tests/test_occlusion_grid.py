"""Occlusion from coarse to fine, linear layers on differences, inputs at the edge, and interrupts."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from little_models import CLASSES, conv_model, pictures, preprocess
from striate.cli import main
from striate.core.errors import StriateError
from striate.images import draw
from striate.model import Model
from striate.nets.net import create_net
from striate.nets.wrapped import wrap
from striate.tasks.classification import Classification
from striate.visualize import covered, difference
from striate.visualize.coarse import refine
from striate.visualize.incremental import Incremental
from striate.visualize.method import Picture, visualize
from striate.visualize.occlusion import Occlusion
from test_occlusion import body_model

# ---------------------------------------------------------------- from coarse to fine


def test_a_grid_is_refined_where_it_changes() -> None:
    rows, columns = 17, 23
    y, x = np.mgrid[:rows, :columns]
    truth = np.stack([0.01 * y + 0.02 * x, (x > 11) * 1.0, x <= 11, x > 11], -1).astype(float)
    asked: list[int] = []

    def compute(chosen: np.ndarray) -> np.ndarray:
        asked.extend(chosen.tolist())
        return truth.reshape(-1, 4)[chosen]

    found = refine((rows, columns), 4, 0.2, 2, compute)
    assert len(asked) == len(set(asked)) == found.computed.sum()
    np.testing.assert_array_equal(found.values[found.computed], truth[found.computed])
    # A ramp is interpolated without loss; the step is found exactly, though nothing said where it is.
    np.testing.assert_allclose(found.values, truth, atol=1e-12)
    assert found.computed[:, 11:13].all()
    assert found.computed.mean() < 0.7
    assert found.checked == 29
    assert found.share == pytest.approx(1 - 0.05 ** (1 / 29))
    np.testing.assert_allclose(found.error, 0, atol=1e-12)


def test_the_stated_error_is_that_of_checked_positions() -> None:
    draws = np.random.default_rng(1)
    truth = np.concatenate([draws.uniform(0, 1, (40, 40, 2)), np.ones((40, 40, 1))], -1)
    found = refine((40, 40), 8, 1.0, 2, lambda chosen: truth.reshape(-1, 3)[chosen])
    # Nothing differs by more than the tolerance: the first lattice stands, and noise is missed by much.
    lattice = np.zeros((40, 40), bool)
    rows = [*range(0, 40, 8), 39]
    lattice[np.ix_(rows, rows)] = True
    assert (found.computed & ~lattice).sum() == found.checked == 29
    left = np.abs(found.values - truth)[~found.computed][:, 0]
    assert 0.3 < found.error[0] < 1
    assert (left > found.error[0]).mean() < found.share
    exact = refine((40, 40), 8, 0.0, 2, lambda chosen: truth.reshape(-1, 3)[chosen])
    assert exact.computed.all()
    np.testing.assert_array_equal(exact.values, truth)
    assert exact.checked == 0
    one = refine((1, 1), 4, 0.5, 2, lambda chosen: truth.reshape(-1, 3)[chosen])
    assert one.computed.tolist() == [[True]]
    few = refine((3, 5), 4, 1.0, 2, lambda chosen: truth.reshape(-1, 3)[chosen])
    assert few.computed.all()
    assert few.share == 0


def test_occlusion_from_coarse_to_fine() -> None:
    model, image = body_model("strides", (40, 40)), pictures(1, 40, 40, seed=7)[0]
    options = {"size": 8, "stride": 1, "stage": "conv1"}
    exact = visualize("occlusion", model, image, **options).arrays
    assert exact["computed"].all()
    assert not exact["error"].any()
    picture = visualize("occlusion", model, image, tolerance=0.05, **options)
    found = picture.arrays
    computed = found["computed"]
    assert 0.01 < computed.mean() < 0.9
    for key in ("probability", "activation"):
        np.testing.assert_allclose(found[key][computed], exact[key][computed], rtol=1e-4, atol=1e-5)
    # Each eighth position is always there: together these squares cover the image.
    assert computed[0, ::8, ::8].all()
    error = np.abs(found["probability"] - exact["probability"])[~computed]
    assert (error > found["error"][0, 0] + 1e-5).mean() <= 1 - 0.05 ** (1 / 29)
    assert "of the positions were computed" in picture.note
    assert "with 95 % confidence" in picture.note
    wide = visualize("occlusion", model, image, size=8, stride=8, stage="conv1", tolerance=1.0)
    assert wide.arrays["computed"].all()
    assert "Every position was computed" in wide.note


# ---------------------------------------------------------------- linear layers on the difference


class Flat(nn.Module):
    """Linear layers behind maps, as in AlexNet and VGG: flattened in one of several ways."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.drop, self.flat = nn.Dropout(), nn.Flatten()
        self.fc1, self.fc2 = nn.Linear(6 * 12 * 10, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = F.max_pool2d(self.conv(x).relu(), 2)
        if self.way == "view":
            x = x.view(x.size(0), -1)
        elif self.way == "module":
            x = self.drop(self.flat(x))
        elif self.way == "permuted":
            x = x.permute(0, 2, 3, 1).flatten(1)
        elif self.way == "negated":
            x = (-x).flatten(1).neg()
        else:
            x = torch.flatten(x, 1)
        x = F.linear(x, self.fc1.weight, self.fc1.bias) if self.way == "function" else self.fc1(x)
        return self.fc2(x.relu())  # type: ignore[no-any-return]


@pytest.mark.parametrize("way", ["flatten", "view", "module", "function", "permuted", "negated"])
def test_linear_layers_take_the_difference_alone(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(difference, "GATHER", 0)
    torch.manual_seed(1)
    net = Flat(way).eval()
    model = Model(wrap(net, size=(24, 20)).eval(), Classification(CLASSES), preprocess((24, 20)))
    patches, _ = Occlusion(size=4, stride=3)._patches(model, pictures(1, 24, 20)[0])
    with torch.no_grad():
        one = Incremental(model.net, patches.clean)
        outcome = one.run(patches)
        want = net(patches.pictures(np.arange(len(patches))))
    torch.testing.assert_close(outcome.outputs, want, rtol=1e-4, atol=1e-5)
    # What does not keep the order of a map's values is run as it is.
    assert (one._linear is None) == (way in ("permuted", "negated"))
    full = 240 * 2 * 3 * 9 * 6 + 6 * 120 * 7 + 21
    assert one.full_macs() == full
    if one._linear is not None:
        # Of 120 positions a square of 4 touches 3 x 3 or 4 x 4 behind the convolution and the pool.
        convolved = one.predicted(patches) - 21 - 16 * 6 * 7
        assert convolved <= 36 * 3 * 9 * 6
        assert outcome.multiply_adds <= one.predicted(patches)


def test_a_hook_on_a_linear_layer_is_obeyed() -> None:
    net = Flat("flatten").eval()
    net.fc1.register_forward_hook(lambda *a: a[2] * 3)
    assert Incremental(net, torch.zeros(1, 3, 24, 20))._linear is None


# ---------------------------------------------------------------- inputs at the edge


@pytest.mark.parametrize(("channels", "size"), [(1, (16, 16)), (3, (16, 16)), (1, (1, 40))])
def test_small_and_grey_inputs(channels: int, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(channels, 4, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )
    wrapped = wrap(net.eval(), size=size, in_channels=channels)
    model = Model(wrapped.eval(), Classification(CLASSES), preprocess(size, channels))
    image = pictures(1, *size, channels)[0]
    quick = visualize("occlusion", model, image, stage="0", fill="blur").arrays
    slow = visualize("occlusion", model, image, stage="0", fill="blur", way="full").arrays
    np.testing.assert_allclose(quick["probability"], slow["probability"], atol=1e-5)


def test_maps_that_would_fill_the_memory_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(covered, "HELD_BYTES", 5000)
    monkeypatch.setattr(covered, "SMALL", 64)
    model = body_model("strides", (24, 24))
    picture = visualize("occlusion", model, pictures(1, 24, 24), stage="conv1", size=4)
    assert "The whole net ran at every position: its maps take" in picture.note


def test_a_photograph_of_twelve_megapixels() -> None:
    photo = np.zeros((3000, 4000, 3), np.uint8)
    photo[:, 2000:] = 255
    model = conv_model()
    for method in ("occlusion", "saliency", "deconvnet", "grad-cam"):
        assert visualize(method, model, photo).arrays["input"].shape == (1, 8, 8, 3)
    # A net without a size of its own looks at every pixel.
    model.preprocess = preprocess(None)
    assert visualize("saliency", model, photo[::4, ::4]).arrays["saliency"].shape == (1, 750, 1000)
    with pytest.raises(StriateError, match="take a larger stride"):
        visualize("occlusion", model, photo[::4, ::4], size=2, stride=1)


# ---------------------------------------------------------------- Ctrl-C


def test_an_interrupt_leaves_net_and_folder_as_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    draw.save(tmp_path / "image.png", pictures(1, 32, 32)[0])
    net = create_net("lenet5", 3, 3, size=32)
    Model(net, Classification(CLASSES), preprocess((32, 32))).save(tmp_path / "model.safetensors")
    before = sorted(tmp_path.iterdir())

    def stop(*_: object) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Incremental, "_boxes", stop)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Picture, "_drawn", stop)
    for method in ("occlusion", "filters", "feature-maps"):
        said = main(
            ["visualize", method, "model.safetensors", *(["image.png"] if method != "filters" else [])]
        )
        assert said == 130
        assert capsys.readouterr().err.strip() == "striate: interrupted"
        assert sorted(tmp_path.iterdir()) == before
