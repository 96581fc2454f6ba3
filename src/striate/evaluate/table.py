"""Several protocols, and several models, on the same images: one table with what each row costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from striate.core.results import Result
from striate.evaluate.evaluate import Evaluation, amount, intervals_of
from striate.nets.cost import table as aligned
from striate.tasks.scores import ClassificationScores

HEADINGS = ("", "row", "model", "protocol", "top-1 error (95%)", "top-5 error (95%)", "views",
            "multiply-adds", "images/s", "p")  # fmt: skip


@dataclass(frozen=True)
class Table(Result):
    """One row a protocol and model, all on the same n images; error rates 0 to 1 with 95 % intervals.

    views and multiply_adds: for one image, all views together. images_per_second: of the time in which the
    nets did not wait for images; where rows share passes (the scales of a sum), each row's is the sum of its
    passes. p_values (rows, rows): McNemar's exact paired test of top-1 between any two rows. gain: of fused
    models, top-1 above the best member's (the member that does best on these images), with its 95 %
    interval; None for others. right (rows, n): which images each row has right. scores: all of each row.
    """

    ROWS = (
        "row", "model", "protocol", "top1_error", "top1_low", "top1_high", "top5_error", "top5_low",
        "top5_high", "views", "multiply_adds", "images_per_second", "p_first", "gain", "gain_low",
        "gain_high",
    )  # fmt: skip

    row: tuple[str, ...]
    model: tuple[str, ...]
    protocol: tuple[str, ...]
    views: tuple[float, ...]
    multiply_adds: tuple[float | None, ...]
    seconds: tuple[float, ...]
    waited: tuple[float, ...]
    gains: tuple[tuple[float, float, float] | None, ...]
    scores: tuple[ClassificationScores, ...]
    right: NDArray[np.bool_]
    p_values: tuple[tuple[float, ...], ...]
    data: str
    digest: str
    split: str
    n: int
    bad: tuple[tuple[str, str], ...]
    device: str
    batch: int
    notes: tuple[str, ...] = ()

    @property
    def top1_error(self) -> tuple[float, ...]:
        """1 - top-1 accuracy."""
        return tuple(1 - s.top1 for s in self.scores)

    @property
    def top5_error(self) -> tuple[float | None, ...]:
        """1 - top-5 accuracy; None for fewer than five classes."""
        return tuple(s.top5_error for s in self.scores)

    @property
    def top1_low(self) -> tuple[float, ...]:
        """Lower ends of the intervals of the top-1 error."""
        return tuple(1 - s.interval[1] for s in self.scores)

    @property
    def top1_high(self) -> tuple[float, ...]:
        """Upper ends of the intervals of the top-1 error."""
        return tuple(1 - s.interval[0] for s in self.scores)

    @property
    def top5_low(self) -> tuple[float | None, ...]:
        """Lower ends of the intervals of the top-5 error."""
        return tuple(1 - s.top5_interval[1] if s.top5_interval else None for s in self.scores)

    @property
    def top5_high(self) -> tuple[float | None, ...]:
        """Upper ends of the intervals of the top-5 error."""
        return tuple(1 - s.top5_interval[0] if s.top5_interval else None for s in self.scores)

    @property
    def images_per_second(self) -> tuple[float, ...]:
        """Images a second of the time in which the nets did not wait for images."""
        spent = zip(self.seconds, self.waited, strict=True)
        return tuple(self.n / max(seconds - waited, 1e-9) for seconds, waited in spent)

    @property
    def p_first(self) -> tuple[float, ...]:
        """McNemar's p of each row against the first."""
        return self.p_values[0]

    @property
    def gain(self) -> tuple[float | None, ...]:
        """Top-1 accuracy of fused models above their best member's."""
        return tuple(None if gain is None else gain[0] for gain in self.gains)

    @property
    def gain_low(self) -> tuple[float | None, ...]:
        """Lower ends of the intervals of the gain."""
        return tuple(None if gain is None else gain[1] for gain in self.gains)

    @property
    def gain_high(self) -> tuple[float | None, ...]:
        """Upper ends of the intervals of the gain."""
        return tuple(None if gain is None else gain[2] for gain in self.gains)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, the rates and intervals among them."""
        own = super().to_dict()
        return {**own, **{name: list(getattr(self, name)) for name in self.ROWS}}

    def brief(self) -> dict[str, Any]:
        """Plain JSON values without those that stand once for each image."""
        return {key: value for key, value in self.to_dict().items() if key not in ("scores", "right")}

    def evaluation(self, number: int = -1) -> Evaluation:
        """One row as an evaluation of its own; the last if none is named."""
        fused = self.gains[number]
        return Evaluation(
            model=self.model[number],
            data=self.data,
            digest=self.digest,
            split=self.split,
            protocol=self.protocol[number],
            scores=self.scores[number],
            intervals=intervals_of(self.scores[number]),
            n=self.n,
            bad=self.bad,
            views=self.views[number],
            multiply_adds=self.multiply_adds[number],
            seconds=self.seconds[number],
            waited=self.waited[number],
            device=self.device,
            batch=self.batch,
            notes=(*self.notes, *([_told(fused)] if fused else [])),
        )

    def lines(self) -> list[str]:
        """The table as text, then McNemar's test of every pair of rows, and the gains of fused models."""
        several = len(set(self.model)) > 1
        rows = [tuple(HEADINGS)]
        for i, name in enumerate(self.row):
            scores, macs = self.scores[i], self.multiply_adds[i]
            top5 = (
                _rate(self.top5_error[i], self.top5_low[i], self.top5_high[i])
                if scores.top5_interval
                else "-"
            )
            rows.append((
                str(i + 1), name, self.model[i], self.protocol[i],
                _rate(self.top1_error[i], self.top1_low[i], self.top1_high[i]), top5, f"{self.views[i]:.4g}",
                "-" if macs is None else amount(macs), f"{self.images_per_second[i]:,.1f}",
                "" if i == 0 else _p(self.p_first[i]),
            ))  # fmt: skip
        named = any(not name.endswith(text) for name, text in zip(self.row, self.protocol, strict=True))
        shown = [k for k in range(len(HEADINGS)) if (k != 1 or named) and (k != 2 or several)]
        rows = [tuple(row[k] for k in shown) for row in rows]
        which = "" if several else f"{self.model[0]} on "
        told = [f"{which}{self.data}, split {self.split}: {self.n:,} images ({self.device})"]
        told += aligned(rows, texts=2 + named + several)
        told.append("images/s: without waiting for images; p: McNemar's exact test against row 1")
        if len(self.row) > 2:
            told.append("McNemar's p of every pair of rows:")
            told += [
                f"  {i + 1:>2}  " + "  ".join(f"{_p(p):>6}" for p in self.p_values[i][:i])
                for i in range(1, len(self.row))
            ]
        for i, gain in enumerate(self.gains):
            told += [f"row {i + 1}, {self.row[i]}: {_told(gain)}"] if gain else []
        told += self.notes
        told += [f"left out: {len(self.bad)} unreadable"] if self.bad else []
        return told


def _rate(value: float | None, low: float | None, high: float | None) -> str:
    if value is None or low is None or high is None:
        return "-"
    return f"{100 * value:.2f} % ({100 * low:.2f}-{100 * high:.2f})"


def _p(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else f"{p:.0e}"


def _told(gain: tuple[float, float, float]) -> str:
    value, low, high = (100 * part for part in gain)
    return f"top-1 {value:+.2f} points over the best member (95% interval {low:+.2f} to {high:+.2f})"
