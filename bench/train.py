"""Striate's training loop against hand-written PyTorch: NCHW, channels_last, and compiled.

    python bench/train.py [--cases resnet18 vgg16 resnet20] [--rounds 3] [--threads 2] [--no-compile]
                          [--bfloat16]

ResNet-18 at 224 pixels in batches of 32, VGG-16 at 224 of 8, ResNet-20 at 32 of 128. Every variant has a
process of its own; rounds alternate over them, each a few steps on ready tensors; the machine's peak is
measured before and after the rounds of a net. The hand-written loops are those of the tutorials, with the
optimiser's fused step. One JSON line a net: images/s (median over the rounds), the median over the rounds of
Striate's rate by that of the fastest by hand, and GFLOP/s as a part of the peak. --bfloat16 adds Striate with
`--amp bfloat16`, and the loop by hand with PyTorch's autocast, both beside Striate in float32.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

from workers import Worker, pause, serve

# Net -> side, batch, classes, steps of a turn.
CASES = {"resnet18": (224, 32, 1000, 2), "vgg16": (224, 8, 1000, 2), "resnet20": (32, 128, 10, 8)}
HAND = ("nchw", "channels_last", "compiled")
HALF = ("striate-bfloat16", "autocast")


def by_hand(net: Any, images: Any, targets: Any, layout: str) -> Callable[[int], None]:
    """The loop of every tutorial."""
    import torch

    memory = torch.contiguous_format if layout == "nchw" else torch.channels_last
    net = net.to(memory_format=memory)
    images = images.contiguous(memory_format=memory)
    optimizer = torch.optim.SGD(
        net.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=True
    )
    module = torch.compile(net) if layout == "compiled" else net

    def steps(count: int) -> None:
        module.train()
        for _ in range(count):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=layout == "autocast"):
                scores = module(images)
            loss = torch.nn.functional.cross_entropy(scores.float(), targets)
            loss.backward()
            optimizer.step()
        loss.item()

    return steps


def striate(net: Any, images: Any, targets: Any, classes: int, amp: str) -> Callable[[int], None]:
    """`fit`, as `striate train` runs it."""
    import numpy as np
    import torch

    from striate.core.machine import keep_heap
    from striate.tasks.classification import Classification
    from striate.train.devices import Place, find_precision
    from striate.train.fit import Job, fit
    from striate.train.optimize import build_optimizer
    from striate.train.recipe import Recipe
    from striate.train.schedules import Plan

    keep_heap()
    net = net.to(memory_format=torch.channels_last)
    task = Classification([str(k) for k in range(classes)])
    recipe = Recipe(epochs=1, batch=len(images), lr=0.1, schedule="one-cycle", checkpoint_every=1e9)

    class Ready:
        preprocess = None
        waited, bad = 0.0, ()

        def __init__(self, count: int) -> None:
            self.count = count

        def __len__(self) -> int:
            return self.count

        def batches(self, epoch: int, start: int = 0) -> Any:
            from types import SimpleNamespace

            batch = SimpleNamespace(images=images, targets=targets, index=np.arange(len(images)))
            return iter([batch] * (self.count - start))

    images = images.contiguous(memory_format=torch.channels_last)
    optimizer = build_optimizer(net, recipe)
    cpu = torch.device("cpu")
    place = Place(cpu, amp=find_precision(amp, cpu))

    def steps(count: int) -> None:
        loader: Any = Ready(count)
        fit(Job(net, task, optimizer, loader, None, recipe, Plan.of(recipe, count), place=place))

    return steps


def build(spec: dict[str, Any]) -> Callable[..., dict[str, Any]]:
    """A worker's answers: "ready" builds and warms, "go" times some steps; the peak's worker measures it."""
    import torch

    torch.set_num_threads(spec["threads"])
    if spec["variant"] == "peak":
        from striate.studies.peak import peak

        def measure(do: str, **_: Any) -> dict[str, Any]:
            found = peak(seconds=0.05 if do == "ready" else 0.3)
            return {"gflops": found.best, "told": found.lines()[0]}

        return measure
    from striate.nets.net import create_net

    side, batch, classes, _ = CASES[spec["net"]]
    torch.manual_seed(0)
    net = create_net(spec["net"], classes, 3, size=side)
    images, targets = torch.randn(batch, 3, side, side), torch.randint(classes, (batch,))
    run = (
        striate(net, images, targets, classes, "bfloat16" if spec["variant"] in HALF else "off")
        if spec["variant"].startswith("striate")
        else by_hand(net, images, targets, spec["variant"])
    )

    def answer(do: str, steps: int = 1) -> dict[str, Any]:
        if do == "ready":
            run(1)
            return {}
        began = time.perf_counter()
        run(steps)
        return {"rate": steps * batch / (time.perf_counter() - began)}

    return answer


def operations(net: str) -> float:
    """Operations of one picture in training: 3 passes of 2 a multiply-add, but 2 of the first layer."""
    from striate.nets.cost import cost
    from striate.nets.net import skeleton
    from striate.studies.profiles import work_of

    side, _, classes, _ = CASES[net]
    found = cost(skeleton(net, classes, 3, size=side), training=False)
    return work_of(found.stage, dict(zip(found.stage, found.multiply_adds, strict=True)), training=True)


def measure(net: str, given: argparse.Namespace) -> dict[str, Any]:
    """All variants of one net."""
    half = HALF if given.bfloat16 else ()
    variants = ["striate", *(v for v in HAND if v != "compiled" or given.compile), *half, "peak"]
    workers = {v: Worker(__file__, {"net": net, "variant": v, "threads": given.threads}) for v in variants}
    try:
        failed = {v: f["error"] for v, w in workers.items() if "error" in (f := w.ask(do="ready"))}
        if given.pause:
            pause(net)
        live = [v for v in variants if v not in failed and v != "peak"]
        peaks = [workers["peak"].ask(do="go")]
        rates: dict[str, list[float]] = {v: [] for v in live}
        ratios, halves = [], {}
        for number in range(given.rounds):
            order = live if number % 2 == 0 else live[::-1]
            found = {v: workers[v].ask(do="go", steps=CASES[net][3])["rate"] for v in order}
            for v, rate in found.items():
                rates[v].append(rate)
            ratios.append(found["striate"] / max(rate for v, rate in found.items() if v in HAND))
            for v in (v for v in half if v in found):
                halves.setdefault(v, []).append(found[v] / found["striate"])
        peaks.append(workers["peak"].ask(do="go"))
    finally:
        for worker in workers.values():
            worker.close()
    best = max(peaks, key=lambda p: p.get("gflops", 0.0))
    own = statistics.median(rates["striate"])
    side, batch, _, _ = CASES[net]
    return {
        "bench": "train", "net": net, "size": side, "batch": batch, "threads": given.threads,
        "images_per_second": {v: round(statistics.median(r), 2) for v, r in rates.items()},
        "striate_by_fastest": round(statistics.median(ratios), 3), "rounds": [round(r, 3) for r in ratios],
        **{f"{v}_by_float32": round(statistics.median(r), 3) for v, r in halves.items()},
        "gflops": round(own * operations(net) / 1e9, 1), "peak": best["told"],
        "peak_gflops": round(best["gflops"], 1),
        "fraction": round(own * operations(net) / 1e9 / best["gflops"], 3),
        **({"failed": failed} if failed else {}),
    }  # fmt: skip


def main() -> None:
    """Print one JSON line a net."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--bfloat16", action="store_true", help="with mixed precision, too")
    parser.add_argument("--pause", action="store_true", help="wait for Enter when all variants are built")
    given = parser.parse_args()
    for net in given.cases:
        print(json.dumps(measure(net, given)), flush=True)


if __name__ == "__main__" and not serve(build):
    main()
