"""Augmentation: draws by their published vectors, and each map by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from image_sets import noise
from striate.core.errors import StriateError
from striate.data import crops, philox
from striate.data.augment import NONE, Pipeline, parse
from striate.data.augmentations import Affine, Flip, PadCrop, RandomResizedCrop
from striate.data.preprocess import Preprocess
from striate.images.colour import jitter

VIEW = Preprocess(size=(16, 16), mean=(0.2,), std=(0.5,))


def words(*values: int) -> tuple[np.ndarray, ...]:
    return tuple(np.array([value], dtype=np.uint64) for value in values)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_its_published_vectors(
    counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]
) -> None:
    # The known answers of the authors' library Random123.
    assert tuple(int(word[0]) for word in philox.philox(words(*counter), key)) == expected  # type: ignore[arg-type]


def test_a_sample_draws_the_same_in_any_company() -> None:
    whole = philox.uniforms(7, 3, np.arange(100), 6)
    assert whole.shape == (100, 6)
    np.testing.assert_array_equal(philox.uniforms(7, 3, [42, 5], 6), whole[[42, 5]])
    np.testing.assert_array_equal(philox.uniforms(7, 3, [42], 3), whole[[42], :3])
    for other in (
        philox.uniforms(8, 3, np.arange(100), 6),
        philox.uniforms(7, 4, np.arange(100), 6),
        philox.uniforms(7, 3, np.arange(100), 6, use=philox.ORDER),
        philox.uniforms(7 + 2**32, 3, np.arange(100), 6),
        philox.uniforms(-7, 3, np.arange(100), 6),
    ):
        assert not np.isin(other, whole).any()
    assert philox.uniforms(7, 3, [], 6).shape == (0, 6)
    assert philox.uniforms(7, 3, [1, 2], 0).shape == (2, 0)


def test_draws_are_even_and_open() -> None:
    u = philox.uniforms(0, 0, np.arange(20_000), 5)
    assert u.min() > 0
    assert u.max() < 1
    # Five standard errors of a mean and of a bin count.
    assert np.abs(u.mean(axis=0) - 0.5).max() < 5 / np.sqrt(12 * 20_000)
    counts = np.histogram(u, bins=20, range=(0, 1))[0]
    assert np.abs(counts - 5000).max() < 5 * np.sqrt(5000)
    assert np.abs(np.corrcoef(u.T) - np.eye(5)).max() < 5 / np.sqrt(20_000)


def test_orders_are_permutations_that_change_with_the_epoch() -> None:
    first, second = philox.permutation(1, 0, 1000), philox.permutation(1, 1, 1000)
    assert sorted(first) == sorted(second) == list(range(1000))
    assert (first == second).mean() < 0.02
    assert philox.permutation(1, 0, 6).tolist() == philox.permutation(1, 0, 6).tolist()
    assert philox.permutation(0, 0, 0).tolist() == []


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("none", "none"),
        ("  ", "none"),
        ("flip", "flip"),
        ("flip(0.5)", "flip"),
        ("pad-crop(4) + flip", "pad-crop+flip"),
        ("pad-crop(2, zero)+flip(p=0.1)", "pad-crop(pixels=2, border=zero)+flip(p=0.1)"),
        (
            "random-resized-crop(scale=0.35)+flip+colour(0.3)",
            "random-resized-crop(scale=0.35)+flip+colour(strength=0.3)",
        ),
        ("affine( rotate = 10 , translate=1e-1 )", "affine(rotate=10, translate=0.1)"),
    ],
)
def test_the_written_form(text: str, written: str) -> None:
    pipeline = parse(text)
    assert pipeline.text == str(pipeline) == written
    assert parse(pipeline.text) == pipeline
    assert parse(pipeline) is pipeline


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("flipp", "did you mean 'flip'"),
        ("random_resized_crop", "'random-resized-crop'"),
        ("pad-crop(pixel=4)", "'pixels'"),
        ("pad-crop(-1)", "0 to 4096"),
        ("pad-crop(1.5)", "whole number"),
        ("pad-crop(4, mirror)", "reflect"),
        ("pad-crop(1, reflect, 3)", "takes 2"),
        ("pad-crop(4, pixels=3)", "twice"),
        ("pad-crop(pixels=3, reflect)", "come first"),
        ("flip(p=nan)", "0 to 1"),
        ("flip(2)", "0 to 1"),
        ("flip+", "joined by"),
        ("flip(0.5", "joined by"),
        ("flip flip", "joined by"),
        ("affine(rotate=ten)", "a number"),
        ("random-resized-crop+random-resized-crop", "2 crops"),
        ("pad-crop(4, zero)+affine(rotate=3, border=edge)", "one border"),
    ],
)
def test_a_wrong_form_says_what_is_allowed(text: str, told: str) -> None:
    with pytest.raises(StriateError) as caught:
        parse(text)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_pad_crop_is_padding_and_cropping() -> None:
    image = noise(16, 16, 3)
    for border, mode in (("reflect", "reflect"), ("edge", "edge"), ("zero", "constant")):
        pipeline = Pipeline((PadCrop(3, border),))
        fill = {"constant_values": 51} if mode == "constant" else {}
        padded = np.pad(image, ((3, 3), (3, 3), (0, 0)), mode=mode, **fill)  # type: ignore[call-overload]
        for u in pipeline.draw(0, 0, range(20)):
            dx, dy = (int(x) for x in np.floor(u * 7))
            # A shift by d to the right shows what lies d to the left.
            expected = padded[6 - dy : 22 - dy, 6 - dx : 22 - dx]
            np.testing.assert_array_equal(pipeline.view(image, u, VIEW), expected)


def test_shifts_reach_every_place_equally() -> None:
    found = PadCrop(2).matrices(philox.uniforms(0, 0, np.arange(5000), 2), 8, 8)[:, 0, 2]
    values, counts = np.unique(found, return_counts=True)
    assert values.tolist() == [-2, -1, 0, 1, 2]
    assert np.abs(counts - 1000).max() < 150


def test_flip_mirrors_about_half() -> None:
    image = noise(16, 16, 3)
    pipeline = parse("flip")
    u = pipeline.draw(0, 0, range(400))
    np.testing.assert_array_equal(pipeline.view(image, np.array([0.4]), VIEW), image[:, ::-1])
    np.testing.assert_array_equal(pipeline.view(image, np.array([0.6]), VIEW), image)
    assert 150 < (u < 0.5).sum() < 250
    assert (Flip(0.0).matrices(u, 8, 8) == np.eye(3)).all()


def test_alternating_flips_show_each_image_both_ways_in_two_epochs() -> None:
    pipeline, numbers = parse("pad-crop(2)+alternating-flip+flip"), np.arange(400)
    draws = [pipeline.draw(3, epoch, numbers) for epoch in range(4)]
    ways = [u[:, 2] < 0.5 for u in draws]
    assert 160 < ways[0].sum() < 240
    for epoch in range(3):
        np.testing.assert_array_equal(ways[epoch + 1], ~ways[epoch])
        # The other steps are drawn anew.
        assert (draws[epoch + 1][:, [0, 1, 3]] != draws[epoch][:, [0, 1, 3]]).all()
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    alone, view = parse("alternating-flip"), Preprocess(size=(8, 8))
    both = [alone.view(image, alone.draw(3, epoch, [7])[0], view) for epoch in (0, 1)]
    expected = {image.tobytes(), image[:, ::-1].tobytes()}
    assert {seen.tobytes() for seen in both} == expected


def test_affine_turns_scales_and_shifts_about_the_centre() -> None:
    half = np.full((1, 5), 0.5)
    np.testing.assert_allclose(Affine(30, 0.2, 1, 20).matrices(half, 10, 20)[0], np.eye(3), atol=1e-12)

    def moved(step: Affine, u: list[float], x: float, y: float) -> list[float]:
        return (step.matrices(np.array([u]), 10, 20)[0] @ [x, y, 1])[:2].round(6).tolist()

    # 90 degrees counter-clockwise as seen: what was right of the centre (10, 5) comes above it.
    assert moved(Affine(rotate=90), [1, 0.5, 0.5, 0.5, 0.5], 13, 5) == [10, 2]
    assert moved(Affine(translate=0.1), [0.5, 1, 0, 0.5, 0.5], 0, 0) == [2, -1]
    assert moved(Affine(scale=1), [0.5, 0.5, 0.5, 1, 0.5], 11, 7) == [12, 9]
    assert moved(Affine(scale=1), [0.5, 0.5, 0.5, 0, 0.5], 12, 9) == [11, 7]
    assert moved(Affine(shear=45), [0.5, 0.5, 0.5, 0.5, 1], 10, 7) == [12, 7]


@given(st.integers(1, 800), st.integers(1, 800), st.integers(0, 10**6), st.sampled_from([0.05, 0.35, 1.0]))
@settings(max_examples=80, deadline=None)
def test_crops_lie_in_the_image_and_keep_their_bounds(
    height: int, width: int, number: int, scale: float
) -> None:
    step = RandomResizedCrop(scale=scale)
    u = philox.uniforms(0, 0, [number], step.draws)[0]
    x0, y0, x1, y1 = step.box(u, height, width, (32, 32))
    assert 0 <= x0 < x1 <= width
    assert 0 <= y0 < y1 <= height
    if min(height, width) >= 100:
        columns, rows = x1 - x0, y1 - y0
        assert 3 / 4 - 0.1 < columns / rows < 4 / 3 + 0.1
        assert columns * rows <= height * width + 1
        assert step.enough(u, height, width, (int(rows), int(columns)))
        assert not step.enough(u, height, width, (int(rows) + 1, int(columns)))


def test_crops_have_the_areas_and_aspects_asked_for() -> None:
    step = RandomResizedCrop(scale=0.25, ratio=1.2)
    boxes = np.array([step.box(u, 1000, 1000, (8, 8)) for u in philox.uniforms(0, 0, np.arange(2000), 4)])
    columns, rows = (boxes[:, 2:] - boxes[:, :2]).T
    area, aspect = columns * rows / 1e6, np.log(columns / rows) / np.log(1.2)
    # Only boxes that had to be shrunk, near area 1, break the even spread.
    assert np.abs(np.histogram(area, bins=5, range=(0.25, 0.75))[0] - 2000 * 2 / 15).max() < 80
    assert area.min() > 0.24
    assert np.abs(aspect).max() < 1.05
    assert abs(aspect.mean()) < 0.05
    assert abs(aspect.std() - 1 / np.sqrt(3)) < 0.05


def test_a_crop_is_the_slice_resized() -> None:
    image = noise(40, 60, 3)
    pipeline = parse("random-resized-crop")
    for u in pipeline.draw(3, 1, range(10)):
        x0, y0, x1, y1 = (int(x) for x in pipeline.steps[0].box(u, 40, 60, (16, 16)))  # type: ignore[attr-defined]
        part = Image.fromarray(image[y0:y1, x0:x1]).resize((16, 16), Image.Resampling.BILINEAR)
        seen = pipeline.view(image, u, VIEW).astype(int)
        # Pillow's antialiased filter is an independent one.
        np.testing.assert_allclose(seen, np.asarray(part), atol=1 if crops.EXACT else 40)


def test_a_reduced_image_is_enough_while_its_crop_has_the_views_pixels() -> None:
    pipeline = parse("random-resized-crop(scale=0.25, ratio=1)")
    whole = pipeline.at_least(np.array([1.0, 0.5, 0.5, 0.5]), VIEW)
    quarter = pipeline.at_least(np.array([0.0, 0.5, 0.5, 0.5]), VIEW)
    assert callable(whole)
    assert callable(quarter)
    assert [whole(*sides) for sides in ((16, 16), (15, 40), (40, 15))] == [True, False, False]
    assert [quarter(*sides) for sides in ((32, 32), (30, 30), (20, 52), (15, 99))] == [
        True,
        False,
        True,
        False,
    ]
    assert parse("flip").at_least(np.array([0.1]), VIEW) == 16
    assert pipeline.at_least(np.array([0.0, 0.5, 0.5, 0.5]), Preprocess()) is None


def test_geometry_composes_into_one_warp_in_the_written_order() -> None:
    first = parse("affine(rotate=20, border=edge)+flip(1)+pad-crop(3, edge)")
    u = first.draw(0, 0, [5])[0]
    view = Preprocess(size=(16, 24))
    single = view.matrix(50, 70)
    for step, part in zip(first.steps, (u[:5], u[5:6], u[6:]), strict=True):
        single = step.matrices(part[None], 16, 24)[0] @ single  # type: ignore[attr-defined]
    np.testing.assert_allclose(first.matrix(u, 50, 70, view), single, atol=1e-12)


@pytest.mark.parametrize("channels", [1, 3])
def test_colour_alone_leaves_places(channels: int) -> None:
    image = noise(16, 16, channels)
    view = Preprocess(size=(16, 16), channels=channels)
    pipeline = parse("colour(0.4, hue=0.1)")
    middle = pipeline.view(image, np.full(4, 0.5), view)
    np.testing.assert_array_equal(middle, image)
    brighter = pipeline.view(image, np.array([1.0, 0.5, 0.5, 0.5]), view)
    np.testing.assert_allclose(brighter, np.minimum(image * 1.4, 255), atol=0.51)
    every = parse("colour(0.4, hue=0.1, contrast=0.2)").view(image, np.array([0.75, 0.3, 0.9, 0.6]), view)
    by_hand = jitter(image, brightness=1.2, contrast=0.92, saturation=1.32, hue=0.02)
    np.testing.assert_array_equal(every, by_hand)
    only = parse("colour(0.4, brightness=0)")
    np.testing.assert_array_equal(only.view(image, np.array([1.0, 0.5, 0.5, 0.5]), view), image)


def test_masks_of_another_size_follow_a_scaled_decode() -> None:
    mask = np.zeros((80, 80), dtype=np.int32)
    mask[20:40, 30:70] = 3
    pipeline = parse("random-resized-crop(0.3)+flip")
    for u in pipeline.draw(0, 0, range(8)):
        large = pipeline.mask_view(mask, u, VIEW)
        # The image came back at half its size, the mask did not: the same part is seen.
        half = pipeline.mask_view(mask, u, VIEW, (40, 40))
        assert (large != half).mean() < 0.05
        small = pipeline.mask_view(mask[::2, ::2], u, VIEW)
        assert (small != half).mean() < 0.05


def test_boxes_by_hand() -> None:
    view = Preprocess(size=(10, 20))
    assert NONE.boxes_view([[10, 10, 30, 20]], np.empty(0), (40, 80), view).tolist() == [[2.5, 2.5, 7.5, 5]]
    flipped = parse("flip(1)").boxes_view([10, 10, 30, 20], np.array([0.2]), (40, 80), view)
    assert flipped.tolist() == [[12.5, 2.5, 17.5, 5]]
    cut = NONE.boxes_view([[-50, 10, 900, 20]], np.empty(0), (40, 80), view)
    assert cut.tolist() == [[0, 2.5, 20, 5]]


def test_describe_names_each_step() -> None:
    lines = parse("pad-crop(2)+flip").describe().splitlines()
    assert [line.split(":")[0] for line in lines] == ["pad-crop(pixels=2)", "flip"]
    assert NONE.describe() == "none"
    assert not NONE
