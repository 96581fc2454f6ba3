"""Decoded pictures kept in memory: the same bytes, within the room given, decoded no second time."""

from __future__ import annotations

import io
import pickle
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
from striate.data import kept as module
from striate.data.augment import AUGMENTATIONS, parse
from striate.data.kept import LEAST_SHARE, OVERHEAD, Kept
from striate.data.loaders import Loader
from striate.data.pools import FilePool
from striate.data.preprocess import Preprocess
from striate.data.reader import Reader
from striate.data.samples import Dataset, Split
from striate.images.jpeg import Look, fraction
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
    how = {"augment": CROP, "mode": "stream", "workers": 0, "batch": 3, **how}
    loader = Loader(split, preprocess(), train=True, classes=2, **how)  # type: ignore[arg-type]
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


def test_a_process_needs_no_file_again(split: Split) -> None:
    loader = Loader(
        split, preprocess(), batch=4, train=True, augment="flip", mode="processes", workers=1, cache=1.0
    )
    whole = epochs(split, augment="flip", cache=0, batch=4)
    seen = []
    for epoch in range(4):
        seen += [(b.images.numpy().tobytes(), b.index.tobytes()) for b in loader.batches(epoch)]
        for name in split.names:
            Path(split.pool.root, name).unlink(missing_ok=True)  # type: ignore[attr-defined]
    loader.close()
    assert seen == whole


def test_a_reader_that_has_read_can_be_sent(split: Split) -> None:
    reader = keeping(split, CROP)
    reader.read(0, 0, reader.draw(0, reader.order(0)))
    # What a process is sent; functions that this one has found on its way would not go.
    assert b"Pipeline" in pickle.dumps(reader)


@pytest.mark.parametrize("name", AUGMENTATIONS.names())
def test_no_augmentation_writes_to_what_is_kept(split: Split, name: str) -> None:
    assert epochs(split, augment=name, cache=1.0) == epochs(split, augment=name, cache=0)


def keeping(split: Split, augment: str) -> Reader:
    reader = Reader(split, preprocess(), parse(augment), 0, True)
    reader.kept = Kept(EVERYTHING, len(split.pool.names))
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


def test_sizes_that_crops_ask_for_are_kept_and_not_lost_again(
    split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = counting(split, monkeypatch)
    reader = keeping(split, CROP)
    counts = []
    for epoch in range(60):
        decoded.clear()
        reader.read(epoch, 0, reader.draw(epoch, reader.order(epoch)))
        counts.append(len(decoded))
    assert sum(counts[:2]) >= 8
    assert max(counts[30:]) <= 1
    # Of the photograph of 200 x 260, crops of 32 ask for all sizes but the smallest.
    assert [reader._share((200, 260), n) > LEAST_SHARE for n in (1, 2, 4, 8)] == [False, True, True, False]
    assert reader.kept.find(0, 4).shape == (50, 65, 3)  # type: ignore[union-attr]
    assert reader.kept.find(0, 2).shape == (100, 130, 3)  # type: ignore[union-attr]
    assert reader.kept.find(0, 8) is None
    assert reader.kept.find(5, 1).shape == (120, 130, 3)  # type: ignore[union-attr]


def test_shares_are_those_of_the_views(split: Split) -> None:
    reader = keeping(split, CROP)
    u = reader.draw(0, np.arange(64))
    asked = [fraction((300, 400), reader.pipeline.at_least(one, reader.preprocess)) for one in u]
    assert len(set(asked)) > 1
    for n in (1, 2, 4, 8):
        assert reader._share((300, 400), n) == asked.count(n) / 64
    assert sum(reader._share((300, 400), n) for n in (1, 2, 4, 8)) == 1
    assert reader._share((0, 0), 1) == 1


def test_what_has_no_room_is_still_cut_from_a_part(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = keeping(split, CROP)
    reader.kept = Kept(30_000, 8)
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


Asked = list[tuple[int, int, int, float]]


def full(most: int, asked: Asked) -> Kept:
    kept = Kept(most, 6)
    for row, n, taken, share in asked:
        kept.add(row, n, (8, 8), np.zeros(taken - OVERHEAD, np.uint8), share)
    return kept


@given(
    st.integers(0, 6000),
    st.lists(
        st.tuples(
            st.integers(0, 5),
            st.sampled_from([1, 2, 4, 8]),
            st.integers(OVERHEAD, 4000),
            st.integers(0, 64).map(lambda views: views / 64),
        ),
        max_size=30,
    ),
)
def test_never_more_than_the_room_and_what_is_kept_serves_ever_more(most: int, asked: Asked) -> None:
    kept = Kept(most, 6)

    def served() -> float:
        return sum(entry.share for entry in kept._least)

    def ask() -> bool:
        """Whether one round of the same changes anything."""
        before = sorted(kept._pictures)
        for row, n, taken, share in asked:
            sum_before, was_here = served(), kept.find(row, n) is not None
            wanted = not was_here and kept.wants(taken - OVERHEAD, share)
            kept.add(row, n, (8, 8), np.zeros(taken - OVERHEAD, np.uint8), share)
            # Nothing leaves without what comes, and together it serves no more.
            assert served() >= sum_before
            assert wanted or served() == sum_before
            assert (kept.find(row, n) is not None) == (was_here or wanted)
            assert kept.bytes == sum(pixels.nbytes + OVERHEAD for pixels in kept._pictures.values())
            assert kept.bytes == sum(entry.taken for entry in kept._least) <= most
            assert sorted(kept._pictures) == sorted((entry.row, entry.n) for entry in kept._least)
        return sorted(kept._pictures) != before

    assert any(not ask() for _ in range(60))
    if sum(taken for _, _, taken, _ in asked) <= most:
        assert len(kept) == len({(row, n) for row, n, _, share in asked if share >= LEAST_SHARE})


def test_what_serves_more_takes_the_place_of_what_serves_least_for_its_bytes() -> None:
    kept = full(4000, [(0, 1, 2000, 0.3), (1, 1, 2000, 0.4)])
    assert not kept.wants(2000 - OVERHEAD, 0.3)
    assert kept.wants(2000 - OVERHEAD, 0.35)
    assert not kept.wants(4001 - OVERHEAD, 1.0)
    assert not kept.wants(4000 - OVERHEAD, 0.7)
    assert kept.wants(4000 - OVERHEAD, 0.75)
    assert not kept.wants(1000 - OVERHEAD, LEAST_SHARE / 2)
    kept.add(2, 4, (8, 8), np.zeros(1000 - OVERHEAD, np.uint8), 0.5)
    assert sorted(kept._pictures) == [(1, 1), (2, 4)]
    assert kept.bytes == 3000
    assert (kept.sides(2), kept.sides(3)) == ((8, 8), None)


def test_nothing_leaves_for_what_does_not_come() -> None:
    kept = full(4000, [(0, 1, 2500, 1.0), (1, 1, 1000, 0.3)])
    kept.add(2, 1, (8, 8), np.zeros(2000 - OVERHEAD, np.uint8), 0.7)
    assert sorted(kept._pictures) == [(0, 1), (1, 1)]


def test_it_stops_growing_where_others_take_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    left = [5000]
    monkeypatch.setattr(module, "free_memory", lambda: left[0])
    monkeypatch.setattr(module, "LOOK_EVERY", 1000)
    kept = Kept(10_000, 9, spare=4000)
    kept.add(0, 1, (8, 8), np.zeros(1000, np.uint8), 0.5)
    assert kept.wants(1000, 0.5)
    left[0] = 3000
    kept.add(1, 1, (8, 8), np.zeros(1000, np.uint8), 0.5)
    assert (len(kept), kept.most) == (2, kept.bytes)
    assert not kept.wants(1000, 0.5)
    # What serves as much in fewer bytes still takes a place.
    kept.add(2, 4, (8, 8), np.zeros(100, np.uint8), 0.5)
    assert (2, 4) in kept._pictures


def test_another_process_begins_with_none() -> None:
    kept = full(4000, [(0, 1, 2000, 0.3)])
    make, given = kept.__reduce__()
    copy = make(*given)
    assert (copy.most, copy.bytes, len(copy), copy.sides(5)) == (4000, 0, 0, None)


def test_files_that_break_rules_are_never_cut_into_parts(tmp_path: Path) -> None:
    # Two stray bytes before a marker, and a marker out of turn: the decoder counts tiles in its own way.
    file = io.BytesIO()
    picture(200, 200, 3).save(file, "JPEG", restart_marker_rows=1)
    data = file.getvalue()
    place = data.index(b"\xff\xd0")
    later = data.index(b"\xff\xd4")
    data = data[:place] + b"\x12\x34" + data[place:later] + b"\xff\xd5" + data[later + 2 :]
    for name in ("0.jpg", "1.jpg"):
        (tmp_path / name).write_bytes(data)
    pair = Split("train", FilePool(tmp_path, ["0.jpg", "1.jpg"]), np.arange(2), np.arange(2))
    reader = keeping(pair, CROP)
    reader.kept = Kept(0)
    for epoch in range(6):
        part = reader.read(epoch, 0, reader.draw(epoch, reader.order(epoch)))
        assert not part.bad
    assert not reader._sound.any()
    assert epochs(pair, 8, cache=1.0) == epochs(pair, 8, cache=0)


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
    assert (loader.room, len(loader.reader.kept)) == (0, 0)
    assert [batch.images.numpy().tobytes() for batch in loader.batches(3)] == seen[0]


def rooms(split: Split, recipe: Recipe) -> tuple[int, int]:
    """Of the loaders of a run that trains on six images and validates on two."""
    parts = [split.select(np.arange(6), "train"), split.select(np.arange(6, 8), "val")]
    data = Dataset("photographs", "classification", ("a", "b"), parts)
    setup = prepare(data, recipe, Place(torch.device("cpu")), 1)
    job: Any = setup.job
    assert ("of decoded images kept" in setup.headline()) == (job.train.room > 0)
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


@pytest.mark.parametrize("cache", [-1, float("nan"), float("inf"), 1e300, None, "1"])
def test_room_is_a_number_of_gibibytes(split: Split, cache: Any) -> None:
    with pytest.raises(StriateError, match="GiB of memory, 0 to 1,000,000"):
        Loader(split, preprocess(), batch=4, train=True, cache=cache)


@pytest.mark.parametrize(
    ("line", "folder", "most", "taken"),
    [
        ("0::/user/job", "user", "memory.max", "memory.current"),
        ("0::/user/job", "user/job", "memory.max", "memory.current"),
        # In a container the group's own path is another than the one outside.
        ("0::/elsewhere/x", "", "memory.max", "memory.current"),
        ("4:memory:/job", "memory/job", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ],
)
def test_free_memory_is_that_of_all_control_groups(
    line: str, folder: str, most: str, taken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = tmp_path / "groups" / folder
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "cgroup").write_text(f"7:cpu:/other\n{line}\n")
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable: 4000 kB\n")
    group.mkdir(parents=True)
    (group / most).write_text("1000000\n")
    (group / taken).write_text("700000\n")
    (group / "memory.stat").write_text("anon 1\ninactive_file 50000\n")
    monkeypatch.setattr(machine, "_PROC", tmp_path)
    monkeypatch.setattr(machine, "_GROUPS", tmp_path / "groups")
    assert machine.free_memory() == 350_000
    (group / taken).write_text("2000000\n")
    assert machine.free_memory() == 0
    (group / most).write_text("max\n")
    assert machine.free_memory() == 4000 * 1024


def test_unknown_memory_is_none_and_keeps_nothing(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "free_memory", lambda: None)
    assert rooms(split, Recipe(net="lenet5", size=(32, 32), mode="stream")) == (0, 0)
