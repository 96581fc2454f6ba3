"""Prediction on the engine that Striate chooses against PyTorch, its compiler and two runtimes by hand.

    python bench/predict.py [--nets resnet18 ...] [--batches 1 16] [--rounds 7] [--seconds 1] [--threads 2]

Every variant has a process of its own and goes from the same views, (N, H, W, 3) uint8, to logits. Rounds
alternate over the variants; a turn runs passes for `--seconds` after two that do not count. Striate chooses
by its own race, without a cache from before. A variant that is 1.3 times slower than the best in a round
rests from then on. One JSON line a net and batch: images/s of each variant (median over the rounds), ours by
that of the fastest by hand, the same for each round by the one that was fastest in it (which the luck of five
draws favours), and the largest difference of a logit to PyTorch's. OpenVINO by hand computes in float32 as
ours does: left to itself it rounds to bfloat16 where the processor can, and answers otherwise. A variant by
hand whose logits are not PyTorch's by the engines' own measure is told, and does not count.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from workers import Worker, pause, serve

NETS = ("resnet18", "resnet50", "vgg16", "googlenet", "mobilenet_v2", "efficientnet_lite0")
HAND = ("eager nchw", "eager channels_last", "compiled", "onnxruntime", "openvino")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RESTS = 1.3


def make_net(spec: dict[str, Any]) -> Any:
    """The same net in every process: drawn from seed 0, its norms with statistics of their own."""
    import torch

    from striate.nets.net import create_net

    torch.set_num_threads(spec["threads"])
    torch.manual_seed(0)
    net = create_net(spec["net"], 1000).eval()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    with torch.no_grad():
        # Logits as far apart as those of a trained net.
        logits = net(torch.randn(2, 3, *net.input_size))
        net.head_layer.weight.mul_(3 / float(logits.std()))
    return net


def striate(spec: dict[str, Any], net: Any) -> tuple[Callable[[Any], Any], Callable[[], str]]:
    """`Model.forward` as `predict` and `evaluate` call it, after the race."""
    import os

    from striate.core.machine import keep_heap
    from striate.data.preprocess import Preprocess
    from striate.model import Model
    from striate.tasks.classification import Classification

    os.environ["STRIATE_CACHE"] = tempfile.mkdtemp(prefix="striate-bench-")
    keep_heap()
    model = Model(
        net,
        Classification([str(k) for k in range(1000)]),
        Preprocess(size=net.input_size, mean=MEAN, std=STD),
    )
    engines = model.engines()
    if not spec["compile"]:
        engines.ground.allowed = {n: k for n, k in engines.ground.allowed.items() if n != "compiled"}
    engines.left = lambda seen: 10**9

    def run(views: Any) -> Any:
        return model.forward(views, engines)

    def race(views: Any) -> None:
        run(views)
        while not engines.shapes[(len(views), 3, *net.input_size)].decided:
            run(views)

    run.prepare = race  # type: ignore[attr-defined]
    return run, engines.told


def by_hand(spec: dict[str, Any], net: Any) -> Callable[[Any], Any]:
    """What a script would do."""
    import torch

    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))

    def images(views: Any) -> torch.Tensor:
        return torch.from_numpy(views).permute(0, 3, 1, 2).float().div_(255).sub_(mean).div_(std)

    name, shape = spec["variant"], (spec["batch"], 3, *net.input_size)
    if name.startswith("eager") or name == "compiled":
        memory = torch.channels_last if "last" in name else torch.contiguous_format
        module = net.to(memory_format=memory)
        module = torch.compile(module) if name == "compiled" else module

        def torch_run(views: Any) -> Any:
            with torch.inference_mode():
                return module(images(views).contiguous(memory_format=memory))

        return torch_run
    graph = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(net, (torch.zeros(shape),), graph, dynamo=False, opset_version=18)
    if name == "onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = spec["threads"]
        session = onnxruntime.InferenceSession(graph.getvalue(), options, providers=["CPUExecutionProvider"])
        entry = session.get_inputs()[0].name
        return lambda views: session.run(None, {entry: images(views).contiguous().numpy()})[0]
    import openvino

    core = openvino.Core()
    settings = {"INFERENCE_NUM_THREADS": spec["threads"], "PERFORMANCE_HINT": "LATENCY"}
    settings["INFERENCE_PRECISION_HINT"] = "f32"
    compiled = core.compile_model(core.read_model(graph.getvalue()), "CPU", settings)
    request = compiled.create_infer_request()
    return lambda views: request.infer({0: images(views).contiguous().numpy()})[0]


def build(spec: dict[str, Any]) -> Callable[..., dict[str, Any]]:
    """A worker's answers: "ready" builds and warms, "race" lets Striate choose, "go" measures a turn."""
    net = make_net(spec)
    views = np.random.default_rng(0).integers(0, 256, (spec["batch"], *net.input_size, 3), dtype=np.uint8)
    run, told = striate(spec, net) if spec["variant"] == "striate" else (by_hand(spec, net), str)

    def answer(do: str, seconds: float = 1.0) -> dict[str, Any]:
        if do == "ready":
            return {} if spec["variant"] == "striate" else {"logits": np.asarray(run(views)).tolist()}
        if do == "race":
            run.prepare(views)  # type: ignore[attr-defined]
            return {"told": told(), "logits": np.asarray(run(views)).tolist()}
        run(views), run(views)
        began, passes = time.perf_counter(), 0
        while (spent := time.perf_counter() - began) < seconds or passes < 2:
            run(views)
            passes += 1
        return {"rate": passes * len(views) / spent}

    return answer


def measure(net: str, batch: int, given: argparse.Namespace) -> dict[str, Any]:
    """All variants of one net and batch."""
    import torch

    from striate.engines.engine import difference

    variants = ["striate", *(v for v in HAND if v != "compiled" or given.compile)]
    workers = {
        v: Worker(
            __file__,
            {"net": net, "batch": batch, "variant": v, "threads": given.threads, "compile": given.compile},
        )
        for v in variants
    }
    try:
        logits, failed = {}, {}
        for name, worker in workers.items():
            found = worker.ask(do="ready")
            logits[name] = found.get("logits")
            if "error" in found:
                failed[name] = found["error"]
        if given.pause:
            pause(f"{net}, batch {batch}")
        raced = workers["striate"].ask(do="race")
        if "error" in raced:
            return {"bench": "predict", "net": net, "batch": batch, "error": raced["error"]}
        wanted = torch.tensor(logits["eager nchw"])
        found = {v: torch.tensor(logits[v]) for v in HAND if logits.get(v) is not None}
        failed |= {v: reason for v, answers in found.items() if (reason := difference(answers, wanted))}
        live = [v for v in variants if v not in failed]
        rates: dict[str, list[float]] = {v: [] for v in live}
        ratios = []
        for number in range(given.rounds):
            order = live if number % 2 == 0 else live[::-1]
            found = {v: workers[v].ask(do="go", seconds=given.seconds)["rate"] for v in order}
            for v, rate in found.items():
                rates[v].append(rate)
            ratios.append(found["striate"] / max(rate for v, rate in found.items() if v != "striate"))
            live = [v for v in live if v == "striate" or found[v] * RESTS > max(found.values())]
            if live == ["striate"]:
                live = ["striate", max((v for v in found if v != "striate"), key=lambda v: found[v])]
        off = float((torch.tensor(raced["logits"]) - wanted).abs().max())
    finally:
        for worker in workers.values():
            worker.close()
    middle = {v: statistics.median(r) for v, r in rates.items()}
    fastest = max(rate for v, rate in middle.items() if v != "striate")
    return {
        "bench": "predict", "net": net, "batch": batch, "threads": given.threads,
        "images_per_second": {v: round(rate, 2) for v, rate in middle.items()},
        "striate_by_fastest": round(middle["striate"] / fastest, 3), "rounds": [round(r, 3) for r in ratios],
        "chosen": raced["told"], "difference": off, "largest_logit": float(wanted.abs().max()),
        **({"failed": failed} if failed else {}),
    }  # fmt: skip


def main() -> None:
    """Print one JSON line a net and batch."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nets", nargs="+", default=list(NETS))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--pause", action="store_true", help="wait for Enter when all variants are built")
    given = parser.parse_args()
    for net in given.nets:
        for batch in given.batches:
            print(json.dumps(measure(net, batch, given)), flush=True)


if __name__ == "__main__" and not serve(build):
    main()
