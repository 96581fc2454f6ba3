"""Loaders: kinds of targets and of pictures, what is held in memory, and refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from image_sets import png
from loading import VIEW, in_memory, loader, on_disk, pixels, same
from striate.core.errors import BadImage, StriateError
from striate.data import memory, samples
from striate.data.augment import NONE, parse
from striate.data.kept import Kept
from striate.data.pools import FilePool
from striate.data.preprocess import Preprocess
from striate.data.samples import Split, decode_index

# ------------------------------------------------------------------ kinds of targets


def test_multi_label_targets_are_floats() -> None:
    targets = np.eye(4, dtype=np.uint8)[np.arange(12) % 4]
    batch = next(loader(Split.from_arrays("train", pixels(12), targets)).batches(0))
    assert batch.targets.dtype == torch.float32
    np.testing.assert_array_equal(batch.targets, targets[batch.index])


@pytest.mark.parametrize("mode", ["memory", "stream"])
@pytest.mark.parametrize("augment", ["none", "pad-crop(2, zero)+flip", "affine(rotate=20, border=zero)"])
def test_masks_go_with_their_images(mode: str, augment: str) -> None:
    pictures = pixels(12)
    masks = (pictures[..., 0] > 128).astype(np.uint8)
    split, pipeline = Split.from_arrays("train", pictures, masks=masks), parse(augment)
    for batch in loader(split, augment=augment, mode=mode).batches(0):
        assert batch.targets.dtype == torch.int64
        assert batch.targets.shape == (6, 8, 9)
        u = pipeline.draw(1, 0, batch.index)
        for i, number in enumerate(batch.index):
            expected = pipeline.mask_view(masks[number].astype(np.int32), u[i], VIEW)
            np.testing.assert_array_equal(batch.targets[i], expected)
        assert (batch.targets == 255).any() == (augment != "none")


@pytest.mark.parametrize("mode", ["stream", "processes"])
def test_kept_masks_are_decoded_once_and_change_nothing(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, values = on_disk(tmp_path / "images", count=12), np.random.default_rng(0)
    (tmp_path / "masks").mkdir()
    for name in images.pool.names:
        Image.fromarray(values.integers(0, 5, (12, 15), dtype=np.uint8)).save(tmp_path / "masks" / name)
    masks = FilePool(tmp_path / "masks", images.pool.names)
    read = []
    monkeypatch.setattr(samples, "decode_index", lambda data: read.append(1) or decode_index(data))
    found = []
    for room in (0, 1 << 20):
        split = Split("train", images.pool, images.rows, None, masks=masks)
        one = loader(split, augment="random-resized-crop+flip", mode=mode, workers=2)
        one.keep(room, 0)
        found.append([batch for epoch in range(3) for batch in one.batches(epoch)])
        one.close()
    same(*found)
    if mode == "stream":
        assert len(read) == 3 * 12 + 12


def test_a_mask_of_many_values_is_not_kept() -> None:
    kept = Kept(1 << 20, rows=2)
    kept.add_mask(0, np.full((4, 4), 256, np.int32))
    kept.add_mask(1, np.full((4, 4), 255, np.int32))
    assert kept.mask(0) is None
    first, second = kept.mask(1), kept.mask(1)
    assert first is not None
    first[:] = 0  # the caller's own
    np.testing.assert_array_equal(second, np.full((4, 4), 255))
    assert kept.mask(1).dtype == np.int32  # type: ignore[union-attr]
    assert (kept.find(1, 1), kept.sides(1)) == (None, None)


def test_grey_images_for_a_net_of_three_channels_and_the_reverse() -> None:
    split = Split.from_arrays("train", pixels(12)[..., :1], np.zeros(12, dtype=int))
    batch = next(loader(split, Preprocess(size=(8, 9)), augment="none").batches(0))
    assert batch.images.shape == (6, 3, 8, 9)
    assert torch.equal(batch.images[:, 0], batch.images[:, 2])
    grey = next(loader(in_memory(), Preprocess(size=(8, 9), channels=1), augment="none").batches(0))
    assert grey.images.shape == (6, 1, 8, 9)


def test_images_as_large_as_they_are(tmp_path: Path) -> None:
    view = Preprocess(size=None)
    alike = loader(on_disk(tmp_path / "alike"), view, mode="stream")
    assert {batch.images.shape for batch in alike.batches(0)} == {(6, 3, 12, 15)}
    mixed = on_disk(tmp_path / "mixed", count=6)
    (tmp_path / "mixed" / "02.png").write_bytes(png(2, (9, 9)))
    for mode in ("stream", "memory"):
        with pytest.raises(StriateError, match=r"9 x 9.*cannot share a batch|12 x 15.*cannot share a batch"):
            list(loader(mixed, view, augment="none", mode=mode).batches(0))
    single = loader(mixed, view, augment="none", batch=1)
    assert single.mode == "stream"
    assert {batch.images.shape[2] for batch in single.batches(0)} == {9, 12}


# ------------------------------------------------------------------ choice of path, and refusals


def test_what_fits_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = on_disk(tmp_path)
    assert memory.fits_memory(in_memory(), VIEW, NONE)
    assert memory.fits_memory(files, VIEW, NONE)
    # A crop wants the image, not its view; large views that are not the images are read anew.
    assert not memory.fits_memory(files, VIEW, parse("random-resized-crop"))
    assert memory.fits_memory(files, Preprocess(size=(12, 15)), parse("random-resized-crop"))
    assert not memory.fits_memory(files, Preprocess(size=(65, 9)), NONE)
    monkeypatch.setattr(memory, "LIMIT", 40 * 8 * 9 * 3 - 1)
    assert not memory.fits_memory(in_memory(), VIEW, NONE)
    assert loader(in_memory()).mode == "stream"


def test_pictures_in_memory_are_not_copied() -> None:
    split = in_memory().select(np.arange(0, 40, 3))
    feed = loader(split, mode="memory", workers=0, augment="none", train=False)
    found = list(feed.batches(0))
    assert np.shares_memory(feed._source._stack, split.pool.pictures)  # type: ignore[union-attr, arg-type]
    np.testing.assert_array_equal(VIEW.invert(found[0].images), pixels()[:18:3])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"mode": "steam"}, "stream"),
        ({"batch": 0}, "batch"),
        ({"batch": 2.5}, "batch"),
        ({"workers": -1}, "workers"),
        ({"prefetch": 0}, "prefetch"),
        ({"rank": 2, "world": 2}, "rank"),
        ({"augment": "flipp"}, "flip"),
    ],
)
def test_wrong_settings_are_refused(change: dict[str, object], told: str) -> None:
    with pytest.raises(StriateError, match=told):
        loader(in_memory(), **change)


def test_an_empty_split_has_no_batches() -> None:
    feed = loader(in_memory().select([]))
    assert len(feed) == len(list(feed.batches(0))) == 0


def test_bad_images_of_memory_raise_nothing_on_their_own(tmp_path: Path) -> None:
    split = on_disk(tmp_path, bad=(1,))
    with pytest.raises(BadImage):
        split.image(1)
    assert len(list(loader(split, mode="memory").batches(0))) == 3
