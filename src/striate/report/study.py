"""The report of a hyper-parameter search: plain values in, one self-contained HTML page out."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from striate.core.files import write_text
from striate.report import search_figures as figures
from striate.report.contents import Fact
from striate.report.html import page

if TYPE_CHECKING:
    import os


@dataclass(frozen=True)
class Axis:
    """A searched setting: kind "list" with `values` as text in order; or "uniform" or "log", low to high."""

    name: str
    kind: str
    values: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0


@dataclass(frozen=True)
class TrialRow:
    """One trial: a text (list axes) or a number for each axis, none where it was never begun.

    state: "finished", "ended early", "failed", "lost", "running" or "waiting". score: 0 to 1. link: where its
    run lies, from the report's folder. note: why it failed, or what became of it.
    """

    number: int
    state: str
    values: tuple[str | float, ...] = ()
    score: float | None = None
    epochs: int = 0
    seconds: float | None = None
    link: str = ""
    note: str = ""


@dataclass(frozen=True)
class StudyData:
    """Everything in the report of a study; what is empty is left out of the page.

    importance: setting to its part of the scores' variance, 0 to 1, largest first.
    """

    title: str
    score_name: str
    axes: tuple[Axis, ...]
    trials: tuple[TrialRow, ...]
    subtitle: str = ""
    created: str = ""
    version: str = ""
    facts: tuple[Fact, ...] = ()
    best_settings: tuple[Fact, ...] = ()
    notices: tuple[str, ...] = ()
    importance: dict[str, float] = field(default_factory=dict)
    importance_note: str = ""
    commands: tuple[tuple[str, str], ...] = ()
    environment: tuple[tuple[str, str], ...] = ()


def render(data: StudyData) -> str:
    """The report as HTML text, UTF-8."""
    best = best_of(data.trials)
    history = figures.history(data.trials, best)
    parallel = figures.parallel(data.axes, data.trials, best)
    everything: list[tuple[str, str, Any]] = [
        ("history", "History", history),
        ("settings", "Settings", parallel),
        ("trials", "Trials", data.trials),
        ("again", "Reproduce", data.commands or data.environment),
    ]
    return page(
        "study.html.j2",
        ("style.css", "study.css"),
        d=data,
        best=best,
        history=history,
        parallel=parallel,
        slices=figures.slices(data.axes, data.trials, best) if parallel else (),
        sections=[(key, title) for key, title, there in everything if there],
    )


def write(data: StudyData, path: str | os.PathLike[str]) -> Path:
    """Render to a file, written in one step; raises as `write_text` does."""
    return write_text(path, render(data))


def best_of(trials: tuple[TrialRow, ...]) -> TrialRow | None:
    """The finished trial with the highest score, the first of equals."""
    done = [t for t in trials if t.state == "finished" and t.score is not None]
    return max(done, key=lambda t: (t.score or 0.0, -t.number), default=None)
