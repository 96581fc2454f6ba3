"""Deep dream of a photograph of 12 megapixels: time and peak memory.

    python bench/dream.py [--size 4000x3000] [--steps 2] [--octaves 4] [--stages block4c] [--threads 2]

EfficientNet-Lite0 (random weights from a fixed seed; trained ones take as much), tiles of 512. One JSON line:
seconds, peak memory of this process, and what it held before.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

from striate.core import machine
from striate.data.preprocess import Preprocess
from striate.model import Model
from striate.nets.net import create_net
from striate.tasks.classification import Classification
from striate.visualize.dream import dream


def peak() -> int:
    """Peak memory of this process in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return round(int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024)


def main() -> None:
    """Print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="4000x3000", help="width x height")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--octaves", type=int, default=4)
    parser.add_argument("--stages", default="block4c")
    parser.add_argument("--tile", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    machine.keep_heap()
    torch.manual_seed(0)
    net = create_net("efficientnet_lite0", 10)
    model = Model(net.eval(), Classification([str(k) for k in range(10)]), Preprocess(size=(224, 224)))
    width, height = map(int, options.size.split("x"))
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    before = peak()
    began = time.perf_counter()
    made = dream(
        model, image, stages=options.stages, steps=options.steps, octaves=options.octaves, tile=options.tile
    )
    line = {
        "bench": "dream", "size": options.size, "steps": options.steps, "octaves": options.octaves,
        "stages": options.stages, "tile": options.tile, "seconds": round(time.perf_counter() - began, 1),
        "peak_mb": peak(), "peak_before_mb": before, "threads": options.threads, "torch": torch.__version__,
        "rises": made.history[-1] > made.history[-options.steps],
    }  # fmt: skip
    print(json.dumps(line))


if __name__ == "__main__":
    main()
