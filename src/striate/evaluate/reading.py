"""One pass over a split: its images are read ahead in threads, and a protocol's views of them run."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from striate.core.errors import BadImage, StriateError
from striate.core.machine import check_threads, processors
from striate.data.samples import Split
from striate.evaluate.protocols import View
from striate.evaluate.runner import Runner, Views
from striate.images.jpeg import Look

# Images that one loader thread takes at a time at most: small pictures would drown in hand-overs.
CHUNK = 16
# Takes outputs (n, K, ...), targets and sample numbers (n,), as a `Scorer.update` does.
Take = Callable[[Tensor, Tensor, Any], None]


@dataclass(frozen=True)
class Pass:
    """What one pass over a split took: views and multiply-adds are the means of an image, times seconds.

    bad: (name, reason) of the images that could not be read; multiply_adds None where the net cannot be
    counted; waited: the part of the seconds in which the net stood still for want of images; engines: lines
    on what the net ran on.
    """

    bad: tuple[tuple[str, str], ...]
    views: float
    multiply_adds: float | None
    seconds: float
    waited: float
    engines: tuple[str, ...] = ()


def run_over(runner: Runner, split: Split, take: Take, threads: int | None) -> Pass:
    """Run a protocol over the images of a split and hand each block of outputs to `take`.

    threads: for loading and computing; None or 0 takes all processors.

    Raises:
        StriateError: no image can be read.
    """
    bad: list[tuple[str, str]] = []
    begin, waited = time.perf_counter(), 0.0
    workers = threads or processors()

    def left(seen: int) -> int:
        return round(len(split) * runner.views_per_image) - seen if runner.images else 0

    with (
        computing(threads),
        runner.model.running(left) as engines,
        contextlib.closing(batches(runner, split, workers, bad)) as blocks,
    ):
        while True:
            asked = time.perf_counter()
            block = next(blocks, None)
            waited += time.perf_counter() - asked
            if block is None:
                break
            numbers, views, targets = block
            for places, outputs in runner.outputs(views):
                wanted = stack([targets[place] for place in places]).to(outputs.device)
                take(outputs, wanted, np.array([numbers[place] for place in places]))
        if runner.model.device.type == "cuda":
            torch.cuda.synchronize()
    seconds = time.perf_counter() - begin
    if not runner.images:
        first = f"; the first: {bad[0][1]}" if bad else ""
        raise StriateError(
            f"split {split.name!r} has no readable image{first}", hint="check it with 'striate data check'"
        )
    try:
        counted: float | None = runner.multiply_adds()
    except (StriateError, ImportError):
        counted = None
    told = engines.lines()
    if not engines.seen and runner.model.engine not in ("auto", "eager"):
        told.append(
            f"engine {runner.model.engine!r} was not used: this protocol runs a form of the net in PyTorch"
        )
    return Pass(tuple(bad), runner.views_per_image, counted, seconds, waited, tuple(told))


def check_counts(batch: object, threads: int | None) -> None:
    """Refuse a batch below 1, and threads as `check_threads` does."""
    if not isinstance(batch, int) or isinstance(batch, bool) or batch < 1:
        raise StriateError(f"batch is {batch!r}", allowed="a whole number, at least 1")
    check_threads(threads)


@contextlib.contextmanager
def computing(threads: int | None) -> Iterator[None]:
    """PyTorch computes with so many threads in the block; None or 0 leaves it alone."""
    before = torch.get_num_threads()
    if threads:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


Item = tuple[int, Views, Any]
Block = tuple[list[int], list[Views], list[Any]]


def batches(
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
            look = Look()
            image: View = split.image(
                number, at_least=runner.at_least, channels=preprocess.channels, look=look
            )
            if split.targets is None:
                mask = split.mask(number, look.sides or image.shape[:2])
                target: Any = runner.protocol.target(mask, preprocess)
            else:
                target = split.targets[number]
        except BadImage as error:
            found.append((split.name_of(number), str(error)))
            continue
        found.append((number, runner.views(image), target))
    return found


def stack(targets: list[Any]) -> Tensor:
    """Targets as one tensor: class numbers (n,) int64, labels (n, K) float32, masks (n, h, w) int64."""
    values = np.stack(targets)
    if values.dtype == np.uint8 and values.ndim == 2:
        return torch.from_numpy(values.astype(np.float32))
    return torch.from_numpy(values.astype(np.int64))
