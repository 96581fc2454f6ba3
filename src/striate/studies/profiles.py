"""Profiles: where the time of training, prediction and loading goes, beside the machine's peak."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from striate.core.errors import StriateError
from striate.core.machine import check_threads
from striate.core.results import Result
from striate.nets.cost import cost, table
from striate.studies.peak import Peak, peak


@dataclass(frozen=True)
class Profile(Result):
    """Where the time goes: milliseconds a batch, by part and, for nets, by stage.

    parts: of a batch, all together its time. Stages: forward and backward milliseconds, and GFLOP/s of the
    two together (2 operations a multiply-add; backward counts twice the forward, the first layer that has
    weights once, because nobody asks for the gradient of the picture). fraction: of the peak, measured before
    and after in the same process, the better counts. engines: images a second of each engine in its race.
    """

    ROWS = ("stage", "forward_ms", "backward_ms", "stage_gflops")

    action: str
    target: str
    device: str
    threads: int
    batch: int
    size: tuple[int, int] | None
    steps: int
    parts: dict[str, float]
    images_per_second: float
    stage: tuple[str, ...] = ()
    forward_ms: tuple[float, ...] = ()
    backward_ms: tuple[float, ...] = ()
    stage_gflops: tuple[float | None, ...] = ()
    gflops: float | None = None
    peak: Peak | None = None
    engines: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def fraction(self) -> float | None:
        """GFLOP/s of the whole, waiting and all, as a part of the peak."""
        if self.gflops is None or self.peak is None:
            return None
        return self.gflops / self.peak.best

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, the fraction of the peak among them."""
        return {**super().to_dict(), "fraction": self.fraction}

    def lines(self) -> list[str]:
        """The parts, the stages, and the rate beside the peak, as text."""
        size = "" if self.size is None else f", {self.size[0]} x {self.size[1]} pixels"
        head = (
            f"{self.action} {self.target}: batch {self.batch}{size}, {self.device},"
            f" {self.threads} thread{'' if self.threads == 1 else 's'}, {self.steps} batches"
        )
        whole = sum(self.parts.values()) or 1.0
        rows = [("part", "ms a batch", "%")]
        rows += [(name, f"{ms:,.2f}", f"{100 * ms / whole:.1f}") for name, ms in self.parts.items()]
        told = [head, "", *table(rows, texts=1)]
        if self.stage:
            told += ["", *self._stages()]
        if self.engines:
            rates = sorted(self.engines.items(), key=lambda pair: -pair[1])
            told += ["", *table([("engine", "images/s"), *((n, f"{r:,.1f}") for n, r in rates)], texts=1)]
        told += ["", f"{self.images_per_second:,.1f} images/s" + self._rate()]
        return [*told, *(self.peak.lines() if self.peak else []), *self.notes]

    def _rate(self) -> str:
        if self.gflops is None:
            return ""
        part = "" if self.fraction is None else f", {100 * self.fraction:.0f} % of the peak"
        return f"; {self.gflops:,.0f} GFLOP/s{part}"

    def _stages(self) -> list[str]:
        back = any(self.backward_ms)
        best = self.peak.best if self.peak else None
        rows: list[Sequence[str]] = [
            ("stage", "forward ms", *(["backward ms"] if back else []), "GFLOP/s", "% of peak")
        ]
        for name, ahead, behind, rate in zip(
            self.stage, self.forward_ms, self.backward_ms, self.stage_gflops, strict=True
        ):
            some = rate is not None and rate >= 0.1
            cells = [
                f"{rate:,.1f}" if some else "",
                f"{100 * (rate or 0) / best:.0f}" if some and best else "",
            ]
            rows.append((name, f"{ahead:,.2f}", *([f"{behind:,.2f}"] if back else []), *cells))
        return table(rows, texts=1)


def stage_rows(
    names: Sequence[str],
    forward: Mapping[str, float],
    backward: Mapping[str, float],
    multiply_adds: Mapping[str, int],
    batch: int,
) -> dict[str, Any]:
    """The stage fields of a `Profile` from seconds a batch and multiply-adds a picture."""
    first = next((name for name in names if multiply_adds.get(name)), None)
    ahead = [1e3 * forward.get(name, 0.0) for name in names]
    behind = [1e3 * backward.get(name, 0.0) for name in names]
    rates: list[float | None] = []
    for name, a, b in zip(names, ahead, behind, strict=True):
        passes = 1 if not backward else 2 if name == first else 3
        work = 2 * batch * multiply_adds.get(name, 0) * passes
        rates.append(work / (a + b) / 1e6 if work and a + b > 0 else None)
    return {
        "stage": tuple(names),
        "forward_ms": tuple(ahead),
        "backward_ms": tuple(behind),
        "stage_gflops": tuple(rates),
    }


def work_of(names: Sequence[str], multiply_adds: Mapping[str, int], *, training: bool) -> float:
    """Operations of one picture: 2 a multiply-add; in training 3 passes, but 2 of the first layer."""
    total = sum(multiply_adds.values())
    if not training:
        return 2.0 * total
    first = next((multiply_adds[name] for name in names if multiply_adds.get(name)), 0)
    return 2.0 * (3 * total - first)


@dataclass(frozen=True)
class Wanted:
    """What is asked of a profile; see `bench_verb`."""

    target: str
    data: str | None = None
    size: int | None = None
    batch: int = 32
    steps: int = 10
    threads: int = 0
    device: str = "auto"
    augment: str = "auto"
    engine: str = "auto"
    with_peak: bool = True

    def __post_init__(self) -> None:
        check_threads(self.threads)
        for name, least in (("batch", 1), ("steps", 1)):
            value = getattr(self, name)
            if value < least:
                raise StriateError(f"{name} is {value}", allowed=f"a whole number, at least {least}")
        if self.size is not None and self.size < 1:
            raise StriateError(f"size is {self.size}", allowed="a positive number of pixels")


def between(wanted: Wanted, device: torch.device, work: Callable[[], Profile]) -> Profile:
    """A profile with the machine's peak, measured right before and right after it."""
    if not wanted.with_peak:
        return work()
    before = peak(device=str(device))
    found = work()
    return dataclasses.replace(found, peak=before.joined(peak(device=str(device))))


def multiply_adds_of(net: nn.Module, sides: tuple[int, int]) -> dict[str, int]:
    """Multiply-adds of each stage for one picture; empty where the net cannot be counted."""
    try:
        found = cost(net, sides, training=False)
    except StriateError:
        return {}
    return dict(zip(found.stage, found.multiply_adds, strict=True))
