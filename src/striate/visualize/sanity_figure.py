"""The picture of a sanity check: its curves, and a table with the maps in its rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from striate.visualize.layout import DPI, TEXT, TITLE, plain, wrapped
from striate.visualize.method import Picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Inches: the figure, a chart's height, a row of the table with its maps, the column of names, one of numbers.
WIDE, CHART, ROW, NAMES, NUMBER = 10.5, 1.9, 0.56, 1.4, 0.56
# Under the charts stand their labels, above them their titles.
BELOW, ABOVE = 0.85, 0.3
COLOURS = (
    "#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#e377c2", "#8c564b", "#bcbd22",
    "#003f5c",
)  # fmt: skip
CONTROLS = ("0.2", "0.6")
GREY, GREEN, RED = "0.3", "#2a7f2a", "#b02a2a"
HEADINGS = ("deletion", "insertion", "rank, head", "rank, all", "SSIM, all")
KEYS = ("deletion", "insertion", "rank_head", "rank_all", "ssim_all")


@dataclass(frozen=True)
class Row:
    """One method's figures, means over the images; None where a test was not made or says nothing.

    deletion, insertion: areas under the curves; rank_head, rank_all: rank correlation of magnitudes behind
    a head, and a whole net, drawn anew; ssim_all; trust: "yes", or "no" with the reason; controls have none.
    """

    name: str
    deletion: float | None
    insertion: float | None
    rank_head: float | None
    rank_all: float | None
    ssim_all: float | None
    trust: str | None

    @property
    def numbers(self) -> tuple[float | None, ...]:
        """The figures in order of the headings."""
        return self.deletion, self.insertion, self.rank_head, self.rank_all, self.ssim_all


@dataclass(frozen=True)
class Checked(Picture):
    """The picture of a sanity check. rows: the table; levels: the lowest stage drawn anew at each step."""

    rows: tuple[Row, ...] = ()
    levels: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """The note, and the table."""
        width = max(len(row.name) for row in self.rows)
        shown = [k for k in range(len(KEYS)) if any(row.numbers[k] is not None for row in self.rows)]
        found = [f"{'':<{width}}  " + "  ".join(f"{HEADINGS[k]:>10}" for k in shown) + "  trust"]
        for row in self.rows:
            numbers = "  ".join(f"{_number(row.numbers[k]):>10}" for k in shown)
            found.append(f"{row.name:<{width}}  {numbers}  {row.trust or '(control)'}")
        return [*super().lines(), *found]

    def brief(self) -> dict[str, Any]:
        """Plain values without arrays."""
        table = [
            {"method": row.name, **dict(zip(KEYS, row.numbers, strict=True)), "trust": row.trust}
            for row in self.rows
        ]
        return {**super().brief(), "table": table, "levels": list(self.levels)}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, with the table."""
        return {**super().to_dict(), **self.brief()}

    def figure(self) -> Figure:
        """Curves above, the table with the maps of the first image below."""
        return _Drawing(self).made


@dataclass(frozen=True)
class _Chart:
    """Curves by name; by_level: over the net's stages, else over the part of the pixels."""

    title: str
    curves: dict[str, NDArray[Any]]
    by_level: bool


class _Drawing:
    """The figure of one check; places are inches from the lower left corner."""

    def __init__(self, picture: Checked) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self.picture = picture
        note, title = wrapped(picture.note, WIDE, TEXT), wrapped(picture.title, WIDE, TITLE)
        above, below = 0.2 + 0.21 * len(title), 0.22 + 0.17 * len(note)
        self.high = above + ABOVE + CHART + BELOW + ROW * len(picture.rows) + below
        self.made = Figure(figsize=(WIDE, self.high), dpi=DPI, facecolor="white")
        FigureCanvasAgg(self.made)
        self.colours = _colours(picture)
        charts = _charts(picture)
        each, low = (WIDE - 0.2) / len(charts), self.high - above - ABOVE - CHART
        for place, chart in enumerate(charts):
            self._chart(chart, (0.5 + place * each, low, each - 0.55, CHART))
        self._table(low - BELOW)
        self._text(WIDE / 2, self.high - 0.08, "\n".join(title), TITLE, ha="center", va="top")
        self._text(WIDE / 2, 0.06, "\n".join(note), TEXT, GREY, ha="center", va="bottom")

    def _text(self, x: float, y: float, text: str, size: float, colour: str = "black", **more: Any) -> None:
        self.made.text(x / WIDE, y / self.high, plain(text), fontsize=size, color=colour, **more)

    def _axes(self, x: float, y: float, width: float, height: float) -> Any:
        return self.made.add_axes((x / WIDE, y / self.high, width / WIDE, height / self.high))

    def _chart(self, chart: _Chart, box: tuple[float, float, float, float]) -> None:
        axes = self._axes(*box)
        controls = {row.name for row in self.picture.rows if row.trust is None}
        for name, curve in chart.curves.items():
            across = np.arange(len(curve)) / (1 if chart.by_level else len(curve) - 1)
            style = "--" if name in controls else "-"
            axes.plot(across, curve, style, color=self.colours[name], linewidth=1.2)
        axes.set_title(chart.title, fontsize=TEXT)
        axes.tick_params(labelsize=6)
        axes.spines[["top", "right"]].set_visible(False)
        if chart.by_level:
            names = ["trained", *map(_short, self.picture.levels)]
            axes.set_xticks(range(len(names)), [plain(name) for name in names], rotation=40, ha="right")
            axes.set_ylim(min(0.0, axes.get_ylim()[0]), 1.05)
        else:
            axes.set_xlabel("part of the pixels", fontsize=7)

    def _table(self, top: float) -> None:
        """Names, figures and maps, row by row from `top` down."""
        picture = self.picture
        left = NAMES + NUMBER * len(HEADINGS) + 0.3
        cell = min(ROW, (WIDE - left - 0.1) / picture.columns)
        for k, heading in enumerate(HEADINGS):
            self._text(
                NAMES + NUMBER * (k + 0.95), top + 0.06, heading.replace(", ", "\n"), 6.5, GREY, ha="right"
            )
        for k, heading in enumerate(("trained", *picture.levels)):
            self._text(left + cell * (k + 0.5), top + 0.06, _short(heading), 5.5, GREY, ha="center")
        for number, row in enumerate(picture.rows):
            low = top - ROW * (number + 1)
            middle = low + ROW / 2
            self._text(0.12, middle, row.name, 8, self.colours[row.name], va="bottom", weight="bold")
            said, colour = _verdict(row)
            self._text(0.12, middle - 0.01, said, 5.5, colour, va="top")
            for k, value in enumerate(row.numbers):
                where = NAMES + NUMBER * (k + 0.95)
                self._text(where, middle, _number(value), 7.5, ha="right", va="center")
            for k, panel in enumerate(picture.panels[number * picture.columns :][: picture.columns]):
                if panel.caption:
                    axes = self._axes(left + cell * k + 0.02, low + 0.02, cell - 0.04, ROW - 0.04)
                    axes.imshow(panel.pixels, interpolation="antialiased")
                    axes.set_axis_off()


def _colours(picture: Checked) -> dict[str, str]:
    methods = [row.name for row in picture.rows if row.trust is not None]
    controls = [row.name for row in picture.rows if row.trust is None]
    return {
        **{name: COLOURS[k % len(COLOURS)] for k, name in enumerate(methods)},
        **{name: CONTROLS[k % len(CONTROLS)] for k, name in enumerate(controls)},
    }


def _charts(picture: Checked) -> list[_Chart]:
    """The charts that there are numbers for."""
    found = []
    for key, title in (
        ("deletion", "deletion: low is good"),
        ("insertion", "insertion: high is good"),
        ("magnitude", "rank correlation: low is good"),
        ("ssim", "SSIM: low is good"),
    ):
        by_level = key in ("magnitude", "ssim")
        names = [row.name for row in picture.rows if f"{key}.{row.name}" in picture.arrays]
        means = {name: picture.arrays[f"{key}.{name}"].mean(0) for name in names}
        if by_level:
            means = {name: np.concatenate([[1.0], mean]) for name, mean in means.items()}
        if means:
            found.append(_Chart(title, means, by_level))
    return found


def _verdict(row: Row) -> tuple[str, str]:
    if row.trust is None:
        return "control", GREY
    return ("trust", GREEN) if row.trust == "yes" else (row.trust.removeprefix("no: "), RED)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _short(name: str) -> str:
    return name if len(name) <= 9 else "…" + name[-8:]
