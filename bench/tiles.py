"""3 x 3 convolutions on tiles (Winograd's filtering) against PyTorch's own, in whole nets and alone.

    python bench/tiles.py [--nets vgg16 resnet18 ...] [--batch 16] [--rounds 5] [--threads 2] [--layers]

Each net of random weights runs in channels-last memory, batch norm as it is, with and without tiles in turns:
a forward pass, and a training step (forward, loss, backward; half the batch). `--layers` times single
convolutions of many sizes beside the rule that decides where tiles are used (`layers.winograd.pays`). One
JSON line each: images/s of the fastest round, the median over the rounds of one by the other, the largest
difference in probability.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from striate.core.machine import keep_heap
from striate.layers import winograd
from striate.nets.net import create_net

NETS = ("vgg16", "vgg11", "resnet18", "resnet50", "googlenet", "airbench")
LAYERS = [(c, o, n, side) for c, o in ((64, 64), (128, 128), (256, 256), (512, 512))
          for n, side in ((1, 14), (1, 56), (16, 7), (16, 14), (16, 28))]  # fmt: skip


def seconds(run: Callable[[], object]) -> float:
    """The time of one call."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def in_turns(
    rounds: int, plain: Callable[[], object], tiles: Callable[[], object]
) -> tuple[float, float, float]:
    """Seconds of the fastest round of each, and the median of their ratio."""
    plain(), tiles()
    times = [(seconds(plain), seconds(tiles)) for _ in range(rounds)]
    fastest = [min(column) for column in zip(*times, strict=True)]
    return fastest[0], fastest[1], statistics.median(a / b for a, b in times)


def images(count: int, side: int) -> Tensor:
    """Noise in channels-last memory."""
    return torch.randn(count, 3, side, side).contiguous(memory_format=torch.channels_last)


def step_of(net: nn.Module, x: Tensor, targets: Tensor) -> Callable[[], None]:
    """Forward, loss, backward."""

    def step() -> None:
        net.zero_grad(set_to_none=True)
        F.cross_entropy(net(x), targets).backward()

    return step


def of_net(name: str, batch: int, rounds: int) -> dict[str, object]:
    """A net's line."""
    torch.manual_seed(0)
    net = create_net(name, classes=100).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    tiles, side = copy.deepcopy(net), 32 if name == "airbench" else 224
    count = winograd.tile(tiles)
    x = images(batch, side)
    with torch.inference_mode():
        plain_s, tiles_s, ratio = in_turns(rounds, lambda: net(x), lambda: tiles(x))
        off = float((net(x).softmax(1) - tiles(x).softmax(1)).abs().max())
    found: dict[str, object] = {
        "bench": "tiles", "net": name, "batch": batch, "side": side, "convolutions": count,
        "plain": round(batch / plain_s, 2), "tiles": round(batch / tiles_s, 2), "ratio": round(ratio, 3),
        "difference": off,
    }  # fmt: skip
    half = max(2, batch // 2)
    x, targets = images(half, side), torch.randint(100, (half,))
    steps = [step_of(one.train(), x, targets) for one in (net, tiles)]
    plain_s, tiles_s, ratio = in_turns(rounds, *steps)
    return found | {
        "train_batch": half, "train_plain": round(half / plain_s, 2), "train_tiles": round(half / tiles_s, 2),
        "train_ratio": round(ratio, 3), "threads": torch.get_num_threads(), "torch": torch.__version__,
    }  # fmt: skip


def of_layer(channels: int, maps: int, count: int, side: int, rounds: int) -> dict[str, object]:
    """A single convolution's line."""
    x = torch.randn(count, channels, side, side).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(maps, channels, 3, 3).contiguous(memory_format=torch.channels_last)
    filters = winograd.filters(weight)
    with torch.inference_mode():
        _, _, ratio = in_turns(
            rounds, lambda: F.conv2d(x, weight, None, 1, 1), lambda: winograd.convolve_tiles(x, filters)
        )
    return {
        "bench": "tiles", "channels": channels, "maps": maps, "batch": count, "side": side,
        "ratio": round(ratio, 3), "used": winograd.pays(tuple(x.shape), maps, (1, 1)),
    }  # fmt: skip


def main() -> None:
    """Read the arguments, print a line each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nets", nargs="*", default=list(NETS))
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--layers", action="store_true")
    options = parser.parse_args()
    keep_heap()
    torch.set_num_threads(options.threads)
    for name in options.nets:
        print(json.dumps(of_net(name, options.batch, options.rounds)), flush=True)
    for layer in LAYERS if options.layers else ():
        print(json.dumps(of_layer(*layer, options.rounds)), flush=True)


if __name__ == "__main__":
    main()
