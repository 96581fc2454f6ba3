"""The images that a model is tested on: never those that it was trained on, as far as its card can tell."""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from striate.core.errors import StriateError, unknown
from striate.core.runs import SPLITS
from striate.data.formats import open_data
from striate.data.samples import Dataset, Split
from striate.model import Model

SHOWN = 10
# The options of `open_data` that draw splits, and that choose the labels of a table, as a recipe has them;
# a card is only believed where a value is of the right kind.
DRAWN: dict[str, tuple[type, ...]] = {
    "val": (int, float),
    "test": (int, float),
    "seed": (int,),
    "contiguous": (bool, type(None)),
}
SHAPING = {**DRAWN, "label_column": (str, type(None))}
NOT_AN_OPTION = ("spec", "classes")


@dataclass(frozen=True)
class Trained:
    """What a model tells of the data it was trained on: name, digest, how they were opened, and their splits.

    splits: the split file of the run that the model lies in; None where it was copied away from it.
    """

    name: str
    digest: str
    options: dict[str, Any]
    splits: Path | None

    @classmethod
    def of(cls, model: Model) -> Trained | None:
        """From the model's card; None where it does not say."""
        data, recipe = (model.card.get(key) for key in ("data", "recipe"))
        if not isinstance(data, Mapping) or not isinstance(recipe, Mapping) or "digest" not in data:
            return None
        options = {
            name: recipe[name]
            for name, kinds in SHAPING.items()
            if name in recipe and isinstance(recipe[name], kinds)
        }
        beside = None if model.path is None else model.path.parent / SPLITS
        splits = beside if beside is not None and beside.is_file() else None
        return cls(str(data.get("name", "")), str(data["digest"]), options, splits)


def images_to_test(
    data: Dataset | str | os.PathLike[str], model: Model, split: str, opening: Mapping[str, Any]
) -> tuple[Dataset, Split, list[str]]:
    """The data with the model's classes, the split to test on, and what there is to say of it.

    Raises:
        StriateError: an unknown option or split, data of another kind, or classes that the model does not
            have.
    """
    known = [name for name in inspect.signature(open_data).parameters if name not in NOT_AN_OPTION]
    for name in opening:
        if name not in known:
            raise unknown(
                "option of evaluate", name, [*known, "split", "protocol", "batch", "device", "threads"]
            )
    given = {name: value for name, value in opening.items() if value is not None}
    trained = Trained.of(model)
    opened = data if isinstance(data, Dataset) else _opened(data, model.classes, trained, split, given)
    if opened.kind != model.task.name:
        raise StriateError(
            f"data {opened.name!r} is annotated for {opened.kind}, the model does {model.task.name}",
            hint="give data of the model's kind",
        )
    digest = opened.digest()
    aligned = _aligned(opened, model.classes)
    samples, notes = _split(aligned, split)
    changed = trained is not None and trained.name == opened.name and trained.digest != digest
    if changed and samples.name in ("val", "test"):
        notes.append(
            f"{opened.name} has other images or splits than when the model was trained on it: "
            "images that it was trained on may be among those tested"
        )
    left = 0 if isinstance(data, Dataset) else _left(opened)
    if left:
        notes.append(f"{left:,} images of {opened.name} are in no split and were not tested")
    return aligned, samples, notes


def _opened(
    spec: str | os.PathLike[str],
    classes: Sequence[str],
    trained: Trained | None,
    split: str,
    given: Mapping[str, Any],
) -> Dataset:
    """The model's own data with the splits of its training; other data as they come, unsplit ones whole."""

    def opened(options: Mapping[str, Any]) -> Dataset:
        # An only or an empty class is a fault of training data, not of a test.
        return open_data(spec, classes=classes, **{"strict": False, **options, **given})

    chosen = bool(given.keys() & {*DRAWN, "split_file"})
    if trained is not None:
        # What does not open this way is other data: it is opened below, or its own error is raised there.
        with contextlib.suppress(StriateError):
            if trained.splits is not None and not chosen:
                column = trained.options.get("label_column")
                found = opened({"split_file": trained.splits, "label_column": column})
                # Another folder may hold files of the same names, such as 1.png, and more of them.
                mine = trained.name == found.name or not _left(found)
                if found.digest() == trained.digest and mine:
                    return found
        with contextlib.suppress(StriateError):
            found = opened(trained.options)
            if trained.digest == found.digest() or trained.name == found.name:
                return found
    return opened({} if chosen or split != "test" else {"test": 1.0})


def _left(data: Dataset) -> int:
    """The number of images in no split."""
    pools = {id(split.pool): len(split.pool.names) for split in data.splits.values()}
    return sum(pools.values()) - len(data)


def _aligned(data: Dataset, classes: Sequence[str]) -> Dataset:
    try:
        return data.aligned_to(classes)
    except StriateError as error:
        theirs, ours = _some(data.classes), _some(classes)
        raise StriateError(
            f"the classes of data {data.name!r} ({theirs}) are not those of the model ({ours})",
            hint=error.given,
        ) from error


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown} and {len(names) - SHOWN} more"


def _split(data: Dataset, name: str) -> tuple[Split, list[str]]:
    """The split to test on, and what there is to say of it.

    Raises:
        StriateError: there is none of this name; "test" falls back on "val".
    """
    notes = []
    if name == "test" and "test" not in data.splits and "val" in data.splits:
        name = "val"
        notes.append(f"{data.name} has no split 'test': tested on 'val', which training may have looked at")
    found = data.split(name)
    if name in ("train", "all"):
        notes.append(f"split {name!r} may hold images that the model was trained on")
    return found, notes
