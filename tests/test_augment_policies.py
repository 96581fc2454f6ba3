"""RandAugment and TrivialAugment: their lists, their ranges, and each operation beside Pillow's."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from striate.core.errors import StriateError
from striate.data.augment import parse
from striate.data.augment_policies import OPERATIONS, Policy, RandAugment, TrivialAugment
from striate.data.preprocess import Preprocess
from striate.images import geometry

VIEW = Preprocess(size=(40, 48), mean=(0.5,))
FILL = (128, 128, 128)


def picture() -> np.ndarray:
    coarse = np.random.default_rng(1).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    return geometry.resize(coarse, (40, 48), "bicubic").reshape(40, 48, 3)


def numbers(step: Policy, operation: str, positive: bool, level: float = 1.0) -> np.ndarray:
    """The draws of one image that ask for this operation alone."""
    chosen = (OPERATIONS.index(operation) + 0.5) / len(OPERATIONS)
    sign = 0.9 if positive else 0.1
    return np.array([chosen, sign] if isinstance(step, RandAugment) else [chosen, sign, level - 1e-6])


def test_operations_are_drawn_evenly_and_with_signs() -> None:
    pipeline = parse("rand-augment(2, 6)")
    step = pipeline.steps[0]
    assert isinstance(step, RandAugment)
    operations, strengths = step.drawn(pipeline.draw(0, 0, np.arange(7000)))
    assert operations.shape == strengths.shape == (7000, 2)
    counts = np.bincount(operations.ravel(), minlength=14)
    assert len(counts) == 14
    assert np.abs(counts - 1000).max() < 160
    assert set(np.abs(strengths).ravel()) == {0.6}
    assert abs(strengths.mean()) < 0.03
    # With replacement.
    assert 380 < (operations[:, 0] == operations[:, 1]).sum() < 620


def test_trivial_augment_draws_one_operation_at_any_of_31_strengths() -> None:
    step = TrivialAugment()
    operations, strengths = step.drawn(parse("trivial-augment").draw(0, 0, np.arange(6000)))
    assert operations.shape == strengths.shape == (6000, 1)
    levels, counts = np.unique(np.rint(np.abs(strengths) * 30), return_counts=True)
    assert levels.tolist() == list(range(31))
    assert np.abs(counts - 6000 / 31).max() < 75
    assert set(np.unique(operations)) == set(range(14))


@pytest.mark.parametrize("step", [RandAugment(1, 10), TrivialAugment()], ids=["rand", "trivial"])
@pytest.mark.parametrize("positive", [True, False])
def test_geometry_is_the_published_one(step: Policy, positive: bool) -> None:
    sign, wide = 1 if positive else -1, isinstance(step, TrivialAugment)
    shear, turn = (0.99, 135) if wide else (0.3, 30)
    across, down = (32, 32) if wide else (150 / 331 * 48, 150 / 331 * 40)
    cos, sin = math.cos(math.radians(sign * turn)), math.sin(math.radians(sign * turn))
    expected = {
        "shear-x": [[1, sign * shear, 0], [0, 1, 0]],
        "shear-y": [[1, 0, 0], [sign * shear, 1, 0]],
        "translate-x": [[1, 0, sign * across], [0, 1, 0]],
        "translate-y": [[1, 0, 0], [0, 1, sign * down]],
        "rotate": [[cos, sin, 24 - 24 * cos - 20 * sin], [-sin, cos, 20 + 24 * sin - 20 * cos]],
    }
    for name in OPERATIONS:
        found = step.matrices(numbers(step, name, positive)[None], 40, 48)[0]
        np.testing.assert_allclose(found[:2], expected.get(name, np.eye(3)[:2]), atol=1e-9)


def test_shear_looks_like_pillows() -> None:
    image, step = picture(), RandAugment(1, 10)
    u = numbers(step, "shear-x", True)
    # Pillow's affine says where each new pixel comes from: the inverse of ours.
    expected = Image.fromarray(image).transform(
        (48, 40), Image.Transform.AFFINE, (1, -0.3, 0, 0, 1, 0), Image.Resampling.BILINEAR, fillcolor=FILL
    )
    found = parse("rand-augment(1, 10)").view(image, u, VIEW).astype(int)
    inside = np.add.outer(-0.3 * np.arange(40), np.arange(48)) > 1
    assert np.abs(found - np.asarray(expected))[inside].max() <= 3
    assert (found[30, 2] == FILL).all()


@pytest.mark.parametrize("step", [RandAugment(1, 10), TrivialAugment()], ids=["rand", "trivial"])
@pytest.mark.parametrize("positive", [True, False])
def test_values_are_pillows(step: Policy, positive: bool) -> None:
    image = picture()
    plain = Image.fromarray(image)
    wide = isinstance(step, TrivialAugment)
    factor = 1 + (1 if positive else -1) * (0.99 if wide else 0.9)
    expected = {
        "auto-contrast": ImageOps.autocontrast(plain),
        "equalize": ImageOps.equalize(plain),
        "solarize": ImageOps.solarize(plain, 0),
        "posterize": ImageOps.posterize(plain, 2 if wide else 4),
        "colour": ImageEnhance.Color(plain).enhance(factor),
        "contrast": ImageEnhance.Contrast(plain).enhance(factor),
        "brightness": ImageEnhance.Brightness(plain).enhance(factor),
        "sharpness": ImageEnhance.Sharpness(plain).enhance(factor),
    }
    for name in OPERATIONS:
        found = step.change(image, numbers(step, name, positive), FILL).astype(int)
        assert np.abs(found - np.asarray(expected.get(name, plain))).max() <= 2, name


def test_strength_nothing_changes_nothing() -> None:
    """All operations count from the image itself, but for the two that know no strength."""
    image, step = picture(), RandAugment(1, 0)
    for name in set(OPERATIONS) - {"auto-contrast", "equalize"}:
        found = parse("rand-augment(1, 0)").view(image, numbers(step, name, False), VIEW)
        np.testing.assert_array_equal(found, image)


def test_geometry_first_then_values_in_order() -> None:
    image, step = picture(), RandAugment(2, 5)
    pipeline = parse("rand-augment(2, 5)")
    u = np.concatenate([numbers(step, "solarize", True), numbers(step, "rotate", True)])
    turned = geometry.warp(image, geometry.rotate(15, (24, 20)), (40, 48), fill=FILL)
    expected = np.where(turned < 128, turned, 255 - turned)
    assert (pipeline.view(image, u, VIEW) != expected).mean() < 0.01
    boxes = pipeline.boxes_view([[20, 10, 30, 20]], u, (40, 48), VIEW)
    corners = geometry.transform_points(
        [[20, 10], [30, 10], [20, 20], [30, 20]], geometry.rotate(15, (24, 20))
    )
    np.testing.assert_allclose(boxes[0], [*corners.min(axis=0), *corners.max(axis=0)], atol=1e-9)


def test_borders_follow_other_steps() -> None:
    view = Preprocess(size=(8, 8))
    assert parse("trivial-augment").border(view) == "constant"
    assert parse("pad-crop(2)+trivial-augment").border(view) == "reflect"
    assert parse("rotate(5)").border(view) == "reflect"
    assert parse("rotate(5)+pad-crop(1, edge)").border(view) == "edge"
    assert parse("flip+vertical-flip").border(view) == "edge"
    with pytest.raises(StriateError, match="one border"):
        parse("rotate(5, border=zero)+lens(border=edge)")
