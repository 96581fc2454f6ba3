"""Occlusion of one picture on boxes, against the best batched full pass, Captum and ONNX Runtime, in turns.

    python bench/occlusion.py [--nets vgg16 resnet18] [--rounds 3] [--threads 2] [--positions 0] [--no-peers]

224 x 224, a grey square of 32, stride 8 (625 positions), float32, random weights from a fixed seed. The full
pass runs in both memory layouts and at several batch sizes on 32 positions, and then whole at the fastest
of them; both ways run in the same process, in turns. Captum's `Occlusion` and a batched loop on ONNX Runtime
run last, where they are installed, each at its fastest batch size. One JSON line a net: seconds (medians),
speed (full over incremental, by the clock and by processor time), ratio (full over incremental multiply-adds,
by receptive fields and as measured from the data), the largest difference in probability, and peak memory
after the boxes alone. `full_tiled_s` is the full pass with its 3 x 3 convolutions on tiles, as boxes have
them. `--positions N` takes the full pass over N positions, spread over the picture, and the
peers over about as many (Captum over 49), and scales their times: for a quick look.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from striate.core.machine import keep_heap
from striate.data.preprocess import Preprocess
from striate.layers.winograd import tiled
from striate.model import Model
from striate.nets.net import create_net
from striate.tasks.classification import Classification
from striate.visualize.covered import full_pass
from striate.visualize.incremental import Incremental, Patches
from striate.visualize.occlusion import Occlusion
from striate.visualize.stages import last_with_maps

BATCHES = (1, 2, 4, 8, 16, 32)
LAYOUTS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}
SIDE, STRIDE = 32, 8


def a_model(name: str) -> Model:
    """A net for 1000 classes with random weights, and running statistics that keep signals in range."""
    torch.manual_seed(0)
    net = create_net(name, 1000)
    side = net.input_size[0]
    with torch.no_grad():
        if any(isinstance(module, torch.nn.BatchNorm2d) for module in net.modules()):
            net.train()
            for _ in range(2):
                net(torch.randn(4, 3, side, side))
        # Logits as far apart as those of a trained net: else all probabilities are 1/1000.
        logits = net.eval()(torch.randn(1, 3, side, side))
        net.head_layer.weight.mul_(3 / float(logits.std()))
    preprocess = Preprocess(
        size=(side, side), resize="squash", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    )
    return Model(net.eval(), Classification([str(k) for k in range(1000)]), preprocess)


def a_picture() -> np.ndarray:
    """Smooth shapes and grain, (224, 224, 3) uint8."""
    draws = np.random.default_rng(0)
    y, x = np.mgrid[0:224, 0:224] / 224
    waves = [np.sin(2 * np.pi * (a * x + b * y + c)) for a, b, c in draws.uniform(0, 4, (3, 3))]
    picture = 128 + 70 * np.stack(waves, -1) + draws.normal(0, 12, (224, 224, 3))
    return picture.clip(0, 255).astype(np.uint8)


def seconds(function: Callable[[], object]) -> float:
    """The time of one call."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def spread(patches: Patches, count: int) -> Patches:
    """`count` of the positions, spread evenly."""
    return patches.some(np.linspace(0, len(patches) - 1, count).astype(int))


def fastest(run: Callable[[Patches, int], object], patches: Patches) -> int:
    """The batch size at which 32 positions run fastest."""
    some, found = spread(patches, 32), {}
    for batch in BATCHES:
        run(spread(patches, batch), batch)
        found[batch] = seconds(lambda batch=batch: run(some, batch))
    return min(found, key=found.__getitem__)


def best_full(model: Model, patches: Patches, stage: str) -> tuple[str, int]:
    """The layout and batch size at which the full pass is fastest; the net is left in that layout."""
    found = {}
    for layout, form in LAYOUTS.items():
        model.net.to(memory_format=form)
        some = Patches(patches.clean.to(memory_format=form), patches.source, patches.y, patches.x, SIDE)
        batch = fastest(lambda p, b: full_pass(model, p, stage, 0, b), some)
        found[layout, batch] = seconds(lambda b=batch, s=some: full_pass(model, spread(s, 32), stage, 0, b))
    return min(found, key=found.__getitem__)


def captum_seconds(model: Model, patches: Patches, count: int) -> dict[str, object]:
    """Captum's Occlusion at its fastest batch size."""
    try:
        from captum.attr import Occlusion as Captum
    except ImportError:
        return {}
    explainer, grey = Captum(model.net), patches.source

    def run(stride: int, batch: int) -> None:
        explainer.attribute(
            patches.clean, sliding_window_shapes=(3, SIDE, SIDE), strides=(3, stride, stride), baselines=grey,
            target=0, perturbations_per_eval=batch,
        )  # fmt: skip

    # It takes no stride beyond the square's side: 7 x 7 windows.
    found = {batch: seconds(lambda b=batch: run(SIDE, b)) for batch in BATCHES[2:]}
    batch, done = min(found, key=found.__getitem__), ((patches.clean.shape[-1] - SIDE) // SIDE + 1) ** 2
    taken = found[batch] * len(patches) / done
    if count == len(patches):
        taken, done = seconds(lambda: run(STRIDE, batch)), count
    return {"captum_s": round(taken, 2), "captum_batch": batch, "captum_positions": done}


def onnx_seconds(model: Model, patches: Patches, count: int, threads: int) -> dict[str, object]:
    """A batched loop on ONNX Runtime at its fastest batch size."""
    try:
        import onnxruntime
    except ImportError:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.onnx"
        batch = torch.export.Dim("batch")
        torch.onnx.export(
            model.net, (patches.clean.expand(2, -1, -1, -1).contiguous(),), path, dynamo=True,
            dynamic_shapes=({0: batch},), verbose=False,
        )  # fmt: skip
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(some: Patches, batch: int) -> Tensor:
        parts = np.array_split(np.arange(len(some)), -(-len(some) // batch))
        found = [session.run(None, {name: some.pictures(part).contiguous().numpy()})[0] for part in parts]
        return torch.from_numpy(np.concatenate(found))

    best, some = fastest(run, patches), spread(patches, count)
    taken = seconds(lambda: run(some, best)) * len(patches) / count
    return {"onnxruntime_s": round(taken, 2), "onnxruntime_batch": best}


def measure(name: str, rounds: int, positions: int, peers: bool) -> dict[str, object]:
    """One line: both ways in turns, then the peers."""
    model, method = a_model(name), Occlusion(size=SIDE, stride=STRIDE)
    view = model.preprocess.view(a_picture())
    patches, _ = method._patches(model, view)
    stage, count = last_with_maps(model, view), positions or len(patches)
    with torch.no_grad():
        Incremental(model.net, patches.clean, stage=stage).run(spread(patches, 100), 0)
    peak = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    layout, batch = best_full(model, patches, stage)
    model.net.to(memory_format=LAYOUTS[layout])
    some = spread(patches, count)
    some.clean = some.clean.to(memory_format=LAYOUTS[layout])
    quick, slow, busy = [], [], []
    for _ in range(rounds):
        model.net.to(memory_format=torch.contiguous_format)
        began, used = time.perf_counter(), time.process_time()
        with torch.no_grad():
            incremental = Incremental(model.net, patches.clean, stage=stage)
            outcome = incremental.run(patches, 0)
        quick.append(time.perf_counter() - began)
        busy.append([time.process_time() - used])
        model.net.to(memory_format=LAYOUTS[layout])
        began, used = time.perf_counter(), time.process_time()
        full = full_pass(model, some, stage, 0, batch)
        slow.append((time.perf_counter() - began) * len(patches) / count)
        busy[-1].append((time.process_time() - used) * len(patches) / count)
    chosen = np.linspace(0, len(patches) - 1, count).astype(int)
    difference = outcome.outputs[chosen].softmax(1) - full.outputs.softmax(1)
    macs = incremental.full_macs()
    ratio, taken = macs / incremental.predicted(patches), statistics.median(quick)
    speed = statistics.median(slow) / taken
    model.net.to(memory_format=torch.channels_last)
    with tiled(model.net):
        tiles = seconds(lambda: full_pass(model, some, stage, 0, batch)) * len(patches) / count
    found = {
        "bench": "occlusion", "net": name, "positions": len(patches), "full_positions": count,
        "layout": layout, "batch": batch, "incremental_s": round(taken, 3),
        "full_s": round(statistics.median(slow), 3), "full_tiled_s": round(tiles, 3),
        "speed": round(speed, 3),
        "speed_cpu_time": round(statistics.median(b / a for a, b in busy), 3),
        "ratio": round(ratio, 3), "ratio_measured": round(macs / outcome.multiply_adds, 3),
        "speed_over_ratio": round(speed / ratio, 3), "difference": float(difference.abs().max()),
        "probability_spread": float(full.outputs.softmax(1).std(0).max()),
        "peak_mb": peak, "threads": torch.get_num_threads(), "torch": torch.__version__,
    }  # fmt: skip
    if peers:
        model.net.to(memory_format=torch.contiguous_format)
        others = {**captum_seconds(model, patches, count),
                  **onnx_seconds(model, patches, count, torch.get_num_threads())}  # fmt: skip
        ratios = {key.replace("_s", "_over_incremental"): round(float(value) / taken, 2)
                  for key, value in others.items() if key.endswith("_s")}  # fmt: skip
        found |= {**others, **ratios}
    return found


def main() -> None:
    """Print one JSON line a net."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nets", nargs="+", default=["vgg16", "resnet18"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--positions", type=int, default=0)
    parser.add_argument("--no-peers", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_heap()
    for name in options.nets:
        line = measure(name, options.rounds, options.positions, not options.no_peers)
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
