"""Pictures as matplotlib figures, by its object interface: no window, no state shared with the user's own."""

from __future__ import annotations

import io
import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from striate.visualize.method import Picture

DPI = 150
# Inches: the widest figure, the sides that one drawing may have, and one line of text.
WIDE, SMALLEST, LARGEST, LINE = 10.0, 0.45, 3.0, 0.17
SMALL_TEXT, TEXT, TITLE = 7, 8, 11


def figure(picture: Picture) -> Figure:
    """A figure of the panels in rows of `picture.columns`, with title, captions and note."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = max(1, min(picture.columns, len(picture.panels)))
    rows = -(-len(picture.panels) // columns)
    tall = max(panel.pixels.shape[0] for panel in picture.panels)
    wide = max(panel.pixels.shape[1] for panel in picture.panels)
    # Few pixels need little room: filters of 5 x 5 are not blown up to the width of a photograph.
    cell = min(LARGEST, max(SMALLEST, WIDE / columns), 0.6 + 0.08 * max(tall, wide))
    captioned = any(panel.caption for panel in picture.panels)
    height = cell * tall / wide + (LINE * 1.15 if captioned else 0.0)
    gap = 0.04 * cell + 0.02
    width = max(columns * (cell + gap), 5.0)
    note, title = wrapped(picture.note, width, TEXT), wrapped(picture.title, width, TITLE)
    top, bottom = 0.15 + 0.21 * len(title), 0.12 + LINE * len(note)
    total = top + rows * (height + gap) + bottom
    made = Figure(figsize=(width, total), dpi=DPI, facecolor="white")
    FigureCanvasAgg(made)
    left = (width - columns * (cell + gap) + gap) / 2
    for place, panel in enumerate(picture.panels):
        row, column = divmod(place, columns)
        x = left + column * (cell + gap)
        y = total - top - (row + 1) * (height + gap) + gap
        drawn = cell * tall / wide
        axes = made.add_axes((x / width, y / total, cell / width, drawn / total))
        pixels = panel.pixels[..., 0] if panel.pixels.shape[2] == 1 else panel.pixels
        # Few pixels are shown as they are; many are averaged down rather than picked.
        shown = "nearest" if max(pixels.shape[:2]) < cell * DPI else "antialiased"
        axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, interpolation=shown)
        axes.set_axis_off()
        if panel.caption:
            letters = max(4, int(cell * 72 / (0.55 * SMALL_TEXT)))
            text = textwrap.shorten(panel.caption, letters, placeholder="…") or panel.caption[:letters]
            axes.set_title(plain(text), fontsize=SMALL_TEXT, pad=2)
    made.text(0.5, 1 - 0.08 / total, plain("\n".join(title)), ha="center", va="top", fontsize=TITLE)
    made.text(0.5, 0.06 / total, plain("\n".join(note)), ha="center", va="bottom", fontsize=TEXT, color="0.3")
    return made


def drawn(picture: Picture, kind: str) -> bytes:
    """The figure as the bytes of a "png" or "svg" file; the same picture gives the same bytes."""
    from matplotlib import rc_context

    buffer = io.BytesIO()
    # matplotlib dates its files and draws identifiers at random unless told otherwise.
    with rc_context({"svg.hashsalt": "striate"}):
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        picture.figure().savefig(buffer, format=kind, dpi=DPI, metadata=metadata)
    return buffer.getvalue()


def wrapped(text: str, width: float, size: int) -> list[str]:
    """`text` in lines of `width` inches at a font of `size` points."""
    return textwrap.wrap(text, int(width * 122 / size))


def plain(text: str) -> str:
    """Class names may hold dollar signs: they are no formulas."""
    return text.replace("$", r"\$")
