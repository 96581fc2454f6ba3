"""Two ways of answering on the same images, compared image by image."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def mcnemar(right: Any, other: Any) -> float:
    """McNemar's exact test: how probable a difference at least this large is if both are equally good.

    `right` and `other` (n,) say which images each answered rightly. Of the b + c images that just one of
    them has right, b are binomial with probability 1/2: p = min(1, 2 P(X <= min(b, c))), in whole numbers,
    so exact for any count. McNemar, Psychometrika 12 (1947), 153-157, in its binomial form.
    """
    b, c = _discordant(right, other)
    n, k = b + c, min(b, c)
    term = total = 1
    for i in range(k):
        term = term * (n - i) // (i + 1)
        total += term
    # Shifted so that both fit a float, whatever n is.
    return min(1.0, _quotient(2 * total, n))


def difference(right: Any, other: Any, z: float = 1.96) -> tuple[float, float, float]:
    """By how much `right` is right more often than `other`: (difference, low, high), shares of the images.

    z = 1.96 gives 95 %. Agresti and Min's interval for paired proportions: Wald's with one half added to
    each of the four counts (Statistics in Medicine 24, 2005, 729-740). The difference itself is that of the
    images.
    """
    b, c = _discordant(right, other)
    count = len(np.asarray(right))
    n, more, less = count + 2, b + 0.5, c + 0.5
    middle = (more - less) / n
    spread = z * math.sqrt(more + less - (more - less) ** 2 / n) / n
    found = (b - c) / count if count else 0.0
    return found, max(-1.0, min(found, middle - spread)), min(1.0, max(found, middle + spread))


def bootstrap(
    one: Any, other: Any, *, rounds: int = 2000, seed: int = 0, level: float = 0.95
) -> tuple[float, float, float]:
    """By how much the mean of `one` is above that of `other`: (difference, low, high).

    one, other (n,): what each got for the same n images, on any scale. The interval is the paired
    percentile bootstrap's: images are drawn with replacement `rounds` times, both values of an image
    together. Efron & Tibshirani, An Introduction to the Bootstrap (1993), section 13.3. Without an image the
    difference is 0.
    """
    if np.shape(one) != np.shape(other) or np.ndim(one) != 1:
        raise ValueError(f"values of {np.shape(one)} and of {np.shape(other)} images are no pairs")
    gaps = np.asarray(one, float) - np.asarray(other, float)
    if not len(gaps):
        return 0.0, 0.0, 0.0
    draws = np.random.default_rng(seed)
    means = [float(gaps[draws.integers(0, len(gaps), len(gaps))].mean()) for _ in range(rounds)]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(gaps.mean()), float(low), float(high)


def over_runs(gaps: Any, level: float = 0.95) -> tuple[float, float, float]:
    """The mean of the gaps of paired runs, one for each seed, with its interval: (mean, low, high).

    gaps (n,): on any scale, n at least 2. Student's interval: mean -+ t s / sqrt(n), s their deviation
    (n - 1), t the quantile of n - 1 degrees of freedom. It holds for the chance that seeds make, on the
    images that all runs were tested on.
    """
    values = np.asarray(gaps, float)
    middle = float(values.mean())
    spread = student(len(values) - 1, level) * float(values.std(ddof=1)) / math.sqrt(len(values))
    return middle, middle - spread, middle + spread


def student(degrees: int, level: float = 0.95) -> float:
    """The t within which a Student variable of whole `degrees` from 1 stays with probability `level`.

    By halving, from the finite sums of Abramowitz & Stegun, 26.7.3 and 26.7.4.
    """
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, degrees) < level else (low, middle)
    return math.sqrt(degrees) * math.tan(low)


def _within(angle: float, degrees: int) -> float:
    """P(|T| < t) for angle = arctan(t / sqrt(degrees))."""
    odd = degrees % 2
    cosine = math.cos(angle)
    term, total = (cosine if odd else 1.0), 0.0
    for k in range(degrees // 2):
        total += term
        term *= cosine**2 * (2 * k + 1 + odd) / (2 * k + 2 + odd)
    if not odd:
        return math.sin(angle) * total
    return (angle + math.sin(angle) * total) * 2 / math.pi


def _discordant(right: Any, other: Any) -> tuple[int, int]:
    right, other = np.asarray(right, bool), np.asarray(other, bool)
    if right.shape != other.shape:
        raise ValueError(f"answers to {right.shape} and to {other.shape} images are no pairs")
    return int((right & ~other).sum()), int((other & ~right).sum())


def _quotient(whole: int, power: int) -> float:
    """whole / 2^power, to the precision of a float."""
    spare = max(0, whole.bit_length() - 64)
    return math.ldexp(float(whole >> spare), spare - power)
