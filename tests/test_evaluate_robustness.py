"""Corruptions against their definitions, shifts against slices, and robustness known by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from little_models import CLASSES, conv_model, linear_model, pictures
from striate import cli
from striate.core.errors import StriateError
from striate.data.preprocess import Preprocess
from striate.data.samples import Dataset, Split
from striate.evaluate.corrupted import KINDS, SEVERITIES, STRENGTHS, Corrupted, Shifted, corrupt
from striate.evaluate.evaluate import evaluate
from striate.evaluate.protocols import parse_protocol
from striate.evaluate.robustness import robustness
from striate.images import draw
from striate.model import Model


def smooth(size: int = 32, channels: int = 3) -> np.ndarray:
    """A picture of slow waves, uint8, kept away from black and white."""
    y, x = np.mgrid[:size, :size] * (2 * np.pi / size)
    waves = [np.sin(y + c) * np.cos(2 * x - c) for c in range(channels)]
    return (128 + 60 * np.stack(waves, -1)).astype(np.uint8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [32, 80])
def test_corruptions_grow_with_severity_and_repeat(kind: str, channels: int, size: int) -> None:
    view = pictures(1, size, size, channels)[0] if kind == "blur" else smooth(size, channels)
    kept = view.copy()
    errors = []
    for severity in SEVERITIES:
        spoilt = corrupt(view, kind, severity)
        assert spoilt.shape == view.shape
        assert spoilt.dtype == np.uint8
        np.testing.assert_array_equal(spoilt, corrupt(view, kind, severity))
        errors.append(float(np.square(spoilt.astype(float) - view).mean()))
    assert errors[0] > 0
    assert errors == sorted(errors)
    np.testing.assert_array_equal(view, kept)


def test_noise_has_the_deviation_of_its_severity() -> None:
    view = np.full((200, 200, 3), 128, np.uint8)
    for severity in SEVERITIES[:2]:
        spread = float((corrupt(view, "noise", severity) / 255).std())
        assert spread == pytest.approx(STRENGTHS["noise"][0][severity - 1], rel=0.02)
    # Other images get other noise.
    other = np.full((200, 200, 3), 129, np.uint8)
    assert not np.array_equal(corrupt(view, "noise", 1), corrupt(other, "noise", 1) - 1)


def test_contrast_shrinks_towards_the_mean_colour() -> None:
    view = smooth(70)
    mean = view.reshape(-1, 3).mean(0)
    want = np.rint((view - mean) * 0.3 + mean)
    np.testing.assert_array_equal(corrupt(view, "contrast", 2), want)


def test_blur_is_gaussian() -> None:
    view = np.zeros((101, 101, 1), np.uint8)
    view[50, 50] = 255
    x = np.arange(-50, 51)
    bell = np.exp(-(x**2) / (2 * 2.0**2))
    want = 255 * np.outer(bell, bell) / bell.sum() ** 2
    np.testing.assert_allclose(corrupt(view, "blur", 2)[..., 0], want, atol=0.6)


def test_jpeg_is_pillow_s_of_the_same_quality() -> None:
    import io

    from PIL import Image

    view, file = smooth(64), io.BytesIO()
    Image.fromarray(view).save(file, "JPEG", quality=80)
    want = np.asarray(Image.open(file)).astype(int)
    assert np.abs(corrupt(view, "jpeg", 1).astype(int) - want).mean() < 1.5


def test_severity_of_small_and_large_views() -> None:
    small, large = smooth(64), smooth(65)
    ratio = [np.ptp(corrupt(view, "contrast", 5)) / np.ptp(view) for view in (small, large)]
    assert ratio == pytest.approx([0.15, 0.05], abs=0.02)


def test_shifted_views_are_slices_where_the_image_goes_on() -> None:
    image, how = pictures(1, 40, 40)[0], Preprocess(size=(32, 32), resize="none")
    found = set()
    for number in range(1, 30):
        (view,) = Shifted(number).views(image, how)
        places = [
            (y, x) for y in range(9) for x in range(9) if np.array_equal(view, image[y : y + 32, x : x + 32])
        ]
        assert len(places) == 1
        found |= set(places)
    # Up to 4 pixels either way around the centre crop, which starts at 4.
    assert len(found) > 15
    assert {0, 8} <= {y for y, _ in found} | {x for _, x in found}


def test_beyond_the_image_is_its_mirror_image() -> None:
    image, how = pictures(1, 16, 16)[0], Preprocess(size=(16, 16), resize="none")
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)), mode="reflect")
    slices = [padded[y : y + 16, x : x + 16] for y in range(5) for x in range(5)]
    for number in range(1, 9):
        (view,) = Shifted(number).views(image, how)
        assert sum(np.array_equal(view, part) for part in slices) == 1


def bright_or_dark(side: int = 16) -> Model:
    """Says bright where the sum of all pixels is above the middle grey: shifts and blur cannot change it."""
    ones = torch.ones(side * side)
    return linear_model(torch.stack([-ones, ones]), size=side)


def flat_set() -> Dataset:
    images = np.stack([np.full((16, 16, 1), level, np.uint8) for level in (10, 60, 180, 250)])
    return Dataset("flat", "classification", CLASSES[:2], [Split.from_arrays("test", images, [0, 0, 1, 1])])


def test_a_model_that_sees_brightness_only_is_robust() -> None:
    result = robustness(bright_or_dark(), flat_set())
    assert result.clean == result.mean == result.consistency == 1.0
    assert set(result.accuracy) == {1.0}
    assert result.p == (1.0,) * 20
    text = "\n".join(result.lines())
    assert all(word in text for word in (*KINDS, "severity 5", "two random shifts"))


def test_figures_are_those_of_the_single_protocols(tmp_path: Path) -> None:
    model, images = conv_model(size=8), np.stack(pictures(20, 8, 8))
    with torch.no_grad():
        model.net.fc3.weight.mul_(60)
        model.net.fc3.bias.zero_()
    data = Dataset("some", "classification", CLASSES, [Split.from_arrays("test", images, np.arange(20) % 3)])
    result = robustness(model, data, batch=8)
    for i, (kind, severity) in enumerate(zip(result.corruption, result.severity, strict=True)):
        if severity in (1, 5):
            alone = evaluate(model, data, protocol=f"corrupted({kind}, severity={severity})")
            assert result.accuracy[i] == alone.scores.top1
            assert (result.low[i], result.high[i]) == alone.scores.interval
    shifts = [evaluate(model, data, protocol=f"shifted({n})").scores.predicted for n in (1, 2)]
    assert result.consistency == np.mean(shifts[0] == shifts[1])
    assert result.strength[4] == 0.10
    assert len((result.save(tmp_path / "r.csv")).read_text().splitlines()) == 21


def test_written_form() -> None:
    assert parse_protocol("corrupted(jpeg, 3)") == Corrupted("jpeg", 3)
    assert str(Corrupted("jpeg", 3)) == "corrupted(jpeg, severity=3)"
    with pytest.raises(StriateError, match="unknown kind 'rain'; allowed: blur"):
        parse_protocol("corrupted(rain)")


def test_corruptions_are_for_classification() -> None:
    data = Dataset("masks", "segmentation", CLASSES, [Split.from_arrays("test", np.stack(pictures(1)))])
    with pytest.raises(StriateError, match="are for classification"):
        robustness(conv_model("segmentation"), data)


def test_corruptions_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from striate.nets.net import create_net

    torch.manual_seed(0)
    net = create_net("linear", 2, size=8).eval()
    task = type(conv_model().task)(CLASSES[:2])
    path = Model(net, task, Preprocess(size=(8, 8))).save(tmp_path / "m.safetensors")
    for name in CLASSES[:2]:
        for i, image in enumerate(pictures(3, 10, 9)):
            draw.save(tmp_path / "set" / name / f"{i}.png", image)
    words = ["evaluate", str(path), str(tmp_path / "set"), "--corruptions", "--threads", "1"]
    assert cli.main(words) == 0
    assert "contrast" in capsys.readouterr().out
