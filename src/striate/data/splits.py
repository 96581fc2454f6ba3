"""Splits: which image trains, which validates, which tests; drawn once, the same on every machine."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from striate.core.errors import StriateError
from striate.data.pools import Integers
from striate.data.trees import SPLIT_NAMES

ORDER = ("train", "val", "test")


def strata(targets: NDArray[Any] | None, count: int) -> Integers:
    """The group of each image that a stratified split keeps in proportion, (N,) int64.

    The class; for several labels the rarest one that the image has; one group without targets.
    """
    if targets is None:
        return np.zeros(count, np.int64)
    if targets.ndim == 1:
        return targets.astype(np.int64)
    frequency = targets.sum(axis=0).astype(np.float64)
    ranked = np.where(targets > 0, frequency, np.inf)
    groups: Integers = np.where(targets.any(axis=1), ranked.argmin(axis=1), targets.shape[1]).astype(np.int64)
    return groups


def draw(names: Sequence[str], groups: Integers, fraction: float, seed: int, salt: str) -> NDArray[np.bool_]:
    """Which images a share of `fraction` takes, stratified, (N,) bool.

    Within a group the images with the smallest hash of (seed, salt, name) are taken: the draw hangs on no
    order of files and no generator's version, and one more file moves at most a few others. The group's
    share is rounded so that the total is round(fraction N) (largest remainders first, then the lower
    group); at least one image of each group stays behind.
    """
    keys = np.array([_hash(seed, salt, name) for name in names], dtype=np.uint64)
    taken = np.zeros(len(names), dtype=bool)
    kinds, sizes = np.unique(groups, return_counts=True)
    wanted = fraction * sizes
    shares = np.floor(wanted + 1e-9).astype(np.int64)
    missing = max(round(fraction * len(names)) - int(shares.sum()), 0)
    by_remainder = np.lexsort((kinds, -(wanted - shares).round(9)))
    shares[by_remainder[:missing]] += 1
    shares = np.minimum(shares, sizes - 1)
    order = np.lexsort((keys, groups))
    begins = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    for begin, share in zip(begins, shares, strict=True):
        taken[order[begin : begin + share]] = True
    return taken


def carve(
    names: Sequence[str],
    targets: NDArray[Any] | None,
    rows: Mapping[str, Integers],
    *,
    val: float,
    test: float,
    seed: int,
    contiguous: bool,
) -> tuple[dict[str, Integers], list[str]]:
    """Complete the splits that a data set comes with; returns them with a note on what was drawn.

    Unsplit data (`all`): `test` of them become the test split, then `val` of the rest the validation
    split. Data with a training but no validation split: `val` of the training images. contiguous: the
    last images in natural order, not random ones.
    """
    for option, share in (("val", val), ("test", test)):
        if not 0 <= share <= 1:
            raise StriateError(f"{option} is {share!r}", allowed="a share from 0 to 1")
    splits = dict(rows)
    notes: list[str] = []
    way = "the last ones in order" if contiguous else f"stratified, seed {seed}"
    if "all" in splits:
        whole = splits.pop("all")
        if test == 1 or val == 1:
            return {"test" if test == 1 else "val": whole}, notes
        rest, part = _divide(names, targets, whole, test, seed, "test", contiguous)
        splits["train"] = rest
        if len(part):
            splits["test"] = part
            notes.append(f"test split: {len(part):,} of {len(whole):,} images ({way})")
        elif test > 0:
            notes.append("no test split: no class has an image to spare")
    if "train" in splits and "val" not in splits and val > 0:
        whole = splits["train"]
        rest, part = _divide(names, targets, whole, val, seed, "val", contiguous)
        splits["train"] = rest
        if len(part):
            splits["val"] = part
            notes.append(f"val split: {len(part):,} of {len(whole):,} training images ({way})")
        else:
            notes.append("no val split: no class has an image to spare")
    return {name: splits[name] for name in (*ORDER, *splits) if name in splits}, notes


def _divide(
    names: Sequence[str],
    targets: NDArray[Any] | None,
    rows: Integers,
    share: float,
    seed: int,
    salt: str,
    contiguous: bool,
) -> tuple[Integers, Integers]:
    if share <= 0 or len(rows) < 2:
        return rows, rows[:0]
    if contiguous:
        count = min(max(round(share * len(rows)), 1), len(rows) - 1)
        return rows[:-count], rows[-count:]
    mine = None if targets is None else targets[rows]
    taken = draw([names[int(row)] for row in rows], strata(mine, len(rows)), share, seed, salt)
    return rows[~taken], rows[taken]


def _hash(seed: int, salt: str, name: str) -> int:
    text = f"{seed}/{salt}/{name}".encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


def read_splits(path: str | os.PathLike[str], names: Sequence[str]) -> dict[str, Integers]:
    """The rows (positions in `names`) of each split in a file written by `Dataset.write_splits`.

    Raises:
        StriateError: not such a file, or it names images that the data do not have, or one twice.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        given: dict[str, list[str]] = content["splits"]
        if not all(isinstance(n, str) for part in given.values() for n in part):
            raise TypeError("names must be texts")
    except OSError as error:
        raise StriateError(f"cannot read the split file {os.fspath(path)!r} ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StriateError(
            f"{os.fspath(path)!r} is not a split file ({error})", hint="write one with Dataset.write_splits"
        ) from error
    places = {name: row for row, name in enumerate(names)}
    splits: dict[str, Integers] = {}
    seen: set[str] = set()
    for split, members in given.items():
        missing = [name for name in members if name not in places]
        if missing:
            raise StriateError(
                f"the split file {os.fspath(path)!r} names {len(missing):,} images that the data do not have "
                f"(the first: {missing[0]!r})",
                hint="give the data set that the file was written for",
            )
        twice = seen.intersection(members) or (set() if len(set(members)) == len(members) else {"?"})
        if twice:
            raise StriateError(f"the split file {os.fspath(path)!r} names an image twice ({min(twice)!r})")
        seen.update(members)
        key = SPLIT_NAMES.get(split.lower(), split)
        splits[key] = np.array([places[name] for name in members], dtype=np.int64)
    return splits
