"""Random numbers without a state: each is a pure function of (seed, epoch, sample number).

The generator is Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011,
section 3.3),
computed for a whole batch at once: no order of workers, no resume and no library version can change a draw.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

_MULTIPLY = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW, _SHIFT = np.uint64(0xFFFFFFFF), np.uint64(32)
_Words = tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint64]]

# The fourth counter word separates the uses, so that an order and a draw never share numbers.
DRAW, ORDER, BATCH = 0, 1, 2


def philox(counter: _Words, key: tuple[int, int]) -> _Words:
    """Ten rounds of Philox-4x32 on counters of 32-bit words kept in uint64 arrays."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = _MULTIPLY[0] * c0, _MULTIPLY[1] * c2
        c0, c1 = (p1 >> _SHIFT) ^ c1 ^ np.uint64(k0), p1 & _LOW
        c2, c3 = (p0 >> _SHIFT) ^ c3 ^ np.uint64(k1), p0 & _LOW
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return c0, c1, c2, c3


def uniforms(seed: int, epoch: int, numbers: ArrayLike, count: int, use: int = DRAW) -> NDArray[np.float64]:
    """Numbers evenly spread over the open interval (0, 1).

    numbers: (N,) sample numbers; returns (N, count) float64, row i a function of (seed, epoch, numbers[i],
    use).
    """
    rows = np.asarray(numbers, dtype=np.uint64).reshape(-1)
    blocks = -(-count // 4)
    sample = np.repeat(rows, blocks)
    block = np.tile(np.arange(blocks, dtype=np.uint64), len(rows))
    words = _words(seed, epoch, sample, block, use)
    bits = np.stack(words, axis=1).reshape(len(rows), blocks * 4)[:, :count]
    return (bits.astype(np.float64) + 0.5) * 2.0**-32


def permutation(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    """A random order of 0..count-1: the numbers sorted by a 64-bit random key each."""
    sample = np.arange(count, dtype=np.uint64)
    high, low, _, _ = _words(seed, epoch, sample, np.zeros_like(sample), ORDER)
    return np.argsort(high << _SHIFT | low, kind="stable").astype(np.int64)


def _words(seed: int, epoch: int, sample: NDArray[np.uint64], block: NDArray[np.uint64], use: int) -> _Words:
    seed &= 0xFFFFFFFFFFFFFFFF
    epochs = np.full_like(sample, epoch & 0xFFFFFFFF)
    # 32 bits of sample number and 24 of block leave the rest of the words for the use.
    last = block | np.uint64(use << 24)
    return philox((sample & _LOW, sample >> _SHIFT, epochs, last), (seed & 0xFFFFFFFF, seed >> 32))
