"""The network that ships with the package: its file, its card, its answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import striate
from striate.data.formats import open_data
from striate.nets.published import locate, published

NAME = "airbench_cifar10"


def test_is_small_and_needs_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRIATE_OFFLINE", "1")
    card = published(NAME)
    path = locate(card)
    assert path.stat().st_size <= 8_000_000
    assert path.stat().st_size == pytest.approx(card.megabytes * 1e6, rel=0.05)
    assert published("airbench").name == NAME


def drawn() -> list[np.ndarray]:
    """A ship on the sea, a disc before stripes, and waves."""
    y, x = np.mgrid[:32, :32]
    disc, sea = 255 * ((x - 16) ** 2 + (y - 12) ** 2 < 60), y > 20
    hull = (abs(y - 18) < 4) & (abs(x - 16) < 27 - y)
    ship = [np.where(hull, 60, np.where(sea, 30, sky)) for sky in (110 + 2 * y, 150 + 2 * y, 220)]
    pictures = [ship, [8 * x, disc, 40 * ((x + 2 * y) // 4 % 7)], [7 * x * y % 256, disc, 255 - 8 * y]]
    return [np.stack(planes, axis=2).astype(np.uint8) for planes in pictures]


# What the net itself (the eager engine) gives for them; computed once, when the file was published.
LOGITS = [
    [1.2779, -0.1699, -0.2626, -0.3178, -0.6002, -0.4788, -0.7070, -0.7606, 2.9327, -0.6578],
    [0.1841, 0.2178, 0.2905, 2.1065, -1.1221, -0.4543, 0.6899, -0.9202, -0.4380, -0.3837],
    [-0.6520, 0.5237, -0.6430, 1.0618, -0.6173, 0.6577, 0.4642, -0.3470, -0.1279, -0.2026],
]


def test_answers_as_when_it_was_published() -> None:
    model = striate.load(NAME)
    assert model.classes == published(NAME).classes
    assert model.predict(drawn()[0]).label == "ship"
    views = np.stack([model.preprocess.view(image) for image in drawn()])
    np.testing.assert_allclose(model.forward(views).numpy(), LOGITS, rtol=0, atol=1e-3)


def test_scores_as_its_card_says(shared_data: Callable[[str], Path]) -> None:
    test = open_data(str(shared_data("cifar10-test.zip"))).split("test")
    chosen = np.arange(0, 10_000, 50)
    model = striate.load(NAME)
    answers = model.predict([test.image(int(i)) for i in chosen])
    right = sum(answer.index == test.targets[i] for answer, i in zip(answers, chosen, strict=True))
    # 200 images of 89.5%: three standard deviations are 6.5 points.
    assert right / len(chosen) == pytest.approx(published(NAME).scores["top1"], abs=0.065)
