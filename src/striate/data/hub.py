"""Data sets by name: digits, fashion-mnist, cifar10; local files first, else the official ones."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from striate.core import fetch as fetching
from striate.core.errors import StriateError
from striate.core.machine import cache_folder, offline
from striate.data.formats import FORMATS, NAMED, Options, Raw, open_path
from striate.data.idx import raw_arrays
from striate.data.trees import FolderTree, Tree

FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
FASHION_PACKAGE = Path("/usr/share/datasets/fashion-mnist")
FASHION_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
FASHION_FILES = {
    "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
    "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
    "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
    "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
}
CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR_URL = "https://www.cs.toronto.edu/~kriz"
CIFAR_FILE = "cifar-10-binary.tar.gz"
CIFAR_SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
CIFAR_SIDE, CIFAR_RECORD = 32, 1 + 3 * 32 * 32


def data_folders() -> list[Path]:
    """Where local copies are looked for: the folders of STRIATE_DATA, then `data` in the cache."""
    named = os.environ.get("STRIATE_DATA", "")
    return [*(Path(part).expanduser() for part in named.split(os.pathsep) if part), cache_folder() / "data"]


@NAMED.register("digits")
def digits(options: Options) -> Raw:
    """1,797 handwritten digits of 8 x 8 grey pixels that ship with scikit-learn.

    The test part of the UCI optical recognition of handwritten digits. Grey levels 0..16 become
    0..255, rounded. No split of its own.
    """
    from sklearn.datasets import load_digits

    found = load_digits()
    pictures = np.rint(found.images * (255 / 16)).astype(np.uint8)[..., None]
    raw = raw_arrays({"all": (pictures, found.target.astype(np.int64))}, tuple("0123456789"), "digits")
    raw.notes.append("scikit-learn's copy of the UCI optical recognition of handwritten digits, test part")
    return raw


@NAMED.register("fashion-mnist")
def fashion_mnist(options: Options) -> Raw:
    """60,000 + 10,000 grey photographs of clothes, 28 x 28 (Xiao, Rasul and Vollgraf, arXiv:1708.07747)."""
    folder = next(
        (
            place
            for base in [*data_folders(), FASHION_PACKAGE]
            for place in (base / "fashion-mnist", base)
            if all((place / name).is_file() for name in FASHION_FILES)
        ),
        None,
    )
    if folder is None:
        folder = cache_folder() / "data" / "fashion-mnist"
        for name, digest in FASHION_FILES.items():
            fetch(
                f"{FASHION_URL}/{name}",
                digest,
                folder / name,
                hint="install Debian's package dataset-fashion-mnist, or put the four files of "
                f"https://github.com/zalandoresearch/fashion-mnist into {folder}",
            )
    raw = FORMATS.get("idx").open(FolderTree(folder, deepest=0), options)
    raw.classes = FASHION_CLASSES
    raw.notes.append(f"files of {folder}")
    return raw


@NAMED.register("cifar10")
def cifar10(options: Options) -> Raw:
    """50,000 + 10,000 colour photographs of 10 classes, 32 x 32 (Krizhevsky 2009), standard split."""
    for base in data_folders():
        for name in ("cifar10-train.zip", "cifar10-train.tar", "cifar10.zip", "cifar10", CIFAR_FILE):
            if (base / name).exists():
                raw = open_path(base / name, options)
                raw.notes.append(f"files of {base / name}")
                return raw
    target = cache_folder() / "data" / CIFAR_FILE
    fetch(
        f"{CIFAR_URL}/{CIFAR_FILE}",
        CIFAR_SHA256,
        target,
        hint=f"put {CIFAR_FILE} into {target.parent}, or cifar10-train.zip and cifar10-test.zip into a "
        "folder named by STRIATE_DATA",
    )
    return open_path(target, options)


class CifarBinary:
    """The binary version of CIFAR-10: data_batch_1.bin to data_batch_5.bin and test_batch.bin.

    Each record is the class and 3 x 32 x 32 bytes, one colour plane after the other, row by row
    (https://www.cs.toronto.edu/~kriz/cifar.html, section "Binary version").
    """

    def recognise(self, tree: Tree) -> bool:
        """Whether the first batch lies at the top."""
        return "data_batch_1.bin" in tree.files

    def open(self, tree: Tree, options: Options) -> Raw:
        """Read all batches that are there; raises StriateError."""
        batches = [f"data_batch_{i}.bin" for i in range(1, 6)]
        parts = {"train": [read_cifar(tree.read(n), n) for n in batches if n in tree.files]}
        if "test_batch.bin" in tree.files:
            parts["test"] = [read_cifar(tree.read("test_batch.bin"), "test_batch.bin")]
        joined = {
            split: (np.concatenate([p for p, _ in read]), np.concatenate([t for _, t in read]))
            for split, read in parts.items()
        }
        return raw_arrays(joined, CIFAR_CLASSES, tree.path)


FORMATS.register("cifar-binary", rank=20, what="CIFAR-10's binary files")(CifarBinary())


def read_cifar(data: bytes, name: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Pictures (N, 32, 32, 3) uint8 and targets (N,) int64 of one batch; raises StriateError."""
    if not data or len(data) % CIFAR_RECORD:
        raise StriateError(f"{name!r} holds {len(data):,} bytes", allowed=f"a multiple of {CIFAR_RECORD:,}")
    records = np.frombuffer(data, np.uint8).reshape(-1, CIFAR_RECORD)
    if records[:, 0].max() >= len(CIFAR_CLASSES):
        raise StriateError(f"{name!r} has the class {int(records[:, 0].max())}", allowed="0 to 9")
    planes = records[:, 1:].reshape(-1, 3, CIFAR_SIDE, CIFAR_SIDE)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), records[:, 0].astype(np.int64)


def fetch(url: str, sha256: str, target: Path, hint: str) -> Path:
    """The file at `target`, fetched from `url` when it is not there; kept only if its sha256 is right.

    Raises:
        StriateError: offline (or STRIATE_OFFLINE=1), no answer, or another content; `hint` says what to do.
    """
    if not target.is_file():
        if offline():
            raise StriateError(f"{target.name} is not on this machine, and STRIATE_OFFLINE is set", hint=hint)
        fetching.fetch(url, target, expected=sha256, hint=hint)
    return target
