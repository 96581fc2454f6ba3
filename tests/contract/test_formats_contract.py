"""Every registered data format: found by its own example only, sound splits, one error type on damage."""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from image_sets import CONTAINERS, classes_of, png, write
from striate.core.errors import StriateError
from striate.data.formats import FORMATS, NAMED, Options, open_data
from striate.data.trees import FolderTree


def idx(values: np.ndarray) -> bytes:
    return bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


def grey(value: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray((np.arange(30).reshape(6, 5) + value).astype(np.uint8) % 2).save(file, "PNG")
    return file.getvalue()


PICTURES = np.random.default_rng(0).integers(0, 256, (12, 6, 5), dtype=np.uint8)
ROWS = "".join(f"{i}.png,{'ab'[i % 2]}\n" for i in range(12))
EXAMPLES: Mapping[str, Mapping[str, bytes]] = {
    "class-folders": classes_of(count=6),
    "table": {f"{i}.png": png(i) for i in range(12)} | {"labels.csv": f"path,label\n{ROWS}".encode()},
    "pairs": {f"images/{i}.png": png(i) for i in range(12)} | {f"masks/{i}.png": grey(i) for i in range(12)},
    "idx": {
        "train-images-idx3-ubyte": idx(PICTURES),
        "train-labels-idx1-ubyte": idx((np.arange(12) % 2).astype(np.uint8)),
    },
    "cifar-binary": {"data_batch_1.bin": b"".join(bytes([i % 10]) + bytes(3072) for i in range(20))},
}


def test_every_format_has_an_example() -> None:
    assert sorted(EXAMPLES) == FORMATS.names()


@pytest.mark.parametrize("name", FORMATS.names())
class TestFormat:
    def test_says_what_it_is(self, name: str) -> None:
        entry = FORMATS.entry(name)
        assert entry.summary
        assert isinstance(entry.capabilities["rank"], int)
        assert entry.capabilities["what"]

    def test_is_asked_before_all_others_that_know_its_example(self, name: str, tmp_path: Path) -> None:
        tree = FolderTree(write(tmp_path / "s", EXAMPLES[name]))
        knowing = [entry for entry in FORMATS if entry.value.recognise(tree)]
        assert min(knowing, key=lambda entry: (entry.capabilities["rank"], entry.name)).name == name

    def test_knows_neither_nothing_nor_strange_names(self, name: str, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        assert not FORMATS.get(name).recognise(FolderTree(tmp_path / "empty"))
        strange = {f"{odd}/{odd}": b"x" for odd in ("a b", "-", "%s", "ü", "\u202e", "x" * 200, "images")}
        assert not FORMATS.get(name).recognise(FolderTree(write(tmp_path / "odd", strange)))

    def test_opens_the_same_in_every_container(self, name: str, tmp_path: Path) -> None:
        digests = set()
        for number, make in enumerate(CONTAINERS.values()):
            (tmp_path / str(number)).mkdir()
            data = open_data(make(tmp_path / str(number), EXAMPLES[name]), val=0.2, test=0.25)
            digests.add(data.digest())
            for split in data.splits.values():
                for i in range(len(split)):
                    image = split.image(i)
                    assert image.dtype == np.uint8
                    assert image.ndim == 3
                    if data.kind == "segmentation":
                        assert split.mask(i).shape == image.shape[:2]
        assert len(digests) == 1

    def test_rows_are_disjoint_and_targets_in_range(self, name: str, tmp_path: Path) -> None:
        tree = FolderTree(write(tmp_path / "s", EXAMPLES[name]))
        raw = FORMATS.get(name).open(tree, Options())
        rows = np.concatenate(list(raw.splits.values()))
        assert len(set(rows.tolist())) == len(rows)
        assert len(set(raw.pool.names)) == len(raw.pool.names)
        assert raw.problems == []
        if raw.targets is not None:
            assert len(raw.targets) == len(raw.pool.names)
            assert 0 <= raw.targets.min() <= raw.targets.max() < len(raw.classes)
        else:
            assert raw.masks is not None

    def test_damage_gives_the_one_error(self, name: str, tmp_path: Path) -> None:
        rng = np.random.default_rng(0)
        files = list(EXAMPLES[name])
        for trial in range(12):
            hurt = dict(EXAMPLES[name])
            for file in rng.choice(files, 2):
                content = bytearray(hurt[file])
                if trial % 3 == 0 and content:
                    content[int(rng.integers(len(content)))] ^= 1 << int(rng.integers(8))
                else:
                    del content[int(rng.integers(len(content) + 1)) if trial % 3 == 1 else 0 :]
                hurt[file] = bytes(content)
            told = ""
            try:
                data = open_data(write(tmp_path / str(trial), hurt))
                data.scan(full=True)
                data.describe()
            except StriateError as error:
                told = str(error)
            assert "\n" not in told


@pytest.mark.parametrize("name", NAMED.names())
def test_named_sets_are_described(name: str) -> None:
    assert NAMED.entry(name).summary
