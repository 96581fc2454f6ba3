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


def test_answers_with_its_classes() -> None:
    model = striate.load(NAME)
    assert model.classes == published(NAME).classes
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    answer = model.predict(noise)
    assert answer.label in model.classes
    assert sum(answer.top.probabilities) <= 1 + 1e-6


def test_scores_as_its_card_says(shared_data: Callable[[str], Path]) -> None:
    test = open_data(str(shared_data("cifar10-test.zip"))).split("test")
    chosen = np.arange(0, 10_000, 50)
    model = striate.load(NAME)
    answers = model.predict([test.image(int(i)) for i in chosen])
    right = sum(answer.index == test.targets[i] for answer, i in zip(answers, chosen, strict=True))
    # 200 images of 89.5%: three standard deviations are 6.5 points.
    assert right / len(chosen) == pytest.approx(published(NAME).scores["top1"], abs=0.065)
