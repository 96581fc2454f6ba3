"""Striate's `fit` against a bare PyTorch loop: the same net, batch, memory format, data and optimiser steps.

    python bench/fit.py [--rounds 7] [--threads 2]

Rounds of both loops alternate in one process, each round from the same weights; the figure is the median over
the rounds of time(fit) / time(bare). One JSON line a net.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from striate.core.machine import keep_heap
from striate.nets.net import create_net
from striate.tasks.classification import Classification
from striate.train.fit import Job, fit
from striate.train.optimize import build_optimizer
from striate.train.recipe import Recipe
from striate.train.schedules import Plan

CASES = (("resnet20", 32, 128, 10, 8), ("resnet18", 224, 16, 1000, 4))


class InMemory:
    """Batches of ready tensors, the same for both loops."""

    preprocess = None

    def __init__(self, images: Tensor, targets: Tensor, batch: int) -> None:
        self.images, self.targets, self.batch = images, targets, batch
        self.split, self.waited, self.bad = SimpleNamespace(name="train"), 0.0, []

    def __len__(self) -> int:
        return len(self.images) // self.batch

    def batches(self, epoch: int, start: int = 0) -> Iterator[Any]:
        for k in range(start, len(self)):
            part = slice(k * self.batch, (k + 1) * self.batch)
            index = np.arange(part.start, part.stop)
            yield SimpleNamespace(images=self.images[part], targets=self.targets[part], index=index)


def bare(net: nn.Module, images: Tensor, targets: Tensor, batch: int) -> float:
    """The loop of every tutorial, with the optimiser's fused step, which `fit` takes too; seconds."""
    optimizer = torch.optim.SGD(
        net.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=True
    )
    net.train()
    began = time.perf_counter()
    total = 0.0
    for k in range(len(images) // batch):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(
            net(images[k * batch : (k + 1) * batch]), targets[k * batch : (k + 1) * batch]
        )
        loss.backward()
        optimizer.step()
        total += loss.item()
    return time.perf_counter() - began


def ours(net: nn.Module, loader: InMemory, classes: int) -> float:
    """The same steps by `fit`; seconds."""
    recipe = Recipe(epochs=1, batch=loader.batch, lr=0.1, schedule="one-cycle", checkpoint_every=1e9)
    task = Classification([str(k) for k in range(classes)])
    job = Job(net, task, build_optimizer(net, recipe), loader, None, recipe, Plan.of(recipe, len(loader)))  # type: ignore[arg-type]
    began = time.perf_counter()
    fit(job)
    return time.perf_counter() - began


def compare(name: str, size: int, batch: int, classes: int, steps: int, rounds: int) -> dict[str, Any]:
    """Time both loops in turn."""
    torch.manual_seed(0)
    net = create_net(name, classes, 3, size=size).to(memory_format=torch.channels_last)
    images = torch.randn(batch * steps, 3, size, size).contiguous(memory_format=torch.channels_last)
    targets = torch.randint(classes, (batch * steps,))
    loader = InMemory(images, targets, batch)
    times: dict[str, list[float]] = {"bare": [], "fit": []}
    for number in range(rounds + 1):
        # The order changes from round to round; the first round warms up.
        for which in ("bare", "fit") if number % 2 else ("fit", "bare"):
            copied = copy.deepcopy(net)
            seconds = (
                bare(copied, images, targets, batch) if which == "bare" else ours(copied, loader, classes)
            )
            if number:
                times[which].append(seconds)
    ratios = [b / a for a, b in zip(times["bare"], times["fit"], strict=True)]
    speed = {key: round(batch * steps / statistics.median(value), 2) for key, value in times.items()}
    return {
        "bench": "fit", "net": name, "size": size, "batch": batch, "threads": torch.get_num_threads(),
        "bare_images_per_second": speed["bare"], "fit_images_per_second": speed["fit"],
        "time_ratio": round(statistics.median(ratios), 4), "ratios": [round(r, 4) for r in sorted(ratios)],
    }  # fmt: skip


def main() -> None:
    """Print one JSON line a net."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=0, help="0: all processors")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    keep_heap()
    for case in CASES:
        print(json.dumps(compare(*case, arguments.rounds)), flush=True)


if __name__ == "__main__":
    main()
