"""Opening data by path or by name: the registry of formats, and the one function that opens everything."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from striate.core.errors import StriateError, near, unknown
from striate.core.files import place_of
from striate.core.registry import Registry
from striate.data.archives import archive_tree, is_archive
from striate.data.classes import match_class
from striate.data.pools import Integers, JoinedPool, Pool
from striate.data.samples import Dataset, Split
from striate.data.splits import ORDER, carve, read_splits
from striate.data.trees import SPLIT_NAMES, FilesTree, FolderTree, Tree, is_image, suffix

TABLE_SUFFIXES = (".csv", ".tsv")


@dataclass(frozen=True)
class Options:
    """How a format shall read: `label_column` of a table, and the `classes` of a model to label by."""

    label_column: str | None = None
    classes: tuple[str, ...] | None = None


@dataclass
class Raw:
    """What a format finds: all images in one pool, and the splits that the data come with (or `all`).

    targets: by row of the pool, as in `Split`, or None. ordered: neighbouring images look alike (slices,
    frames), so that a random split would leak. problems: errors that a lenient opening passes over. columns:
    labels are from columns of a table.
    """

    kind: str
    classes: tuple[str, ...]
    pool: Pool
    splits: dict[str, Integers]
    targets: NDArray[Any] | None = None
    masks: Pool | None = None
    lookup: NDArray[np.int32] | None = None
    ordered: bool = False
    notes: list[str] = field(default_factory=list)
    problems: list[StriateError] = field(default_factory=list)
    bad: list[tuple[str, str]] = field(default_factory=list)
    columns: bool = False

    def split(self, name: str, rows: Integers) -> Split:
        """The images at these rows of the pool as a split."""
        targets = None if self.targets is None else self.targets[rows]
        return Split(name, self.pool, rows, targets, masks=self.masks, lookup=self.lookup)


class Format(Protocol):
    """One layout of files. `rank` in its registration orders the asking: the smallest is asked first."""

    def recognise(self, tree: Tree) -> bool:
        """Whether the tree has this layout; looks at names, and at the first lines of tables."""

    def open(self, tree: Tree, options: Options) -> Raw:
        """Read it; raises StriateError."""


FORMATS: Registry[Format] = Registry("data format", "striate.data")
NAMED: Registry[Callable[[Options], Raw]] = Registry("data set", "striate.data")


def open_data(
    spec: str | os.PathLike[str] | Dataset,
    *,
    val: float = 0.1,
    test: float = 0.2,
    seed: int = 0,
    split_file: str | os.PathLike[str] | None = None,
    contiguous: bool | None = None,
    label_column: str | None = None,
    classes: Sequence[str] | None = None,
    strict: bool = True,
) -> Dataset:
    """Open a data set by path (folder, .zip, .tar, .csv, .tsv, IDX), by name, or as `train=PATH,test=PATH`.

    Data without splits: `test` of all images become the test split (test=1: every one), then `val` of the
    rest the validation split; data with a training split only lack `val`, drawn from it. Draws are stratified
    and seeded; contiguous: the last images in natural order instead (None: for numbered slices or frames).
    split_file: read the splits that `Dataset.write_splits` wrote. classes: the targets index this list (a
    model's classes). strict=False: empty or single classes are kept as `Dataset.problems`.

    Raises:
        StriateError: nothing there, no images, a format that is not known, or a problem of the data.
    """
    options = Options(label_column, None if classes is None else tuple(classes))
    if isinstance(spec, Dataset):
        return spec if classes is None else spec.aligned_to(classes)
    text = os.fspath(spec)
    if not text.strip():
        # As a path it would be the current folder: a variable of a script that is not set.
        raise StriateError("no data given", hint="give a folder of images, an archive, a .csv or a name")
    raw = _resolve(text, options)
    if label_column is not None and not raw.columns:
        raise StriateError(
            f"label_column is {label_column!r}, but the labels of {text!r} are not from a table",
            hint="leave it out, or give a .csv or .tsv",
        )
    if strict and raw.problems:
        raise raw.problems[0]
    names = raw.pool.names
    if split_file is not None:
        splits = read_splits(split_file, names)
        left = sum(map(len, raw.splits.values())) - sum(map(len, splits.values()))
        notes = [f"splits from {os.fspath(split_file)}" + (f"; {left:,} images in none" if left else "")]
    else:
        ordered = raw.ordered if contiguous is None else contiguous
        splits, notes = carve(
            names, raw.targets, raw.splits, val=val, test=test, seed=seed, contiguous=ordered
        )
    parts = [raw.split(name, rows) for name, rows in splits.items()]
    dataset = Dataset(
        _title(text), raw.kind, raw.classes, parts, path=text, bad=raw.bad, notes=raw.notes + notes,
        problems=raw.problems,
    )  # fmt: skip
    return dataset if classes is None else dataset.aligned_to(classes)


_PARTS = re.compile(rf"(?:^|,)\s*({'|'.join(SPLIT_NAMES)})=", re.IGNORECASE)


def _resolve(spec: str, options: Options) -> Raw:
    pieces = _PARTS.split(spec)
    if len(pieces) > 1 and not pieces[0]:
        return _joined(dict(zip(pieces[1::2], pieces[2::2], strict=True)), options)
    if not ("/" in spec or os.sep in spec) and spec in NAMED:
        return NAMED.get(spec)(options)
    return open_path(spec, options)


def open_path(path: str | os.PathLike[str], options: Options = Options()) -> Raw:
    """Open what lies at `path` by the first format that recognises it; siblings of a `train` archive too.

    Raises:
        StriateError: as `open_data`.
    """
    place = place_of(path)
    if not place.exists():
        raise _missing(os.fspath(path), place)
    if place.is_dir():
        if siblings := _archives_in(place):
            return _joined(siblings, options)
        return _open_tree(FolderTree(place), options)
    if is_archive(place):
        siblings = _siblings(place)
        raw = _open_tree(archive_tree(place), options)
        if siblings and set(raw.splits) <= {"train", "all"}:
            raw = _joined({"train": os.fspath(place), **siblings}, options, raw)
            raw.notes += [
                f"{split} split: {other}, found beside {place.name}" for split, other in siblings.items()
            ]
        return raw
    if is_image(place.name):
        raise StriateError(
            f"{os.fspath(path)!r} is one image", hint="give the folder, archive or table of a data set"
        )
    if suffix(place.name) in TABLE_SUFFIXES:
        return _open_tree(FilesTree(place.parent, [place.name]), options)
    beside = [entry.name for entry in _listed(place.parent) if entry.is_file()] or [place.name]
    # Files that belong together, such as IDX; a table beside this file is another data set.
    parts = [n for n in beside if not is_image(n) and suffix(n) not in TABLE_SUFFIXES]
    return _open_tree(FilesTree(place.parent, parts), options, place.name)


def _open_tree(tree: Tree, options: Options, wanted: str | None = None) -> Raw:
    for entry in sorted(FORMATS, key=lambda entry: (entry.capabilities.get("rank", 100), entry.name)):
        if entry.value.recognise(tree):
            return entry.value.open(tree, options)
    given = tree.path if wanted is None else f"{tree.path}/{wanted}"
    raise StriateError(
        f"{given!r} holds no data set that Striate knows (no images with labels)",
        allowed=[str(entry.capabilities.get("what", entry.name)) for entry in FORMATS],
        hint="or a .zip or .tar of one",
    )


def _missing(spec: str, place: Path) -> StriateError:
    if "/" not in spec and os.sep not in spec and not place.suffix:
        close = near(spec, NAMED.names())
        if close:
            return unknown("data set", spec, NAMED.names(), hint="or give the path of a folder or file")
    parent = place.parent
    while not parent.is_dir() and parent != parent.parent:
        parent = parent.parent
    names = [entry.name for entry in _listed(parent)]
    wanted = place.relative_to(parent).parts[0] if place != parent else place.name
    close = near(wanted, names)
    guess = f"did you mean {' or '.join(repr(str(parent / name)) for name in close)}? G" if close else "g"
    return StriateError(
        f"there is no {spec!r}",
        hint=f"{guess}ive the path of a folder, archive or table, or a name: {', '.join(NAMED.names())}",
    )


def _title(spec: str) -> str:
    if "=" in spec:
        return spec
    name = Path(spec).expanduser().absolute().name
    return (
        re.sub(r"(\.tar)?\.(zip|tar|gz|tgz|bz2|tbz2|xz|txz|csv|tsv)$", "", name, flags=re.IGNORECASE) or spec
    )


def _listed(folder: Path) -> list[Path]:
    """What lies in a folder; nothing where it may not be read, which walking through it tells."""
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


_SPLIT_ARCHIVE = re.compile(rf"^(|.*?[-_. ])({'|'.join(SPLIT_NAMES)})(\.[a-z0-9.]+)$", re.IGNORECASE)


def _siblings(place: Path) -> dict[str, str]:
    """Split name -> path of the archives called like `place`, an archive for training, but for the split."""
    mine = _SPLIT_ARCHIVE.match(place.name)
    if mine is None or SPLIT_NAMES[mine[2].lower()] != "train":
        return {}
    found: dict[str, str] = {}
    for entry in _listed(place.parent):
        other = _SPLIT_ARCHIVE.match(entry.name)
        if other and (other[1], other[3].lower()) == (mine[1], mine[3].lower()):
            split = SPLIT_NAMES[other[2].lower()]
            if split != "train" and is_archive(entry):
                found[split] = str(entry)
    return found


def _archives_in(folder: Path) -> dict[str, str]:
    """Split name -> path of the one set of archives (NAME-train.zip, ...) that the folder consists of."""
    entries = _listed(folder)
    archives = [entry for entry in entries if entry.is_file() and is_archive(entry)]
    folders = [entry for entry in entries if entry.is_dir() and not entry.name.startswith((".", "__"))]
    images = any(is_image(entry.name) for entry in entries)
    if not archives or (len(archives) == 1 and (folders or images)):
        return {}
    heads = [
        a for a in archives if (m := _SPLIT_ARCHIVE.match(a.name)) and SPLIT_NAMES[m[2].lower()] == "train"
    ]
    if not folders and not images:
        if len(heads) == 1 and len(_siblings(heads[0])) + 1 == len(archives):
            return {"train": str(heads[0]), **_siblings(heads[0])}
        if len(archives) == 1:
            return {"all": str(archives[0])}
    if any(entry.name.lower() in SPLIT_NAMES for entry in folders):
        return {}
    raise StriateError(
        f"{str(folder)!r} holds several archives",
        allowed=[str(archive) for archive in archives[:12]],
        hint="give one of them, or train=PATH,test=PATH",
    )


def _joined(paths: dict[str, str], options: Options, opened: Raw | None = None) -> Raw:
    """One data set of several paths, one for each split; classes are matched by name to the first one's.

    opened: the training data, where they are open already.
    """
    raws: dict[str, Raw] = {}
    for given, path in paths.items():
        split = SPLIT_NAMES.get(given.lower(), given)
        if split in raws:
            raise StriateError(f"two paths are given for the split {split!r}", hint="give one path a split")
        path = path.strip()
        if opened is not None and split == "train":
            raws[split] = opened
            continue
        place = place_of(path)
        raws[split] = (
            _open_tree(archive_tree(place), options)
            if place.is_file() and is_archive(place)
            else open_path(path, options)
        )
    if list(raws) == ["all"]:
        return raws["all"]
    first = raws[min(raws, key=lambda name: ORDER.index(name) if name in ORDER else 9)]
    rows: dict[str, Integers] = {}
    names: list[str] = []
    targets = []
    notes: list[str] = []
    for split, raw in raws.items():
        if raw.kind != first.kind:
            raise StriateError(f"the {split} data are for {raw.kind}, the others for {first.kind}")
        if (raw.lookup is None) != (first.lookup is None) or (
            raw.lookup is not None
            and first.lookup is not None
            and not np.array_equal(raw.lookup, first.lookup)
        ):
            raise StriateError(
                f"the masks of the {split} data have other values", hint="add classes.txt to each"
            )
        rows[split] = _only(raw, split, paths.get(split, split)) + len(names)
        names += raw.pool.names
        if raw.targets is not None:
            targets.append(_retarget(raw, first.classes))
        notes += [note for note in raw.notes if note not in notes]
    if len(set(names)) < len(names):
        names = [f"{split}/{name}" for split, raw in raws.items() for name in raw.pool.names]
    masks = [raw.masks for raw in raws.values() if raw.masks is not None]
    return Raw(
        first.kind,
        first.classes,
        JoinedPool([raw.pool for raw in raws.values()], names),
        rows,
        np.concatenate(targets) if targets else None,
        JoinedPool(masks, names) if masks else None,
        first.lookup,
        first.ordered,
        notes,
        first.problems,
        [item for raw in raws.values() for item in raw.bad],
        any(raw.columns for raw in raws.values()),
    )


def _only(raw: Raw, split: str, path: str) -> Integers:
    if split in raw.splits:
        return raw.splits[split]
    if len(raw.splits) == 1:
        return next(iter(raw.splits.values()))
    raise StriateError(
        f"{path!r} holds the splits {', '.join(raw.splits)}", hint=f"none of them is {split!r}"
    )


def _retarget(raw: Raw, classes: tuple[str, ...]) -> NDArray[Any]:
    table = np.array([match_class(name, classes) for name in raw.classes], dtype=np.int64)
    assert raw.targets is not None
    if raw.targets.ndim == 1:
        narrow: Integers = table[raw.targets]
        return narrow
    wide = np.zeros((len(raw.targets), len(classes)), np.uint8)
    wide[:, table] = raw.targets
    return wide
