"""Evaluation against hand-computed scores, against predict, and with data that do not fit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from little_models import CLASSES, conv_model, linear_model, pictures
from striate.core.errors import StriateError
from striate.data.samples import Dataset, Split
from striate.evaluate.evaluate import evaluate
from striate.images import draw
from striate.model import Model
from striate.tasks import metrics


def bright_or_dark() -> Model:
    """Score of "dark" is minus, of "bright" plus the sum of four pixels; "other" 0."""
    ones = torch.ones(4)
    return linear_model(torch.stack([-ones, ones, 0 * ones]))


def flat(level: int) -> np.ndarray:
    return np.full((2, 2, 1), level, np.uint8)


def levels_set(levels: list[int], targets: list[int], split: str = "test") -> Dataset:
    stack = np.stack([flat(level) for level in levels])
    return Dataset("levels", "classification", CLASSES, [Split.from_arrays(split, stack, targets)])


def image_folder(root: Path, split: str = "test", size: int = 8) -> Path:
    """Folders of classes with five images each, as PNG."""
    for number, name in enumerate(("bright", "dark")):
        for i, image in enumerate(pictures(5, size, size + 2, seed=number)):
            draw.save(root / split / name / f"{i}.png", image)
    return root


def test_scores_by_hand() -> None:
    # Below 127.5 is dark: the bright 90 and the other 200 are missed.
    data = levels_set([10, 200, 250, 90, 200], [0, 1, 1, 1, 2])
    result = evaluate(bright_or_dark(), data, batch=2)
    assert result.scores.predicted.tolist() == [0, 1, 1, 0, 1]
    assert result.scores.correct == 3
    assert result.scores.confusion.tolist() == [[1, 0, 0], [1, 2, 0], [0, 1, 0]]
    assert result.intervals["top-1"] == metrics.wilson(3, 5)
    assert (result.n, result.split, result.protocol, result.views, result.bad) == (5, "test", "center", 1, ())
    assert result.multiply_adds == 4 * 3
    assert 0 < result.images_per_second <= result.network_images_per_second
    text = "\n".join(result.lines())
    assert "60.00 %" in text
    assert "23.07 to 88.24" in text
    assert "12 multiply-adds an image" in text


def test_result_is_saved_as_json(tmp_path: Path) -> None:
    result = evaluate(bright_or_dark(), levels_set([10, 200], [0, 1]))
    told = json.loads(result.save(tmp_path / "evaluation.json").read_text())
    assert told["scores"]["confusion"] == [[1, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert told["intervals"]["top-1"] == list(metrics.wilson(2, 2) or ())
    assert told["images_per_second"] > 0
    short = result.brief()
    assert {"images_per_second", "network_images_per_second"} <= short.keys()
    assert "index" not in short["scores"]


@pytest.mark.parametrize("size", [(8, 8), (20, 30), None])
def test_predict_gives_exactly_what_was_counted(tmp_path: Path, size: tuple[int, int] | None) -> None:
    root = image_folder(tmp_path / "set", size=40)
    for name in ("bright", "dark"):
        draw.save(root / "test" / name / "photo.jpg", pictures(1, 90, 120, seed=9)[0])
    model = conv_model()
    model = Model(model.net, model.task, type(model.preprocess)(size=size, resize="crop" if size else "none"))
    result = evaluate(model, root, batch=5, threads=2)
    from striate.data.formats import open_data

    split = open_data(root).aligned_to(model.classes).split("test")
    answers = model.predict([root / name for name in split.names], batch=5)
    assert len(answers) == result.n == 12
    assert [answer.index for answer in answers] == result.scores.predicted.tolist()
    assert [answer.probability for answer in answers] == result.scores.confidence.tolist()
    counted = sum(a.index == t for a, t in zip(answers, split.targets, strict=True))
    assert counted == result.scores.correct


def test_predict_on_digits_gives_exactly_what_was_counted() -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = (digits.images * 15).astype(np.uint8)[..., None]
    model = conv_model(channels=1)
    data = Dataset(
        "digits",
        "classification",
        CLASSES,
        [Split.from_arrays("test", images[:300], digits.target[:300] % 3)],
    )
    result = evaluate(model, data, batch=32)
    answers = model.predict(list(images[:300]), batch=32)
    assert [answer.index for answer in answers] == result.scores.predicted.tolist()
    assert (
        sum(a.index == t % 3 for a, t in zip(answers, digits.target, strict=False)) == result.scores.correct
    )


def test_masks_of_predict_are_those_that_were_counted() -> None:
    model, images = conv_model("segmentation"), pictures(5)
    masks = np.random.default_rng(0).integers(0, 3, (5, 8, 8))
    masks[0, :2] = 255
    data = Dataset(
        "masks", "segmentation", CLASSES, [Split.from_arrays("test", np.stack(images), masks=masks)]
    )
    result = evaluate(model, data, batch=2)
    predicted = np.stack([answer.mask for answer in model.predict(images, batch=2)])
    want = metrics.confusion(masks, predicted, 3, ignore=255)
    np.testing.assert_array_equal(result.scores.confusion, want)


def test_multi_label_labels_are_those_that_were_counted() -> None:
    model, images = conv_model("multi-label"), pictures(7)
    targets = np.random.default_rng(0).integers(0, 2, (7, 3))
    data = Dataset("labels", "multi-label", CLASSES, [Split.from_arrays("test", np.stack(images), targets)])
    result = evaluate(model, data, batch=3)
    predicted = [sorted(answer.indices) for answer in model.predict(images, batch=3)]
    assert predicted == [np.flatnonzero(row).tolist() for row in result.scores.predicted]
    assert result.intervals["all labels right"] == result.scores.interval


@pytest.mark.parametrize("batch", [1, 2, 64])
def test_unreadable_files_are_named_counted_and_in_no_score(tmp_path: Path, batch: int) -> None:
    root = image_folder(tmp_path / "set")
    # One that no header tells, two that only decoding finds out; the first file of all is one of them.
    (root / "test" / "bright" / "0.png").write_bytes(b"no image")
    for name in ("bright/1.png", "dark/4.png"):
        path = root / "test" / name
        path.write_bytes(path.read_bytes()[:-60])
    result = evaluate(conv_model(), root, batch=batch)
    assert result.n == 7
    assert sorted(Path(name).name for name, _ in result.bad) == ["0.png", "1.png", "4.png"]
    text = "\n".join(result.lines())
    assert "left out: 3 unreadable" in text
    assert "4.png" in text


def test_nothing_readable_is_one_line(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "set")
    for path in root.rglob("*.png"):
        path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(StriateError) as told:
        evaluate(conv_model(), root)
    assert "\n" not in str(told.value)


def test_test_falls_back_on_val_and_says_so() -> None:
    result = evaluate(bright_or_dark(), levels_set([10], [0], split="val"))
    assert result.split == "val"
    assert any("has no split 'test'" in line for line in result.lines())


def test_unknown_split_is_refused_with_the_list() -> None:
    with pytest.raises(StriateError, match=r"unknown split 'tets'; allowed: .*test"):
        evaluate(bright_or_dark(), levels_set([10], [0]), split="tets")
    with pytest.raises(StriateError, match="unknown split 'test'"):
        evaluate(bright_or_dark(), levels_set([10], [0], split="other"))


def test_classes_are_matched_by_name() -> None:
    stack = np.stack([flat(250), flat(10)])
    data = Dataset(
        "other order", "classification", ("Bright", "dark"), [Split.from_arrays("test", stack, [0, 1])]
    )
    assert evaluate(bright_or_dark(), data).scores.top1 == 1


def test_classes_that_do_not_match_are_told_from_both_sides() -> None:
    stack = np.stack([flat(250), flat(10)])
    data = Dataset("pets", "classification", ("cat", "dark"), [Split.from_arrays("test", stack, [0, 1])])
    with pytest.raises(StriateError, match=r"pets.*\(cat, dark\).*\(dark, bright, other\).*'cat'") as told:
        evaluate(bright_or_dark(), data)
    assert "\n" not in str(told.value)


def test_data_of_another_kind_are_refused() -> None:
    data = Dataset("masks", "segmentation", CLASSES, [Split.from_arrays("test", np.stack(pictures(1)))])
    with pytest.raises(StriateError, match="annotated for segmentation, the model does classification"):
        evaluate(bright_or_dark(), data)


@pytest.mark.parametrize(
    ("setting", "value", "told"),
    [
        ("batch", 0, "batch is 0"),
        ("batch", True, "batch is True"),
        ("threads", -1, "threads is -1"),
        ("device", "gpu", "unknown device 'gpu'"),
        ("protocol", "centre", "did you mean 'center'"),
        ("label_colum", "x", "did you mean 'label_column'"),
    ],
)
def test_wrong_settings_are_one_line(setting: str, value: object, told: str) -> None:
    with pytest.raises(StriateError) as error:
        evaluate(bright_or_dark(), levels_set([10], [0]), **{setting: value})
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_a_net_that_diverged_is_refused() -> None:
    model = bright_or_dark()
    with torch.no_grad():
        model.net.fc.weight.fill_(float("nan"))
    with pytest.raises(StriateError, match="not numbers"):
        evaluate(model, levels_set([10], [0]))


@pytest.mark.parametrize("threads", [None, 0, 1, 3])
def test_threads_change_no_score_and_are_given_back(threads: int | None) -> None:
    before = torch.get_num_threads()
    model, images = conv_model(), pictures(40)
    data = Dataset(
        "many", "classification", CLASSES, [Split.from_arrays("test", np.stack(images), np.arange(40) % 3)]
    )
    result = evaluate(model, data, batch=8, threads=threads)
    assert torch.get_num_threads() == before
    want = model.forward(np.stack(images)).argmax(1)
    assert result.scores.predicted.tolist() == want.tolist()
    assert result.scores.index.tolist() == list(range(40))
