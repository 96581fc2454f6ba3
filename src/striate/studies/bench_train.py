"""A profile of the training loop."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from striate.data.formats import open_data
from striate.data.samples import Dataset, Split
from striate.nets.net import NETS
from striate.studies.clock import (
    BACKWARD,
    BEFORE,
    DATA,
    FORWARD,
    LOSS,
    REST,
    STEP,
    Clock,
    ClockedLoader,
    timed_optimizer,
    timed_stages,
)  # fmt: skip
from striate.studies.profiles import Profile, Wanted, between, multiply_adds_of, stage_rows, work_of
from striate.train.devices import Place, place
from striate.train.fit import fit
from striate.train.recipe import Recipe
from striate.train.setup import prepare

# Batches before the clock starts.
WARM = 2
CLASSES = 10


def profile_training(wanted: Wanted) -> Profile:
    """Profile the training loop itself, `fit`, on `steps` batches after a few that do not count.

    Raises:
        StriateError: as of `train`.
    """
    with place(wanted.device, "off") as here:
        return between(wanted, here.device, lambda: _training(wanted, here))


def _training(wanted: Wanted, here: Place) -> Profile:
    capabilities = NETS.entry(wanted.target).capabilities
    size = wanted.size or int(capabilities["size"])
    channels = int(capabilities.get("channels", 3))
    dataset = (
        open_data(wanted.data)
        if wanted.data
        else random_set(wanted.batch * (wanted.steps + WARM), size, channels)
    )
    recipe = Recipe(
        net=wanted.target, size=size if wanted.size or not wanted.data else None, batch=wanted.batch,
        epochs=1, augment=wanted.augment if wanted.data else "none", checkpoint_every=1e9,
    )  # fmt: skip
    setup = prepare(dataset, recipe, here, torch.get_num_threads())
    job, clock = setup.job, Clock(here.device)
    job.val = None
    batch = setup.recipe.batch or wanted.batch
    net = job.net
    names = list(getattr(net, "stage_names", [])) or [name for name, _ in net.named_children()]
    job.train = ClockedLoader(job.train, clock, WARM, wanted.steps)  # type: ignore[assignment]

    def listen(event: str, _: Any) -> None:
        if event == "step":
            clock.mark(STEP)

    try:
        with timed_stages(net, names, clock), timed_optimizer(job.optimizer, clock, names[0]):
            fit(job, listen)
    finally:
        setup.close()
    sides = setup.preprocess.size or (size, size)
    work = multiply_adds_of(net, sides)
    steps = wanted.steps
    each = {part: clock.of(part) / steps for part in (DATA, BEFORE, FORWARD, LOSS, BACKWARD, STEP, REST)}
    seconds = sum(each.values())
    split = {
        way: {stage: s / steps for (part, stage), s in clock.seconds.items() if part == way}
        for way in (FORWARD, BACKWARD)
    }
    return Profile(
        action="train", target=wanted.target, device=str(here.device), threads=torch.get_num_threads(),
        batch=batch, size=sides, steps=steps,
        parts={
            "waiting for data": 1e3 * each[DATA], "forward": 1e3 * each[FORWARD], "loss": 1e3 * each[LOSS],
            "backward": 1e3 * each[BACKWARD], "step of the optimiser": 1e3 * each[STEP],
            "all else": 1e3 * (each[BEFORE] + each[REST]),
        },
        images_per_second=batch / seconds,
        gflops=work_of(names, work, training=True) * batch / seconds / 1e9,
        **stage_rows(names, split[FORWARD], split[BACKWARD], work, batch),
    )  # fmt: skip


def random_set(count: int, size: int, channels: int) -> Dataset:
    """Random pictures in memory, of a few classes, to train on."""
    draw = np.random.default_rng(0)
    pictures = draw.integers(0, 256, (count, size, size, channels), dtype=np.uint8)
    classes = [str(k) for k in range(CLASSES)]
    targets = np.arange(count) % CLASSES
    return Dataset(
        "random pictures", "classification", classes, [Split.from_arrays("train", pictures, targets)]
    )
