"""The units of all stages in one pass, against the plain forward pass over the same images.

    python bench/units.py [--nets resnet20 vgg11] [--data ../shared/data] [--images 10000] [--rounds 3]

10,000 CIFAR-10 test images (noise where the archive is not there), batches of 64, every stage with maps under
watch: top 9 of each unit with position, and all statistics. Both ways read the images by the same loader, in
the same process, in turns. One JSON line a net: seconds (medians), ratio of the medians, and of the rounds by
processor time; bytes that the pass holds at its end for 1,000 and for all images; peak memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from striate.core.machine import keep_heap
from striate.data.formats import open_data
from striate.data.loaders import Loader
from striate.data.preprocess import Preprocess
from striate.data.samples import Split
from striate.layers.winograd import tiled
from striate.model import Model
from striate.nets.net import create_net
from striate.tasks.classification import Classification
from striate.visualize.units import Watch, chosen_stages

T = TypeVar("T")
MEAN, STD = (0.491, 0.482, 0.447), (0.247, 0.243, 0.262)
BATCH, K = 64, 9


def the_images(folder: Path, count: int) -> Split:
    """CIFAR-10 test images in memory, or noise."""
    archive = folder / "cifar10-test.zip"
    if archive.is_file():
        split = open_data(archive, test=1.0).split("test").select(np.arange(count))
        stack = np.stack([split.image(i) for i in range(len(split))])
    else:
        stack = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    return Split.from_arrays("test", stack, np.zeros(len(stack), np.int64))


def a_model(name: str) -> Model:
    """A net with random weights, its running statistics from two batches of noise."""
    torch.manual_seed(0)
    net = create_net(name, 10, size=32)
    with torch.no_grad():
        net.train()
        for _ in range(2):
            net(torch.randn(32, 3, 32, 32))
    classes = [str(k) for k in range(10)]
    return Model(net.eval(), Classification(classes), Preprocess(size=(32, 32), mean=MEAN, std=STD))


def plain_pass(model: Model, split: Split) -> None:
    """The net on all images."""
    with torch.inference_mode():
        for batch in Loader(split, model.preprocess, batch=BATCH, mode="stream").batches(0):
            model.net(batch.images)


def unit_pass(model: Model, split: Split) -> Watch:
    """The same, all stages under watch."""
    watch = Watch(chosen_stages(model, None), K, len(split))
    with torch.inference_mode(), tiled(model.net), watch.on(model.net):
        for batch in Loader(split, model.preprocess, batch=BATCH, mode="stream").batches(0):
            watch.show(model, batch)
    watch.found(model, split)
    return watch


def held(watch: Watch) -> int:
    """Bytes of all that the pass keeps."""
    tensors = [v for one in watch.running.values() for v in vars(one).values() if isinstance(v, torch.Tensor)]
    return sum(tensor.nbytes for tensor in tensors)


def timed(work: Callable[[], T]) -> tuple[float, float, T]:
    """Seconds by the clock and by the processors, and what came of it."""
    began, used = time.perf_counter(), time.process_time()
    made = work()
    return time.perf_counter() - began, time.process_time() - used, made


def measure(name: str, split: Split, rounds: int) -> dict[str, object]:
    """One line: both ways in turns."""
    model = a_model(name)
    few = unit_pass(model, split.select(np.arange(min(1000, len(split)))))
    plain, units = [], []
    for _ in range(rounds):
        plain.append(timed(lambda: plain_pass(model, split)))
        units.append(timed(lambda: unit_pass(model, split)))
    seconds = [statistics.median(one[0] for one in times) for times in (plain, units)]
    return {
        "bench": "units", "net": name, "images": len(split), "stages": len(few.running),
        "units": sum(one.shape[0] for one in few.running.values()), "plain_s": round(seconds[0], 3),
        "units_s": round(seconds[1], 3), "ratio": round(seconds[1] / seconds[0], 3),
        "ratio_cpu_time": round(statistics.median(b[1] / a[1] for a, b in zip(plain, units, strict=True)), 3),
        "held_bytes_1000": held(few), "held_bytes_all": held(units[-1][2]),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "threads": torch.get_num_threads(), "torch": torch.__version__,
    }  # fmt: skip


def main() -> None:
    """Print one JSON line a net."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nets", nargs="+", default=["resnet20", "vgg11"])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    keep_heap()
    torch.set_num_threads(options.threads)
    split = the_images(options.data, options.images)
    for name in options.nets:
        print(json.dumps(measure(name, split, options.rounds)), flush=True)


if __name__ == "__main__":
    main()
