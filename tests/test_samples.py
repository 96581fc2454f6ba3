"""Splits, data sets, pools and the drawing of splits."""

from __future__ import annotations

import io
import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from striate.core.errors import BadImage, StriateError
from striate.data.classes import match_class, renumber
from striate.data.formats import open_data
from striate.data.pools import ArrayPool, FilePool, JoinedPool, Texts, read_file
from striate.data.samples import Dataset, Split
from striate.data.splits import carve, draw, read_splits, strata
from striate.data.trees import natural
from striate.images.decode import to_image
from striate.images.draw import encode_png


def toy(count: int = 10, classes: int = 2) -> Dataset:
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (count, 4, 5, 3), dtype=np.uint8)
    split = Split.from_arrays("train", pictures, np.arange(count) % classes)
    return Dataset("toy", "classification", [f"c{i}" for i in range(classes)], [split])


def test_texts_keep_every_name_and_hold_no_object_each() -> None:
    names = ["a", "", "größe/b c.png", "\udcff.png", "x" * 300]
    texts = Texts(names)
    assert list(texts) == names
    assert texts[-1] == names[-1]
    assert texts[1:3] == names[1:3]
    assert list(texts.take([2, 0])) == [names[2], names[0]]
    assert texts == names
    with pytest.raises(IndexError):
        texts[5]


@given(st.lists(st.text(max_size=8), max_size=20))
def test_texts_are_the_list_they_were_made_of(names: list[str]) -> None:
    clean = [name.encode("utf-8", "ignore").decode() for name in names]
    assert list(Texts(clean)) == clean


def test_select_keeps_images_targets_and_names_together() -> None:
    split = toy().splits["train"]
    part = split.select([7, 2])
    assert part.names == ["7", "2"]
    assert part.targets is not None
    assert part.targets.tolist() == [1, 0]
    assert np.array_equal(part.image(0), split.image(7))
    assert part.pictures is not None
    assert np.array_equal(part.pictures[1], split.image(2))
    assert len(split.select([])) == 0
    assert len(split.select(np.arange(10) < 3)) == 3


def test_contiguous_pictures_are_a_view() -> None:
    split = toy().splits["train"]
    whole, part = split.pictures, split.select(np.arange(3, 6)).pictures
    assert whole is not None
    assert part is not None
    assert np.shares_memory(whole, part)


@pytest.mark.parametrize(("stored", "wanted"), [(3, 1), (1, 3), (3, 3)])
def test_pictures_in_memory_files_and_arrays_are_one_image(stored: int, wanted: int) -> None:
    # Colours whose grey two ways of rounding tell apart are among so many.
    picture = np.random.default_rng(1).integers(0, 256, (120, 120, stored), dtype=np.uint8)
    kept = Split.from_arrays("test", picture[None], [0]).image(0, channels=wanted)
    assert np.array_equal(kept, to_image(picture, channels=wanted))
    assert np.array_equal(kept, to_image(encode_png(picture), channels=wanted))
    if wanted == 1:
        pillow = np.asarray(Image.fromarray(picture).convert("L")).astype(int)
        assert abs(kept[..., 0] - pillow).max() <= 1


def test_a_split_refuses_targets_of_another_length() -> None:
    with pytest.raises(ValueError, match="10 images but 3 targets"):
        Split("x", ArrayPool(np.zeros((10, 2, 2, 1), np.uint8)), np.arange(10), np.zeros(3, np.int64))


def test_dataset_tells_splits_counts_and_all() -> None:
    pictures = np.zeros((5, 2, 2, 1), np.uint8)
    pool = ArrayPool(pictures)
    train = Split("train", pool, np.array([0, 2, 4]), np.array([0, 1, 1]))
    test = Split("test", pool, np.array([1, 3]), np.array([0, 0]))
    data = Dataset("d", "classification", ["a", "b"], [train, test])
    assert data.counts("train").tolist() == [1, 2]
    assert data.split("all").rows.tolist() == [0, 2, 4, 1, 3]
    assert data.channels == 1
    assert data.size == (2, 2)
    with pytest.raises(StriateError, match="did you mean 'train'"):
        data.split("trian")


def test_digest_changes_with_names_targets_splits_and_classes() -> None:
    base = toy()
    split = base.splits["train"]
    assert split.targets is not None
    others = [
        Dataset("x", "classification", ["c0", "c2"], [split]),
        Dataset("x", "classification", base.classes, [split.select(np.arange(9))]),
        Dataset("x", "classification", base.classes, [split.select(np.arange(10), "test")]),
        Dataset(
            "x", "classification", base.classes, [Split("train", split.pool, split.rows, 1 - split.targets)]
        ),
    ]
    digests = {base.digest(), *(other.digest() for other in others)}
    assert len(digests) == 5
    assert toy().digest() == base.digest()
    assert len(base.digest()) == 12


def test_aligned_to_matches_by_name_not_by_place() -> None:
    data = Dataset(
        "d",
        "classification",
        ["great_white", "cat"],
        [Split.from_arrays("test", np.zeros((3, 2, 2), np.uint8), [0, 1, 1])],
    )
    aligned = data.aligned_to(["dog", "cat", "Great White"])
    targets = aligned.splits["test"].targets
    assert targets is not None
    assert targets.tolist() == [2, 1, 1]
    assert aligned.classes == ("dog", "cat", "Great White")
    with pytest.raises(StriateError, match="unknown class 'cat'"):
        data.aligned_to(["great_white", "cats and dogs"])
    with pytest.raises(StriateError, match="2 times"):
        match_class("crane", ["crane", "x", "crane"])


def test_aligned_to_moves_labels_and_masks() -> None:
    many = Split.from_arrays("test", np.zeros((2, 2, 2), np.uint8), [[1, 0], [1, 1]])
    aligned = Dataset("d", "multi-label", ["a", "b"], [many]).aligned_to(["b", "c", "a"])
    targets = aligned.splits["test"].targets
    assert targets is not None
    assert targets.tolist() == [[0, 0, 1], [1, 0, 1]]
    masks = np.array([[[0, 1], [255, 1]]], np.uint8)
    one = Split.from_arrays("test", np.zeros((1, 2, 2), np.uint8), masks=masks)
    moved = Dataset("d", "segmentation", ["a", "b"], [one]).aligned_to(["b", "c", "a"])
    assert moved.splits["test"].mask(0).tolist() == [[2, 0], [255, 0]]
    assert renumber(np.array([-1, 0, 255, 1], np.int32), np.array([5, 3])).tolist() == [-1, 5, 255, 3]


def test_a_mask_value_that_is_no_class_is_named() -> None:
    pool = ArrayPool(np.array([[[0, 7]]], np.uint8), ["m.png"])
    lookup = np.full(256, -1, np.int32)
    lookup[0] = 0
    split = Split("x", pool, np.array([0]), None, masks=pool, lookup=lookup)
    with pytest.raises(BadImage, match=r"m\.png: mask value 7 is no class"):
        split.mask(0)


def test_joined_pools_read_the_right_part(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"one")
    (tmp_path / "b").write_bytes(b"two")
    pool = JoinedPool([FilePool(tmp_path, ["a"]), FilePool(tmp_path, ["b", "a"])], ["x", "y", "z"])
    assert [pool.read(i) for i in range(3)] == [b"one", b"two", b"one"]
    assert pool.pictures is None


def test_only_regular_files_of_bounded_size_are_read(tmp_path: Path) -> None:
    with pytest.raises(BadImage, match="not a regular file"):
        read_file("/dev/zero")
    with pytest.raises(BadImage, match="No such file"):
        read_file(str(tmp_path / "none.png"))
    (tmp_path / "big").write_bytes(b"x" * 11)
    with pytest.raises(BadImage, match="at most 10"):
        read_file(str(tmp_path / "big"), limit=10)


def test_natural_order() -> None:
    names = ["img10", "img2", "img02", "img1b", "img", "9", "10", "a/2/x", "a/10/x"]
    assert sorted(names, key=natural) == [
        "9",
        "10",
        "a/2/x",
        "a/10/x",
        "img",
        "img1b",
        "img02",
        "img2",
        "img10",
    ]
    assert natural("1" * 10_000) > natural("9")


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 4), min_size=2, max_size=80),
    st.floats(0.01, 0.9),
    st.integers(0, 3),
)
def test_draws_are_stratified_and_hang_on_no_order(labels: list[int], share: float, seed: int) -> None:
    groups = np.array(labels)
    names = [f"n{i}" for i in range(len(labels))]
    taken = draw(names, groups, share, seed, "val")
    for kind in set(labels):
        size, got = int((groups == kind).sum()), int(taken[groups == kind].sum())
        assert got <= size - 1
        assert got in (int(share * size + 1e-9), int(share * size + 1e-9) + 1, size - 1)
    assert taken.sum() <= round(share * len(labels)) or taken.sum() <= sum(
        int(share * (groups == kind).sum() + 1e-9) for kind in set(labels)
    )
    order = np.random.default_rng(seed).permutation(len(labels))
    again = draw([names[i] for i in order], groups[order], share, seed, "val")
    assert np.array_equal(again, taken[order])


def test_draw_takes_exactly_the_share_of_every_class_where_it_divides() -> None:
    groups = np.repeat([0, 1, 2], [100, 50, 10])
    taken = draw([str(i) for i in range(160)], groups, 0.1, 0, "val")
    assert np.bincount(groups[taken]).tolist() == [10, 5, 1]
    other = draw([str(i) for i in range(160)], groups, 0.1, 1, "val")
    assert not np.array_equal(taken, other)


def test_one_more_file_moves_few_images() -> None:
    names = [f"n{i}" for i in range(200)]
    before = draw(names, np.zeros(200, int), 0.2, 0, "val")
    after = draw([*names, "new"], np.zeros(201, int), 0.2, 0, "val")[:200]
    assert (before != after).sum() <= 1


def test_strata_of_several_labels_is_the_rarest() -> None:
    marks = np.array([[1, 0, 1], [1, 0, 0], [1, 1, 0], [0, 0, 0], [1, 0, 1]], np.uint8)
    assert strata(marks, 5).tolist() == [2, 0, 1, 3, 2]


def test_carve_contiguous_takes_the_last_ones() -> None:
    splits, notes = carve(
        [str(i) for i in range(20)], None, {"all": np.arange(20)}, val=0.25, test=0.2, seed=0, contiguous=True
    )
    assert list(splits) == ["train", "val", "test"]
    assert splits["test"].tolist() == [16, 17, 18, 19]
    assert splits["val"].tolist() == [12, 13, 14, 15]
    assert len(notes) == 2


def test_carve_leaves_given_splits_alone_and_test_1_takes_all() -> None:
    given = {"train": np.arange(5), "val": np.arange(5, 8)}
    splits, notes = carve(
        [str(i) for i in range(8)], None, given, val=0.5, test=0.5, seed=0, contiguous=False
    )
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 5, "val": 3}
    assert notes == []
    whole, _ = carve(["a", "b"], None, {"all": np.arange(2)}, val=0.1, test=1, seed=0, contiguous=False)
    assert list(whole) == ["test"]
    with pytest.raises(StriateError, match="a share from 0 to 1"):
        carve(["a"], None, {"all": np.arange(1)}, val=1.5, test=0, seed=0, contiguous=False)


def test_splits_written_are_read_back_exactly(tmp_path: Path) -> None:
    data = open_data("digits", seed=3)
    path = data.write_splits(tmp_path / "splits.json")
    again = open_data("digits", seed=99, split_file=path)
    assert again.digest() == data.digest()
    for name in data.splits:
        assert np.array_equal(again.splits[name].rows, data.splits[name].rows)
    assert open_data("digits", seed=4).digest() != data.digest()


def test_a_split_file_of_other_data_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    path.write_text(json.dumps({"splits": {"train": ["a", "b"]}}))
    with pytest.raises(StriateError, match="names 1 images that the data do not have"):
        read_splits(path, ["a", "c"])
    path.write_text(json.dumps({"splits": {"train": ["a"], "test": ["a"]}}))
    with pytest.raises(StriateError, match="twice"):
        read_splits(path, ["a"])
    for text in ("", "[]", '{"splits": 3}', '{"splits": {"train": [1]}}'):
        path.write_text(text)
        with pytest.raises(StriateError, match="not a split file"):
            read_splits(path, ["a"])
    with pytest.raises(StriateError, match="cannot read"):
        read_splits(tmp_path / "none.json", ["a"])


def encode(seed: int, size: tuple[int, int] = (12, 10)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_scan_names_the_corrupt_images_and_drops_them(tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for i in range(8):
            (tmp_path / label / f"{i}.png").write_bytes(encode(i))
    (tmp_path / "a" / "3.png").write_bytes(b"no image at all")
    (tmp_path / "a" / "5.png").write_bytes(b"")
    (tmp_path / "b" / "2.png").write_bytes(encode(2)[:150])
    data = open_data(tmp_path, val=0, test=0)
    with pytest.raises(BadImage, match=r"a/3\.png"):
        data.split("train").image(3)
    found = data.scan(full=True)
    assert sorted(name for name, _ in found) == ["a/3.png", "a/5.png", "b/2.png"]
    assert all(name in reason for name, reason in found)
    assert len(data.split("train")) == 13
    assert data.bad == found
    assert "left out: 3 unreadable" in data.describe()
    assert data.scan(full=True) == []


def test_a_split_survives_pickling_and_threads(tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for i in range(6):
            (tmp_path / label / f"{i}.png").write_bytes(encode(i))
    split = open_data(tmp_path, val=0, test=0).split("train")
    again = pickle.loads(pickle.dumps(split))  # noqa: S301
    with ThreadPoolExecutor(4) as threads:
        images = list(threads.map(again.image, range(12)))
    for i, image in enumerate(images):
        assert np.array_equal(image, split.image(i))


def test_classes_of_one_image_all_train_and_it_is_said() -> None:
    rows = {"all": np.arange(3)}
    splits, notes = carve(["a", "b", "c"], np.arange(3), rows, val=0.5, test=0.5, seed=0, contiguous=False)
    assert {name: len(part) for name, part in splits.items()} == {"train": 3}
    assert len(notes) == 2
