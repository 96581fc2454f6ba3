"""Predictions for files: tables, JSON, masks, unreadable files; and what `striate list` shows."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from little_models import CLASSES, preprocess
from striate import cli
from striate.core.errors import StriateError
from striate.images import draw
from striate.images.decode import decode, decode_index
from striate.model import Model
from striate.studies.answers import predict_files
from striate.studies.catalogue import REGISTRIES, rows
from striate.tasks.task import TASKS


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in ("b.png", "a.png"):
        draw.save(folder / name, rng.integers(0, 256, (10, 12, 3), dtype=np.uint8))
    (folder / "bad.jpg").write_bytes(b"no image at all")
    return folder


def saved(tmp_path: Path, task: str = "classification") -> str:
    torch.manual_seed(0)
    chosen = TASKS.get(task)(CLASSES)
    net = chosen.build_net("resnet20", in_channels=3, size=(16, 16))
    return str(Model(net.eval(), chosen, preprocess((16, 16))).save(tmp_path / "model.safetensors"))


def test_a_table_has_one_row_a_file_with_the_classes_best_first(tmp_path: Path, files: Path) -> None:
    out = tmp_path / "answers.csv"
    result = predict_files(saved(tmp_path), [str(files)], top=2, skip_bad=True, out=str(out))
    with open(out, newline="") as file:
        table = list(csv.DictReader(file))
    assert [Path(row["file"]).name for row in table] == ["a.png", "b.png"]
    for row, answer in zip(table, result.answers, strict=True):
        assert (row["label_1"], row["label_2"]) == answer.top.labels
        assert float(row["probability_1"]) >= float(row["probability_2"]) > 0
    assert [Path(name).name for name, _ in result.bad] == ["bad.jpg"]


def test_an_unreadable_file_stops_unless_it_is_to_be_skipped(tmp_path: Path, files: Path) -> None:
    with pytest.raises(StriateError, match=r"bad\.jpg"):
        predict_files(saved(tmp_path), [str(files)])
    with pytest.raises(StriateError, match="cannot look for"):
        predict_files(saved(tmp_path), ["x" * 300])


def test_json_on_the_command_line_names_answers_and_bad_files(
    tmp_path: Path, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["predict", saved(tmp_path), str(files), "--skip_bad", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {answer["label"] for answer in told["answers"]} <= set(CLASSES)
    assert len(told["bad"]) == 1


def test_a_folder_stands_for_all_images_that_training_reads(tmp_path: Path, files: Path) -> None:
    (files / "b.png").rename(files / "b.jfif")
    (files / "a.png").rename(files / "a.PNG")
    result = predict_files(saved(tmp_path), [str(files)], skip_bad=True)
    assert [Path(name).name for name in result.files] == ["a.PNG", "b.jfif"]


def test_what_is_printed_of_masks_is_short(
    tmp_path: Path, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = saved(tmp_path, "segmentation"), tmp_path / "answers.json"
    words = ["predict", model, str(files), "--skip_bad", "--json", "--out", str(out)]
    assert cli.main(words) == 0
    told, kept = json.loads(capsys.readouterr().out), json.loads(out.read_text())
    assert [sorted(answer) for answer in told["answers"]] == [["classes", "fractions"]] * 2
    assert [np.shape(answer["mask"]) for answer in kept["answers"]] == [(10, 12)] * 2


def test_masks_are_index_pictures_of_the_size_of_the_file(tmp_path: Path, files: Path) -> None:
    out = tmp_path / "masks"
    result = predict_files(saved(tmp_path, "segmentation"), [str(files)], skip_bad=True, out=str(out))
    # Written, not kept: nor is the whole behind a part of it.
    assert [(answer.mask.size, answer.mask.base) for answer in result.answers] == [(0, None)] * 2
    assert sum(result.answers[0].fractions) == pytest.approx(1)
    names = {path.name for path in out.iterdir()}
    assert names == {"a.png", "a_overlay.png", "b.png", "b_overlay.png"}
    mask = decode_index(out / "a.png")
    assert mask.shape == (10, 12)
    assert set(np.unique(mask)) <= {0, 1, 2}
    assert decode(out / "a_overlay.png").shape == (10, 12, 3)


def test_masks_never_take_the_place_of_pictures_or_of_one_another(tmp_path: Path, files: Path) -> None:
    model, before = saved(tmp_path, "segmentation"), (files / "a.png").read_bytes()
    with pytest.raises(StriateError, match="would take the place of a picture"):
        predict_files(model, [str(files / "a.png")], out=str(files))
    assert (files / "a.png").read_bytes() == before
    (files / "a_overlay.png").write_bytes(before)
    predict_files(model, [str(files / name) for name in ("a.png", "a_overlay.png")], out=str(tmp_path / "m"))
    names = {path.name for path in (tmp_path / "m").iterdir()}
    assert names == {"a.png", "a_overlay.png", "a_overlay_.png", "a_overlay__overlay.png"}


def test_masks_replace_nothing_but_earlier_masks(tmp_path: Path, files: Path) -> None:
    model, out = saved(tmp_path, "segmentation"), tmp_path / "labels.v2"
    out.mkdir()
    (out / "a.png").write_bytes(b"the truth")
    with pytest.raises(StriateError, match=r"a\.png' would be replaced, which is no earlier answer"):
        predict_files(model, [str(files / "a.png")], out=str(out))
    assert (out / "a.png").read_bytes() == b"the truth"
    (tmp_path / "plain").write_text("mine")
    with pytest.raises(StriateError, match="is a file; give a folder"):
        predict_files(model, [str(files / "a.png")], out=str(tmp_path / "plain"))
    for _ in range(2):
        predict_files(model, [str(files / "b.png")], out=str(out))
    assert {path.name for path in out.iterdir()} == {"a.png", "b.png", "b_overlay.png"}


@pytest.mark.parametrize(
    ("task", "out", "words"),
    [
        ("classification", "masks", "gives no masks"),
        ("segmentation", "answers.csv", "masks do not fit"),
        ("classification", "answers.xlsx", ".csv"),
    ],
)
def test_a_target_that_cannot_hold_the_answers_is_refused(
    tmp_path: Path, files: Path, task: str, out: str, words: str
) -> None:
    with pytest.raises(StriateError, match=words):
        # Before the pictures are looked at: one of them is none.
        predict_files(saved(tmp_path, task), [str(files)], out=str(tmp_path / out))
    assert not (tmp_path / out).exists()


@pytest.mark.parametrize("kind", sorted(REGISTRIES))
def test_every_list_has_rows_that_say_something(kind: str) -> None:
    found = rows(kind)
    assert len(found.names) >= 1
    assert all(text.strip() for text in found.texts)
    assert len(found.lines()) == len(found.names)


def test_stages_are_listed_for_a_net_and_for_a_saved_model(tmp_path: Path) -> None:
    assert rows("stages", "lenet5").names[:3] == ["conv1", "relu1", "pool1"]
    assert "res2a" in rows("stages", saved(tmp_path)).names
    found = rows("stages", "vgg16")
    at = dict(
        zip(found.names, zip(found.shape, found.stride, found.receptive_field, strict=True), strict=True)
    )
    # Receptive fields of VGG-16: 3, 5, 6, ..., 212 behind the last pool, and then the whole picture.
    assert at["conv1_2"] == ((64, 224, 224), 1, 5)
    assert at["pool5"] == ((512, 7, 7), 32, 212)
    assert at["fc8"] == ((1000,), None, None)
    assert found.lines()[0].split()[:3] == ["stage", "kind", "output"]
    assert found.to_dict()["receptive_field"][-1] is None
    for wrong, told in (("vg16", "did you mean 'vgg16'"), ("no/such/run", "no file or folder")):
        with pytest.raises(StriateError, match=told):
            rows("stages", wrong)
