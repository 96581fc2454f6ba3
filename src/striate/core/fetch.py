"""Fetching a published file: resumed, verified, renamed into place, by one process at a time."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import re
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from email.message import Message
from pathlib import Path
from typing import IO, Any, BinaryIO, TextIO

from striate.core.errors import BadModelFile, StriateError
from striate.core.files import write_error, write_text

CHUNK = 1 << 18
TIMEOUT = 30.0
# So many failures in a row without one more byte are the end of it, and so many connections in all.
PATIENCE, CONNECTIONS = 5, 100
MEGA = 1_000_000
HEX = re.compile(r"[0-9a-f]{64}")
# What a later try may cure: timeouts, too many requests, trouble inside the server.
PASSING = {408, 425, 429, 500, 502, 503, 504}


def sha256(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file, as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(
    url: str,
    target: Path,
    *,
    expected: str = "",
    name: str = "",
    hint: str = "",
    timeout: float = TIMEOUT,
    pause: float = 1.0,
) -> str:
    """Fetch `url` into the file `target`; returns its SHA-256.

    What an interrupted fetch has left in `target`.part is continued with a Range request, within this call
    after a broken connection and in a later one after an interruption. The file appears under its name only
    when it is whole and right: `expected` is its SHA-256 or how that begins; where it is empty, the hash
    that the Hugging Face hub sends with a large file takes its place. Processes that want the same file at
    once wait for each other, and the second finds it there.

    hint: what else can be done, told where the file cannot be had; without it, to put it there by hand.
    timeout: seconds without an answer; pause: seconds before the first new try, then twice as long each.

    Raises:
        StriateError: no connection, no such file there, or the folder cannot be written.
        BadModelFile: what is sent has another SHA-256; both are named, and nothing is kept.
    """
    name = name or target.name
    hint = hint or f"put the file into {str(target.parent)!r} as {target.name}"
    if not url.startswith(("https://", "http://")):
        raise StriateError(f"cannot fetch from {url!r}", allowed="an address with https:// or http://")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(target, error) from error
    with locked(target.with_name(f".{target.name}.lock"), name):
        if target.is_file() and (found := sha256(target)).startswith(expected):
            return found
        part = _Part(target.with_name(f"{target.name}.part"))
        for again in (False, True):
            continued = part.size > 0 and not again
            linked = _download(url, part, target, name, hint, timeout, pause)
            found = sha256(part.path)
            wanted = expected or linked
            if found.startswith(wanted):
                break
            part.remove()
            # What was there before may have been the beginning of another file.
            if not continued:
                raise BadModelFile(
                    f"what {url} sends is not the published file of {name!r}: its sha256 is {found}",
                    allowed=wanted if len(wanted) == 64 else f"{wanted}...",
                    hint=f"nothing was kept; try another network, or {hint}",
                )
        part.rename(target)
        return found


class _Part:
    """The unfinished file, with the server's mark (ETag) of the version that it is the beginning of."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.mark = path.with_name(f"{path.name}.etag")

    @property
    def size(self) -> int:
        """Bytes that are there."""
        return self.path.stat().st_size if self.path.is_file() else 0

    def etag(self) -> str:
        """The mark, or an empty text; weak ones (W/...) do not promise the same bytes."""
        with contextlib.suppress(OSError, UnicodeDecodeError):
            text = self.mark.read_text("ascii").strip()
            return text if text.startswith('"') else ""
        return ""

    def remove(self) -> None:
        """Forget what is there."""
        for path in (self.path, self.mark):
            path.unlink(missing_ok=True)

    def rename(self, target: Path) -> None:
        """Make it the file itself, in one step."""
        try:
            with open(self.path, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(self.path, target)
        except OSError as error:
            raise write_error(target, error) from error
        self.remove()


def _download(url: str, part: _Part, target: Path, name: str, hint: str, timeout: float, pause: float) -> str:
    """Bring the part to its full length; returns the hash that the hub linked to it, or an empty text."""
    meter = Meter(name)
    failures = 0
    for _ in range(CONNECTIONS):
        before = part.size
        try:
            linked = _connect(url, part, target, meter, timeout)
        except (OSError, http.client.HTTPException) as error:
            reason = str(getattr(error, "reason", "") or error) or type(error).__name__
            if isinstance(error, urllib.error.HTTPError) and error.code not in PASSING:
                raise StriateError(
                    f"cannot fetch {name!r} from {url} ({error.code} {reason})", hint=hint
                ) from error
            failures = 1 if part.size > before else failures + 1
            if failures >= PATIENCE:
                break
            time.sleep(min(30.0, pause * 2 ** (failures - 1)))
        else:
            meter.end()
            return linked
    meter.end()
    raise StriateError(
        f"cannot fetch {name!r} from {url} ({' '.join(reason.split())[:200]})",
        hint=f"the same command continues after {part.size / MEGA:.1f} MB; or {hint}",
    )


def _connect(url: str, part: _Part, target: Path, meter: Meter, timeout: float) -> str:
    """One connection: continue the part where it ends, or begin anew where the server cannot.

    Raises:
        OSError, HTTPException: the connection failed or broke; what came is kept.
        StriateError: the disk is full or cannot be written.
    """
    have = part.size
    headers = {"User-Agent": "striate", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if etag := part.etag():
            headers["If-Range"] = etag
    redirects = _Redirects()
    opener = urllib.request.build_opener(redirects)
    try:
        answer = opener.open(urllib.request.Request(url, headers=headers), timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        # Nothing lies beyond the part: it is whole, or longer than the file is now.
        whole = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range") or "")
        if whole and int(whole.group(1)) == have:
            return redirects.linked
        part.remove()
        raise ConnectionError("the part that was there does not fit") from error
    with answer:
        start = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range") or "")
        if answer.status != 206 or start is None or int(start.group(1)) != have:
            if answer.status == 206:
                part.remove()
                raise ConnectionError("the server sent another part than was asked for")
            have = 0
            part.remove()
            if etag := answer.headers.get("ETag"):
                write_text(part.mark, etag)
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length and length.isdigit() else None
        _check_space(target, None if total is None else total - have)
        meter.begin(have, total)
        got = have + _receive(answer, part.path, "ab" if have else "wb", meter)
        if total is not None and got != total:
            raise ConnectionError(f"the connection broke at {got:,} of {total:,} bytes")
        return redirects.linked or _linked(answer.headers)


def _receive(answer: Any, path: Path, mode: str, meter: Meter) -> int:
    """Write what comes, and count it."""
    count = 0
    try:
        file: IO[bytes] = open(path, mode)  # noqa: SIM115
    except OSError as error:
        raise write_error(path, error) from error
    with file:
        while data := answer.read(CHUNK):
            try:
                file.write(data)
                file.flush()
            except OSError as error:
                raise write_error(path, error) from error
            count += len(data)
            meter.step(len(data))
    return count


def _check_space(target: Path, needed: int | None) -> None:
    free = shutil.disk_usage(target.parent).free
    if needed is not None and needed > free:
        raise StriateError(
            f"{target.name} needs {needed / MEGA:,.0f} MB in {str(target.parent)!r}",
            allowed=f"{free / MEGA:,.0f} MB, which are free",
            hint="free some space, or set STRIATE_CACHE to another folder",
        )


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirections, never from https to http, and keeps the hash that the hub puts into them."""

    def __init__(self) -> None:
        self.linked = ""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        """The request for the new address."""
        if req.full_url.startswith("https:") and not newurl.startswith("https:"):
            raise StriateError(f"{req.full_url} leads to an address without encryption: {newurl}")
        self.linked = _linked(headers) or self.linked
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _linked(headers: Message) -> str:
    """The SHA-256 by which the Hugging Face hub marks a large file, or an empty text."""
    mark = str(headers.get("X-Linked-ETag") or "").strip('"').lower()
    return mark if HEX.fullmatch(mark) else ""


class Meter:
    """Shows how far a fetch is: on a terminal a line that changes, elsewhere one line; to stderr."""

    def __init__(self, name: str, stream: TextIO | None = None) -> None:
        self.name = name
        self.stream = stream or sys.stderr
        self.terminal = self.stream.isatty()
        self.done = self.fresh = 0
        self.total: int | None = None
        self.started = self.shown = 0.0

    def begin(self, done: int, total: int | None) -> None:
        """A connection stands: so many bytes are there, and so many will be."""
        first = not self.started
        self.done, self.total = done, total
        self.started = self.started or time.monotonic()
        if first and not self.terminal:
            size = "" if total is None else f" ({total / MEGA:.1f} MB)"
            going_on = f", from {done / MEGA:.1f} MB on" if done else ""
            print(f"fetching {self.name}{size}{going_on}", file=self.stream, flush=True)

    def step(self, count: int) -> None:
        """So many bytes more."""
        self.done += count
        self.fresh += count
        now = time.monotonic()
        if self.terminal and now - self.shown > 0.2:
            self.shown = now
            of = "" if self.total is None else f" of {self.total / MEGA:.1f}"
            rate = self.fresh / MEGA / max(1e-3, now - self.started)
            text = f"\rfetching {self.name}  {self.done / MEGA:.1f}{of} MB  {rate:.1f} MB/s   "
            print(text, end="", file=self.stream, flush=True)

    def end(self) -> None:
        """Nothing more comes."""
        if self.terminal and self.shown:
            print(file=self.stream, flush=True)


@contextlib.contextmanager
def locked(path: Path, name: str) -> Iterator[None]:
    """Hold the lock file `path` for the block; others wait. It is gone when nobody holds it.

    Raises:
        StriateError: the folder cannot be written.
    """
    told = False
    while True:
        try:
            file = open(path, "a+b")  # noqa: SIM115
        except OSError as error:
            raise write_error(path, error) from error
        while not _try_lock(file):
            if not told:
                print(f"waiting for another process that fetches {name}", file=sys.stderr, flush=True)
                told = True
            time.sleep(0.1)
        # The one before may have removed the file that this one waited for.
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                break
        file.close()
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.unlink(path)
        file.close()


def _try_lock(file: BinaryIO) -> bool:
    """Whether the file is now this process's; also where the file system knows no locks."""
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return True
    return True
