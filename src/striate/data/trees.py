"""Trees of files: one view of a folder, a .zip and a .tar, so that every data format opens in all three."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path

from striate.core.errors import StriateError
from striate.data.pools import FilePool, Pool, read_file
from striate.images.given import IMAGE_SUFFIXES

_UNREAD = "heic heif avif jp2 jxl svg psd dcm nii npy exr"
UNREAD_SUFFIXES = frozenset(f".{name}" for name in _UNREAD.split(" "))
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
TEXT_LIMIT = 1 << 28
DEEPEST = 16


class Tree:
    """Files by relative path with `/`, in natural order, a single wrapping folder looked through.

    A path with a name that begins with `.` or `__` (.git, .DS_Store, __MACOSX) is not in the tree.
    `folders` holds every folder path, the empty ones too; `prefix` is the wrapping folder, or empty.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        files: Iterable[str],
        folders: Iterable[str],
        make_pool: Callable[[list[str], list[str]], Pool],
    ) -> None:
        self.path = str(path)
        self.on_disk = False
        self._make_pool = make_pool
        kept = [file for file in files if not _hidden(file)]
        known = {folder for folder in folders if folder and not _hidden(folder)}
        for parent in {file.rpartition("/")[0] for file in kept}:
            while parent and parent not in known:
                known.add(parent)
                parent = parent.rpartition("/")[0]
        self.prefix = _wrapper(kept, known)
        begin = len(self.prefix)
        self.files = sorted((f[begin:] for f in kept if f.startswith(self.prefix)), key=natural)
        self.folders = sorted((f[begin:] for f in known if f.startswith(self.prefix)), key=natural)

    @cached_property
    def images(self) -> list[str]:
        """The files with the suffix of an image format that Striate reads."""
        return [file for file in self.files if is_image(file)]

    def pool(self, paths: Iterable[str]) -> Pool:
        """A pool of the files at `paths`, named by these paths."""
        names = list(paths)
        return self._make_pool([p if p.startswith("/") else self.prefix + p for p in names], names)

    def exists(self, path: str) -> bool:
        """Whether there is a file at `path`; on disk it may lie outside of the tree."""
        if self.on_disk:
            return Path(self.path, self.prefix, path).is_file()
        return path in self._known

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(self.files)

    def read(self, path: str, limit: int = TEXT_LIMIT) -> bytes:
        """The bytes of one file; raises StriateError."""
        pool = self.pool([path])
        data = read_file(pool.place(0), limit) if isinstance(pool, FilePool) else pool.read(0)
        if len(data) > limit:
            raise StriateError(f"{path!r} in {self.path!r} is too large", allowed=f"at most {limit:,} bytes")
        return data

    def read_text(self, path: str) -> str:
        """One text file (UTF-8, byte-order mark dropped, foreign bytes replaced); raises StriateError."""
        return self.read(path).decode("utf-8-sig", "replace")


class FolderTree(Tree):
    """A folder on disk; links are followed, circles are not."""

    def __init__(self, path: str | os.PathLike[str], *, deepest: int = DEEPEST) -> None:
        files, folders = _walk(str(path), deepest)
        super().__init__(path, files, folders, lambda paths, names: FilePool(path, paths, names))
        self.on_disk = True


class FilesTree(Tree):
    """A few files of one folder that belong together; the rest of the folder is not listed."""

    def __init__(self, folder: str | os.PathLike[str], names: Iterable[str]) -> None:
        super().__init__(folder, names, (), lambda paths, own: FilePool(folder, paths, own))
        self.prefix = ""
        self.on_disk = True


def is_image(path: str) -> bool:
    """Whether the suffix is one of an image format that Striate reads (the content decides later)."""
    return suffix(path) in IMAGE_SUFFIXES


def suffix(path: str) -> str:
    """The suffix in small letters, with its dot."""
    name = path.rpartition("/")[2]
    stem, dot, last = name.rpartition(".")
    return f".{last.lower()}" if dot and stem else ""


def stem(path: str) -> str:
    """The last name of the path without its suffix."""
    name = path.rpartition("/")[2]
    return name[: len(name) - len(suffix(name))]


_DIGITS = re.compile(r"([0-9]+)")


def natural(text: str) -> tuple[list[str | tuple[int, str]], str]:
    """A sort key that puts `img2` before `img10`: runs of digits compare as numbers."""
    parts: list[str | tuple[int, str]] = []
    for place, piece in enumerate(_DIGITS.split(text)):
        digits = piece.lstrip("0")
        parts.append((len(digits), digits) if place % 2 else piece)
    return parts, text


def _hidden(path: str) -> bool:
    if not path.startswith((".", "__")) and "/." not in path and "/__" not in path:
        return False
    return path not in (".", "..")


def _wrapper(files: list[str], folders: set[str]) -> str:
    """The path of a single wrapping folder with a `/` behind, or an empty text.

    A folder is a wrapper when nothing but text lies beside it and it has folders of its own; train, val
    and test are none.
    """
    prefix = ""
    for _ in range(DEEPEST):
        begin = len(prefix)
        inside = {folder[begin:] for folder in folders if folder.startswith(prefix)}
        tops = {folder for folder in inside if folder and "/" not in folder}
        beside = (f[begin:] for f in files if f.startswith(prefix) and "/" not in f[begin:])
        if len(tops) != 1 or any(is_image(f) or suffix(f) in (".csv", ".tsv", ".gz", ".bin") for f in beside):
            return prefix
        top = next(iter(tops))
        if top.lower() in SPLIT_NAMES or not (
            any(folder.startswith(f"{top}/") for folder in inside)
            or any(f.startswith(f"{prefix}{top}/") and not is_image(f) for f in files)
        ):
            return prefix
        prefix += f"{top}/"
    return prefix


def _walk(root: str, deepest: int) -> tuple[list[str], list[str]]:
    files: list[str] = []
    folders: list[str] = []
    waiting: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
    while waiting:
        folder, above = waiting.pop()
        try:
            facts = Path(root, folder).stat()
            here = (facts.st_dev, facts.st_ino)
            if here in above:
                continue
            with os.scandir(f"{root}/{folder}") as entries:
                for entry in entries:
                    path = f"{folder}/{entry.name}" if folder else entry.name
                    if entry.name.startswith((".", "__")):
                        continue
                    if entry.is_dir():
                        folders.append(path)
                        if path.count("/") < deepest:
                            waiting.append((path, above | {here}))
                    else:
                        files.append(path)
        except OSError as error:
            raise StriateError(
                f"cannot read the folder {f'{root}/{folder}'!r} ({error.strerror})",
                hint="check its permissions",
            ) from error
    return files, folders
