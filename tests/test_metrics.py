"""Metrics against values worked out by hand, scikit-learn, and properties that must hold."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn import metrics as reference

from striate.tasks import metrics

LABELS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=60)


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [(8, 10, 0.4902, 0.9433), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (430, 500, 0.8269, 0.8877)],
)
def test_wilson_interval_has_published_values(correct: int, n: int, low: float, high: float) -> None:
    assert metrics.wilson(correct, n) == pytest.approx((low, high), abs=2e-4)


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_bounds_solve_its_equation(pair: tuple[int, int]) -> None:
    correct, n = pair
    p = correct / n
    low, high = metrics.wilson(correct, n) or (math.nan, math.nan)
    assert 0 <= low <= p <= high <= 1
    for bound in (low, high):
        # (p - bound)² = z² bound (1 - bound) / n, except where the bound was cut to [0, 1]
        assert (p - bound) ** 2 == pytest.approx(1.96**2 * bound * (1 - bound) / n, abs=1e-9)


def test_nothing_measured_is_none() -> None:
    assert metrics.wilson(0, 0) is None
    assert metrics.ece([], []) is None
    assert metrics.ratio(3, 0) is None
    assert metrics.mean([None, None]) is None
    assert metrics.average_precision([0.3, 0.6], [0, 0]) is None
    assert metrics.f1(0, 0, 0) is None


def test_calibration_error_by_hand() -> None:
    # Bin (0.8, 0.867]: 2 samples, one right, mean confidence 0.85 -> gap 0.35 with weight 2/3;
    # bin (0.2, 0.267]: 1 wrong sample of confidence 0.25 -> gap 0.25 with weight 1/3.
    assert metrics.ece([0.85, 0.85, 0.25], [1, 0, 0]) == pytest.approx((2 * 0.35 + 0.25) / 3)
    assert metrics.ece([1.0, 1.0, 0.0], [1, 1, 0]) == 0


@given(
    hnp.arrays(np.float64, st.integers(1, 50), elements=st.floats(0, 1)),
    st.integers(0, 2**32 - 1),
    st.integers(1, 20),
)
def test_calibration_error_against_a_loop(confidence: np.ndarray, seed: int, bins: int) -> None:
    correct = np.random.default_rng(seed).integers(0, 2, len(confidence))
    total = 0.0
    for b in range(bins):
        inside = [i for i, c in enumerate(confidence) if (b == 0 and c == 0) or b < c * bins <= b + 1]
        if inside:
            total += abs(sum(correct[i] for i in inside) - sum(confidence[i] for i in inside))
    assert metrics.ece(confidence, correct, bins) == pytest.approx(total / len(confidence), abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(LABELS)
def test_confusion_recall_precision_and_iou_agree_with_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    true, predicted = map(np.array, zip(*pairs, strict=True))
    matrix = metrics.confusion(true, predicted, 5)
    labels = range(5)
    assert np.array_equal(matrix, reference.confusion_matrix(true, predicted, labels=labels))
    for ours, theirs, defined in (
        (metrics.recall(matrix), reference.recall_score, true),
        (metrics.precision(matrix), reference.precision_score, predicted),
        (metrics.iou(matrix), reference.jaccard_score, np.concatenate([true, predicted])),
    ):
        expected = theirs(true, predicted, labels=labels, average=None, zero_division=0)
        for c in labels:
            assert ours[c] == (pytest.approx(expected[c]) if c in defined else None)


def test_ignored_pixels_are_in_no_cell() -> None:
    true, predicted = np.array([[0, 255], [1, 1]]), np.array([[0, 1], [0, 1]])
    assert metrics.confusion(true, predicted, 2, ignore=255).tolist() == [[1, 0], [1, 1]]


def test_iou_by_hand_leaves_out_the_class_that_is_nowhere() -> None:
    matrix = np.array([[3, 1, 0], [2, 4, 0], [0, 0, 0]])
    assert metrics.iou(matrix) == (3 / 6, 4 / 7, None)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=40))
def test_average_precision_is_that_of_scikit_learn_with_ties(rows: list[tuple[int, bool]]) -> None:
    scores, targets = np.array([s / 5 for s, _ in rows]), np.array([t for _, t in rows])
    if not targets.any():
        assert metrics.average_precision(scores, targets) is None
        return
    assert metrics.average_precision(scores, targets) == pytest.approx(
        reference.average_precision_score(targets, scores)
    )


def test_average_precision_by_hand() -> None:
    # Right, wrong, right: precision 1 at recall 1/2 and 2/3 at recall 1.
    assert metrics.average_precision([0.9, 0.8, 0.7], [1, 0, 1]) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)


@settings(deadline=None)
@given(hnp.arrays(np.float32, (4, 6), elements=st.sampled_from([-1.0, 0.0, 0.5, 2.0])), st.integers(0, 5))
def test_rank_topk_and_argmax_break_ties_alike(values: np.ndarray, truth: int) -> None:
    logits = torch.from_numpy(values)
    true = torch.full((4,), truth)
    order = [sorted(range(6), key=lambda c, row=row: (-row[c], c)) for row in values.tolist()]
    assert metrics.topk(logits, 6).tolist() == order
    assert metrics.topk(logits, 9).tolist() == order
    assert metrics.rank(logits, true).tolist() == [row.index(truth) for row in order]
    assert ((metrics.rank(logits, true) == 0) == (logits.argmax(1) == true)).all()


def test_f1_by_hand() -> None:
    assert metrics.f1(hit=2, predicted=3, true=4) == pytest.approx(2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4))
