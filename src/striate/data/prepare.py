"""Preparing a folder for training: the same pictures, in JPEG files of which a part can be decoded alone."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from striate.core.errors import BadImage, StriateError
from striate.core.files import write_bytes, write_error
from striate.core.machine import check_threads, processors
from striate.core.results import Result
from striate.data.archives import archive_tree, is_archive
from striate.data.pools import Pool
from striate.data.trees import FolderTree, Tree
from striate.images.containers import declared, sniff
from striate.images.declared import Malformed
from striate.images.decode import decode
from striate.images.huffman import Damaged
from striate.images.restarts import with_restarts

CHUNK = 32
SHOWN = 10
Told = Callable[[int, int], None]
"""Called with the files done, and all."""


@dataclass(frozen=True)
class Prepared(Result):
    """What became of the files: one row for each not rewritten, and why; counts and bytes of the rest.

    rewritten: JPEG files; fit: those that needed nothing (with markers, or small); copied: other files;
    found: files that were there already; before and after: bytes of the rewritten files.
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
            lines += [f"  {name}: {reason}" for name, reason in pairs[:SHOWN]]
            lines += [f"  and {len(pairs) - SHOWN:,} more"] if len(pairs) > SHOWN else []
        return lines


def prepare(
    data: str | os.PathLike[str], out: str | os.PathLike[str], *, workers: int | None = None,
    told: Told | None = None,
) -> Prepared:  # fmt: skip
    """Copy a folder or archive to the folder `out`, its JPEG files rewritten without loss by `with_restarts`.

    All other files are copied as they are, hidden ones left out. Each rewritten file is decoded and has the
    pixels of its original before it is written. A file that is there already and not older than its source
    stays: a stopped run goes on. workers: processes; by default one for each processor.

    Raises:
        StriateError: nothing there, no images, `out` lies in `data`, or a file cannot be written.
    """
    tree, target = _tree(data), Path(out).expanduser()
    _check(tree, target)
    try:
        for folder in ("", *tree.folders):
            Path(target, folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(target, error) from error
    pool = tree.pool(tree.files)
    source = f"{tree.path}/{tree.prefix}" if tree.on_disk else tree.path
    job = (pool, str(target), source, tree.on_disk)
    done: dict[str, tuple[str, int, int]] = {}
    for part in _parts(job, len(tree.files), check_threads(workers, "workers") or processors()):
        done.update(part)
        if told is not None:
            told(len(done), len(tree.files))
    kinds = [kind for kind, *_ in done.values()]
    counts = {kind: kinds.count(kind) for kind in ("rewritten", "fit", "copied", "found")}
    sizes = [sizes for kind, *sizes in done.values() if kind == "rewritten"]
    left = {name: kind for name, (kind, *_) in done.items() if kind not in counts}
    return Prepared(
        os.fspath(data), str(target), counts["rewritten"], counts["fit"], counts["copied"], counts["found"],
        sum(size[0] for size in sizes), sum(size[1] for size in sizes), list(left), list(left.values()),
    )  # fmt: skip


def _tree(data: str | os.PathLike[str]) -> Tree:
    place = Path(data).expanduser()
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
    source = Path(tree.path).resolve()
    if tree.on_disk and (target.resolve() == source or source in target.resolve().parents):
        raise StriateError(f"{str(target)!r} lies in the data", hint="give --out a folder elsewhere")


Job = tuple[Pool, str, str, bool]
Part = dict[str, tuple[str, int, int]]
_job: list[Job] = []


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
    _job[:] = [job]


def _rewrite(rows: range) -> Part:
    return {_job[0][0].names[row]: _one(row) for row in rows}


def _one(row: int) -> tuple[str, int, int]:
    """What became of a file, or why it is left as it was; its bytes before and after."""
    pool, out, source, on_disk = _job[0]
    name = pool.names[row]
    target = Path(out, name)
    origin = Path(source, name) if on_disk else Path(source)
    if target.is_file() and target.stat().st_mtime >= origin.stat().st_mtime:
        return "found", 0, 0
    try:
        data = pool.read(row)
    except BadImage as error:
        return f"not copied: {error.given}", 0, 0
    kind, new = prepared(data)
    write_bytes(target, new)
    return kind, len(data), len(new)


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
