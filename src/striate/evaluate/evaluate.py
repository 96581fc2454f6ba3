"""Testing a model by a protocol: its scores, their intervals, and what they cost."""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from striate.core.errors import BadImage, StriateError
from striate.core.machine import processors
from striate.core.results import Result
from striate.data.samples import Dataset, Split
from striate.evaluate.opening import images_to_test
from striate.evaluate.protocols import Protocol, View, parse_protocol
from striate.evaluate.runner import Runner, Views
from striate.model import Model, load
from striate.tasks.task import Scores

# Images that one loader thread takes at a time at most: small pictures would drown in hand-overs.
CHUNK = 16
SHOWN = 10


@dataclass(frozen=True)
class Evaluation(Result):
    """How a model does on the images of a split, by a protocol, and what that cost.

    scores: the task's own; intervals: 95 % intervals of its proportions, by name. n: images scored; bad:
    (name, reason) of the images that could not be read and are in no score. views: mean number of views an
    image. multiply_adds: for one image with all its views, None where the net cannot be counted. seconds:
    wall time; waited: the part of it that the net stood still for want of images. images_per_second counts
    all of the time, network_images_per_second leaves out the waiting.
    """

    model: str
    data: str
    digest: str
    split: str
    protocol: str
    scores: Scores
    intervals: dict[str, tuple[float, float]]
    n: int
    bad: tuple[tuple[str, str], ...]
    views: float
    multiply_adds: float | None
    seconds: float
    waited: float
    device: str
    batch: int
    notes: tuple[str, ...] = ()

    @property
    def images_per_second(self) -> float:
        """Images a second of wall time, loading included."""
        return self.n / max(self.seconds, 1e-9)

    @property
    def network_images_per_second(self) -> float:
        """Images a second of the time in which the net did not wait for images."""
        return self.n / max(self.seconds - self.waited, 1e-9)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, the rates among them."""
        rates = {
            "images_per_second": self.images_per_second,
            "network_images_per_second": self.network_images_per_second,
        }
        return {**super().to_dict(), **rates}

    def lines(self) -> list[str]:
        """The scores with their intervals, what they cost, and what was left out, as text."""
        figures = self.scores.summary()
        width = max(map(len, figures), default=0)
        told = [
            f"{self.model} on {self.data}, split {self.split}: {self.n:,} images, protocol {self.protocol}"
        ]
        for name, value in figures.items():
            text = "-" if value is None else f"{100 * value:.2f} %"
            if name in self.intervals:
                low, high = self.intervals[name]
                text += f"  (95% interval {100 * low:.2f} to {100 * high:.2f})"
            told.append(f"  {name:<{width}}  {text}")
        told.append(f"cost: {self._cost()}")
        told += self.notes
        if self.bad:
            more = len(self.bad) - SHOWN
            told.append(f"left out: {len(self.bad)} unreadable")
            told += [f"  {name}: {reason}" for name, reason in self.bad[:SHOWN]]
            told += [f"  and {more} more"] if more > 0 else []
        return told

    def _cost(self) -> str:
        views = f"{self.views:.4g} view{'' if self.views == 1 else 's'} an image"
        counted = (
            [] if self.multiply_adds is None else [f"{_amount(self.multiply_adds)} multiply-adds an image"]
        )
        rates = (
            f"{self.images_per_second:,.1f} images/s with loading, "
            f"{self.network_images_per_second:,.1f} without"
        )
        return "; ".join(
            [views, *counted, f"{rates} ({self.device}, batch {self.batch}, {self.seconds:.1f} s)"]
        )


def evaluate(
    model: Model | str | os.PathLike[str],
    data: Dataset | str | os.PathLike[str],
    *,
    split: str = "test",
    protocol: str | Protocol = "center",
    batch: int = 64,
    device: str | None = None,
    threads: int | None = None,
    **opening: Any,
) -> Evaluation:
    """Test a model on a split of a data set by a protocol.

    model: a Model, or what `load` takes. data: a Dataset, or what `open_data` takes, with its options in
    `opening`; its classes are matched to the model's by name. The data that the model was trained on keep
    the splits of the training; other data that come without splits are tested whole. split: where there is
    no "test", "val" is taken and a note says so. batch: views a forward pass. device: auto, cpu, cuda or mps;
    None leaves the model where it is. threads: for loading and computing; None or 0 takes all processors.
    Unreadable images are left out, named and counted.

    Raises:
        StriateError: an unknown split, protocol or option, data of another kind or other classes than the
            model's, no readable image, outputs that are not numbers, or a setting out of range.
    """
    for name, value, least in (("batch", batch, 1), ("threads", 0 if threads is None else threads, 0)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise StriateError(f"{name} is {value!r}", allowed=f"a whole number, at least {least}")
    chosen = parse_protocol(protocol)
    loaded = model if isinstance(model, Model) else load(model)
    runner = Runner(chosen, loaded, batch=batch)
    opened, samples, notes = images_to_test(data, loaded, split, opening)
    if device is not None:
        loaded.to(device)
    with _threads(threads):
        scores, late, seconds, waited = _score(runner, samples, threads or processors())
    return Evaluation(
        model=_model_name(loaded, model),
        data=opened.name,
        digest=opened.digest(),
        split=samples.name,
        protocol=str(chosen),
        scores=scores,
        intervals=_intervals(scores),
        n=scores.n,
        bad=(*((str(name), str(reason)) for name, reason in opened.bad), *late),
        views=runner.views_per_image,
        multiply_adds=_multiply_adds(runner),
        seconds=seconds,
        waited=waited,
        device=str(loaded.device),
        batch=batch,
        notes=tuple(notes),
    )


def _score(runner: Runner, split: Split, threads: int) -> tuple[Scores, list[tuple[str, str]], float, float]:
    """The scores of a split, its unreadable images, the wall seconds, and those spent waiting for images."""
    scorer = runner.model.task.scorer()
    bad: list[tuple[str, str]] = []
    begin, waited = time.perf_counter(), 0.0
    with contextlib.closing(_batches(runner, split, threads, bad)) as batches:
        while True:
            asked = time.perf_counter()
            block = next(batches, None)
            waited += time.perf_counter() - asked
            if block is None:
                break
            numbers, views, targets = block
            for places, outputs in runner.outputs(views):
                wanted = _stack([targets[place] for place in places]).to(outputs.device)
                scorer.update(outputs, wanted, np.array([numbers[place] for place in places]))
    if not runner.images:
        first = f"; the first: {bad[0][1]}" if bad else ""
        raise StriateError(
            f"split {split.name!r} has no readable image{first}", hint="check it with 'striate data check'"
        )
    return scorer.result(), bad, time.perf_counter() - begin, waited


Item = tuple[int, Views, Any]
Block = tuple[list[int], list[Views], list[Any]]


def _batches(
    runner: Runner, split: Split, threads: int, bad: list[tuple[str, str]]
) -> Generator[Block, None, None]:
    """Blocks of (sample numbers, views, targets) in order; one block is read ahead in threads.

    A block holds `batch` images, or fewer where an image has several views.
    """
    ready: deque[Item] = deque()
    waiting: deque[Future[list[Item | tuple[str, str]]]] = deque()

    def take(items: list[Item | tuple[str, str]]) -> None:
        for item in items:
            if len(item) == 3:
                ready.append(item)
            else:
                bad.append(item)

    position = 0
    while position < len(split) and not ready:
        take(_read(runner, split, [position]))
        position += 1
    if not ready:
        return
    # The first image tells how many views there are, and so how many images make a batch.
    step = max(1, runner.batch // max(1, sum(map(len, ready[0][1]))))
    chunk = max(1, min(CHUNK, step // threads))
    with ThreadPoolExecutor(threads) as pool:
        try:
            while ready or waiting or position < len(split):
                while position < len(split) and len(waiting) * chunk + len(ready) < 2 * step:
                    numbers = range(position, min(position + chunk, len(split)))
                    waiting.append(pool.submit(_read, runner, split, numbers))
                    position = numbers.stop
                while waiting and len(ready) < step:
                    take(waiting.popleft().result())
                items = [ready.popleft() for _ in range(min(step, len(ready)))]
                if items:
                    yield [i[0] for i in items], [i[1] for i in items], [i[2] for i in items]
        finally:
            for future in waiting:
                future.cancel()


def _read(runner: Runner, split: Split, numbers: Sequence[int]) -> list[Item | tuple[str, str]]:
    """(number, views, target) for each sample, or (name, reason) where it cannot be read."""
    found: list[Item | tuple[str, str]] = []
    preprocess = runner.model.preprocess
    for number in numbers:
        try:
            image: View = split.image(number, at_least=runner.at_least, channels=preprocess.channels)
            if split.targets is None:
                target: Any = runner.protocol.target(split.mask(number), preprocess)
            else:
                target = split.targets[number]
        except BadImage as error:
            found.append((split.name_of(number), str(error)))
            continue
        found.append((number, runner.views(image), target))
    return found


def _stack(targets: list[Any]) -> Tensor:
    """Targets as one tensor: class numbers (n,) int64, labels (n, K) float32, masks (n, h, w) int64."""
    values = np.stack(targets)
    if values.dtype == np.uint8 and values.ndim == 2:
        return torch.from_numpy(values.astype(np.float32))
    return torch.from_numpy(values.astype(np.int64))


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """PyTorch computes with `count` threads in the block; None or 0 leaves it alone."""
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _intervals(scores: Scores) -> dict[str, tuple[float, float]]:
    """The 95 % intervals that a task's scores hold, under the names of their figures."""
    names = {"interval": ("top-1", "all labels right"), "top5_interval": ("top-5",)}
    figures = scores.summary()
    found = {}
    for field, targets in names.items():
        value = getattr(scores, field, None)
        for target in targets:
            if value is not None and target in figures:
                found[target] = value
    return found


def _multiply_adds(runner: Runner) -> float | None:
    try:
        return runner.multiply_adds()
    except (StriateError, ImportError):
        return None


def _model_name(model: Model, given: Any) -> str:
    if not isinstance(given, Model):
        return str(given)
    return str(model.card.get("name") or getattr(model.net, "name", "") or type(model.net).__name__)


def _amount(value: float) -> str:
    """A count with its unit: 1,234, 5.67 million, 1.23 billion."""
    for size, word in ((1e9, " billion"), (1e6, " million")):
        if value >= size:
            return f"{value / size:.3g}{word}"
    return f"{value:,.0f}"
