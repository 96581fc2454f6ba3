"""What every visualisation method must hold, whichever file it comes from."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from little_models import conv_model, found, pictures
from striate.core.errors import StriateError
from striate.images import draw
from striate.model import Model
from striate.visualize.method import METHODS, Picture, visualize

METHOD_NAMES = METHODS.names()
LOOKING = [name for name in METHOD_NAMES if METHODS.get(name).most_images > 0]
AIMED = [name for name in METHOD_NAMES if METHODS.entry(name).capabilities.get("target")]


def images_for(name: str, count: int = 1, channels: int = 3) -> Any:
    kind = METHODS.get(name)
    wanted = min(max(count, kind.least_images), kind.most_images)
    return pictures(wanted, channels=channels) or None


def quick(name: str) -> dict[str, Any]:
    """The options with which a method of many charts is quick enough for these tests."""
    return METHODS.entry(name).capabilities.get("quick", {})


def show(name: str, model: Model, **options: Any) -> Picture:
    images = images_for(name, channels=model.preprocess.channels)
    return visualize(name, model, images, **(quick(name) | options))


def disturb(model: Model) -> None:
    """A net as users have it: halfway through training, some weights frozen, some gradients there."""
    net = model.net
    net.train()
    net.conv1.eval()
    net.conv1.weight.requires_grad_(False)
    net.conv1.bias.grad = torch.full_like(net.conv1.bias, 0.25)


@pytest.mark.parametrize("name", METHOD_NAMES)
def test_net_is_left_exactly_as_found(name: str) -> None:
    model = conv_model()
    disturb(model)
    calls = []
    model.net.conv1.register_forward_hook(lambda *_: calls.append(1))
    before = found(model.net)
    show(name, model)
    assert found(model.net) == before


@pytest.mark.parametrize("name", METHOD_NAMES)
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_crash_inside_the_net_leaves_it_as_found(
    name: str, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = conv_model()
    disturb(model)
    before = found(model.net)

    def crash(_: torch.Tensor) -> torch.Tensor:
        torch.rand(3)
        raise error("inside")

    monkeypatch.setattr(model.net.relu2, "forward", crash)
    if name in LOOKING or METHODS.entry(name).capabilities.get("runs"):
        with pytest.raises(error):
            show(name, model)
    else:
        show(name, model)
    assert found(model.net) == before


@pytest.mark.parametrize("name", AIMED)
@pytest.mark.parametrize("target", ["drak", 3, -1])
def test_wrong_target_is_one_line_and_leaves_the_net_as_found(name: str, target: int | str) -> None:
    model = conv_model()
    disturb(model)
    before = found(model.net)
    with pytest.raises(StriateError) as told:
        show(name, model, target=target)
    assert "\n" not in str(told.value)
    assert "dark" in str(told.value) or "0 to 2" in str(told.value)
    assert found(model.net) == before


@pytest.mark.parametrize("name", METHOD_NAMES)
def test_result_has_arrays_figure_image_and_files(name: str, tmp_path: Path) -> None:
    picture = show(name, conv_model())
    assert picture.method == name
    assert picture.title
    assert picture.note
    assert picture.arrays
    assert all(isinstance(array, np.ndarray) for array in picture.arrays.values())
    assert all(panel.pixels.dtype == np.uint8 and panel.pixels.ndim == 3 for panel in picture.panels)
    image = picture.image()
    assert image.dtype == np.uint8
    assert image.shape[2] == 3
    assert type(picture.figure()).__module__ == "matplotlib.figure"
    for suffix in (".png", ".svg", ".npz", ".json"):
        path = picture.save(tmp_path / f"{name}{suffix}")
        assert path.stat().st_size > 100
    assert Image.open(tmp_path / f"{name}.png").size[0] > 100
    assert picture._repr_png_().startswith(b"\x89PNG")
    with np.load(tmp_path / f"{name}.npz", allow_pickle=False) as kept:
        assert set(kept) == set(picture.arrays)
        for key, array in picture.arrays.items():
            np.testing.assert_array_equal(kept[key], array)
    written = json.loads((tmp_path / f"{name}.json").read_text())
    assert written["title"] == picture.title
    for key, array in picture.arrays.items():
        assert written["arrays"][key]["shape"] == list(array.shape)
        np.testing.assert_allclose(np.array(written["arrays"][key]["values"], float), array, rtol=1e-6)
    with pytest.raises(StriateError, match=r"\.png"):
        picture.save(tmp_path / "picture.docx")


@pytest.mark.parametrize("name", METHOD_NAMES)
def test_the_same_call_gives_the_same_bytes(name: str, tmp_path: Path) -> None:
    first, second = show(name, conv_model()), show(name, conv_model())
    for key, array in first.arrays.items():
        np.testing.assert_array_equal(array, second.arrays[key])
    for suffix in (".png", ".svg", ".json"):
        one, two = first.save(tmp_path / f"1{suffix}"), second.save(tmp_path / f"2{suffix}")
        assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize("name", LOOKING)
def test_every_form_of_image_gives_the_same_picture(name: str, tmp_path: Path) -> None:
    model, array = conv_model(), pictures(1, 11, 9)[0]
    path = draw.save(tmp_path / "image.png", array)
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    want = visualize(name, model, array, **quick(name))
    forms: list[Any] = [
        str(path),
        path,
        buffer.getvalue(),
        Image.fromarray(array),
        [array],
        (path,),
        array[None],
    ]
    for form in [*forms, (image for image in [array])]:
        seen = visualize(name, model, form, **quick(name))
        for key, numbers in want.arrays.items():
            np.testing.assert_array_equal(seen.arrays[key], numbers)


@pytest.mark.parametrize("name", METHOD_NAMES)
@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 16)])
def test_grey_and_colour(name: str, channels: int, size: int) -> None:
    picture = show(name, conv_model(channels=channels, size=size))
    assert picture.image().ndim == 3


@pytest.mark.parametrize("name", METHOD_NAMES)
@pytest.mark.parametrize("task", ["multi-label", "segmentation"])
def test_other_tasks_are_shown_or_refused_in_one_line(name: str, task: str) -> None:
    try:
        told = str(show(name, conv_model(task)).title)
    except StriateError as error:
        told = str(error)
    assert told
    assert "\n" not in told


@pytest.mark.parametrize("name", METHOD_NAMES)
def test_unknown_option_is_refused_with_the_list(name: str) -> None:
    with pytest.raises(StriateError, match=f"unknown option of {name}"):
        show(name, conv_model(), colour="red")


@pytest.mark.parametrize("name", METHOD_NAMES)
def test_wrong_number_of_images_is_refused(name: str) -> None:
    kind = METHODS.get(name)
    wrong = [] if kind.least_images else pictures(1)
    with pytest.raises(StriateError, match="image"):
        visualize(name, conv_model(), wrong)
    if kind.most_images:
        with pytest.raises(StriateError, match=f"to {kind.most_images} images"):
            visualize(name, conv_model(), pictures(kind.most_images + 1))


@pytest.mark.parametrize("name", METHOD_NAMES)
def test_every_option_has_help_and_a_refused_wrong_type(name: str) -> None:
    for option in dataclasses.fields(METHODS.get(name)):
        assert option.metadata["help"]
        with pytest.raises(StriateError):
            show(name, conv_model(), **{option.name: object()})


@pytest.mark.parametrize("name", LOOKING)
def test_weights_that_are_not_numbers_are_refused(name: str) -> None:
    model = conv_model()
    with torch.no_grad():
        model.net.conv1.weight.fill_(float("nan"))
    with pytest.raises(StriateError, match="not numbers"):
        show(name, model)
