"""A data set: named splits of images with their targets, opened in place."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from striate.core.errors import BadImage, StriateError, unknown
from striate.core.files import write_text
from striate.core.machine import processors
from striate.data.classes import match_class, renumber
from striate.data.pools import ArrayPool, Integers, Pool
from striate.images.colour import to_uint8
from striate.images.decode import decode, decode_index, header
from striate.images.jpeg import Enough, Look

KINDS = ("classification", "multi-label", "segmentation")
HEADER_SAMPLE = 64


class Split:
    """Some rows of a pool of images, with their targets.

    targets: (N,) int64 class indices, (N, K) uint8 zeros and ones (multi-label), or None (masks).
    lookup: mask value -> class index, 255 = ignored, -1 = not allowed; None leaves the values as they are.
    """

    def __init__(
        self,
        name: str,
        pool: Pool,
        rows: Integers,
        targets: NDArray[Any] | None,
        *,
        masks: Pool | None = None,
        lookup: NDArray[np.int32] | None = None,
    ) -> None:
        if targets is not None and len(targets) != len(rows):
            raise ValueError(f"{len(rows)} images but {len(targets)} targets")
        self.name = name
        self.pool = pool
        self.rows = rows
        self.targets = targets
        self.masks = masks
        self.lookup = lookup

    @classmethod
    def from_arrays(
        cls,
        name: str,
        pictures: NDArray[np.uint8],
        targets: ArrayLike | None = None,
        *,
        masks: NDArray[Any] | None = None,
        names: Iterable[str] | None = None,
    ) -> Split:
        """A split in memory: pictures (N, H, W) or (N, H, W, C) uint8, targets or masks (N, H, W)."""
        stack = pictures[..., None] if pictures.ndim == 3 else pictures
        if stack.ndim != 4 or stack.dtype != np.uint8:
            raise StriateError(
                f"pictures of shape {pictures.shape} and type {pictures.dtype}",
                allowed="(N, H, W[, C]) uint8",
            )
        pool = ArrayPool(stack, names)
        if not len(pool.names) == len(stack):
            raise StriateError(f"{len(stack)} pictures but {len(pool.names)} names")
        values = None if targets is None else np.asarray(targets)
        if values is not None:
            values = values.astype(np.int64 if values.ndim == 1 else np.uint8)
        mask_pool = None if masks is None else ArrayPool(masks, pool.names)
        return cls(name, pool, np.arange(len(stack)), values, masks=mask_pool)

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def names(self) -> Sequence[str]:
        """The stable names of the images, in order."""
        return self.pool.names.take(self.rows)

    def name_of(self, index: int) -> str:
        """The name of image `index`."""
        return self.pool.names[int(self.rows[index])]

    def read(self, index: int) -> bytes:
        """The encoded bytes of image `index`; raises BadImage."""
        return self.pool.read(int(self.rows[index]))

    def image(
        self,
        index: int,
        *,
        at_least: int | Enough | None = None,
        channels: int = 3,
        look: Look | None = None,
    ) -> NDArray[np.uint8]:
        """Image `index` as (H, W, channels) uint8; `at_least` and `look` as in `images.decode.decode`.

        Raises:
            BadImage: it cannot be decoded; the text begins with its name.
        """
        row = int(self.rows[index])
        if self.pool.pictures is not None:
            return to_uint8(self.pool.pictures[row], channels)
        try:
            return decode(self.pool.read(row), at_least=at_least, channels=channels, look=look)
        except BadImage as error:
            raise _named(self.pool.names[row], error) from error

    def mask(self, index: int, sides: tuple[int, int] | None = None) -> NDArray[np.int32]:
        """The mask of image `index` as (H, W) int32 class indices; 255 = ignored.

        Raises:
            BadImage: it cannot be decoded, holds a value that is no class, or is not of `sides` where given.
        """
        if self.masks is None:
            raise StriateError(f"split {self.name!r} has no masks")
        row = int(self.rows[index])
        try:
            if self.masks.pictures is not None:
                values = np.asarray(self.masks.pictures[row], dtype=np.int32)
            else:
                values = decode_index(self.masks.read(row))
            if sides is not None and values.shape != sides:
                shapes = (
                    f"the mask is {values.shape[0]} x {values.shape[1]}, its image {sides[0]} x {sides[1]}"
                )
                raise BadImage(shapes, hint="turn or cut the one as the other; EXIF orientation counts")
            return values if self.lookup is None else _look_up(values, self.lookup)
        except BadImage as error:
            raise _named(self.masks.names[row], error) from error

    def select(self, indices: ArrayLike, name: str | None = None) -> Split:
        """The split of the images at `indices` (positions in this split, or a mask of booleans)."""
        chosen = np.asarray(indices)
        if chosen.size == 0:
            chosen = chosen.astype(np.int64)
        targets = None if self.targets is None else self.targets[chosen]
        return Split(
            name or self.name, self.pool, self.rows[chosen], targets, masks=self.masks, lookup=self.lookup
        )

    @cached_property
    def pictures(self) -> NDArray[np.uint8] | None:
        """All images as (N, H, W, C) uint8 where they are in memory already, else None."""
        whole = self.pool.pictures
        if whole is None:
            return None
        count = len(self.rows)
        if count and np.array_equal(self.rows, np.arange(self.rows[0], self.rows[0] + count)):
            return whole[self.rows[0] : self.rows[0] + count]
        chosen: NDArray[np.uint8] = whole[self.rows]
        return chosen

    def header_channels_size(self, index: int) -> tuple[int, int, int]:
        """(channels, height, width) of image `index` as decoded, without decoding; raises BadImage."""
        row = int(self.rows[index])
        if self.pool.pictures is not None:
            height, width, channels = self.pool.pictures.shape[1:]
            return channels, height, width
        try:
            facts = header(self.pool.read(row))
        except BadImage as error:
            raise _named(self.pool.names[row], error) from error
        return facts.channels, facts.height, facts.width

    def __repr__(self) -> str:
        return f"Split({self.name!r}, {len(self)} images)"


class Dataset:
    """Splits over one pool of images, the classes, and what was found on opening.

    bad: (name, reason) of the images left out; notes: what was decided on opening, one line each;
    problems: the errors that a lenient opening passed over.
    """

    def __init__(
        self,
        name: str,
        kind: str,
        classes: Sequence[str],
        splits: Mapping[str, Split] | Iterable[Split],
        *,
        path: str = "",
        bad: Iterable[tuple[str, str]] = (),
        notes: Iterable[str] = (),
        problems: Iterable[StriateError] = (),
    ) -> None:
        if kind not in KINDS:
            raise unknown("kind of data", kind, KINDS)
        self.name = name
        self.path = path
        self.kind = kind
        self.classes = tuple(classes)
        values = splits.values() if isinstance(splits, Mapping) else splits
        self.splits: dict[str, Split] = {split.name: split for split in values}
        self.bad = list(bad)
        self.notes = list(notes)
        self.problems = list(problems)

    def split(self, name: str) -> Split:
        """The split called `name`; `all` is every image of every split.

        Raises:
            StriateError: there is none; the list is given.
        """
        if name in self.splits:
            return self.splits[name]
        if name == "all":
            return self._all
        raise unknown("split", name, [*self.splits, "all"])

    @property
    def _all(self) -> Split:
        parts = list(self.splits.values())
        if len({id(part.pool) for part in parts}) != 1:
            raise StriateError(f"the splits of {self.name!r} do not share one pool", hint="name one split")
        rows = np.concatenate([part.rows for part in parts])
        targets = [part.targets for part in parts if part.targets is not None]
        joined = np.concatenate(targets) if targets else None
        return Split("all", parts[0].pool, rows, joined, masks=parts[0].masks, lookup=parts[0].lookup)

    def __len__(self) -> int:
        return sum(map(len, self.splits.values()))

    @cached_property
    def _sample(self) -> NDArray[np.int64]:
        """(channels, height, width) of up to 64 images spread over the splits."""
        found = []
        for split in self.splits.values():
            if split.pool.pictures is not None and len(split):
                found.append(split.header_channels_size(0))
                continue
            count = min(len(split), max(HEADER_SAMPLE // len(self.splits), 1))
            for index in np.linspace(0, len(split) - 1, count).astype(int):
                try:
                    found.append(split.header_channels_size(int(index)))
                except BadImage:
                    continue
        return np.array(found, dtype=np.int64).reshape(-1, 3)

    @property
    def channels(self) -> int:
        """1 when every image of a sample of 64 headers is grey, else 3."""
        return 1 if len(self._sample) and bool((self._sample[:, 0] == 1).all()) else 3

    @property
    def size(self) -> tuple[int, int] | None:
        """The (height, width) that all images of a sample of 64 headers share, or None."""
        sizes = {(int(h), int(w)) for h, w in self._sample[:, 1:]}
        return sizes.pop() if len(sizes) == 1 else None

    @property
    def median_size(self) -> tuple[int, int] | None:
        """The median (height, width) of a sample of 64 headers; None when no header can be read."""
        if not len(self._sample):
            return None
        height, width = np.median(self._sample[:, 1:], axis=0).astype(int)
        return int(height), int(width)

    def counts(self, split: str) -> Integers:
        """Images of each class in a split, (K,) int64; zeros for segmentation."""
        targets = self.split(split).targets
        if targets is None:
            return np.zeros(len(self.classes), np.int64)
        if targets.ndim == 2:
            summed: Integers = targets.sum(axis=0, dtype=np.int64)
            return summed
        return np.bincount(targets, minlength=len(self.classes)).astype(np.int64)

    def digest(self) -> str:
        """12 hex digits of the sha256 of kind, classes, splits, names and targets."""
        total = hashlib.sha256(json.dumps([self.kind, self.classes]).encode())
        for name in sorted(self.splits):
            split = self.splits[name]
            total.update(json.dumps([name, list(split.names)]).encode())
            if split.targets is not None:
                total.update(np.ascontiguousarray(split.targets).tobytes())
        return total.hexdigest()[:12]

    def describe(self) -> str:
        """A few lines for people: kind, classes, splits, sizes, what was decided, what is unreadable."""
        shown = ", ".join(self.classes[:12]) + (", ..." if len(self.classes) > 12 else "")
        splits = ", ".join(f"{name} {len(split):,}" for name, split in self.splits.items())
        size = self.size or self.median_size
        sizes = "unknown" if size is None else f"{size[0]} x {size[1]}" + ("" if self.size else " (median)")
        lines = [
            f"{self.name}: {self.kind}, {len(self.classes)} classes ({shown})",
            f"images: {splits}; height x width {sizes}; {'grey' if self.channels == 1 else 'colour'}",
            *self.notes,
            *(f"problem: {problem}" for problem in self.problems),
        ]
        if self.bad:
            first = "; ".join(reason for _, reason in self.bad[:3])
            lines.append(
                f"left out: {len(self.bad)} unreadable ({first}{'; ...' if len(self.bad) > 3 else ''})"
            )
        return "\n".join(lines)

    def scan(self, *, full: bool = False) -> list[tuple[str, str]]:
        """Read every header (`full`: decode) in threads; the unreadable leave the splits for `bad`.

        Returns the (name, reason) found now. Masks are decoded with `full`, and must have their image's size.
        """
        found: list[tuple[str, str]] = []
        with ThreadPoolExecutor(processors()) as threads:
            for name, split in list(self.splits.items()):
                if split.pool.pictures is not None:
                    continue
                reasons = list(threads.map(lambda i, s=split: _fault(s, i, full), range(len(split))))
                bad = np.array([reason is not None for reason in reasons], dtype=bool)
                found += [(split.name_of(i), str(reasons[i])) for i in np.flatnonzero(bad).tolist()]
                if bad.any():
                    self.splits[name] = split.select(np.flatnonzero(~bad))
        self.bad += found
        return found

    def aligned_to(self, classes: Sequence[str]) -> Dataset:
        """The same images with the targets of another list of classes, matched by name.

        Letter case, blanks, `-` and `_` do not count where the exact name is not found.

        Raises:
            StriateError: a class of the data is not in the list, or is there twice.
        """
        if tuple(classes) == self.classes:
            return self
        table = np.array([match_class(name, classes) for name in self.classes], dtype=np.int64)
        splits = []
        for split in self.splits.values():
            targets, lookup = split.targets, split.lookup
            if targets is None:
                lookup = renumber(lookup, table)
            elif targets.ndim == 2:
                wide = np.zeros((len(targets), len(classes)), np.uint8)
                wide[:, table] = targets
                targets = wide
            else:
                targets = table[targets]
            splits.append(
                Split(split.name, split.pool, split.rows, targets, masks=split.masks, lookup=lookup)
            )
        return Dataset(
            self.name, self.kind, classes, splits, path=self.path, bad=self.bad, notes=self.notes,
            problems=self.problems,
        )  # fmt: skip

    def write_splits(self, path: str | os.PathLike[str]) -> Path:
        """Write which image is in which split, as JSON; `open_data(..., split_file=path)` reads it back."""
        content = {
            "format": 1,
            "data": self.name,
            "digest": self.digest(),
            "classes": list(self.classes),
            "splits": {name: list(split.names) for name, split in self.splits.items()},
        }
        return write_text(path, json.dumps(content, indent=0) + "\n")

    def __repr__(self) -> str:
        return f"Dataset({self.name!r}, {self.kind}, {len(self.classes)} classes, {self.splits})"


def _fault(split: Split, index: int, full: bool) -> str | None:
    try:
        if not full:
            split.header_channels_size(index)
            return None
        sides = split.image(index).shape[:2]
        if split.masks is not None:
            split.mask(index, sides)
    except BadImage as error:
        return str(error)
    return None


def _look_up(values: NDArray[np.int32], lookup: NDArray[np.int32]) -> NDArray[np.int32]:
    if values.size and not 0 <= int(values.min()) <= int(values.max()) < len(lookup):
        raise BadImage(f"mask value {int(values.max())} is no class", hint="list every class in classes.txt")
    classes: NDArray[np.int32] = lookup[values]
    if values.size and int(classes.min()) < 0:
        first = int(values[classes < 0][0])
        raise BadImage(f"mask value {first} is no class", hint="list every class in classes.txt")
    return classes


def _named(name: str, error: BadImage) -> BadImage:
    if name in error.given:
        return error
    return BadImage(f"{name}: {error.given}", allowed=error.allowed, hint=error.hint)
