"""Images inside .zip and .tar archives, read in place: nothing is unpacked under its own name.

Offsets and sizes of the members are held as arrays; a read is one `pread`, so that any number of threads
share one open file. A worker process opens it anew. Every size is checked before anything is inflated.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import struct
import tarfile
import tempfile
import threading
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from striate.core.errors import BadImage, StriateError
from striate.data.pools import Integers, Texts
from striate.data.trees import Tree
from striate.images.decode import DEFAULT_LIMITS

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
ARCHIVE_SUFFIXES = (".zip", *TAR_SUFFIXES)
MOST_MEMBERS = 20_000_000
# Photographs hardly shrink; label images shrink up to some hundred times.
SPOOL_FREE, SPOOL_RATIO = 1 << 30, 200
LOCAL_HEADER = 30
ENCRYPTED = 1
DAMAGE = (
    OSError,
    EOFError,
    ValueError,
    NotImplementedError,
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
)


def is_archive(path: str | os.PathLike[str]) -> bool:
    """Whether the file name ends as an archive that Striate reads in place."""
    return os.fspath(path).lower().endswith(ARCHIVE_SUFFIXES)


def archive_tree(path: str | os.PathLike[str]) -> Tree:
    """The tree of a .zip or .tar[.gz|.bz2|.xz] archive, found by its content.

    Raises:
        StriateError: the archive is damaged, encrypted, of another kind, or inflates beyond measure.
    """
    try:
        if zipfile.is_zipfile(path) and not tarfile.is_tarfile(path):
            return _zip_tree(path)
        return _tar_tree(path)
    except DAMAGE as error:
        raise StriateError(
            f"{os.fspath(path)!r} cannot be opened as an archive ({error})",
            allowed=ARCHIVE_SUFFIXES,
            hint="the file may be damaged or incomplete: fetch or pack it again",
        ) from error


class SharedFile:
    """A file read at given places by many threads at once.

    packed: the file is inflated into an unnamed temporary file, once in each process, and read there.
    """

    def __init__(self, path: str | os.PathLike[str], packed: bool = False) -> None:
        self.path = os.path.realpath(path)
        self.packed = packed
        self._file: BinaryIO | None = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "packed": self.packed}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def open(self) -> BinaryIO:
        """The open file; its position belongs to nobody."""
        with self._lock:
            if self._file is None:
                self._file = _inflate(self.path) if self.packed else _plain(self.path)
            return self._file

    def read_at(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset`; raises BadImage."""
        try:
            file = self._file or self.open()
            if hasattr(os, "pread"):
                return os.pread(file.fileno(), size, offset)
            with self._lock:
                file.seek(offset)
                return file.read(size)
        except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            raise BadImage(f"cannot read {self.path!r} ({error})") from error


class ZipPool:
    """Members of a .zip archive.

    facts: (N, 5) int64: offset of the local header, packed size, size, method, flags; crc: (N,) uint32.
    """

    pictures = None

    def __init__(self, file: SharedFile, names: Iterable[str], facts: Integers, crc: Integers) -> None:
        self.names = Texts(names)
        self._file = file
        self._facts = facts
        self._crc = crc

    def read(self, row: int) -> bytes:
        """The inflated bytes of member `row`, with its checksum verified; raises BadImage."""
        offset, packed, size, method, flags = map(int, self._facts[row])
        if flags & ENCRYPTED:
            raise BadImage("the member is encrypted", hint="unpack the archive with its password first")
        if max(size, packed) > DEFAULT_LIMITS.max_bytes:
            raise BadImage(f"declares {size:,} bytes", allowed=f"at most {DEFAULT_LIMITS.max_bytes:,}")
        # One read nearly always: the name and the extra field lie between header and data.
        block = self._file.read_at(offset, LOCAL_HEADER + 512 + packed)
        if len(block) < LOCAL_HEADER or block[:4] != b"PK\x03\x04":
            raise BadImage("the archive is damaged here (no local header)")
        begin = LOCAL_HEADER + sum(struct.unpack("<HH", block[26:30]))
        data = block[begin : begin + packed]
        if len(data) < packed:
            data = self._file.read_at(offset + begin, packed)
        data = _unpack(data, method, size)
        if len(data) != size or zlib.crc32(data) != int(self._crc[row]):
            raise BadImage("the archive is damaged here (length or checksum differs)")
        return data


class TarPool:
    """Members of a .tar archive: (N, 2) int64 of offset and size."""

    pictures = None

    def __init__(self, file: SharedFile, names: Iterable[str], places: Integers) -> None:
        self.names = Texts(names)
        self._file = file
        self._places = places

    def read(self, row: int) -> bytes:
        """The bytes of member `row`; raises BadImage."""
        offset, size = map(int, self._places[row])
        if size > DEFAULT_LIMITS.max_bytes:
            raise BadImage(f"declares {size:,} bytes", allowed=f"at most {DEFAULT_LIMITS.max_bytes:,}")
        data = self._file.read_at(offset, size)
        if len(data) != size:
            raise BadImage("the archive ends inside this member")
        return data


def _unpack(data: bytes, method: int, size: int) -> bytes:
    if method == zipfile.ZIP_STORED:
        return data
    if method != zipfile.ZIP_DEFLATED:
        raise BadImage(
            f"packed with method {method}", allowed="stored (0) or deflated (8)", hint="pack it anew"
        )
    try:
        # One byte more than declared shows a member that inflates beyond its declared size.
        return zlib.decompressobj(-15).decompress(data, size + 1)
    except zlib.error as error:
        raise BadImage(f"the archive is damaged here ({error})") from error


def _zip_tree(path: str | os.PathLike[str]) -> Tree:
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    if len(members) > MOST_MEMBERS:
        raise StriateError(f"{os.fspath(path)!r} lists {len(members):,} members", allowed=f"{MOST_MEMBERS:,}")
    files = [m for m in members if not m.is_dir()]
    if files and all(m.flag_bits & ENCRYPTED for m in files):
        raise StriateError(f"{os.fspath(path)!r} is encrypted", hint="unpack it with its password first")
    facts = np.array(
        [(m.header_offset, m.compress_size, m.file_size, m.compress_type, m.flag_bits) for m in files],
        dtype=np.int64,
    ).reshape(-1, 5)
    crc = np.array([m.CRC for m in files], dtype=np.int64)
    places = _places([m.filename for m in files])
    shared = SharedFile(path)

    def pool(paths: list[str], own: list[str]) -> ZipPool:
        rows = np.array([places[p] for p in paths], dtype=np.int64)
        return ZipPool(shared, own, facts[rows], crc[rows])

    return Tree(path, places, (_clean(m.filename) or "" for m in members if m.is_dir()), pool)


def _tar_tree(path: str | os.PathLike[str]) -> Tree:
    with open(path, "rb") as file:
        magic = file.read(6)
    packed = magic.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ"))
    shared = SharedFile(path, packed)
    names: list[str] = []
    folders: list[str] = []
    found: list[tuple[int, int]] = []
    raw = shared.open()
    raw.seek(0)
    with tarfile.open(fileobj=raw, mode="r:") as archive:
        while (member := archive.next()) is not None:
            # The reader keeps every member it has seen; only names and places are wanted.
            archive.members = []  # type: ignore[attr-defined]
            if member.isdir():
                folders.append(_clean(member.name) or "")
            elif member.isreg() and not member.issparse():
                names.append(member.name)
                found.append((member.offset_data, member.size))
            if len(names) > MOST_MEMBERS:
                raise StriateError(f"{os.fspath(path)!r} lists too many members", allowed=f"{MOST_MEMBERS:,}")
    table = np.array(found, dtype=np.int64).reshape(-1, 2)
    places = _places(names)

    def pool(paths: list[str], own: list[str]) -> TarPool:
        rows = np.array([places[p] for p in paths], dtype=np.int64)
        return TarPool(shared, own, table[rows])

    return Tree(path, places, folders, pool)


def _places(names: list[str]) -> dict[str, int]:
    """Clean path -> member number; of members with one name the last counts, as in `unzip` and `tar`."""
    return {clean: row for row, name in enumerate(names) if (clean := _clean(name)) is not None}


def _clean(name: str) -> str | None:
    """The member's path without `./`; None where it would leave the archive."""
    if not name.startswith(("/", "./")) and "//" not in name and "\\" not in name and ".." not in name:
        return None if "\0" in name else name.rstrip("/")
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
    return None if ".." in parts or name.startswith("/") or "\0" in name else "/".join(parts)


def _plain(path: str) -> BinaryIO:
    return open(path, "rb", buffering=0)


def _inflate(path: str) -> BinaryIO:
    """The packed tar, inflated into an unnamed temporary file.

    Raises:
        StriateError: it inflates to more than 1 GiB + 200 times its size, or the disk is full.
    """
    limit = SPOOL_FREE + SPOOL_RATIO * Path(path).stat().st_size
    with open(path, "rb") as file:
        magic = file.read(3)
    opener: Any = {b"BZh": bz2.open, b"\xfd7z": lzma.open}.get(magic, gzip.open)
    spool: BinaryIO = tempfile.TemporaryFile(prefix="striate-")  # noqa: SIM115
    total = 0
    with opener(path, "rb") as source:
        while block := source.read(1 << 20):
            total += len(block)
            if total > limit:
                spool.close()
                raise StriateError(f"{path!r} inflates to more than {limit:,} bytes", hint="unpack it first")
            try:
                spool.write(block)
                spool.flush()
            except OSError as error:
                spool.close()
                raise StriateError(
                    f"no room to inflate {path!r} ({error.strerror})",
                    hint="set TMPDIR to a folder with room, or pack a .zip or a plain .tar: read in place",
                ) from error
    return spool
