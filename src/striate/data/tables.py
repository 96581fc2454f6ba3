"""Tables of images: CSV and TSV with a path, a label or several, and perhaps a split."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

import numpy as np

from striate.core.errors import StriateError, unknown
from striate.data.folder import one_class
from striate.data.formats import FORMATS, TABLE_SUFFIXES, Options, Raw
from striate.data.splits import ORDER
from striate.data.trees import SPLIT_NAMES, Tree, is_image, natural, stem, suffix

PATHS = ("path", "file", "filename", "file_name", "image", "image_path", "img", "name", "id")
LABELS = ("label", "labels", "class", "class_name", "category", "target", "tags", "species", "y", "index")
SPLITS = ("split", "set", "subset", "fold", "partition")


class Table:
    """A .csv or .tsv: path, label[, split]; several labels of one image are separated by `;` (multi-label).

    A header is optional: without one the columns are path, label, split. Paths are relative to the
    table. On disk they may be absolute or leave the folder by `..`; inside an archive they may not. Images
    that are missing are listed and left out, unless most are. Several tables called train.csv,
    val.csv, test.csv give the splits.
    """

    def recognise(self, tree: Tree) -> bool:
        """Whether a table lies at the top whose header, or first row, names images."""
        return bool(_tables(tree))

    def open(self, tree: Tree, options: Options) -> Raw:
        """Read the rows; raises StriateError, see `data.formats.open_data`."""
        paths: list[str] = []
        labels: list[str] = []
        splits: list[str] = []
        notes: list[str] = []
        tables = _tables(tree)
        given = f"{tree.path}/{tables[0]}" if len(tables) == 1 else tree.path
        for name in tables:
            rows = _rows(tree, name)
            columns = _columns(rows[0], tree, name, options, rows[1:])
            notes += [f"labels: column {rows[0][columns[1]]!r} of {name}"] if columns[3] else []
            _read(rows[1:] if columns[3] else rows, columns, name, paths, labels, splits)
        if not paths:
            raise StriateError(f"the table {given!r} has no rows", hint="write one row an image: path, label")
        every = labels
        paths, labels, splits, bad = _existing(tree, paths, labels, splits)
        paths, labels, splits = _unique(paths, labels, splits, notes)
        if options.classes is not None and _are_indices(labels, options.classes):
            classes: tuple[str, ...] = options.classes
            targets = np.array([int(label) for label in labels], dtype=np.int64)
            kind = "classification"
        else:
            kind, classes, targets = _targets(labels)
        problems = [] if options.classes is not None else _problems(given, classes, every, bad)
        order = (*ORDER, "all")
        by_split = sorted(range(len(paths)), key=lambda i: order.index(splits[i]))
        assigned = np.array([order.index(splits[i]) for i in by_split])
        return Raw(
            kind,
            classes,
            tree.pool([paths[i] for i in by_split]),
            {name: np.flatnonzero(assigned == n) for n, name in enumerate(order) if (assigned == n).any()},
            targets[by_split],
            notes=notes,
            problems=problems,
            bad=bad,
            columns=True,
        )


FORMATS.register("table", rank=30, what="a table (.csv, .tsv) of paths and labels")(Table())


def _tables(tree: Tree) -> list[str]:
    tops = [file for file in tree.files if "/" not in file and suffix(file) in TABLE_SUFFIXES]
    if len(tops) == 1 and len(tree.files) == 1 and tree.on_disk:
        return tops
    good = [name for name in tops if _names_images(tree, name)]
    by_split = [name for name in good if stem(name).lower() in SPLIT_NAMES]
    return by_split or good[:1]


def _names_images(tree: Tree, name: str) -> bool:
    head = _rows(tree, name, at_most=2)
    if not head:
        return False
    plain = [cell.strip().lower() for cell in head[0]]
    known = _first(plain, PATHS)
    row = head[1] if known is not None and len(head) > 1 else head[0]
    cell = row[known or 0] if len(row) > (known or 0) else ""
    return len(row) > 1 and is_image(cell)


def _rows(tree: Tree, name: str, at_most: int | None = None) -> list[list[str]]:
    text = tree.read_text(name)
    mark = "\t" if suffix(name) == ".tsv" else _separator(text)
    try:
        found = []
        for row in csv.reader(io.StringIO(text), delimiter=mark):
            if any(cell.strip() for cell in row):
                found.append([cell.strip() for cell in row])
            if at_most is not None and len(found) >= at_most:
                break
    except csv.Error as error:
        raise StriateError(
            f"the table {name!r} cannot be read ({error})", hint="save it as plain CSV"
        ) from error
    if not found and at_most is None:
        raise StriateError(f"the table {name!r} is empty", hint="write one row an image: path, label")
    return found


def _separator(text: str) -> str:
    """`,` unless the first line has none, but a tab or a `;`."""
    line = text.split("\n", 1)[0]
    return next((mark for mark in (",", "\t", ";") if mark in line), ",")


def _first(names: Sequence[str], wanted: Sequence[str]) -> int | None:
    return next((names.index(name) for name in wanted if name in names), None)


def _columns(
    head: list[str], tree: Tree, name: str, options: Options, rows: list[list[str]]
) -> tuple[int, int, int | None, bool]:
    """The places of path, label and split, and whether the first row is a header."""
    plain = [cell.lower() for cell in head]
    path, label, split = _first(plain, PATHS), _first(plain, LABELS), _first(plain, SPLITS)
    header = not any(is_image(cell) for cell in head)
    if not header:
        if options.label_column is not None:
            raise StriateError(f"the table {name!r} has no header", hint="add one to choose a label column")
        if len(head) < 2:
            raise StriateError(f"the table {name!r} has one column", hint="write path, label in each row")
        return 0, 1, 2 if len(head) > 2 and head[2].lower() in SPLIT_NAMES else None, False
    if options.label_column is not None:
        if options.label_column.lower() not in plain:
            raise unknown("column", options.label_column, head)
        label = plain.index(options.label_column.lower())
    elif options.classes is not None and "index" in plain and label is not None:
        cells = {row[label] for row in rows if len(row) > label}
        if not cells <= set(options.classes):
            label = plain.index("index")
    if path is None or label is None:
        lacking = "path" if path is None else "label"
        raise StriateError(
            f"the table {name!r} has no {lacking} column (its header: {', '.join(head)})",
            allowed=", ".join(PATHS if path is None else LABELS),
            hint="rename a column" + ("" if path is None else " or give label_column"),
        )
    return path, label, split, True


def _read(
    rows: list[list[str]],
    columns: tuple[int, int, int | None, bool],
    name: str,
    paths: list[str],
    labels: list[str],
    splits: list[str],
) -> None:
    path, label, split, header = columns
    whole = SPLIT_NAMES.get(stem(name).lower(), "all")
    for number, row in enumerate(rows, start=2 if header else 1):
        if len(row) <= max(path, label) or not row[path] or not row[label]:
            raise StriateError(
                f"row {number} of {name!r} lacks a path or a label", hint="complete or remove it"
            )
        chosen = whole
        if split is not None and len(row) > split and row[split]:
            if row[split].lower() not in SPLIT_NAMES:
                raise StriateError(
                    f"row {number} of {name!r} has the split {row[split]!r}", allowed=sorted(set(SPLIT_NAMES))
                )
            chosen = SPLIT_NAMES[row[split].lower()]
        paths.append(row[path].replace("\\", "/").removeprefix("./"))
        labels.append(row[label])
        splits.append(chosen)


def _existing(
    tree: Tree, paths: list[str], labels: list[str], splits: list[str]
) -> tuple[list[str], list[str], list[str], list[tuple[str, str]]]:
    there = [tree.exists(path) for path in paths]
    bad = [(p, f"{p}: named in the table, but missing") for p, ok in zip(paths, there, strict=True) if not ok]
    if 2 * len(bad) > len(paths):
        raise StriateError(
            f"{len(bad):,} of {len(paths):,} images of {tree.path!r} are missing (the first: {bad[0][0]!r})",
            hint="paths are relative to the table: put it beside the images, or write the paths anew",
        )
    keep = [i for i, ok in enumerate(there) if ok]
    return [paths[i] for i in keep], [labels[i] for i in keep], [splits[i] for i in keep], bad


def _unique(
    paths: list[str], labels: list[str], splits: list[str], notes: list[str]
) -> tuple[list[str], list[str], list[str]]:
    """One row an image, in natural order; a row given twice counts once."""
    first: dict[str, int] = {}
    twice = 0
    for i, path in enumerate(paths):
        j = first.setdefault(path, i)
        if j != i:
            twice += 1
            if (labels[i], splits[i]) != (labels[j], splits[j]):
                raise StriateError(
                    f"{path!r} is in the table as {labels[j]!r} ({splits[j]}), {labels[i]!r} ({splits[i]})",
                    hint="keep one row; several labels of one image go in one cell, separated by ;",
                )
    if twice:
        notes.append(f"{twice:,} rows of the table are there twice and count once")
    keep = [first[path] for path in sorted(first, key=natural)]
    return [paths[i] for i in keep], [labels[i] for i in keep], [splits[i] for i in keep]


def _problems(
    given: str, classes: tuple[str, ...], labels: list[str], bad: list[tuple[str, str]]
) -> list[StriateError]:
    """What makes a table useless for training: classes without an image, or a single class."""
    lost = [name for name in _targets(labels)[1] if name not in classes]
    if lost:
        return [
            StriateError(
                f"class {lost[0]!r} of the table {given!r} has no images: all that it names are missing"
                + (f", and so it is with {len(lost) - 1} more" if len(lost) > 1 else ""),
                hint=f"put them there ({bad[0][0]!r} is missing), or take the class out of the table",
            )
        ]
    return [one_class(given, classes, "add rows of another class")] if len(classes) < 2 else []


def _are_indices(labels: Sequence[str], classes: Sequence[str]) -> bool:
    if set(labels) <= set(classes):
        return False
    return all(_is_index(label, len(classes)) for label in labels)


def _is_index(label: str, count: int) -> bool:
    # Python refuses to read numbers of thousands of digits.
    return label.isascii() and label.isdigit() and len(label) < 10 and int(label) < count


def _targets(labels: list[str]) -> tuple[str, tuple[str, ...], np.ndarray]:
    several = [[part.strip() for part in label.split(";") if part.strip()] for label in labels]
    classes = tuple(sorted({name for parts in several for name in parts}, key=natural))
    number = {name: i for i, name in enumerate(classes)}
    if all(len(parts) == 1 and ";" not in label for parts, label in zip(several, labels, strict=True)):
        return "classification", classes, np.array([number[parts[0]] for parts in several], dtype=np.int64)
    marks = np.zeros((len(labels), len(classes)), dtype=np.uint8)
    for row, parts in enumerate(several):
        marks[row, [number[name] for name in parts]] = 1
    return "multi-label", classes, marks
