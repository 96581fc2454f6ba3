"""The streaming loader against the usual pipelines, each in two threads and in two processes.

    python bench/load_peers.py [--width 500 --height 375] [--images 256] [--pass-images 1024] [--rounds 3]

JPEG files -> random resized crop to 224 (area 0.08 to 1, aspect 3/4 to 4/3), flip, batches of 32 normalised
to float32. All sides draw boxes of the same distribution, hand uint8 views over and normalise whole batches
by the same code; all but the last one resample with a filter that widens when shrinking:

- pillow: Pillow decodes, crops and resizes (bilinear).
- simplejpeg: libjpeg-turbo decodes all pixels; OpenCV resizes, over areas where it shrinks.
- opencv: OpenCV decodes, and resizes in the same way.
- albumentations: OpenCV decodes; RandomResizedCrop(INTER_AREA) and HorizontalFlip (where it is installed).
- kept: OpenCV, which keeps all decoded pictures in memory, at their full size. Only ours that keep theirs
  have a ratio to it, `kept_ratio`, beside that to the others.
- opencv-aliased: OpenCV decodes and interpolates between four pixels, whatever the reduction: faster, but
  fine detail turns into patterns. Not counted among the others.

Ours runs in threads and in processes too: with every image decoded in every round, from the files as they are
and from the copies that `striate data prepare` makes of them (the others get nothing from the markers in
these); and as `striate train` runs it, with decoded pictures kept in memory from the first round on. The
ratios are those of our medians to the best median of the others. Rounds go round all sides in one run. One
JSON line a figure.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

import load
from striate.core.machine import keep_heap, processors
from striate.data.augment import Pipeline, parse
from striate.data.loaders import Loader
from striate.data.prepare import prepare

SIZE, BATCH = load.SIZE, load.BATCH
Box = tuple[int, int, int, int]


def pillow(path: str, box: Callable[[int, int], Box], mirrored: bool) -> np.ndarray:
    """By Pillow alone."""
    with Image.open(path) as file:
        image = file.convert("RGB")
    image = image.crop(box(image.height, image.width)).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    return np.asarray(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else image)


def resized(image: np.ndarray, box: Box, mirrored: bool, area: bool = True) -> np.ndarray:
    """Crop, resize and flip by OpenCV."""
    x0, y0, x1, y1 = box
    shrinks = area and (x1 - x0 > SIZE or y1 - y0 > SIZE)
    seen = cv2.resize(
        image[y0:y1, x0:x1], (SIZE, SIZE), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    )
    return cv2.flip(seen, 1) if mirrored else seen


def full_simplejpeg(path: str, box: Callable[[int, int], Box], mirrored: bool) -> np.ndarray:
    """All pixels by libjpeg-turbo."""
    image = simplejpeg.decode_jpeg(Path(path).read_bytes())
    return resized(image, box(*image.shape[:2]), mirrored)


def opencv(path: str, box: Callable[[int, int], Box], mirrored: bool, area: bool = True) -> np.ndarray:
    """All by OpenCV."""
    image = cv2.imread(path, cv2.IMREAD_COLOR_RGB)
    return resized(image, box(*image.shape[:2]), mirrored, area)


def aliased(path: str, box: Callable[[int, int], Box], mirrored: bool) -> np.ndarray:
    """All by OpenCV, without a filter against aliasing."""
    return opencv(path, box, mirrored, area=False)


class Albumentations:
    """OpenCV's decoder and albumentations' crop and flip, which draw by themselves."""

    def __init__(self) -> None:
        import albumentations

        self.change = albumentations.Compose(
            [
                albumentations.RandomResizedCrop((SIZE, SIZE), interpolation=cv2.INTER_AREA),
                albumentations.HorizontalFlip(),
            ]
        )

    def __call__(self, path: str, box: Callable[[int, int], Box], mirrored: bool) -> np.ndarray:
        return self.change(image=cv2.imread(path, cv2.IMREAD_COLOR_RGB))["image"]


class Keeping:
    """`opencv` that decodes each file once; in processes, each process does."""

    def __init__(self) -> None:
        self.pictures: dict[str, np.ndarray] = {}

    def __call__(self, path: str, box: Callable[[int, int], Box], mirrored: bool) -> np.ndarray:
        if path not in self.pictures:
            self.pictures[path] = cv2.imread(path, cv2.IMREAD_COLOR_RGB)
        image = self.pictures[path]
        return resized(image, box(*image.shape[:2]), mirrored)


class Views(TorchDataset[tuple[torch.Tensor, int]]):
    """Files as uint8 views, by one of the functions above."""

    def __init__(self, folder: Path, pipeline: Pipeline, count: int, make: Any) -> None:
        files = sorted(str(path) for path in folder.glob("*.jpg"))
        self.files = [files[i % len(files)] for i in range(count)]
        self.crop: Any = pipeline.steps[0]
        self.u = pipeline.draw(0, 0, np.arange(count))
        self.make = make

    def __len__(self) -> int:
        return len(self.files)

    def view(self, index: int) -> np.ndarray:
        u = self.u[index]

        def box(height: int, width: int) -> Box:
            x0, y0, x1, y1 = self.crop.box(u[:4], height, width, (SIZE, SIZE))
            return int(x0), int(y0), int(x1), int(y1)

        return self.make(self.files[index], box, bool(u[4] < 0.5))

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.from_numpy(np.ascontiguousarray(self.view(index))), index % 10


def single() -> None:
    """In a worker: OpenCV in this thread only."""
    cv2.setNumThreads(0)


def started(number: int) -> None:
    """A DataLoader's worker begins."""
    single()


def in_threads(views: Views, workers: int) -> Iterator[torch.Tensor]:
    """Batches of views by threads, four batches ahead."""
    preprocess = load.preprocess()
    order = np.random.default_rng(0).permutation(len(views))
    groups = [order[i : i + BATCH] for i in range(0, len(order) - BATCH + 1, BATCH)]
    with ThreadPoolExecutor(workers) as pool:
        waiting = [[pool.submit(views.view, int(i)) for i in group] for group in groups[:4]]
        for number in range(len(groups)):
            stack = np.stack([future.result() for future in waiting.pop(0)])
            if number + 4 < len(groups):
                waiting.append([pool.submit(views.view, int(i)) for i in groups[number + 4]])
            yield [preprocess.normalise(stack)]


def in_processes(source: DataLoader[Any]) -> Iterator[Any]:
    """Batches of a DataLoader, normalised here."""
    preprocess = load.preprocess()
    for views, _ in source:
        yield [preprocess.normalise(views.numpy())]


def run(folder: Path, args: argparse.Namespace) -> None:
    """All sides in turns."""
    pipeline = parse(load.AUGMENT)
    began = time.perf_counter()
    photos, prepared = folder / "photos", folder / "prepared"
    made = prepare(photos, prepared)
    each = 1000 * (time.perf_counter() - began) / args.images
    load.say(figure="prepared", ms_an_image=round(each, 1), bytes=round(made.after / made.before, 4))
    ours = {}
    for name, place, cache in (
        ("striate", photos, 0), ("striate, prepared", prepared, 0), ("striate, kept", photos, 2.0),
    ):  # fmt: skip
        for mode in ("stream", "processes"):
            split = load.files_split(place, args.pass_images)
            ours[f"{name}, {'threads' if mode == 'stream' else mode}"] = Loader(
                split, load.preprocess(), batch=BATCH, train=True, augment=load.AUGMENT,
                workers=args.workers, mode=mode, cache=cache,
            )  # fmt: skip
    makers: dict[str, Any] = {
        "pillow": pillow, "simplejpeg": full_simplejpeg, "opencv": opencv, "opencv-aliased": aliased,
        "kept": Keeping,
    }  # fmt: skip
    try:
        makers["albumentations"] = Albumentations()
    except ImportError:
        load.say(figure="note", text="albumentations is not installed")
    sides: dict[str, Callable[[int], Iterator[Any]]] = {name: side.batches for name, side in ours.items()}
    for name, make in makers.items():
        # What keeps pictures is made for threads and processes apart: a forked one has what was there before.
        views, theirs = (
            Views(photos, pipeline, len(split), make() if isinstance(make, type) else make) for _ in range(2)
        )
        source = DataLoader(
            theirs, batch_size=BATCH, shuffle=True, drop_last=True, num_workers=args.workers,
            persistent_workers=True, worker_init_fn=started,
        )  # fmt: skip
        sides[f"{name}, threads"] = lambda _, views=views: in_threads(views, args.workers)
        sides[f"{name}, processes"] = lambda _, source=source: in_processes(source)
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(args.rounds):
        for name, batches in sides.items():
            rates[name].append(load.rate(batches(number)))
    middle = {name: statistics.median(found) for name, found in rates.items()}
    usual = {
        k: v for k, v in middle.items() if k not in ours and not k.startswith(("opencv-aliased", "kept"))
    }
    keeping = {k: v for k, v in middle.items() if k.startswith("kept")}
    for name in ours:
        found = beside(middle[name], usual)
        if "kept" in name:
            found |= {f"kept_{key}": value for key, value in beside(middle[name], keeping).items()}
        load.say(figure=name, width=args.width, height=args.height, **found)
        ours[name].close()
    load.say(
        images_per_second={k: round(v) for k, v in middle.items()}, images=len(split), workers=args.workers,
        processors=processors(), rounds={k: [round(x) for x in v] for k, v in rates.items()},
    )  # fmt: skip


def beside(rate: float, others: dict[str, float]) -> dict[str, Any]:
    """The ratio to the fastest of the others, and which that is."""
    best = max(others, key=others.__getitem__)
    return {"ratio": round(rate / others[best], 2), "best": best}


def main() -> None:
    """Make the photographs and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--width", type=int, default=500)
    parser.add_argument("--height", type=int, default=375)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--pass-images", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--photos", type=Path, default=Path("../shared/data/imagenet-sample"))
    args = parser.parse_args()
    keep_heap()
    single()
    with tempfile.TemporaryDirectory() as name:
        photos = args.photos if args.photos.is_dir() else None
        Path(name, "photos").mkdir()
        load.make_photos(Path(name, "photos"), args.images, photos, (args.width, args.height))
        run(Path(name), args)


if __name__ == "__main__":
    sys.exit(main())
