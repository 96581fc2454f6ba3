"""The report: positions of the figures by hand, escaping, self-containment, limits, contrast."""

from __future__ import annotations

import itertools
import json
import math
import re
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from striate.core.errors import StriateError
from striate.images.draw import encode_jpeg, encode_png
from striate.report import figures, html
from striate.report.contents import (
    Calibration,
    ClassTable,
    Confusion,
    Curve,
    Example,
    Fact,
    Gallery,
    Headline,
    Panel,
    Picture,
    ReportData,
    Setting,
)

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"' onclick='alert(3)\u2028&amp;{{7*7}}"
GREY = encode_png(np.full((8, 8), 90, np.uint8))


def picture(text: str = "a grey square", width: int = 8) -> Picture:
    return Picture(GREY, text, width, width)


def full_report(text: str = "shirt", classes: int = 3) -> ReportData:
    """A report with something in each of its parts; every text that a user can set is `text`."""
    names = tuple(f"{text} {k}" for k in range(classes))
    example = Example((picture(text),), text, names[0], names[1], 0.91, 0.5, "IoU")
    counts = tuple(tuple(7 if r == c else (r + 2 * c) % 3 for c in range(classes)) for r in range(classes))
    cells = {
        (r, c): (example,) * counts[r][c] for r in range(classes) for c in range(classes) if counts[r][c]
    }
    return ReportData(
        title=text, subtitle=text, created=text, version=text,
        headline=Headline(text, 0.9, 1000, text, (0.88, 0.92)),
        facts=(Fact(text, text, text),), notices=(text,), summary=(Fact(text, text, text),),
        settings=(Setting("lr", text, text, text, True), Setting(text, text)),
        curves=(Curve(text, (1.0, 2.0), {text: (1.0, 0.5), "b": (None, 0.7)}, better="low"),),
        class_table=ClassTable(
            (("Class", "text"), ("Recall", "bar"), ("Images", "count"), (text, "proportion")),
            tuple((name, 0.5, 10, None) for name in names), ((0.4, 0.6),) * classes, text,
        ),
        confusion=Confusion(names, counts, cells),
        galleries=(Gallery(text, text, (example,)),), saliency=Gallery(text, text, (example,)),
        calibration=Calibration((4, 6), (0.4, 0.9), (0.25, 1.0), 0.12),
        inside=(Panel(text, text, (picture(text),)),), timing=(Fact(text, text, text),),
        shares={text: 3.0, "b": 1.0},
        data=(text,), splits={text: 5, "test": 2}, bad=((text, text),), environment=((text, text),),
        commands=((text, text),),
    )  # fmt: skip


class Page(HTMLParser):
    """The elements of a page, and the text of its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[str, str]] = []
        self.words: list[str] = []
        self._open: str | None = None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._open = tag if tag in ("script", "style") else None
        if tag == "script":
            self.scripts.append((dict(attrs).get("type") or "", ""))

    def handle_endtag(self, tag: str) -> None:
        self._open = None

    def handle_data(self, data: str) -> None:
        if self._open == "script":
            kind, text = self.scripts[-1]
            self.scripts[-1] = (kind, text + data)
        elif self._open is None:
            self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.elements if name == tag]


def test_nothing_is_loaded_from_outside() -> None:
    text = html.render(full_report())
    page = Page(text)
    for tag, attrs in page.elements:
        for name in ("src", "href", "srcset", "action", "poster", "data", "xlink:href"):
            value = attrs.get(name)
            assert value is None or value.startswith(("data:image/", "#")), (tag, name, value)
    assert not page.all("link")
    assert not re.search(r"@import|url\(|https?://|//cdn", text)
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy
    assert "default-src 'none'" in policy


def test_texts_cannot_become_markup() -> None:
    harmless, hostile = Page(html.render(full_report())), Page(html.render(full_report(EVIL)))
    assert [tag for tag, _ in hostile.elements] == [tag for tag, _ in harmless.elements]
    for _, attrs in hostile.elements:
        assert not [name for name in attrs if name.startswith("on")]
    assert EVIL in "".join(hostile.words)


def test_json_islands_give_back_what_went_in() -> None:
    page = Page(html.render(full_report(EVIL)))
    islands = [json.loads(text) for kind, text in page.scripts if kind == "application/json"]
    cells = next(value for value in islands if "classes" in value)
    assert cells["classes"] == [f"{EVIL} {k}" for k in range(3)]
    assert next(iter(cells["cells"].values()))[0][1] == EVIL
    assert not any(
        "<" in text or "\u2028" in text for kind, text in page.scripts if kind == "application/json"
    )


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda v: st.lists(v, max_size=4)))
def test_safe_json_is_json_and_ends_no_script(value: object) -> None:
    text = html.safe_json(value)
    assert json.loads(text) == value
    assert not set(text) & set("<>&\u2028\u2029")


def test_everything_has_a_name_for_screen_readers() -> None:
    page = Page(html.render(full_report()))
    assert all(attrs.get("alt") for attrs in page.all("img"))
    assert all(attrs.get("scope") for attrs in page.all("th"))
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {a["href"] for a in page.all("a")} <= {f"#{name}" for name in ids}
    assert page.all("html")[0]["lang"] == "en"
    assert len(page.all("h1")) == 1
    in_matrix = [a for a in page.all("button") if a.get("tabindex") == "-1"]
    assert in_matrix
    assert all("predicted" in (a["aria-label"] or "") for a in in_matrix)


def test_an_empty_report_is_a_page() -> None:
    page = Page(html.render(ReportData(title="nothing yet")))
    assert "nothing yet" in "".join(page.words)
    assert len(page.all("section")) == 1
    assert not page.all("li")


def test_pictures_are_told_by_their_bytes() -> None:
    assert html.data_uri(GREY).startswith("data:image/png;base64,")
    assert html.data_uri(encode_jpeg(np.zeros((8, 8, 3), np.uint8))).startswith("data:image/jpeg;base64,")
    with pytest.raises(StriateError, match="unknown kind"):
        html.data_uri(b"<svg onload=alert(1)>")


def test_small_pictures_are_enlarged_by_a_whole_factor() -> None:
    assert [html.shown_width(picture(width=w)) for w in (8, 28, 32, 64, 65, 300)] == [
        96,
        84,
        96,
        128,
        65,
        300,
    ]


def test_written_in_one_step(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "report.html"
    assert html.write(full_report(), target) == target
    assert target.read_text("utf-8").startswith("<!doctype html>")
    assert [p.name for p in target.parent.iterdir()] == ["report.html"]


# --- limits -----------------------------------------------------------------------------------------------


def test_images_behind_cells_are_bounded() -> None:
    names = tuple(map(str, range(12)))
    counts = tuple((20,) * 12 for _ in names)
    example = Example((picture(),), "x", "1", "2", 0.5)
    cells = {(r, c): (example,) * 20 for r in range(12) for c in range(12)}
    found = html._cells(Confusion(names, counts, cells))
    assert max(map(len, found.values())) == 12
    assert sum(map(len, found.values())) == 600
    wrong = sum(len(v) for key, v in found.items() if len(set(key.split(","))) == 2)
    assert wrong == 600, "mistakes come before hits"


def test_a_thousand_classes_stay_small() -> None:
    text = html.render(full_report("c", classes=1000))
    assert len(text) < 2_500_000
    assert "1,000 classes are too many to show" in text
    page = Page(text)
    assert len([a for a in page.all("td") if a.get("class", "") and "miss" in str(a["class"])]) <= 24 * 24


# --- figures by hand --------------------------------------------------------------------------------------


@given(
    st.floats(-1e6, 1e6, allow_nan=False),
    st.floats(1e-3, 1e6, allow_nan=False),
    st.integers(2, 8),
)
def test_ticks_are_round_inside_and_even(low: float, length: float, count: int) -> None:
    high = low + length
    found = figures.ticks(low, high, count)
    slack = 1e-6 * max(abs(low), abs(high), 1.0)
    assert all(low - slack <= v <= high + slack for v in found)
    assert len(found) <= count + 1
    steps = {round((b - a) / length, 6) for a, b in itertools.pairwise(found)}
    if len(found) > 2 and length > 1e-4 * max(abs(low), 1.0):
        assert max(steps) - min(steps) < 1e-3
        step = found[1] - found[0]
        mantissa = step / 10 ** math.floor(math.log10(step * 1.000001))
        assert min(abs(mantissa - m) for m in (1, 2, 5, 10)) < 1e-2


def test_ticks_known() -> None:
    assert figures.ticks(0, 1, 5) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert figures.ticks(0.3, 2.2, 4) == [0.5, 1.0, 1.5, 2.0]
    assert figures.Scale(0.01, 10, log=True).ticks() == [0.01, 0.1, 1.0, 10.0]
    assert figures.Scale(0.01, 100, log=True)(1) == pytest.approx(0.5)


def test_a_line_is_where_its_values_are() -> None:
    chart = figures.line_chart(Curve("loss", (1.0, 2.0, 3.0), {"a": (0.0, 1.0, 2.0)}, better="low"))
    assert chart is not None
    line = chart.lines[0]
    # The axis begins at 0 and ends 6 % above 2.
    assert line.path == f"M0.0 1000.0L500.0 {1000 - 1000 / 2.12:.1f}L1000.0 {1000 - 2000 / 2.12:.1f}"
    assert line.best == (0.0, 1.0)
    assert line.best_text == "0"
    assert chart.x_text == ("1", "2", "3")


def test_a_gap_breaks_the_line_and_a_missing_value_does_not() -> None:
    x = (1.0, 2.0, 3.0, 4.0)
    chart = figures.line_chart(Curve("l", x, {"a": (1.0, math.nan, 2.0, 3.0), "b": (1.0, None, 2.0, 3.0)}))
    assert chart is not None
    assert [line.path.count("M") for line in chart.lines] == [2, 1]
    assert chart.lines[0].values[1] == "–"
    assert chart.lines[0].heights[1] is None
    json.dumps(chart.data(), allow_nan=False)


def test_ticks_are_told_apart_and_epochs_are_whole() -> None:
    chart = figures.line_chart(Curve("s", (1.0, 2.0, 3.0), {"a": (0.3972, 0.3979, 0.3979)}, "proportion"))
    assert chart is not None
    texts = [text for _, text in chart.y_ticks]
    assert len(set(texts)) == len(texts) > 2
    assert [text for _, text in chart.x_ticks] == ["1", "2", "3"]


def test_charts_of_one_point_and_of_none() -> None:
    chart = figures.line_chart(Curve("l", (1.0,), {"a": (0.5,)}, "proportion", "high"))
    assert chart is not None
    assert chart.lines[0].last == (0.5, 0.5)
    assert figures.line_chart(Curve("l", (1.0,), {"a": (math.nan,)})) is None
    assert figures.line_chart(Curve("l", (), {"a": ()})) is None


def test_a_loss_over_many_powers_of_ten_is_logarithmic() -> None:
    x = tuple(map(float, range(5)))
    assert figures.line_chart(Curve("l", x, {"a": (100.0, 10, 1, 0.1, 0.01)}, better="low")).log  # type: ignore[union-attr]
    assert not figures.line_chart(Curve("l", x, {"a": (2.0, 1.5, 1, 0.5, 0.2)}, better="low")).log  # type: ignore[union-attr]


def test_a_small_matrix_is_whole() -> None:
    shown = figures.matrix(Confusion(("a", "b"), ((3, 1), (0, 4))))
    assert shown.shown == (0, 1)
    assert [[cell.share for cell in row] for row in shown.rows] == [[0.75, 0.25], [0.0, 1.0]]
    assert shown.rows[0][1].tint == 0.5
    assert [(p.row, p.column, p.count) for p in shown.pairs] == [(0, 1, 1)]
    assert shown.others is None


@given(st.lists(st.tuples(st.integers(0, 49), st.integers(0, 49), st.integers(1, 9)), max_size=80))
def test_a_collapsed_matrix_loses_no_count_of_its_rows(mistakes: list[tuple[int, int, int]]) -> None:
    counts = np.diag(np.full(50, 5))
    for row, column, count in mistakes:
        counts[row, column] += count
    shown = figures.matrix(Confusion(tuple(map(str, range(50))), tuple(map(tuple, counts.tolist()))))
    assert len(shown.shown) <= figures.PART_OF_MATRIX
    assert shown.others is not None
    for k, row, other in zip(shown.shown, shown.rows, shown.others, strict=True):
        assert sum(cell.count for cell in row) + other == counts[k].sum()
    wrong = counts - np.diag(np.diag(counts))
    if shown.pairs:
        assert shown.pairs[0].count == wrong.max()
        assert {shown.pairs[0].row, shown.pairs[0].column} <= set(shown.shown)


def test_gaps_of_the_reliability_diagram_sum_to_the_calibration_error() -> None:
    rng = np.random.default_rng(0)
    sure, right = rng.uniform(0.1, 1, 400), rng.integers(0, 2, 400)
    place = np.minimum((sure * 5).astype(int), 4)
    rows = [(place == b) for b in range(5)]
    data = Calibration(
        tuple(int(r.sum()) for r in rows),
        tuple(float(sure[r].mean()) for r in rows),
        tuple(float(right[r].mean()) for r in rows),
        0.0,
    )
    bins = figures.reliability(data)
    weighted = sum(b.gap * n for b, n in zip(bins, data.counts, strict=True)) / 400
    expected = sum(abs(right[r].mean() - sure[r].mean()) * r.sum() for r in rows) / 400
    assert weighted == pytest.approx(expected)
    assert figures.reliability(Calibration((0, 2), (None, 0.8), (None, 0.5), 0.3))[0].left == 0.5


def test_numbers_and_percentages() -> None:
    assert [figures.number(v) for v in (1234567, 0.123456, 12345.6, None, math.inf)] == [
        "1,234,567", "0.1235", "12,346", "–", "–",
    ]  # fmt: skip
    assert figures.percent(0.98765) == "98.8\u00a0%"
    assert figures.percent(None) == "–"


# --- colours ----------------------------------------------------------------------------------------------


def luminance(colour: str) -> float:
    """Relative luminance, WCAG 2.2."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    a, b = sorted((luminance(one), luminance(other)))
    return (b + 0.05) / (a + 0.05)


@pytest.mark.parametrize("theme", [0, 1, 2])
def test_text_can_be_read_in_every_theme(theme: int) -> None:
    css = resources.files("striate.report").joinpath("templates", "style.css").read_text("utf-8")
    blocks = [
        dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", b)) for b in re.findall(r":root[^{]*\{[^}]*\}", css)
    ]
    colours = [b for b in blocks if "paper" in b][theme]
    for text in ("ink", "soft", "faint", "accent"):
        for ground in ("paper", "raised", "wash"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    assert contrast(colours["on-accent"], colours["accent"]) >= 4.5
