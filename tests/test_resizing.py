"""Progressive resizing: its written form, which epoch sees which size, and the loop that uses it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from striate.core.errors import StriateError
from striate.layers.pooling import GlobalAveragePool
from striate.train.fit import fit
from striate.train.recipe import Recipe
from striate.train.resizing import check_steps, parse_steps, shrink, side_at
from trials import small_job


def test_written_form() -> None:
    assert parse_steps("") == ()
    assert parse_steps("24@0.5") == ((24, 0.5),)
    assert parse_steps(" 16@.25, 24@0.75 ") == ((16, 0.25), (24, 0.75))


@pytest.mark.parametrize("text", ["24", "24@2", "@0.5", "24@-0.1", "x@0.5", "24@0.5;28@0.8"])
def test_other_forms_are_refused(text: str) -> None:
    with pytest.raises(StriateError, match="SIZE@PART"):
        Recipe(progressive=text)


@pytest.mark.parametrize("text", ["24@0.5,24@0.8", "28@0.5,24@0.8", "24@0.5,28@0.5", "24@0.8,28@0.5"])
def test_sizes_and_parts_rise(text: str) -> None:
    with pytest.raises(StriateError, match="both rise"):
        parse_steps(text)


def test_a_step_holds_until_its_part_of_the_run() -> None:
    steps = parse_steps("16@0.25,24@0.5")
    assert [side_at(steps, epoch, 8) for epoch in range(8)] == [16, 16, 24, 24, None, None, None, None]
    assert [side_at(steps, epoch, 1) for epoch in range(1)] == [16]
    assert side_at((), 0, 8) is None


def test_sizes_lie_below_the_input_and_masks_are_refused() -> None:
    check_steps(Recipe(progressive="31@0.5", size=(32, 48)), "classification")
    check_steps(Recipe(size=(32, 32)), "segmentation")
    for recipe, kind in (
        (Recipe(progressive="32@0.5", size=(32, 48)), "classification"),
        (Recipe(progressive="24@0.5"), "classification"),
        (Recipe(progressive="0@0.5", size=32), "classification"),
        (Recipe(progressive="16@0.5", size=(32, 32)), "segmentation"),
    ):
        with pytest.raises(StriateError, match="progressive"):
            check_steps(recipe, kind)


def test_shrinks_by_averaging_and_keeps_the_aspect() -> None:
    images = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    assert shrink(images, None) is images
    assert shrink(images, 24).shape == (2, 3, 24, 36)
    # A reduction by 2 with a triangle filter of half-width 2: weights 1 3 3 1 of the four nearest pixels.
    weights = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    expected = torch.einsum("nchw,h,w->nc", images[:, :, 9:13, 19:23], weights, weights)
    torch.testing.assert_close(shrink(images, 16)[:, :, 5, 10], expected)


def test_the_loop_sees_small_images_first() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), GlobalAveragePool(), nn.Flatten(), nn.Linear(4, 3))
    sizes: list[tuple[bool, int]] = []
    net.register_forward_pre_hook(lambda module, args: sizes.append((module.training, args[0].shape[-1])))
    job = small_job(net, epochs=4, progressive="6@0.5")
    full = next(iter(job.train.batches(0))).images.shape[-1]
    assert fit(job)
    trained = [size for training, size in sizes if training]
    assert trained == [6] * (len(trained) // 2) + [full] * (len(trained) // 2)
    assert {size for training, size in sizes if not training} <= {full}
