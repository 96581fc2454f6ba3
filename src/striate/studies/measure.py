"""How fast nets are on this machine: rounds in which every net has its turn, medians over the rounds."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from striate.core.errors import StriateError
from striate.nets.taps import leaves_as_found
from striate.studies import energy

BATCHES = (1, 16)
# A turn lasts at least so many seconds or passes.
TURN, PASSES = 0.2, 2


@dataclass(frozen=True)
class Speed:
    """Medians of one net: seconds a picture alone and in a batch of 16, joules and watts in that batch.

    joules and watts are None without a counter.
    """

    latency_1: float
    latency_16: float
    joules: float | None
    watts: float | None


@dataclass(frozen=True)
class _Turn:
    seconds: float
    joules: float | None


def measure(
    makers: Sequence[Callable[[], nn.Module]],
    pictures: Sequence[Callable[[int], Tensor]],
    *,
    rounds: int = 5,
    meter: energy.EnergyMeter | None = None,
    device: str = "cpu",
    turn: float = TURN,
    told: Callable[[str], None] = lambda _: None,
) -> list[Speed]:
    """Time every net in turn, `rounds` times, in evaluation: what disturbs the machine disturbs all alike.

    makers: give each net, and are called once; pictures: give it a batch of so many. Every second round runs
    backwards, so that a drift of the machine cancels. A turn is a pass to warm up, then as many as fill
    `turn` seconds; its time is the mean of these, and the result the median of the rounds.

    Raises:
        StriateError: rounds is not positive.
    """
    if rounds < 1:
        raise StriateError(f"rounds is {rounds}", allowed="a positive whole number")
    nets = [maker().to(device) for maker in makers]
    turns: list[dict[int, list[_Turn]]] = [{batch: [] for batch in BATCHES} for _ in nets]
    for number in range(rounds):
        order = range(len(nets)) if number % 2 == 0 else range(len(nets) - 1, -1, -1)
        for place in order:
            for batch in BATCHES:
                x = pictures[place](batch).to(device)
                turns[place][batch].append(_turn(nets[place], x, turn, meter))
        told(f"round {number + 1} of {rounds}")
    return [_median(found) for found in turns]


def _turn(net: nn.Module, x: Tensor, least: float, meter: energy.EnergyMeter | None) -> _Turn:
    with leaves_as_found(net), torch.inference_mode():
        net.eval()
        net(x)
        _wait(x)
        before = meter.joules() if meter is not None else 0.0
        started, passes = time.perf_counter(), 0
        while True:
            net(x)
            passes += 1
            _wait(x)
            seconds = time.perf_counter() - started
            if seconds >= least and passes >= PASSES:
                break
        used = meter.joules() - before if meter is not None else None
    pictures = passes * len(x)
    return _Turn(seconds / pictures, None if used is None else used / pictures)


def _wait(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)


def _median(turns: dict[int, list[_Turn]]) -> Speed:
    single, several = ([turn.seconds for turn in turns[batch]] for batch in BATCHES)
    full = turns[BATCHES[1]]
    joules = [turn.joules for turn in full if turn.joules is not None]
    watts = [turn.joules / turn.seconds for turn in full if turn.joules is not None]
    return Speed(
        statistics.median(single),
        statistics.median(several),
        statistics.median(joules) if joules else None,
        statistics.median(watts) if watts else None,
    )


def peak_memory(
    spec: dict[str, Any], batch: int = BATCHES[1], *, device: str = "cpu", threads: int = 0
) -> int:
    """Bytes that a process of its own needs more for the net and one batch: weights, activations, scratch.

    spec: the arguments of `create_net`. On a processor the highest resident memory of the process counts,
    less that before the net was made; on a card what its allocator gave out at most.

    Raises:
        StriateError: the process failed.
    """
    words = json.dumps({"spec": spec, "batch": batch, "device": device, "threads": threads})
    done = subprocess.run(
        [sys.executable, "-c", "from striate.studies.measure import _child; _child()"],
        input=words, capture_output=True, text=True, env={**os.environ, "STRIATE_KEEP_HEAP": "0"},
    )  # fmt: skip
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise StriateError(f"the memory of {spec.get('name')!r} cannot be measured ({reason})")
    return int(json.loads(done.stdout)["bytes"])


def _child() -> None:
    from striate.nets.net import create_net

    asked = json.loads(sys.stdin.read())
    if asked["threads"]:
        torch.set_num_threads(asked["threads"])
    spec, device = dict(asked["spec"]), asked["device"]
    # What the first pass of any net loads is no part of this one.
    with torch.inference_mode():
        nn.Conv2d(3, 8, 3)(torch.zeros(1, 3, 16, 16))
    before = _peak(device)
    net = create_net(spec.pop("name"), spec.pop("classes"), spec.pop("in_channels"), **spec).eval().to(device)
    with torch.inference_mode():
        net(torch.zeros(asked["batch"], net.in_channels, *net.input_size, device=device))
    print(json.dumps({"bytes": max(0, _peak(device) - before)}))


def _peak(device: str) -> int:
    if device.startswith("cuda"):
        return int(torch.cuda.max_memory_allocated(device)) if torch.cuda.is_initialized() else 0  # type: ignore[no-untyped-call]
    # Not getrusage on Linux: there a new program starts with the peak of the process that started it.
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
