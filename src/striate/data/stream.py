"""Streaming: workers decode ahead, in order and within bounds."""

from __future__ import annotations

import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from striate.core.errors import StriateError
from striate.core.machine import end_with_parent
from striate.data.buffers import Buffers, Name, can_share, opened
from striate.data.reader import LEFT_OUT, Bytes, Integers, Part, Reader

T = TypeVar("T")
R = TypeVar("R")
CHUNK = 8
"""Samples a worker takes at a time: few, so that all have work; not one, to spare hand-overs."""
MOST_AT_ONCE = 32
"""Those that a process takes: its hand-overs cost more."""


@dataclass(frozen=True)
class Span:
    """The positions [begin, end) of an epoch's order: one process's part of one batch."""

    epoch: int
    begin: int
    end: int


@dataclass(frozen=True)
class Gathered:
    """A batch: masks (N, h, w) or None, sample numbers (N,), and one of two forms of the images.

    views: uint8 (N, h, w, C); images: normalised already, (N, C, h, w) float32, channels_last.
    """

    views: Bytes | None
    masks: NDArray[np.int32] | None
    numbers: Integers
    images: Tensor | None = None


@dataclass(frozen=True)
class Slot:
    """Room for a batch of N: its images as N * h * w * C values, and its masks (N, h, w), if it has any.

    name: of the memory of both, where processes fill it.
    """

    count: int
    images: Tensor
    masks: NDArray[np.int32] | None
    name: Name | None = None


def ordered(
    work: Callable[[T], Callable[[], R]], tasks: Iterator[T], window: int
) -> Generator[R, None, None]:
    """The results of `work` in the order of the tasks, at most `window` of them under way or waiting.

    work: starts a task and returns what waits for its result. An error comes up at the task's own place.
    """
    waiting: deque[Callable[[], R]] = deque()
    for task in tasks:
        waiting.append(work(task))
        if len(waiting) >= window:
            yield waiting.popleft()()
    while waiting:
        yield waiting.popleft()()


class Workers:
    """Threads or processes that call functions, in blocks of `calling`, at whose end no task is left.

    Processes are kept from one block to the next, until `close`. Without workers, calls run where they are
    made.
    """

    def __init__(self, count: int, reader: Reader | None = None) -> None:
        self.count = count
        self._reader = reader
        self._processes: ProcessPoolExecutor | None = None

    @contextmanager
    def calling(self) -> Iterator[Calls]:
        """What calls functions in the block; several blocks at a time do not know of each other."""
        threads, reader = None, self._reader
        if self.count and reader is None:
            threads = ThreadPoolExecutor(self.count, thread_name_prefix="striate-loader")
        elif self.count and reader is not None and self._processes is None:
            # A forked child would inherit locked locks of the threads of PyTorch and OpenCV.
            self._processes = ProcessPoolExecutor(
                self.count,
                multiprocessing.get_context("spawn"),
                initializer=_install,
                initargs=(reader,),
            )
        calls = Calls(self, threads or self._processes)
        try:
            yield calls
        finally:
            calls.end()
            if threads is not None:
                threads.shutdown(wait=True, cancel_futures=True)

    def close(self) -> None:
        """End the processes."""
        if self._processes is not None:
            self._processes.shutdown(wait=True, cancel_futures=True)
            self._processes = None

    def broken(self) -> StriateError:
        """The error for processes that have died; the next block has new ones."""
        self._processes = None
        return StriateError(
            "a loader process has died", hint="give fewer --workers, or leave out the mode 'processes'"
        )


class Calls:
    """The calls of one block."""

    def __init__(self, workers: Workers, executor: Executor | None) -> None:
        self._workers, self._executor = workers, executor
        self._futures: deque[Future[Any]] = deque()

    def __call__(self, function: Callable[..., R], *args: Any) -> Callable[[], R]:
        """Start function(*args); the result waits for it, and raises what it raised.

        Raises:
            StriateError: a process has died (most often for want of memory).
        """
        if self._executor is None:
            return lambda: function(*args)
        while self._futures and self._futures[0].done():
            self._futures.popleft()
        try:
            future = self._executor.submit(function, *args)
        except BrokenProcessPool as error:
            raise self._workers.broken() from error
        self._futures.append(future)
        return lambda: self._result(future)

    def end(self) -> None:
        """Leave what is not begun, and wait for the rest: it writes into memory that is used again."""
        for future in self._futures:
            future.cancel()
        wait([future for future in self._futures if not future.cancelled()])
        self._futures.clear()

    def _result(self, future: Future[R]) -> R:
        try:
            return future.result()
        except BrokenProcessPool as error:
            raise self._workers.broken() from error


_installed: list[Reader] = []


def _install(reader: Reader) -> None:
    """In a fresh loader process: keep the reader; Ctrl-C is the parent's to handle."""
    import cv2

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    _installed.append(reader)


def _read_installed(epoch: int, position: int, u: NDArray[np.float64]) -> Part:
    return _installed[-1].read(epoch, position, u)


def _fill_installed(
    epoch: int, position: int, u: NDArray[np.float64], name: Name, count: int, low: int
) -> Part:
    """The same, into the places from `low` on of a batch of `count` in shared memory."""
    reader = _installed[-1]
    slot = _laid_out(torch.from_numpy(opened(name)), count, reader)
    return _fill(reader, epoch, position, u, *_places(slot, low, low + len(u)))


def _laid_out(memory: Tensor, count: int, reader: Reader, name: Name | None = None) -> Slot:
    """Memory as room for a batch: its images, then its masks."""
    assert reader.preprocess.size is not None
    height, width = reader.preprocess.size
    images = memory[: count * height * width * reader.preprocess.channels]
    rest = memory[len(images) : len(images) + count * height * width]
    masks = rest.numpy().view(np.int32).reshape(count, height, width) if reader.has_masks else None
    return Slot(count, images, masks, name)


def _places(slot: Slot, low: int, high: int) -> tuple[Tensor, NDArray[np.int32] | None]:
    """The places of samples [low, high) in the memory of a batch."""
    each = slot.images.numel() // slot.count
    masks = None if slot.masks is None else slot.masks[low:high]
    return slot.images[low * each : high * each], masks


def _fill(
    reader: Reader, epoch: int, position: int, u: NDArray[np.float64],
    images: Tensor, masks: NDArray[np.int32] | None,
) -> Part:  # fmt: skip
    """Read samples and normalise them into their places."""
    preprocess = reader.preprocess
    assert preprocess.size is not None
    views = np.empty((len(u), *preprocess.size, preprocess.channels), dtype=np.uint8)
    part = reader.read(epoch, position, u, views, masks)
    preprocess.normalise(views, images)
    return part


class Stream:
    """Batches decoded as they are needed, `prefetch` of them ahead.

    Where the size of the views is known and each value is normalised for itself, the threads do that too,
    a few views at a time: a third thread that works through whole batches would hold them up.
    """

    def __init__(self, reader: Reader, workers: int, prefetch: int, processes: bool = False) -> None:
        self.reader, self.prefetch = reader, prefetch
        self.processes = processes and workers > 0
        self.workers = Workers(workers, reader if self.processes else None)
        # Those under way and ahead; the one in use, the one before it, and two that a consumer may keep.
        self._buffers = Buffers(prefetch + 5, shared=self.processes and can_share())

    def close(self) -> None:
        """End the processes, if there are any."""
        self.workers.close()

    def batches(self, spans: Iterator[Span]) -> Generator[Gathered, None, None]:
        """One batch for each span, in order.

        Raises:
            StriateError: no image can be read, or views of different sizes without a size to bring them to.
        """
        with self.workers.calling() as call:
            for slot, parts in ordered(partial(self._start, call), spans, self.prefetch + 1):
                found = [part() for part in parts]
                for part in found:
                    self.reader.bad.update(part.bad)
                yield self._gather(slot, found)

    def _start(self, call: Calls, span: Span) -> Callable[[], tuple[Slot | None, list[Callable[[], Part]]]]:
        reader, count = self.reader, span.end - span.begin
        u = reader.draw(span.epoch, reader.order(span.epoch)[span.begin : span.end], span.begin)
        slot = self._slot(count)
        parts = []
        chunk = CHUNK
        if self.processes:
            chunk = max(CHUNK, min(MOST_AT_ONCE, -(-count // self.workers.count)))
        for low in range(0, count, chunk):
            high = min(low + chunk, count)
            args = (span.epoch, span.begin + low, u[low:high])
            if slot is None:
                parts.append(call(_read_installed if self.processes else reader.read, *args))
            elif slot.name is not None:
                parts.append(call(_fill_installed, *args, slot.name, count, low))
            else:
                parts.append(call(_fill, reader, *args, *_places(slot, low, high)))
        return lambda: (slot, parts)

    def _slot(self, count: int) -> Slot | None:
        """Room for a batch; None when the size of the views is not known, or the caller is to normalise."""
        preprocess = self.reader.preprocess
        if preprocess.size is None or not preprocess.plain or (self.processes and not can_share()):
            return None
        height, width = preprocess.size
        try:
            memory = self._buffers.take(
                count * height * width * (preprocess.channels + self.reader.has_masks)
            )
        except OSError:
            return None  # a caller that keeps hundreds of batches, each with open files: this one by a pipe
        name = self._buffers.name_of(memory) if self.processes else None
        return _laid_out(memory, count, self.reader, name)

    def _gather(self, slot: Slot | None, parts: list[Part]) -> Gathered:
        numbers = np.concatenate([part.numbers for part in parts])
        kept = numbers != LEFT_OUT
        if slot is not None:
            preprocess, masks = self.reader.preprocess, slot.masks
            images = slot.images.view(len(numbers), *preprocess.view_size(0, 0), preprocess.channels)
            if not kept.all():
                images, masks = images[torch.from_numpy(kept)], None if masks is None else masks[kept]
            return Gathered(None, masks, numbers[kept], images.permute(0, 3, 1, 2))
        shown = [view for part in parts for view in part.views if view is not None]
        covers = [mask for part in parts for mask in part.masks if mask is not None]
        return Gathered(stacked(shown), stacked(covers) if covers else None, numbers[kept])


def stacked(arrays: list[NDArray[Any]]) -> NDArray[Any]:
    """Arrays of one shape as one array.

    Raises:
        StriateError: they have different shapes.
    """
    if not arrays:
        return np.empty((0, 1, 1, 1), dtype=np.uint8)
    shapes = {array.shape[:2] for array in arrays}
    if len(shapes) > 1:
        sizes = " and ".join(f"{h} x {w}" for h, w in sorted(shapes)[:2])
        raise StriateError(f"images of {sizes} cannot share a batch", hint="give a size, or a batch of 1")
    return np.stack(arrays)
