"""Preparing a folder for training: the same pictures, in JPEG files of which a part can be decoded alone."""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from striate.core.errors import BadImage, StriateError
from striate.core.files import place_of, write_bytes, write_error
from striate.core.machine import check_threads, end_with_parent, processors
from striate.core.results import Result
from striate.data.archives import archive_tree, is_archive
from striate.data.pools import Pool
from striate.data.trees import FolderTree, Tree
from striate.images.containers import declared, sniff
from striate.images.declared import Malformed
from striate.images.decode import decode
from striate.images.huffman import Damaged
from striate.images.restarts import with_restarts

KEPT = ".striate-prepared.jsonl"
"""In the folder: a line for each file, with what was done to it and a checksum of its source."""
KINDS = ("rewritten", "fit", "copied")
CHUNK = 32
SHOWN = 10
Told = Callable[[int, int], None]
"""Called with the files done, and all."""


class Done(NamedTuple):
    """What became of a file, or why it was left; its source's checksum; whether it was there already."""

    kind: str
    before: int = 0
    after: int = 0
    check: str = ""
    found: bool = False


Job = tuple[Pool, str, dict[str, Done]]
Part = dict[str, Done]
_job: list[Job] = []


@dataclass(frozen=True)
class Prepared(Result):
    """What became of the files: one row for each not rewritten, and why; counts and bytes of the rest.

    rewritten: JPEG files; fit: those that needed nothing (with markers, or small); copied: other files;
    found: files that were there already; before and after: bytes of the rewritten files; gone: files of an
    earlier run whose sources are not in the data any more.
    """

    ROWS = ("left", "reason")

    data: str
    out: str
    rewritten: int
    fit: int
    copied: int
    found: int
    before: int
    after: int
    left: list[str]
    reason: list[str]
    gone: list[str]

    def lines(self) -> list[str]:
        """The counts, then the files left as they were."""
        grown = f", {self.after / self.before - 1:+.1%} in size" if self.before else ""
        lines = [
            f"{self.data} to {self.out}",
            f"rewritten without loss: {self.rewritten:,} JPEG files{grown}",
            f"copied: {self.fit:,} JPEG files that need nothing, {self.copied:,} other files",
        ]
        if self.found:
            lines.append(f"there already: {self.found:,} files")
        if self.left:
            lines.append(
                f"not rewritten: {len(self.left):,} files, copied as they are where nothing else is said"
            )
            pairs = list(zip(self.left, self.reason, strict=True))
            lines += [f"  {name!r}: {reason}" for name, reason in pairs[:SHOWN]]
            lines += [f"  and {len(pairs) - SHOWN:,} more"] if len(pairs) > SHOWN else []
        if self.gone:
            lines.append(f"not in the data any more: {len(self.gone):,} files, such as {self.gone[0]!r}")
        return lines


def prepare(
    data: str | os.PathLike[str], out: str | os.PathLike[str], *, workers: int | None = None,
    told: Told | None = None,
) -> Prepared:  # fmt: skip
    """Copy a folder or archive to the folder `out`, its JPEG files rewritten without loss by `with_restarts`.

    All other files are copied as they are, hidden ones left out. Each rewritten file is decoded and has the
    pixels of its original before it is written. `out` is new, empty, or of an earlier run: then files whose
    sources have the same bytes as in that one stay, so that a stopped run goes on. workers: processes; by
    default one for each processor.

    Raises:
        StriateError: nothing there, no images, `out` holds other things or lies in `data`, or cannot be
            written.
    """
    tree, target = _tree(data), place_of(out)
    _check(tree, target)
    known = _begin(tree, target)
    job = (tree.pool(tree.files), str(target), known)
    done: dict[str, Done] = {}
    workers = check_threads(workers, "workers") or processors()
    try:
        with open(target / KEPT, "a", encoding="utf-8") as kept:
            for part in _parts(job, len(tree.files), workers):
                done.update(part)
                kept.writelines(
                    json.dumps([name, *facts]) + "\n"
                    for name, facts in part.items()
                    if facts.check and not facts.found
                )
                kept.flush()
                if told is not None:
                    told(len(done), len(tree.files))
    except OSError as error:
        raise write_error(target / KEPT, error) from error
    new = [facts for facts in done.values() if not facts.found]
    counts = {kind: sum(facts.kind == kind for facts in new) for kind in KINDS}
    rewritten = [facts for facts in new if facts.kind == "rewritten"]
    left = {name: facts.kind for name, facts in done.items() if facts.kind not in KINDS}
    gone = sorted(name for name in known if name not in done and Path(target, name).is_file())
    return Prepared(
        os.fspath(data), str(target), counts["rewritten"], counts["fit"], counts["copied"],
        len(done) - len(new), sum(facts.before for facts in rewritten),
        sum(facts.after for facts in rewritten), list(left), list(left.values()), gone,
    )  # fmt: skip


def _tree(data: str | os.PathLike[str]) -> Tree:
    place = place_of(data)
    if place.is_dir():
        return FolderTree(place)
    if place.is_file() and is_archive(place):
        return archive_tree(place)
    raise StriateError(
        f"{os.fspath(data)!r} is not a folder or archive", hint="give the folder, .zip or .tar of a data set"
    )


def _check(tree: Tree, target: Path) -> None:
    if not tree.images:
        archives = [file for file in tree.files if is_archive(file)]
        raise StriateError(
            f"{tree.path!r} holds no images",
            hint=f"give one of its archives, such as {archives[0]!r}" if archives else "check the path",
        )
    if target.exists() and not target.is_dir():
        raise StriateError(f"{str(target)!r} is a file", hint="give --out a folder")
    if not tree.on_disk:
        return
    place = target.resolve()
    for folder in ("", *tree.folders):
        # Also by a link somewhere in the data.
        source = Path(tree.path, tree.prefix, folder).resolve()
        if place == source or source in place.parents or place in source.parents:
            raise StriateError(
                f"{str(target)!r} lies in the data, or they in it", hint="give --out a folder elsewhere"
            )


def _begin(tree: Tree, target: Path) -> dict[str, Done]:
    """Make the folders; what an earlier run did to each file. What it left half-written goes."""
    try:
        if target.is_dir() and not (target / KEPT).is_file() and any(target.iterdir()):
            raise StriateError(
                f"{str(target)!r} holds other files", hint="give --out a new folder, or one of an earlier run"
            )
        for folder in ("", *tree.folders):
            Path(target, folder).mkdir(parents=True, exist_ok=True)
        for file in target.rglob(".*.tmp"):
            file.unlink(missing_ok=True)
        lines = (target / KEPT).read_text("utf-8").splitlines() if (target / KEPT).is_file() else []
    except OSError as error:
        raise write_error(target, error) from error
    known: dict[str, Done] = {}
    for line in lines:
        try:
            name, kind, before, after, check, _ = json.loads(line)
            known[str(name)] = Done(str(kind), int(before), int(after), str(check))
        except (ValueError, TypeError):
            continue  # the last line of a run that was killed
    return known


def _parts(job: Job, count: int, workers: int) -> Iterator[Part]:
    chunks = [range(i, min(i + CHUNK, count)) for i in range(0, count, CHUNK)]
    if workers == 1 or len(chunks) == 1:
        _install(job)
        yield from map(_rewrite, chunks)
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, initializer=_install, initargs=(job, True)) as processes:
        try:
            yield from processes.map(_rewrite, chunks)
        except BrokenProcessPool as error:
            raise StriateError(
                "a process has died", hint="what is done stays; workers=1 goes on without processes"
            ) from error
        finally:
            processes.shutdown(cancel_futures=True)


def _install(job: Job, apart: bool = False) -> None:
    if apart:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        end_with_parent()
    _job[:] = [job]


def _rewrite(rows: range) -> Part:
    return {_job[0][0].names[row]: _one(row) for row in rows}


def _one(row: int) -> Done:
    pool, out, known = _job[0]
    name = pool.names[row]
    target = Path(out, name)
    try:
        data = pool.read(row)
    except BadImage as error:
        return Done(f"not copied: {error.given}")
    check = hashlib.sha256(data).hexdigest()[:24]
    before = known.get(name)
    if before is not None and before.check == check and _size(target) == before.after:
        return before._replace(found=True)
    kind, new = prepared(data)
    try:
        write_bytes(target, new)
    except StriateError as error:
        # A name that this disk cannot hold is no reason to stop; a full disk is.
        if getattr(error.__cause__, "errno", 0) not in (errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR):
            raise
        return Done(f"not copied: {error.given}")
    return Done(kind, len(data), len(new), check)


def _size(file: Path) -> int | None:
    return file.stat().st_size if file.is_file() else None


def prepared(data: bytes) -> tuple[str, bytes]:
    """What is done to a file ("rewritten", "fit", "copied", or why a JPEG is left alone), and its bytes."""
    try:
        if sniff(data) != "JPEG":
            return "copied", data
    except Malformed:
        return "copied", data
    try:
        pixels = decode(data)
        new = with_restarts(data, declared(data))
        if new is data:
            return "fit", data
        if not np.array_equal(pixels, decode(new)):
            return "its pixels would change", data
    except BadImage as error:
        return error.given, data
    except Damaged as error:
        return str(error), data
    return "rewritten", new
