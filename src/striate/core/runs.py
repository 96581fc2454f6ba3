"""A run is a folder: settings, environment, events, metrics, checkpoints, model, report."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import platform
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from striate.core.errors import StriateError
from striate.core.files import write_error, write_json, write_text

SETTINGS, ENVIRONMENT, EVENTS, METRICS = "settings.json", "environment.json", "events.jsonl", "metrics.csv"
MODEL, REPORT, CHECKPOINTS, SPLITS = "model.safetensors", "report.html", "checkpoints", "splits.json"


class Run:
    """One run folder.

    `events.jsonl` is a log (times, progress; one JSON object a line, appended); `metrics.csv` holds only
    figures that the same seed gives again, one row an epoch, and is written anew each time.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    @classmethod
    def create(cls, path: str | os.PathLike[str], settings: Mapping[str, Any]) -> Run:
        """Make the folder with its settings and environment.

        Raises:
            StriateError: the folder already holds a run, or cannot be written.
        """
        run = cls(path)
        if (run.path / SETTINGS).exists():
            raise StriateError(
                f"{str(run.path)!r} already holds a run",
                hint="continue it with --resume, or choose another folder with --out",
            )
        try:
            (run.path / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_error(run.path, error) from error
        write_json(run.path / ENVIRONMENT, environment())
        write_json(run.path / SETTINGS, dict(settings))
        return run

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Run:
        """Open an existing run folder.

        Raises:
            StriateError: there is no run in it.
        """
        run = cls(path)
        if not (run.path / SETTINGS).is_file():
            raise StriateError(
                f"{str(run.path)!r} is not a run folder (it has no {SETTINGS})",
                hint="give the folder that 'striate train' printed",
            )
        return run

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Make the folder if need be and hold it for this process; its end, however it comes, lets go of it.

        Without effect where the system or the file system knows no locks.

        Raises:
            StriateError: another process holds it, or it cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_error(self.path, error) from error
        with contextlib.ExitStack() as held:
            with contextlib.suppress(ImportError):
                import fcntl

                handle = os.open(self.path, os.O_RDONLY)
                held.callback(os.close, handle)
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    raise StriateError(
                        f"another process is training in {str(self.path)!r}",
                        hint="wait for its end, or choose another folder with --out",
                    ) from error
                except OSError:
                    pass  # some network file systems cannot lock
            yield

    def discard(self) -> None:
        """Take away what the beginning of a run wrote, and the folder if nothing else is in it."""
        for name in (SETTINGS, ENVIRONMENT, SPLITS, EVENTS):
            with contextlib.suppress(OSError):
                (self.path / name).unlink()
        for folder in (self.checkpoints, self.path):
            with contextlib.suppress(OSError):
                folder.rmdir()

    @property
    def model(self) -> Path:
        """Where the finished model lies."""
        return self.path / MODEL

    @property
    def report(self) -> Path:
        """Where the report lies."""
        return self.path / REPORT

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.path / CHECKPOINTS

    def settings(self) -> dict[str, Any]:
        """The resolved settings.

        Raises:
            StriateError: the file is not valid JSON.
        """
        return read_json(self.path / SETTINGS)

    def update_settings(self, settings: Mapping[str, Any]) -> None:
        """Replace the resolved settings, as when a finished run is extended."""
        write_json(self.path / SETTINGS, dict(settings))

    def event(self, kind: str, **values: Any) -> None:
        """Append one event: {"time": Unix seconds, "event": kind, ...}.

        Raises:
            StriateError: the file cannot be written.
        """
        line = json.dumps({"time": round(time.time(), 3), "event": kind, **values}, ensure_ascii=False)
        path = self.path / EVENTS
        try:
            with open(path, "ab+") as file:
                # A killed process may have left half a line: end it, so that only that line is lost.
                if file.tell() and _last_byte(file) != b"\n":
                    file.write(b"\n")
                file.write(line.encode("utf-8", "backslashreplace") + b"\n")
        except OSError as error:
            raise write_error(path, error) from error

    def events(self) -> list[dict[str, Any]]:
        """All events in order; lines cut off by a kill are left out."""
        found = []
        with (
            contextlib.suppress(FileNotFoundError),
            open(self.path / EVENTS, encoding="utf-8", errors="replace") as file,
        ):
            for line in file:
                with contextlib.suppress(json.JSONDecodeError):
                    found.append(json.loads(line))
        return found

    def write_metrics(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write all rows of metrics.csv anew; columns are the keys in order of first appearance."""
        rows = list(rows)
        columns = list(dict.fromkeys(key for row in rows for key in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(self.path / METRICS, text.getvalue())

    def metrics(self) -> list[dict[str, float]]:
        """The rows of metrics.csv as numbers; empty cells are left out."""
        try:
            with open(self.path / METRICS, encoding="utf-8", newline="") as file:
                return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
        except FileNotFoundError:
            return []


def next_folder(root: str | os.PathLike[str], stem: str) -> Path:
    """The first free `root/STEM-N`, N from 1; `stem` is made safe as a file name."""
    base = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-.") or "run"
    number = 1
    while (Path(root) / f"{base}-{number}").exists():
        number += 1
    return Path(root) / f"{base}-{number}"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        StriateError: the file cannot be read, or does not hold a JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StriateError(f"cannot read {str(path)!r} ({error})") from error
    if not isinstance(value, dict):
        raise StriateError(f"{str(path)!r} does not hold a JSON object")
    return value


def environment() -> dict[str, Any]:
    """Versions, machine and command, as written beside every run: no host name, the user's home as `~`."""
    packages = {}
    for name in (
        "striate",
        "torch",
        "numpy",
        "opencv-python-headless",
        "pillow",
        "simplejpeg",
        "scikit-learn",
    ):
        with contextlib.suppress(metadata.PackageNotFoundError):
            packages[name] = metadata.version(name)
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processors": os.cpu_count(),
        "packages": packages,
        "command": [Path(sys.argv[0]).name, *map(_without_home, sys.argv[1:])],
    }


def _without_home(text: str) -> str:
    with contextlib.suppress(RuntimeError):
        home = re.escape(str(Path.home()))
        return re.sub(rf"(?<![\w./\\-]){home}(?=[/\\]|$)", lambda _: "~", text) if len(home) > 2 else text
    return text


def _last_byte(file: Any) -> bytes:
    file.seek(-1, os.SEEK_END)
    last: bytes = file.read(1)
    return last
