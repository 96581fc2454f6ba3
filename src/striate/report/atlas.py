"""The atlas of units as an HTML page: light and dark, no network, every text escaped."""

from __future__ import annotations

from dataclasses import dataclass

from striate.report.html import _environment, _text


@dataclass(frozen=True)
class Tiles:
    """One picture of a unit's tiles: its address (relative, or a data URI), what it shows, size in pixels."""

    source: str
    label: str
    width: int
    height: int


@dataclass(frozen=True)
class Seen:
    """One of the strongest images of a unit: its name, the response, row and column of the maximum."""

    name: str
    value: float
    row: int
    column: int


@dataclass(frozen=True)
class Card:
    """One unit: number, pictures, strongest images, figures, and the units that respond like it."""

    number: int
    tiles: tuple[Tiles, ...]
    seen: tuple[Seen, ...]
    active: float
    sparseness: float | None
    like: tuple[tuple[int, float], ...] = ()

    @property
    def largest(self) -> float:
        """The strongest response; 0 for a unit that never responds."""
        return self.seen[0].value if self.seen else 0.0


@dataclass(frozen=True)
class Chapter:
    """One stage: name, anchor, a line about it, its units, and the numbers of those that never respond."""

    name: str
    anchor: str
    about: str
    cards: tuple[Card, ...]
    dead: tuple[int, ...] = ()


@dataclass(frozen=True)
class AtlasPage:
    """The whole page."""

    title: str
    subtitle: str
    chapters: tuple[Chapter, ...]
    notes: tuple[str, ...] = ()
    version: str = ""


def render_atlas(page: AtlasPage) -> str:
    """The page as HTML text, UTF-8."""
    return (
        _environment()
        .get_template("atlas.html.j2")
        .render(p=page, css=_text("style.css"), more=_text("atlas.css"), script=_text("atlas.js"))
    )
