"""The report of a search: positions worked out by hand, the page, and the whole command once."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from striate import cli
from striate.model import load
from striate.report import search_figures as figures
from striate.report import study as page
from striate.report.contents import Fact
from striate.report.study import Axis, StudyData, TrialRow
from test_report_browser import Browser, browser, troubles

AXES = (
    Axis("lr", "log", (), 0.01, 1.0),
    Axis("net", "list", ("a", "b")),
    Axis("clip", "uniform", (), 0.0, 4.0),
)
EVIL = '</script><img src=x onerror="alert(1)">&'
__all__ = ["browser"]


def rows() -> tuple[TrialRow, ...]:
    return (
        TrialRow(0, "finished", (0.1, "a", 1.0), 0.5, 4, 1.0, "trials/0000/"),
        TrialRow(1, "ended early", (1.0, "b", 2.0), 0.9, 2, 0.5, "trials/0001/"),
        TrialRow(2, "lost", (0.01, "a", 0.0), None, 1, None, "", "its worker died"),
        TrialRow(3, "finished", (0.01, "b", 4.0), 0.7, 4, 1.0, "trials/0003/report.html"),
        TrialRow(4, "finished", (0.5, "a", 3.0), 0.7, 4, 1.0, "trials/0004/"),
        TrialRow(5, "failed", (0.5, "b", 3.0), None, 0, 0.1, "trials/0005/", EVIL),
        TrialRow(6, "running", (0.2, "b", 3.0), None, 1, None, "trials/0006/"),
    )


def study(text: str = "digits") -> StudyData:
    trials = rows()
    return StudyData(
        title=f"Search on {text}", score_name="Top-1 accuracy", trials=trials,
        axes=(replace(AXES[0], name=text[:20]), *AXES[1:]), subtitle=text,
        created="2026-01-01", version="1", facts=(Fact("Trials", "7", text),),
        best_settings=(Fact("lr", "0.01"),), notices=(text,), importance={text: 0.75, "net": 0.25},
        importance_note=text, commands=(("Again:", f"striate train '{text}'"),),
        environment=(("numpy", "2"),),
    )  # fmt: skip


def test_values_lie_where_they_belong() -> None:
    lr, net, clip = AXES
    assert [figures.position(lr, v) for v in (0.01, 0.1, 1.0)] == pytest.approx([0, 0.5, 1])
    assert [figures.position(net, v) for v in "ab"] == [0.25, 0.75]
    assert figures.position(clip, 1.0) == 0.25
    assert figures.axis_ticks(net, flat=True) == ((0.25, "a"), (0.75, "b"))
    assert figures.axis_ticks(net) == ((0.75, "a"), (0.25, "b"))
    assert next(text for _, text in figures.axis_ticks(lr)) == "0.01"


def test_the_best_is_the_first_of_the_finished_with_the_highest_score() -> None:
    best = page.best_of(rows())
    assert best is not None
    assert best.number == 3, "not the one that was ended early with more, nor the later equal"
    assert page.best_of(()) is None


def test_the_history_rises_in_steps_over_finished_trials() -> None:
    best = page.best_of(rows())
    figure = figures.history(rows(), best)
    assert figure is not None
    # Scores from 0.5 to 0.9 with a margin of 6 %: 0.476 to 0.924.
    top = [1 - (v - 0.476) / 0.448 for v in (0.5, 0.9, 0.7, 0.7)]
    assert [p.top for p in figure.points] == pytest.approx(top)
    assert [p.left for p in figure.points] == pytest.approx([0, 0.25, 0.75, 1])
    assert [p.role for p in figure.points] == ["done", "early", "best", "done"]
    assert figure.path == f"M0.0 {1000 * top[0]:.1f}H750.0V{1000 * top[2]:.1f}H1000"
    assert figure.data["lines"][1]["text"][-1].startswith("70.00")
    assert figures.history((), None) is None
    one = figures.history(rows()[:1], None)
    assert one is not None
    assert one.points[0].left == 0.5


def test_each_trial_with_a_score_is_a_line_and_the_best_one_lies_on_top() -> None:
    best = page.best_of(rows())
    found = figures.parallel(AXES, rows(), best)
    assert found is not None
    assert [round(left, 3) for left, _, _ in found.axes] == [0, 0.333, 0.667, 1]
    assert [line.role for line in found.lines] == ["early", "done", "done", "best"]
    points = re.findall(r"[ML]([\d.]+) ([\d.]+)", found.lines[-1].path)
    assert [float(x) for x, _ in points] == pytest.approx([0, 333.3, 666.7, 1000])
    assert [float(y) for _, y in points][:3] == [1000, 250, 0]
    assert sorted(line.rank for line in found.lines) == pytest.approx([0, 0.333, 0.667, 1])
    assert [len(f.points) for f in figures.slices(AXES, rows(), best)] == [4, 4, 4]
    assert figures.parallel(AXES, rows()[2:3], None) is None


def test_every_text_of_the_page_is_escaped_and_links_are_relative() -> None:
    text = page.render(study(EVIL))
    assert "<img src=x" not in text
    assert text.count("&lt;/script&gt;&lt;img") >= 5
    assert 'href="trials/0003/report.html"' in text
    assert not re.findall(r'(?:href|src)="(?:http|/)', text)
    empty = page.render(StudyData("t", "score", AXES, ()))
    assert "<section id=" not in empty


@pytest.mark.parametrize(("width", "dark"), [(320, False), (1280, True)])
def test_in_a_browser_nothing_sticks_out(browser: Browser, tmp_path: Path, width: int, dark: bool) -> None:
    path = page.write(study("a rather long name of a set of images"), tmp_path / "report.html")
    browser.open(path, width=width, dark=dark)
    assert browser.js("document.documentElement.scrollWidth") <= width
    assert browser.js("[...document.querySelectorAll('.field path')].every((p) => p.getTotalLength() > 100)")
    best = "getComputedStyle(document.querySelector('.field path.best')).stroke"
    assert browser.js(best) == browser.js(
        "getComputedStyle(document.querySelector('.point.best')).backgroundColor"
    )
    browser.js("document.querySelectorAll('#scores thead button')[1].click()")
    first = "document.querySelector('#scores tbody tr').cells[0].textContent.trim()"
    assert browser.js(first) == "1", "sorted by score, the highest first"
    assert troubles(browser) == []


def test_the_command_from_data_to_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "s")
    words = ["train", "digits", "--net", "linear", "--epochs", "1", "--threads", "1", "--out", out]
    more = ["--preflight", "false", "--space.lr", "log(1e-2,1)", "--space.weight-decay", "0,1e-3", "--json"]
    assert cli.main([*words, "--search", "2", *more]) == 0
    told = capsys.readouterr()
    found = json.loads(told.out)
    assert [t["state"] for t in found["found"]["trials"]] == ["finished", "finished"]
    assert found["tested"]["split"] == "test"
    assert found["found"]["space"] == {"lr": "log(0.01,1)", "weight_decay": "0,0.001"}
    assert "trial 1: lr " in told.err
    assert len(load(out).classes) == 10
    assert "Search of 2 settings on digits" in Path(found["report"]).read_text("utf-8")
    best = found["found"]["best"]
    assert (Path(best["folder"]) / "report.html").exists()

    config = tmp_path / "more.yaml"
    config.write_text("space:\n  weight_decay: [0, 1e-3]\n  lr: log(1e-2, 1)\nsearch: 3\nsampler: random\n")
    assert cli.main(["train", "--config", str(config), "--out", out, "--threads", "1", "--no_report"]) == 0
    assert "3 finished" in capsys.readouterr().out
    Path(found["report"]).unlink()
    assert cli.main(["report", out]) == 0
    assert "3 trials" in Path(found["report"]).read_text("utf-8")

    files = {path: path.stat().st_mtime_ns for path in Path(out).rglob("*")}
    capsys.readouterr()
    # What no trial uses, the base's own schedule, is not asked to go with the rest.
    words = [
        "train",
        "digits",
        "--net",
        "lenet5",
        "--snapshots",
        "true",
        "--restarts",
        "2",
        "--out",
        out + "2",
    ]
    words += ["--search", "2", "--space.schedule", "cosine,triangular", "--preflight", "false", "--dry_run"]
    assert cli.main(words) == 0
    assert "search: schedule " in capsys.readouterr().out
    again = ["train", "--config", str(config), "--out", out, "--threads", "1", "--dry_run"]
    assert cli.main(again) == 0
    told = capsys.readouterr()
    assert told.out.splitlines()[0] == f"study: {out}"
    assert "search: lr " in told.out
    assert {path: path.stat().st_mtime_ns for path in Path(out).rglob("*")} == files
    assert cli.main([*again, "--momentum", "0.5"]) == 2
    assert "was begun otherwise: momentum 0.5, not 0.9" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--search", "3", "--space.lrr", "1,2"], "unknown setting to search 'lrr'"),
        (["--search", "3", "--space.betas", "[0.9,0.99],[0.9,0.9"], "check its brackets"),
        (["--space.lr", "1,2"], "search is 0; allowed: at least 1 trial"),
        (["--search", "3", "--lr", "1", "--space.lr", "1,2"], "lr is both given and searched"),
        (["--search", "3", "--repeats", "2", "--space.lr", "1,2"], "takes no repeats, range test or resume"),
        (["--search", "3", "--space.lr", "1,2", "--sampler", "tpa"], "unknown sampler 'tpa'"),
        (["--search", "3", "--space.lr", "log(1,2)", "--sampler", "grid"], "number of points of lr"),
        (["--search", "3", "--space.initialisation", "own,gaussian(-1)"], "std is -1"),
        (["--search", "3", "--space.freeze", "conv1,conv9", "--net", "lenet5"], "unknown stage 'conv9'"),
        (["--search", "3", "--space.lr", "1,2", "--val", "0"], "a search needs validation images"),
        (["--search", "3", "--space.optimizer", "sgd,sgdd"], "unknown optimizer 'sgdd'"),
        (["--search", "3", "--space.net_options.width", "8,0", "--net", "vgg11"], "width"),
    ],
)
@pytest.mark.parametrize("dry", [[], ["--dry_run"]], ids=["", "dry"])
def test_mistakes_on_the_command_line(
    words: list[str], told: str, dry: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*words, *dry]
    assert cli.main(["train", "digits", "--out", str(tmp_path / "s"), *words]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert not (tmp_path / "s").exists()
