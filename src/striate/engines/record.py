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

FORMAT = 2
# A time can be relied on from so many trials: a single pass is one, a turn of a race as many as are needed.
SURE = 3


@dataclass(frozen=True)
class Timing:
    """Seconds that an engine takes to build, and for one pass of the batch; and from how many trials."""

    setup: float
    seconds: float
    trials: int = SURE

    def and_once(self, seconds: float) -> Timing:
        """This, and a single pass since: it may have been a cold one, so it tells nothing of what is sure."""
        if self.trials >= SURE:
            return self
        return Timing(self.setup, min(self.seconds, seconds), self.trials + 1)


@dataclass
class Record:
    """For one net and shape: what each form of an engine takes, and why some were dropped.

    weights: of which numbers in the net the latter holds: with others, an engine may well agree.
    """

    timings: dict[Form, Timing] = field(default_factory=dict)
    dropped: dict[Form, str] = field(default_factory=dict)
    weights: str = ""

    def known(self) -> set[Form]:
        """The forms that need not be measured again."""
        return {form for form, timing in self.timings.items() if timing.trials >= SURE} | {*self.dropped}

    def add(self, form: Form, setup: float, seconds: float, turns: int) -> None:
        """Keep what was measured in so many turns of a race, or in a single pass (0)."""
        before = self.timings.get(form)
        if turns or before is None:
            self.timings[form] = Timing(setup, seconds, turns * SURE or 1)
        else:
            self.timings[form] = before.and_once(seconds)

    def drop(self, form: Form, reason: str, net: nn.Module) -> None:
        """Keep why a form is no choice for these weights."""
        self.timings.pop(form, None)
        self.dropped[form] = reason
        self.weights = self.weights or numbers(net)

    def only_for(self, net: nn.Module) -> Record:
        """This, without what was dropped for other weights."""
        if self.dropped and self.weights != numbers(net):
            self.dropped, self.weights = {}, ""
        return self

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
            dropped = {_form(row): str(row["reason"]) for row in found["dropped"]}
            return Record(timings, dropped, str(found["weights"]))
    return Record()


def save(about: Mapping[str, Any], record: Record) -> str | None:
    """Keep a record, in one step; what went wrong where it cannot be kept, which is no reason to stop."""
    timings = [
        {
            **_words(form),
            "setup": round(timing.setup, 4),
            "seconds": round(timing.seconds, 6),
            "trials": timing.trials,
        }
        for form, timing in record.timings.items()
    ]
    dropped = [{**_words(form), "reason": reason} for form, reason in record.dropped.items()]
    try:
        found = {"about": dict(about), "timings": timings, "dropped": dropped, "weights": record.weights}
        write_json(path_of(about), found)
    except StriateError as error:
        return str(error)
    return None


def folder() -> Path:
    """Where what is known of engines is kept."""
    return cache_folder() / "engines"


def path_of(about: Mapping[str, Any]) -> Path:
    """The file of a key."""
    text = json.dumps(about, sort_keys=True)
    return folder() / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"


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


def numbers(net: nn.Module) -> str:
    """A hash of a net's weights and statistics."""
    found = hashlib.sha256()
    for tensor in (*net.parameters(), *net.buffers()):
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
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
    found = Timing(float(row["setup"]), float(row["seconds"]), int(row["trials"]))
    if not (math.isfinite(found.setup) and math.isfinite(found.seconds) and found.seconds > 0):
        raise ValueError("a time that is none")
    return found
