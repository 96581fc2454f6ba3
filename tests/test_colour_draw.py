"""Colour and drawing: jitter by hand, distinct palettes, pictures that say what they should."""

from __future__ import annotations

import colorsys
import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from striate.core.errors import StriateError
from striate.images import colour, draw
from striate.images.decode import decode

PICTURE = np.random.default_rng(1).integers(60, 190, (12, 17, 3), dtype=np.uint8)
LUMA = np.array([0.299, 0.587, 0.114])


def test_no_jitter_changes_nothing() -> None:
    np.testing.assert_array_equal(colour.jitter(PICTURE), PICTURE)
    np.testing.assert_array_equal(colour.jitter(PICTURE[..., :1]), PICTURE[..., :1])


@given(st.floats(0.7, 1.3), st.floats(0.7, 1.3), st.floats(0, 1.3))
@settings(max_examples=40, deadline=None)
def test_jitter_is_its_three_steps_one_after_the_other(
    brightness: float, contrast: float, saturation: float
) -> None:
    x = PICTURE.astype(float) * brightness
    x = (x @ LUMA).mean() * (1 - contrast) + contrast * x
    x = (x @ LUMA)[..., None] * (1 - saturation) + saturation * x
    # Half a step of rounding, and OpenCV multiplies bytes in fixed point.
    assert abs(colour.jitter(PICTURE, brightness, contrast, saturation) - x.clip(0, 255)).max() <= 0.8


def test_jitter_by_hand() -> None:
    grey = np.array([[[100], [200]]], np.uint8)
    assert colour.jitter(grey, brightness=1.5).ravel().tolist() == [150, 255]
    assert colour.jitter(grey, contrast=0.5).ravel().tolist() == [125, 175]
    assert colour.jitter(grey, saturation=0.0, hue=0.3).ravel().tolist() == [100, 200]
    red = np.array([[[255, 0, 0]]], np.uint8)
    assert colour.jitter(red, saturation=0).tolist() == [[[76, 76, 76]]]


def test_hue_turns_colours_and_leaves_greys_and_luma() -> None:
    grey = np.repeat(PICTURE[..., :1], 3, axis=2)
    assert abs(colour.jitter(grey, hue=0.3).astype(int) - grey).max() <= 1
    muted = (PICTURE.astype(float) * 0.2 + 100).astype(np.uint8)
    turned = colour.jitter(muted, hue=0.25)
    assert abs(turned @ LUMA - muted @ LUMA).max() < 1.5
    np.testing.assert_array_equal(colour.jitter(muted, hue=1.0), muted)
    # A third of a turn brings a muted red near blue or green.
    hue = colorsys.rgb_to_hsv(
        *(colour.jitter(np.array([[[140, 100, 100]]], np.uint8), hue=1 / 3)[0, 0] / 255)
    )[0]
    assert min(abs(hue - 1 / 3), abs(hue - 2 / 3)) < 0.12


def test_grey_is_the_luma() -> None:
    assert colour.to_grey(PICTURE).shape == (12, 17, 1)
    assert abs(colour.to_grey(PICTURE)[..., 0] - PICTURE @ LUMA).max() <= 0.51


@pytest.mark.parametrize("count", [0, 1, 2, 21, 256, 1000])
def test_palettes_are_distinct_and_begin_alike(count: int) -> None:
    colours = colour.palette(count)
    assert colours.shape == (count, 3)
    assert colours.dtype == np.uint8
    assert len({tuple(row) for row in colours.tolist()}) == count
    np.testing.assert_array_equal(colours[:2], colour.palette(2)[:count])


def test_the_first_colours_are_far_apart() -> None:
    colours = colour.palette(10).astype(int)
    apart = [abs(a - b).sum() for i, a in enumerate(colours) for b in colours[:i]]
    assert min(apart) > 60


def test_a_grid_holds_its_pictures() -> None:
    small, grey = PICTURE[:4, :5], PICTURE[:6, :7, 0]
    board = draw.grid([PICTURE, small, grey], columns=2, pad=1, fill=9)
    assert board.shape == (2 * 13 + 1, 2 * 18 + 1, 3)
    np.testing.assert_array_equal(board[1:13, 1:18], PICTURE)
    np.testing.assert_array_equal(board[1 + 4 : 9, 19 + 6 : 30], small[:4, :5])
    np.testing.assert_array_equal(board[17:23, 6:13, 1], grey)
    assert (board[14:, 19:] == 9).all()
    assert draw.grid([PICTURE] * 9, pad=0).shape == (36, 51, 3)
    for images, columns in (([], 2), ([PICTURE], 0)):
        with pytest.raises(StriateError, match="grid"):
            draw.grid(images, columns=columns)


def test_a_mask_is_laid_over_and_ignored_pixels_show_the_picture() -> None:
    mask = np.array([[0, 1], [255, 2]])
    image = np.full((2, 2, 3), 100, np.uint8)
    colours = np.array([[0, 0, 0], [200, 0, 50]], np.uint8)
    shown = draw.overlay_mask(image, mask, colours, alpha=0.5)
    assert shown.tolist() == [[[50] * 3, [150, 50, 75]], [[100] * 3, [100] * 3]]
    assert draw.overlay_mask(image[..., :1], mask).shape == (2, 2, 3)
    with pytest.raises(StriateError, match="mask"):
        draw.overlay_mask(image, mask[:1])


def test_heat_maps_are_signed_about_white() -> None:
    picture = draw.heatmap(np.array([[-2.0, 0.0, 1.0, np.nan, np.inf]]), signed=True)
    assert picture[0, 0].tolist() == list(draw.SIGNED[0])
    assert picture[0, 1].tolist() == [247, 247, 247]
    assert picture[0, 2, 0] > picture[0, 2, 2]
    assert picture[0, 3].tolist() == picture[0, 4].tolist() == list(draw.UNKNOWN)


def test_heat_maps_rise_from_dark_to_bright() -> None:
    picture = draw.heatmap(np.linspace(0, 7, 50)[None])
    assert picture[0, 0].tolist() == list(draw.RISING[0])
    assert picture[0, -1].tolist() == list(draw.RISING[-1])
    assert (np.diff(picture[0] @ LUMA) > -0.5).all()
    assert (
        draw.heatmap(np.array([[5.0]]), low=0, high=10).tolist()
        == draw.heatmap(np.array([[0, 1, 0.5]]))[:, 2:].tolist()
    )


@pytest.mark.parametrize("values", [np.zeros((3, 4)), np.full((2, 2), np.nan), np.array([[-1e308, 1e308]])])
def test_heat_maps_of_flat_and_wild_numbers(values: np.ndarray) -> None:
    with np.errstate(all="raise"):
        for signed in (False, True):
            assert draw.heatmap(values, signed=signed).shape == (*values.shape, 3)


def test_captions_and_bars() -> None:
    captioned = draw.caption(PICTURE, "châtaigne\n栗")
    assert captioned.shape == (12 + 18, 17, 3)
    np.testing.assert_array_equal(captioned[:12], PICTURE)


def test_files_come_back(tmp_path: Path) -> None:
    np.testing.assert_array_equal(decode(draw.save(tmp_path / "a.png", PICTURE)), PICTURE)
    grey = PICTURE[..., :1]
    np.testing.assert_array_equal(decode(draw.encode_png(grey), channels=1), grey)
    assert Image.open(io.BytesIO(draw.encode_png(grey[..., 0]))).mode == "L"
    flat = np.full((16, 16, 3), (200, 30, 90), np.uint8)
    assert abs(decode(draw.save(tmp_path / "a.jpg", flat)).astype(int) - flat).max() < 6
    assert abs(decode(draw.encode_jpeg(flat[..., 0]), channels=1).astype(int) - flat[..., :1]).max() < 3
    with pytest.raises(StriateError, match=r"\.png"):
        draw.save(tmp_path / "a.bmp", PICTURE)
    with pytest.raises(StriateError, match="uint8"):
        draw.encode_png(PICTURE / 255)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jpg", "a.png"]
