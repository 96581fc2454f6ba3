"""What every augmentation must hold, whichever file it comes from."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest

from striate.data.augment import AUGMENTATIONS, Pipeline, parse
from striate.data.augment_policies import Policy
from striate.data.augmentations import Augmentation, Bend, Colour, Crop, Geometry, Mixer, Repeats
from striate.data.preprocess import Preprocess
from striate.images import geometry

NAMES = AUGMENTATIONS.names()
KINDS = {
    "crop": Crop,
    "geometry": Geometry,
    "bend": Bend,
    "colour": Colour,
    "policy": Policy,
    "mix": Mixer,
    "repeat": Repeats,
}
# Settings that make an augmentation move something, where its defaults do not.
STRONG = {"affine": "affine(rotate=20, translate=0.1, scale=0.2, shear=10)", "grey": "grey(0.5)"}
# What acts on one image at a time; the others act on batches.
SINGLE = [name for name in NAMES if parse(name).draws]


def pipeline_of(name: str) -> Pipeline:
    return parse(STRONG.get(name, name))


def smooth(height: int, width: int, channels: int = 3) -> np.ndarray:
    coarse = np.random.default_rng(height).integers(0, 256, (5, 6, channels), dtype=np.uint8)
    return geometry.resize(coarse, (height, width), "bicubic").reshape(height, width, channels)


@pytest.mark.parametrize("name", NAMES)
def test_is_a_frozen_dataclass_of_one_kind_with_a_summary(name: str) -> None:
    entry = AUGMENTATIONS.entry(name)
    step = entry.value()
    assert dataclasses.is_dataclass(step)
    assert isinstance(step, Augmentation)
    assert isinstance(step, KINDS[entry.capabilities["kind"]])
    assert len(entry.summary) > 10
    for field in dataclasses.fields(step):
        assert field.metadata["help"]
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(step, field.name, field.default)


@pytest.mark.parametrize("name", NAMES)
def test_the_page_of_augmentations_defines_it(name: str) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "augment.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith((f"| `{name}`", f"| `{name}("))]
    assert len(rows) == 1
    assert rows[0].count("|") == 4


@pytest.mark.parametrize("name", NAMES)
def test_written_form_and_copies_come_back(name: str) -> None:
    for pipeline in (parse(name), pipeline_of(name)):
        assert parse(pipeline.text) == pipeline
        assert copy.deepcopy(pipeline) == pipeline


@pytest.mark.parametrize("name", SINGLE)
def test_draws_depend_on_seed_epoch_and_sample_alone(name: str) -> None:
    pipeline = pipeline_of(name)
    many = pipeline.draw(5, 2, np.arange(50))
    assert many.shape == (50, pipeline.draws)
    np.testing.assert_array_equal(pipeline.draw(5, 2, [31]), many[[31]])
    for other in (pipeline.draw(6, 2, np.arange(50)), pipeline.draw(5, 3, np.arange(50))):
        assert not np.array_equal(other, many)


@pytest.mark.parametrize("size", [(24, 24), (20, 30), None])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", SINGLE)
def test_views_have_the_size_and_are_repeatable(
    name: str, channels: int, size: tuple[int, int] | None
) -> None:
    pipeline, view = pipeline_of(name), Preprocess(size=size, channels=channels)
    image = smooth(40, 50, channels)
    before = image.copy()
    views = [pipeline.view(image, u, view) for u in pipeline.draw(0, 0, range(12))]
    again = [pipeline.view(image, u, view) for u in pipeline.draw(0, 0, range(12))]
    for first, second in zip(views, again, strict=True):
        assert first.shape == (*(size or (40, 50)), channels)
        assert first.dtype == np.uint8
        np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(image, before)
    if channels == 3 or not AUGMENTATIONS.entry(name).capabilities.get("needs_colour"):
        assert len({view.tobytes() for view in views}) > 1, "it changes nothing"


@pytest.mark.parametrize("name", SINGLE)
def test_a_batch_is_its_images_one_by_one(name: str) -> None:
    pipeline, view = pipeline_of(name), Preprocess(size=(20, 24), mean=(0.3,))
    stack = np.stack([smooth(20, 24) // (i + 1) for i in range(6)])
    masks = (stack[..., 0] > 80).astype(np.int32)
    rows = np.array([4, 0, 5, 0, 2, 1, 3, 3] * 3)
    u = pipeline.draw(1, 0, np.arange(len(rows)))
    batch, covers = pipeline.batch(stack, rows, u, view), pipeline.batch_masks(masks, rows, u, view)
    for i, row in enumerate(rows):
        np.testing.assert_array_equal(batch[i], pipeline.view(stack[row], u[i], view))
        np.testing.assert_array_equal(covers[i], pipeline.mask_view(masks[row], u[i], view))
    assert not np.shares_memory(batch, stack)


@pytest.mark.parametrize("name", SINGLE)
def test_masks_and_boxes_move_with_the_image(name: str) -> None:
    """A picture of the box, its mask and the box itself go the same way."""
    pipeline, view = pipeline_of(name), Preprocess(size=(64, 64), mean=(0.0,))
    mask = np.zeros((80, 100), dtype=np.int32)
    mask[30:50, 35:65] = 1
    picture = (mask * 255).astype(np.uint8)[..., None].repeat(3, axis=2)
    for u in pipeline.draw(0, 0, range(10)):
        seen = pipeline.moved(picture, u, view)[..., 0]
        moved = pipeline.mask_view(mask, u, view)
        sure = ((seen < 15) | (seen > 240)) & (moved != 255)
        np.testing.assert_array_equal(moved[sure] == 1, seen[sure] > 127)
        box = pipeline.boxes_view([[35, 30, 65, 50]], u, (80, 100), view)[0]
        ys, xs = np.nonzero(moved == 1)
        if len(xs):
            found = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
            inward = np.concatenate([found[:2] - box[:2], box[2:] - found[2:]])
            assert inward.min() >= -1.01
            # A slanted box that reaches beyond the view encloses more than what is left of it, and its sharp
            # corners hold no pixel's centre.
            if box.min() > 0 and box.max() < 64:
                assert inward.max() <= (3 if name.endswith("augment") else 1.6)
