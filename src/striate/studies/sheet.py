"""A contact sheet of what a net really sees in training: the loader's own batches as pictures."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from striate.core.errors import StriateError
from striate.core.results import Result
from striate.images import draw
from striate.train.devices import Place
from striate.train.recipe import Recipe
from striate.train.session import open_asked
from striate.train.setup import fit_preprocess, settle, training_loader, training_splits
from striate.train.starting import open_source

if TYPE_CHECKING:
    from striate.data.loaders import Batch, Loader
    from striate.data.samples import Dataset, Split

Bytes = NDArray[np.uint8]
LEAST = 96
"""Pixels of a cell's side below which its picture is enlarged, pixel by pixel."""
MOST_EPOCHS = 64


@dataclass(frozen=True)
class Sheet(Result):
    """The picture (H, W, 3) uint8, and what it shows: one row an image, its plain view first."""

    picture: Bytes
    augment: str
    size: tuple[int, int]
    names: tuple[str, ...]
    path: str = ""

    def lines(self) -> list[str]:
        """Where it lies, and what is on it."""
        return [
            f"contact sheet: {self.path}",
            f"{len(self.names)} training images at {self.size[0]} x {self.size[1]}, first as in testing,"
            f" then as in training with {self.augment}",
        ]

    def to_dict(self) -> dict[str, Any]:
        """Everything but the picture, which is a file."""
        return {
            "path": self.path, "augment": self.augment, "size": list(self.size), "names": list(self.names),
        }  # fmt: skip


def show_augmented(
    data: str | os.PathLike[str] | Dataset,
    *,
    out: str | os.PathLike[str] | None = "augmented.png",
    images: int = 6,
    views: int = 7,
    **changes: Any,
) -> Sheet:
    """Draw `images` training images as a net sees them, `views` times each.

    The settings in `changes` (augment, size, batch, seed, ...) are those of `striate.train`, and so are the
    pictures: taken from the training loader's batches, epoch after epoch, and turned back from the net's
    input into colours; mixed samples tell their shares. The first column is the view of testing. out: the
    .png or .jpg file, None for none.

    Raises:
        StriateError: data or settings that training would refuse, or an `out` of another kind.
    """
    for name, value in (("images", images), ("views", views)):
        if not isinstance(value, int) or not 1 <= value <= 100:
            raise StriateError(f"{name} is {value!r}", allowed="1 to 100")
    asked = Recipe(workers=0).with_(**changes)
    dataset = open_asked(data, asked) if isinstance(data, (str, os.PathLike)) else data
    train, _ = training_splits(dataset, asked)
    source = open_source(asked)
    recipe = settle(asked, dataset, len(train), source)
    preprocess = fit_preprocess(recipe, train, source)
    here = Place(torch.device("cpu"))
    loader = training_loader(train, preprocess, recipe, here, len(dataset.classes))
    numbers = list(dict.fromkeys(loader.reader.order(0).tolist()))[:images]
    rows = _seen(loader, numbers, views, dataset)
    cells = []
    for number, row in zip(numbers, rows, strict=True):
        cells += [_plain(train, number, loader, dataset), *row]
        blank = np.full_like(cells[-1], 255)
        cells += [blank] * (views - len(row))
    picture = draw.grid(cells, columns=views + 1, pad=4)
    path = "" if out is None else str(draw.save(Path(out), picture))
    size = (loader.preprocess.size or (0, 0))[:2]
    return Sheet(picture, loader.pipeline.text, size, tuple(train.name_of(n) for n in numbers), path)


def _seen(loader: Loader, numbers: list[int], views: int, dataset: Dataset) -> list[list[Bytes]]:
    """For each sample its first `views` appearances in training, as cells."""
    found: list[list[Bytes]] = [[] for _ in numbers]
    for epoch in range(MOST_EPOCHS * loader.pipeline.times):
        if all(len(row) >= views for row in found):
            break
        order = loader.reader.order(epoch)[: len(loader) * loader.batch]
        wanted = [
            (int(at), row)
            for row, number in enumerate(numbers)
            for at in np.flatnonzero(order == number)[: views - len(found[row])]
        ]
        for start in sorted({at // loader.batch for at, _ in wanted}):
            source = loader.batches(epoch, start)
            batch = next(source)
            source.close()
            pictures = loader.preprocess.invert(batch.images)
            for at, row in sorted(wanted):
                if at // loader.batch == start:
                    label = _label(batch, at % loader.batch, dataset) or f"epoch {epoch + 1}"
                    found[row].append(_cell(pictures, batch, at % loader.batch, label))
    return found


def _cell(pictures: Bytes, batch: Batch, i: int, label: str) -> Bytes:
    picture = pictures[i]
    if batch.targets.ndim == 3:
        picture = draw.overlay_mask(picture, batch.targets[i].numpy())
    return _captioned(picture, label)


def _plain(split: Split, number: int, loader: Loader, dataset: Dataset) -> Bytes:
    """The view of testing, with its class or name."""
    preprocess = loader.preprocess
    image = split.image(number, at_least=preprocess.at_least(), channels=preprocess.channels)
    picture = preprocess.view(image)
    label = split.name_of(number).rpartition("/")[2]
    if split.targets is not None:
        target = split.targets[number]
        hits = [int(target)] if target.ndim == 0 else np.flatnonzero(target).tolist()
        label = ", ".join(dataset.classes[k] for k in hits) or "no label"
    elif split.masks is not None:
        picture = draw.overlay_mask(picture, preprocess.mask_view(split.mask(number)))
    return _captioned(picture, label)


def _captioned(picture: Bytes, label: str) -> Bytes:
    factor = max(1, round(LEAST / max(picture.shape[:2])))
    large = picture.repeat(factor, axis=0).repeat(factor, axis=1)
    return draw.caption(large, label)


def _label(batch: Batch, i: int, dataset: Dataset) -> str:
    """The shares of a mixed sample's classes; empty where there is nothing to tell."""
    if batch.targets.ndim != 2:
        return ""
    shares = {name: float(x) for name, x in zip(dataset.classes, batch.targets[i], strict=True) if x > 0.005}
    if all(share > 0.995 for share in shares.values()):
        return ""
    best = sorted(shares.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {share:.2f}" for name, share in best)
