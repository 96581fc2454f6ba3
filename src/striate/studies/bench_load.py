"""A profile of loading: the whole with all threads, and its parts in one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from striate.core.errors import StriateError
from striate.data.formats import open_data
from striate.data.loaders import Loader
from striate.data.preprocess import Preprocess
from striate.nets.net import pair
from striate.studies.profiles import Profile, Wanted

WARM = 2


def profile_loading(wanted: Wanted) -> Profile:
    """Profile a loader on the training images: the whole with its threads, and its parts in one thread.

    Raises:
        StriateError: as of `open_data`; an augmentation that is not known.
    """
    dataset = open_data(wanted.target)
    split = dataset.splits.get("train") or dataset.split("all")
    size = wanted.size or 224
    preprocess = Preprocess.fit(split, size, channels=dataset.channels, limit=64)
    augment = "random-resized-crop+flip" if wanted.augment == "auto" else wanted.augment
    loader = Loader(
        split, preprocess, batch=min(wanted.batch, len(split)), train=True, augment=augment, mode="stream",
        workers=wanted.threads or None, cache=0,
    )  # fmt: skip
    try:
        count = loader.batch * wanted.steps
        parts = _loading_parts(loader, preprocess, min(count, len(split)))
        began, seen, first = 0.0, 0, True
        for batch in _endless(loader, wanted.steps + WARM):
            seen += 0 if first else len(batch.images)
            began, first = (time.perf_counter() if first else began), False
        rate = seen / max(1e-9, time.perf_counter() - began)
    finally:
        loader.close()
    return Profile(
        action="load", target=wanted.target, device="cpu", threads=torch.get_num_threads(),
        batch=loader.batch, size=pair(size), steps=wanted.steps, parts=parts, images_per_second=rate,
        notes=(
            f"augmentation {augment}; the parts are in one thread, the rate with all of them",
            "every image decoded anew; what training keeps in memory (--cache) it decodes once",
        ),
    )  # fmt: skip


def _endless(loader: Loader, count: int) -> Iterator[Any]:
    epoch = 0
    while count > 0:
        with_generator = loader.batches(epoch)
        for batch in with_generator:
            yield batch
            count -= 1
            if count == 0:
                with_generator.close()
                return
        epoch += 1


def _loading_parts(loader: Loader, preprocess: Preprocess, count: int) -> dict[str, float]:
    """Milliseconds a batch, in one thread, of reading, decoding, augmenting and normalising."""
    reader, split = loader.reader, loader.split
    order = reader.order(0)[:count]
    draws = loader.pipeline.draw(loader.seed, 0, order)
    spent = dict.fromkeys(("read", "image", "sample", "normalise"), 0.0)
    views = []
    for place_, number in enumerate(order.tolist()):
        at_least = loader.pipeline.at_least(draws[place_], preprocess)
        for name, run in (
            ("read", lambda n=number: split.read(n)),
            (
                "image",
                lambda n=number, least=at_least: split.image(n, at_least=least, channels=preprocess.channels),
            ),
            ("sample", lambda n=number, u=draws[place_]: views.append(reader.sample(n, u)[0])),
        ):
            began = time.perf_counter()
            try:
                run()
            except StriateError:
                continue
            spent[name] += time.perf_counter() - began
    began = time.perf_counter()
    for start in range(0, len(views), loader.batch):
        preprocess.normalise(np.stack(views[start : start + loader.batch]))
    spent["normalise"] = time.perf_counter() - began
    each = 1e3 * loader.batch / max(1, len(views))
    return {
        "read the bytes": each * spent["read"],
        "decode": each * max(0.0, spent["image"] - spent["read"]),
        "augment and resample": each * max(0.0, spent["sample"] - spent["image"]),
        "normalise": each * spent["normalise"],
    }
