"""The scores of both kinds of classification, and the scorers that count them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from striate.core.errors import StriateError
from striate.tasks import metrics
from striate.tasks.task import Scorer, Scores, State, must_be_finite

THRESHOLD = 0.5


@dataclass(frozen=True)
class ClassificationScores(Scores):
    """Scores of a single-label classifier; the main figure is top-1 accuracy.

    `confusion` (K, K) counts: rows are the truth, columns the prediction. `per_class` is each class's
    accuracy over its own samples (recall), with Wilson's 95 % interval in `low` and `high`. `top5` is None
    for fewer than five classes. `predicted`, `true`, `confidence` (the probability of the prediction) and
    `sample_score` (that of the truth) are (n,), in order of `index`.
    """

    ROWS = ("classes", "counts", "hits", "per_class", "low", "high", "precision")  # type: tuple[str, ...]

    correct: int
    top1: float
    top5: float | None
    interval: tuple[float, float]
    top5_interval: tuple[float, float] | None
    ece: float
    mean_per_class: float | None
    counts: tuple[int, ...]
    hits: tuple[int, ...]
    low: tuple[float | None, ...]
    high: tuple[float | None, ...]
    precision: tuple[float | None, ...]
    confusion: NDArray[np.int64]
    predicted: NDArray[np.int64]
    true: NDArray[np.int64]
    confidence: NDArray[np.float32]

    @property
    def top1_error(self) -> float:
        """1 - top-1 accuracy."""
        return 1 - self.top1

    @property
    def top5_error(self) -> float | None:
        """1 - top-5 accuracy; None for fewer than five classes."""
        return None if self.top5 is None else 1 - self.top5

    def summary(self) -> dict[str, float | None]:
        """Accuracies and errors, the mean over the classes, and the calibration error; 0 to 1."""
        return {
            "top-1": self.top1,
            "top-1 error": self.top1_error,
            "top-5": self.top5,
            "top-5 error": self.top5_error,
            "mean per class": self.mean_per_class,
            "calibration error": self.ece,
        }


@dataclass(frozen=True)
class MultiLabelScores(Scores):
    """Scores of a multi-label classifier; the main figure is the mean average precision (mAP).

    `per_class` is each class's average precision, None where no sample has the class; such classes are
    left out of `mean_average_precision`. F1 at probability >= 0.5: micro over all decisions, macro as the
    mean over the classes that occur in truth or prediction. `predicted` and `true` (n, K) uint8,
    `probabilities` (n, K); `sample_score` is the share of an image's K decisions that are right.
    """

    ROWS = ("classes", "counts", "per_class", "f1", "precision", "recall")  # type: tuple[str, ...]

    mean_average_precision: float | None
    micro_f1: float | None
    macro_f1: float | None
    exact: float
    interval: tuple[float, float]
    counts: tuple[int, ...]
    f1: tuple[float | None, ...]
    precision: tuple[float | None, ...]
    recall: tuple[float | None, ...]
    predicted: NDArray[np.uint8]
    true: NDArray[np.uint8]
    probabilities: NDArray[np.float32]

    def summary(self) -> dict[str, float | None]:
        """mAP, F1 and the share of images with every label right; 0 to 1."""
        return {
            "mAP": self.mean_average_precision,
            "micro F1": self.micro_f1,
            "macro F1": self.macro_f1,
            "all labels right": self.exact,
        }


def label_posteriors(outputs: Tensor) -> Tensor:
    """The sigmoid, float32: the same bits however many outputs come at once.

    Worked out in float64 where the device has it: in float32 PyTorch's vectors and what is left over at
    their end differ in the last bit.
    """
    wide = outputs.float() if outputs.device.type == "mps" else outputs.double()
    return wide.sigmoid().float()


def check_logits(outputs: Tensor, classes: int) -> None:
    """Raise StriateError unless `outputs` is (N, classes)."""
    if outputs.ndim != 2 or outputs.shape[1] != classes:
        raise StriateError(
            f"the network gives outputs of shape {tuple(outputs.shape)}",
            allowed=f"(N, {classes}), one logit for each class",
        )


class _Rows(Scorer):
    """A scorer that keeps a few figures a sample, in order of the sample number in the end."""

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        self._parts: list[dict[str, Tensor]] = []

    def _add(self, index: Any, **columns: Tensor) -> None:
        self._parts.append({"index": torch.as_tensor(np.asarray(index, np.int64)), **columns})

    def state(self) -> State:
        """Every column as one array."""
        if not self._parts:
            return {}
        names = self._parts[0]
        columns = {name: torch.cat([part[name].cpu() for part in self._parts]) for name in names}
        return {name: column.numpy() for name, column in columns.items()}

    def merge(self, state: State) -> None:
        """Append the rows of another scorer."""
        if state:
            self._parts.append({name: torch.as_tensor(column) for name, column in state.items()})

    def _sorted(self) -> State:
        state = self.state()
        if not state or not len(state["index"]):
            raise StriateError("there is nothing to score", hint="give a split that holds images")
        order = np.argsort(state["index"], kind="stable")
        return {name: column[order] for name, column in state.items()}


class ClassificationScorer(_Rows):
    """Keeps prediction, truth, their probabilities and the rank of the truth for each sample."""

    @torch.no_grad()
    def update(self, outputs: Tensor, targets: Tensor, index: Any) -> None:
        """Add logits (N, K), class numbers (N,) and sample numbers (N,)."""
        check_logits(outputs, len(self.classes))
        logits = outputs.detach().float()
        targets = targets.to(logits.device)
        posterior = logits.softmax(1)
        predicted = logits.argmax(1)
        self._add(
            index,
            predicted=predicted,
            true=targets,
            confidence=posterior.gather(1, predicted[:, None])[:, 0],
            sample_score=posterior.gather(1, targets[:, None])[:, 0],
            rank=metrics.rank(logits, targets),
        )

    def result(self) -> ClassificationScores:
        """The scores; raises as `Scorer.result` does."""
        rows = self._sorted()
        must_be_finite(bool(np.isfinite(rows["confidence"]).all()))
        classes = self.classes
        n, right, rank = len(rows["index"]), rows["predicted"] == rows["true"], rows.pop("rank")
        matrix = metrics.confusion(rows["true"], rows["predicted"], len(classes))
        counts, hits = matrix.sum(1).tolist(), np.diagonal(matrix).tolist()
        per_class = metrics.recall(matrix)
        bounds = [metrics.wilson(hit, count) or (None, None) for hit, count in zip(hits, counts, strict=True)]
        correct, top5 = int(right.sum()), int((rank < 5).sum()) if len(classes) >= 5 else None
        return ClassificationScores(
            main_name="top-1",
            main=correct / n,
            n=n,
            classes=classes,
            per_class=per_class,
            correct=correct,
            top1=correct / n,
            top5=None if top5 is None else top5 / n,
            interval=metrics.wilson(correct, n) or (0.0, 1.0),
            top5_interval=None if top5 is None else metrics.wilson(top5, n),
            ece=metrics.ece(rows["confidence"], right) or 0.0,
            mean_per_class=metrics.mean(per_class),
            counts=tuple(counts),
            hits=tuple(hits),
            low=tuple(low for low, _ in bounds),
            high=tuple(high for _, high in bounds),
            precision=metrics.precision(matrix),
            confusion=matrix,
            **rows,
        )


class MultiLabelScorer(_Rows):
    """Keeps the probability and the truth of every label for each sample."""

    @torch.no_grad()
    def update(self, outputs: Tensor, targets: Tensor, index: Any) -> None:
        """Add logits (N, K), labels (N, K) 0 or 1, and sample numbers (N,)."""
        check_logits(outputs, len(self.classes))
        probabilities = label_posteriors(outputs.detach())
        self._add(index, probabilities=probabilities, true=(targets > 0.5).to(torch.uint8))

    def result(self) -> MultiLabelScores:
        """The scores; raises as `Scorer.result` does."""
        rows = self._sorted()
        must_be_finite(bool(np.isfinite(rows["probabilities"]).all()))
        true, probabilities = rows["true"] > 0, rows["probabilities"]
        predicted = probabilities >= THRESHOLD
        n, k = true.shape
        hits, guessed, counts = ((true & predicted).sum(0), predicted.sum(0), true.sum(0))
        each_ap = tuple(metrics.average_precision(probabilities[:, c], true[:, c]) for c in range(k))
        each_f1 = tuple(metrics.f1(*row) for row in zip(hits, guessed, counts, strict=True))
        exact = int((true == predicted).all(1).sum())
        mean_ap = metrics.mean(each_ap)
        return MultiLabelScores(
            main_name="mAP",
            main=mean_ap or 0.0,
            n=n,
            classes=self.classes,
            per_class=each_ap,
            index=rows["index"],
            sample_score=(true == predicted).mean(1).astype(np.float32),
            mean_average_precision=mean_ap,
            micro_f1=metrics.f1(hits.sum(), guessed.sum(), counts.sum()),
            macro_f1=metrics.mean(each_f1),
            exact=exact / n,
            interval=metrics.wilson(exact, n) or (0.0, 1.0),
            counts=tuple(counts.tolist()),
            f1=each_f1,
            precision=tuple(metrics.ratio(h, g) for h, g in zip(hits, guessed, strict=True)),
            recall=tuple(metrics.ratio(h, c) for h, c in zip(hits, counts, strict=True)),
            predicted=predicted.astype(np.uint8),
            true=rows["true"],
            probabilities=probabilities,
        )
