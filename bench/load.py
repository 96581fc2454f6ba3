"""The streaming loader against Pillow in DataLoader workers; memory over 20 epochs; the whole-tensor path.

    python bench/load.py [--images 256] [--pass-images 2048] [--rounds 3] [--workers 2] [--epochs 20]

JPEG of 500x375, quality 90 -> random resized crop to 224 (area 0.08 to 1, aspect 3/4 to 4/3), flip,
normalise, batches of 32. Both sides draw the same boxes, resample with an antialiased bilinear filter and
give float32 batches. The Pillow side does what most training scripts do: a Dataset that decodes, crops, flips
and normalises one image (to a float tensor of 0 to 1, then a normalised copy), in two processes. Rounds
alternate (ours, Pillow, ours, ...) in one run; the ratio is that of the medians. In the first of them each of
our files is decoded whole, as in a first epoch; later only as far down as its crop. One JSON line a figure.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from striate.core.machine import keep_heap, processors
from striate.data.augment import Pipeline, parse
from striate.data.loaders import Loader
from striate.data.pools import FilePool
from striate.data.preprocess import Preprocess
from striate.data.samples import Split

WIDTH, HEIGHT, SIZE, BATCH = 500, 375, 224, 32
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
AUGMENT = "random-resized-crop+flip"


def make_photos(
    folder: Path, count: int, source: Path | None, size: tuple[int, int] = (WIDTH, HEIGHT)
) -> None:
    """`count` JPEG files of quality 90, (width, height): resized photographs, or noise of their spectrum."""
    found = sorted(p for p in source.rglob("*") if p.suffix.lower() in (".jpeg", ".jpg")) if source else []
    rng = np.random.default_rng(0)
    for i in range(count):
        if found:
            image = Image.open(found[i % len(found)]).convert("RGB").resize(size, Image.Resampling.BICUBIC)
        else:
            image = Image.fromarray(pink(rng)).resize(size)
        image.save(folder / f"{i:05d}.jpg", quality=90)


def pink(rng: np.random.Generator) -> np.ndarray:
    """Noise with amplitude 1 / frequency, as natural images have it (Field 1987), over 500x375 in colour."""
    fy, fx = np.meshgrid(np.fft.fftfreq(HEIGHT), np.fft.rfftfreq(WIDTH), indexing="ij")
    amplitude = 1 / np.maximum(np.hypot(fy, fx), 1 / WIDTH)
    planes = []
    for strength in (1.0, 0.3, 0.3):
        phase = np.exp(2j * np.pi * rng.random(fy.shape))
        plane = np.fft.irfft2(amplitude * phase, s=(HEIGHT, WIDTH))
        planes.append(strength * plane / plane.std())
    grey, warm, green = planes
    colours = np.stack([grey + warm, grey + green, grey - warm], axis=-1)
    return np.clip(128 + 50 * colours, 0, 255).astype(np.uint8)


class Pillow(TorchDataset[tuple[torch.Tensor, int]]):
    """The usual data set of a training script: one file to one normalised float tensor."""

    def __init__(self, folder: Path, pipeline: Pipeline, count: int) -> None:
        files = sorted(str(path) for path in folder.glob("*.jpg"))
        self.files = [files[i % len(files)] for i in range(count)]
        self.crop: Any = pipeline.steps[0]
        self.u = pipeline.draw(0, 0, np.arange(count))
        self.mean, self.std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        with Image.open(self.files[index]) as file:
            image = file.convert("RGB")
        u = self.u[index]
        x0, y0, x1, y1 = self.crop.box(u[:4], image.height, image.width, (SIZE, SIZE))
        image = image.crop((int(x0), int(y0), int(x1), int(y1))).resize(
            (SIZE, SIZE), Image.Resampling.BILINEAR
        )
        if u[4] < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        values = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)
        return values.clone().sub_(self.mean).div_(self.std), index % 10


def rate(batches: Iterable[Any], first: Any = None) -> float:
    """Images a second over a pass, from the first batch's arrival on: starting workers does not count."""
    source = iter(batches)
    next(source)
    began, count = time.perf_counter(), 0
    for batch in source:
        count += len(batch[0] if isinstance(batch, (list, tuple)) else batch.images)
    return count / (time.perf_counter() - began)


def resident() -> float:
    """Memory of this process in MB."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def say(**figures: Any) -> None:
    """One JSON line."""
    print(json.dumps(figures), flush=True)


def compare(folder: Path, args: argparse.Namespace) -> None:
    """Ours and Pillow, in turns."""
    split = files_split(folder, args.pass_images)
    ours = Loader(
        split, preprocess(), batch=BATCH, train=True, augment=AUGMENT, workers=args.workers, mode="stream",
        cache=0,
    )  # fmt: skip
    theirs = DataLoader(
        Pillow(folder, parse(AUGMENT), len(split)), batch_size=BATCH, shuffle=True, drop_last=True,
        num_workers=args.workers, persistent_workers=True,
    )  # fmt: skip
    rates: dict[str, list[float]] = {"striate": [], "pillow": []}
    for number in range(args.rounds):
        rates["striate"].append(rate(ours.batches(number)))
        rates["pillow"].append(rate(theirs))
    a, b = statistics.median(rates["striate"]), statistics.median(rates["pillow"])
    say(
        figure="loader-streaming", images_per_second=round(a), pillow_images_per_second=round(b),
        ratio=round(a / b, 2), rounds={k: [round(x) for x in v] for k, v in rates.items()}, images=len(split),
        workers=args.workers, processors=processors(),
    )  # fmt: skip


def memory(folder: Path, args: argparse.Namespace) -> None:
    """Resident memory after each epoch."""
    loader = Loader(
        files_split(folder),
        preprocess(),
        batch=BATCH,
        train=True,
        augment=AUGMENT,
        workers=args.workers,
        mode="stream",
    )
    seen = []
    for epoch in range(args.epochs):
        for _ in loader.batches(epoch):
            pass
        gc.collect()
        seen.append(round(resident(), 1))
    # The first half fills caches and spare buffers, a batch at a time.
    settled = seen[len(seen) // 2 :]
    say(
        figure="loader-memory", epochs=args.epochs, megabytes=seen,
        second_half_growth_megabytes=round(settled[-1] - settled[0], 1), images=len(loader.split),
    )  # fmt: skip


def tensors(args: argparse.Namespace) -> None:
    """The whole-tensor path on 32x32 images."""
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (50_000, 32, 32, 3), dtype=np.uint8)
    split = Split.from_arrays("train", pictures, rng.integers(0, 10, len(pictures)))
    for augment in ("pad-crop(4)+flip", "affine(rotate=10, translate=0.1)+flip", "pad-crop(4)+flip+colour"):
        loader = Loader(
            split, Preprocess(size=(32, 32), mean=MEAN, std=STD), batch=128, train=True, augment=augment
        )
        figures = [rate(limited(loader.batches(epoch), 100)) for epoch in range(args.rounds)]
        say(figure="loader-memory-path", augment=augment, images_per_second=round(statistics.median(figures)))


def limited(source: Any, count: int) -> Iterable[Any]:
    """The first `count` items."""
    for _, item in zip(range(count), source, strict=False):
        yield item


def preprocess() -> Preprocess:
    """What both sides show to the net."""
    return Preprocess(size=(SIZE, SIZE), mean=MEAN, std=STD)


def files_split(folder: Path, count: int | None = None) -> Split:
    """The files of a folder, again and again up to `count`, as a training split of ten classes."""
    names = sorted(path.name for path in folder.glob("*.jpg"))
    rows = np.arange(count or len(names))
    return Split("train", FilePool(folder, names), rows % len(names), rows % 10)


def main() -> None:
    """Run all figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--pass-images", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--photos", type=Path, default=Path("../shared/data/imagenet-sample"))
    args = parser.parse_args()
    keep_heap()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photos = args.photos if args.photos.is_dir() else None
        make_photos(folder, args.images, photos)
        say(figure="photos", source="photographs" if photos else "noise", images=args.images,
            bytes=round(sum(p.stat().st_size for p in folder.iterdir()) / args.images))  # fmt: skip
        compare(folder, args)
        memory(folder, args)
    tensors(args)


if __name__ == "__main__":
    sys.exit(main())
