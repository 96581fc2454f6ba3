"""Matrices and the warp: by hand, against a second way to compute each, and as properties."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from image_sets import noise
from striate.core.errors import StriateError
from striate.images import geometry as g


def smooth(h: int, w: int) -> np.ndarray:
    """A float32 picture whose value at any point (x, y) is known: 2 x + 3 y + 5, at the pixel's centre."""
    y, x = np.mgrid[0:h, 0:w] + 0.5
    return (2 * x + 3 * y + 5).astype(np.float32)


def by_points(image: np.ndarray, matrix: np.ndarray, size: tuple[int, int], fill: float = 0.0) -> np.ndarray:
    """Bilinear warp of (H, W), one output pixel at a time, outside is `fill`."""
    padded = np.pad(image.astype(float), 1, constant_values=fill)
    result = np.full(size, fill, float)
    for row in range(size[0]):
        for column in range(size[1]):
            x, y = g.transform_points([(column + 0.5, row + 0.5)], np.linalg.inv(matrix))[0] - 0.5
            left, top = math.floor(x), math.floor(y)
            if -1 <= left < image.shape[1] and -1 <= top < image.shape[0]:
                part = padded[top + 1 : top + 3, left + 1 : left + 3]
                fx, fy = x - left, y - top
                result[row, column] = np.array([1 - fy, fy]) @ part @ np.array([1 - fx, fx])
    return result


def test_matrices_by_hand() -> None:
    cases = [
        (g.identity(), (3, 4), (3, 4)),
        (g.translate(2, -1), (3, 4), (5, 3)),
        (g.scale(2), (3, 4), (6, 8)),
        (g.scale(2, 3, center=(1, 1)), (3, 4), (5, 10)),
        (g.rotate(90), (1, 0), (0, -1)),
        (g.rotate(180, center=(2, 2)), (3, 4), (1, 0)),
        (g.shear(45), (3, 4), (7, 4)),
        (g.shear(0, 45, center=(1, 0)), (3, 4), (3, 6)),
        (g.flip(10), (3, 4), (7, 4)),
        (g.compose(g.translate(1, 0), g.scale(2)), (3, 4), (8, 8)),
        (g.crop_resize((10, 20, 30, 60), (20, 20)), (20, 40), (10, 10)),
    ]
    for matrix, point, expected in cases:
        np.testing.assert_allclose(g.transform_points([point], matrix), [expected], atol=1e-12)


def test_the_evaluation_view_is_resize_then_centre_crop() -> None:
    # 375 x 500 to 256 on the shorter side, then the middle 224: the box is 328.125 pixels in the input.
    matrix = g.center_crop_matrix(375, 500, (224, 224), 0.875)
    corners = g.transform_points(
        [(250 - 164.0625, 187.5 - 164.0625), (250 + 164.0625, 187.5 + 164.0625)], matrix
    )
    np.testing.assert_allclose(corners, [(0, 0), (224, 224)], atol=1e-9)
    tall = g.center_crop_matrix(200, 100, (50, 100))
    np.testing.assert_allclose(
        g.transform_points([(0, 75), (100, 125)], tall), [(0, 0), (100, 50)], atol=1e-9
    )


@pytest.mark.parametrize("interpolation", g.INTERPOLATIONS)
@pytest.mark.parametrize("shape", [(9, 13), (9, 13, 1), (9, 13, 3)])
def test_exact_moves_of_the_pixel_grid(interpolation: str, shape: tuple[int, ...]) -> None:
    image = noise(*shape)
    turn = g.compose(g.translate(-6.5, -4.5), g.rotate(90), g.translate(4.5, 6.5))
    upside = g.compose(g.translate(-6.5, -4.5), g.rotate(180), g.translate(6.5, 4.5))
    for matrix, expected in [
        (g.identity(), image),
        (g.flip(13), image[:, ::-1]),
        (turn, np.rot90(image)),
        (upside, image[::-1, ::-1]),
        (g.translate(-3, -2), np.pad(image[2:, 3:], [(0, 2), (0, 3)] + [(0, 0)] * (image.ndim - 2))),
    ]:
        result = g.warp(image, matrix, expected.shape[:2], interpolation)
        assert result.dtype == image.dtype
        np.testing.assert_array_equal(result, expected)


def test_the_result_is_never_a_view_of_the_input() -> None:
    image = noise(6, 6, 3)
    before = image.copy()
    for interpolation in g.INTERPOLATIONS:
        result = g.warp(image, g.translate(-1, -1), (5, 5), interpolation, "edge")
        result[:] = 0
        np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize(
    ("mode", "border"), [("edge", "edge"), ("reflect", "reflect"), ("constant", "constant")]
)
@pytest.mark.parametrize("interpolation", g.INTERPOLATIONS)
def test_borders_are_those_of_numpy(mode: str, border: str, interpolation: str) -> None:
    image = noise(6, 7, 3)
    expected = np.pad(image, [(3, 3), (4, 4), (0, 0)], mode=mode)
    np.testing.assert_array_equal(g.warp(image, g.translate(4, 3), (12, 15), interpolation, border), expected)


def test_fill_for_each_channel() -> None:
    image = noise(4, 4, 3)
    for interpolation in ("bilinear", "nearest"):
        result = g.warp(image, g.translate(2, 0), (4, 6), interpolation, fill=(1, 2, 3))
        np.testing.assert_array_equal(
            result[:, :2], np.broadcast_to(np.array([1, 2, 3], np.uint8), (4, 2, 3))
        )
        np.testing.assert_array_equal(result[:, 2:], image)


MOVES = st.tuples(
    st.floats(-40, 40), st.floats(0.8, 2.5), st.floats(0.8, 2.5), st.floats(-20, 20), st.floats(-4, 4)
)


@given(MOVES)
@settings(max_examples=40, deadline=None)
def test_bilinear_is_the_sum_over_four_neighbours(move: tuple[float, ...]) -> None:
    turn, sx, sy, slant, shift = move
    matrix = g.compose(
        g.rotate(turn, (4, 5)),
        g.scale(sx, sy, (4, 4)),
        g.shear(slant, 0, (4, 4)),
        g.translate(shift, shift / 2),
    )
    image = noise(9, 8, seed=3).astype(np.float32)
    # OpenCV may place a point on a grid of 1/32 pixel: an error of at most 1/64 of the step in each axis.
    limit = 2 * 255 / 64 + 0.1
    assert (
        abs(g.warp(image, matrix, (10, 11), fill=7) - by_points(image, matrix, (10, 11), fill=7)).max()
        < limit
    )


@given(MOVES)
@settings(max_examples=40, deadline=None)
def test_a_plane_stays_a_plane(move: tuple[float, ...]) -> None:
    turn, sx, sy, slant, shift = move
    h, w = 40, 50
    matrix = g.compose(
        g.rotate(turn, (25, 20)), g.scale(sx, sy, (25, 20)), g.shear(slant), g.translate(shift, 1)
    )
    centres = np.stack(np.meshgrid(np.arange(30) + 0.5, np.arange(20) + 0.5), axis=-1).reshape(-1, 2)
    source = g.transform_points(centres, np.linalg.inv(matrix))
    expected = source @ [2, 3] + 5
    inside = ((source > 3) & (source < [w - 3, h - 3])).all(axis=1)
    # OpenCV's cubic (a = -0.75) and its averages over parts of pixels bend a plane a little.
    for interpolation, limit in (("bilinear", 0.1), ("bicubic", 0.5), ("area", 0.5)):
        result = g.warp(smooth(h, w), matrix, (20, 30), interpolation).ravel()
        assert abs(result - expected)[inside].max(initial=0) < limit


@given(st.integers(0, 30), st.integers(0, 30), st.integers(4, 40), st.integers(4, 40), st.booleans())
@settings(max_examples=40, deadline=None)
def test_the_fast_path_and_the_warp_agree(x: int, y: int, bw: int, bh: int, mirrored: bool) -> None:
    image = smooth(70, 70)
    size = (bh, round(bw * 0.9) + 1)
    matrix = g.crop_resize((x, y, x + bw, y + bh), size)
    if mirrored:
        matrix = g.compose(matrix, g.flip(size[1]))
    nearly = g.compose(g.shear(1e-9), matrix)
    for interpolation in ("bilinear", "area"):
        fast, slow = (g.warp(image, m, size, interpolation, "edge") for m in (matrix, nearly))
        # The fast path cuts the box out first: its edge pixels do not see what lies beyond.
        np.testing.assert_allclose(fast[2:-2, 2:-2], slow[2:-2, 2:-2], atol=0.4)


def test_nearest_takes_the_pixel_that_contains_the_point() -> None:
    labels = np.array([[1, 2], [3, 70000]], np.int32)
    doubled = g.warp(labels, g.scale(2), (4, 4), "nearest")
    assert doubled.dtype == np.int32
    np.testing.assert_array_equal(doubled, np.kron(labels, np.ones((2, 2), int)))
    third = g.resize(np.arange(9, dtype=np.int64)[None], (1, 3), "nearest")
    assert third.tolist() == [[1, 4, 7]]
    turned = g.warp(labels, g.rotate(45, (1, 1)), (2, 2), "nearest", fill=255)
    assert set(turned.ravel().tolist()) <= {1, 2, 3, 70000, 255}


@given(st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_a_mask_moves_as_its_image_does(seed: int) -> None:
    rng = np.random.default_rng(seed)
    matrix = g.compose(
        g.rotate(rng.uniform(-30, 30), (20, 20)), g.scale(rng.uniform(0.8, 2)), g.translate(1, 2)
    )
    mask = np.zeros((40, 40), np.int32)
    mask[10:30, 5:25] = 1
    picture = g.warp((mask * 255).astype(np.uint8), matrix, (32, 32))
    moved = g.warp(mask, matrix, (32, 32), "nearest")
    sure = (picture < 20) | (picture > 235)
    np.testing.assert_array_equal(moved[sure] == 1, picture[sure] > 127)


def test_shrinking_averages_over_areas() -> None:
    # A board of single pixels has the mean 127.5; without averaging it would alias to black, white or bands.
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    turned = g.compose(g.rotate(30, (32, 32)), g.scale(1 / 4))
    for interpolation in ("bilinear", "bicubic", "area"):
        for matrix in (g.scale(1 / 4), turned, g.crop_resize((0.5, 0.5, 60.5, 60.5), (16, 16))):
            middle = g.warp(board, matrix, (16, 16), interpolation, "edge")[4:12, 4:12]
            assert abs(middle.astype(float) - 127.5).max() < 20
    np.testing.assert_array_equal(
        g.resize(noise(12, 8, 3), (3, 2), "area"),
        np.rint(noise(12, 8, 3).reshape(3, 4, 2, 4, 3).mean((1, 3))),
    )
    # One axis alone: the other keeps its fine pattern.
    stripes = np.tile((np.arange(64) % 2 * 255).astype(np.uint8), (64, 1))
    np.testing.assert_array_equal(g.resize(stripes, (8, 64)), stripes[:8])


def test_evaluation_is_pillows_antialiased_bicubic() -> None:
    image = np.asarray(Image.fromarray(noise(25, 40, 3)).resize((200, 125), Image.Resampling.BICUBIC))
    h, w = image.shape[:2]
    for size, crop in [((96, 96), 0.875), ((50, 70), 1.0), ((140, 150), 0.9)]:
        view = g.warp(image, g.center_crop_matrix(h, w, size, crop), size, "bicubic")
        factor = max(size[0] / h, size[1] / w) / crop
        shape = (round(w * factor), round(h * factor))
        resized = Image.fromarray(image).resize(shape, Image.Resampling.BICUBIC)
        top, left = round((shape[1] - size[0]) / 2), round((shape[0] - size[1]) / 2)
        cut = np.asarray(resized)[top : top + size[0], left : left + size[1]]
        # Whole-pixel sizes and cuts shift the picture of the two-step way by a fraction of a pixel.
        assert abs(view.astype(int) - cut).mean() < 9
    exact = np.asarray(Image.fromarray(image).resize((60, 50), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(g.resize(image, (50, 60), "bicubic"), exact)
    np.testing.assert_array_equal(g.resize(image[..., :1], (50, 60), "bicubic")[..., 0], exact[..., 0])


@given(st.floats(0, 40), st.floats(0, 30), st.floats(20, 150), st.floats(20, 90))
@settings(max_examples=30, deadline=None)
def test_a_bicubic_box_sees_its_surroundings_as_pillow_does(x: float, y: float, bw: float, bh: float) -> None:
    # Within 60..190 nothing is clipped between Pillow's two passes, whose order depends on the whole size.
    image = noise(125, 200, 3) // 2 + 60
    box = (x, y, x + bw, y + bh)
    expected = np.asarray(Image.fromarray(image).resize((32, 24), Image.Resampling.BICUBIC, box=box))
    result = g.warp(image, g.crop_resize(box, (24, 32)), (24, 32), "bicubic")
    assert abs(result.astype(int) - expected).max() <= 2


@pytest.mark.parametrize(
    "dtype", [np.bool_, np.uint8, np.int16, np.uint16, np.int32, np.int64, np.float16, np.float32, np.float64]
)
def test_every_dtype_is_kept(dtype: type) -> None:
    image = (np.indices((8, 8)).sum(0) % 3 > 0).astype(dtype)
    for interpolation in g.INTERPOLATIONS:
        assert g.warp(image, g.rotate(20, (4, 4)), (5, 6), interpolation).dtype == dtype
        np.testing.assert_array_equal(g.warp(image, g.identity(), (8, 8), interpolation), image)


def test_long_pictures_are_warped_too() -> None:
    image = np.repeat(np.arange(256, dtype=np.uint8), 200)[None].repeat(2, 0)
    result = g.warp(image, g.compose(g.scale(1 / 200, 1), g.rotate(0.001)), (2, 256), "bilinear", "edge")
    assert abs(result[0].astype(int) - np.arange(256)).max() <= 1


def test_wrong_calls_say_what_is_allowed() -> None:
    image = noise(4, 4)
    for arguments, reason in [
        ((image, g.identity(), (4, 4), "bilinar"), "bilinear"),
        ((image, g.identity(), (4, 4), "nearest", "wrap"), "border"),
        ((image, g.identity(), (0, 4)), "1x1"),
        ((image[:0], g.identity(), (4, 4)), "shape"),
        ((image, g.scale(0), (4, 4)), "no inverse"),
        ((image, np.array([[1, 0, 0], [0, 1, 0], [0.01, 0, 1]]), (4, 4)), "affine"),
    ]:
        with pytest.raises(StriateError, match=reason):
            g.warp(*arguments)
    with pytest.raises(StriateError, match="empty"):
        g.crop_resize((3, 0, 3, 5), (4, 4))
