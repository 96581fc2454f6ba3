"""Recipes: bounds, contradictions, and what is worked out from the data."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from striate.core import settings
from striate.core.errors import StriateError
from striate.train.recipe import (
    FREE,
    Recipe,
    auto_augment,
    auto_batch,
    auto_net,
    auto_rate,
    auto_size,
)


def test_every_setting_has_a_one_line_help() -> None:
    for field in dataclasses.fields(Recipe):
        text = field.metadata["help"]
        assert text.endswith("."), field.name
        assert "\n" not in text
        assert len(text) <= 100, field.name
    assert set(FREE) <= {field.name for field in dataclasses.fields(Recipe)}


def test_goes_through_plain_values_and_back() -> None:
    recipe = Recipe(size=(48, 64), net_options={"width": 8}, milestones=(0.3, 0.6), betas=(0.8, 0.9), lr=1)
    values = settings.to_dict(recipe)
    assert values["size"] == [48, 64]
    assert settings.from_dict(Recipe, values) == recipe
    with pytest.raises(StriateError, match="did you mean 'epochs'"):
        settings.from_dict(Recipe, {"epoch": 3})


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0}, {"epochs": 1.5}, {"batch": 0}, {"lr": 0}, {"lr": -1.0}, {"momentum": 1.0},
        {"ema": 1.0}, {"amp": "float16"}, {"size": 0}, {"size": (0, 5)}, {"val": 1.0}, {"betas": (0.9, 1.0)},
        {"betas": (0.9,)}, {"milestones": (0.7, 0.3)}, {"milestones": (1.5,)}, {"channels": 2},
        {"crop": 0.5, "resize": "squash"}, {"net": None}, {"lr": float("nan")}, {"workers": -1}, {"seed": -1},
    ],
)  # fmt: skip
def test_refuses(wrong: dict) -> None:
    with pytest.raises(StriateError) as caught:
        Recipe(**wrong)
    assert "\n" not in str(caught.value)
    assert next(iter(wrong)) in str(caught.value)


def test_changes_are_checked() -> None:
    assert Recipe().with_(epochs=2).epochs == 2
    with pytest.raises(StriateError, match="epochs"):
        Recipe().with_(epochs=0)
    with pytest.raises(StriateError, match="unknown setting 'epoch'"):
        Recipe().with_(epoch=1)


def test_needs_no_torch() -> None:
    code = "import sys, striate.train.recipe; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_worked_out_from_the_size() -> None:
    assert auto_net(28) == auto_net(64) == "resnet20"
    assert auto_net(128) == auto_net(224) == "resnet18"
    assert auto_size((28, 28), "classification") == (28, 28)
    assert auto_size((8, 20), "classification") == (20, 20)
    assert auto_size((375, 500), "classification") == (224, 224)
    assert auto_size((100, 150), "multi-label") == (128, 128)
    assert auto_size(None, "classification") == (224, 224)
    assert auto_size((512, 512), "segmentation") == (512, 512)
    assert auto_size((1024, 2048), "segmentation") == (256, 512)
    assert auto_size((360, 480), "segmentation") == (352, 480)


def test_batches_leave_an_epoch_twenty_steps() -> None:
    assert auto_batch(50_000, 32) == 128
    assert auto_batch(1_300, 8) == 64
    assert auto_batch(50_000, 224) == 32
    assert auto_batch(100, 224) == 8
    assert auto_batch(3, 224) == 3


def test_only_natural_images_are_mirrored() -> None:
    assert auto_augment((32, 32), 3, "classification") == "pad-crop(4)+flip"
    assert auto_augment((28, 28), 1, "classification") == "pad-crop(2)"
    assert "flip" in auto_augment((224, 224), 3, "classification")
    assert "flip" not in auto_augment((224, 224), 1, "classification")


def test_rates_scale_with_the_batch() -> None:
    assert auto_rate(0.1, 128, normalised=True, adaptive=False) == 0.1
    assert auto_rate(0.1, 64, normalised=True, adaptive=False) == 0.05
    assert auto_rate(0.1, 128, normalised=False, adaptive=False) == 0.025
    assert auto_rate(0.1, 100_000, normalised=True, adaptive=False) == 0.4
    assert auto_rate(1e-3, 32, normalised=False, adaptive=True) == 5e-4
