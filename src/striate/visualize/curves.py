"""Pictures that are curves: charts in rows, with the images that they speak of above them."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from striate.images.decode import decode
from striate.visualize.layout import DPI, LINE, SMALL_TEXT, TEXT, TITLE, plain, wrapped
from striate.visualize.method import Picture, Pixels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Inches: one chart, and the pictures above them.
WIDE, TALL, STRIP, MARGIN = 3.1, 2.0, 0.85, 0.62
MOST_LINES_NAMED = 8


@dataclass(frozen=True)
class Curve:
    """One chart: what lies along x and y, x (n,), lines of (n,), their names; top: the end of the y axis."""

    x_label: str
    y: str
    x: NDArray[Any]
    lines: tuple[NDArray[Any], ...]
    names: tuple[str, ...]
    log: bool = False
    top: float | None = None


@dataclass(frozen=True)
class Curves(Picture):
    """A picture whose drawing is charts, `across` in a row; its panels are shown small above them."""

    curves: tuple[Curve, ...] = ()
    across: int = 1

    def figure(self) -> Figure:
        """The panels, the charts, title and note as a matplotlib figure; no window opens."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        rows = math.ceil(len(self.curves) / self.across)
        width = max(5.0, self.across * (WIDE + MARGIN) + 0.2)
        title, note = wrapped(self.title, width, TITLE), wrapped(self.note, width, TEXT)
        strips = self._strips(width)
        top, bottom = 0.15 + 0.21 * len(title), 0.12 + LINE * len(note)
        charts = rows * (TALL + MARGIN)
        # The names of the lines stand below the title.
        named = self.curves[0].names[:MOST_LINES_NAMED]
        total = top + len(strips) * (STRIP + 0.2) + LINE * 1.6 + charts + bottom
        made = Figure(figsize=(width, total), dpi=DPI, facecolor="white")
        FigureCanvasAgg(made)
        self._draw_strips(made, strips, width, total, top)
        start = top + len(strips) * (STRIP + 0.2) + LINE * 1.6
        colours = [f"C{i % 10}" for i in range(len(self.curves[0].lines))]
        for place, curve in enumerate(self.curves):
            row, column = divmod(place, self.across)
            x = MARGIN + column * (WIDE + MARGIN)
            y = total - start - row * (TALL + MARGIN) - TALL
            axes = made.add_axes((x / width, y / total, WIDE / width, TALL / total))
            for colour, line in zip(colours, curve.lines, strict=True):
                axes.plot(curve.x, line, color=colour, linewidth=1.2)
            _settle(axes, curve)
        step = 1 / max(1, len(named))
        for i, name in enumerate(named):
            made.text(
                (i + 0.5) * step, 1 - (start - LINE * 0.9) / total, plain(name), color=colours[i],
                ha="center", va="center", fontsize=TEXT,
            )  # fmt: skip
        made.text(0.5, 1 - 0.08 / total, plain("\n".join(title)), ha="center", va="top", fontsize=TITLE)
        made.text(
            0.5, 0.06 / total, plain("\n".join(note)), ha="center", va="bottom", fontsize=TEXT, color="0.3"
        )
        return made

    def image(self, size: int = 96) -> Pixels:
        """The figure as pixels (H, W, 3) uint8; `size` is without effect: text must be read."""
        buffer = io.BytesIO()
        self.figure().savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
        return np.ascontiguousarray(decode(buffer.getvalue()))

    def _strips(self, width: float) -> list[list[int]]:
        """The panels' numbers in rows that fit the width; at most three rows."""
        tall, wide = self.panels[0].pixels.shape[:2]
        room = max(1, int((width - 0.2) / (STRIP * wide / tall + 0.05)))
        # Panels that belong together stay in one row.
        room = max(self.columns, room // self.columns * self.columns)
        rows = [list(range(i, min(i + room, len(self.panels)))) for i in range(0, len(self.panels), room)]
        return rows[:3]

    def _draw_strips(
        self, made: Figure, strips: list[list[int]], width: float, total: float, top: float
    ) -> None:
        for row, numbers in enumerate(strips):
            tall, wide = self.panels[numbers[0]].pixels.shape[:2]
            cell = min(STRIP * wide / tall, (width - 0.2) / len(numbers) - 0.05)
            left = (width - len(numbers) * (cell + 0.05)) / 2
            for place, number in enumerate(numbers):
                panel = self.panels[number]
                y = total - top - (row + 1) * (STRIP + 0.2)
                axes = made.add_axes(
                    ((left + place * (cell + 0.05)) / width, y / total, cell / width, STRIP / total)
                )
                pixels = panel.pixels[..., 0] if panel.pixels.shape[2] == 1 else panel.pixels
                axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, interpolation="antialiased")
                axes.set_axis_off()
                letters = max(4, int(cell * 72 / (0.5 * (SMALL_TEXT - 1))))
                axes.set_title(plain(panel.caption[:letters]), fontsize=SMALL_TEXT - 1, pad=2)


def _settle(axes: Any, curve: Curve) -> None:
    """Labels, ticks and limits of one chart."""
    axes.set_xlabel(curve.x_label, fontsize=TEXT, labelpad=2)
    axes.set_ylabel(plain(curve.y), fontsize=TEXT, labelpad=3)
    axes.tick_params(labelsize=SMALL_TEXT, length=2)
    axes.margins(x=0)
    axes.set_ylim(bottom=0)
    if curve.top is not None:
        axes.set_ylim(top=1.02 * curve.top)
    if curve.log:
        from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

        axes.set_xscale("log")
        low, high = float(curve.x[0]), float(curve.x[-1])
        axes.set_xticks(sorted({low, 1.0, high}))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.2g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_minor_locator(NullLocator())
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
