"""What a run shows while it trains: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import Any, TextIO


@dataclass(frozen=True)
class Tick:
    """Where a run stands: epochs from 1, batches done in this epoch, and figures since the epoch began."""

    epoch: int
    epochs: int
    batch: int
    batches: int
    loss: float
    rate: float
    images_per_second: float
    data_wait: float  # part of the time, 0 to 1
    seconds_left: float

    def text(self) -> str:
        """One line: loss, learning rate, images/s, part of the time spent waiting for data, time left."""
        return (
            f"loss {self.loss:.4f}  lr {self.rate:.2g}  {self.images_per_second:,.0f} images/s"
            f"  data wait {100 * self.data_wait:.0f}%  {clock(self.seconds_left)} left"
        )


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


class Progress:
    """Shows ticks and messages; on a terminal a bar, else a line every `every` seconds. Writes to stderr."""

    def __init__(self, enabled: bool = True, *, stream: TextIO | None = None, every: float = 15.0) -> None:
        self.enabled = enabled
        self.stream = stream or sys.stderr
        self.terminal = enabled and self.stream.isatty()
        # Reading the loss makes the host wait for the device: at most twice a second.
        self.interval = (0.5 if self.terminal else every) if enabled else float("inf")
        self._last = time.monotonic()
        self._bar: Any = None
        self._job: Any = None

    def due(self, now: float) -> bool:
        """Whether it is time for another tick."""
        return now - self._last >= self.interval

    def tick(self, tick: Tick) -> None:
        """Show where the run stands."""
        self._last = time.monotonic()
        if not self.enabled:
            return
        if not self.terminal:
            self.line(f"epoch {tick.epoch}/{tick.epochs}  {tick.batch}/{tick.batches}  {tick.text()}")
            return
        if self._bar is None:
            self._open()
        self._bar.update(
            self._job,
            completed=tick.batch,
            total=tick.batches,
            description=f"epoch {tick.epoch}/{tick.epochs}",
            text=tick.text(),
            refresh=True,
        )

    def line(self, text: str) -> None:
        """Write one line above the bar."""
        if not self.enabled:
            return
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=self.stream, flush=True)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _open(self) -> None:
        from rich import progress
        from rich.console import Console

        self._bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(bar_width=24),
            progress.TextColumn("{task.completed:.0f}/{task.total:.0f}  {task.fields[text]}"),
            console=Console(file=self.stream),
            transient=True,
            auto_refresh=False,
        )
        self._job = self._bar.add_task("", total=1, text="")
        self._bar.start()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
