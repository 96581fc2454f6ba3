"""Loaders: the same bytes whatever reads them, bad images, shares, bounds, and a clean end."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clocks import Ticks
from loading import AUGMENT, VIEW, in_memory, loader, on_disk, pixels, same
from striate.core.errors import StriateError
from striate.data import loaders
from striate.data.augment import parse
from striate.data.loaders import Batch, Loader
from striate.data.pools import ArrayPool
from striate.data.samples import Split


def loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("striate-loader")]


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    gc.collect()
    assert not loader_threads()


# ------------------------------------------------------------------ the same bytes


@pytest.mark.parametrize(
    "augment", ["none", AUGMENT, "affine(rotate=9)+flip", "random-resized-crop(0.3)+flip"]
)
def test_any_mode_and_number_of_workers_gives_the_same_bytes(augment: str) -> None:
    split = in_memory()
    first = list(loader(split, augment=augment, mode="memory", workers=0).batches(3))
    for mode, workers in (("memory", 1), ("memory", 4), ("stream", 0), ("stream", 1), ("stream", 5)):
        same(list(loader(split, augment=augment, mode=mode, workers=workers).batches(3)), first)
    same(list(loader(split, augment=augment, mode="stream", workers=2, prefetch=1).batches(3)), first)


def test_batches_are_the_augmented_views_normalised() -> None:
    split, pipeline = in_memory(), parse(AUGMENT)
    for batch in loader(split).batches(2):
        u = pipeline.draw(1, 2, batch.index)
        views = [pipeline.view(split.image(int(i)), row, VIEW) for i, row in zip(batch.index, u, strict=True)]
        assert torch.equal(batch.images, VIEW.normalise(np.stack(views)))
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        np.testing.assert_array_equal(batch.targets, batch.index % 7)
        assert batch.targets.dtype == torch.int64


@pytest.mark.parametrize("mode", ["memory", "stream"])
def test_an_epoch_can_be_entered_anywhere(mode: str) -> None:
    feed = loader(in_memory(), mode=mode)
    whole = list(feed.batches(5))
    for start in range(len(feed) + 1):
        same(list(feed.batches(5, start=start)), whole[start:])
    # A fresh process that has seen nothing of the epoch.
    same(list(loader(in_memory(), mode=mode).batches(5, start=4)), whole[4:])
    for start in (-1, len(feed) + 1):
        with pytest.raises(StriateError, match="start"):
            feed.batches(5, start=start)


def test_epochs_and_seeds_differ_and_each_epoch_shows_all() -> None:
    feed = loader(in_memory(42))
    orders = [np.concatenate([b.index for b in feed.batches(epoch)]) for epoch in range(3)]
    assert all(sorted(order) == list(range(42)) for order in orders)
    assert len({order.tobytes() for order in orders}) == 3
    other = np.concatenate([b.index for b in loader(in_memory(42), seed=2).batches(0)])
    assert (other != orders[0]).any()


def test_batches_stay_as_they_were() -> None:
    feed = loader(in_memory(), mode="stream", workers=2)
    kept = list(feed.batches(0))
    copies = [batch.images.clone() for batch in kept]
    list(feed.batches(1))
    assert all(torch.equal(batch.images, copy) for batch, copy in zip(kept, copies, strict=True))


def test_testing_keeps_order_and_drops_nothing(tmp_path: Path) -> None:
    for split in (in_memory(20), on_disk(tmp_path)):
        feed = loader(split, train=False, augment="none", mode="auto")
        batches = list(feed.batches(0))
        assert [len(batch.index) for batch in batches] == [6, 6, 6, 2]
        assert len(feed) == 4
        np.testing.assert_array_equal(np.concatenate([batch.index for batch in batches]), np.arange(20))
        same(batches, list(feed.batches(9)))
        views = np.stack([VIEW.view(split.image(i)) for i in range(20)])
        assert torch.equal(torch.cat([batch.images for batch in batches]), VIEW.normalise(views))


def test_processes_give_the_same_bytes(tmp_path: Path) -> None:
    split = on_disk(tmp_path, bad=(3,))
    threads, processes = (loader(split, mode=mode, workers=2, prefetch=2) for mode in ("stream", "processes"))
    try:
        for epoch in range(2):
            same(list(processes.batches(epoch)), list(threads.batches(epoch)))
        assert processes.bad == threads.bad != []
        # What was left early writes no more into memory that is used again.
        left = processes.batches(0)
        next(left)
        left.close()
        same(list(processes.batches(1)), list(threads.batches(1)))
        kept = list(processes.batches(0))
        copies = [batch.images.clone() for batch in kept]
        list(processes.batches(1))
        assert all(torch.equal(batch.images, copy) for batch, copy in zip(kept, copies, strict=True))
        for feed in (processes, threads):
            one, other = feed.batches(0), feed.batches(1)
            first = [next(one), next(other)]
            one.close()
            rest = list(other)
            same([first[1], *rest], list(threads.batches(1)))
        next(processes.batches(0))
        source = processes._source.workers._processes  # type: ignore[union-attr]
        assert source is not None
        for process in list(source._processes.values()):
            os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(StriateError, match="process has died"):
            list(processes.batches(0))
    finally:
        processes.close()


def test_processes_fill_masks_too(tmp_path: Path) -> None:
    split = on_disk(tmp_path, bad=(3,))
    covers = np.random.default_rng(0).integers(0, 5, (20, 12, 15)).astype(np.uint8)
    split.targets, split.masks = None, ArrayPool(covers, split.pool.names)
    threads, processes = (loader(split, mode=mode, workers=1) for mode in ("stream", "processes"))
    try:
        same(list(processes.batches(0)), list(threads.batches(0)))
    finally:
        processes.close()


# ------------------------------------------------------------------ shares of several processes


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("mode", ["memory", "stream"])
def test_ranks_share_each_global_batch(world: int, mode: str) -> None:
    split, each = in_memory(41), 12 // world
    whole = list(loader(split, batch=12, mode=mode, drop_last=False).batches(1))
    shares = [
        list(loader(split, batch=each, rank=rank, world=world, mode=mode, drop_last=False).batches(1))
        for rank in range(world)
    ]
    assert {len(share) for share in shares} == {len(whole)} == {4}
    joined = [
        Batch(
            torch.cat([part.images for part in parts]),
            torch.cat([part.targets for part in parts]),
            np.concatenate([part.index for part in parts]),
        )
        for parts in zip(*shares, strict=True)
    ]
    same(joined, whole)


@pytest.mark.parametrize(
    ("count", "batch", "world", "drop", "expected"),
    [(20, 6, 1, True, 3), (20, 6, 1, False, 4), (20, 5, 2, True, 2), (4, 6, 1, True, 1), (6, 6, 1, False, 1)],
)
def test_length(count: int, batch: int, world: int, drop: bool, expected: int) -> None:
    feed = loader(in_memory(count), batch=batch, world=world, drop_last=drop)
    assert len(feed) == len(list(feed.batches(0))) == expected


def test_more_processes_than_images_in_the_last_batch() -> None:
    counts = [
        sum(len(b.index) for b in loader(in_memory(9), batch=2, rank=r, world=4, drop_last=False).batches(0))
        for r in range(4)
    ]
    assert sum(counts) == 9


# ------------------------------------------------------------------ unreadable images


@pytest.mark.parametrize("mode", ["memory", "stream"])
@pytest.mark.parametrize("workers", [0, 3])
def test_in_training_the_next_in_the_order_takes_a_bad_ones_place(
    tmp_path: Path, mode: str, workers: int
) -> None:
    bad = (3, 8, 9)
    split = on_disk(tmp_path, bad=bad, size=(8, 9))
    feed = loader(split, mode=mode, workers=workers, drop_last=False)
    order = feed.reader.order(0).tolist()
    good = [n for n in order if n not in bad]
    expected = [next(n for n in (order + order)[i:] if n in good) for i in range(20)]
    found = list(feed.batches(0))
    assert np.concatenate([batch.index for batch in found]).tolist() == expected
    assert [batch.targets.tolist() for batch in found] == [batch.index.tolist() for batch in found]
    assert [name for name, _ in feed.bad] == ["03.png", "08.png", "09.png"]
    assert all("03.png" in reason for _, reason in feed.bad[:1])
    same(list(feed.batches(0)), found)
    same(list(loader(split, mode=mode, drop_last=False).batches(0, start=2)), found[2:])
    assert len(feed.bad) == 3


@pytest.mark.parametrize("mode", ["memory", "stream"])
def test_in_testing_bad_ones_are_left_out(tmp_path: Path, mode: str) -> None:
    bad = (0, 6, 7, 8, 9, 10, 11, 19)
    feed = loader(on_disk(tmp_path, bad=bad), train=False, augment="none", mode=mode, workers=2)
    assert [batch.index.tolist() for batch in feed.batches(0)] == [
        [1, 2, 3, 4, 5],
        [12, 13, 14, 15, 16, 17],
        [18],
    ]
    assert len(feed.bad) == len(bad)


@pytest.mark.parametrize("mode", ["memory", "stream"])
def test_no_readable_image_at_all(tmp_path: Path, mode: str) -> None:
    split = on_disk(tmp_path, count=5, bad=tuple(range(5)))
    with pytest.raises(StriateError, match="none of the 5 images"):
        list(loader(split, mode=mode).batches(0))


def test_an_error_that_is_no_bad_image_comes_up_once_and_ends_the_threads() -> None:
    class Failing(Split):
        def image(self, index: int, **how: Any) -> np.ndarray:
            if index == 11:
                raise RuntimeError("of another kind")
            return super().image(index, **how)

    pool = ArrayPool(pixels())
    split = Failing("train", pool, np.arange(40), np.zeros(40, dtype=np.int64))
    source = loader(split, mode="stream", workers=3).batches(0)
    with pytest.raises(RuntimeError, match="of another kind"):
        list(source)
    assert not loader_threads()


# ------------------------------------------------------------------ bounds and a clean end


class Counting(Split):
    """Counts what was read; each image takes a second of a clock."""

    def __init__(self, count: int, clock: Ticks | None = None) -> None:
        super().__init__("train", ArrayPool(pixels(count)), np.arange(count), np.zeros(count, dtype=np.int64))
        self.read_so_far = 0
        self.lock, self.clock = threading.Lock(), clock or Ticks()

    def image(self, index: int, **how: Any) -> np.ndarray:
        with self.lock:
            self.read_so_far += 1
            self.clock.now += 1
        return super().image(index, **how)


def settled(read: Callable[[], int], least: int) -> int:
    """The value once it is at least so much and has not changed for a tenth of a second."""
    deadline = time.monotonic() + 30
    while read() < least and time.monotonic() < deadline:
        time.sleep(0.01)
    last, since = read(), time.monotonic()
    while time.monotonic() - since < 0.1:
        time.sleep(0.01)
        if read() != last:
            last, since = read(), time.monotonic()
    return last


def test_the_prefetch_is_read_ahead_and_no_more() -> None:
    split = Counting(600)
    source = loader(split, mode="stream", workers=3, prefetch=2).batches(0)
    for taken in range(1, 4):
        next(source)
        assert settled(lambda: split.read_so_far, 6 * (taken + 2)) == 6 * (taken + 2)
    source.close()
    assert not loader_threads()
    assert split.read_so_far <= 6 * 5


@pytest.mark.parametrize("mode", ["memory", "stream"])
@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
def test_leaving_early_ends_the_threads(mode: str, kind: type[BaseException]) -> None:
    def leave(feed: Loader) -> None:
        for _ in feed.batches(0):
            assert loader_threads()
            raise kind

    feed = loader(in_memory(), mode=mode, workers=2)
    with pytest.raises(kind):
        leave(feed)
    gc.collect()
    assert not loader_threads()
    for _ in feed.batches(0):
        break
    gc.collect()
    assert not loader_threads()
    assert len(list(feed.batches(0))) == len(feed)


def test_two_epochs_at_a_time_do_not_disturb_each_other() -> None:
    feed = loader(in_memory(), mode="stream", workers=2)
    expected = list(feed.batches(0)), list(feed.batches(1))
    first, second = feed.batches(0), feed.batches(1)
    found = [(a, b) for a, b in zip(first, second, strict=True)]
    same([a for a, _ in found], expected[0])
    same([b for _, b in found], expected[1])


def test_the_meter_counts_waiting_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Ticks()
    monkeypatch.setattr(loaders, "time", clock)
    feed = loader(Counting(40, clock), mode="stream", workers=0)
    for _ in feed.batches(0):
        clock.now += 100
    # A second for each image, of which the last four make no batch.
    assert feed.waited == 36
