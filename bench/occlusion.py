"""Occlusion of one picture: recomputing what the square can have touched, against the best batched full pass.

    python bench/occlusion.py [--nets vgg16 resnet18] [--rounds 3] [--threads 2] [--positions 0]

224 x 224, a grey square of 32, stride 8 (625 positions), float32, random weights from a fixed seed. The full
pass runs at several batch sizes on 32 positions each, and then whole at the fastest one; both ways run in
the same process, in turns. One JSON line a net: seconds (medians), speed (full over incremental, by the clock
and by processor time), ratio (full over incremental multiply-adds, by receptive fields and as measured from
the data), the largest difference in probability, and peak memory. `--positions N` takes the full pass over N
positions, spread over the picture, and scales its time: for a quick look.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time

import numpy as np
import torch

from striate.data.preprocess import Preprocess
from striate.model import Model
from striate.nets.net import create_net
from striate.tasks.classification import Classification
from striate.visualize.incremental import Incremental, Patches
from striate.visualize.occlusion import Occlusion, full_pass
from striate.visualize.stages import last_with_maps

BATCHES = (1, 2, 4, 8, 16, 32)


def a_model(name: str) -> Model:
    """A net for 1000 classes with random weights, and running statistics that keep signals in range."""
    torch.manual_seed(0)
    net = create_net(name, 1000)
    with torch.no_grad():
        if any(isinstance(module, torch.nn.BatchNorm2d) for module in net.modules()):
            net.train()
            for _ in range(2):
                net(torch.randn(4, 3, 224, 224))
        # Logits as far apart as those of a trained net: else all probabilities are 1/1000.
        logits = net.eval()(torch.randn(1, 3, 224, 224))
        net.head_layer.weight.mul_(3 / float(logits.std()))
    preprocess = Preprocess(
        size=(224, 224), resize="squash", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    )
    return Model(net.eval(), Classification([str(k) for k in range(1000)]), preprocess)


def a_picture() -> np.ndarray:
    """Smooth shapes and grain, (224, 224, 3) uint8."""
    draws = np.random.default_rng(0)
    y, x = np.mgrid[0:224, 0:224] / 224
    waves = [np.sin(2 * np.pi * (a * x + b * y + c)) for a, b, c in draws.uniform(0, 4, (3, 3))]
    picture = 128 + 70 * np.stack(waves, -1) + draws.normal(0, 12, (224, 224, 3))
    return picture.clip(0, 255).astype(np.uint8)


def fastest_batch(model: Model, patches: Patches, stage: str) -> int:
    """The batch size at which the full pass over 32 positions is fastest."""
    some = Patches(patches.clean, patches.source, patches.y[:32], patches.x[:32], patches.side)
    found = {}
    for batch in BATCHES:
        full_pass(model, Patches(patches.clean, patches.source, patches.y[:batch], patches.x[:batch], 32),
                  stage, 0, batch)  # fmt: skip
        began = time.perf_counter()
        full_pass(model, some, stage, 0, batch)
        found[batch] = time.perf_counter() - began
    return min(found, key=found.__getitem__)


def measure(name: str, rounds: int, positions: int) -> dict[str, object]:
    """One line: both ways in turns."""
    model, method = a_model(name), Occlusion(size=32, stride=8)
    view = model.preprocess.view(a_picture())
    patches, _ = method._patches(model, view)
    stage = last_with_maps(model, view)
    batch = fastest_batch(model, patches, stage)
    chosen = np.linspace(0, len(patches) - 1, positions or len(patches)).astype(int)
    some = Patches(patches.clean, patches.source, patches.y[chosen], patches.x[chosen], patches.side)
    quick, slow, busy = [], [], []
    for _ in range(rounds):
        began, used = time.perf_counter(), time.process_time()
        with torch.no_grad():
            incremental = Incremental(model.net, patches.clean, stage=stage)
            outcome = incremental.run(patches, 0)
        quick.append(time.perf_counter() - began)
        busy.append([time.process_time() - used])
        began, used = time.perf_counter(), time.process_time()
        full = full_pass(model, some, stage, 0, batch)
        slow.append((time.perf_counter() - began) * len(patches) / len(some))
        busy[-1].append((time.process_time() - used) * len(patches) / len(some))
    difference = outcome.outputs[chosen].softmax(1) - full.outputs.softmax(1)
    macs = incremental.full_macs()
    ratio = macs / incremental.predicted(patches)
    speed = statistics.median(slow) / statistics.median(quick)
    return {
        "bench": "occlusion", "net": name, "positions": len(patches), "full_positions": len(some),
        "batch": batch, "incremental_s": round(statistics.median(quick), 3),
        "full_s": round(statistics.median(slow), 3), "speed": round(speed, 3),
        "speed_cpu_time": round(statistics.median(b / a for a, b in busy), 3),
        "ratio": round(ratio, 3), "ratio_measured": round(macs / outcome.multiply_adds, 3),
        "speed_over_ratio": round(speed / ratio, 3), "difference": float(difference.abs().max()),
        "probability_spread": float(full.outputs.softmax(1).std(0).max()),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "threads": torch.get_num_threads(), "torch": torch.__version__,
    }  # fmt: skip


def main() -> None:
    """Print one JSON line a net."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nets", nargs="+", default=["vgg16", "resnet18"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--positions", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name in options.nets:
        print(json.dumps(measure(name, options.rounds, options.positions)), flush=True)


if __name__ == "__main__":
    main()
