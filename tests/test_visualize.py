"""The three first methods against values worked out by hand or in another way."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from little_models import CLASSES, conv_model, linear_model, pictures, preprocess
from striate.core.errors import StriateError
from striate.model import Model
from striate.nets.net import Net
from striate.nets.wrapped import wrap
from striate.tasks.classification import Classification
from striate.visualize.feature_maps import FeatureMaps
from striate.visualize.filters import drawn_weights
from striate.visualize.gradients import reduce_channels
from striate.visualize.method import METHODS, Panel, Picture, visualize


def wired(stages: list[tuple[str, nn.Module]], head: str, channels: int = 3, size: int = 4) -> Model:
    net = Net(stages, head=head, in_channels=channels, size=size, name="wired")
    return Model(net.eval(), Classification(CLASSES), preprocess((size, size), channels))


# ---------------------------------------------------------------- filters


def test_weights_are_drawn_around_grey() -> None:
    weights = np.array([[[[0.5, -1.0], [0.0, 1.0]]], [[[0.1, 0.0], [0.0, -0.2]]]], np.float32)
    each, joint = drawn_weights(weights, "each"), drawn_weights(weights, "joint")
    assert each[0][..., 0].tolist() == [[192, 1], [128, 255]]
    assert each[1][..., 0].tolist() == [[192, 128], [128, 1]]
    assert joint[0][..., 0].tolist() == [[192, 1], [128, 255]]
    assert joint[1][..., 0].tolist() == [[141, 128], [128, 103]]


def test_filters_that_are_zero_are_grey() -> None:
    assert np.unique(drawn_weights(np.zeros((2, 3, 2, 2), np.float32), "each")[0]).tolist() == [128]


def test_filters_are_those_of_the_first_convolution() -> None:
    model = conv_model()
    picture = visualize("filters", model, count=4)
    want = model.net.conv1.weight.detach().numpy()[:4]
    np.testing.assert_array_equal(picture.arrays["weights"], want)
    assert picture.title == "conv1: 6 filters, 3 x 3 x 3"
    assert "first 4 of 6" in picture.note
    assert "on its own" in picture.note
    assert "share one scale" in visualize("filters", model, scaling="joint").note
    # A weight of red alone is seen as red.
    with torch.no_grad():
        model.net.conv1.weight[0] = 0
        model.net.conv1.weight[0, 0] = 1
    assert visualize("filters", model).panels[0].pixels[0, 0].tolist() == [255, 128, 128]


def test_grey_filters_are_grey_pictures() -> None:
    assert visualize("filters", conv_model(channels=1)).panels[0].pixels.shape == (3, 3, 1)


def test_a_linear_classifier_shows_its_class_templates() -> None:
    weight = torch.arange(12.0).reshape(3, 4)
    model = linear_model(weight)
    picture = visualize("filters", model)
    assert picture.title == "fc: 3 class templates, 2 x 2 x 1"
    assert [panel.caption for panel in picture.panels] == list(CLASSES)
    np.testing.assert_array_equal(picture.arrays["weights"], weight.reshape(3, 1, 2, 2).numpy())


def test_a_first_layer_that_is_no_picture_is_refused() -> None:
    stages = [("norm", nn.BatchNorm2d(3)), ("pool", nn.AdaptiveAvgPool2d(1)), ("flatten", nn.Flatten())]
    with pytest.raises(StriateError, match=r"first layer 'norm' \(BatchNorm2d\) are no pictures"):
        visualize("filters", wired([*stages, ("fc", nn.Linear(3, 3))], "fc"))
    with pytest.raises(StriateError, match=r"'fc' \(Linear\) are no pictures"):
        visualize("filters", wired([*stages[1:], ("fc", nn.Linear(3, 3))], "fc"))


class Backwards(nn.Module):
    """A foreign net whose layers are defined in another order than they run in, and which reuses one ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)
        self.last = nn.Conv2d(4, 4, 3)
        self.relu = nn.ReLU(inplace=True)
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        return self.fc(self.relu(self.last(self.relu(self.body(x)))).mean((2, 3)))  # type: ignore[no-any-return]


def test_foreign_modules_are_looked_into_by_dotted_names() -> None:
    torch.manual_seed(0)
    foreign, image = Backwards(), pictures(1)[0]
    model = Model(wrap(foreign, in_channels=3, size=8), Classification(CLASSES), preprocess())
    picture = visualize("filters", model)
    assert picture.title.startswith("body.0: 4 filters")
    np.testing.assert_array_equal(picture.arrays["weights"], foreign.body[0].weight.detach().numpy())
    maps = visualize("feature-maps", model, image, stage="body.0").arrays
    with torch.no_grad():
        want = foreign.eval().body(model.preprocess.normalise(image[None]))[0].numpy()
    np.testing.assert_allclose(maps["maps"][0], want[maps["channels"]], rtol=1e-5)
    x = model.preprocess.normalise(image[None]).requires_grad_()
    foreign(x)[0, 2].backward()
    got = visualize("saliency", model, image, target=2).arrays["gradient"][0]
    np.testing.assert_allclose(got, x.grad[0].numpy(), rtol=1e-5)


# ---------------------------------------------------------------- feature maps


def two_maps() -> Model:
    """Maps of one grey image x: conv gives x, -2x and 0; relu cuts them."""
    conv = nn.Conv2d(1, 3, 1, bias=False)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([1.0, -2.0, 0.0]).reshape(3, 1, 1, 1))
    stages: list[tuple[str, nn.Module]] = [("conv", conv), ("relu", nn.ReLU()), ("pool", nn.AvgPool2d(2))]
    stages += [("avgpool", nn.AdaptiveAvgPool2d(1)), ("flatten", nn.Flatten()), ("fc", nn.Linear(3, 3))]
    return wired(stages, "fc", channels=1)


def test_feature_maps_by_hand() -> None:
    image = np.array([[0, 255, 0, 255]] * 4, np.uint8)
    picture = visualize("feature-maps", two_maps(), image, stage="relu")
    # The input is -1 and 1: relu leaves 1 in map 0 and 2 in map 1, each over half of the positions.
    assert picture.arrays["channels"].tolist() == [1, 0, 2]
    np.testing.assert_allclose(picture.arrays["strength"], [0.5, 1, 0])
    np.testing.assert_allclose(picture.arrays["maps"][0, 0], [[2, 0, 2, 0]] * 4)
    np.testing.assert_allclose(picture.arrays["maps"][0, 1], [[0, 1, 0, 1]] * 4)
    assert picture.title == "relu: 3 maps of 4 x 4, stride 1, receptive field 1"
    pooled = visualize("feature-maps", two_maps(), image, stage="pool")
    assert pooled.title == "pool: 3 maps of 2 x 2, stride 2, receptive field 2"


def test_strongest_maps_are_chosen_over_all_images() -> None:
    model = two_maps()
    images = [np.full((4, 4), level, np.uint8) for level in (255, 255, 255, 0)]
    picture = visualize("feature-maps", model, images, stage="relu", count=1)
    # Map 0 sums to 3 (three bright images), map 1 to 2 (one dark image).
    assert picture.arrays["channels"].tolist() == [0]
    assert picture.arrays["maps"].shape == (4, 1, 4, 4)
    assert len(picture.panels) == 8
    assert "1 strongest of 3" in picture.note


def test_scaling_of_maps() -> None:
    image = np.array([[0, 255, 0, 255]] * 4, np.uint8)
    each = visualize("feature-maps", two_maps(), image, stage="relu")
    joint = visualize("feature-maps", two_maps(), image, stage="relu", scaling="joint")
    assert each.panels[2].pixels.max() == joint.panels[1].pixels.max() == 255
    assert joint.panels[2].pixels.max() < 255
    # The map that is 0 everywhere is as dark as 0 is.
    assert each.panels[3].pixels.max() == each.panels[1].pixels.min(axis=(0, 1)).max()


def test_signed_maps_are_white_at_zero() -> None:
    image = np.array([[0, 255, 0, 255]] * 4, np.uint8)
    picture = visualize("feature-maps", two_maps(), image, stage="conv")
    assert "white 0" in picture.note
    assert picture.panels[3].pixels[0, 0].tolist() == [247, 247, 247]


@pytest.mark.parametrize(
    ("stage", "told"), [("conv9", "did you mean 'conv'"), ("flatten", "no maps"), ("fc", "conv, relu, pool")]
)
def test_stages_without_maps_are_refused(stage: str, told: str) -> None:
    with pytest.raises(StriateError) as error:
        visualize("feature-maps", two_maps(), pictures(1, 4, 4, 1), stage=stage)
    assert told in str(error.value)


def test_without_a_stage_the_first_maps_are_shown() -> None:
    assert visualize("feature-maps", two_maps(), pictures(1, 4, 4, 1)).title.startswith("conv: ")


def test_images_of_different_sizes() -> None:
    model = conv_model()
    model = Model(model.net, model.task, preprocess(None))
    images = [*pictures(1, 8, 8), *pictures(1, 12, 10)]
    picture = visualize("feature-maps", model, images, stage="relu1")
    assert picture.arrays["maps_0"].shape == (6, 8, 8)
    assert picture.arrays["maps_1"].shape == (6, 12, 10)
    assert visualize("saliency", model, images).arrays["saliency_1"].shape == (12, 10)


# ---------------------------------------------------------------- saliency


def test_saliency_of_a_linear_classifier_is_its_weights() -> None:
    weight = torch.tensor([[1.0, -2.0, 3.0, -4.0], [0.0, 1.0, 0.0, -1.0], [5.0, 5.0, 5.0, 5.0]])
    model, image = linear_model(weight), pictures(1, 2, 2, 1)[0]
    plain = visualize("saliency", model, image, target="dark")
    np.testing.assert_allclose(plain.arrays["saliency"][0], [[1, 2], [3, 4]])
    signed = visualize("saliency", model, image, target=0, signed=True)
    np.testing.assert_allclose(signed.arrays["saliency"][0], [[1, -2], [3, -4]])
    assert plain.arrays["target"].tolist() == [0]
    outputs = model.forward(image[None])[0]
    # The score is the logit, not the probability.
    np.testing.assert_allclose(plain.arrays["score"], [float(outputs[0])], rtol=1e-6)
    predicted = visualize("saliency", model, image)
    assert predicted.arrays["target"].tolist() == [int(outputs.argmax())]
    assert predicted.panels[0].caption == CLASSES[int(outputs.argmax())]


def test_largest_channel_by_absolute_value() -> None:
    gradient = np.array([[[1.0, -5.0]], [[-3.0, 2.0]], [[2.0, 4.0]]], np.float32)
    assert reduce_channels(gradient).tolist() == [[3, 5]]
    assert reduce_channels(gradient, signed=True).tolist() == [[-3, -5]]


def test_saliency_agrees_with_finite_differences() -> None:
    model, image = conv_model(), pictures(1)[0]
    model.net.double()
    x = model.preprocess.normalise(image[None]).double()
    gradient = visualize("saliency", wrapped_in_double(model), image, target=1).arrays["gradient"][0]
    with torch.no_grad():
        for c, y, z in [(0, 0, 0), (1, 3, 4), (2, 7, 7), (0, 5, 1)]:
            step = torch.zeros_like(x)
            step[0, c, y, z] = 1e-6
            slope = (model.net(x + step)[0, 1] - model.net(x - step)[0, 1]) / 2e-6
            assert float(slope) == pytest.approx(float(gradient[c, y, z]), rel=1e-4, abs=1e-7)


class Doubled(nn.Module):
    """Runs a net of doubles on floats."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The net's outputs."""
        return self.net(x.double())  # type: ignore[no-any-return]


def wrapped_in_double(model: Model) -> Model:
    return Model(Doubled(model.net), model.task, model.preprocess)


def test_saliency_of_labels_is_that_of_the_logit() -> None:
    model, image = conv_model("multi-label"), pictures(1)[0]
    got = visualize("saliency", model, image, target="other").arrays["gradient"][0]
    x = model.preprocess.normalise(image[None]).requires_grad_()
    model.net(x)[0, 2].backward()
    np.testing.assert_allclose(got, x.grad[0].numpy(), rtol=1e-5)


def test_saliency_of_masks_sums_over_the_pixels_of_the_class() -> None:
    model, image = conv_model("segmentation"), pictures(1)[0]
    x = model.preprocess.normalise(image[None]).requires_grad_()
    outputs = model.net(x)
    own = outputs.argmax(1)
    target = int(torch.bincount(own.flatten(), minlength=3).argmax())
    (outputs[:, target] * (own == target)).sum().backward()
    picture = visualize("saliency", model, image)
    assert picture.arrays["target"].tolist() == [target]
    np.testing.assert_allclose(picture.arrays["gradient"][0], x.grad[0].numpy(), rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        model.net.score.bias[:] = torch.tensor([1e3, 0.0, 0.0])
    with pytest.raises(StriateError, match="no pixel of the image to 'bright'; allowed: dark"):
        visualize("saliency", model, image, target="bright")


def test_a_net_that_overwrites_its_input_is_right() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 3)
    stages: list[tuple[str, nn.Module]] = [("relu0", nn.ReLU(inplace=True)), ("conv", conv)]
    stages += [("relu", nn.ReLU(inplace=True)), ("flatten", nn.Flatten()), ("fc", nn.Linear(16, 3))]
    model, image = wired(stages, "fc"), pictures(1, 4, 4)[0]
    got = visualize("saliency", model, image, target=0).arrays["gradient"][0]
    for name in ("relu0", "relu"):
        model.net.get_submodule(name).inplace = False
    want = visualize("saliency", model, image, target=0).arrays["gradient"][0]
    np.testing.assert_array_equal(got, want)
    x = model.preprocess.normalise(image[None])[0].numpy()
    assert not got[x < 0].any()


def test_a_score_without_gradient_is_refused() -> None:
    class Rounded(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.detach()

    stages: list[tuple[str, nn.Module]] = [("cut", Rounded()), ("flatten", nn.Flatten())]
    model = wired([*stages, ("fc", nn.Linear(48, 3))], "fc")
    with pytest.raises(StriateError, match="differentiable"):
        visualize("saliency", model, pictures(1, 4, 4))


def test_a_flat_gradient_is_said() -> None:
    model = linear_model(torch.zeros(3, 4))
    assert "0 everywhere" in visualize("saliency", model, pictures(1, 2, 2, 1)).note


def test_calls_under_inference_mode_are_refused_or_right() -> None:
    model, image = conv_model(), pictures(1)[0]
    want = visualize("saliency", model, image).arrays["saliency"]
    with torch.no_grad():
        np.testing.assert_array_equal(visualize("saliency", model, image).arrays["saliency"], want)


# ---------------------------------------------------------------- by name


@pytest.mark.parametrize(
    ("name", "told"),
    [("filtrs", "did you mean 'filters'"), ("gradcam", "did you mean 'grad-cam'"), (None, "given as None")],
)
def test_unknown_methods(name: str, told: str) -> None:
    with pytest.raises(StriateError) as error:
        visualize(name, conv_model())
    assert told in str(error.value)


def test_names_and_options_with_hyphens_or_underscores() -> None:
    model, image = conv_model(), pictures(1)
    first, second = (visualize(name, model, image, count=2) for name in ("feature_maps", "feature-maps"))
    np.testing.assert_array_equal(first.arrays["maps"], second.arrays["maps"])
    made = visualize(FeatureMaps(count=2), model, image)
    np.testing.assert_array_equal(first.arrays["maps"], made.arrays["maps"])


def test_options_are_checked() -> None:
    with pytest.raises(StriateError, match=r"unknown option of feature-maps 'stge'.*did you mean 'stage'"):
        visualize("feature-maps", conv_model(), pictures(1), stge="conv1")
    with pytest.raises(StriateError, match="count is 0; allowed: 1 to 1024"):
        visualize("feature-maps", conv_model(), pictures(1), count=0)
    with pytest.raises(StriateError, match="unknown scaling 'both'; allowed: each, joint"):
        visualize("filters", conv_model(), scaling="both")


def test_what_is_no_image_is_refused() -> None:
    with pytest.raises(StriateError, match="given as int"):
        visualize("saliency", conv_model(), 3)


def test_class_names_are_no_formulas() -> None:
    panel = Panel(pictures(1)[0], "$\\frac{1}{$ _x")
    picture = Picture("m", "100 $ or $x", "a $ note", {"a": np.zeros(1)}, (panel,), 1)
    assert picture._repr_png_()


def test_numbers_that_json_has_not_become_null() -> None:
    picture = Picture("m", "t", "n", {"a": np.array([1.0, np.nan])}, (Panel(pictures(1)[0]),), 1)
    assert picture.to_dict()["arrays"]["a"]["values"] == [1.0, None]


def test_matplotlib_is_not_imported_before_it_is_needed() -> None:
    code = (
        "import sys, striate.visualize.method as m; m.METHODS.names(); "
        "assert not any(x.startswith('matplotlib') for x in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_figures_leave_the_users_matplotlib_alone() -> None:
    visualize("filters", conv_model()).figure()
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


def test_registered_methods() -> None:
    assert {
        "filters", "feature-maps", "saliency", "smoothgrad", "integrated-gradients", "guided-backprop",
        "deconvnet", "grad-cam", "guided-grad-cam", "cam", "occlusion",
    } <= set(METHODS.names())  # fmt: skip
    assert all(METHODS.entry(name).summary for name in METHODS.names())
