"""What was measured about engines, kept by machine, net, shape and package versions in the cache folder."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import platform
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from striate import __version__
from striate.core.errors import StriateError
from striate.core.files import write_json
from striate.core.machine import cache_folder, processors
from striate.engines.engine import ENGINES, PLAIN, Form

FORMAT = 1


@dataclass(frozen=True)
class Timing:
    """Seconds that an engine takes to build, and for one pass of the batch."""

    setup: float
    seconds: float


@dataclass
class Record:
    """For one net and shape: what each form of an engine takes, and why some were dropped."""

    timings: dict[Form, Timing] = field(default_factory=dict)
    dropped: dict[Form, str] = field(default_factory=dict)

    def best(self, passes: float, engines: Collection[str]) -> Form:
        """Of these engines the form that is done first with so many passes, its building counted.

        The net itself where nothing is known.
        """
        total = {
            form: timing.setup + passes * timing.seconds
            for form, timing in self.timings.items()
            if form.engine in engines
        }
        return min(total, key=lambda form: total[form], default=PLAIN)


def key(net: nn.Module, shape: tuple[int, ...], device: torch.device, threads: int) -> dict[str, Any]:
    """All that a measurement depends on, as plain JSON values."""
    versions = {"striate": __version__, "torch": torch.__version__}
    for entry in ENGINES:
        if entry.value.missing(device) is None:
            versions |= {entry.name: "", **entry.value.versions()}
    return {
        "format": FORMAT,
        "machine": machine(device),
        "processors": processors(),
        "threads": threads,
        "net": str(getattr(net, "name", type(net).__name__)),
        "digest": digest(net),
        "shape": list(shape),
        "versions": versions,
    }


def load(about: Mapping[str, Any]) -> Record:
    """The record of this key; an empty one where there is none, or none that can be read."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
        found = json.loads(path_of(about).read_text("utf-8"))
        if found["about"] == about:
            timings = {_form(row): _timing(row) for row in found["timings"]}
            return Record(timings, {_form(row): str(row["reason"]) for row in found["dropped"]})
    return Record()


def save(about: Mapping[str, Any], record: Record) -> str | None:
    """Keep a record, in one step; what went wrong where it cannot be kept, which is no reason to stop."""
    timings = [
        {**_words(form), "setup": round(timing.setup, 4), "seconds": round(timing.seconds, 6)}
        for form, timing in record.timings.items()
    ]
    dropped = [{**_words(form), "reason": reason} for form, reason in record.dropped.items()]
    try:
        write_json(path_of(about), {"about": dict(about), "timings": timings, "dropped": dropped})
    except StriateError as error:
        return str(error)
    return None


def path_of(about: Mapping[str, Any]) -> Path:
    """The file of a key."""
    text = json.dumps(about, sort_keys=True)
    return cache_folder() / "engines" / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"


def digest(net: nn.Module) -> str:
    """A hash of what a net computes with, but for the numbers: its modules, their settings, their shapes."""
    found = hashlib.sha256()
    for name, module in net.named_modules():
        kind = type(module)
        shapes = [
            tuple(t.shape)
            for t in (*module.parameters(recurse=False), *module.buffers(recurse=False))
            if t is not None
        ]
        found.update(
            f"{name} {kind.__module__}.{kind.__qualname__} {module.extra_repr()} {shapes}\n".encode()
        )
    return found.hexdigest()[:32]


def machine(device: torch.device) -> str:
    """The processor's name and instructions, or the card's name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    return f"{name} ({torch.backends.cpu.get_cpu_capability()}, of {os.cpu_count()})"


def _words(form: Form) -> dict[str, Any]:
    return {"engine": form.engine, "layout": form.layout, "threads": form.threads}


def _form(row: Mapping[str, Any]) -> Form:
    return Form(str(row["engine"]), str(row["layout"]), int(row["threads"]))


def _timing(row: Mapping[str, Any]) -> Timing:
    found = Timing(float(row["setup"]), float(row["seconds"]))
    if not (math.isfinite(found.setup) and math.isfinite(found.seconds) and found.seconds > 0):
        raise ValueError("a time that is none")
    return found
