"""IDX files, the binary files of CIFAR-10, and data sets by name."""

from __future__ import annotations

import gzip
import struct
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from image_sets import classes_of, problem, tarred, write, zipped
from striate.core.errors import StriateError
from striate.data import hub
from striate.data.formats import open_data
from striate.data.idx import read_idx


def idx(values: np.ndarray, number: int = 8) -> bytes:
    return (
        bytes([0, 0, number, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()
    )


def mnist(root: Path, packed: bool, prefix: str = "") -> tuple[Path, np.ndarray]:
    pictures = np.random.default_rng(0).integers(0, 256, (30, 5, 4), dtype=np.uint8)
    labels = (np.arange(30) % 3).astype(np.uint8)
    files = {}
    for split, rows in {"train": slice(0, 20), "t10k": slice(20, 30)}.items():
        for what, array, rank in (("images", pictures, 3), ("labels", labels, 1)):
            data = idx(array[rows])
            name = f"{prefix}{split}-{what}-idx{rank}-ubyte" + (".gz" if packed else "")
            files[name] = gzip.compress(data) if packed else data
    return write(root, files), pictures


@pytest.mark.parametrize("packed", [False, True])
def test_idx_files(tmp_path: Path, packed: bool) -> None:
    root, pictures = mnist(tmp_path / "set", packed, "emnist-letters-")
    one = next(path for path in root.iterdir() if "train-images" in path.name)
    for spec in (root, one):
        data = open_data(spec, val=0)
        assert data.classes == ("0", "1", "2")
        assert data.channels == 1
        assert data.size == (5, 4)
        assert data.split("train").pictures is not None
        assert np.array_equal(data.split("test").pictures, pictures[20:, ..., None])
        assert data.split("test").image(3).shape == (5, 4, 3)
    (root / "classes.txt").write_text("ant\nbee\ncat\n")
    assert open_data(root).classes == ("ant", "bee", "cat")
    (root / "classes.txt").write_text("ant\nbee\n")
    assert "label 2, but 2 class names" in problem(root)


def test_idx_errors(tmp_path: Path) -> None:
    good = idx(np.arange(24, dtype=np.uint8).reshape(2, 3, 4))
    assert np.array_equal(read_idx(good, "x"), read_idx(gzip.compress(good), "x"))
    huge = bytes([0, 0, 8, 4]) + struct.pack(">4I", *[2**16] * 4)
    for data, text in {
        good[:-1]: "declares 24 bytes but holds 23",
        good + b"x": "holds 25",
        gzip.compress(good + b"x"): "more or fewer",
        gzip.compress(good[:-1]): "more or fewer",
        gzip.compress(good)[:-12]: "more or fewer",
        b"": "not an IDX file",
        b"\0\0\x0d\x01" + bytes(20): "not an IDX file",
        huge: "at most",
        gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 2]) + bytes(50_000_000)): "more or fewer",
        b"\x1f\x8b\x08" + bytes(50): "not an IDX file|damaged",
    }.items():
        with pytest.raises(StriateError, match=text):
            read_idx(data, "x")
    root, _ = mnist(tmp_path / "set", False)
    (root / "train-labels-idx1-ubyte").unlink()
    assert "has no file of labels beside it" in problem(root)
    (root / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(7, np.uint8)))
    assert "labels for 20 images" in problem(root)


def cifar_batch(seed: int, count: int) -> tuple[bytes, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels, pictures = rng.integers(0, 10, count), rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    records = [
        bytes([label]) + p.transpose(2, 0, 1).tobytes() for label, p in zip(labels, pictures, strict=True)
    ]
    return b"".join(records), labels, pictures


def test_cifar_binary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, labels, pictures = cifar_batch(0, 30)
    files = {f"cifar-10-batches-bin/data_batch_{i}.bin": cifar_batch(i, 30)[0] for i in range(2, 6)}
    files |= {"cifar-10-batches-bin/data_batch_1.bin": one, "cifar-10-batches-bin/test_batch.bin": one}
    tarred(tmp_path / "cifar-10-binary.tar.gz", files)
    monkeypatch.setenv("STRIATE_DATA", str(tmp_path))
    data = open_data("cifar10", val=0)
    assert data.classes == hub.CIFAR_CLASSES
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 150, "test": 30}
    targets = data.split("test").targets
    assert targets is not None
    assert targets.tolist() == labels.tolist()
    assert np.array_equal(data.split("test").pictures, pictures)
    with pytest.raises(StriateError, match="a multiple of 3,073"):
        hub.read_cifar(one[:-1], "x")


def test_cifar10_from_local_zips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zipped(tmp_path / "cifar10-train.zip", classes_of(count=5, below="train/"))
    zipped(tmp_path / "cifar10-test.zip", classes_of(count=2, below="test/"))
    monkeypatch.setenv("STRIATE_DATA", str(tmp_path))
    data = open_data("cifar10", val=0)
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 10, "test": 4}


def test_names_offline_say_what_to_put_where(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hub, "FASHION_PACKAGE", tmp_path / "none")
    with pytest.raises(StriateError, match=r"STRIATE_OFFLINE.*dataset-fashion-mnist"):
        open_data("fashion-mnist")
    with pytest.raises(StriateError, match=r"put cifar-10-binary\.tar\.gz into"):
        open_data("cifar10")


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def test_fetched_files_must_have_their_digest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STRIATE_OFFLINE", "0")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "source").write_bytes(b"content")
    good = "ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73"
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "site"))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        assert hub.fetch(f"{url}/source", good, tmp_path / "a" / "b", "hint").read_bytes() == b"content"
        with pytest.raises(StriateError, match=f"its sha256 is {good}.*or take another"):
            hub.fetch(f"{url}/source", "0" * 64, tmp_path / "c", "take another")
        with pytest.raises(StriateError, match=r"cannot fetch 'c' .*404.*take another"):
            hub.fetch(f"{url}/none", good, tmp_path / "c", "take another")
        server.shutdown()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "site"]


def test_fashion_mnist_from_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mnist(tmp_path / "fashion-mnist", True)
    monkeypatch.setenv("STRIATE_DATA", str(tmp_path))
    data = open_data("fashion-mnist", val=0)
    assert data.classes == hub.FASHION_CLASSES
    assert len(data.split("train")) == 20


def test_digits() -> None:
    data = open_data("digits")
    assert len(data) == 1797
    assert data.size == (8, 8)
    assert data.channels == 1
    assert {name: len(split) for name, split in data.splits.items()} == {
        "train": 1294,
        "val": 144,
        "test": 359,
    }
    assert data.split("all").pictures is not None
    assert int(data.split("train").pictures.max()) == 255  # type: ignore[union-attr]
