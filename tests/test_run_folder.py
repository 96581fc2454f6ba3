"""The folder of a run: what a new run may not be put over, and which one is meant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from image_sets import classes_of, write
from striate.core.errors import StriateError
from striate.core.runs import MODEL, Run
from striate.train import session
from striate.train.range_test import range_test
from striate.train.recipe import Recipe
from striate.train.search import search
from striate.train.space import STUDY

FEW: dict[str, Any] = {
    "net": "linear", "epochs": 1, "batch": 4, "threads": 1, "workers": 0, "preflight": False,
    "progress": False,
}  # fmt: skip


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({STUDY: b"{}", MODEL: b"the best of a search"}, "holds a study, not a run; choose another folder"),
        ({STUDY: b"{}"}, "holds a study, not a run; choose another folder with --out"),
        ({MODEL: b"an ensemble"}, "holds a model that would be replaced; choose another folder"),
    ],
)
def test_a_run_replaces_no_other_model(
    tmp_path: Path, files: dict[str, bytes], words: str, resume: bool
) -> None:
    data, folder = write(tmp_path / "data", classes_of(count=8)), write(tmp_path / "taken", files)
    with pytest.raises(StriateError, match=words):
        session.train(data, out=folder, resume=resume, **FEW)
    with pytest.raises(StriateError, match=words):
        session.rehearse(data, Recipe(net="linear"), out=folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files


def test_what_writes_no_model_may_look_there(tmp_path: Path) -> None:
    data, folder = write(tmp_path / "data", classes_of(count=8)), write(tmp_path / "taken", {MODEL: b"mine"})
    range_test(data, Recipe(net="linear", batch=4, threads=1, workers=0), out=folder, steps=12)
    assert (folder / MODEL).read_bytes() == b"mine"
    with pytest.raises(StriateError, match="holds a model that would be replaced"):
        search(data, space={"lr": "0.1,0.2"}, trials=1, out=folder, progress=False, net="linear")


def test_a_folder_with_anything_else_takes_a_run(tmp_path: Path) -> None:
    data = write(tmp_path / "data", classes_of(count=8))
    folder = write(tmp_path / "notes", {"notes.txt": b"mine", "other.safetensors": b"mine"})
    session.train(data, out=folder, **FEW)
    session.train(out=folder, resume=True, progress=False)
    assert Run.open(folder).model.exists()
    assert (folder / "notes.txt").read_bytes() == b"mine"


def test_two_folders_are_not_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write(tmp_path / "data", classes_of(count=8))
    run = session.train(data, out=tmp_path / "run", **FEW)
    with pytest.raises(StriateError, match=r"out is .*other', but .*run' is to be resumed; give one of them"):
        session.train(resume=run.path, out=tmp_path / "other", progress=False)
    assert not (tmp_path / "other").exists()
    monkeypatch.chdir(tmp_path)
    assert session.train(resume=run.path, out="run", progress=False).path == run.path
