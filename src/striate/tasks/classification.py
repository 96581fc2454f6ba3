"""Classification of whole images: one label each (softmax), or any number of labels (sigmoid)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from striate.core.errors import StriateError
from striate.core.results import Result
from striate.nets.net import Net, create_net
from striate.tasks import metrics
from striate.tasks.scores import (
    THRESHOLD,
    ClassificationScorer,
    MultiLabelScorer,
    check_logits,
    label_posteriors,
)
from striate.tasks.task import TASKS, Scorer, Task, balanced_weights, family_options, must_be_finite

if TYPE_CHECKING:
    from striate.data.preprocess import Preprocess
    from striate.data.samples import Dataset


@dataclass(frozen=True)
class Top(Result):
    """The k most probable classes, best first: names, class numbers, probabilities (0 to 1)."""

    ROWS = ("labels", "indices", "probabilities")

    labels: tuple[str, ...]
    indices: tuple[int, ...]
    probabilities: tuple[float, ...]


@dataclass(frozen=True)
class Classified(Result):
    """The answer for one image of a single-label classifier."""

    label: str
    index: int
    probability: float
    top: Top

    def __str__(self) -> str:
        pairs = zip(self.top.labels, self.top.probabilities, strict=True)
        return ", ".join(f"{label} {100 * p:.1f} %" for label, p in pairs)


@dataclass(frozen=True)
class Labelled(Result):
    """The answer for one image of a multi-label classifier: every class of probability >= 0.5, best first.

    `top` lists the k most probable classes whether they reach the threshold or not.
    """

    ROWS = ("labels", "indices", "probabilities")

    labels: tuple[str, ...]
    indices: tuple[int, ...]
    probabilities: tuple[float, ...]
    top: Top

    def __str__(self) -> str:
        pairs = zip(self.labels, self.probabilities, strict=True)
        return ", ".join(f"{label} {100 * p:.1f} %" for label, p in pairs) or "no label"


class _Classifier(Task):
    """What both kinds of classification share: the net is the named family's own."""

    def build_net(
        self, net: str, *, in_channels: int, size: Any = None, options: Mapping[str, Any] | None = None
    ) -> Net:
        """The named net with one output a class; raises as `create_net` does."""
        return create_net(net, len(self.classes), in_channels, size=size, **family_options(options))

    def _top(self, outputs: Tensor, top: int) -> tuple[list[Top], Tensor]:
        """The k best classes of each image, and all probabilities, on the CPU."""
        check_logits(outputs, len(self.classes))
        if not isinstance(top, int) or top < 1:
            raise StriateError(f"top is {top!r}", allowed="a whole number, at least 1")
        logits = outputs.detach().float().cpu()
        must_be_finite(bool(logits.isfinite().all()))
        probabilities = self.posterior(logits)
        best = metrics.topk(logits, top)
        rows = zip(best.tolist(), probabilities.gather(1, best).tolist(), strict=True)
        return [Top(tuple(self.classes[i] for i in k), tuple(k), tuple(p)) for k, p in rows], probabilities

    def draw(self, image: NDArray[np.uint8], answer: Any) -> NDArray[np.uint8]:
        """The image itself in colour; the labels stand in the answer's text."""
        picture = np.asarray(image)
        return np.ascontiguousarray(np.broadcast_to(picture, (*picture.shape[:2], 3)))


@TASKS.register("classification", targets="(N,) class numbers")
class Classification(_Classifier):
    """Which one of K classes an image shows: softmax and cross-entropy."""

    name: ClassVar[str] = "classification"

    @classmethod
    def balanced(cls, dataset: Dataset) -> NDArray[np.float32]:
        """One weight a class from the counts of the training split."""
        targets = np.asarray(dataset.split("train").targets, np.int64)
        return balanced_weights(np.bincount(targets, minlength=len(dataset.classes)))

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy, mean over the examples; with class weights w, Σ w_y loss / Σ w_y.

        Label smoothing e trains towards (1 - e) one-hot + e / K (arXiv:1512.00567, section 7). targets: class
        numbers (N,), or shares of the classes (N, K), whose weight is the mean of the classes' weights.
        """
        weights = self._weights_like(outputs)
        if weights is None:
            return functional.cross_entropy(outputs, targets, label_smoothing=self.label_smoothing)
        each = functional.cross_entropy(
            outputs, targets, label_smoothing=self.label_smoothing, reduction="none"
        )
        own = targets @ weights if targets.is_floating_point() else weights[targets]
        return (own * each).sum() / own.sum().clamp_min(1e-12)

    def posterior(self, outputs: Tensor) -> Tensor:
        """Softmax in float32; (N, K), rows sum to 1."""
        return outputs.float().softmax(1)

    def decode(
        self,
        outputs: Tensor,
        *,
        top: int = 5,
        preprocess: Preprocess | None = None,
        sizes: Sequence[tuple[int, int]] | None = None,
    ) -> list[Any]:
        """A `Classified` for each image; of equal logits the lower class number wins, as in the scores."""
        rows, _ = self._top(outputs, top)
        return [Classified(t.labels[0], t.indices[0], t.probabilities[0], t) for t in rows]

    def scorer(self) -> Scorer:
        """A scorer for logits (N, K) and class numbers (N,)."""
        return ClassificationScorer(self.classes)


@TASKS.register("multi-label", targets="(N, K) 0 or 1")
class MultiLabel(_Classifier):
    """Which of K labels apply to an image, any number of them: sigmoid and binary cross-entropy."""

    name: ClassVar[str] = "multi-label"

    @classmethod
    def balanced(cls, dataset: Dataset) -> NDArray[np.float32]:
        """Weights (2, K) for absent and present labels: each class's two sides have the same say."""
        targets = np.asarray(dataset.split("train").targets) > 0
        present = targets.sum(0)
        sides = [balanced_weights([len(targets) - count, count]) for count in present]
        return np.stack(sides, axis=1)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Binary cross-entropy, mean over examples and labels; with weights w, Σ w loss / Σ w.

        Label smoothing e trains towards (1 - e) t + e / 2. Labels between 0 and 1 are weighted between.
        """
        goal = targets.to(outputs.dtype)
        weights = self._weights_like(outputs)
        own = None if weights is None else weights[0] + goal * (weights[1] - weights[0])
        if self.label_smoothing:
            goal = goal * (1 - self.label_smoothing) + self.label_smoothing / 2
        if own is None:
            return functional.binary_cross_entropy_with_logits(outputs, goal)
        each = functional.binary_cross_entropy_with_logits(outputs, goal, reduction="none")
        return (own * each).sum() / own.sum().clamp_min(1e-12)

    def expected_initial_loss(self) -> float | None:
        """The loss of a net that gives every label probability one half: ln 2."""
        return math.log(2)

    def posterior(self, outputs: Tensor) -> Tensor:
        """Sigmoid in float32; (N, K), each 0 to 1."""
        return label_posteriors(outputs)

    def outputs_of(self, posterior: Tensor) -> Tensor:
        """The log odds: outputs whose sigmoid is the posterior."""
        return torch.logit(posterior, eps=1e-7)

    def decode(
        self,
        outputs: Tensor,
        *,
        top: int = 5,
        preprocess: Preprocess | None = None,
        sizes: Sequence[tuple[int, int]] | None = None,
    ) -> list[Any]:
        """A `Labelled` for each image."""
        answers = []
        for row, p in zip(*self._top(outputs, top), strict=True):
            chosen = [int(i) for i in metrics.topk(p[None], len(p))[0] if p[i] >= THRESHOLD]
            labels = tuple(self.classes[i] for i in chosen)
            answers.append(Labelled(labels, tuple(chosen), tuple(p[chosen].tolist()), row))
        return answers

    def scorer(self) -> Scorer:
        """A scorer for logits (N, K) and labels (N, K)."""
        return MultiLabelScorer(self.classes)

    def _weights_shape(self) -> tuple[int, ...]:
        return (2, len(self.classes))
