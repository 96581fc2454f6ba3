"""Augmentations of pixel values against slow references: loops, the published generator, and Pillow."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image, ImageFilter
from scipy.special import ndtri

from image_sets import noise, smooth
from striate.core.errors import StriateError
from striate.data import philox
from striate.data.augment import Pipeline, parse
from striate.data.augment_values import IMAGENET, RandomErasing, normals, principal_colours, words
from striate.data.preprocess import Preprocess
from striate.data.samples import Split
from striate.images import tone

VIEW = Preprocess(size=(18, 24), mean=(0.2, 0.4, 0.6))
HEIGHT, WIDTH = VIEW.size


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
