"""The report's figures as positions between 0 and 1: axes, lines, matrices, reliability diagrams."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from striate.report.contents import Calibration, Confusion, Curve

WHOLE_MATRIX = 40  # up to this many classes the whole matrix is shown
PART_OF_MATRIX = 24  # classes shown of a larger one
PAIRS = 10
NARROW = "\u00a0"  # the blank before a unit never ends a line


def percent(value: float | None, digits: int = 1) -> str:
    """A proportion (0 to 1) in percent; a dash for None."""
    return "–" if value is None else f"{100 * value:.{digits}f}{NARROW}%"


def number(value: float | None) -> str:
    """A number with four significant digits; whole numbers with thousands separated; a dash for None."""
    if value is None or not math.isfinite(value):
        return "–"
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round values inside [low, high], about `count`, in steps of 1, 2 or 5 times a power of ten."""
    if not high > low:
        return [low]
    raw = (high - low) / max(1, count)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [float(f"{k * step:.12g}") for k in range(first, last + 1)]


@dataclass(frozen=True)
class Scale:
    """An axis: maps values to 0 (low) .. 1 (high), linearly or by logarithm."""

    low: float
    high: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The position of `value`; 0.5 when the axis has no length."""
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        at = math.log(value) if self.log else value
        return (at - low) / (high - low) if high > low else 0.5

    def ticks(self, count: int = 5) -> list[float]:
        """Round values on the axis; powers of ten with 2 and 5 between on a logarithmic one."""
        if not self.log:
            return ticks(self.low, self.high, count)
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        values = [m * 10.0**p for p in range(first, last + 1) for m in (1, 2, 5)]
        inside = [v for v in values if self.low * 0.999 <= v <= self.high * 1.001]
        tens = [v for v in inside if f"{v:e}".startswith("1.0")]
        return tens if len(inside) > 7 and len(tens) >= 2 else inside


@dataclass(frozen=True)
class Line:
    """One line of a chart: SVG path in a 1000 x 1000 box (y downwards), its last and its best point."""

    name: str
    role: str
    path: str
    last: tuple[float, float] | None
    best: tuple[float, float] | None
    best_text: str
    values: tuple[str, ...]
    heights: tuple[float | None, ...]


@dataclass(frozen=True)
class Chart:
    """A line chart: axis ticks as (position 0..1, text), the lines, and x values with their positions."""

    title: str
    unit: str
    log: bool
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    lines: tuple[Line, ...]
    x_text: tuple[str, ...]
    x_at: tuple[float, ...]

    def data(self) -> dict[str, Any]:
        """What the page's script needs for hovering."""
        return {
            "unit": self.unit,
            "x": list(self.x_text),
            "at": [round(at, 5) for at in self.x_at],
            "lines": [
                {"name": line.name, "text": list(line.values), "y": list(line.heights)} for line in self.lines
            ],
        }

    def alt(self) -> str:
        """The chart in words: each line's first, last and best value."""
        parts = []
        for line in self.lines:
            shown = [v for v in line.values if v != "–"]
            if shown:
                best = f", best {line.best_text}" if line.best_text else ""
                parts.append(f"{line.name} from {shown[0]} to {shown[-1]}{best}")
        return f"{self.title} by {self.unit}: {'; '.join(parts)}"


def line_chart(curve: Curve) -> Chart | None:
    """The chart of a curve; None when it holds no finite value.

    A loss whose largest value is over 30 times the smallest gets a logarithmic axis. A value that is not
    finite breaks its line; one that is None is bridged.
    """
    finite = [v for values in curve.lines.values() for v in values if v is not None and math.isfinite(v)]
    if not finite or not curve.x:
        return None
    low, high = min(finite), max(finite)
    log = curve.better == "low" and low > 0 and high / low > 30
    y = _padded(low, high, log, curve.kind)
    x = Scale(min(curve.x), max(curve.x))
    show: Callable[[float | None], str] = percent if curve.kind == "proportion" else number
    y_ticks = y.ticks(5)
    digits = next((d for d in (0, 1, 2) if len({percent(v, d) for v in y_ticks}) == len(y_ticks)), 3)
    short = (lambda v: percent(v, digits)) if curve.kind == "proportion" else number
    whole = all(v.is_integer() for v in map(float, curve.x))
    roles = ["soft", "main", "third", "fourth"] if len(curve.lines) > 1 else ["main"]
    lines = []
    for order, (name, values) in enumerate(curve.lines.items()):
        better = curve.better if order == len(curve.lines) - 1 else ""
        lines.append(_line(name, roles[order % len(roles)], curve.x, values, x, y, show, better))
    return Chart(
        title=curve.title,
        unit=curve.unit,
        log=log,
        x_ticks=tuple((x(v), number(v)) for v in x.ticks(6) if v.is_integer() or not whole),
        y_ticks=tuple((1 - y(v), short(v)) for v in y_ticks),
        lines=tuple(lines),
        x_text=tuple(number(v) for v in curve.x),
        x_at=tuple(x(v) for v in curve.x),
    )


def _padded(low: float, high: float, log: bool, kind: str) -> Scale:
    if log:
        return Scale(low / 1.1, high * 1.1, log=True)
    if high == low:
        margin = abs(high) * 0.1 or 0.5
        return Scale(low - margin, high + margin)
    margin = 0.06 * (high - low)
    bottom, top = low - margin, high + margin
    if kind == "proportion":
        top = min(top, 1.0 + margin / 2)
    if low >= 0 and bottom < 0.25 * (high - low):
        bottom = 0.0
    return Scale(bottom, top)


def _line(
    name: str,
    role: str,
    xs: Sequence[float],
    values: Sequence[float | None],
    x: Scale,
    y: Scale,
    show: Callable[[float | None], str],
    better: str,
) -> Line:
    heights: list[float | None] = []
    path, pen = [], "M"
    for at, value in zip(xs, values, strict=True):
        if value is None or not math.isfinite(value):
            heights.append(None)
            pen = pen if value is None else "M"
            continue
        height = 1 - y(value)
        heights.append(round(height, 5))
        path.append(f"{pen}{1000 * x(at):.1f} {1000 * height:.1f}")
        pen = "L"
    points = [
        (v, x(at), h) for at, v, h in zip(xs, values, heights, strict=True) if h is not None and v is not None
    ]
    best = (min if better == "low" else max)(points, key=lambda p: p[0]) if better and points else None
    return Line(
        name=name,
        role=role,
        path="".join(path),
        last=points[-1][1:] if points else None,
        best=best[1:] if best else None,
        best_text=show(best[0]) if best else "",
        values=tuple(show(v) for v in values),
        heights=tuple(heights),
    )


@dataclass(frozen=True)
class Cell:
    """One cell of the matrix: row and column class, count, share of the row (0 to 1), images behind it."""

    row: int
    column: int
    count: int
    share: float
    images: int

    @property
    def key(self) -> str:
        """Its name in the page's data."""
        return f"{self.row},{self.column}"

    @property
    def tint(self) -> float:
        """Depth of colour, 0 to 1: the square root of the share, so that rare mistakes can be seen."""
        return round(math.sqrt(self.share), 3)


@dataclass(frozen=True)
class Matrix:
    """A confusion matrix to be shown: class numbers, cells by row, and counts of the classes not shown."""

    shown: tuple[int, ...]
    rows: tuple[tuple[Cell, ...], ...]
    others: tuple[int, ...] | None
    note: str
    pairs: tuple[Cell, ...]


def matrix(confusion: Confusion) -> Matrix:
    """What is shown of a confusion matrix: all of it up to 40 classes, else the most confused ones.

    Above 40 classes those of the largest off-diagonal counts are taken until there are 24; the column of
    the others sums the predictions of all classes that are not shown.
    """
    counts = confusion.counts
    size = len(confusion.classes)
    wrong = sorted(
        ((n, r, c) for r, row in enumerate(counts) for c, n in enumerate(row) if n and r != c),
        key=lambda item: (-item[0], item[1], item[2]),
    )

    def cell(row: int, column: int) -> Cell:
        total, count = sum(counts[row]), counts[row][column]
        images = len(confusion.cells.get((row, column), ()))
        return Cell(row, column, count, count / total if total else 0.0, images)

    pairs = tuple(cell(r, c) for _, r, c in wrong[: PAIRS if size <= WHOLE_MATRIX else 2 * PAIRS])
    if size <= WHOLE_MATRIX:
        everyone = tuple(range(size))
        rows = tuple(tuple(cell(r, c) for c in everyone) for r in everyone)
        return Matrix(everyone, rows, None, "", pairs)
    chosen: list[int] = []
    for _, row, column in wrong:
        new = [k for k in (row, column) if k not in chosen]
        if len(chosen) + len(new) <= PART_OF_MATRIX:
            chosen += new
        if len(chosen) == PART_OF_MATRIX:
            break
    shown = tuple(sorted(chosen))
    rows = tuple(tuple(cell(r, c) for c in shown) for r in shown)
    others = tuple(sum(counts[r]) - sum(counts[r][c] for c in shown) for r in shown)
    note = (
        f"{size:,} classes are too many to show: these are the {len(shown)} that were confused most; "
        "the last column sums the predictions of all other classes."
    )
    return Matrix(shown, rows, others, note if shown else "", pairs)


@dataclass(frozen=True)
class Bin:
    """A bar of the reliability diagram, all from 0 to 1: left edge, width, accuracy, gap, share of images."""

    left: float
    width: float
    accuracy: float
    gap_bottom: float
    gap: float
    share: float
    text: str


def reliability(calibration: Calibration) -> tuple[Bin, ...]:
    """The bars of a reliability diagram; empty bins are left out.

    The gap is between the accuracy of a bin and its mean confidence (Guo et al. 2017, arXiv:1706.04599,
    section 2): their mean, weighted by the counts, is the ECE.
    """
    total, bins = sum(calibration.counts), len(calibration.counts)
    largest = max(calibration.counts, default=0)
    found = []
    for k, count in enumerate(calibration.counts):
        accuracy, confidence = calibration.accuracy[k], calibration.confidence[k]
        if not count or accuracy is None or confidence is None:
            continue
        text = (
            f"Confidence {percent(k / bins, 0)} to {percent((k + 1) / bins, 0)}: {count:,} images "
            f"({percent(count / total)}), mean confidence {percent(confidence)}, right {percent(accuracy)}"
        )
        low, gap = min(accuracy, confidence), abs(accuracy - confidence)
        found.append(Bin(k / bins, 1 / bins, accuracy, low, gap, count / largest, text))
    return tuple(found)
