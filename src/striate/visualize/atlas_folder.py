"""The atlas as files: a folder with a page, a picture of each stage, one of each unit, and the numbers."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from striate import __version__
from striate.core.errors import StriateError, unknown
from striate.core.files import write_bytes, write_json, write_text
from striate.core.folders import replacing_folder
from striate.core.runs import read_json
from striate.images import draw
from striate.report.atlas import AtlasPage, Card, Chapter, Seen, Tiles, render_atlas
from striate.report.html import data_uri
from striate.visualize.atlas import PATCHES, StageTiles, about, block, enlargement, sheet
from striate.visualize.method import Pixels
from striate.visualize.rules import RULES
from striate.visualize.units import Units

FACTS, PAGE, NUMBERS = "atlas.json", "index.html", "units.npz"
FORMAT = 1
# Tiles of at most this side are kept without loss, and enlarged pixel by pixel.
SHARP = 24
STATISTICS = (
    "mean",
    "variance",
    "active",
    "response_mean",
    "response_variance",
    "response_active",
    "sparseness",
)
LABELS = {PATCHES: "strongest patches", "deconvnet": "deconvnet projections",
          "guided": "guided projections", "plain": "gradients"}  # fmt: skip


@dataclass(frozen=True)
class UnitRecord:
    """One unit looked up in an atlas: its k strongest images, its statistics, and the files of its pictures.

    seen: (name, response, row, column) of the strongest images; pictures: "patches" and rules -> file, none
    for a unit that is above 0 on no image.
    """

    stage: str
    number: int
    seen: tuple[tuple[str, float, int, int], ...]
    statistics: dict[str, float]
    pictures: dict[str, Path]


class AtlasFolder:
    """An atlas on the disk: any unit is looked up without reading the others.

    Raises:
        StriateError: the folder holds no atlas.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if not (self.path / FACTS).is_file():
            raise StriateError(
                f"{str(self.path)!r} holds no atlas", hint="make one with 'striate units MODEL DATA --out'"
            )
        self.facts = read_json(self.path / FACTS)

    @property
    def stages(self) -> tuple[str, ...]:
        """The names of the stages."""
        return tuple(self.facts["stages"])

    def unit(self, stage: str, number: int) -> UnitRecord:
        """One unit of a stage.

        Raises:
            StriateError: no such stage or unit, or it was not drawn.
        """
        stages = self.facts["stages"]
        if stage not in stages:
            raise unknown("stage of the atlas", stage, stages)
        facts = stages[stage]
        if str(number) not in facts["units"]:
            raise StriateError(
                f"unit {number} of {stage!r} is not in the atlas",
                allowed=f"0 to {facts['count'] - 1}" if len(facts["units"]) == facts["count"] else None,
            )
        one = facts["units"][str(number)]
        folder = self.path / facts["folder"]
        return UnitRecord(
            stage,
            number,
            tuple((str(n), float(v), int(r), int(c)) for n, v, r, c in one["seen"]),
            dict(one["statistics"]),
            {
                name: folder / _file(number, name, facts["suffix"])
                for name in facts["pictures"]
                if one["seen"]
            },
        )


def write_folder(units: Units, drawn: Iterator[StageTiles], path: str | os.PathLike[str]) -> Path:
    """Write the atlas into a folder, in one step: index.html, atlas.json, units.npz, pictures by stage.

    drawn: the stages' tiles, taken one by one, so that only one stage lies in memory.

    Raises:
        StriateError: the folder holds other files, or cannot be written.
    """
    target = Path(path)
    with replacing_folder(target, FACTS) as folder:
        chapters: list[Chapter] = []
        stages: dict[str, dict[str, Any]] = {}
        for one in drawn:
            name = one.found.stage
            place = _safe(name, [facts["folder"] for facts in stages.values()])
            suffix = _suffix(one)

            def keep(number: int, label: str, pixels: Pixels, to: str = place, kind: str = suffix) -> str:
                file = f"{to}/{_file(number, label, kind)}"
                write_bytes(folder / file, _encoded(pixels, kind))
                return file

            cards = tuple(_cards(units, one, keep))
            write_bytes(folder / f"{place}.png", draw.encode_png(sheet(one)))
            stages[name] = {
                "folder": place, "suffix": suffix, "count": len(one.found), "shape": list(one.found.shape),
                "stride": one.stride, "receptive_field": one.side, "pictures": list(one.tiles),
                "units": _facts(one, cards),
            }  # fmt: skip
            chapters.append(_chapter(one, place, cards))
        units.save(folder / NUMBERS)
        head = {"format": FORMAT, "version": __version__, "model": units.model, "data": units.data,
                "split": units.split, "images": units.images, "k": units.k}  # fmt: skip
        write_json(folder / FACTS, {**head, "stages": stages})
        write_text(folder / PAGE, render_atlas(_page(units, chapters)))
    return target / PAGE


def write_page(units: Units, drawn: Iterator[StageTiles], path: str | os.PathLike[str]) -> Path:
    """Write the atlas as one HTML file with all pictures in it.

    Raises:
        StriateError: the file cannot be written.
    """
    chapters: list[Chapter] = []
    for one in drawn:
        suffix = _suffix(one)

        def keep(number: int, label: str, pixels: Pixels, kind: str = suffix) -> str:
            return data_uri(_encoded(pixels, kind))

        place = _safe(one.found.stage, [chapter.anchor for chapter in chapters])
        chapters.append(_chapter(one, place, tuple(_cards(units, one, keep))))
    return write_text(path, render_atlas(_page(units, chapters)))


def write_sheet(drawn: Iterator[StageTiles], path: str | os.PathLike[str]) -> Path:
    """Write the pictures of all stages, one below the other, as one .png or .jpg file.

    Raises:
        StriateError: another suffix, or the file cannot be written.
    """
    sheets = [draw.caption(sheet(one), one.found.stage, height=22) for one in drawn]
    width = max(one.shape[1] for one in sheets)
    padded = [np.pad(s, ((0, 0), (0, width - s.shape[1]), (0, 0)), constant_values=255) for s in sheets]
    return draw.save(path, np.concatenate(padded, axis=0))


def _suffix(one: StageTiles) -> str:
    return ".png" if max(one.tiles[PATCHES].shape[2:4]) <= SHARP else ".jpg"


def _encoded(pixels: Pixels, suffix: str) -> bytes:
    return draw.encode_png(pixels) if suffix == ".png" else draw.encode_jpeg(pixels, quality=88)


def _file(number: int, label: str, suffix: str) -> str:
    return f"{number:04d}-{label}{suffix}"


def _safe(name: str, taken: Sequence[str]) -> str:
    """A stage's name as the name of a folder and of an anchor."""
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip(".-") or "stage"
    while plain in taken:
        plain += "-"
    return plain


def _facts(one: StageTiles, cards: Sequence[Card]) -> dict[str, Any]:
    """What atlas.json tells of each unit of a stage."""
    found: dict[str, Any] = {}
    for card in cards:
        figures = {name: float(getattr(one.found, name)[card.number]) for name in STATISTICS}
        found[str(card.number)] = {
            "seen": [[s.name, s.value, s.row, s.column] for s in card.seen],
            "statistics": {name: value for name, value in figures.items() if np.isfinite(value)},
            "like": [[other, round(value, 4)] for other, value in card.like],
        }
    return found


def _chapter(one: StageTiles, place: str, cards: tuple[Card, ...]) -> Chapter:
    shown = set(one.numbers.tolist())
    return Chapter(
        one.found.stage, place, about(one), cards, tuple(n for n in one.found.dead.tolist() if n in shown)
    )


def _cards(units: Units, one: StageTiles, keep: Callable[[int, str, Pixels], str]) -> Iterator[Card]:
    """What the page tells of each unit; `keep` stores a picture and gives its address."""
    found = one.found
    for place, number in enumerate(one.numbers.tolist()):
        tiles = []
        for label, several in one.tiles.items() if one.seen[place].any() else ():
            # The gaps are a pixel wide: small tiles are enlarged before they are joined.
            pixels = block(several[place], enlargement(several))
            height, width = pixels.shape[:2]
            tiles.append(Tiles(keep(number, label, pixels), LABELS[label], width, height))
        seen = []
        for slot in np.flatnonzero(one.seen[place]).tolist():
            row, column = found.places[number, slot].tolist()
            name = units.names[int(found.index[number, slot])]
            seen.append(Seen(name, float(found.values[number, slot]), row, column))
        sparse = float(found.sparseness[number])
        yield Card(
            number,
            tuple(tiles),
            tuple(seen),
            float(found.response_active[number]),
            sparse if np.isfinite(sparse) else None,
            tuple(found.like(number)),
        )


def _page(units: Units, chapters: Sequence[Chapter]) -> AtlasPage:
    labels = {tiles.label for chapter in chapters for card in chapter.cards for tiles in card.tiles}
    how = "; ".join(f"{LABELS[rule]}: {text}" for rule, text in RULES.items() if LABELS[rule] in labels)
    notes = [
        f"For each unit the {units.k} images that excite it most: the part of the image that it sees, at the "
        "position of its largest value. Outside of the image: the mean colour. Equal images count once."
    ]
    if how:
        notes.append(f"Beside it what runs back from the unit; grey is 0, each scaled on its own. {how}.")
    subtitle = f"{units.model} on {units.images:,} images of {units.data or 'the data'} ({units.split})"
    return AtlasPage("Atlas of units", subtitle, tuple(chapters), tuple(notes), __version__)
