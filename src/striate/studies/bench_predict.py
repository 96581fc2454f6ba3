"""A profile of prediction: the net stage by stage, and every engine."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from striate.core.errors import StriateError
from striate.data.formats import open_data
from striate.data.preprocess import Preprocess
from striate.engines import record as records
from striate.engines.chooser import Engines, check_name
from striate.engines.engine import Form, evaluating
from striate.engines.record import Timing
from striate.model import Model, load
from striate.nets.net import NETS, create_net, pair
from striate.nets.taps import stepping
from striate.nets.weights import is_published
from striate.studies.profiles import Profile, Wanted, between, multiply_adds_of, stage_rows, work_of
from striate.tasks.classification import Classification
from striate.train.devices import find_device

# Batches before the clock starts.
WARM = 2
# A race in a profile is run whatever it costs; the compiler takes part only when it is asked for.
ENDLESS = 1_000_000


def profile_prediction(wanted: Wanted) -> Profile:
    """Profile a prediction: from pictures to answers, stage by stage on the net itself, and every engine.

    Raises:
        StriateError: no such model or net, or data without images.
    """
    model = model_or_net(wanted.target, wanted.size).to(find_device(wanted.device))
    model.engine = check_name(wanted.engine)
    return between(wanted, model.device, lambda: _prediction(wanted, model))


def model_or_net(name: str, size: int | None) -> Model:
    """A model as `load` gives it; a net's name gives that net with random weights.

    Raises:
        StriateError: there is neither.
    """
    if name not in NETS or is_published(name):
        model = load(name)
        if size is not None and model.preprocess.size != pair(size):
            raise StriateError(
                f"size is {size}, and {name!r} has a size of its own", hint="leave out --size, or name a net"
            )
        return model
    own = size or NETS.entry(name).capabilities["size"]
    channels = int(NETS.entry(name).capabilities.get("channels", 3))
    net = create_net(name, 1000, channels, size=own).eval()
    task = Classification([str(k) for k in range(net.classes)])
    return Model(net, task, Preprocess(size=pair(own), channels=channels))


def _prediction(wanted: Wanted, model: Model) -> Profile:
    pictures = _pictures(wanted, model)
    rooms: dict[str, list[float]] = defaultdict(list)
    stages: dict[str, list[float]] = defaultdict(list)
    names = list(getattr(model.net, "stage_names", []))
    views = model.preprocess.normalise(np.stack([model.preprocess.view(p) for p in pictures]))
    for number in range(wanted.steps + WARM):
        _one_prediction(model, pictures, names, rooms, stages)
        if number < WARM:
            rooms.clear()
            stages.clear()
    parts = {name: 1e3 * statistics.fmean(spent) for name, spent in rooms.items()}
    sides = (int(views.shape[2]), int(views.shape[3]))
    work = multiply_adds_of(model.net, sides)
    engines, notes = race(model, views.to(model.device))
    best = max(engines.values())
    return Profile(
        action="predict", target=wanted.target, device=str(model.device), threads=torch.get_num_threads(),
        batch=wanted.batch, size=sides, steps=wanted.steps, parts=parts, images_per_second=best,
        engines=engines, notes=tuple(notes),
        gflops=work_of(names, work, training=False) * best / 1e9 if work else None,
        **stage_rows(names, {n: statistics.fmean(s) for n, s in stages.items()}, {}, work, wanted.batch),
    )  # fmt: skip


def _pictures(wanted: Wanted, model: Model) -> list[Any]:
    if wanted.data:
        split = open_data(wanted.data).split("all")
        return [split.image(k % len(split), channels=model.preprocess.channels) for k in range(wanted.batch)]
    sides = model.preprocess.size or pair(wanted.size or 224)
    draw = np.random.default_rng(0)
    shape = (wanted.batch, *sides, model.preprocess.channels)
    return list(draw.integers(0, 256, shape, dtype=np.uint8))


def _one_prediction(
    model: Model, pictures: list[Any], names: list[str], rooms: Any, stages: dict[str, list[float]]
) -> None:
    """The way of one batch on the net itself, each part timed."""
    last = time.perf_counter()

    def mark(room: str) -> None:
        nonlocal last
        if model.device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        rooms[room].append(now - last)
        last = now

    views = np.stack([model.preprocess.view(picture) for picture in pictures])
    mark("view of each picture")
    images = model.preprocess.normalise(torch.from_numpy(views).to(model.device))
    mark("normalise")
    inside = [last]

    def leave(name: str, _: Any) -> None:
        if model.device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        stages[name].append(now - inside[0])
        inside[0] = now

    with torch.inference_mode(), evaluating(model.net), stepping(model.net, names, leave=leave):
        outputs = model.net(images).float()
    mark("net")
    sizes = [(p.shape[0], p.shape[1]) for p in pictures]
    model.task.decode(outputs, top=5, preprocess=model.preprocess, sizes=sizes)
    mark("answers")


def race(model: Model, images: Tensor) -> tuple[dict[str, float], list[str]]:
    """Images a second of every engine that took part in a race over these images, and notes."""
    engines = Engines(model.net, model.engine)
    if model.engine == "auto":
        # It would take longer than all the others together.
        engines.ground.allowed = {n: k for n, k in engines.ground.allowed.items() if n != "compiled"}
    with torch.inference_mode(), evaluating(model.net), engines.passing(lambda seen: ENDLESS * len(images)):
        for _ in range(ENDLESS):
            engines(images)
            (shape,) = engines.shapes.values()
            if shape.decided:
                break
    (shape,) = engines.shapes.values()
    timings: Mapping[Form, Timing | None] = shape.record.timings or {shape.plain.form: None}
    rates = {
        "the net as it is" if form == shape.plain.form else str(form): len(images)
        / (shape.plain.seconds if timing is None else timing.seconds)
        for form, timing in timings.items()
    }
    notes = engines.lines()
    if shape.remembered:
        names = ", ".join(sorted(str(form) for form in shape.remembered))
        notes.append(f"measured in an earlier race, kept in {records.folder()}: {names}")
    return rates, notes
