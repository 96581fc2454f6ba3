"""Huffman tables of baseline JPEG, as lists to step through codes with (ITU-T T.81, annexes C and F)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt

WINDOW = 16  # bits looked at at once: no code is longer
STEP = 4096  # a step of AC coefficients is the bits it takes times this, and the places of the block it fills
END, BROKEN = 1000, 3000  # places filled by the end of a block, and by bits that are no code
LONGEST_DC = 11  # bits of a DC difference of 8-bit pictures

Integers = npt.NDArray[np.int64]
Steps = tuple[list[int], list[int], list[int]]
"""Of a block: the DC steps, and the AC steps over many codes and over one."""


class Damaged(ValueError):
    """Bits that are no code, or codes that make no picture."""


@dataclass(frozen=True)
class Table:
    """A table as files define it: how many codes have 1 to 16 bits, and their symbols in order."""

    counts: bytes
    symbols: bytes

    @cached_property
    def codes(self) -> dict[int, tuple[int, int]]:
        """Symbol -> its code and the bits of it; raises Damaged."""
        found, code, place = {}, 0, 0
        for bits, count in enumerate(self.counts, 1):
            for symbol in self.symbols[place : place + count]:
                found[symbol] = (code, bits)
                code += 1
            place += count
            if code > 1 << bits:
                raise Damaged("a table of codes holds more than there are")
            code <<= 1
        return found

    def windows(self) -> tuple[Integers, Integers]:
        """The symbol that each value of the next 16 bits begins with; the bits of its code, 0 for none."""
        symbols, bits = np.zeros(1 << WINDOW, np.int64), np.zeros(1 << WINDOW, np.int64)
        for symbol, (code, length) in self.codes.items():
            block = slice(code << WINDOW - length, code + 1 << WINDOW - length)
            symbols[block], bits[block] = symbol, length
        return symbols, bits

    def with_symbols(self, wanted: set[int]) -> Table:
        """The table with codes for more symbols; those that it has keep theirs.

        New codes are longer than all others, one a length: the bits of ones that no table may use (C.2)
        are what they begin with.

        Raises:
            Damaged: they would have more than 16 bits.
        """
        new = sorted(wanted - set(self.codes))
        counts = bytearray(self.counts)
        longest = max((i for i, count in enumerate(counts) if count), default=-1)
        if longest + len(new) >= WINDOW:
            raise Damaged("its table of codes has no room")
        for i in range(len(new)):
            counts[longest + 1 + i] = 1
        return Table(bytes(counts), self.symbols + bytes(new))


@lru_cache(maxsize=32)
def dc_steps(table: Table) -> tuple[list[int], Integers, Integers]:
    """For each value of the next 16 bits: those of code and difference, 0 for none; of each for itself."""
    size, bits = table.windows()
    fine = (bits > 0) & (size <= LONGEST_DC)
    return np.where(fine, bits + size, 0).tolist(), bits, size


@lru_cache(maxsize=32)
def ac_steps(table: Table) -> tuple[list[int], list[int]]:
    """For each value of the next 16 bits, the step over all codes in them, and over the first one alone."""
    symbols, bits = table.windows()
    run, size = symbols >> 4, symbols & 15
    ends = (size == 0) & (run != 15)
    places = np.where(bits == 0, BROKEN, np.where(ends, END, run + 1))
    taken = bits + size
    first = taken * STEP + places
    value = np.arange(1 << WINDOW)
    used, filled = taken.copy(), places.copy()
    going = (bits > 0) & ~ends
    while True:
        ahead = (value << np.minimum(used, WINDOW)) & 0xFFFF
        # A code is known where all its bits are in the window; those of its value may lie beyond.
        going &= (used + bits[ahead] <= WINDOW) & (bits[ahead] > 0) & (filled + places[ahead] < END + 64)
        if not going.any():
            return (used * STEP + filled).tolist(), first.tolist()
        used += np.where(going, taken[ahead], 0)
        filled += np.where(going, places[ahead], 0)
        going &= ~ends[ahead]


def positions(words: memoryview, begin: int, units: int, blocks: list[Steps], found: list[int]) -> int:
    """The bit where each block of so many units begins, added to `found`; returns where the last one ends.

    words: for each byte, the 24 bits from it on. blocks: the steps of each block of a unit.

    Raises:
        Damaged: a block that cannot be.
    """
    p, note = begin, found.append
    try:
        for _ in range(units):
            for dc, many, one in blocks:
                note(p)
                step = dc[words[p >> 3] >> 8 - (p & 7) & 0xFFFF]
                if not step:
                    raise Damaged("bits that are no code")
                p += step
                k = 1
                while k < 64:
                    window = words[p >> 3] >> 8 - (p & 7) & 0xFFFF
                    step = many[window]
                    after = k + step % STEP
                    if 64 < after < END or after >= END + 64:
                        # The block ends within these codes: one at a time.
                        step = one[window]
                        after = k + step % STEP
                        if 64 < after < END or after >= END + 64:
                            raise Damaged("a block of more than 64 values")
                    k = after
                    p += step // STEP
    except IndexError:
        raise Damaged("the codes end too early") from None
    return p
