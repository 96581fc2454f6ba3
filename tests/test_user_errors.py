"""What users do wrong, through the command line: one line that says what to do, and nothing left behind."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from striate import cli
from striate.core import files
from striate.core.errors import StriateError
from striate.core.runs import EVENTS, Run
from striate.data.formats import open_data
from striate.studies import answers
from striate.train import preflight

LINEAR = [
    "--net", "linear", "--epochs", "1", "--batch", "4", "--size", "8", "--val", "0.25", "--threads", "1",
    "--workers", "1",
]  # fmt: skip


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twelve images of each of two classes; the current folder is the one around them."""
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    for number, name in enumerate(("dark", "light")):
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        for k in range(12):
            image = draw.integers(0, 80, (8, 8, 3)) + 140 * number
            cv2.imwrite(str(folder / f"{k:02d}.png"), image.astype(np.uint8))
    return tmp_path / "photos"


def mistake(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line that a command gives with exit code 2; there is no temporary file afterwards."""
    assert cli.main(list(words)) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("striate: ")
    assert told.err.count("\n") == 1
    assert not list(Path().rglob("*.tmp"))
    return told.err


def succeed(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    """The JSON values of a command that ends well; no token outside of strict JSON."""
    assert cli.main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert isinstance(found, dict)
    return found


def table(path: Path, rows: list[str]) -> str:
    path.write_text("\n".join(["path,label", *rows]) + "\n")
    return path.name


def test_corrupt_images_of_every_split_are_named_and_counted(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    splits = open_data("photos", val=0.25).splits
    broken = [split.name_of(0) for split in splits.values()]
    assert len(broken) == 3
    for name in broken:
        (photos / name).write_bytes((photos / name).read_bytes()[:60])
    assert cli.main(["train", "photos", *LINEAR, "--out", "run"]) == 0
    out = capsys.readouterr().out
    assert "left out: 3 unreadable images" in out
    assert all(name in out for name in broken)
    again = succeed(capsys, "train", "--resume", "run")
    assert sorted(name for name, _ in again["bad"]) == sorted(broken)


def test_a_full_disk_is_found_before_anything_is_written(
    photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = preflight.shutil.disk_usage(photos)
    with monkeypatch.context() as patch:
        patch.setattr(preflight.shutil, "disk_usage", lambda _: usage._replace(free=100))
        assert "free some space" in mistake(capsys, "train", "photos", *LINEAR, "--out", "run")
    assert not Path("run").exists()


@pytest.mark.parametrize("broken", ["environment.json", "splits.json", EVENTS])
def test_a_disk_that_fills_at_the_beginning_leaves_no_half_run(
    photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    replace, event = os.replace, Run.event

    def full(source: Any, target: Any) -> None:
        if Path(target).name == broken:
            raise OSError(28, "No space left on device")
        replace(source, target)

    def no_event(run: Run, kind: str, **values: Any) -> None:
        if broken == EVENTS:
            raise files.write_error(run.path / EVENTS, OSError(28, "No space left on device"))
        event(run, kind, **values)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        patch.setattr(Run, "event", no_event)
        words = ["train", "photos", *LINEAR, "--preflight", "false", "--out", "run"]
        assert "the disk is full" in mistake(capsys, *words)
    assert not Path("run").exists()


def test_a_run_folder_within_the_data_is_refused(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its folders would be classes the next time."""
    for out in ("photos", "photos/runs/1", str(photos / "dark")):
        assert "--out" in mistake(capsys, "train", "photos", *LINEAR, "--out", out)
    os.chdir(photos)
    assert "within the data" in mistake(capsys, "train", ".", *LINEAR)
    assert sorted(path.name for path in photos.iterdir()) == ["dark", "light"]


def test_a_folder_in_which_another_process_trains_is_refused(tmp_path: Path) -> None:
    one, two = Run(tmp_path / "run"), Run(tmp_path / "run")
    with one.alone(), pytest.raises(StriateError, match="another process is training"), two.alone():
        pass
    with two.alone():
        pass
    assert list((tmp_path / "run").iterdir()) == []


def test_labels_without_images(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [f"photos/{name}/{k:02d}.png,{name}" for name in ("dark", "light") for k in range(8)]
    lost = table(Path("lost.csv"), [*rows, "photos/gone.png,dusk"])
    told = mistake(capsys, "train", lost, *LINEAR, "--out", "run")
    assert "'dusk'" in told
    assert "photos/gone.png" in told
    # A missing image of a class that has others is listed, as an unreadable one is.
    some = table(Path("some.csv"), [*rows, "photos/gone.png,dark"])
    assert [name for name, _ in open_data(some).bad] == ["photos/gone.png"]
    several = table(Path("several.csv"), [*(f"{row};bright" for row in rows), "photos/gone.png,dusk;dark"])
    assert "'dusk'" in mistake(capsys, "train", several, *LINEAR, "--out", "run")
    for few, words in (([], ["'./few.csv'", "no rows"]), (rows[:8], ["one class only", "rows of another"])):
        told = mistake(capsys, "train", table(Path("few.csv"), few), *LINEAR, "--out", "run")
        assert all(word in told for word in words)
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["train", "nowhere"], "there is no 'nowhere'; give the path"),
        (["train", "photos/dark/00.png"], "is one image"),
        (["train", "photos/dark"], "holds no data set"),
        (["train", "photos", "--out", "photos/dark/00.png/run"], "--out"),
        (["train", "--resume", "nowhere"], "not a run folder"),
        (["train", "--resume"], "no run to resume"),
        (["predict", "photos/dark/00.png", "photos/dark"], "is a PNG image, not a model file"),
        (["predict", "photos", "photos/dark"], "holds no model.safetensors"),
        (["predict", "nowhere/model.safetensors", "photos/dark"], "check the path"),
        (["data", "check", "photos", "--out", "found"], "cannot write results as 'found'"),
        (["data", "describe", "photos", "--out", "found.json"], "'data describe' takes no --out"),
        (["data", "check", "photos", "--start_from", "x"], "'data check' takes no --start_from; allowed: "),
        (["data", "show", "photos", "--near", "3"], "'data show' takes no --near; allowed: --augment"),
        (["data", "prepare", "photos", "--out", "quick", "--seed", "3"], "takes no --seed; allowed: --out"),
        (["data", "prepare", "photos"], "say where with --out"),
        # Told before the work, which could not even begin here.
        (["evaluate", "nowhere", "photos", "--out", "found.txt"], "cannot write results as 'found.txt'"),
        (["evaluate", "nowhere", "photos", "--out", "found.csv"], "allowed: .json, .npz"),
        (["evaluate", "nowhere", "photos", "--grid", "vgg", "--out", "found.npz"], "allowed: .json, .csv"),
        (["evaluate", "nowhere+nobody", "photos", "--out", "found.npz"], "allowed: .json, .csv"),
        (["evaluate", "no", "photos", "--corruptions", "--trained-side", "9"], "without --grid vgg"),
        (["visualize", "saliency", "nowhere", "photos", "--out", "found.jpg"], "allowed: .png, .svg, .npz"),
        (["units", "nowhere", "photos", "--out", "photos/dark/00.png/found.png"], "a part of the path is"),
        (["units", "nowhere", "photos", "--out", "photos"], "holds other files"),
        (["units", "nowhere", "photos", "--out", "photos/dark.v2"], "holds other files"),
        (["units", "nowhere", "photos", "--out", "found.txt"], "cannot write results as 'found.txt'"),
        (["units", "nowhere", "photos", "--units", "3-x"], "units is '3-x'"),
        (["units", "nowhere", "photos", "--over_training", "--out", "found"], "allowed: .png, .svg"),
        (["stylize", "photos", "photos", "--out", "photos/dark/00.png/found.png"], "a part of the path is"),
        (["train", "~nobody-has-this-name/photos"], "cannot look for '~nobody-has-this-name/photos'"),
        (["train", "x" * 300], "cannot look for"),
        (["report", "x" * 300], "cannot "),
        (["train", "photos", "--out", "x" * 300], "cannot "),
        (["predict", "photos+photos/dark", "photos"], "names several models; join them: striate ensemble"),
        (["data", "prepare", "~nobody-has-this-name/photos", "--out", "quick"], "cannot look for"),
        (["bench", "train", "nowhere", "--out", "photos"], "is a folder"),
        (["compare", "nets", "nowhere", "--out", "found.pdf"], "allowed: .csv, .json, .png, .svg, a folder"),
        (
            ["predict", "nowhere", "photos", "--out", "photos/dark/00.png/found.csv"],
            "a part of the path is a file",
        ),
    ],
)
def test_wrong_paths(photos: Path, capsys: pytest.CaptureFixture[str], words: list[str], part: str) -> None:
    (photos / "dark.v2").mkdir()
    (photos / "dark.v2" / "mine.txt").touch()
    before = sorted(Path().rglob("*"))
    assert part in mistake(capsys, *words)
    assert sorted(Path().rglob("*")) == before


@pytest.mark.skipif(os.name == "nt" or os.uname().sysname == "Darwin", reason="file names must be UTF-8 here")
def test_folder_names_that_are_not_utf_8(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    strange = photos / os.fsdecode(b"d\xe9j\xe0 vu")
    (photos / "light").rename(strange)
    (photos / "dark").rename(photos / "<script>alert(1)<")
    (strange / "03.png").write_bytes(b"no image")
    trained = succeed(capsys, "train", "photos", *LINEAR, "--out", "run")
    assert len(trained["bad"]) == 1
    assert "<script>alert" not in Path("run/report.html").read_text()
    tested = succeed(capsys, "evaluate", "run", "photos", "--out", "scores.json")
    assert tested["scores"]["classes"] == ["<script>alert(1)<", "d\\xe9j\\xe0 vu"]
    assert Path("scores.json").exists()


def test_empty_arguments_are_not_the_current_folder(
    photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a script gives when its variable is not set."""
    monkeypatch.chdir(photos)
    assert "no data given" in mistake(capsys, "train", "", *LINEAR, "--out", "../run")
    assert "no data given" in mistake(capsys, "data", "check", "")
    with pytest.raises(StriateError, match="the name of an image is empty"):
        list(answers.expand(["dark", ""]))
    assert not Path("../run").exists()


def test_of_several_processes_only_the_first_speaks(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert cli.main(["list", "tasks", "--json"]) == 0
    assert capsys.readouterr().out == ""
    monkeypatch.setenv("RANK", "0")
    assert succeed(capsys, "list", "tasks")["kind"] == "tasks"


@pytest.mark.parametrize(
    ("flag", "value", "part"),
    [
        ("--lr", "fast", "--lr: expected a number or null. Got value: fast"),
        ("--cache", "none", "--cache: expected a number or null. Got value: none"),
        ("--lr", ".nan", "lr is nan"),
        ("--milestones", "0.5", "--milestones: expected numbers such as [2, 3]. Got value: 0.5"),
        ("--task", "segmentation", "whose annotations are for 'classification'"),
        ("--task", "segmentations", "did you mean 'segmentation'"),
        ("--repeats", "0", "repeats is 0; allowed: at least 1"),
        ("--size", "big", "a whole number or numbers such as [2, 3] or null. Got value: big"),
        ("--config", "photos", "--config: "),
    ],
)
def test_values_of_the_wrong_kind(
    photos: Path, capsys: pytest.CaptureFixture[str], flag: str, value: str, part: str
) -> None:
    told = mistake(capsys, "train", "photos", flag, value)
    assert part in told
    assert "Union" not in told
    assert "NoneType" not in told


def test_home_is_known_where_the_shell_does_not_tell(
    photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(photos.parent))
    found = succeed(capsys, "data", "check", "~/photos", "--out=~/found.json")
    assert found
    assert (photos.parent / "found.json").exists()
    assert not Path("~").exists()
