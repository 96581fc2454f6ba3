"""Checking a data set: counts, sizes, unreadable files, duplicates, and leaks between splits."""

from __future__ import annotations

import hashlib
import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from striate.core.errors import BadImage, StriateError
from striate.core.machine import processors
from striate.core.results import Result
from striate.data.pools import IGNORE
from striate.data.samples import Dataset, Split
from striate.images.colour import to_grey
from striate.images.decode import decode, header
from striate.images.geometry import resize

THUMB = 12
CHUNK = 128
FURTHEST = 8
APART, APART_SHARE = 3.0, 0.125
REACH = 256
MOST_PAIRS = 100_000
SHOWN = 10


@dataclass(frozen=True)
class DataCheck(Result):
    """What a check found. One row for each pair of duplicates: names, splits, kind, hash bits apart.

    counts: split -> images of each class (pixels, for segmentation). sizes: "HxW" -> images. bad: names and
    reasons of unreadable files. leaks: pairs across splits. conflicts: exact duplicates of different labels.
    """

    ROWS = ("first", "second", "first_split", "second_split", "duplicate", "distance")

    data: str
    kind: str
    digest: str
    classes: tuple[str, ...]
    images: dict[str, int]
    counts: dict[str, list[int]]
    sizes: dict[str, int]
    grey: int
    bad: list[tuple[str, str]]
    problems: list[str]
    notes: list[str]
    leaks: int
    conflicts: int
    first: list[str]
    second: list[str]
    first_split: list[str]
    second_split: list[str]
    duplicate: list[str]
    distance: list[int]

    @property
    def ok(self) -> bool:
        """Whether nothing was found that harms a training or a score."""
        return not (self.bad or self.problems or self.leaks or self.conflicts)

    def lines(self) -> list[str]:
        """The findings for people, the worst last."""
        unit = "pixels" if self.kind == "segmentation" else "images"
        lines = [f"{self.data}: {self.kind}, {len(self.classes)} classes, digest {self.digest}"]
        for split, count in self.images.items():
            per = np.array(self.counts[split])
            lines.append(
                f"{split}: {count:,} images" + (_spread(per, self.classes, unit) if len(per) else "")
            )
        ranked = sorted(self.sizes.items(), key=lambda item: -item[1])
        shown = ", ".join(f"{size} ({count:,})" for size, count in ranked[:5])
        lines.append(f"height x width: {shown}" + (f" and {len(ranked) - 5} more" if len(ranked) > 5 else ""))
        lines.append(f"grey images: {self.grey:,}")
        lines += self.notes
        exact = self.duplicate.count("exact")
        lines.append(f"duplicates: {exact:,} exact, {len(self.duplicate) - exact:,} near")
        order = sorted(
            range(len(self.first)),
            key=lambda i: (self.first_split[i] == self.second_split[i], self.distance[i]),
        )
        lines += [f"  {self._pair(i)}" for i in order[:SHOWN]]
        if self.conflicts:
            lines.append(f"labels: {self.conflicts:,} exact duplicates have different labels")
        if self.leaks:
            lines.append(
                f"leaks: {self.leaks:,} pairs of duplicates lie in different splits: scores will flatter"
            )
        lines += [f"problem: {problem}" for problem in self.problems]
        lines.append(f"unreadable: {len(self.bad):,}")
        lines += [f"  {reason}" for _, reason in self.bad[:SHOWN]]
        lines.append("nothing harmful found" if self.ok else "see above for what to mend")
        return lines

    def _pair(self, i: int) -> str:
        splits = (self.first_split[i], self.second_split[i])
        where = splits[0] if splits[0] == splits[1] else f"{splits[0]} and {splits[1]}"
        far = "" if self.duplicate[i] == "exact" else f", {self.distance[i]} bits apart"
        return f"{self.duplicate[i]} in {where}: {self.first[i]} = {self.second[i]}{far}"


def check_data(dataset: Dataset, *, near: int = 2) -> DataCheck:
    """Decode every image in threads and compare all: exact duplicates by bytes, near ones by their look.

    near: largest Hamming distance of the 64-bit difference hashes (0 to 8; -1: exact duplicates only); a pair
    counts only if the 12 x 12 grey thumbnails agree too. Needs about 200 bytes of memory an image.

    Raises:
        StriateError: `near` out of range.
    """
    if not -1 <= near <= FURTHEST:
        raise StriateError(f"near is {near}", allowed=f"-1 to {FURTHEST}")
    parts = {name: _Prints(split) for name, split in dataset.splits.items()}
    with ThreadPoolExecutor(processors()) as threads:
        for part in parts.values():
            list(threads.map(part.take, range(0, len(part.split), CHUNK)))
    prints = list(parts.values())
    digests = np.concatenate([part.digests for part in prints])
    readable = np.concatenate([part.sides[:, 0] > 0 for part in prints])
    pairs, distances, conflicts = _exact(digests, readable, [part.split for part in prints])
    notes = []
    if near >= 0:
        _, alone = np.unique(digests, return_index=True)
        chosen = np.sort(alone[readable[alone]])
        hashes = np.concatenate([part.hashes for part in prints])[chosen]
        thumbs = np.concatenate([part.thumbs for part in prints])[chosen]
        found, bits = near_pairs(hashes, thumbs, near)
        pairs = np.concatenate([pairs, chosen[found]])
        distances = np.concatenate([distances, bits])
        if len(found) >= MOST_PAIRS:
            notes.append(f"the search ended at {MOST_PAIRS:,} pairs of near duplicates")
    where = np.repeat(np.arange(len(prints)), [len(part.split) for part in prints])
    index = np.concatenate([np.arange(len(part.split)) for part in prints])
    names = list(dataset.splits)

    def name(row: int) -> str:
        split: Split = prints[int(where[row])].split
        return split.name_of(int(index[row]))

    return DataCheck(
        data=dataset.name,
        kind=dataset.kind,
        digest=dataset.digest(),
        classes=dataset.classes,
        images={split: len(part.split) for split, part in parts.items()},
        counts={split: _counts(dataset, split, part) for split, part in parts.items()},
        sizes=_sizes(prints),
        grey=int(sum((part.sides[:, 2] == 1).sum() for part in prints)),
        bad=dataset.bad + [item for part in prints for item in sorted(part.bad)],
        problems=[*map(str, dataset.problems), *_problems(dataset)],
        notes=notes,
        leaks=int((where[pairs[:, 0]] != where[pairs[:, 1]]).sum()),
        conflicts=conflicts,
        first=[name(row) for row in pairs[:, 0]],
        second=[name(row) for row in pairs[:, 1]],
        first_split=[names[where[row]] for row in pairs[:, 0]],
        second_split=[names[where[row]] for row in pairs[:, 1]],
        duplicate=["near" if bits >= 0 else "exact" for bits in distances],
        distance=[max(int(bits), 0) for bits in distances],
    )


class _Prints:
    """Fingerprints of one split: digest of the bytes, difference hash, thumbnail, sides and channels."""

    def __init__(self, split: Split) -> None:
        count = len(split)
        self.split = split
        self.digests = np.zeros(count, dtype="V16")
        self.hashes = np.zeros(count, dtype=np.uint64)
        self.thumbs = np.zeros((count, THUMB * THUMB), dtype=np.uint8)
        self.sides = np.zeros((count, 3), dtype=np.int32)
        self.pixels = np.zeros((count if split.masks is not None else 0, 256), dtype=np.int64)
        self.bad: list[tuple[str, str]] = []

    def take(self, begin: int) -> None:
        """Fingerprint one chunk; unreadable images are listed."""
        for index in range(begin, min(begin + CHUNK, len(self.split))):
            try:
                self._take(index)
            except BadImage as error:
                name, text = self.split.name_of(index), str(error)
                self.sides[index] = 0
                self.bad.append((name, text if name in text else f"{name}: {text}"))

    def _take(self, index: int) -> None:
        split = self.split
        data = split.read(index)
        if split.pool.pictures is not None:
            picture = split.pool.pictures[int(split.rows[index])]
            height, width, channels = picture.shape
            grey = to_grey(picture)
        else:
            facts = header(data)
            height, width, channels = facts.height, facts.width, facts.channels
            grey = decode(data, at_least=4 * THUMB, channels=1)
        if split.masks is not None:
            mask = split.mask(index, (height, width))
            self.pixels[index] = np.bincount(mask.ravel(), minlength=256)[:256]
        self.digests[index] = hashlib.blake2b(data, digest_size=16).digest()
        self.hashes[index] = difference_hash(grey)
        self.thumbs[index] = resize(grey, (THUMB, THUMB), "area").ravel()
        self.sides[index] = height, width, channels


def difference_hash(grey: NDArray[np.uint8]) -> np.uint64:
    """64 bits of a grey image (H, W, 1): is each pixel of its 8 x 9 reduction brighter than its left one?

    N. Krawetz, "Kind of like that", 2013 (dHash).
    """
    small = resize(grey, (8, 9), "area").reshape(8, 9)
    bits = np.packbits(small[:, 1:] > small[:, :-1])
    return np.uint64(int.from_bytes(bits.tobytes(), "big"))


def near_pairs(
    hashes: NDArray[np.uint64], thumbs: NDArray[np.uint8], near: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs (P, 2) of rows with hashes at most `near` bits apart and thumbnails that agree; and the bits.

    Multi-index hashing (Norouzi, Punjani and Fleet, CVPR 2012): two hashes at most `near` bits apart agree in
    one of near + 1 parts whole, so only rows that share a part are compared. In each part the rows are
    sorted by brightness, and a row meets the 256 next ones of its group.
    """
    bright = thumbs.mean(axis=1) if len(thumbs) else np.zeros(0)
    edges = np.linspace(0, 64, near + 2).astype(int)
    found: list[NDArray[np.int64]] = []
    total = 0
    for low, high in itertools.pairwise(edges):
        part = (hashes >> np.uint64(low)) & np.uint64((1 << int(high - low)) - 1)
        order = np.lexsort((bright, part))
        ranked = part[order]
        for step in range(1, min(REACH, len(order) - 1) + 1):
            same = np.flatnonzero(ranked[step:] == ranked[:-step])
            if not len(same):
                break
            a, b = order[same], order[same + step]
            # The means differ at most as much as the pixels do on average: most pairs end here.
            close = np.abs(bright[a] - bright[b]) <= APART
            a, b = a[close], b[close]
            close = popcount(hashes[a] ^ hashes[b]) <= near
            a, b = a[close], b[close]
            agree = _alike(thumbs, a, b)
            found.append(np.sort(np.stack([a[agree], b[agree]], axis=1), axis=1))
            total += int(agree.sum())
            if total >= MOST_PAIRS * (near + 1):
                break
    pairs = np.unique(np.concatenate(found), axis=0) if found else np.zeros((0, 2), np.int64)
    pairs = pairs[:MOST_PAIRS].astype(np.int64)
    return pairs, popcount(hashes[pairs[:, 0]] ^ hashes[pairs[:, 1]])


def popcount(words: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The number of ones in each 64-bit word."""
    if not len(words):
        return np.zeros(0, np.int64)
    ones = np.array([bin(byte).count("1") for byte in range(256)], dtype=np.uint8)
    counted: NDArray[np.int64] = ones[words.view(np.uint8).reshape(-1, 8)].sum(axis=1, dtype=np.int64)
    return counted


def _alike(thumbs: NDArray[np.uint8], a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether thumbnails differ on average by at most APART levels and APART_SHARE of their contrast."""
    alike = np.zeros(len(a), dtype=bool)
    for begin in range(0, len(a), 8192):
        one = thumbs[a[begin : begin + 8192]].astype(np.float32)
        other = thumbs[b[begin : begin + 8192]].astype(np.float32)
        apart = np.abs(one - other).mean(axis=1)
        contrast = np.minimum(one.std(axis=1), other.std(axis=1))
        alike[begin : begin + 8192] = apart <= np.minimum(APART, APART_SHARE * contrast)
    return alike


def _exact(
    digests: NDArray[Any], readable: NDArray[np.bool_], splits: list[Split]
) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """(first of its group, copy) for each exact duplicate, -1 for each, and how many have other labels."""
    rows = np.flatnonzero(readable)
    _, first, group = np.unique(digests[rows], return_index=True, return_inverse=True)
    firsts = rows[first[group.ravel()]]
    copies = np.flatnonzero(firsts != rows)
    pairs = np.stack([firsts[copies], rows[copies]], axis=1).astype(np.int64)
    conflicts = 0
    targets = [split.targets for split in splits if split.targets is not None]
    if len(pairs) and len(targets) == len(splits):
        joined = np.concatenate(targets)
        other = joined[pairs[:, 0]] != joined[pairs[:, 1]]
        conflicts = int((other if other.ndim == 1 else other.any(axis=1)).sum())
    return pairs, np.full(len(pairs), -1, np.int64), conflicts


def _counts(dataset: Dataset, split: str, part: _Prints) -> list[int]:
    if dataset.kind != "segmentation":
        return [int(count) for count in dataset.counts(split)]
    return [int(count) for count in part.pixels.sum(axis=0)[: min(len(dataset.classes), IGNORE)]]


def _sizes(prints: list[_Prints]) -> dict[str, int]:
    sides = np.concatenate([part.sides[part.sides[:, 0] > 0, :2] for part in prints])
    kinds, counts = np.unique(sides, axis=0, return_counts=True)
    return {f"{h}x{w}": int(count) for (h, w), count in zip(kinds, counts, strict=True)}


def _problems(dataset: Dataset) -> list[str]:
    found = []
    for name, split in dataset.splits.items():
        if split.targets is None or not len(split):
            continue
        empty = [dataset.classes[i] for i in np.flatnonzero(dataset.counts(name) == 0)]
        if empty:
            more = f" and {len(empty) - 5} more" if len(empty) > 5 else ""
            found.append(f"{name} has no image of {', '.join(empty[:5])}{more}")
    return found


def _spread(counts: NDArray[np.int64], classes: tuple[str, ...], unit: str) -> str:
    low, high = int(counts.argmin()), int(counts.argmax())
    if counts[low] == counts[high]:
        return f", {counts[low]:,} {unit} of each class"
    return (
        f", {counts[low]:,} ({classes[low]}) to {counts[high]:,} ({classes[high]}) {unit} a class, "
        f"median {int(np.median(counts)):,}"
    )
