"""Invariance curves on nets whose answers are known, and the weights of higher layers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from little_models import conv_model, linear_model, pictures, preprocess
from striate.core.errors import StriateError
from striate.images import geometry
from striate.model import Model
from striate.nets.net import Net
from striate.tasks.classification import Classification
from striate.visualize.invariance import TRANSFORMS, Invariance
from striate.visualize.method import visualize


def pooled_model(size: int = 8) -> Model:
    """The mean over the picture: features that no shift of a picture on an empty ground changes."""
    conv = nn.Conv2d(1, 1, 1, bias=False)
    nn.init.ones_(conv.weight)
    stages = [
        ("conv1", conv),
        ("avgpool", nn.AdaptiveAvgPool2d(1)),
        ("flatten", nn.Flatten()),
        ("fc", nn.Linear(1, 2)),
    ]
    net = Net(stages, head="fc", in_channels=1, size=size, name="mean")
    return Model(net.eval(), Classification(["a", "b"]), preprocess((size, size), 1))


def spot(size: int = 8) -> np.ndarray:
    """A bright spot in the middle of a ground of the mean colour."""
    image = np.full((size, size, 1), 128, np.uint8)
    image[3:5, 3:5] = 240
    return image


def test_what_is_pooled_does_not_feel_a_shift_and_a_map_does() -> None:
    picture = visualize(
        "invariance",
        pooled_model(),
        spot(),
        stages="conv1,avgpool",
        border="mean",
        transforms="vertical,horizontal",
    )
    for name in ("vertical", "horizontal"):
        amounts = picture.arrays[name]
        assert amounts.tolist() == [-2, -1, 0, 1, 2]
        conv, pool = picture.arrays[f"{name}_distance"][0]
        np.testing.assert_allclose(pool, 0, atol=1e-6)
        assert conv[2] < 1e-6
        # A shift by 1 leaves half of the spot on itself: four pixels change by the step, by 2 all eight do.
        step = 2 * 112 / 255
        np.testing.assert_allclose(conv, step * np.sqrt([8, 4, 0, 4, 8]), rtol=1e-3)
        chances = picture.arrays[f"{name}_probability"][0]
        np.testing.assert_allclose(chances, chances[2], atol=1e-6)


def test_shifts_are_whole_pixels_and_borders_as_told() -> None:
    model, image = conv_model(), pictures(1)[0]
    method = Invariance(border="reflect")
    np.testing.assert_array_equal(method.moved(model, image, "vertical", 0.0), image)
    down = method.moved(model, image, "vertical", 2.0)
    np.testing.assert_array_equal(down[2:], image[:-2])
    np.testing.assert_array_equal(down[:2], image[[2, 1]])
    right = Invariance(border="edge").moved(model, image, "horizontal", 3.0)
    np.testing.assert_array_equal(right[:, 3:], image[:, :-3])
    np.testing.assert_array_equal(right[:, :3], np.repeat(image[:, :1], 3, axis=1))
    mean = Invariance(border="mean").moved(model, image, "horizontal", 1.0)
    assert (mean[:, 0] == model.preprocess.fill).all()
    turned = method.moved(model, image, "rotation", 90.0)
    np.testing.assert_allclose(turned.astype(int), np.rot90(image).astype(int), atol=1)
    small = Invariance(inset=0.5, border="mean").moved(model, image, "scale", 1.0)
    assert (small[:2] == model.preprocess.fill).all()
    assert not (small[3:5, 3:5] == model.preprocess.fill).all()


def test_curves_are_those_of_moving_each_picture_by_hand() -> None:
    model, images = conv_model(), pictures(3, seed=4)
    picture = visualize("invariance", model, images, stages="relu2", target=("dark", 1, "other"), steps=5)
    from striate.nets.taps import capture

    assert picture.arrays["target"].tolist() == [0, 1, 2]
    np.testing.assert_allclose(picture.arrays["scale"], [1 / 1.8, 1.8**-0.5, 1, 1.8**0.5, 1.8], rtol=1e-6)
    for number, image in enumerate(images):
        for name in TRANSFORMS:
            for place, amount in enumerate(picture.arrays[name]):
                middle = (4.0, 4.0)
                matrix = {
                    "vertical": geometry.translate(0, amount),
                    "horizontal": geometry.translate(amount, 0),
                    "scale": geometry.scale(float(amount), center=middle),
                    "rotation": geometry.rotate(float(amount), center=middle),
                }[name]
                moved = geometry.warp(image, matrix, (8, 8), border="reflect")
                pair = model.preprocess.normalise(np.stack([image, moved]))
                with torch.no_grad(), capture(model.net, ["relu2"]) as seen:
                    chances = model.net(pair).softmax(1)
                apart = float((seen["relu2"][1] - seen["relu2"][0]).norm())
                assert picture.arrays[f"{name}_distance"][number, 0, place] == pytest.approx(
                    apart, rel=1e-4, abs=1e-5
                )
                expected = float(chances[1, number])
                assert picture.arrays[f"{name}_probability"][number, place] == pytest.approx(
                    expected, abs=1e-5
                )
    assert picture.arrays["scale_distance"][:, :, 2].max() < 1e-5


def test_figure_has_a_chart_for_each_stage_and_the_probability() -> None:
    picture = visualize("invariance", conv_model(), pictures(2), steps=5)
    assert [curve.y for curve in picture.curves[:3]] == [
        "distance at conv1",
        "distance at flatten",
        "probability",
    ]
    assert len(picture.curves) == 12
    charts = [axes for axes in picture.figure().axes if axes.get_ylabel()]
    assert len(charts) == 12
    assert all(len(axes.lines) == 2 for axes in charts)
    assert picture.image().shape[2] == 3


def test_wrong_options_are_refused() -> None:
    model, images = conv_model(), pictures(2)
    for options, told in (
        ({"transforms": "vertikal"}, "vertical"),
        ({"stages": "rleu1"}, "relu1"),
        ({"target": ("dark",)}, "2 images"),
        ({"border": "wrap"}, "reflect"),
        ({"transforms": " "}, "no transform"),
    ):
        with pytest.raises(StriateError, match=told):
            visualize("invariance", model, images, **options)
    with pytest.raises(StriateError, match="classifier"):
        visualize("invariance", conv_model("segmentation"), images)


# ------------------------------------------------------------------ filters of any layer


def test_weights_of_higher_layers() -> None:
    model = conv_model()
    picture = visualize("filters", model, stage="conv2", count=5)
    want = model.net.conv2.weight.detach().numpy()
    np.testing.assert_array_equal(picture.arrays["weights"], want[:5])
    assert len(picture.panels) == 5
    # Six slices of 3 x 3 in rows of three, a pixel apart.
    square = picture.panels[2].pixels
    assert square.shape == (2 * 3 + 3, 3 * 3 + 4, 1)
    level = 128 + 127 * want[2, 4] / np.abs(want[2]).max()
    np.testing.assert_array_equal(square[5:8, 5:8, 0], np.rint(level))
    assert "The first 5 of 8" in picture.note


def test_first_layer_by_name_is_in_colour_and_linear_ones_are_matrices() -> None:
    model = conv_model()
    first, named = visualize("filters", model), visualize("filters", model, stage="conv1")
    np.testing.assert_array_equal(first.panels[0].pixels, named.panels[0].pixels)
    picture = visualize("filters", model, stage="fc3")
    np.testing.assert_array_equal(picture.arrays["weights"], model.net.fc3.weight.detach().numpy())
    assert picture.panels[0].pixels.shape == (3, 8, 3)
    templates = visualize("filters", linear_model(torch.eye(3, 4)), stage="fc")
    assert [panel.caption for panel in templates.panels] == ["dark", "bright", "other"]
    assert templates.arrays["weights"].shape == (3, 1, 2, 2)


def test_stages_without_one_layer_are_refused() -> None:
    model = conv_model()
    with pytest.raises(StriateError, match="conv2"):
        visualize("filters", model, stage="relu1")
    with pytest.raises(StriateError, match="conv1"):
        visualize("filters", model, stage="cnov1")
