"""Preprocessing: values by hand, a second way to compute each view, and a stored form that comes back."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from image_sets import noise
from striate.core.errors import BadImage, StriateError
from striate.data.preprocess import RESIZES, Preprocess
from striate.data.samples import Split

LITE0 = Preprocess(
    size=(224, 224), crop=0.875, interpolation="bicubic", mean=(127 / 255,) * 3, std=(128 / 255,) * 3
)


def test_efficientnet_lite_sees_x_less_127_over_128() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    assert torch.equal(
        LITE0.normalise(levels)[0, 1].reshape(-1), (torch.arange(256) - 127).to(torch.float32) / 128
    )


def test_normalise_is_the_formula_and_gives_channels_last() -> None:
    preprocess = Preprocess(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    batch = noise(3, 7, 5, 3)
    found = preprocess.normalise(batch)
    expected = (batch / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(found.permute(0, 2, 3, 1).numpy(), expected, atol=3e-7)
    assert found.shape == (3, 3, 7, 5)
    assert found.dtype == torch.float32
    assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("channels", [1, 3])
def test_arrays_and_tensors_of_both_layouts_give_the_same_bytes(channels: int) -> None:
    preprocess = Preprocess(channels=channels, mean=(0.3,), std=(0.17,))
    batch = noise(70, 31, 33, channels)
    found = preprocess.normalise(batch)
    tensor = torch.from_numpy(batch)
    assert torch.equal(found, preprocess.normalise(tensor))
    assert torch.equal(found, preprocess.normalise(tensor.permute(0, 3, 1, 2)))
    assert torch.equal(found, preprocess.normalise(batch[:, ::-1])[:, :, torch.arange(30, -1, -1)])


@given(
    st.lists(st.floats(0, 1), min_size=3, max_size=3), st.lists(st.floats(0.01, 2), min_size=3, max_size=3)
)
@settings(max_examples=40, deadline=None)
def test_invert_gives_every_level_back(mean: list[float], std: list[float]) -> None:
    preprocess = Preprocess(mean=tuple(mean), std=tuple(std))
    batch = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    np.testing.assert_array_equal(preprocess.invert(preprocess.normalise(batch)), batch)


def test_invert_rounds_and_cuts() -> None:
    plain = Preprocess(mean=(0.0,), std=(1.0,))
    values = torch.tensor([-1.0, 0.4 / 255, 0.6 / 255, 7.0]).reshape(1, 1, 2, 2).repeat(1, 3, 1, 1)
    assert plain.invert(values)[0, :, :, 0].tolist() == [[0, 0], [1, 255]]


def test_boxes_by_hand() -> None:
    def box(**how: object) -> tuple[float, ...]:
        return Preprocess(size=(100, 100), **how).box(200, 400)  # type: ignore[arg-type]

    assert box() == (100, 0, 300, 200)
    assert box(crop=0.5) == (150, 50, 250, 150)
    assert box(resize="squash") == (0, 0, 400, 200)
    assert box(resize="squash", crop=0.5) == (100, 50, 300, 150)
    assert box(resize="pad") == (0, -100, 400, 300)
    assert box(resize="none") == (150, 50, 250, 150)
    assert Preprocess(size=(50, 100)).box(200, 400) == (0, 0, 400, 200)
    assert Preprocess(size=None).box(200, 400) == (0, 0, 400, 200)
    assert LITE0.box(375, 500) == (86, 23, 414, 351)


def test_a_view_is_pillows_crop_and_resize() -> None:
    smooth = np.asarray(Image.fromarray(noise(12, 16, 3)).resize((500, 375), Image.Resampling.BICUBIC))
    box = tuple(int(x) for x in LITE0.box(375, 500))
    expected = np.asarray(Image.fromarray(smooth).resize((224, 224), Image.Resampling.BICUBIC, box=box))
    np.testing.assert_array_equal(LITE0.view(smooth), expected)
    bilinear = Preprocess(size=(224, 224), crop=0.875).view(smooth)
    expected = np.asarray(Image.fromarray(smooth).resize((224, 224), Image.Resampling.BILINEAR, box=box))
    assert np.abs(bilinear.astype(int) - expected).max() <= 2


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("shape", [(3, 50), (50, 3), (17, 17), (1, 1), (64, 40)])
def test_every_image_becomes_a_view_of_the_size(resize: str, shape: tuple[int, int]) -> None:
    preprocess = Preprocess(size=(16, 12), resize=resize)
    assert preprocess.view(noise(*shape, 3)).shape == (16, 12, 3)
    assert preprocess.mask_view(np.ones(shape, dtype=np.int32)).shape == (16, 12)


def test_none_cuts_and_pads_without_resampling() -> None:
    image = noise(28, 28, 1)
    preprocess = Preprocess(size=(32, 32), channels=1, resize="none", mean=(0.2,))
    view = preprocess.view(image)
    np.testing.assert_array_equal(view[2:30, 2:30], image)
    assert set(view[:2].ravel()) == {51}
    mask = preprocess.mask_view(np.ones((28, 28), dtype=np.int32))
    assert mask[2:30, 2:30].min() == 1
    assert set(mask[:, :2].ravel().tolist()) == {255}
    small = Preprocess(size=(24, 20), channels=1, resize="none")
    np.testing.assert_array_equal(small.view(image), image[2:26, 4:24])


def test_an_image_of_the_views_size_is_not_touched() -> None:
    image = noise(8, 9, 3)
    assert Preprocess(size=(8, 9)).view(image) is image
    assert Preprocess(size=None).view(image) is image
    assert not Preprocess(size=(8, 9), crop=0.5).same_pixels(8, 9)


@pytest.mark.parametrize("resize", ["crop", "squash", "pad", "none"])
def test_masks_move_with_their_images(resize: str) -> None:
    mask = np.zeros((90, 120), dtype=np.int32)
    mask[30:60, 40:100] = 1
    preprocess = Preprocess(size=(60, 60), resize=resize, mean=(0.0,))
    picture = preprocess.view((mask * 255).astype(np.uint8)[..., None].repeat(3, axis=2))[..., 0]
    moved = preprocess.mask_view(mask)
    sure = ((picture < 20) | (picture > 235)) & (moved != 255)
    np.testing.assert_array_equal(moved[sure] == 1, picture[sure] > 127)
    assert (moved == 1).any()


@given(st.integers(1, 700), st.integers(1, 700), st.sampled_from([0.5, 0.875, 1.0]))
@settings(max_examples=60, deadline=None)
def test_a_scaled_decode_keeps_the_views_detail(height: int, width: int, crop: float) -> None:
    preprocess = Preprocess(size=(32, 48), crop=crop)
    least = preprocess.at_least()
    assert least is not None
    if min(height, width) >= least:
        x0, y0, x1, y1 = preprocess.box(height, width)
        assert x1 - x0 >= 47.5
        assert y1 - y0 >= 31.5


def test_at_least_is_the_side_before_the_crop() -> None:
    assert LITE0.at_least() == 256
    assert Preprocess(size=None).at_least() is None
    assert Preprocess(size=(32, 32), resize="none").at_least() is None


@pytest.mark.parametrize(
    "preprocess", [LITE0, Preprocess(), Preprocess(size=(8, 9), channels=1, resize="pad")]
)
def test_the_stored_form_comes_back(preprocess: Preprocess) -> None:
    assert Preprocess.from_dict(json.loads(json.dumps(preprocess.to_dict()))) == preprocess


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"sise": [8, 8]}, "size"),
        ({"size": [8]}, "size"),
        ({"size": [0, 8]}, "size"),
        ({"size": [8, 10**9]}, "16384"),
        ({"size": "224"}, "size"),
        ({"channels": 2}, "1, 3"),
        ({"crop": 0}, "crop"),
        ({"crop": float("nan")}, "crop"),
        ({"crop": 0.5, "resize": "pad"}, "crop"),
        ({"resize": "crob"}, "'crop'"),
        ({"interpolation": "lanczos"}, "bicubic"),
        ({"mean": [0.5, 0.5]}, "3 channels"),
        ({"mean": [0.5, "a", 0.5]}, "mean"),
        ({"mean": [127.5, 127.5, 127.5]}, "0 to 1"),
        ({"std": [0.0, 1.0, 1.0]}, "std"),
        ({"std": [float("inf")] * 3}, "std"),
    ],
)
def test_a_stored_form_that_is_not_allowed_is_refused(change: dict[str, object], told: str) -> None:
    stored = Preprocess(size=(8, 8)).to_dict() | change
    with pytest.raises(StriateError, match=told):
        Preprocess.from_dict(stored)


def test_what_is_no_stored_form_at_all_is_refused() -> None:
    for value in (None, [1], "crop"):
        with pytest.raises(StriateError, match="mapping"):
            Preprocess.from_dict(value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "batch", [np.zeros((2, 3, 3, 3)), noise(3, 3, 3), noise(2, 3, 3, 4), torch.zeros(2, 3, 4, 4)]
)
def test_what_is_no_batch_is_refused(batch: object) -> None:
    with pytest.raises(StriateError):
        Preprocess().normalise(batch)  # type: ignore[arg-type]
    with pytest.raises(StriateError, match="channels"):
        Preprocess(size=(4, 4)).view(noise(5, 5, 1))


def test_fit_gives_the_mean_and_spread_of_the_training_views() -> None:
    pictures = noise(50, 6, 6, 3) // np.array([1, 2, 3], dtype=np.uint8)
    split = Split.from_arrays("train", pictures, np.zeros(50, dtype=int))
    fitted = Preprocess.fit(split, 6)
    flat = pictures.reshape(-1, 3) / 255
    np.testing.assert_allclose(fitted.mean, flat.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(fitted.std, flat.std(axis=0), atol=1e-6)
    normal = fitted.normalise(pictures)
    assert float(normal.mean().abs()) < 1e-4
    assert abs(float(normal.std()) - 1) < 1e-2
    cut = Preprocess.fit(split, 4, resize="none")
    np.testing.assert_allclose(cut.mean, pictures[:, 1:5, 1:5].reshape(-1, 3).mean(axis=0) / 255, atol=1e-6)


def test_fit_of_one_colour_does_not_divide_by_nothing() -> None:
    split = Split.from_arrays("train", np.full((4, 5, 5, 1), 9, dtype=np.uint8), [0, 1, 0, 1])
    fitted = Preprocess.fit(split, 5, channels=1)
    assert torch.isfinite(fitted.normalise(np.zeros((1, 5, 5, 1), dtype=np.uint8))).all()


def test_fit_passes_unreadable_images_over() -> None:
    class Broken:
        def __init__(self, good: int) -> None:
            self.good = good

        def __len__(self) -> int:
            return 4

        def image(self, index: int, *, at_least: int | None = None, channels: int = 3) -> np.ndarray:
            if index >= self.good:
                raise BadImage(f"{index} is broken")
            return np.full((4, 4, channels), 51, dtype=np.uint8)

    assert Preprocess.fit(Broken(2), 4).mean == (0.2, 0.2, 0.2)
    with pytest.raises(StriateError, match="no readable image"):
        Preprocess.fit(Broken(0), 4)
