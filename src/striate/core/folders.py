"""Writing a whole folder without loss: beside its place, then renamed."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from striate.core.errors import StriateError
from striate.core.files import UMASK, write_error


@contextlib.contextmanager
def replacing_folder(path: str | os.PathLike[str], mark: str) -> Iterator[Path]:
    """A new folder that takes the place of `path` when the block ends well, and vanishes otherwise.

    mark: a file that every such folder holds; a folder without it, and with anything else in it, is the
    user's own and is not replaced.

    Raises:
        StriateError: such a folder is in the way, or it cannot be written; nothing half-written stays.
    """
    target = Path(path)
    check_free(target, mark)
    temporary: Path | None = None
    old: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp"))
        yield temporary
        # A temporary folder is closed to others; this one takes the rights that `mkdir` gives.
        temporary.chmod(0o777 & ~UMASK)
        check_free(target, mark)
        if target.exists():
            old = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp"))
            os.replace(target, old)
        os.replace(temporary, target)
        temporary = None
    except OSError as error:
        raise write_error(target, error) from error
    finally:
        if old is not None and temporary is not None and any(old.iterdir()) and not target.exists():
            os.replace(old, target)
        for left in (temporary, old):
            if left is not None:
                shutil.rmtree(left, ignore_errors=True)


def check_free(target: Path, mark: str) -> None:
    """There is no such folder, an empty one, or one that holds a file `mark`.

    Raises:
        StriateError: it is a file, or holds other things.
    """
    if target.is_file():
        raise StriateError(f"{str(target)!r} is a file", hint="choose a folder with --out")
    if target.is_dir() and any(target.iterdir()) and not (target / mark).is_file():
        raise StriateError(
            f"the folder {str(target)!r} holds other files", hint="choose another folder with --out"
        )
