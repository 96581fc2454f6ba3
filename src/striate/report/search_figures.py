"""The figures of a search as positions between 0 and 1: history, parallel coordinates, single settings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from striate.report.figures import NARROW, Scale, number, percent, ticks

if TYPE_CHECKING:
    from striate.report.study import Axis, TrialRow

DRAWN = ("finished", "ended early")  # states of trials that have a score
CROWDED = 14  # names that an axis shows at most


@dataclass(frozen=True)
class Point:
    """A trial in a figure: left and top from 0 to 1, its role ("best", "done" or "early"), and its words."""

    left: float
    top: float
    role: str
    text: str


@dataclass(frozen=True)
class Figure:
    """A figure with points: axis ticks as (position, text); `path` in a 1000 x 1000 box, y downwards."""

    title: str
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    points: tuple[Point, ...]
    alt: str
    path: str = ""
    data: Any = None


@dataclass(frozen=True)
class Line:
    """A trial in the parallel coordinates; `rank` is 0 for the lowest score and 1 for the highest."""

    path: str
    role: str
    rank: float
    text: str


@dataclass(frozen=True)
class Parallel:
    """Parallel coordinates: axes as (left, name, ticks as (top, text)), lines with the best one last."""

    axes: tuple[tuple[float, str, tuple[tuple[float, str], ...]], ...]
    lines: tuple[Line, ...]
    alt: str


def scored(trials: Sequence[TrialRow]) -> list[TrialRow]:
    """The trials that have a finite score."""
    return [t for t in trials if t.state in DRAWN and t.score is not None and math.isfinite(t.score)]


def score_scale(trials: Sequence[TrialRow]) -> Scale:
    """The axis of the scores: from the lowest to the highest with a margin, within 0 and 1."""
    scores = [t.score for t in trials if t.score is not None]
    low, high = min(scores), max(scores)
    margin = 0.06 * (high - low) or 0.02
    return Scale(max(0.0, low - margin), min(1.0, high + margin))


def score_ticks(scale: Scale) -> tuple[tuple[float, str], ...]:
    """Ticks of the scores in percent, as many digits as tell them apart; positions from the top."""
    values = ticks(scale.low, scale.high, 6)
    digits = next((d for d in (0, 1, 2) if len({percent(v, d) for v in values}) == len(values)), 3)
    return tuple((1 - scale(v), percent(v, digits)) for v in values)


def history(trials: Sequence[TrialRow], best: TrialRow | None) -> Figure | None:
    """Each trial's score in the order of the trials, and the best one so far; None without scores."""
    drawn = scored(trials)
    if not drawn:
        return None
    scale = score_scale(drawn)
    x = Scale(0.0, float(max(t.number for t in drawn)))
    top: float | None = None
    path, so_far = [], []
    for trial in drawn:
        if trial.state == "finished" and (top is None or (trial.score or 0.0) > top):
            at, height = 1000 * x(trial.number), 1000 * (1 - scale(trial.score or 0.0))
            path.append(f"M{at:.1f} {height:.1f}" if top is None else f"H{at:.1f}V{height:.1f}")
            top = trial.score
        so_far.append(top)
    if path:
        path.append("H1000")
    steps = [v for v in ticks(x.low, x.high, 8) if v.is_integer()]
    return Figure(
        title="Score of each trial",
        x_ticks=tuple((x(v), number(v)) for v in steps),
        y_ticks=score_ticks(scale),
        points=tuple(
            Point(x(t.number), 1 - scale(t.score or 0.0), role(t, best), words(t)) for t in drawn
        ),
        alt=f"Score by trial: {len(drawn)} trials, the best {percent(top)}",
        path="".join(path),
        data={
            "unit": "trial",
            "x": [str(t.number) for t in drawn],
            "at": [round(x(t.number), 5) for t in drawn],
            "lines": [
                {"name": "score", "text": [percent(t.score, 2) for t in drawn],
                 "y": [round(1 - scale(t.score or 0.0), 5) for t in drawn]},
                {"name": "best so far", "text": [percent(v, 2) for v in so_far],
                 "y": [None if v is None else round(1 - scale(v), 5) for v in so_far]},
            ],
        },
    )  # fmt: skip


def parallel(axes: Sequence[Axis], trials: Sequence[TrialRow], best: TrialRow | None) -> Parallel | None:
    """One axis a setting and one for the score, one line a trial; None without scores."""
    drawn = [t for t in scored(trials) if len(t.values) == len(axes)]
    if not drawn or not axes:
        return None
    scale = score_scale(drawn)
    lefts = [k / len(axes) for k in range(len(axes) + 1)]
    columns = [(left, axis.name, axis_ticks(axis)) for left, axis in zip(lefts, axes, strict=False)]
    columns.append((1.0, "score", score_ticks(scale)))
    order = sorted(drawn, key=lambda t: (t is best, t.state == "finished", t.score or 0.0, -t.number))
    ranks = {t.number: k / max(1, len(drawn) - 1) for k, t in enumerate(sorted(drawn, key=_score))}
    lines = []
    for trial in order:
        tops = [1 - position(axis, value) for axis, value in zip(axes, trial.values, strict=True)]
        tops.append(1 - scale(trial.score or 0.0))
        points = (f"{1000 * left:.1f} {1000 * top:.1f}" for left, top in zip(lefts, tops, strict=True))
        lines.append(
            Line("M" + "L".join(points), role(trial, best), round(ranks[trial.number], 3), words(trial))
        )
    names = ", ".join(axis.name for axis in axes)
    return Parallel(tuple(columns), tuple(lines), f"Parallel coordinates of {names} and the score")


def slices(axes: Sequence[Axis], trials: Sequence[TrialRow], best: TrialRow | None) -> tuple[Figure, ...]:
    """The score over each setting, one figure a setting."""
    drawn = [t for t in scored(trials) if len(t.values) == len(axes)]
    scale = score_scale(drawn)
    ordered = sorted(drawn, key=lambda t: (t is best, t.state == "finished"))
    found = []
    for k, axis in enumerate(axes):
        points = tuple(
            Point(position(axis, t.values[k]), 1 - scale(t.score or 0.0), role(t, best), words(t))
            for t in ordered
        )
        found.append(
            Figure(
                axis.name, axis_ticks(axis, flat=True), score_ticks(scale), points, f"Score by {axis.name}"
            )
        )
    return tuple(found)


def position(axis: Axis, value: str | float) -> float:
    """Where a value lies on its axis, 0 to 1 from low to high; values of a list are evenly spaced."""
    if axis.kind == "list":
        names = list(axis.values)
        return (names.index(str(value)) + 0.5) / len(names) if str(value) in names else 0.5
    scale = Scale(axis.low, axis.high, log=axis.kind == "log")
    return min(1.0, max(0.0, scale(float(value))))


def axis_ticks(axis: Axis, *, flat: bool = False) -> tuple[tuple[float, str], ...]:
    """Ticks with positions from the top, or from the left where `flat`; a list's are its values."""
    if axis.kind == "list":
        every = -(-len(axis.values) // CROWDED)
        found = [(position(axis, v), v) for k, v in enumerate(axis.values) if k % every == 0]
    else:
        scale = Scale(axis.low, axis.high, log=axis.kind == "log")
        values = scale.ticks(4 if flat else 5)
        values = values if len(values) > 1 else [axis.low, axis.high]
        found = [(scale(v), short(v)) for v in values]
    return tuple((at if flat else 1 - at, text) for at, text in found)


def short(value: float) -> str:
    """A number as on an axis: 0.01, 1e-4, 64."""
    return f"{value:.0e}".replace("e-0", "e-") if 0 < abs(value) < 1e-3 else number(value)


def role(trial: TrialRow, best: TrialRow | None) -> str:
    """How a trial is drawn."""
    if best is not None and trial.number == best.number:
        return "best"
    return "done" if trial.state == "finished" else "early"


def words(trial: TrialRow) -> str:
    """A trial in words, for the pointer."""
    early = f", ended early after {trial.epochs} epochs" if trial.state == "ended early" else ""
    return f"trial {trial.number}: {percent(trial.score, 2)}{early}".replace(NARROW, " ")


def _score(trial: TrialRow) -> float:
    return trial.score or 0.0
