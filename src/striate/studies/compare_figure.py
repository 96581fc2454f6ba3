"""The classic plots of networks: accuracy against operations with circles of parameters; time and power."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from striate.studies.compare_nets import NetComparison

DPI = 150
INK, SOFT, GRID = "#1b1d22", "#5b606b", "#e6e4df"
# Families keep their colour; as many as can be told apart, then the first again.
COLOURS = (
    "#3f6fe0", "#e2703a", "#2f9e6e", "#8257d6", "#d1487a", "#0f97a8", "#b08a12", "#6b7280", "#a15a2f",
    "#4f66a8",
)  # fmt: skip
# Area, in square points, of the circle of the net with most parameters, and the least area.
LARGEST, SMALLEST = 1800.0, 14.0
# Inches: the width of all, the height of the upper plot.
WIDE, UPPER = 10.0, 6.2


def figure(found: NetComparison) -> Figure:
    """Both plots as a matplotlib figure; no window opens. Without measurements, the first alone.

    Nets without published scores are missing from the first.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    low = 1.2 + 0.3 * len(found.names) if found.measured else 0.0
    high = UPPER + low
    made = Figure(figsize=(WIDE, high), dpi=DPI, facecolor="white")
    FigureCanvasAgg(made)

    def axes(left: float, bottom: float, wide: float, tall: float) -> Axes:
        """Axes by inches."""
        return made.add_axes((left / WIDE, bottom / high, wide / WIDE, tall / high))

    _accuracy(axes(0.75, low + 0.6, WIDE - 0.95, UPPER - 1.05), found)
    if found.measured:
        _time(axes(1.6, 0.6, 4.7, low - 0.95), found)
        _power(axes(6.6, 0.6, WIDE - 6.8, low - 0.95), found)
    return made


def encoded(made: Figure, kind: str) -> bytes:
    """A figure as the bytes of a "png" or "svg" file; the same figures give the same bytes."""
    from matplotlib import rc_context

    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "striate"}):
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        made.savefig(buffer, format=kind, dpi=DPI, metadata=metadata)
    return buffer.getvalue()


def families(names: Sequence[str]) -> dict[str, str]:
    """Each net's family, by its registration; of a card, that of its net."""
    from striate.nets.net import NETS
    from striate.nets.weights import is_published, published

    nets = {name: published(name).net if is_published(name) else name for name in names}
    return {name: str(NETS.entry(net).capabilities.get("family", net)) for name, net in nets.items()}


def _colours(found: NetComparison) -> dict[str, str]:
    family = families(found.names)
    order = {name: i for i, name in enumerate(dict.fromkeys(family.values()))}
    return {name: COLOURS[order[family[name]] % len(COLOURS)] for name in found.names}


def _accuracy(axes: Axes, found: NetComparison) -> None:
    colours = _colours(found)
    known = [i for i, score in enumerate(found.top1) if score is not None]
    style(axes)
    axes.set_title("Accuracy against operations", loc="left", fontsize=12, color=INK, weight="bold")
    axes.set_xlabel("multiply-adds of one picture, in 10⁹", color=SOFT)
    axes.set_ylabel("top-1 accuracy as published, %", color=SOFT)
    if not known:
        axes.text(0.5, 0.5, "none of these nets has published scores", ha="center", transform=axes.transAxes)
        return
    most = max(found.parameters[i] for i in known)
    xs = [found.multiply_adds[i] / 1e9 for i in known]
    ys = [100 * (found.top1[i] or 0.0) for i in known]
    areas = [max(SMALLEST, LARGEST * found.parameters[i] / most) for i in known]
    if max(xs) / min(xs) > 8:
        _logarithmic(axes)
    names = [found.names[i] for i in known]
    axes.scatter(xs, ys, s=areas, c=[colours[name] for name in names], alpha=0.45, linewidths=0, zorder=2)
    axes.scatter(xs, ys, s=6, c=[colours[name] for name in names], zorder=3)
    low, high = min(ys), max(ys)
    axes.set_ylim(low - 0.12 * (high - low) - 1, high + 0.14 * (high - low) + 1)
    axes.margins(x=0.09)
    _name(axes, xs, ys, names)
    _key(axes, most)


def _name(axes: Axes, xs: Sequence[float], ys: Sequence[float], names: Sequence[str]) -> None:
    """Names beside the points: to the right, to the left, above or below, where they cover nothing yet."""
    # In points from the lower left corner of the figure.
    unit = axes.figure.dpi / 72
    points = axes.transData.transform(list(zip(xs, ys, strict=True))) / unit
    edges = axes.get_window_extent()
    frame = (edges.x0 / unit, edges.y0 / unit, edges.x1 / unit, edges.y1 / unit)
    taken: list[tuple[float, float, float, float]] = [(x - 3, y - 3, x + 3, y + 3) for x, y in points]
    for place in sorted(range(len(names)), key=lambda i: -ys[i]):
        wide, high = 4.5 * len(names[place]), 9.0
        x, y = points[place]
        best: tuple[float, float, float] | None = None
        for radius in (5, 11, 18, 26):
            for angle in (0, 180, 90, 270, 35, 145, 325, 215):
                dx, dy = radius * math.cos(math.radians(angle)), radius * math.sin(math.radians(angle))
                left = x + dx - (wide if dx < -1 else wide / 2 if abs(dx) <= 1 else 0)
                box = (left, y + dy - high / 2, left + wide, y + dy + high / 2)
                hidden = sum(_overlap(box, other) for other in taken)
                outside = _overlap(box, frame) < 0.999 * wide * high
                penalty = hidden + radius * 0.4 + (1e6 if outside else 0)
                if best is None or penalty < best[0]:
                    best = (penalty, left, box[1])
        assert best is not None  # there is always a first
        taken.append((best[1], best[2], best[1] + wide, best[2] + high))
        axes.annotate(
            names[place].replace("$", r"\$"), (xs[place], ys[place]), (best[1] - x, best[2] + 1.5 - y),
            textcoords="offset points", fontsize=7.5, color=INK, zorder=4,
        )  # fmt: skip


def _logarithmic(axes: Axes) -> None:
    """A logarithmic axis to the right, with 1, 2 and 5 and their powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _overlap(a: Sequence[float], b: Sequence[float]) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _key(axes: Axes, most: int) -> None:
    """Circles of round numbers of parameters."""
    from matplotlib.lines import Line2D

    power = 10 ** math.floor(math.log10(most))
    shown = sorted({most // power * power, power // 2, power // 10})
    handles: list[Any] = [
        Line2D(
            [], [], marker="o", linestyle="", color=SOFT, alpha=0.45, markeredgewidth=0,
            markersize=math.sqrt(max(SMALLEST, LARGEST * value / most)), label=_millions(value),
        )
        for value in shown
    ]  # fmt: skip
    legend = axes.legend(
        handles=handles, title="parameters", loc="lower right", frameon=False, labelspacing=3.4,
        borderpad=1.8, handletextpad=2.4, fontsize=8, title_fontsize=8, labelcolor=SOFT,
    )  # fmt: skip
    legend.get_title().set_color(SOFT)


def _millions(value: int) -> str:
    return f"{value / 1e6:g} M" if value >= 1e5 else f"{value / 1e3:g} k"


def _time(axes: Axes, found: NetComparison) -> None:
    colours = _colours(found)
    style(axes)
    axes.set_title("Time of one picture", loc="left", fontsize=12, color=INK, weight="bold")
    places = list(range(len(found.names)))[::-1]
    single = [1e3 * (value or 0) for value in found.latency_1]
    several = [1e3 * (value or 0) for value in found.latency_16]
    shade = [colours[name] for name in found.names]
    axes.barh([p + 0.19 for p in places], single, 0.36, color=shade, label="alone", zorder=2)
    light = [_lighter(colour) for colour in shade]
    axes.barh([p - 0.19 for p in places], several, 0.36, color=light, label="of 16", zorder=2)
    axes.set_yticks(places, [name.replace("$", r"\$") for name in found.names], fontsize=8)
    axes.set_xlabel("milliseconds: alone (dark), in a batch of 16 (light)", color=SOFT)
    if min(single + several) > 0 and max(single + several) / min(single + several) > 30:
        _logarithmic(axes)
    axes.set_ylim(-0.7, len(places) - 0.3)
    axes.grid(False, axis="y")


def _power(axes: Axes, found: NetComparison) -> None:
    colours = _colours(found)
    style(axes)
    axes.set_title("Power", loc="left", fontsize=12, color=INK, weight="bold")
    axes.set_xlabel("watts, in batches of 16", color=SOFT)
    places = list(range(len(found.names)))[::-1]
    if not any(found.watts):
        axes.set_xticks([])
        axes.set_yticks([])
        axes.text(
            0.5, 0.5, "\n".join(_wrapped(found.energy)), ha="center", va="center", color=SOFT, fontsize=9,
            transform=axes.transAxes,
        )  # fmt: skip
        return
    shade = [colours[name] for name in found.names]
    axes.barh(places, [value or 0 for value in found.watts], 0.62, color=shade, zorder=2)
    for place, joules, watts in zip(places, found.joules, found.watts, strict=True):
        if joules is not None and watts is not None:
            axes.text(watts, place, f" {joules:.3g} J a picture", va="center", fontsize=7.5, color=INK)
    axes.set_yticks(places, [""] * len(places))
    axes.margins(x=0.45)
    axes.set_ylim(-0.7, len(places) - 0.3)
    axes.grid(False, axis="y")


def _lighter(colour: str) -> str:
    """A colour half way to white."""
    return "#" + "".join(f"{(int(colour[i : i + 2], 16) + 255) // 2:02x}" for i in (1, 3, 5))


def _wrapped(words: str) -> list[str]:
    import textwrap

    return textwrap.wrap(words, 46)


def style(axes: Axes) -> None:
    """A light grid, no box, soft ink."""
    axes.grid(True, color=GRID, linewidth=0.8, zorder=0)
    axes.set_axisbelow(True)
    axes.tick_params(colors=SOFT, length=0, labelsize=9)
    for name, spine in axes.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(GRID)
