"""IDX files: the MNIST family (MNIST, Fashion-MNIST, KMNIST, EMNIST), plain or packed with gzip."""

from __future__ import annotations

import math
import re
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from striate.core.errors import StriateError
from striate.core.machine import free_memory
from striate.data.folder import CLASS_LISTS, one_class
from striate.data.formats import FORMATS, Options, Raw
from striate.data.pools import ArrayPool
from striate.data.trees import Tree

NAME = re.compile(
    r"^(?:.*/)?(?P<set>.*?)(?P<split>train|t10k|test|val)[-_.](?P<what>images|labels)[-_.]"
    r"idx[0-9][-_.]ubyte(?:\.gz)?$",
    re.IGNORECASE,
)
SPLITS = {"train": "train", "t10k": "test", "test": "test", "val": "val"}
UNSIGNED_BYTE = 0x08
MOST_BYTES = 1 << 32


class Idx:
    """Pairs of IDX files: SET-train-images-idx3-ubyte[.gz] and SET-train-labels-idx1-ubyte[.gz], and t10k.

    Header: two zero bytes, the type (8 = unsigned byte), the number of dimensions, each dimension as
    a big-endian 32-bit number (Y. LeCun, "The MNIST database", file formats). Images: (N, H, W) or
    (N, H, W, 3). Classes are the numbers 0 to the largest label, or the lines of a classes.txt.
    """

    def recognise(self, tree: Tree) -> bool:
        """Whether a file is called as one of these."""
        return any(NAME.match(file) for file in tree.files)

    def open(self, tree: Tree, options: Options) -> Raw:
        """Read all files; raises StriateError, see `data.formats.open_data`."""
        found: dict[tuple[str, str], str] = {}
        for file in tree.files:
            if match := NAME.match(file):
                key = (SPLITS[match["split"].lower()], match["what"].lower())
                if key in found and _same_but_gz(found[key], file):
                    continue
                if key in found:
                    raise StriateError(
                        f"{tree.path!r} holds several sets of IDX files ({found[key]}, {file})",
                        hint="give each set a folder of its own",
                    )
                found[key] = file
        splits = [split for split in ("train", "val", "test") if (split, "images") in found]
        stacks, targets = [], []
        for split, what in found:
            other = "labels" if what == "images" else "images"
            if (split, other) not in found:
                raise StriateError(
                    f"{found[split, what]!r} has no file of {other} beside it",
                    hint=f"put the {other} file of the same set into {tree.path!r}",
                )
        for split in splits:
            pictures = read_idx(tree.read(found[split, "images"], MOST_BYTES), found[split, "images"])
            labels = read_idx(tree.read(found[split, "labels"]), found[split, "labels"])
            stacks.append(_as_pictures(pictures, found[split, "images"]))
            targets.append(_as_targets(labels, len(pictures), found[split, "labels"]))
        if len({stack.shape[1:] for stack in stacks}) > 1:
            raise StriateError(f"the splits of {tree.path!r} hold images of different sizes")
        return raw_arrays(
            dict(zip(splits, zip(stacks, targets, strict=True), strict=True)), _names(tree), tree.path
        )


FORMATS.register("idx", rank=20, what="IDX files")(Idx())


def raw_arrays(
    parts: dict[str, tuple[NDArray[np.uint8], NDArray[np.int64]]], classes: tuple[str, ...], path: str
) -> Raw:
    """A data set in memory from split -> (pictures (N, H, W, C), targets (N,)); no classes: 0, 1, 2, ..."""
    targets = np.concatenate([part[1] for part in parts.values()])
    largest = int(targets.max()) if len(targets) else -1
    if classes and largest >= len(classes):
        raise StriateError(f"{path!r} has the label {largest}, but {len(classes)} class names")
    names: list[str] = []
    rows = {}
    for split, (pictures, _) in parts.items():
        rows[split] = np.arange(len(names), len(names) + len(pictures))
        width = len(str(max(len(pictures) - 1, 0)))
        names += [f"{split}/{i:0{width}d}" for i in range(len(pictures))]
    stack = [part[0] for part in parts.values()]
    whole = stack[0] if len(stack) == 1 else np.concatenate(stack)
    classes = classes or tuple(map(str, range(largest + 1)))
    problems = [one_class(path, classes)] if len(classes) < 2 else []
    return Raw("classification", classes, ArrayPool(whole, names), rows, targets, problems=problems)


def read_idx(data: bytes, name: str) -> NDArray[np.uint8]:
    """The array in an IDX file of unsigned bytes, plain or gzip; inflated no further than declared.

    Raises:
        StriateError: another kind of file, another number type, or not as long as the header says.
    """
    packed = data[:2] == b"\x1f\x8b"
    inflate: Any = zlib.decompressobj(31) if packed else None
    wrong = StriateError(f"{name!r} is not an IDX file of unsigned bytes", hint="fetch it again")
    try:
        head = inflate.decompress(data, 1024) if packed else data[:1024]
        if len(head) < 8 or head[:2] != b"\0\0" or head[2] != UNSIGNED_BYTE or not 1 <= head[3] <= 4:
            raise wrong
        begin = 4 + 4 * head[3]
        shape = struct.unpack(f">{head[3]}I", head[4:begin])
        size = math.prod(shape)
        most = MOST_BYTES if (free := free_memory()) is None else min(free, MOST_BYTES)
        if size > most:
            raise StriateError(
                f"{name!r} declares {size:,} bytes, all of which are held in memory",
                allowed=f"at most {most:,} on this machine",
                hint="save the images as files in a folder for each class",
            )
        if packed:
            body = head[begin:] + inflate.decompress(
                inflate.unconsumed_tail, max(size + begin - len(head), 0) + 1
            )
        else:
            body = memoryview(data)[begin:]
    except (zlib.error, struct.error) as error:
        raise StriateError(f"{name!r} is damaged ({error})", hint="fetch it again") from error
    if len(body) != size or (packed and not inflate.eof):
        raise StriateError(
            f"{name!r} declares {size:,} bytes but holds {'more or fewer' if packed else f'{len(body):,}'}",
            hint="it may be incomplete: fetch it again",
        )
    return np.frombuffer(body, np.uint8).reshape(shape)


def _as_pictures(values: NDArray[np.uint8], name: str) -> NDArray[np.uint8]:
    if values.ndim == 3:
        return values[..., None]
    if values.ndim == 4 and values.shape[3] in (1, 3):
        return values
    raise StriateError(
        f"{name!r} holds an array of shape {values.shape}", allowed="(N, H, W) or (N, H, W, 3)"
    )


def _as_targets(values: NDArray[np.uint8], count: int, name: str) -> NDArray[np.int64]:
    if values.shape != (count,):
        raise StriateError(
            f"{name!r} holds {values.shape} labels for {count:,} images", hint="take both files from one set"
        )
    return values.astype(np.int64)


def _same_but_gz(a: str, b: str) -> bool:
    return a.removesuffix(".gz") == b.removesuffix(".gz")


def _names(tree: Tree) -> tuple[str, ...]:
    for name in CLASS_LISTS:
        if name in tree.files:
            return tuple(line.strip() for line in tree.read_text(name).splitlines() if line.strip())
    return ()
