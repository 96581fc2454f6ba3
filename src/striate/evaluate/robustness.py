"""How a classifier stands corruptions of its images, and small shifts of them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from striate.core.errors import StriateError
from striate.core.results import Result
from striate.data.samples import Dataset
from striate.evaluate.compare import compare
from striate.evaluate.corrupted import KINDS, SEVERITIES, SMALL, STRENGTHS, Corrupted, Shifted
from striate.evaluate.evaluate import model_name
from striate.evaluate.protocols import Protocol, parse_protocol
from striate.evaluate.scaled import side_of
from striate.model import Model, load
from striate.nets.cost import table as aligned
from striate.tasks.metrics import wilson


@dataclass(frozen=True)
class Robustness(Result):
    """Top-1 accuracy under each corruption at each severity, 0 to 1 with 95 % intervals, on n images.

    strength: the corruption's own measure (`STRENGTHS`); p: McNemar's exact paired test against clean
    images. clean: accuracy without corruption; mean: over all corruptions and severities. consistency: the
    share of images that get the same answer at two random shifts (arXiv:1904.11486, section 4.2).
    """

    ROWS = ("corruption", "severity", "strength", "accuracy", "low", "high", "p")

    corruption: tuple[str, ...]
    severity: tuple[int, ...]
    strength: tuple[float, ...]
    accuracy: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    p: tuple[float, ...]
    clean: float
    clean_interval: tuple[float, float]
    mean: float
    consistency: float
    consistency_interval: tuple[float, float]
    model: str
    data: str
    digest: str
    split: str
    n: int
    bad: tuple[tuple[str, str], ...]
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Accuracy by corruption (rows) and severity (columns), then the means and the consistency."""
        rows = [("top-1", *(f"severity {s}" for s in SEVERITIES), "mean")]
        for kind in KINDS:
            own = [i for i, name in enumerate(self.corruption) if name == kind]
            cells = [
                f"{100 * self.accuracy[i]:.2f} % ({100 * self.low[i]:.1f}-{100 * self.high[i]:.1f})"
                for i in own
            ]
            rows.append((kind, *cells, f"{100 * float(np.mean([self.accuracy[i] for i in own])):.2f} %"))
        return [
            f"{self.model} on {self.data}, split {self.split}: {self.n:,} images",
            *aligned(rows, texts=1),
            f"clean: {_percent(self.clean, self.clean_interval)}; "
            f"mean over corruptions: {100 * self.mean:.2f} %",
            f"same answer at two random shifts: {_percent(self.consistency, self.consistency_interval)}",
            *self.notes,
            *([f"left out: {len(self.bad)} unreadable"] if self.bad else []),
        ]


def robustness(
    model: Model | str | os.PathLike[str], data: Dataset | str | os.PathLike[str], **how: Any
) -> Robustness:
    """Test a classifier on clean, corrupted and shifted images; `how` as of `compare` without protocols.

    Raises:
        StriateError: as of `compare`; a model without a size of its own.
    """
    loaded = model if isinstance(model, Model) else load(model)
    if loaded.task.name != "classification":
        raise StriateError(f"corruptions are for classification; this model does {loaded.task.name}")
    side = side_of(loaded.preprocess)
    conditions = [(kind, severity) for kind in KINDS for severity in SEVERITIES]
    protocols: list[Protocol] = [parse_protocol("center"), Shifted(1), Shifted(2)]
    protocols += [Corrupted(kind, severity) for kind, severity in conditions]
    table = compare([loaded], data, protocols, **how)
    # The rows of an ensemble stand behind those of its members.
    first = len(table.scores) - len(protocols)
    center, one, two = table.scores[first : first + 3]
    rest = table.scores[first + 3 :]
    same = int((one.predicted == two.predicted).sum())
    return Robustness(
        corruption=tuple(kind for kind, _ in conditions),
        severity=tuple(severity for _, severity in conditions),
        strength=tuple(STRENGTHS[kind][side <= SMALL][severity - 1] for kind, severity in conditions),
        accuracy=tuple(s.top1 for s in rest),
        low=tuple(s.interval[0] for s in rest),
        high=tuple(s.interval[1] for s in rest),
        p=table.p_values[first][first + 3 :],
        clean=center.top1,
        clean_interval=center.interval,
        mean=float(np.mean([s.top1 for s in rest])),
        consistency=same / table.n,
        consistency_interval=wilson(same, table.n) or (0.0, 1.0),
        model=model_name(loaded, model),
        data=table.data,
        digest=table.digest,
        split=table.split,
        n=table.n,
        bad=table.bad,
        notes=table.notes,
    )


def _percent(value: float, interval: tuple[float, float]) -> str:
    return f"{100 * value:.2f} % (95% interval {100 * interval[0]:.2f} to {100 * interval[1]:.2f})"
