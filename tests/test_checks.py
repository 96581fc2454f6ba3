"""The check of a data set: counts, duplicates, leaks, unreadable files."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from image_sets import write
from striate.core.errors import StriateError
from striate.data.checks import REACH, check_data, difference_hash, near_pairs, popcount
from striate.data.formats import open_data
from striate.data.samples import Dataset, Split


def scene(seed: int, size: tuple[int, int] = (48, 64)) -> Image.Image:
    """A smooth random picture, as photographs are."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size[::-1], Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "PNG", **options: int) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    files = {f"train/{c}/{i}.png": encoded(scene(10 * n + i)) for n, c in enumerate("ab") for i in range(5)}
    files |= {
        f"test/{c}/{i}.png": encoded(scene(50 + 10 * n + i)) for n, c in enumerate("ab") for i in range(3)
    }
    return write(tmp_path / "set", files)


def test_a_sound_set_is_called_sound(root: Path) -> None:
    found = check_data(open_data(root, val=0))
    assert found.ok
    assert found.counts == {"train": [5, 5], "test": [3, 3]}
    assert found.images == {"train": 10, "test": 6}
    assert found.sizes == {"48x64": 16}
    assert found.first == []
    assert found.lines()[-1] == "nothing harmful found"


def test_duplicates_leaks_conflicts_and_bad_files_are_found(root: Path) -> None:
    write(
        root,
        {
            "train/b/copy.png": encoded(scene(0)),
            "test/a/jpeg.jpg": encoded(scene(2), "JPEG", quality=80),
            "test/b/small.png": encoded(scene(13).resize((40, 30), Image.Resampling.BOX)),
            "train/a/broken.png": encoded(scene(3))[:200],
        },
    )
    found = check_data(open_data(root, val=0))
    pairs = {
        (a, b): (kind, *splits)
        for a, b, kind, *splits in zip(
            found.first, found.second, found.duplicate, found.first_split, found.second_split, strict=True
        )
    }
    assert pairs == {
        ("train/a/0.png", "train/b/copy.png"): ("exact", "train", "train"),
        ("train/a/2.png", "test/a/jpeg.jpg"): ("near", "train", "test"),
        ("train/b/3.png", "test/b/small.png"): ("near", "train", "test"),
    }
    assert found.conflicts == 1
    assert found.leaks == 2
    assert [name for name, _ in found.bad] == ["train/a/broken.png"]
    assert not found.ok
    text = "\n".join(found.lines())
    assert "unreadable: 1" in text
    assert "leaks: 2" in text
    only = check_data(open_data(root, val=0), near=-1)
    assert only.duplicate == ["exact"]


def test_problems_of_a_lenient_opening_are_told(root: Path) -> None:
    (root / "train" / "c").mkdir()
    found = check_data(open_data(root, val=0, strict=False))
    assert any("class folder 'train/c'" in problem for problem in found.problems)
    with pytest.raises(StriateError, match="-1 to 8"):
        check_data(open_data(root, val=0, strict=False), near=9)


def test_arrays_in_memory_and_saving(tmp_path: Path) -> None:
    pictures = np.stack([np.asarray(scene(i, (16, 16)).convert("L")) for i in range(6)])
    pictures[5] = pictures[1]
    data = Dataset("d", "classification", "ab", [Split.from_arrays("train", pictures, [0, 1, 0, 1, 0, 0])])
    found = check_data(data)
    assert list(zip(found.first, found.second, found.duplicate, strict=True)) == [("1", "5", "exact")]
    assert found.grey == 6
    assert found.save(tmp_path / "c.csv").read_text().splitlines()[1] == "1,5,train,train,exact,0"
    assert '"conflicts": 1' in found.save(tmp_path / "c.json").read_text()


def test_masks_are_counted_in_pixels() -> None:
    masks = np.zeros((2, 4, 4), np.uint8)
    masks[0, 0] = 1
    masks[1, 0, 0] = 255
    pictures = np.random.default_rng(0).integers(0, 255, (2, 4, 4, 3), dtype=np.uint8)
    data = Dataset("d", "segmentation", "ab", [Split.from_arrays("train", pictures, masks=masks)])
    assert check_data(data).counts == {"train": [27, 4]}


def test_difference_hash_by_hand() -> None:
    falling = np.repeat(np.arange(9, 0, -1, dtype=np.uint8)[None], 8, axis=0)[..., None]
    assert difference_hash(falling) == 0
    assert difference_hash(falling[:, ::-1]) == np.uint64(2**64 - 1)
    one = falling.copy()
    one[0, 1] = 255
    assert difference_hash(one) == np.uint64(1 << 63)


@given(st.lists(st.integers(0, 2**64 - 1), max_size=30))
def test_popcount(words: list[int]) -> None:
    assert popcount(np.array(words, np.uint64)).tolist() == [word.bit_count() for word in words]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 4))
def test_near_pairs_are_those_of_all_pairs(seed: int, near: int) -> None:
    rng = np.random.default_rng(seed)
    centres = rng.integers(0, 2**63, 6, dtype=np.uint64)
    hashes = np.array(
        [
            int(centres[i % 6])
            ^ sum(1 << int(b) for b in rng.choice(64, int(rng.integers(0, 4)), replace=False))
            for i in range(40)
        ],
        dtype=np.uint64,
    )
    thumbs = np.tile(rng.integers(0, 256, 144, dtype=np.uint8), (40, 1))
    found, bits = near_pairs(hashes, thumbs, near)
    apart = {
        (i, j): (int(hashes[i]) ^ int(hashes[j])).bit_count() for i, j in itertools.combinations(range(40), 2)
    }
    expected = {pair: distance for pair, distance in apart.items() if distance <= near}
    assert {tuple(pair): int(b) for pair, b in zip(found.tolist(), bits, strict=True)} == expected


def test_equal_hashes_alone_are_no_duplicates_and_large_groups_stay_cheap() -> None:
    count = 4 * REACH
    hashes = np.zeros(count, np.uint64)
    rng = np.random.default_rng(0)
    thumbs = rng.integers(0, 256, (count, 144), dtype=np.uint8)
    thumbs[7] = thumbs[900]
    found, _ = near_pairs(hashes, thumbs, 2)
    assert found.tolist() == [[7, 900]]
