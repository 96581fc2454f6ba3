"""What leaving out each part of a recipe changes, as points with their intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING

from striate.studies.compare_figure import DPI, INK, SOFT, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from striate.studies.ablation import Ablation

COLOURS = {"better": "#2f9e6e", "worse": "#e2703a"}
UNTOLD = "#8b909b"
# Inches.
WIDE, ROW = 8.0, 0.42


def figure(found: Ablation) -> Figure:
    """One row a recipe: the difference to the whole recipe in points, with its 95% interval."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = range(1, len(found.names))
    made = Figure(figsize=(WIDE, 1.5 + ROW * len(rows)), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(made)
    axes = made.add_subplot()
    style(axes)
    axes.axvline(0, color=INK, linewidth=1)
    for row in rows:
        gap, low, high = found.differences[row], found.lows[row], found.highs[row]
        colour = COLOURS.get(found.verdicts[row], UNTOLD)
        if low is not None and high is not None:
            axes.plot(
                [100 * low, 100 * high], [row, row], color=colour, linewidth=2.5, solid_capstyle="round"
            )
        if gap is None:
            axes.text(0, row, " diverged", color=SOFT, va="center", fontsize=9)
        else:
            axes.plot(100 * gap, row, "o", color=colour, markersize=7)
    axes.set_yticks(list(rows), [found.names[row] for row in rows], color=INK)
    axes.set_ylim(len(rows) + 0.6, 0.4)
    count = len(found.seeds)
    whole = f"{found.main_name} {100 * (found.means[0] or 0.0):.2f}% with the whole recipe"
    axes.set_title(whole, loc="left", fontsize=11, color=INK, weight="bold")
    axes.set_xlabel(
        f"points of {found.main_name} more (right) or less (left) on {found.n:,} {found.split} images,"
        f" {count} seed{'s' * (count > 1)}, 95% intervals",
        color=SOFT, fontsize=9,
    )  # fmt: skip
    return made
