"""Settings that go by validation scores, judged by the images that there are; and the splits of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from striate.core.errors import StriateError
from striate.data.samples import Dataset, Split
from striate.studies.sheet import show_augmented
from striate.train import session
from striate.train.members import bootstrap
from striate.train.recipe import Recipe
from striate.train.setup import training_splits

STILL: dict[str, Any] = {
    "net": "linear", "epochs": 1, "batch": 4, "threads": 1, "workers": 0, "device": "cpu", "size": 8,
}  # fmt: skip


def noise(*names: str) -> Dataset:
    """Noise in two classes; splits of 12 by these names."""
    draws = np.random.default_rng(0)
    parts = [
        Split.from_arrays(name, draws.integers(0, 256, (12, 8, 8, 1), dtype=np.uint8), np.arange(12) % 2)
        for name in names
    ]
    return Dataset("noise", "classification", ("a", "b"), parts)


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ({"patience": 3}, "patience needs validation images"),
        ({"schedule": "plateau"}, "schedule 'plateau' needs validation images"),
    ],
)
def test_the_split_counts_not_the_share(wish: dict[str, Any], words: str, tmp_path: Path) -> None:
    own = Recipe(**STILL, **wish, val=0.0)
    assert "12 to validate" in session.rehearse(noise("train", "val"), own, out=tmp_path / "run")[1]
    with pytest.raises(StriateError, match=words):
        session.rehearse(noise("train", "test"), own.with_(val=0.1), out=tmp_path / "run")
    assert session.rehearse(noise("train", "test"), Recipe(**STILL), out=tmp_path / "run")


def test_the_sheet_shows_the_images_that_are_drawn_for_training() -> None:
    data, recipe = noise("train", "val"), Recipe(bootstrap=True, seed=4)
    train, val = training_splits(data, recipe)
    drawn = bootstrap(data.splits["train"], 4)
    names = [drawn.name_of(number) for number in range(12)]
    assert [train.name_of(number) for number in range(12)] == names
    assert len(set(names)) < 12
    assert val is data.splits["val"]
    settings = {"augment": "none", "batch": 4, "seed": 4, "size": 8, "bootstrap": True}
    sheet = show_augmented(data, out=None, images=12, views=1, **settings)
    assert sorted(sheet.names) == sorted(names)
