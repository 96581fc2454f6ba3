"""Decoded pictures kept in memory: the same bytes, within the room given, decoded no second time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from striate.core import machine
from striate.core.errors import StriateError
from striate.data.augment import AUGMENTATIONS, parse
from striate.data.kept import Kept
from striate.data.loaders import Loader
from striate.data.pools import FilePool
from striate.data.preprocess import Preprocess
from striate.data.reader import Reader
from striate.data.samples import Dataset, Split
from striate.images.jpeg import Look
from striate.train import room
from striate.train.devices import Place
from striate.train.recipe import Recipe
from striate.train.setup import prepare

CROP = "random-resized-crop+flip"
EVERYTHING = 1 << 30


def picture(height: int, width: int, seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (-(-height // 16), -(-width // 16), 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def split(tmp_path: Path) -> Split:
    """Photographs of several kinds: plain, turned by EXIF, grey, of four inks, progressive, PNG, damaged."""
    turned = Image.Exif()
    turned[0x112] = 6
    wanted = [
        ("0.jpg", picture(200, 260, 0), {}), ("1.jpg", picture(150, 300, 1), {"exif": turned}),
        ("2.jpg", picture(190, 170, 2).convert("L"), {}), ("3.jpg", picture(180, 180, 3).convert("CMYK"), {}),
        ("4.jpg", picture(260, 140, 4), {"progressive": True}), ("5.png", picture(120, 130, 5), {}),
        ("6.jpg", picture(300, 300, 6), {}), ("7.jpg", picture(170, 230, 7), {"restart_marker_rows": 1}),
    ]  # fmt: skip
    for name, image, how in wanted:
        image.save(tmp_path / name, **how)
    (tmp_path / "6.jpg").write_bytes((tmp_path / "6.jpg").read_bytes()[:-900])
    names = [name for name, _, _ in wanted]
    return Split("train", FilePool(tmp_path, names), np.arange(8), np.arange(8) % 2)


def preprocess(size: int = 32) -> Preprocess:
    return Preprocess(size=(size, size), channels=3, mean=(0.5,) * 3, std=(0.2,) * 3)


def epochs(split: Split, count: int = 4, **how: object) -> list[tuple[bytes, bytes]]:
    how = {"augment": CROP, "mode": "stream", "workers": 0, **how}
    loader = Loader(split, preprocess(), batch=3, train=True, classes=2, **how)  # type: ignore[arg-type]
    try:
        return [
            (batch.images.numpy().tobytes(), batch.index.tobytes())
            for epoch in range(count)
            for batch in loader.batches(epoch)
        ]
    finally:
        loader.close()


@pytest.mark.parametrize("cache", [1.0, 0.0001, 0.00005])
@pytest.mark.parametrize("workers", [0, 2])
def test_same_bytes_whatever_is_kept(split: Split, cache: float, workers: int) -> None:
    assert epochs(split, cache=cache, workers=workers) == epochs(split, cache=0)


def test_each_process_keeps_its_own(split: Split) -> None:
    assert epochs(split, cache=1.0, workers=2, mode="processes") == epochs(split, cache=0)


@pytest.mark.parametrize("name", AUGMENTATIONS.names())
def test_no_augmentation_writes_to_what_is_kept(split: Split, name: str) -> None:
    assert epochs(split, augment=name, cache=1.0) == epochs(split, augment=name, cache=0)


def keeping(split: Split, augment: str) -> Reader:
    reader = Reader(split, preprocess(), parse(augment), 0, True)
    reader.kept = Kept(EVERYTHING)
    return reader


def counting(split: Split, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the images that are decoded, as they are."""
    decoded: list[int] = []
    image = Split.image

    def counted(self: Split, index: int, **how: object) -> np.ndarray:
        decoded.append(index)
        return image(self, index, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(Split, "image", counted)
    return decoded


def test_nothing_is_decoded_twice(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = counting(split, monkeypatch)
    epochs(split, augment="flip", cache=1.0)
    # The damaged one was found out once, too.
    assert sorted(decoded) == list(range(8))


def test_crops_are_taken_from_the_size_that_most_need(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = counting(split, monkeypatch)
    reader = keeping(split, CROP)
    for epoch in range(40):
        decoded.clear()
        reader.read(epoch, 0, reader.draw(epoch, reader.order(epoch)))
    u = reader.draw(39, reader.order(39))
    for place, number in enumerate(reader.order(39).tolist()):
        if number == 6:
            continue
        found = reader.kept.find(number, reader.pipeline.at_least(u[place], reader.preprocess))
        assert (found is None) == (number in decoded)
    assert len(reader.kept) == 7
    # 200 x 260 at 1/4: a crop of 32 from all of it asks for no more; at 1/8 it would be too small.
    assert reader.kept.find(0, 32).shape == (50, 65, 3)  # type: ignore[union-attr]
    assert reader.kept.find(0, 51) is None
    assert reader.kept.find(0, None) is None
    assert reader.kept.find(5, None).shape == (120, 130, 3)  # type: ignore[union-attr]


def test_small_crops_are_still_cut_from_a_part(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = keeping(split, "random-resized-crop(scale=0.02)")
    for epoch in range(30):
        reader.read(epoch, 0, reader.draw(epoch, reader.order(epoch)))
    looks: list[Look] = []
    image = Split.image

    def seen(self: Split, index: int, *, look: Look, **how: object) -> np.ndarray:
        looks.append(look)
        return image(self, index, look=look, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(Split, "image", seen)
    for epoch in range(30, 36):
        reader.read(epoch, 0, reader.draw(epoch, reader.order(epoch)))
    assert looks
    assert any(look.size is not None for look in looks)


def given_as(nbytes: int, n: int, sides: tuple[int, int] | None = (512, 512)) -> tuple[np.ndarray, Look]:
    return np.zeros(nbytes, np.uint8), Look(n=n, sides=sides)


@given(
    st.integers(0, 60),
    st.lists(st.tuples(st.integers(0, 5), st.integers(1, 40), st.sampled_from([1, 2, 4, 8])), max_size=30),
)
def test_never_more_than_the_room_and_never_finer(most: int, given: list[tuple[int, int, int]]) -> None:
    kept = Kept(most)
    smallest: dict[int, int] = {}
    for row, nbytes, n in given:
        pixels, look = given_as(nbytes, n)
        kept.add(row, pixels, look)
        assert kept.bytes <= most
        sizes = {row: kept._pictures[row].pixels.nbytes for row in kept._pictures}
        assert kept.bytes == sum(sizes.values())
        for row, picture in kept._pictures.items():
            assert picture.n >= smallest.get(row, 0)
            smallest[row] = picture.n


def test_a_full_one_takes_more_once_a_picture_shrinks() -> None:
    kept = Kept(100)
    kept.add(0, *given_as(80, 2))
    assert kept.wants(1, None)
    kept.add(1, *given_as(40, 2))
    assert len(kept) == 1
    assert not kept.wants(1, None)
    # Half of 512 serves 200, but so does a quarter of it 100.
    assert not kept.wants(0, 200)
    assert kept.wants(0, 100)
    kept.add(0, *given_as(20, 4))
    assert kept.bytes == 20
    assert kept.wants(1, None)


def test_what_has_one_size_serves_all() -> None:
    kept = Kept(100)
    pixels, look = given_as(10, 1, None)
    kept.add(3, pixels, look)
    assert kept.find(3, 8) is pixels
    assert kept.find(3, None) is pixels
    assert not kept.wants(3, 8)
    assert kept.find(4, 8) is None


def test_another_process_begins_with_none() -> None:
    kept = Kept(100)
    kept.add(0, *given_as(10, 1))
    make, given = kept.__reduce__()
    copy = make(*given)
    assert (copy.most, copy.bytes, len(copy)) == (100, 0, 0)


def test_pictures_in_memory_already_are_not_kept_again() -> None:
    pictures = np.zeros((4, 40, 40, 3), np.uint8)
    blank = Split.from_arrays("train", pictures, np.arange(4))
    assert Loader(blank, preprocess(), batch=2, mode="stream", cache=1.0).room == 0


def test_what_has_its_views_in_one_array_keeps_no_pictures(split: Split) -> None:
    assert Loader(split, preprocess(), batch=2, mode="memory", cache=1.0).room == 0


def test_testing_keeps_pictures_too_where_it_is_asked_to(
    split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = counting(split, monkeypatch)
    loader = Loader(split, preprocess(), batch=4, mode="stream", cache=1.0)
    seen = [[batch.images.numpy().tobytes() for batch in loader.batches(epoch)] for epoch in range(3)]
    assert seen[0] == seen[1] == seen[2]
    assert sorted(decoded) == list(range(8))
    assert loader.reader.kept.bytes > 0
    loader.close()
    assert (loader.reader.kept.bytes, len(loader.reader.kept)) == (0, 0)
    assert [batch.images.numpy().tobytes() for batch in loader.batches(3)] == seen[0]


def rooms(split: Split, recipe: Recipe) -> tuple[int, int]:
    """Of the loaders of a run that trains on six images and validates on two."""
    parts = [split.select(np.arange(6), "train"), split.select(np.arange(6, 8), "val")]
    data = Dataset("photographs", "classification", ("a", "b"), parts)
    setup = prepare(data, recipe, Place(torch.device("cpu")), 1)
    job: Any = setup.job
    assert ("GiB of decoded images" in setup.headline()) == (job.train.room > 0)
    return job.train.room, job.val.room


@pytest.mark.parametrize(
    ("cache", "step", "gib"),
    [(None, 0.5, 2.0), (None, 6.0, 1.2), (None, 7.5, 0.0), (3.0, 7.5, 3.0), (0.0, 0.5, 0.0)],
)
def test_training_and_validation_share_what_a_step_leaves(
    cache: float | None, step: float, gib: float, split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "free_memory", lambda: 8 << 30)
    monkeypatch.setattr(room, "step_bytes", lambda _: int(step * (1 << 30)))
    recipe = Recipe(net="lenet5", size=(32, 32), cache=cache, mode="stream")
    found = rooms(split, recipe)
    assert sum(found) == pytest.approx(gib * (1 << 30), abs=8)
    assert found[0] == pytest.approx(3 * found[1], abs=8)
    assert rooms(split, recipe.with_(mode="memory")) == (0, 0)


@pytest.mark.parametrize("cache", [-1, float("nan"), float("inf")])
def test_room_is_a_number_of_gibibytes(split: Split, cache: float) -> None:
    with pytest.raises(StriateError, match="GiB of memory, 0 or more"):
        Loader(split, preprocess(), batch=4, train=True, cache=cache)


def test_free_memory_is_that_of_the_control_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("700000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 50000\n")
    group = (str(tmp_path), "memory.max", "memory.current")
    monkeypatch.setattr(machine, "_GROUPS", (group, ("/nowhere", "a", "b")))
    assert machine.free_memory() == 350_000
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.free_memory() > 1_000_000
