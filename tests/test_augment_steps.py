"""Each augmentation of one image against a slow reference: loops over pixels, and Pillow."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter
from scipy.special import ndtri

from striate.core.errors import StriateError
from striate.data import philox
from striate.data.augment import Pipeline, parse
from striate.data.augment_geometry import Lens, ScaleJitter
from striate.data.augment_values import IMAGENET, RandomErasing, normals, principal_colours, words
from striate.data.preprocess import Preprocess
from striate.data.samples import Split
from striate.images import geometry, tone

HEIGHT, WIDTH = 18, 24
VIEW = Preprocess(size=(HEIGHT, WIDTH), mean=(0.2, 0.4, 0.6))
Map = Callable[[float, float], tuple[float, float]]


def smooth(height: int = HEIGHT, width: int = WIDTH, seed: int = 3) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(20, 236, (4, 5, 3), dtype=np.uint8)
    return geometry.resize(coarse, (height, width), "bicubic").reshape(height, width, 3)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


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


# ------------------------------------------------------------------ values


def test_pca_colour_adds_one_colour_to_all_pixels() -> None:
    image = noise(HEIGHT, WIDTH, 3)
    pipeline = parse("pca-colour(0.4)")
    for u in pipeline.draw(2, 0, range(3)):
        drawn = 0.4 * ndtri(u)
        added = [255 * sum(IMAGENET[1][c, i] * drawn[i] * IMAGENET[0][i] for i in range(3)) for c in range(3)]
        expected = np.zeros_like(image)
        for index in np.ndindex(*image.shape):
            expected[index] = min(255, max(0, round(float(image[index]) + added[index[2]])))
        np.testing.assert_array_equal(pipeline.view(image, u, VIEW), expected)


def test_pca_colour_of_the_data_is_its_covariance() -> None:
    rng = np.random.default_rng(5)
    axis = np.array([3.0, 1.0, -2.0]) / math.sqrt(14)
    grey = rng.normal(size=(20, 8, 8, 1)) * 30 * axis + rng.normal(size=(20, 8, 8, 3)) * 4
    pictures = np.clip(np.rint(120 + grey), 0, 255).astype(np.uint8)
    split, view = Split.from_arrays("train", pictures, np.zeros(20)), Preprocess(size=(8, 8))
    variances, components = principal_colours(split, view)
    pixels = pictures.reshape(-1, 3) / 255
    covariance = np.cov(pixels.T, bias=True)
    np.testing.assert_allclose(components @ np.diag(variances) @ components.T, covariance, atol=1e-12)
    assert (np.diff(variances) <= 0).all()
    assert abs(components[:, 0] @ axis) > 0.999
    unfitted = parse("pca-colour(0.5, statistics=data)")
    with pytest.raises(StriateError, match="not computed"):
        unfitted.view(pictures[0], np.full(3, 0.2), view)
    fitted = unfitted.fitted(split, view)
    assert fitted.text == unfitted.text
    assert fitted.fitted(split, view) is fitted
    step = fitted.steps[0]
    np.testing.assert_allclose(
        step.shift(np.array([0.9, 0.5, 0.5])),  # type: ignore[attr-defined]
        255 * components[:, 0] * variances[0] * 0.5 * ndtri(0.9),
        atol=1e-9,
    )
    assert parse("flip").fitted(split, view) == parse("flip")


def test_grey_is_the_luma_of_some_images() -> None:
    image, pipeline = noise(HEIGHT, WIDTH, 3), parse("grey(0.3)")
    found = pipeline.view(image, np.array([0.29]), VIEW)
    luma = image @ np.array([0.299, 0.587, 0.114])
    assert np.abs(found - luma[..., None]).max() <= 0.6
    assert (found == found[..., :1]).all()
    np.testing.assert_array_equal(pipeline.view(image, np.array([0.31]), VIEW), image)
    single = image[..., :1]
    np.testing.assert_array_equal(pipeline.change_colour(single, np.array([0.1]), VIEW), single)


def test_blur_is_a_gaussian_mean() -> None:
    image, pipeline = noise(HEIGHT, WIDTH, 3), parse("blur(0.5, 2.5, p=0.8)")
    for share in (0.1, 0.9):
        sigma = 0.5 + share * 2
        radius = math.ceil(3 * sigma)
        weights = np.array([math.exp(-(i**2) / (2 * sigma**2)) for i in range(-radius, radius + 1)])
        weights /= weights.sum()
        padded = np.pad(image.astype(float), ((radius, radius), (radius, radius), (0, 0)), mode="reflect")
        expected = np.zeros(image.shape)
        for i, a in enumerate(weights):
            for j, b in enumerate(weights):
                expected += a * b * padded[i : i + HEIGHT, j : j + WIDTH]
        assert np.abs(pipeline.view(image, np.array([0.79, share]), VIEW) - expected).max() <= 1.5
    np.testing.assert_array_equal(pipeline.view(image, np.array([0.81, 0.5]), VIEW), image)
    with pytest.raises(StriateError, match="smaller one first"):
        parse("blur(2, 1)")


def philox4x64(counter: list[int], key: list[int]) -> list[int]:
    """Ten rounds of Philox-4x64 with Python's whole numbers; Salmon et al., SC 2011, section 3.3."""
    mask = (1 << 64) - 1
    for _ in range(10):
        p0, p1 = 0xD2E7470EE14C6C93 * counter[0], 0xCA5A826395121157 * counter[2]
        counter = [
            (p1 >> 64) ^ counter[1] ^ key[0], p1 & mask, (p0 >> 64) ^ counter[3] ^ key[1], p0 & mask
        ]  # fmt: skip
        key = [(key[0] + 0x9E3779B97F4A7C15) & mask, (key[1] + 0xBB67AE8584CAA73B) & mask]
    return counter


def test_the_words_of_noise_are_those_of_the_published_generator() -> None:
    # The known answer of the authors' library Random123.
    assert philox4x64([0] * 4, [0] * 2)[:2] == [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC]
    u = philox.uniforms(3, 1, [5], 2)[0]
    key = [math.floor(x * 2**32) for x in u.tolist()]
    blocks = [word for i in (1, 2) for word in philox4x64([i, 0, 0, 0], key)]
    expected = [word >> shift & 0xFFFF for word in blocks for shift in (0, 16, 32, 48)]
    assert words(u, 30).tolist() == expected[:30]


def test_noise_is_normal_and_of_the_deviation_asked_for() -> None:
    np.testing.assert_allclose(normals(), ndtri((np.arange(65536) + 0.5) / 65536), atol=1e-5)
    image = np.full((60, 60, 3), 120, dtype=np.uint8)
    view, pipeline = Preprocess(size=(60, 60)), parse("noise(0.08)")
    u = pipeline.draw(0, 0, range(2))
    first, second = (pipeline.view(image, row, view).astype(float) - 120 for row in u)
    for found in (first, second):
        assert abs(found.mean()) < 1
        assert abs(found.std() / (255 * 0.08) - 1) < 0.05
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.05
    bits = words(u[0], image.size)
    z = ndtri((bits.astype(float) + 0.5) / 65536).reshape(image.shape)
    assert np.abs(first - np.rint(255 * 0.08 * z)).max() <= 1


def test_cutout_fills_a_square_about_a_pixel() -> None:
    image = noise(HEIGHT, WIDTH, 3)
    pipeline = parse("cutout(6)")
    for u in pipeline.draw(0, 0, range(12)):
        x, y = int(u[0] * WIDTH), int(u[1] * HEIGHT)
        expected = image.copy()
        for row in range(HEIGHT):
            for column in range(WIDTH):
                if y - 3 <= row < y + 3 and x - 3 <= column < x + 3:
                    expected[row, column] = VIEW.fill
        np.testing.assert_array_equal(pipeline.view(image, u, VIEW), expected)


def test_random_erasing_follows_the_algorithm() -> None:
    image, step = np.full((40, 50, 3), 7, dtype=np.uint8), RandomErasing()
    pipeline, view = Pipeline((step,)), Preprocess(size=(40, 50))
    erased, areas = 0, []
    for u in pipeline.draw(0, 0, range(300)):
        found = pipeline.view(image, u, view)
        ys, xs = np.nonzero((found != 7).any(axis=2))
        if u[0] >= 0.5:
            assert not len(ys)
            continue
        for i in range(3, step.draws, 4):
            size = (0.02 + u[i] * 0.38) * 2000
            aspect = 0.3 + u[i + 1] * (1 / 0.3 - 0.3)
            h, w = round(math.sqrt(size * aspect)), round(math.sqrt(size / aspect))
            x, y = int(u[i + 2] * 50), int(u[i + 3] * 40)
            if x + w <= 50 and y + h <= 40:
                assert (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) == (x, y, x + w, y + h)
                assert len(ys) > 0.97 * w * h
                erased += 1
                areas.append(w * h / 2000)
                break
    assert 110 < erased < 190
    assert 0.015 < min(areas) < 0.05
    assert 0.2 < max(areas) < 0.42


# ------------------------------------------------------------------ tone, against Pillow


def test_tone_is_pillows() -> None:
    from PIL import ImageEnhance, ImageOps

    for image in (
        noise(31, 23, 3),
        smooth(31, 23),
        np.full((9, 9, 3), 17, np.uint8),
        noise(40, 40, 3) // 3 + 40,
    ):
        picture = Image.fromarray(image)
        np.testing.assert_array_equal(tone.autocontrast(image), ImageOps.autocontrast(picture))
        np.testing.assert_array_equal(tone.equalize(image), ImageOps.equalize(picture))
        for bits in (1, 4, 8):
            np.testing.assert_array_equal(tone.posterize(image, bits), ImageOps.posterize(picture, bits))
        for threshold in (0, 100, 256):
            np.testing.assert_array_equal(
                tone.solarize(image, threshold), ImageOps.solarize(picture, threshold)
            )
        for factor in (0.1, 0.7, 1.0, 1.9):
            expected = np.asarray(ImageEnhance.Sharpness(picture).enhance(factor)).astype(int)
            assert np.abs(tone.sharpness(image, factor) - expected).max() <= 2
        single = image[..., :1]
        for change in (tone.autocontrast, tone.equalize):
            np.testing.assert_array_equal(
                change(single)[..., 0], np.asarray(change(single.repeat(3, axis=2)))[..., 0]
            )
    wide = noise(20, 20, 3)
    near = np.asarray(Image.fromarray(wide).filter(ImageFilter.GaussianBlur(1.5))).astype(int)
    assert np.abs(tone.blur(wide, 1.5)[6:-6, 6:-6] - near[6:-6, 6:-6]).mean() < 3
