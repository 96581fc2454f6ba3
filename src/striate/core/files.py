"""Writing without loss: a temporary file beside the target, flushed, then renamed."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from striate.core.errors import StriateError

# The rights that new files are not given. It can only be read by setting it, for all threads: once, here.
UMASK = os.umask(0o077)
os.umask(UMASK)


def place_of(path: str | os.PathLike[str]) -> Path:
    """A path as a user gives it, with `~` for a home folder; whether it exists can be asked of it.

    Raises:
        StriateError: no such home folder, a name that is too long, a folder that may not be entered.
    """
    try:
        place = Path(path).expanduser()
        place.exists()
    except (OSError, RuntimeError) as error:
        text = os.fspath(path)
        short = repr(text[:60]) + ("..." if len(text) > 60 else "")
        reason = getattr(error, "strerror", None) or str(error)
        raise StriateError(f"cannot look for {short}: {reason}", hint="check the path") from error
    return place


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A binary file that takes the place of `path` when the block ends well, and vanishes otherwise.

    Raises:
        StriateError: the folder cannot be written, or the disk is full; nothing half-written stays.
    """
    target = Path(path)
    temporary: str | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name[:40]}.", suffix=".tmp")
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~UMASK)
        os.replace(temporary, target)
        temporary = None
    except OSError as error:
        raise write_error(target, error) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def write_bytes(path: str | os.PathLike[str], data: bytes) -> Path:
    """Write `data` to `path` in one step; raises as `replacing` does."""
    with replacing(path) as file:
        file.write(data)
    return Path(path)


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write `text` as UTF-8 to `path` in one step; raises as `replacing` does.

    Parts of file names that are not UTF-8 are written as escapes, which JSON reads back as they were.
    """
    return write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: str | os.PathLike[str], value: Any) -> Path:
    """Write `value` as indented JSON to `path` in one step; raises as `replacing` does."""
    return write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def check_target(path: str | os.PathLike[str], suffixes: Sequence[str], folder: bool = False) -> Path:
    """Before a long job: where its results are to be written; `folder`: one may be given, without a suffix.

    Raises:
        StriateError: another suffix, a folder where a file belongs, or a place that cannot be written to.
    """
    target = place_of(path)
    known = target.suffix.lower() in suffixes
    if target.is_dir() and (known or not folder):
        raise StriateError(f"{os.fspath(path)!r} is a folder", hint="give a file name")
    if folder and not target.suffix and target.is_file():
        raise StriateError(f"{os.fspath(path)!r} is a file", hint="give a folder, or another ending")
    if not known and not (folder and (target.is_dir() or not target.suffix)):
        raise StriateError(
            f"cannot write results as {target.name!r}", allowed=[*suffixes, *(["a folder"] if folder else [])]
        )
    place = target if target.is_dir() else target.parent
    while not place.exists() and place != place.parent:
        place = place.parent
    trouble = errno.ENOTDIR if not place.is_dir() else 0 if os.access(place, os.W_OK) else errno.EACCES
    if trouble:
        raise write_error(target, OSError(trouble, os.strerror(trouble)))
    return target


def write_error(path: Path, error: OSError) -> StriateError:
    """The error for a failed write, with what to do about it."""
    hints = {
        errno.ENOSPC: "the disk is full: free some space, or choose another folder with --out",
        errno.EDQUOT: "the disk quota is used up: free some space, or choose another folder with --out",
        errno.EACCES: "choose a folder that you may write to with --out",
        errno.EPERM: "choose a folder that you may write to with --out",
        errno.EROFS: "the file system is read-only: choose another folder with --out",
        errno.ENOTDIR: "a part of the path is a file: choose another folder with --out",
        errno.EISDIR: "the path is a folder: give a file name",
    }
    reason = error.strerror or type(error).__name__
    return StriateError(
        f"cannot write {str(path)!r} ({reason})", hint=hints.get(error.errno or 0, "check the path")
    )
