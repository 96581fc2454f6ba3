"""Projections of 256 units of one image, against one forward and one backward pass for each unit, in turns.

    python bench/projection.py [--nets vgg16 resnet18] [--units 256] [--rounds 3] [--threads 2]

224 x 224, float32, random weights from a fixed seed; units at random maps and places of each stage. The other
side runs the net up to the stage, and back from the unit by the same rule, unit by unit, on as many units as
`--passes` says; its time is scaled to all. One JSON line a stage and rule: seconds (medians), speed, the
stage's receptive field, and the largest difference between both ways' projections as a part of the largest
value.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import numpy as np
import torch
from torch import Tensor, nn

from occlusion import a_model, a_picture
from striate.core.machine import keep_heap
from striate.model import Model
from striate.nets.geometry import stage_geometry
from striate.visualize.method import net_input
from striate.visualize.projection import Projector, Unit
from striate.visualize.rules import backward_rule

STAGES = {
    "vgg16": ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3"),
    "resnet18": ("relu1", "res2b", "res3b", "res4b", "res5b"),
}


def up_to(model: Model, stage: str) -> nn.Sequential:
    """The net's stages up to one of them."""
    names = model.net.stage_names
    return nn.Sequential(*(model.net.get_submodule(name) for name in names[: names.index(stage) + 1]))


def by_passes(net: nn.Module, x: Tensor, units: list[Unit], rule: str) -> list[Tensor]:
    """One forward and one backward pass for each unit."""
    found = []
    for channel, row, column in units:
        picture = x.clone().requires_grad_()
        with backward_rule(rule):
            found.append(torch.autograd.grad(net(picture)[0, channel, row, column], picture)[0][0])
    return found


def measure(
    model: Model, name: str, stage: str, rule: str, count: int, passes: int, rounds: int
) -> dict[str, object]:
    """One line."""
    x, net = net_input(model, a_picture()), up_to(model, stage)
    with torch.no_grad():
        channels, height, width = net(x).shape[1:]
    draws = np.random.default_rng(0)
    units = [tuple(int(draws.integers(n)) for n in (channels, height, width)) for _ in range(count)]
    quick, slow = [], []
    for _ in range(rounds):
        began = time.perf_counter()
        ours = list(Projector(model, x, stage).project(units, rule))
        quick.append(time.perf_counter() - began)
        began = time.perf_counter()
        theirs = by_passes(net, x, units[:passes], rule)
        slow.append((time.perf_counter() - began) * count / len(theirs))
    pairs = zip(ours, theirs, strict=False)
    far = max(float((a.whole(224, 224) - b).abs().max() / b.abs().max().clamp_min(1e-30)) for a, b in pairs)
    info = next(i for i in stage_geometry(model.net, 224) if i.name == stage)
    return {
        "bench": "projection", "net": name, "stage": stage, "rule": rule, "units": count,
        "receptive_field": info.receptive_field, "projector_s": round(statistics.median(quick), 3),
        "passes_s": round(statistics.median(slow), 3),
        "speed": round(statistics.median(slow) / statistics.median(quick), 2), "difference": far,
        "threads": torch.get_num_threads(), "torch": torch.__version__,
    }  # fmt: skip


def main() -> None:
    """Print one JSON line for each net, stage and rule."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nets", nargs="+", default=["vgg16", "resnet18"], choices=list(STAGES))
    parser.add_argument("--stages", nargs="*", default=[])
    parser.add_argument("--rules", nargs="+", default=["deconvnet", "guided"])
    parser.add_argument("--units", type=int, default=256)
    parser.add_argument("--passes", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_heap()
    for name in options.nets:
        model = a_model(name)
        for stage in options.stages or STAGES[name]:
            for rule in options.rules:
                line = measure(model, name, stage, rule, options.units, options.passes, options.rounds)
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
