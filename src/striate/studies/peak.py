"""The machine's peak: the fastest of large matrix products and 3x3 convolutions over several libraries."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from striate.core.results import Result
from striate.engines.engine import ENGINES, Form, Unusable
from striate.engines.source import Source

# Sides of the square matrices; (images, maps, height and width) of the convolutions, as many maps out as in.
MATRICES = (1024, 2048)
CONVOLUTIONS = ((8, 128, 56), (16, 256, 28))
SECONDS = 0.3


@dataclass(frozen=True)
class Peak(Result):
    """GFLOP/s of each trial: 2 operations for each product of a matrix product or a direct convolution."""

    ROWS = ("trial", "gflops")

    trial: tuple[str, ...]
    gflops: tuple[float, ...]

    @property
    def best(self) -> float:
        """The highest of them, in GFLOP/s."""
        return max(self.gflops)

    def lines(self) -> list[str]:
        """One line: the fastest trial."""
        place = self.gflops.index(self.best)
        return [f"peak: {self.best:,.0f} GFLOP/s ({self.trial[place]})"]

    def joined(self, other: Peak) -> Peak:
        """The better of two measurements, trial by trial: the machine drifts within minutes."""
        pairs = zip(self.gflops, other.gflops, strict=True)
        return Peak(self.trial, tuple(max(pair) for pair in pairs))


def peak(
    *,
    device: str = "cpu",
    seconds: float = SECONDS,
    matrices: Sequence[int] = MATRICES,
    convolutions: Sequence[tuple[int, int, int]] = CONVOLUTIONS,
) -> Peak:
    """Measure it, with the threads that PyTorch computes with now; float32; every trial for `seconds`."""
    found: dict[str, float] = {}
    threads = torch.get_num_threads()
    with torch.inference_mode(), _numpy_threads(threads):
        for side in matrices:
            for name, run in _products(side, device, threads).items():
                found[f"{side} x {side} matrices, {name}"] = _rate(run, 2 * side**3, seconds, device)
        for count, maps, length in convolutions:
            work = 2 * count * length**2 * maps**2 * 9
            for name, run in _convolutions(count, maps, length, device, threads).items():
                label = f"3x3 convolution of {count} x {maps} x {length} x {length}, {name}"
                found[label] = _rate(run, work, seconds, device)
    return Peak(tuple(found), tuple(found.values()))


Run = Callable[[], object]


def _products(side: int, device: str, threads: int) -> dict[str, Run]:
    values = np.random.default_rng(0).standard_normal((side, side), dtype=np.float32)
    a = torch.from_numpy(values).to(device)
    out = torch.empty_like(a)
    runs: dict[str, Run] = {"PyTorch": lambda: torch.mm(a, a, out=out)}
    if device == "cpu":
        room = np.empty_like(values)
        runs["NumPy"] = lambda: np.matmul(values, values, out=room)
        layer = nn.Linear(side, side, bias=False)
        runs |= _runtime(layer, torch.from_numpy(values), threads)
    return runs


def _convolutions(count: int, maps: int, length: int, device: str, threads: int) -> dict[str, Run]:
    layer = nn.Conv2d(maps, maps, 3, padding=1, bias=False).to(device)
    x = torch.linspace(-1, 1, count * maps * length**2, device=device).reshape(count, maps, length, length)
    last = x.contiguous(memory_format=torch.channels_last)
    wide: Any = nn.Conv2d(maps, maps, 3, padding=1, bias=False).to(device)
    wide = wide.to(memory_format=torch.channels_last)
    runs: dict[str, Run] = {"PyTorch nchw": lambda: layer(x), "PyTorch channels-last": lambda: wide(last)}
    return runs | (_runtime(layer, x, threads) if device == "cpu" else {})


def _runtime(layer: nn.Module, x: torch.Tensor, threads: int) -> dict[str, Run]:
    kind = ENGINES.get("onnxruntime")
    if kind.missing(torch.device("cpu")):
        return {}
    try:
        engine = kind(Source(layer.eval()), x, Form("onnxruntime", "", threads))
    except Unusable:
        return {}
    return {"ONNX Runtime": lambda: engine(x)}


def _rate(run: Run, operations: float, seconds: float, device: str) -> float:
    """GFLOP/s of the fastest run."""
    run()
    best, began = float("inf"), time.perf_counter()
    while True:
        start = time.perf_counter()
        run()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        now = time.perf_counter()
        best = min(best, now - start)
        if now - began >= seconds:
            return operations / best / 1e9


def _numpy_threads(threads: int) -> Any:
    # Comes with scikit-learn; the only way to tell the library behind NumPy after it is loaded.
    from threadpoolctl import threadpool_limits

    return threadpool_limits(threads, user_api="blas")
