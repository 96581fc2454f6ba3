"""A folder of class folders, with or without train, val and test; the same inside an archive."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from operator import itemgetter

import numpy as np

from striate.core.errors import StriateError, near
from striate.data.formats import FORMATS, Options, Raw
from striate.data.splits import ORDER
from striate.data.trees import SPLIT_NAMES, UNREAD_SUFFIXES, Tree, natural, suffix
from striate.images.given import IMAGE_SUFFIXES

CLASS_LISTS = ("classes.txt", "labels.txt", "class_names.txt")


class ClassFolders:
    """One folder a class: CLASS/*.jpg, or train/CLASS/*.jpg, val/CLASS/*.jpg, test/CLASS/*.jpg.

    The class of an image is the first folder below the split; deeper folders do not count. Classes are in
    natural order, or in that of a classes.txt beside the folders. Spellings: train|training,
    val|valid|validation, test|testing.
    """

    def recognise(self, tree: Tree) -> bool:
        """Whether there are images in folders, or folders and nothing else."""
        return any("/" in file for file in tree.images) or (bool(tree.folders) and not tree.files)

    def open(self, tree: Tree, options: Options) -> Raw:
        """Read the names; raises StriateError, see `data.formats.open_data`."""
        images = tree.images
        if not images:
            raise no_images(tree)
        if any(folder.lower() == "jpegimages" for folder in tree.folders):
            raise StriateError(
                f"{tree.path!r} has the layout of detection data (JPEGImages)",
                allowed="class folders, tables, images with masks",
                hint="boxes are not read yet",
            )
        notes: list[str] = []
        split_of = _split_folders(tree, images, notes)
        members: dict[str, list[tuple[str, str]]] = {}
        loose = 0
        for path in images:
            parts = path.split("/")
            top = split_of.get(parts[0], "all") if split_of else "all"
            if len(parts) < (3 if split_of else 2) or (split_of and parts[0] not in split_of):
                loose += 1
                continue
            label = legible(parts[1 if split_of else 0])
            members.setdefault(top, []).append((label, path))
        if loose:
            notes.append(f"{loose:,} images outside class folders are left out")
        problems: list[StriateError] = []
        classes = _classes(tree, members, split_of, options, problems)
        number = {name: i for i, name in enumerate(classes)}
        paths: list[str] = []
        targets: list[int] = []
        rows: dict[str, np.ndarray] = {}
        for split in sorted(members, key=(*ORDER, "all").index):
            # The tree is in natural order, and sorting by class keeps it within each class.
            chosen = sorted(((number[label], path) for label, path in members[split]), key=itemgetter(0))
            rows[split] = np.arange(len(paths), len(paths) + len(chosen))
            targets += [target for target, _ in chosen]
            paths += [path for _, path in chosen]
        bad = [
            (file, f"{file}: {suffix(file)} files are not read: convert it to PNG or JPEG")
            for file in tree.files
            if suffix(file) in UNREAD_SUFFIXES
        ]
        return Raw(
            "classification", classes, tree.pool(paths), rows, np.array(targets, dtype=np.int64),
            notes=notes, problems=problems, bad=bad,
        )  # fmt: skip


FORMATS.register("class-folders", rank=40, what="a folder of class folders")(ClassFolders())


def no_images(tree: Tree) -> StriateError:
    """The error for a tree without images: what lies there instead."""
    kinds = Counter(suffix(file) or "files without suffix" for file in tree.files)
    found = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(4)) or "nothing"
    return StriateError(
        f"{tree.path!r} holds no images (found: {found})",
        allowed=", ".join(sorted(IMAGE_SUFFIXES)),
        hint="give a folder of class folders, an archive of it, or a table",
    )


def _split_folders(tree: Tree, images: list[str], notes: list[str]) -> dict[str, str]:
    """Top folder -> split, when the top folders are splits; else an empty mapping."""
    deep = {path.split("/", 1)[0] for path in images if path.count("/") >= 2}
    flat = {path.split("/", 1)[0] for path in images if path.count("/") == 1}
    found = {top: SPLIT_NAMES[top.lower()] for top in sorted(deep) if top.lower() in SPLIT_NAMES}
    if not found:
        return {}
    for split in set(found.values()):
        same = [top for top, other in found.items() if other == split]
        if len(same) > 1:
            raise StriateError(
                f"{tree.path!r} has two folders for one split ({' and '.join(same)})", hint="keep one of them"
            )
    others = sorted((deep | flat) - set(found))
    strange = [top for top in others if top.lower() not in SPLIT_NAMES]
    if strange:
        raise StriateError(
            f"{tree.path!r} has split folders ({', '.join(found)}) and other folders with images "
            f"({', '.join(strange[:5])}) side by side",
            hint="move the class folders into train/, val/ and test/, or the others away",
        )
    notes += [f"{top}/ has no class folders and is left out" for top in others]
    return found


def _classes(
    tree: Tree,
    members: dict[str, list[tuple[str, str]]],
    split_of: dict[str, str],
    options: Options,
    problems: list[StriateError],
) -> tuple[str, ...]:
    seen = {split: {label for label, _ in items} for split, items in members.items()}
    classes = sorted(set().union(*seen.values()), key=natural)
    for folder in _empty(tree, split_of):
        problems.append(
            StriateError(
                f"the class folder {folder!r} in {tree.path!r} holds no images",
                hint="put images in, or remove the folder",
            )
        )
    if "train" in seen:
        for split in seen:
            for label in sorted(seen[split] - seen["train"], key=natural):
                close = near(label, seen["train"], 1)
                problems.append(
                    StriateError(
                        f"class {label!r} is in {split} but not in train"
                        + (f"; did you mean {close[0]!r}?" if close else ""),
                        hint="give every class training images, or rename the folder",
                    )
                )
    listed = _listed(tree)
    if listed and set(classes) <= set(listed):
        for label in listed:
            if label not in set(classes):
                problems.append(
                    StriateError(
                        f"class {label!r} is in the class list of {tree.path!r} but has no images",
                        hint="add images, or take the class out of the list",
                    )
                )
        classes = listed
    if len(classes) < 2 and options.classes is None:
        problems.append(one_class(tree.path, classes))
    return tuple(classes)


def legible(name: str) -> str:
    """A file name as a class name: bytes that are not UTF-8 become escapes such as \\xe9."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def one_class(path: str, classes: Iterable[str], hint: str = "") -> StriateError:
    """The error for data with a single class."""
    return StriateError(
        f"{path!r} has one class only ({', '.join(map(repr, classes)) or 'none'})",
        hint=f"a classifier needs at least two: {hint or 'give the folder above the class folders'}",
    )


def _empty(tree: Tree, split_of: dict[str, str]) -> list[str]:
    """Class folders without an image; of data with splits also those of the training split."""
    filled: set[str] = set()
    for folder in {path.rpartition("/")[0] for path in tree.images}:
        parts = folder.split("/")
        filled.update("/".join(parts[:depth]) for depth in range(1, len(parts) + 1))
    depth = 1 if split_of else 0
    return [
        folder
        for folder in tree.folders
        if folder.count("/") == depth
        and folder not in filled
        and (not split_of or folder.split("/")[0] in split_of)
    ]


def _listed(tree: Tree) -> list[str]:
    for name in CLASS_LISTS:
        if name in tree.files:
            lines = [line.strip() for line in tree.read_text(name).splitlines()]
            return [line for line in lines if line]
    return []
