"""Small splits and loaders over them, for the tests of loaders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from image_sets import png
from striate.data.loaders import Batch, Loader
from striate.data.pools import FilePool
from striate.data.preprocess import Preprocess
from striate.data.samples import Split

VIEW = Preprocess(size=(8, 9), mean=(0.2, 0.3, 0.4), std=(0.3, 0.2, 0.1))
AUGMENT = "pad-crop(2)+flip+colour(0.2)"


def pixels(count: int = 40, height: int = 8, width: int = 9) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def in_memory(count: int = 40) -> Split:
    return Split.from_arrays("train", pixels(count), np.arange(count) % 7)


def on_disk(
    folder: Path, count: int = 20, bad: tuple[int, ...] = (), size: tuple[int, int] = (12, 15)
) -> Split:
    folder.mkdir(exist_ok=True)
    names = [f"{i:02d}.png" for i in range(count)]
    for i, name in enumerate(names):
        data = png(i, size)
        (folder / name).write_bytes(data[: len(data) // 2] if i in bad else data)
    return Split("train", FilePool(folder, names), np.arange(count), np.arange(count))


def loader(split: Split, preprocess: Preprocess = VIEW, **how: object) -> Loader:
    plain: dict[str, object] = {"batch": 6, "seed": 1, "train": True, "augment": AUGMENT}
    return Loader(split, preprocess, **(plain | how))  # type: ignore[arg-type]


def same(first: list[Batch], second: list[Batch]) -> None:
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a.index, b.index)
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.targets, b.targets)
