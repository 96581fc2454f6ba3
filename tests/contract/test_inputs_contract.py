"""What every input statistic must hold, whichever file it comes from."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from striate.core.errors import StriateError
from striate.data.loaders import Loader
from striate.data.preprocess import Preprocess
from striate.data.samples import Split
from striate.data.statistics import INPUTS, parse_input

SIZE = (9, 8)
# Each alone, and pipelines that are in use.
FORMS = [*INPUTS.names(), "gcn+zca", "channels+lcn(5)", "channels+pixels", "gcn(0)+zca-patches(3,0.01)"]


def pictures(count: int = 60, channels: int = 3) -> np.ndarray:
    """Smooth pictures: neighbouring pixels and channels go together, as in photographs."""
    draws = np.random.default_rng(3)
    rough = draws.normal(0, 1, (count, 4, 4, channels)) + draws.normal(0, 1, (count, 1, 1, 1))
    smooth = rough.repeat(3, axis=1).repeat(2, axis=2)[:, : SIZE[0], : SIZE[1]]
    return np.clip(128 + 40 * smooth + draws.normal(0, 5, smooth.shape), 0, 255).astype(np.uint8)


def split(channels: int = 3) -> Split:
    return Split.from_arrays("train", pictures(channels=channels), np.arange(60) % 2)


def fitted(form: str, channels: int = 3) -> Preprocess:
    return Preprocess.fit(split(channels), SIZE, channels=channels, resize="none", input=form)


@pytest.mark.parametrize("form", FORMS)
def test_the_written_form_comes_back(form: str) -> None:
    steps = parse_input(form)
    assert parse_input("+".join(map(str, steps))) == steps
    assert fitted(form).input == "+".join(map(str, steps))


@pytest.mark.parametrize("name", INPUTS.names())
def test_each_says_whether_it_can_be_inverted(name: str) -> None:
    entry = INPUTS.entry(name)
    assert entry.summary
    assert entry.capabilities["invertible"] is not bool(entry.value.lost)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("form", FORMS)
def test_every_way_in_gives_the_same_values(form: str, channels: int) -> None:
    preprocess, images = fitted(form, channels), pictures(7, channels)
    found = preprocess.normalise(images)
    assert found.shape == (7, channels, *SIZE)
    assert found.dtype == torch.float32
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.isfinite(found).all()
    tensor = torch.from_numpy(images)
    assert torch.equal(found, preprocess.normalise(tensor))
    assert torch.equal(found, preprocess.normalise(tensor.permute(0, 3, 1, 2)))
    assert torch.equal(found, preprocess.normalise(tensor.permute(0, 3, 1, 2).contiguous()))
    alone = torch.cat([preprocess.normalise(images[i : i + 1]) for i in range(7)])
    torch.testing.assert_close(alone, found, atol=2e-6, rtol=1e-5)
    unit = preprocess.standardise(tensor.permute(0, 3, 1, 2).double() / 255)
    torch.testing.assert_close(unit.float(), found, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_the_way_from_unit_images_is_differentiable(form: str) -> None:
    preprocess = fitted(form)
    images = torch.from_numpy(pictures(1)).permute(0, 3, 1, 2).double() / 255
    weights = torch.randn(3, *SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def value(x: torch.Tensor) -> torch.Tensor:
        return (preprocess.standardise(x) * weights).sum()

    (gradient,) = torch.autograd.grad(value(images.requires_grad_()), images)
    step = torch.zeros_like(images)
    step[0, 1, 4, 3] = 1e-6
    with torch.no_grad():
        slope = (value(images + step) - value(images - step)) / 2e-6
    torch.testing.assert_close(gradient[0, 1, 4, 3], slope, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_one_colour_gives_numbers(form: str) -> None:
    preprocess = fitted(form)
    for level in (0, 131, 255):
        assert torch.isfinite(preprocess.normalise(np.full((2, *SIZE, 3), level, dtype=np.uint8))).all()
    blank = Split.from_arrays("train", np.full((4, *SIZE, 3), 9, dtype=np.uint8), [0, 1, 0, 1])
    made = Preprocess.fit(blank, SIZE, resize="none", input=form)
    assert torch.isfinite(made.normalise(pictures(3))).all()


@pytest.mark.parametrize("form", FORMS)
def test_invert_gives_the_pixels_back_or_says_what_is_lost(form: str) -> None:
    preprocess, images = fitted(form), pictures(5)
    lost = [step.lost for step in parse_input(form) if step.lost]
    if lost:
        with pytest.raises(StriateError, match=r"cannot be inverted: .* is lost"):
            preprocess.invert(preprocess.normalise(images))
    else:
        np.testing.assert_array_equal(preprocess.invert(preprocess.normalise(images)), images)


@pytest.mark.parametrize("form", FORMS)
def test_it_comes_back_from_json_and_arrays(form: str) -> None:
    preprocess = fitted(form)
    values = json.loads(json.dumps(preprocess.to_dict()))
    again = Preprocess.from_dict(values, preprocess.arrays)
    assert again == preprocess
    assert hash(again) == hash(preprocess)
    assert torch.equal(again.normalise(pictures(3)), preprocess.normalise(pictures(3)))
    assert fitted(form) == preprocess
    if preprocess.arrays is None:
        return
    with pytest.raises(StriateError, match="arrays"):
        Preprocess.from_dict(values)
    with pytest.raises(StriateError, match="is not computed"):
        Preprocess(size=SIZE, input=form).normalise(pictures(1))


@pytest.mark.parametrize("form", FORMS)
def test_memory_and_streams_give_the_same_bytes(form: str) -> None:
    data, preprocess = split(), fitted(form)
    batches = {}
    for mode in ("memory", "stream"):
        loader = Loader(data, preprocess, batch=16, seed=1, train=True, augment="flip", mode=mode, workers=1)
        batches[mode] = [batch.images.clone() for batch in loader.batches(0)]
    for one, other in zip(batches["memory"], batches["stream"], strict=True):
        assert torch.equal(one, other)
