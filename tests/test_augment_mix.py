"""Samples made of two, repeated samples, and their losses: against loops over pixels, in any mode."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import betaincinv

from loading import same
from striate.core.errors import StriateError
from striate.data import philox
from striate.data.augment import parse
from striate.data.augment_mix import CutMix, Mixup, beta
from striate.data.loaders import Loader
from striate.data.pools import FilePool
from striate.data.preprocess import Preprocess
from striate.data.samples import Split
from striate.images.draw import encode_jpeg
from striate.images.geometry import resize
from striate.tasks.classification import Classification, MultiLabel

SIZE = (10, 12)
VIEW = Preprocess(size=SIZE, mean=(0.2, 0.3, 0.4), std=(0.3, 0.2, 0.1))
CLASSES = 5


def pixels(count: int = 30) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, *SIZE, 3), dtype=np.uint8)


def split_of(kind: str = "classes", count: int = 30) -> Split:
    rng = np.random.default_rng(1)
    if kind == "masks":
        return Split.from_arrays("train", pixels(count), masks=rng.integers(0, CLASSES, (count, *SIZE)))
    targets = rng.integers(0, CLASSES, count) if kind == "classes" else rng.integers(0, 2, (count, CLASSES))
    return Split.from_arrays("train", pixels(count), targets)


def loader(split: Split, augment: str, **how: object) -> Loader:
    plain: dict[str, object] = {"batch": 7, "seed": 3, "train": True, "classes": CLASSES, "workers": 0}
    return Loader(split, VIEW, augment=augment, **(plain | how))  # type: ignore[arg-type]


# ------------------------------------------------------------------ how much


@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.5, 1.0, 3.0, 20.0])
def test_beta_is_the_quantile_function(alpha: float) -> None:
    u = np.concatenate([np.linspace(1e-6, 1 - 1e-6, 401), philox.uniforms(0, 0, [1], 50)[0]])
    np.testing.assert_allclose(beta(u, alpha), betaincinv(alpha, alpha, u), atol=2e-6)


def test_cutmix_boxes_have_the_papers_area_and_place() -> None:
    u = philox.uniforms(0, 0, np.arange(4000), 3)
    keep, boxes = CutMix().weights(u, 40, 60)
    assert boxes is not None
    for share, (x0, y0, x1, y1), row in zip(keep, boxes.tolist(), u, strict=True):
        w, h = int(math.sqrt(1 - row[0]) * 60), int(math.sqrt(1 - row[0]) * 40)
        cx, cy = int(row[1] * 60), int(row[2] * 40)
        assert (x0, x1) == (max(0, cx - w // 2), min(60, cx - w // 2 + w))
        assert (y0, y1) == (max(0, cy - h // 2), min(40, cy - h // 2 + h))
        assert share == pytest.approx(1 - (x1 - x0) * (y1 - y0) / 2400)
    assert 0.5 < keep.mean() < 0.75


# ------------------------------------------------------------------ images and targets


def drawn(augment: str, epoch: int, first: int, count: int) -> np.ndarray:
    """The numbers of these samples' mixing."""
    columns = 2 + max(mixer.mixing for mixer in parse(augment).mixers)
    return philox.uniforms(3, epoch, np.arange(first, first + count), columns, use=philox.BATCH)


@pytest.mark.parametrize("kind", ["classes", "labels"])
@pytest.mark.parametrize(
    "augment", ["mixup(0.8)", "mixup(1, p=0.5)", "cutmix", "cutmix(p=0.6)+flip", "mixup+cutmix"]
)
def test_a_mixed_batch_is_a_loop_over_its_pixels(augment: str, kind: str) -> None:
    split = split_of(kind)
    views = list(loader(split, "flip" if "flip" in augment else "none").batches(1))
    mixed = list(loader(split, augment).batches(1))
    mixers = parse(augment).mixers
    kinds = set()
    for number, (plain, batch) in enumerate(zip(views, mixed, strict=True)):
        np.testing.assert_array_equal(batch.index, plain.index)
        u = drawn(augment, 1, number * 7, 7)
        hard = np.zeros((7, CLASSES))
        for i, target in enumerate(plain.targets.tolist()):
            hard[i] = target if isinstance(target, list) else np.eye(CLASSES)[target]
        for i in range(7):
            other, image = (i - 1) % 7, plain.images[i].numpy().astype(float)
            partner = plain.images[other].numpy().astype(float)
            mixer = mixers[int(u[i, 0] * len(mixers))]
            weight = 1.0
            if u[i, 1] < mixer.p:
                kinds.add(type(mixer))
                if isinstance(mixer, Mixup):
                    weight = float(betaincinv(mixer.alpha, mixer.alpha, u[i, 2]))
                    image = weight * image + (1 - weight) * partner
                else:
                    _, boxes = mixer.weights(u[i : i + 1, 2:], *SIZE)
                    assert boxes is not None
                    inside = 0
                    for y in range(SIZE[0]):
                        for x in range(SIZE[1]):
                            if boxes[0, 0] <= x < boxes[0, 2] and boxes[0, 1] <= y < boxes[0, 3]:
                                image[:, y, x] = partner[:, y, x]
                                inside += 1
                    weight = 1 - inside / (SIZE[0] * SIZE[1])
            np.testing.assert_allclose(batch.images[i], image, atol=1e-4)
            expected = weight * hard[i] + (1 - weight) * hard[other]
            np.testing.assert_allclose(batch.targets[i], expected, atol=1e-5)
        assert batch.targets.dtype == torch.float32
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert kinds == {type(mixer) for mixer in mixers}


def test_cutmix_of_masks_takes_the_same_box() -> None:
    split = split_of("masks")
    plain = list(loader(split, "none").batches(0))
    for number, batch in enumerate(loader(split, "cutmix").batches(0)):
        u = drawn("cutmix", 0, number * 7, 7)
        _, boxes = CutMix().weights(u[:, 2:], *SIZE)
        assert boxes is not None
        before = plain[number]
        for i, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
            mask, image = before.targets[i].clone(), before.images[i].clone()
            mask[y0:y1, x0:x1] = before.targets[i - 1][y0:y1, x0:x1]
            image[:, y0:y1, x0:x1] = before.images[i - 1][:, y0:y1, x0:x1]
            assert torch.equal(batch.targets[i], mask)
            assert torch.equal(batch.images[i], image)


def test_what_cannot_be_mixed_is_refused() -> None:
    with pytest.raises(StriateError, match=r"cannot be of two classes.*cutmix"):
        loader(split_of("masks"), "cutmix+mixup")
    with pytest.raises(StriateError, match=r"number of classes.*`classes`"):
        loader(split_of(), "mixup", classes=None)
    with pytest.raises(StriateError, match="without targets"):
        loader(Split.from_arrays("test", pixels()), "mixup")
    for augment in ("mixup", "repeat(2)"):
        with pytest.raises(StriateError, match="in training only"):
            loader(split_of(), augment, train=False)
    with pytest.raises(StriateError, match="2 repeats"):
        parse("repeat(2)+repeat(3)")


# ------------------------------------------------------------------ losses


def test_losses_of_mixed_samples_are_the_mixed_losses() -> None:
    torch.manual_seed(0)
    outputs, labels = torch.randn(6, CLASSES), torch.tensor([0, 1, 2, 3, 4, 1])
    one_hot = torch.nn.functional.one_hot(labels, CLASSES).float()
    weight = torch.rand(6, 1)
    soft = weight * one_hot + (1 - weight) * one_hot.roll(1, 0)
    task = Classification(list("abcde"), label_smoothing=0.1)
    parts = [
        w * task.loss(outputs[i : i + 1], labels[i : i + 1])
        + (1 - w) * task.loss(outputs[i : i + 1], labels.roll(1)[i : i + 1])
        for i, w in enumerate(weight[:, 0])
    ]
    torch.testing.assert_close(task.loss(outputs, soft), torch.stack(parts).mean())
    weighted = Classification(list("abcde"), class_weights=[1, 2, 3, 0.5, 1])
    torch.testing.assert_close(weighted.loss(outputs, one_hot), weighted.loss(outputs, labels))
    own = soft @ torch.tensor([1, 2, 3, 0.5, 1])
    each = -(soft * outputs.log_softmax(1)).sum(1)
    torch.testing.assert_close(weighted.loss(outputs, soft), (own * each).sum() / own.sum())


def test_losses_of_mixed_labels() -> None:
    torch.manual_seed(1)
    outputs, labels = torch.randn(6, CLASSES), torch.randint(0, 2, (6, CLASSES)).float()
    soft = 0.7 * labels + 0.3 * labels.roll(1, 0)
    task = MultiLabel(list("abcde"))
    expected = 0.7 * task.loss(outputs, labels) + 0.3 * task.loss(outputs, labels.roll(1, 0))
    torch.testing.assert_close(task.loss(outputs, soft), expected)
    sides = np.array([[1, 2, 1, 0.5, 3], [2, 1, 1, 1, 0.25]])
    weighted = MultiLabel(list("abcde"), class_weights=sides)
    absent, present = torch.tensor(sides, dtype=torch.float32)
    own = torch.where(labels > 0.5, present, absent)
    each = torch.nn.functional.binary_cross_entropy_with_logits(outputs, labels, reduction="none")
    torch.testing.assert_close(weighted.loss(outputs, labels), (own * each).sum() / own.sum())
    assert torch.isfinite(weighted.loss(outputs, soft))


# ------------------------------------------------------------------ repeats


def test_repeats_show_an_image_several_times_differently() -> None:
    split, augment = split_of(count=30), "random-resized-crop(0.3)+repeat(3)"
    feed = loader(split, augment, batch=6)
    seen = []
    for batch in feed.batches(2):
        assert [(batch.index == i).sum() for i in dict.fromkeys(batch.index)] == [3, 3]
        assert len({image.numpy().tobytes() for image in batch.images}) == 6
        seen += batch.index.tolist()
    assert len(feed) == 5
    order = philox.permutation(3, 2, 30)
    assert seen == np.repeat(order, 3)[:30].tolist()
    # The first of the three is what an epoch without repeats shows.
    alone = {int(n): image for b in loader(split, "random-resized-crop(0.3)").batches(2)
             for n, image in zip(b.index, b.images, strict=True)}  # fmt: skip
    for batch in feed.batches(2):
        for place in (0, 3):
            assert torch.equal(batch.images[place], alone[int(batch.index[place])])


def test_repeats_are_mixed_with_another_image() -> None:
    split = split_of(count=30)
    for batch in loader(split, "mixup(5)+repeat(2)", batch=10).batches(0):
        labels = np.eye(CLASSES)[split.targets[batch.index]]  # type: ignore[index]
        for i in range(10):
            others = np.flatnonzero(batch.targets[i].numpy() > 0)
            assert set(others) <= set(np.flatnonzero(labels[i] + labels[i - 2]))
            assert batch.index[i] != batch.index[i - 2]


# ------------------------------------------------------------------ the same bytes

EVERYTHING = [
    "scale-jitter(12,16)+flip+mixup+cutmix",
    "lens(0.3)+rotate(15)+vertical-flip+noise(0.02)",
    "trivial-augment+cutout(3)+repeat(2)",
    "rand-augment(2,7)+random-erasing+cutmix+repeat(3)",
    "translate(0.2)+stretch+shear+pca-colour(0.3, statistics=data)+blur+grey",
]


@pytest.mark.parametrize("augment", EVERYTHING)
def test_any_mode_start_and_number_of_workers_gives_the_same_bytes(augment: str) -> None:
    split = split_of()
    first = list(loader(split, augment, mode="memory").batches(3))
    same(list(loader(split, augment, mode="stream").batches(3)), first)
    same(list(loader(split, augment, mode="stream", workers=3, prefetch=2).batches(3)), first)
    same(list(loader(split, augment, mode="memory", workers=1).batches(3, start=2)), first[2:])
    same(list(loader(split, augment, mode="stream", workers=2).batches(3, start=3)), first[3:])
    other = list(loader(split, augment, mode="memory").batches(4))
    assert not torch.equal(other[0].images, first[0].images)


def test_two_processes_see_together_what_one_sees() -> None:
    split, augment = split_of(), "trivial-augment+cutout(3)+repeat(3)"
    whole = list(loader(split, augment, batch=8).batches(1))
    halves = [list(loader(split, augment, batch=4, rank=rank, world=2).batches(1)) for rank in (0, 1)]
    for batch, *parts in zip(whole, *halves, strict=True):
        assert torch.equal(torch.cat([part.images for part in parts]), batch.images)
        assert torch.equal(torch.cat([part.targets for part in parts]), batch.targets)


@pytest.mark.parametrize(
    "augment",
    [
        "random-resized-crop(0.2)+flip",
        "random-resized-crop(0.2)+translate(0.2)",
        "random-resized-crop(0.3)+vertical-flip+stretch",
        "scale-jitter(48,90)+flip",
        "random-resized-crop(0.3)+lens(0.3)",
        "random-resized-crop(0.3)+trivial-augment",
    ],
)
def test_what_was_decoded_before_changes_nothing(augment: str, tmp_path: Path) -> None:
    """Later epochs decode only the upper rows of a JPEG: never others than the view is made of."""
    names = [f"{i}.jpg" for i in range(6)]
    for i, name in enumerate(names):
        coarse = np.random.default_rng(i).integers(0, 256, (20, 26, 3), dtype=np.uint8)
        (tmp_path / name).write_bytes(encode_jpeg(resize(coarse, (130, 170)), 90))
    split = Split("train", FilePool(tmp_path, names), np.arange(6), np.arange(6) % CLASSES)
    view = Preprocess(size=(48, 48))
    how: dict[str, object] = {"batch": 3, "train": True, "augment": augment, "mode": "stream", "workers": 0}
    used = Loader(split, view, **how)  # type: ignore[arg-type]
    list(used.batches(0))
    for epoch in (1, 2, 3):
        same(list(used.batches(epoch)), list(Loader(split, view, **how).batches(epoch)))  # type: ignore[arg-type]
