"""How units grow: what excites them most, at the models that were kept during training."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from striate.core.errors import StriateError
from striate.core.runs import CHECKPOINTS
from striate.data.samples import Split
from striate.model import load
from striate.visualize.atlas import PATCHES, StageTiles, draw_stage
from striate.visualize.method import Panel, Picture, together
from striate.visualize.units import find_units

KEPT = re.compile(r"epoch-(\d+)\.safetensors")
# Models shown at most: of more, these many evenly spaced, the first and the last among them.
MOST_MODELS = 12


def kept_models(run: str | os.PathLike[str]) -> list[tuple[int, Path]]:
    """(epoch, file) of the models that a run kept while it trained, in order.

    Raises:
        StriateError: it kept fewer than two.
    """
    folder = Path(run) / CHECKPOINTS
    found = []
    for file in folder.iterdir() if folder.is_dir() else ():
        name = KEPT.fullmatch(file.name)
        if name:
            found.append((int(name[1]), file))
    if len(found) < 2:
        raise StriateError(
            f"{os.fspath(run)!r} kept {len(found)} models during training",
            hint="train with --keep-every 1 to keep one after each epoch",
        )
    return sorted(found)


def evolution(
    run: str | os.PathLike[str],
    split: Split,
    stage: str,
    numbers: Sequence[int] | None = None,
    *,
    rule: str = "deconvnet",
    batch: int = 64,
    workers: int | None = None,
    device: str = "cpu",
    data: str = "",
    tell: Callable[[int, int], None] | None = None,
) -> Picture:
    """What excites units most at each model that a run kept: one pass over the images for each of them.

    One row of panels a unit (numbers, by default the first eight), one column a model: the projection of the
    strongest image by `rule`; with rule "none" its patch. A unit that is above 0 on no image is grey.
    arrays: "epochs" (m,); "units" (n,); "index" (n, m): sample numbers of the strongest images, -1 for none;
    "values" (n, m): the units' responses to them; "patches" and "projection" (n, m, h, w, C) uint8.
    Zeiler and Fergus, Visualizing and Understanding Convolutional Networks (arXiv:1311.2901), figure 4.

    Raises:
        StriateError: too few models were kept; no such stage or unit; or the rule has no meaning for the net.
    """
    kept = kept_models(run)
    if len(kept) > MOST_MODELS:
        chosen = np.linspace(0, len(kept) - 1, MOST_MODELS).round().astype(int)
        kept = [kept[place] for place in chosen.tolist()]
    rules = () if rule == "none" else (rule,)
    columns: list[StageTiles] = []
    for done, (_, file) in enumerate(kept):
        model = load(file, device=device)
        found = find_units(model, split, [stage], k=1, batch=batch, workers=workers, widest=0)
        one = found.stage(stage)
        shown = range(min(8, len(one))) if numbers is None else numbers
        columns.append(draw_stage(model, split, one, rules=rules, numbers=shown))
        if tell is not None:
            tell(done + 1, len(kept))
    epochs = [epoch for epoch, _ in kept]
    numbers = columns[0].numbers.tolist()
    return Picture(
        "evolution",
        f"{stage}: what excites its units most, by epoch",
        _note(split, data, rule),
        _arrays(columns, epochs, rules),
        tuple(_panels(columns, epochs, rules[0] if rules else PATCHES)),
        len(columns),
    )


def _arrays(columns: Sequence[StageTiles], epochs: Sequence[int], rules: Sequence[str]) -> dict[str, Any]:
    chosen = columns[0].numbers

    def across(values: Callable[[StageTiles], NDArray[Any]]) -> NDArray[Any]:
        return np.stack([values(one) for one in columns], axis=1)

    arrays = {
        "epochs": np.array(epochs),
        "units": chosen,
        "index": across(lambda one: np.where(one.seen[:, 0], one.found.index[chosen, 0], -1)),
        "values": across(lambda one: one.found.values[chosen, 0]),
    }
    for name, key in ((PATCHES, "patches"), *((rule, "projection") for rule in rules)):
        # A model none of whose units is active has tiles of one pixel.
        arrays |= together(key, [one.tiles[name][:, 0] for one in columns])
        if key in arrays:
            arrays[key] = arrays[key].swapaxes(0, 1)
    return arrays


def _panels(columns: Sequence[StageTiles], epochs: Sequence[int], name: str) -> list[Panel]:
    panels = []
    for row, number in enumerate(columns[0].numbers.tolist()):
        before = -1
        for epoch, one in zip(epochs, columns, strict=True):
            image = int(one.found.index[number, 0]) if one.seen[row, 0] else -1
            # A bar marks where another image has become the strongest.
            fresh = "" if image == before or before < 0 else " *"
            label = f"unit {number}, epoch {epoch}" if epoch == epochs[0] else f"epoch {epoch}{fresh}"
            panels.append(Panel(one.tiles[name][row, 0], label))
            before = image
    return panels


def _note(split: Split, data: str, rule: str) -> str:
    what = "The patch of the image" if rule == "none" else f"The {rule} projection of the image"
    of = f" of {data}" if data else ""
    return (
        f"{what} that excites each unit most, among {len(split):,} images{of}, at each model kept in "
        "training. A star: another image than before. Grey: above 0 on no image."
    )
