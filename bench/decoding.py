"""What decoding JPEGs at a fraction does to training: nets fine-tuned on such pictures, and on whole ones.

    python bench/decoding.py DATA [--net NAME] [--size 96] [--epochs 6] [--seeds 5] [--threads 2]

For each seed a third of the training images of each class goes to the test, with the validation images where
there are some. Then the same training runs twice: as `striate train` reads pictures (at 1/2, 1/4 or 1/8 where
a crop has the view's pixels still), and with every picture decoded whole. Both are tested on whole pictures.
One JSON line a seed, with the share of the training views by fraction; the last line has the mean scores and
their difference with its 95% interval, by a paired bootstrap over all tests.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections import Counter
from pathlib import Path
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from striate.core.machine import keep_heap
from striate.data.augment import Pipeline
from striate.data.formats import open_data
from striate.data.loaders import Loader
from striate.data.samples import Dataset, Split
from striate.evaluate.paired import bootstrap
from striate.images.decode import header
from striate.images.jpeg import fraction
from striate.model import load
from striate.train.recipe import Recipe
from striate.train.session import train

WAYS = ("fractions", "whole")


def divided(data: Dataset, seed: int) -> tuple[Dataset, list[Split]]:
    """The data with two thirds of each class to train on, and what they are tested on."""
    split = data.split("train")
    targets, draws = np.asarray(split.targets), np.random.default_rng(seed)
    rank = np.empty(len(split))
    for label in np.unique(targets):
        rows = np.flatnonzero(targets == label)
        rank[rows] = draws.permutation(len(rows)) / len(rows)
    tested = [split.select(rank < 1 / 3, "test")] + [
        data.splits[name] for name in ("val",) if name in data.splits
    ]
    return Dataset(data.name, data.kind, data.classes, [split.select(rank >= 1 / 3, "train")]), tested


def right(folder: Path, data: Dataset, tested: list[Split]) -> NDArray[np.bool_]:
    """Which of the images the run's model answers rightly, each decoded whole."""
    model = load(folder)
    found = []
    for split in tested:
        answers = model.predict([split.image(k) for k in range(len(split))], top=1)
        targets = np.asarray(split.targets)
        found += [
            answer.label == data.classes[target] for answer, target in zip(answers, targets, strict=True)
        ]
    return np.array(found)


def shares(data: Dataset, folder: Path, recipe: Recipe) -> dict[str, float]:
    """The share of the first epoch's views by the fraction that their pictures are decoded at."""
    split, preprocess = data.split("train"), load(folder).preprocess
    loader = Loader(
        split, preprocess, batch=8, seed=recipe.seed, train=True, augment=recipe.augment, workers=0
    )
    draws = loader.reader.draw(0, np.arange(len(split)))
    facts = [header(split.read(k)) for k in range(len(split))]
    found = Counter(
        fraction((each.height, each.width), loader.pipeline.at_least(u, preprocess))
        for each, u in zip(facts, draws, strict=True)
    )
    return {f"1/{n}": round(found[n] / len(split), 3) for n in sorted(found)}


def main() -> None:
    """Train in both ways for each seed, and print what comes of it."""
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("data")
    parse.add_argument("--net", default="efficientnet_lite0")
    for name, value in (("size", 96), ("epochs", 6), ("seeds", 5), ("threads", 2)):
        parse.add_argument(f"--{name}", type=int, default=value)
    given = parse.parse_args()
    keep_heap()
    data = open_data(given.data)
    base = Recipe(
        start_from=given.net, size=given.size, epochs=given.epochs, threads=given.threads, optimizer="adamw",
        val=0.0, augment="random-resized-crop(scale=0.35)+flip", drop_path=0.0,
    )  # fmt: skip
    scores: dict[str, list[float]] = {way: [] for way in WAYS}
    tests: dict[str, list[NDArray[np.bool_]]] = {way: [] for way in WAYS}
    for seed in range(given.seeds):
        part, tested = divided(data, seed)
        recipe, line = base.with_(seed=seed), {"bench": "decoding", "net": given.net, "seed": seed}
        with tempfile.TemporaryDirectory() as place:
            for way in WAYS:
                folder = Path(place) / way
                if way == "whole":
                    with patch.object(Pipeline, "at_least", lambda *_: None):
                        train(part, recipe, out=folder, progress=False)
                else:
                    train(part, recipe, out=folder, progress=False)
                    line["views"] = shares(part, folder, recipe)
                tests[way].append(right(folder, data, tested))
                scores[way].append(float(tests[way][-1].mean()))
                line[way] = round(scores[way][-1], 4)
        print(json.dumps(line | {"tested": len(tests[way][-1])}), flush=True)
    gap, low, high = bootstrap(*(np.concatenate(tests[way]) for way in WAYS))
    means = {way: round(statistics.fmean(scores[way]), 4) for way in WAYS}
    told = {"difference": round(gap, 4), "interval": [round(low, 4), round(high, 4)]}
    print(json.dumps({"bench": "decoding", "net": given.net, "seeds": given.seeds} | means | told))


if __name__ == "__main__":
    main()
