"""The field's figures as pure functions of arrays; each states its formula and its source."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def ratio(part: float, whole: float) -> float | None:
    """`part / whole`, or None where there is nothing to divide by (never NaN)."""
    return float(part) / float(whole) if whole else None


def mean(values: Any) -> float | None:
    """The mean of those values that are defined (not None); None if none is."""
    defined = [float(value) for value in values if value is not None]
    return sum(defined) / len(defined) if defined else None


def wilson(correct: float, n: int, z: float = 1.96) -> tuple[float, float] | None:
    """Wilson's score interval of a proportion; z = 1.96 gives 95 %; None for n = 0.

    (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n). E. B. Wilson, JASA 22 (1927), 209-212.
    """
    if n <= 0:
        return None
    p = correct / n
    centre = p + z * z / (2 * n)
    spread = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # Rounding must not push a bound past the proportion itself.
    return max(0.0, min(p, (centre - spread) / scale)), min(1.0, max(p, (centre + spread) / scale))


def ece(confidence: Any, correct: Any, bins: int = 15) -> float | None:
    """Expected calibration error: Σ_b (n_b / n) |accuracy_b - confidence_b|, in [0, 1]; None for n = 0.

    `confidence` (N,) in [0, 1], `correct` (N,) 0 or 1. Bins of equal width, open below and closed above.
    Guo et al., On Calibration of Modern Neural Networks (arXiv:1706.04599), section 2, equation 3.
    """
    count, right, confident = calibration(confidence, correct, bins)
    n = count.sum()
    return float(np.abs(right - confident).sum() / n) if n else None


def calibration(confidence: Any, correct: Any, bins: int = 15) -> tuple[Floats, Floats, Floats]:
    """The reliability diagram: per bin the number of samples, of right ones, and the sum of confidences."""
    confidence = np.asarray(confidence, np.float64).ravel()
    correct = np.asarray(correct, np.float64).ravel()
    place = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    sums: list[Floats] = [
        np.bincount(place, weights=column, minlength=bins).astype(np.float64)
        for column in (np.ones_like(confidence), correct, confidence)
    ]
    return sums[0], sums[1], sums[2]


def confusion(true: Any, predicted: Any, classes: int, ignore: int | None = None) -> NDArray[np.int64]:
    """Counts (K, K) int64: rows are the truth, columns the prediction.

    `true` and `predicted` are whole numbers of one shape, 0 .. K-1; samples whose truth is `ignore` are
    left out.
    """
    true = np.asarray(true).astype(np.int64).ravel()
    predicted = np.asarray(predicted).astype(np.int64).ravel()
    if ignore is not None:
        kept = true != ignore
        true, predicted = true[kept], predicted[kept]
    return np.bincount(true * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def iou(matrix: Any) -> tuple[float | None, ...]:
    """Intersection over union per class, n_cc / (row_c + column_c - n_cc), from a confusion matrix.

    None for a class that is neither in the truth nor in the prediction.
    Everingham et al., The PASCAL VOC Challenge: A Retrospective (IJCV 111, 2015), section 4.1.3.
    """
    matrix = np.asarray(matrix)
    hit = np.diagonal(matrix)
    union = matrix.sum(0) + matrix.sum(1) - hit
    return tuple(ratio(a, b) for a, b in zip(hit.tolist(), union.tolist(), strict=True))


def recall(matrix: Any) -> tuple[float | None, ...]:
    """Per class: the share of its samples that were recognised, n_cc / row_c; None without samples."""
    matrix = np.asarray(matrix)
    pairs = zip(np.diagonal(matrix).tolist(), matrix.sum(1).tolist(), strict=True)
    return tuple(ratio(a, b) for a, b in pairs)


def precision(matrix: Any) -> tuple[float | None, ...]:
    """Per class: the share of its predictions that are right, n_cc / column_c; None if never predicted."""
    return recall(np.asarray(matrix).T)


def average_precision(scores: Any, targets: Any) -> float | None:
    """Area under the precision-recall steps, Σ (R_n - R_{n-1}) P_n; None without a positive sample.

    `scores` (N,), `targets` (N,) 0 or 1. Samples of equal score are one threshold, so that the order of
    ties does not count. The non-interpolated AP of Manning et al., Introduction to Information Retrieval,
    section 8.4.
    """
    scores, targets = np.asarray(scores, np.float64).ravel(), np.asarray(targets).ravel() > 0
    positives = int(targets.sum())
    if positives == 0:
        return None
    order = np.argsort(-scores, kind="stable")
    scores, targets = scores[order], targets[order]
    last = np.append(scores[1:] != scores[:-1], True)
    hits = np.cumsum(targets)[last]
    taken = (np.arange(len(scores)) + 1)[last]
    steps = np.diff(hits, prepend=0) / positives
    return float((steps * hits / taken).sum())


def f1(hit: float, predicted: float, true: float) -> float | None:
    """2 hit / (predicted + true), the harmonic mean of precision and recall; None if both counts are 0."""
    return ratio(2 * hit, predicted + true)


def rank(logits: Any, true: Any) -> Any:
    """How many classes stand before the true one, (N,) int64: 0 is right, below k is right in the top k.

    `logits` (N, K) and `true` (N,) are tensors. Of equal logits the lower class number stands first,
    which is also the rule of argmax, so that rank 0 and the top-1 answer always agree.
    """
    import torch

    own = logits.gather(1, true[:, None])
    before = torch.arange(logits.shape[1], device=logits.device)[None] < true[:, None]
    return ((logits > own) | ((logits == own) & before)).sum(1)


def topk(logits: Any, k: int) -> Any:
    """Numbers of the k highest logits, best first, (N, min(k, K)); of equal ones the lower number first."""
    return logits.sort(dim=1, descending=True, stable=True).indices[:, :k]
