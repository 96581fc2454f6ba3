"""The report as one self-contained HTML page: no network, no outside file, every text escaped."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from striate.core.errors import StriateError
from striate.core.files import write_text
from striate.report import figures
from striate.report.contents import ClassTable, Confusion, Example, Picture, ReportData

if TYPE_CHECKING:
    import os

    from jinja2 import Environment

PER_CELL = 12  # images behind an off-diagonal cell of the confusion matrix
IMAGES = 600  # images behind all cells together
PIXELATED = 64  # up to this many pixels wide, a picture is enlarged without smoothing
LONG_TABLE = 20  # from this many classes, the table gets a box to search in

KINDS = {b"\xff\xd8": "jpeg", b"\x89P": "png", b"GI": "gif", b"RI": "webp"}


def render(data: ReportData) -> str:
    """The report as HTML text, UTF-8.

    Raises:
        StriateError: a picture that is not JPEG, PNG, GIF or WebP.
    """
    confusion = data.confusion
    charts = [chart for chart in map(figures.line_chart, data.curves) if chart is not None]
    return page(
        "report.html.j2",
        ("style.css",),
        d=data,
        charts=charts,
        matrix=figures.matrix(confusion) if confusion else None,
        cells=_cells(confusion) if confusion else None,
        bins=figures.reliability(data.calibration) if data.calibration else (),
        bars=_bars(data.class_table),
        sections=_sections(data, bool(charts)),
        long_table=LONG_TABLE,
    )


def page(template: str, styles: Sequence[str], **values: Any) -> str:
    """A page in the frame of all reports; `values` must hold `d` (with title, version) and `sections`.

    styles: style sheets of this package, in order.
    """
    from markupsafe import Markup

    css, script = Markup("").join(map(_text, styles)), _text("script.js")
    return _environment().get_template(template).render(css=css, script=script, **values)


def write(data: ReportData, path: str | os.PathLike[str]) -> Path:
    """Render to a file, written in one step; raises as `render` and `write_text` do."""
    return write_text(path, render(data))


def data_uri(data: bytes) -> str:
    """Encoded image bytes as a data URI; the kind is told by the bytes.

    Raises:
        StriateError: not JPEG, PNG, GIF or WebP.
    """
    kind = KINDS.get(data[:2])
    if kind is None:
        raise StriateError("a report picture of an unknown kind", allowed=KINDS.values())
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def safe_json(value: Any) -> Any:
    """`value` as JSON that no text in it can end or escape, inside a <script> element (markup-safe)."""
    from markupsafe import Markup

    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return Markup(text)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=PackageLoader("striate.report", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    made.filters |= {
        "percent": figures.percent,
        "number": figures.number,
        "uri": data_uri,
        "island": safe_json,
    }
    made.globals["shown_width"] = shown_width
    made.globals["pixelated"] = lambda picture: picture.width <= PIXELATED
    return made


def shown_width(picture: Picture) -> int:
    """Width on the page in CSS pixels: small pictures are enlarged by a whole factor to about 96 pixels."""
    if picture.width > PIXELATED:
        return picture.width
    return picture.width * max(1, round(96 / max(1, picture.width)))


def _text(name: str) -> Any:
    from markupsafe import Markup

    # The package's own files, so that they may go into the page as they are.
    return Markup(resources.files("striate.report").joinpath("templates", name).read_text("utf-8"))


def _cells(confusion: Confusion) -> dict[str, list[Any]]:
    """The images behind the cells as JSON values, at most 12 a cell and 600 in all, mistakes first."""
    left, found = IMAGES, {}
    wrong_first = sorted(confusion.cells.items(), key=lambda item: (item[0][0] == item[0][1], item[0]))
    for (row, column), examples in wrong_first:
        kept = examples[: min(PER_CELL, left)]
        left -= len(kept)
        if kept:
            found[f"{row},{column}"] = [_thumbnail(example) for example in kept]
    return found


def _thumbnail(example: Example) -> list[Any]:
    picture = example.pictures[0]
    sure = "" if example.confidence is None else figures.percent(example.confidence)
    return [data_uri(picture.data), example.name, sure, int(picture.width <= PIXELATED)]


def _bars(table: ClassTable | None) -> list[tuple[float, float, float] | None]:
    """(value, low, high) of the bar column for each row, 0 to 1; None where it does not apply."""
    if table is None:
        return []
    column = next((k for k, (_, kind) in enumerate(table.columns) if kind == "bar"), None)
    bars: list[tuple[float, float, float] | None] = []
    for k, row in enumerate(table.rows):
        value = None if column is None else row[column]
        if not isinstance(value, (int, float)):
            bars.append(None)
            continue
        interval = table.intervals[k] if k < len(table.intervals) else None
        bars.append((value, *(interval or (value, value))))
    return bars


def _sections(data: ReportData, charts: bool) -> Sequence[tuple[str, str]]:
    everything = [
        ("training", "Training", charts),
        ("classes", "Classes", data.class_table),
        ("confusion", "Confusion", data.confusion),
        ("mistakes", "Examples", data.galleries),
        ("calibration", "Calibration", data.calibration),
        ("inside", "Inside the network", data.inside or data.saliency),
        ("data", "Data", data.data or data.splits or data.bad),
        ("timing", "Timing", data.timing or data.shares),
        ("settings", "Settings", data.settings),
        ("again", "Reproduce", data.commands or data.environment),
    ]
    return [(key, title) for key, title, there in everything if there]
