"""A line on the terminal that counts, while something long goes on."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def counting(what: str) -> Iterator[Callable[[int, int], None] | None]:
    """What tells how many of how many are done, on a terminal; elsewhere None. The line is gone after."""
    if not sys.stderr.isatty():
        yield None
        return
    last = 0.0

    def tell(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > 0.5:
            last = now
            print(f"\r{what}: {done:,} of {total:,}\033[K", end="", file=sys.stderr, flush=True)

    try:
        yield tell
    finally:
        print("\r\033[K", end="", file=sys.stderr, flush=True)
