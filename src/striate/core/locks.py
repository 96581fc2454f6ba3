"""Taking turns and saying that one is alive, among processes of one machine or of several on one folder."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import uuid
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from striate.core.files import write_error

GRACE = 60.0  # seconds after which another machine's turn counts as left behind
BEAT = 10.0  # seconds between two signs of life
SILENCE = 120.0  # seconds without one after which a process of another machine counts as dead


@cache
def kernel() -> str:
    """A name of the running system: processes that share it share their file locks too."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return f"{uuid.getnode():012x}"


def lock(handle: int, *, wait: bool) -> bool | None:
    """Lock an open file for this process; False where another has it, None where locks are not known."""
    try:
        import fcntl
    except ImportError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        return None  # some network file systems cannot lock
    return True


class Turn:
    """One holder at a time, among all processes of all machines that see the folder.

    Two locks, because neither is enough: the system's lock on `path` goes with its process however that
    ends, but some network file systems know none, or keep it to the machine; the file `path`.held, made with
    O_EXCL (exclusive on NFS from version 3 on), holds among machines, but a killed process leaves it behind.
    So it names the system that it was made on: who has that system's lock and finds it knows that its maker
    is dead, and takes it away. One of another machine is waited for, at most `grace` seconds.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        grace: float = GRACE,
        held: str | os.PathLike[str] | None = None,
    ) -> None:
        self.path, self.held = Path(path), Path(held or f"{os.fspath(path)}.held")
        self.grace = grace
        self._handle: int | None = None
        self._mark = b""

    def acquire(self) -> bool:
        """Wait for the turn and take it.

        Raises:
            StriateError: the folder cannot be written.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise write_error(self.path, error) from error
        try:
            alone = lock(handle, wait=True)
            mark = f"{kernel()} {os.getpid()} {uuid.uuid4()}".encode()
            self._take(mark, bool(alone))
        except BaseException:
            os.close(handle)
            raise
        self._handle, self._mark = handle, mark
        return True

    def release(self) -> None:
        """Give the turn to the next one."""
        with contextlib.suppress(OSError):
            if self.held.read_bytes() == self._mark:
                self.held.unlink()
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def __enter__(self) -> Turn:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _take(self, mark: bytes, alone: bool) -> None:
        seen, since, pause = b"", time.monotonic(), 0.002
        while True:
            try:
                made = os.open(self.held, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            except FileExistsError:
                pass
            except OSError as error:
                raise write_error(self.held, error) from error
            else:
                with os.fdopen(made, "wb") as file:
                    file.write(mark)
                return
            found = _content(self.held)
            if found != seen:
                seen, since = found, time.monotonic()
            dead = alone and found.split(b" ")[0] == kernel().encode()
            if dead or time.monotonic() - since > self.grace:
                self._break(found)
                continue
            time.sleep(pause)
            pause = min(2 * pause, 0.5)

    def _break(self, found: bytes) -> None:
        """Take away what a dead holder left; put back what in the meantime another one made."""
        aside = self.held.with_name(f".{self.held.name}.{uuid.uuid4()}.tmp")
        with contextlib.suppress(OSError):
            self.held.rename(aside)
            if _content(aside) != found:
                os.link(aside, self.held)
            aside.unlink()


def _content(path: Path) -> bytes:
    """The bytes of a file, none where it is gone or leads nowhere."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


class Lease:
    """A file that is held and touched every few seconds as long as its process works on something.

    `lost` becomes true when the file has gone: others took this process for dead.
    """

    def __init__(self, path: str | os.PathLike[str], *, beat: float = BEAT) -> None:
        self.path, self.beat = Path(path), beat
        self.lost = False
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._handle: int | None = None

    def begin(self) -> Lease:
        """Make the file, hold it and keep on touching it.

        Raises:
            StriateError: it cannot be written.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
            os.write(self._handle, f"{kernel()} {os.getpid()}\n".encode())
            os.fsync(self._handle)
        except OSError as error:
            raise write_error(self.path, error) from error
        lock(self._handle, wait=False)
        self._thread = threading.Thread(target=self._touch, name="lease", daemon=True)
        self._thread.start()
        return self

    def end(self) -> None:
        """Let go of the file and remove it, unless others did."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        if self._handle is not None:
            if not self.lost:
                with contextlib.suppress(OSError):
                    self.path.unlink()
            os.close(self._handle)
            self._handle = None

    def _touch(self) -> None:
        while not self._ended.wait(self.beat):
            try:
                os.utime(self.path)
            except FileNotFoundError:
                self.lost = True
                return
            except OSError:
                continue  # a network file system that is away may come back


def alive(path: str | os.PathLike[str], *, silence: float = SILENCE) -> bool:
    """Whether the holder of a lease lives.

    On the same system its lock tells at once; otherwise, or without locks, the age of the last sign of life
    does, measured by the clock of the file server alone, so that the machines' clocks do not matter.
    """
    try:
        handle = os.open(path, os.O_RDWR)
    except OSError:
        return False
    try:
        found = os.read(handle, 200).split()
        if found and found[0] == kernel().encode():
            free = lock(handle, wait=False)
            if free is not None:
                return not free
        return server_time(Path(path).parent) - os.fstat(handle).st_mtime <= silence
    except OSError:
        return False
    finally:
        os.close(handle)


def server_time(folder: Path) -> float:
    """Now, by the clock of the machine that keeps the folder's files."""
    probe = folder / f".clock.{uuid.uuid4()}.tmp"
    try:
        probe.write_bytes(b"")
        os.utime(probe)
        return probe.stat().st_mtime
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()


@contextlib.contextmanager
def only_one(path: str | os.PathLike[str]) -> Iterator[bool]:
    """True within the block for the one process that holds the lease `path`; False where another lives."""
    with Turn(f"{os.fspath(path)}.lock"):
        mine = None if alive(path) else Lease(path).begin()
    try:
        yield mine is not None
    finally:
        if mine is not None:
            mine.end()


def cut_half_line(path: Path) -> int:
    """Cut off what follows the last line end of a file, as a kill may leave it; the bytes cut off.

    Raises:
        StriateError: the file cannot be written.
    """
    try:
        with open(path, "rb+") as file:
            end = file.seek(0, os.SEEK_END)
            whole, step = end, 1 << 16
            while whole:
                start = max(0, whole - step)
                file.seek(start)
                at = file.read(whole - start).rfind(b"\n")
                if at >= 0:
                    whole = start + at + 1
                    break
                whole = start
            if whole != end:
                file.truncate(whole)
            return end - whole
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise write_error(path, error) from error
