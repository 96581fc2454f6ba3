"""Each geometric augmentation of one image against a slow reference: loops over pixels."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from image_sets import noise, smooth
from striate.core.errors import StriateError
from striate.data import philox
from striate.data.augment import parse
from striate.data.augment_geometry import Lens, ScaleJitter
from striate.data.loaders import Loader
from striate.data.preprocess import Preprocess
from striate.data.samples import Split

HEIGHT, WIDTH = 18, 24
VIEW = Preprocess(size=(HEIGHT, WIDTH), mean=(0.2, 0.4, 0.6))
Map = Callable[[float, float], tuple[float, float]]


def seen_through(
    image: np.ndarray, source: Map, border: str, size: tuple[int, int] | None = None
) -> np.ndarray:
    """The view whose pixel centres show the points `source` of the image, bilinear, one pixel at a time."""
    height, width, channels = image.shape
    out = np.zeros((*(size or (height, width)), channels))

    def pixel(row: int, column: int) -> np.ndarray:
        if border == "reflect":
            row, column = (
                abs((i + n - 1) % (2 * n - 2) - (n - 1)) for i, n in ((row, height), (column, width))
            )
        elif border == "edge":
            row, column = min(max(row, 0), height - 1), min(max(column, 0), width - 1)
        elif not (0 <= row < height and 0 <= column < width):
            return np.array(VIEW.fill, float)
        return image[row, column].astype(float)

    for row in range(out.shape[0]):
        for column in range(out.shape[1]):
            x, y = source(column + 0.5, row + 0.5)
            left, top = math.floor(x - 0.5), math.floor(y - 0.5)
            a, b = x - 0.5 - left, y - 0.5 - top
            upper = (1 - a) * pixel(top, left) + a * pixel(top, left + 1)
            lower = (1 - a) * pixel(top + 1, left) + a * pixel(top + 1, left + 1)
            out[row, column] = (1 - b) * upper + b * lower
    return out


def agree(text: str, source: Callable[[np.ndarray], Map], border: str = "reflect", count: int = 3) -> None:
    """The pipeline's view of a smooth image is the one through `source`, for several draws."""
    pipeline, image = parse(text), smooth()
    for u in pipeline.draw(4, 1, range(count)):
        expected = seen_through(image, source(u), border)
        assert np.abs(pipeline.view(image, u, VIEW) - expected).max() <= 2.5


CX, CY = WIDTH / 2, HEIGHT / 2


def spread(u: float) -> float:
    return 2 * float(u) - 1


def test_vertical_flip() -> None:
    image = noise(HEIGHT, WIDTH, 3)
    pipeline = parse("vertical-flip")
    np.testing.assert_array_equal(pipeline.view(image, np.array([0.4]), VIEW), image[::-1])
    np.testing.assert_array_equal(pipeline.view(image, np.array([0.6]), VIEW), image)
    stack = np.stack([image, 255 - image])
    both = parse("vertical-flip(1)+flip(1)").batch(stack, np.array([1, 0]), np.full((2, 2), 0.3), VIEW)
    np.testing.assert_array_equal(both, stack[[1, 0], ::-1, ::-1])


def test_translate_moves_by_whole_pixels_of_the_fraction() -> None:
    image = noise(HEIGHT, WIDTH, 3)
    pipeline = parse("translate(0.2, border=zero)")
    shifts = set()
    for u in pipeline.draw(0, 0, range(60)):
        dx, dy = math.floor(u[0] * 9) - 4, math.floor(u[1] * 7) - 3
        expected = np.empty_like(image)
        expected[...] = VIEW.fill
        expected[max(dy, 0) : HEIGHT + min(dy, 0), max(dx, 0) : WIDTH + min(dx, 0)] = image[
            max(-dy, 0) : HEIGHT - max(dy, 0), max(-dx, 0) : WIDTH - max(dx, 0)
        ]
        np.testing.assert_array_equal(pipeline.view(image, u, VIEW), expected)
        shifts.add((dx, dy))
    assert {dx for dx, _ in shifts} == set(range(-4, 5))
    assert {dy for _, dy in shifts} == set(range(-3, 4))


def turned(u: float, degrees: float) -> Map:
    angle = math.radians(spread(u) * degrees)
    cos, sin = math.cos(angle), math.sin(angle)
    # Counter-clockwise as seen: what was at (dx, dy) comes to (cos dx + sin dy, -sin dx + cos dy).
    return lambda x, y: (
        CX + cos * (x - CX) - sin * (y - CY),
        CY + sin * (x - CX) + cos * (y - CY),
    )


def stretched(u: np.ndarray, factor: float) -> Map:
    fx, fy = ((1 + factor) ** spread(x) for x in u)
    return lambda x, y: (CX + (x - CX) / fx, CY + (y - CY) / fy)


def bent(u: float, strength: float) -> Map:
    k = spread(u) * strength

    def source(x: float, y: float) -> tuple[float, float]:
        dx, dy = x - CX, y - CY
        r = math.hypot(dx, dy) / math.hypot(CX, CY)
        curve = 1 + k * r * r if r <= 1 else ((1 + k) + (1 + 3 * k) * (r - 1)) / r
        return CX + dx * curve, CY + dy * curve

    return source


@pytest.mark.parametrize("border", ["reflect", "zero", "edge"])
def test_rotate(border: str) -> None:
    agree(f"rotate(40, border={border})", lambda u: turned(u[0], 40), border)


def test_stretch() -> None:
    agree("stretch(0.4)", lambda u: stretched(u, 0.4))


def test_shear() -> None:
    def source(u: np.ndarray) -> Map:
        a, b = (math.tan(math.radians(spread(x) * 25)) for x in u)

        def old(x: float, y: float) -> tuple[float, float]:
            y = y - b * (x - CX)
            return x - a * (y - CY), y

        return old

    agree("shear(25)", source)


@pytest.mark.parametrize("border", ["reflect", "zero", "edge"])
def test_lens(border: str) -> None:
    agree(f"lens(0.3, border={border})", lambda u: bent(u[0], 0.3), border)


def test_lens_and_affine_steps_are_one_warp_in_the_written_order() -> None:
    def source(u: np.ndarray) -> Map:
        first, middle, last = turned(u[0], 20), bent(u[1], 0.3), stretched(u[2:], 0.3)
        return lambda x, y: first(*middle(*last(x, y)))

    agree("rotate(20)+lens(0.3)+stretch(0.3)", source)


@given(st.floats(0.001, 0.999), st.floats(-40, 60), st.floats(-40, 60))
@settings(max_examples=60)
def test_points_go_where_the_lens_shows_them(u: float, x: float, y: float) -> None:
    lens, drawn = Lens(0.3), np.array([u])
    point = np.array([x, y])
    back = lens.places(lens.sources(point, drawn, 20, 30), drawn, 20, 30)
    np.testing.assert_allclose(back, point, atol=1e-6)


def test_a_lens_bends_the_edges_of_a_box() -> None:
    """What encloses a bent box is found along its edges: its corners alone would miss the middle."""
    pipeline, view = parse("lens(0.3)"), Preprocess(size=(100, 100))
    u = np.array([0.999])
    x0, y0, x1, y1 = pipeline.boxes_view([[10, 10, 90, 90]], u, (100, 100), view)[0]
    corner = pipeline.places([[10.0, 10.0]], u, (100, 100), view)[0]
    middle = pipeline.places([[10.0, 50.0]], u, (100, 100), view)[0]
    assert middle[0] < corner[0] - 1
    np.testing.assert_allclose(
        [x0, y0, x1, y1], [middle[0], middle[0], 100 - middle[0], 100 - middle[0]], atol=1e-6
    )


# ------------------------------------------------------------------ crops at jittered scale


@pytest.mark.parametrize(("height", "width"), [(60, 80), (90, 60)])
def test_scale_jitter_is_a_crop_of_the_scaled_image(height: int, width: int) -> None:
    image, view = smooth(height, width, 7), Preprocess(size=(32, 32))
    pipeline = parse("scale-jitter(60, 72)")
    step = pipeline.steps[0]
    assert isinstance(step, ScaleJitter)
    for u in pipeline.draw(1, 0, range(6)):
        side = step.side(u)
        assert 60 <= side <= 72
        unit = 60 / side
        x0, y0, x1, y1 = step.box(u, height, width, (32, 32))
        np.testing.assert_allclose([x1 - x0, y1 - y0], 32 * unit)
        assert 0 <= x0 <= x1 <= width + 1e-9
        assert 0 <= y0 <= y1 <= height + 1e-9
        expected = seen_through(image, lambda x, y: (x0 + x * unit, y0 + y * unit), "edge", (32, 32))  # noqa: B023
        assert np.abs(pipeline.view(image, u, view) - expected).max() <= 2.5


def test_scale_jitter_draws_every_side_and_place() -> None:
    step = ScaleJitter(256, 260)
    u = philox.uniforms(0, 0, np.arange(3000), 3)
    sides, counts = np.unique([step.side(row) for row in u], return_counts=True)
    assert sides.tolist() == [256, 257, 258, 259, 260]
    assert np.abs(counts - 600).max() < 120
    boxes = np.array([ScaleJitter(256).box(row, 375, 500, (224, 224)) for row in u])
    # 224 of 256 on an image of 375 are 328.125 pixels, rounded.
    assert set((boxes[:, 2:] - boxes[:, :2]).ravel()) == {328.0}
    assert (boxes[:, 0].min(), boxes[:, 2].max()) == (0, 500)
    assert (boxes[:, 1].min(), boxes[:, 3].max()) == (0, 375)
    assert abs(boxes[:, 0].mean() - (500 - 328) / 2) < 5
    assert ScaleJitter(384).side(u[0]) == 384
    assert parse("scale-jitter(256, 512)").text == "scale-jitter(low=256, high=512)"
    enough = parse("scale-jitter(256,512)").at_least(np.array([0.9999, 0, 0]), Preprocess(size=(224, 224)))
    assert callable(enough)
    assert enough(512, 600)
    assert not enough(600, 511)


def test_scale_jitter_refuses_crops_larger_than_the_image() -> None:
    with pytest.raises(StriateError, match="at least 224"):
        parse("scale-jitter(200)").view(smooth(40, 50), np.full(3, 0.5), Preprocess(size=(224, 224)))
    with pytest.raises(StriateError, match="smaller one first"):
        parse("scale-jitter(300, 256)")


@pytest.mark.parametrize("text", ["pad-crop(3)", "rotate(15)", "affine(rotate=15)", "pad-crop(3)+rotate(15)"])
def test_a_padded_view_keeps_its_bars_when_it_moves(text: str) -> None:
    """The picture has 10 of 24 lines, the rest is its mean."""
    view = Preprocess(size=(24, 24), resize="pad", mean=(0.5, 0.5, 0.5))
    image, mask = np.full((10, 24, 3), 255, np.uint8), np.zeros((10, 24), np.int32)
    pipeline, mirrored = parse(text), parse(text.replace(")", ", border=reflect)", 1))
    for u in pipeline.draw(4, 1, range(4)):
        seen = pipeline.view(image, u, view)
        assert 0.3 < (seen > 250).all(-1).mean() < 0.45
        assert np.median(seen) == 128
        assert 0.3 < (pipeline.mask_view(mask, u, view) == 0).mean() < 0.45
        assert (mirrored.view(image, u, view) == 255).all()


@pytest.mark.parametrize("augment", ["pad-crop(4)", "pad-crop(4)+flip", "affine(rotate=20)"])
def test_a_padded_view_is_the_same_from_memory_and_from_files(augment: str) -> None:
    split = Split.from_arrays("train", np.stack([noise(16, 16, 3, seed=k) for k in range(12)]), np.arange(12))
    view = Preprocess(size=(16, 16), resize="pad", mean=(0.5, 0.4, 0.3))
    how = {"batch": 4, "seed": 2, "train": True, "augment": augment}
    memory, files = (Loader(split, view, mode=mode, **how) for mode in ("memory", "stream"))
    for one, other in zip(memory.batches(1), files.batches(1), strict=True):
        np.testing.assert_array_equal(one.images, other.images)


def test_the_order_of_steps_does_not_choose_the_border() -> None:
    view = Preprocess(size=(16, 16))
    for text in ("pad-crop(2)+trivial-augment", "trivial-augment+pad-crop(2)"):
        assert parse(text).border(view) == "reflect"
    assert parse("trivial-augment").border(view) == "constant"
    assert parse("trivial-augment+pad-crop(2, edge)").border(view) == "edge"
