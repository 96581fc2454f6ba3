"""The Model: one path for predicting and testing, and files that come back as they were written."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

import striate
from striate import modelfile
from striate.core.errors import BadImage, BadModelFile, StriateError
from striate.data.preprocess import Preprocess
from striate.model import Answers, Model, load
from striate.nets.net import create_net
from striate.tasks.classification import Classification, Classified
from striate.tasks.segmentation import Segmentation

CLASSES = ("dark", "grey", "bright")


class Brightness(nn.Module):
    """Logits by hand from the mean of the normalised input: class 0 below 1/3, 1 in between, 2 above 2/3."""

    def __init__(self) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.tensor([0.0, 0.5, 1.0]))
        self.drop = nn.Dropout(0.9)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return -10 * (self.drop(x).mean((1, 2, 3))[:, None] - self.centres).abs()


def brightness(size: tuple[int, int] | None = (4, 4), channels: int = 1) -> Model:
    preprocess = Preprocess(size=size, channels=channels, resize="squash", mean=(0.0,), std=(1.0,))
    return Model(Brightness(), Classification(CLASSES), preprocess)


def small_model(seed: int = 0, **card: Any) -> Model:
    torch.manual_seed(seed)
    net = create_net("lenet5", 3, 1, size=28)
    return Model(net, Classification(CLASSES), Preprocess(size=(28, 28), channels=1, resize="squash"), card)


def grey(level: int, side: int = 8) -> np.ndarray:
    return np.full((side, side), level, np.uint8)


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


# ------------------------------------------------------------------------------------------------ predict


def test_every_form_of_an_image_gets_the_same_answer(tmp_path: Path) -> None:
    model, image = small_model(), np.random.default_rng(0).integers(0, 256, (40, 30), dtype=np.uint8)
    path = tmp_path / "picture.png"
    path.write_bytes(png(image))
    wanted = model.predict(image)
    assert isinstance(wanted, Classified)
    forms = [str(path), path, png(image), bytearray(png(image)), memoryview(png(image)), image[..., None]]
    forms.append(Image.fromarray(image))
    for form in forms:
        assert model.predict(form) == wanted
    for answer in model.predict(forms):
        # The last bits of a sum may depend on how many images are in the batch; the answer does not.
        assert answer.top.labels == wanted.top.labels
        assert answer.top.probabilities == pytest.approx(wanted.top.probabilities, rel=1e-5)


def test_answers_by_hand() -> None:
    answers = brightness().predict([grey(10), grey(128), grey(250)], top=2)
    assert isinstance(answers, Answers)
    assert [answer.label for answer in answers] == ["dark", "grey", "bright"]
    assert answers.names == ["image 0", "image 1", "image 2"]
    first = answers[0].top
    assert first.labels == ("dark", "grey")
    logits = np.array([-10 * 10 / 255, -10 * (0.5 - 10 / 255), -10 * (1 - 10 / 255)])
    assert first.probabilities[0] == pytest.approx(np.exp(logits[0]) / np.exp(logits).sum(), rel=1e-4)


def test_many_images_stay_in_order_whatever_the_batch_and_threads() -> None:
    levels = np.random.default_rng(1).integers(0, 256, 23)
    for size in ((4, 4), None):
        model = brightness(size)
        alone = [model.predict(grey(int(level))) for level in levels]
        for batch, threads in ((1, 1), (4, 3), (64, 2)):
            sides = [8 + i % 3 for i in range(len(levels))]
            images = (grey(int(level), side) for level, side in zip(levels, sides, strict=True))
            together = model.predict(images, batch=batch, threads=threads)
            assert [answer.index for answer in together] == [answer.index for answer in alone]


def test_an_array_of_images_is_many_and_an_empty_list_is_none() -> None:
    assert len(brightness().predict(np.zeros((3, 5, 5, 1), np.uint8))) == 3
    assert brightness().predict([]) == []


def test_a_generator_is_read_as_it_is_needed() -> None:
    read = 0

    def endless() -> Iterator[np.ndarray]:
        nonlocal read
        while True:
            read += 1
            yield grey(read % 256)

    stream = brightness().stream(endless(), batch=3)
    names = [next(stream)[0] for _ in range(7)]
    assert names[-1] == "image 6"
    assert read <= 7 + 2 * 3 * 2
    stream.close()


def test_a_folder_stands_for_its_images_in_order(tmp_path: Path) -> None:
    for name, level in (("b.png", 250), ("a.png", 5), ("sub/c.PNG", 128)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png(grey(level)))
    (tmp_path / "notes.txt").write_text("no image")
    answers = brightness().predict(tmp_path)
    assert [answer.label for answer in answers] == ["dark", "bright", "grey"]
    assert [Path(name).name for name in answers.names] == ["a.png", "b.png", "c.PNG"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(StriateError, match="no image in the folder"):
        brightness().predict(str(tmp_path / "empty"))


def test_a_bad_image_is_raised_or_listed(tmp_path: Path) -> None:
    bad = tmp_path / "broken.png"
    bad.write_bytes(png(grey(3))[:40])
    images = [grey(5), bad, grey(250)]
    with pytest.raises(BadImage, match=r"broken\.png"):
        brightness().predict(images)
    with pytest.raises(BadImage):
        brightness().predict(bad)
    answers = brightness().predict(images, on_error="skip")
    assert answers[1] is None
    assert [answers[0].label, answers[2].label] == ["dark", "bright"]
    assert [name for name, _ in answers.bad] == [str(bad)]
    assert list(brightness().predict([bad], on_error="skip")) == [None]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"top": 0}, "top is 0"),
        ({"batch": 0}, "batch is 0"),
        ({"threads": -1}, "threads is -1"),
        ({"threads": 100_000}, "threads is 100000; allowed: a whole number from 0 to"),
        ({"on_error": "ignore"}, "on-error"),
        ({"device": "abacus"}, "device 'abacus'"),
    ],
)
def test_wrong_settings_are_told(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(StriateError, match=message):
        brightness().predict([grey(1)], **settings)


def test_what_is_no_image_is_told() -> None:
    with pytest.raises(StriateError, match="an image is given as int"):
        brightness().predict(7)
    with pytest.raises(BadImage, match="float"):
        brightness().predict(np.zeros((4, 4)))


def test_predicting_leaves_the_net_as_it_was_also_when_it_fails() -> None:
    model = brightness()
    model.net.train()
    model.net.drop.eval()
    model.predict(grey(9))
    assert (model.net.training, model.net.drop.training) == (True, False)
    model.net.forward = lambda x: 1 / 0  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError):
        model.predict(grey(9))
    assert (model.net.training, model.net.drop.training) == (True, False)


def test_a_net_with_another_number_of_outputs_is_refused() -> None:
    with pytest.raises(StriateError, match="3 outputs for 2 classes"):
        Model(create_net("lenet5", 3, 1, size=28), Classification(("a", "b")), Preprocess(channels=1))


@pytest.mark.parametrize("resize", ["none", "squash", "pad"])
def test_segmentation_answers_in_each_images_own_size(resize: str) -> None:
    torch.manual_seed(0)
    task = Segmentation(("a", "b"))
    net = task.build_net("unet", in_channels=3, size=32, options={"width": 4, "depth": 2})
    preprocess = Preprocess(size=None if resize == "none" else (24, 32), resize=resize)
    model = Model(net, task, preprocess)
    random = np.random.default_rng(0)
    shapes = [(32, 24), (17, 40), (32, 24), (50, 21)]
    images = [random.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]
    answers = model.predict(images, batch=3)
    assert [answer.mask.shape for answer in answers] == shapes
    assert all((answer.mask != 255).all() for answer in answers)
    (alone,) = model.predict([images[3]])
    assert (alone.mask == answers[3].mask).mean() > 0.99


def test_masks_have_the_full_size_of_a_jpeg_that_was_decoded_smaller() -> None:
    file = io.BytesIO()
    Image.new("RGB", (400, 300), "white").save(file, "JPEG")
    task = Segmentation(("a", "b"))
    net = task.build_net("unet", in_channels=3, size=32, options={"width": 4, "depth": 2})
    model = Model(net, task, Preprocess(size=(24, 32), resize="squash"))
    assert model.predict(file.getvalue()).mask.shape == (300, 400)


# -------------------------------------------------------------------------------------------------- files


def same(a: Model, b: Model) -> bool:
    states = a.net.state_dict(), b.net.state_dict()
    return states[0].keys() == states[1].keys() and all(
        torch.equal(states[0][k], states[1][k]) for k in states[0]
    )


def test_a_saved_model_comes_back_whole(tmp_path: Path) -> None:
    model = small_model(name="toy", scores={"top-1": 0.5, "loss": float("nan")}, data=Path("a/b"))
    path = model.save(tmp_path / "model.safetensors")
    again = load(path)
    assert same(model, again)
    assert not again.net.training
    assert again.classes == CLASSES
    assert again.preprocess == model.preprocess
    assert again.task.settings() == model.task.settings()
    assert again.card == {"name": "toy", "scores": {"top-1": 0.5, "loss": None}, "data": "a/b"}
    image = np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)
    assert again.predict(image) == model.predict(image)
    assert again.save(tmp_path / "again.safetensors").read_bytes() == path.read_bytes()
    assert all(p.requires_grad and p.is_leaf for p in again.net.parameters())


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    a = small_model(seed=1, b=1, a=2).save(tmp_path / "a").read_bytes()
    b = small_model(seed=1, a=2, b=1).save(tmp_path / "b").read_bytes()
    assert a == b
    assert a != small_model(seed=2, a=2, b=1).save(tmp_path / "c").read_bytes()


@pytest.mark.parametrize("name", ["resnet20", "mlp", "unet"])
def test_options_and_size_are_kept(tmp_path: Path, name: str) -> None:
    options = {"resnet20": {"zero_init": True}, "mlp": {"hidden": 7}, "unet": {"width": 4, "depth": 2}}[name]
    task = Segmentation(CLASSES) if name == "unet" else Classification(CLASSES)
    net = task.build_net(name, in_channels=1, size=(20, 24), options=options)
    path = Model(net, task, Preprocess(size=(20, 24), channels=1)).save(tmp_path / "m")
    again = load(path)
    assert again.net.options == net.options
    assert again.net.input_size == net.input_size
    views = np.random.default_rng(0).integers(0, 256, (2, 20, 24, 1), dtype=np.uint8)
    assert torch.equal(again.forward(views), Model(net, task, again.preprocess).forward(views))


def test_loading_draws_no_random_numbers(tmp_path: Path) -> None:
    path = small_model().save(tmp_path / "m")
    torch.manual_seed(5)
    before = torch.get_rng_state()
    load(path)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_load_into_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    model = small_model()
    header = modelfile.read_table(model.save(tmp_path / "m"))[1]
    assert header is not None
    state = {name: tensor.to(dtype) for name, tensor in model.net.state_dict().items()}
    again = load(modelfile.write(tmp_path / "half", header, state))
    for name, tensor in again.net.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, state[name].float())


def test_a_run_folder_a_file_and_public_names_load(tmp_path: Path) -> None:
    model = small_model()
    model.save(tmp_path / "run" / "model.safetensors")
    assert same(load(tmp_path / "run"), model)
    assert same(striate.load(str(tmp_path / "run" / "model.safetensors")), model)
    (tmp_path / "unfinished").mkdir()
    with pytest.raises(StriateError, match=r"holds no model\.safetensors"):
        load(tmp_path / "unfinished")
    with pytest.raises(StriateError, match="no file or folder"):
        load(tmp_path / "nowhere.safetensors")
    with pytest.raises(StriateError, match="did you mean 'efficientnet_lite0'"):
        load("efficientnet-lite0")


def test_both_sides_of_a_mismatch_are_told(tmp_path: Path) -> None:
    model = small_model()
    path = model.save(tmp_path / "m")
    header = modelfile.read_table(path)[1]
    assert header is not None
    state = model.net.state_dict()
    renamed = {name.replace("fc5", "fc9"): tensor for name, tensor in state.items()}
    with pytest.raises(BadModelFile, match=r"in the file: fc5\.weight.*unknown to the net: fc9\.bias"):
        load(modelfile.write(tmp_path / "renamed", header, renamed))
    with pytest.raises(BadModelFile, match=r"fc5\.weight is \(4, 84\) in the net and \(3, 84\) in the file"):
        load(modelfile.write(tmp_path / "classes", {**header, "classes": [*CLASSES, "more"]}, state))
    whole = {**state, "fc5.bias": torch.zeros(3, dtype=torch.int64)}
    with pytest.raises(BadModelFile, match=r"fc5\.bias is float32 in the net and I64 in the file"):
        load(modelfile.write(tmp_path / "whole", header, whole))


def test_weights_without_a_header_say_what_to_do(tmp_path: Path) -> None:
    save_file(small_model().net.state_dict(), tmp_path / "bare.safetensors")
    with pytest.raises(BadModelFile, match="no Striate header; build the net"):
        load(tmp_path / "bare.safetensors")


def test_a_newer_format_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = small_model().save(tmp_path / "m")
    header = modelfile.read_table(path)[1]
    assert header is not None
    with pytest.raises(BadModelFile, match="model format 2; allowed: 1; update Striate"):
        load(modelfile.write(tmp_path / "new", {**header, "format": 2}, load_file(path)))


def test_a_module_from_elsewhere_loads_into_the_module_given(tmp_path: Path) -> None:
    model = brightness()
    with torch.no_grad():
        model.net.centres.add_(0.25)
    path = model.save(tmp_path / "m")
    with pytest.raises(BadModelFile, match="module from elsewhere"):
        load(path)
    again = load(path, net=Brightness())
    assert same(model, again)


def test_a_wrapped_module_loads_into_one_of_its_kind(tmp_path: Path) -> None:
    def wrapped() -> nn.Module:
        return striate.wrap(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), in_channels=1, size=2)

    model = Model(wrapped(), Classification(("a", "b")), Preprocess(size=(2, 2), channels=1))
    path = model.save(tmp_path / "m")
    with pytest.raises(BadModelFile, match="module from elsewhere"):
        load(path)
    assert same(model, load(path, net=wrapped()))


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = small_model().save(tmp_path / "m")
    before = path.read_bytes()
    with pytest.raises(ValueError, match="8 MiB"):
        small_model(notes="x" * 9_000_000).save(path)
    with pytest.raises(StriateError, match="cannot write"):
        small_model().save(path / "below" / "a" / "file")
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["m"]
