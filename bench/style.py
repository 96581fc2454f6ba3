"""Neural style: Striate against a plain straightforward implementation, VGG-19, average pools, L-BFGS.

    python bench/style.py [--size 512x384] [--steps 300] [--threads 2] [--ways plain striate] [--rounds 1]
    python bench/style.py --size 1024x768 --steps 3 --memory tiled

Both ways run in processes of their own, one after the other; one JSON line each, and one that compares them:
seconds of the steps, peak memory of the process, and the loss of the finished picture, which a third process
computes for both with the plain way's own code. The loss is that of Gatys et al. 2015 (equations 1, 4, 5, 7)
with relative distances, content relu4_2, style relu1_1 .. relu5_1 of equal weights, from the content image.
The plain way: the stages in a row, gradients by autograd, `torch.optim.LBFGS` with its defaults, one pass a
step. VGG-19 has random weights from a fixed seed, with filters scaled to mean activation 1 as in the paper,
unless --weights names a file of it; the images are made by formulas, so that nothing is needed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from striate.data.preprocess import Preprocess
from striate.model import Model
from striate.nets.net import create_net
from striate.tasks.classification import Classification
from striate.visualize.paper_form import paper_form
from striate.visualize.studio import to_picture, to_pixels
from striate.visualize.style import stylize

CONTENT, STYLES = "relu4_2", ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
STYLE_WEIGHT = 1e3


def images(size: tuple[int, int]) -> list[np.ndarray]:
    """A content and a style image, (h, w, 3) uint8: smooth shapes; strokes of a few colours."""
    height, width = size
    y, x = np.mgrid[0:height, 0:width] / max(size)
    draws = np.random.default_rng(0)
    waves = [np.sin(2 * np.pi * (a * x + b * y + c)) for a, b, c in draws.uniform(0, 4, (3, 3))]
    content = 128 + 80 * np.stack(waves, -1) * ((x - 0.5) ** 2 + (y - 0.4) ** 2 < 0.1)[..., None]
    bend = np.sin(2 * np.pi * (9 * x + 1.5 * np.sin(9 * y))) * np.sin(2 * np.pi * (7 * y + np.sin(8 * x)))
    strokes = np.array([[20, 40, 90], [230, 190, 60], [90, 140, 190], [240, 240, 220]])
    style = strokes[np.digitize(bend, [-0.4, 0.0, 0.4])]
    return [
        image.clip(0, 255).astype(np.uint8) for image in (content, style + draws.normal(0, 9, style.shape))
    ]


def a_model(weights: str | None, size: tuple[int, int]) -> Model:
    """VGG-19 as in the paper."""
    torch.manual_seed(0)
    if weights:
        from striate.model import load

        model = load(weights)
    else:
        # A narrow head: no style is taken from it.
        net = create_net("vgg19", 10, head="linear")
        preprocess = Preprocess(size=(224, 224), mean=MEAN, std=STD)
        model = Model(net.eval(), Classification([str(k) for k in range(10)]), preprocess)
    samples = [to_picture(image) for image in images((96, 128))]
    return paper_form(model, samples, True)


# ---------------------------------------------------------------------- the plain way


def plain_features(model: Model, x: Tensor) -> dict[str, Tensor]:
    """The activations of the stages that count."""
    found = {}
    for name in model.net.stage_names:
        x = model.net.get_submodule(name)(x)
        if name == CONTENT or name in STYLES:
            found[name] = x
        if name == STYLES[-1]:
            return found
    return found


def gram(maps: Tensor) -> Tensor:
    """Means of products of maps."""
    flat = maps.reshape(maps.shape[1], -1)
    return flat @ flat.T / flat.shape[1]


def spread(image: np.ndarray) -> Tensor:
    """An image as the net's input."""
    return (to_picture(image) - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)


class PlainLoss:
    """Gatys's loss; the content's squares over the number of activations, so that it has no scale."""

    def __init__(self, model: Model, size: tuple[int, int]) -> None:
        content, style = images(size)
        self.model = model
        with torch.no_grad():
            self.content = plain_features(model, spread(content))[CONTENT]
            self.grams = {name: gram(maps) for name, maps in plain_features(model, spread(style)).items()}

    def __call__(self, x: Tensor) -> Tensor:
        maps = plain_features(self.model, x)
        loss = (maps[CONTENT] - self.content).square().sum() / self.content.square().sum()
        for name in STYLES:
            target = self.grams[name]
            share = (gram(maps[name]) - target).square().sum() / target.square().sum()
            loss = loss + STYLE_WEIGHT / len(STYLES) * share
        return loss


def run_plain(model: Model, size: tuple[int, int], steps: int) -> tuple[np.ndarray, float]:
    """The plain way: the picture, and its seconds."""
    for parameter in model.net.parameters():
        parameter.requires_grad_(False)
    loss_of = PlainLoss(model, size)
    x = spread(images(size)[0]).clone().requires_grad_()
    optimizer = torch.optim.LBFGS([x], max_iter=steps, max_eval=steps, tolerance_grad=0, tolerance_change=0)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(x)
        loss.backward()
        return loss

    began = time.perf_counter()
    optimizer.step(closure)
    seconds = time.perf_counter() - began
    picture = x.detach() * torch.tensor(STD).view(1, 3, 1, 1) + torch.tensor(MEAN).view(1, 3, 1, 1)
    return to_pixels(picture[0]), seconds


def run_striate(
    model: Model, size: tuple[int, int], steps: int, scales: int, memory: str
) -> tuple[np.ndarray, float]:
    """Striate's way: the picture, and its seconds, targets included."""
    content, style = images(size)
    began = time.perf_counter()
    made = stylize(
        model, content, style, steps=steps, scales=scales, memory=memory, style_weight=STYLE_WEIGHT, size=0
    )
    return made.pixels, time.perf_counter() - began


def peak() -> int:
    """Peak memory of this process in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return round(int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024)


def one(options: argparse.Namespace) -> None:
    """One way, in this process; the picture goes to a file."""
    width, height = map(int, options.size.split("x"))
    size = (height, width)
    torch.set_num_threads(options.threads)
    model = a_model(options.weights, size)
    if options.one == "loss":
        loss = PlainLoss(model, size)
        for name in options.pictures:
            with torch.no_grad():
                value = float(loss(spread(np.load(name))))
            print(json.dumps({"picture": Path(name).stem, "loss": value}), flush=True)
        return
    before = peak()
    if options.one == "plain":
        picture, seconds = run_plain(model, size, options.steps)
    else:
        picture, seconds = run_striate(model, size, options.steps, options.scales, options.memory)
    np.save(options.pictures[0], picture)
    line = {
        "bench": "style", "way": options.one, "size": options.size, "steps": options.steps,
        "seconds": round(seconds, 2), "peak_mb": peak(), "peak_before_mb": before,
        "memory": options.memory if options.one == "striate" else "whole", "threads": options.threads,
        "scales": options.scales if options.one == "striate" else 1, "torch": torch.__version__,
    }  # fmt: skip
    print(json.dumps(line), flush=True)


def started(options: argparse.Namespace, way: str, pictures: list[str]) -> list[dict[str, float]]:
    """Run one way in a process of its own; its lines."""
    words = [
        sys.executable, __file__, "--one", way, "--size", options.size, "--steps", str(options.steps),
        "--threads", str(options.threads), "--scales", str(options.scales), "--memory", options.memory,
        "--pictures", *pictures, *(["--weights", options.weights] if options.weights else []),
    ]  # fmt: skip
    output = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout
    return [json.loads(line) for line in output.splitlines()]


def main() -> None:
    """Run both ways and compare them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="512x384", help="width x height")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--scales", type=int, default=3)
    parser.add_argument("--memory", default="auto")
    parser.add_argument("--weights", default=None)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--one", default=None, help=argparse.SUPPRESS)
    parser.add_argument("--pictures", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(options.rounds):
            names = {way: str(Path(folder) / f"{way}.npy") for way in ("plain", "striate")}
            lines = {way: started(options, way, [name])[0] for way, name in names.items()}
            for line in lines.values():
                print(json.dumps(line), flush=True)
            losses = {
                str(found["picture"]): found["loss"]
                for found in started(options, "loss", list(names.values()))
            }
            plain, ours = lines["plain"], lines["striate"]
            print(json.dumps({
                "bench": "style", "size": options.size, "steps": options.steps,
                "loss_plain": losses["plain"], "loss_striate": losses["striate"],
                "loss_ratio": round(losses["striate"] / losses["plain"], 4),
                "seconds_ratio": round(ours["seconds"] / plain["seconds"], 4),
                "peak_ratio": round(ours["peak_mb"] / plain["peak_mb"], 4),
            }), flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
