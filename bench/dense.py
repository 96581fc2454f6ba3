"""Dense evaluation against its windows: VGG-16 on 384 x 384, which are 36 windows of 224 at stride 32.

    python bench/dense.py [--rounds 5] [--threads 2] [--net vgg16] [--side 384]

Rounds of all variants alternate in one process on one image, the dense ones warmed up; the windows run
in batches of 6 and of all, the faster counts. The figure is the median over the rounds of
time(windows) / time(dense). One JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from striate.core.machine import keep_heap
from striate.data.preprocess import Preprocess
from striate.evaluate.dense import DenseNetwork
from striate.evaluate.protocols import Network, parse_protocol
from striate.model import Model
from striate.nets.convert import dense
from striate.nets.net import create_net
from striate.tasks.classification import Classification


def seconds(run: Callable[[], object]) -> float:
    """Wall seconds of one run."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def main() -> None:
    """Measure and print one JSON line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--net", default="vgg16")
    parser.add_argument("--side", type=int, default=384)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    keep_heap()
    torch.manual_seed(0)
    net = create_net(given.net, 1000).eval()
    own = net.size
    model = Model(net, Classification([str(k) for k in range(1000)]), Preprocess(size=(own, own)))
    image = np.random.default_rng(0).integers(0, 256, (given.side, given.side, 3), np.uint8)
    view = torch.from_numpy(image[None])
    network, plain = DenseNetwork(model, parse_protocol("dense")), Network(model)  # type: ignore[arg-type]
    step = network.step[0]
    starts = range(0, given.side - own + 1, step)
    windows = torch.from_numpy(np.stack([image[y : y + own, x : x + own] for y in starts for x in starts]))
    convolutions = dense(net).eval()
    pixels = model.preprocess.normalise(view)

    def by_windows(batch: int) -> Callable[[], object]:
        return lambda: [plain(windows[at : at + batch]) for at in range(0, len(windows), batch)]

    def by_torch() -> object:
        with torch.inference_mode():
            return convolutions(pixels)

    variants: dict[str, Callable[[], object]] = {
        "dense": lambda: network.maps(view),
        "dense, fully connected as convolutions": by_torch,
        **{f"windows, batch {batch}": by_windows(batch) for batch in (6, len(windows))},
    }
    times: dict[str, list[float]] = {name: [] for name in variants}
    for round_ in range(given.rounds + 1):
        for name, run in variants.items():
            if round_ or name.startswith("dense"):
                spent = seconds(run)
                times[name] += [spent] if round_ else []
    windowed = [min(row) for row in zip(*(t for n, t in times.items() if n.startswith("win")), strict=True)]
    macs = [network.multiply_adds(given.side, given.side), len(windows) * plain.multiply_adds(own, own)]
    figures = {
        "net": net.name,
        "side": given.side,
        "windows": len(windows),
        "threads": given.threads,
        "seconds": {name: round(statistics.median(spent), 4) for name, spent in times.items()},
        "ratio": round(statistics.median(w / d for w, d in zip(windowed, times["dense"], strict=True)), 2),
        "ratio of the convolutions alone": round(
            statistics.median(
                w / d for w, d in zip(windowed, times["dense, fully connected as convolutions"], strict=True)
            ),
            2,
        ),
        "ratio of multiply-adds": round(macs[1] / macs[0], 2),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
