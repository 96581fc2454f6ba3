"""Segmentation: images with masks that hold a class index for each pixel."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from striate.core.errors import BadImage, StriateError
from striate.data.formats import FORMATS, Options, Raw
from striate.data.pools import IGNORE, Integers, Pool
from striate.data.splits import ORDER
from striate.data.trees import SPLIT_NAMES, Tree, is_image, natural, stem, suffix
from striate.images.decode import decode_index

IMAGE_FOLDERS = frozenset(
    ("images", "image", "imgs", "img", "jpegimages", "frames", "slices", "inputs", "leftimg8bit")
)
_MASK_WORDS = "masks mask labels label annotations annotation annots annot targets groundtruth gt gtfine"
MASK_FOLDERS = frozenset((*_MASK_WORDS.split(" "), "segmentationclass", "segmentationclassraw"))
MASK_ENDS = re.compile(r"(?:[-_]?(?:annot|annots|masks?|labels?|gt))$", re.IGNORECASE)
IMAGE_ENDS = re.compile(r"[-_](?:images?|imgs?|frames)$", re.IGNORECASE)
# They hold no exact class numbers, which reading them tells; beside a mask of another kind they are no mask.
LOSSY_SUFFIXES = frozenset((".jpg", ".jpeg", ".jpe", ".jfif", ".webp"))
CLASS_FILES = ("classes.txt", "classes.tsv", "classes.csv", "labels.txt", "label_names.txt")
IGNORED_NAMES = frozenset(("void", "ignore", "ignored", "unlabelled", "unlabeled"))
MASK_SAMPLE = 256
MOST_UNNAMED = 64
NUMBERED = re.compile(r"^(.*?)[0-9]+$")


@dataclass(frozen=True)
class Legend:
    """The classes of a mask, and the table from mask value to class (255 = ignored, -1 = not allowed)."""

    classes: tuple[str, ...]
    lookup: NDArray[np.int32]
    note: str


class Pairs:
    """Images and index masks of the same names: images/ + labels|masks|annotations/, train/ + trainannot/.

    An image and a mask belong together when their paths agree once the words for images and masks
    are taken out of the folders (train/images/a.jpg and train/masks/a.png; train/a.jpg and trainannot/a.png;
    images/a.jpg and labels/a_mask.png). Which values are which classes says `legend`.
    """

    def recognise(self, tree: Tree) -> bool:
        """Whether at least half of the images in mask folders belong to an image."""
        if not any(_mask_folder(folder.rpartition("/")[2]) for folder in tree.folders):
            return False
        images, masks = _sides(tree)
        matched = sum(key in images for key in masks)
        return matched > 0 and 2 * matched >= len(masks)

    def open(self, tree: Tree, options: Options) -> Raw:
        """Pair the files and find the classes; raises StriateError, see `data.formats.open_data`."""
        images, masks = _sides(tree, strict=True)
        keys = [key for key in images if key in masks]
        alone = [images[key] for key in images if key not in masks]
        notes = []
        if alone:
            notes.append(f"{len(alone):,} images without a mask are left out (the first: {alone[0]})")
        if spare := [masks[key] for key in masks if key not in images]:
            notes.append(f"{len(spare):,} masks without an image are left out (the first: {spare[0]})")
        tops = {key: _split(key) for key in keys}
        order = (*ORDER, "all")
        keys.sort(key=lambda key: (order.index(tops[key]), natural("/".join(key))))
        assigned = np.array([order.index(tops[key]) for key in keys])
        rows = {name: np.flatnonzero(assigned == n) for n, name in enumerate(order) if (assigned == n).any()}
        mask_pool = tree.pool([masks[key] for key in keys])
        found = legend(tree, mask_pool)
        notes.append(found.note)
        problems = []
        if len(found.classes) < 2:
            problems.append(
                StriateError(
                    f"the masks of {tree.path!r} hold one class only", hint="a segmenter needs at least two"
                )
            )
        return Raw(
            "segmentation",
            found.classes,
            tree.pool([images[key] for key in keys]),
            rows,
            masks=mask_pool,
            lookup=found.lookup,
            ordered=_numbered(keys),
            notes=notes,
            problems=problems,
        )


FORMATS.register("pairs", rank=10, what="images with index masks")(Pairs())


def legend(tree: Tree, masks: Pool) -> Legend:
    """Which mask value is which class.

    With a class file (one name a line, or columns index and name): the values are its indices; 255 and
    classes called void, ignore or unlabelled are ignored. Where the values are as many as the names
    but others (0 and 255 for two names), they are the names in rising order. A value 0 that has no name is
    the class background. Without a class file the values of up to 256 masks (at most 64 values) are the
    classes in rising order; 255 is ignored when at least two other values occur.

    Raises:
        StriateError: masks that cannot be read, more than 255 classes, or values that are no class.
    """
    values = _values(masks)
    named = _class_file(tree)
    if named is None:
        if len(values) > MOST_UNNAMED:
            raise StriateError(
                f"the masks of {tree.path!r} hold {len(values):,} values up to {values[-1]:,}: these look "
                "like object numbers, not classes",
                hint="write the class index of each pixel, and list the classes in classes.txt",
            )
        ignored = IGNORE in values and len(values) > 2
        kept = [int(value) for value in values if not (ignored and value == IGNORE)]
        note = f"mask values {_some(kept)} are the classes" + ("; 255 is ignored" if ignored else "")
        return Legend(tuple(map(str, kept)), _table(kept, list(range(len(kept)))), note)
    numbers, names = named
    if 0 not in numbers and 0 in values and set(map(int, values)) <= {0, IGNORE, *numbers}:
        numbers, names = [0, *numbers], ["background", *names]
    kept_names = [name for name in names if name.lower() not in IGNORED_NAMES]
    strange = sorted(set(map(int, values)) - set(numbers) - {IGNORE})
    if strange or (IGNORE in values and len(values) == 2 == len(names) and IGNORE not in numbers):
        if len(values) != len(names):
            raise StriateError(
                f"the masks of {tree.path!r} hold values that are no class ({_some(strange)})",
                allowed=_some(numbers),
                hint="complete the class file",
            )
        numbers = [int(value) for value in values]
    indices = [IGNORE if name.lower() in IGNORED_NAMES else kept_names.index(name) for name in names]
    left = [name for name in names if name not in kept_names]
    note = (
        f"classes from the class file{f'; {_some(left)} and 255 are ignored' if left else '; 255 is ignored'}"
    )
    return Legend(tuple(kept_names), _table(numbers, indices), note)


def _table(values: list[int], classes: list[int]) -> NDArray[np.int32]:
    lookup = np.full(max(256, max(values, default=0) + 1), -1, dtype=np.int32)
    lookup[IGNORE] = IGNORE
    lookup[values] = classes
    return lookup


def _values(masks: Pool) -> Integers:
    """The distinct values of up to 256 masks, evenly spread, in rising order."""
    count = len(masks.names)
    found: set[int] = set()
    failure: BadImage | None = None
    for row in np.unique(np.linspace(0, count - 1, min(count, MASK_SAMPLE)).astype(int)):
        try:
            mask = decode_index(masks.read(int(row)))
        except BadImage as error:
            failure = BadImage(
                f"{masks.names[int(row)]}: {error.given}", allowed=error.allowed, hint=error.hint
            )
            continue
        found.update(np.flatnonzero(np.bincount(mask.ravel())).tolist())
    if not found and failure is not None:
        raise failure
    return np.array(sorted(found), dtype=np.int64)


def _class_file(tree: Tree) -> tuple[list[int], list[str]] | None:
    """The indices and the names in the class file at the top of the tree, or None."""
    path = next((name for name in CLASS_FILES if name in tree.files), None)
    if path is None:
        return None
    mark = {".tsv": "\t", ".csv": ","}.get(suffix(path))
    lines = [line.strip() for line in tree.read_text(path).splitlines() if line.strip()]
    cells = [
        line.split(mark) if mark else re.split(r"\t|(?<=^[0-9])\s+|(?<=^[0-9]{2})\s+", line) for line in lines
    ]
    if cells and len(cells[0]) > 1 and not cells[0][0].strip().isdigit():
        cells = cells[1:]
    # Python refuses to read numbers of thousands of digits.
    if cells and all(len(row) > 1 and re.fullmatch("[0-9]{1,9}", row[0].strip()) for row in cells):
        numbers = [int(row[0]) for row in cells]
        names = [row[1].strip() for row in cells]
    else:
        numbers = list(range(len(cells)))
        names = [row[0].strip() for row in cells]
    if not names or len(set(names)) < len(names) or len(set(numbers)) < len(numbers) or max(numbers) > 65535:
        raise StriateError(
            f"the class file {path!r} lists a class twice, or none",
            hint="write one line a class: index, name",
        )
    return numbers, names


def _sides(tree: Tree, strict: bool = False) -> tuple[dict[tuple[str, ...], str], dict[tuple[str, ...], str]]:
    """Key -> path of the images, and of the masks."""
    images: dict[tuple[str, ...], str] = {}
    masks: dict[tuple[str, ...], str] = {}
    lossy: dict[tuple[str, ...], str] = {}
    for path in tree.files:
        if not is_image(path):
            continue
        folders = path.split("/")[:-1]
        is_mask = any(_mask_folder(folder) for folder in folders)
        side = images if not is_mask else lossy if suffix(path) in LOSSY_SUFFIXES else masks
        key = (*_plain(folders, is_mask), MASK_ENDS.sub("", stem(path)) if is_mask else stem(path))
        if is_mask and key not in images and (exact := (*key[:-1], stem(path))) in images:
            key = exact
        if key in side and strict:
            raise StriateError(
                f"{side[key]!r} and {path!r} in {tree.path!r} have one name",
                hint="keep one file of each name",
            )
        side[key] = path
    return images, lossy | masks


def _mask_folder(folder: str) -> bool:
    small = folder.lower()
    if small in MASK_FOLDERS:
        return True
    head = MASK_ENDS.sub("", small)
    return head != small and head in (*SPLIT_NAMES, *IMAGE_FOLDERS)


def _plain(folders: list[str], is_mask: bool) -> list[str]:
    """The folders without the words for images and masks; splits in one spelling."""
    kept = []
    for folder in folders:
        small = folder.lower()
        if small in MASK_FOLDERS or small in IMAGE_FOLDERS:
            continue
        head = (MASK_ENDS if is_mask else IMAGE_ENDS).sub("", small)
        if head in SPLIT_NAMES:
            kept.append(SPLIT_NAMES[head])
        elif head not in IMAGE_FOLDERS:
            kept.append(folder)
    return kept


def _split(key: tuple[str, ...]) -> str:
    return next((part for part in key[:-1] if part in ORDER), "all")


def _numbered(keys: list[tuple[str, ...]]) -> bool:
    """Whether all names are one text and a number: slices of a stack, frames of a film."""
    heads = {(match[1] if (match := NUMBERED.match(key[-1])) else None) for key in keys}
    return len(heads) == 1 and None not in heads


def _some(items: list[int] | list[str]) -> str:
    shown = ", ".join(map(str, items[:12]))
    return shown + (", ..." if len(items) > 12 else "")
