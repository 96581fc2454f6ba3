"""The contract of a task: annotation to training target, network output to the user's answer."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from striate.core.errors import StriateError, unknown
from striate.core.registry import Registry
from striate.core.results import Result

if TYPE_CHECKING:
    from striate.data.preprocess import Preprocess
    from striate.data.samples import Dataset
    from striate.nets.net import Net

WEIGHTINGS = ("none", "balanced")
State = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Scores(Result):
    """What every task's scores have: one main figure (higher is better, 0 to 1) and one row a class.

    `per_class` holds the task's figure for each class, None where the class does not occur. `index` and
    `sample_score` (both (n,)) give each sample's number and how well it went (1 best, 0 worst), in order
    of the sample number.
    """

    ROWS = ("classes", "per_class")  # type: tuple[str, ...]

    main_name: str
    main: float
    n: int
    classes: tuple[str, ...]
    per_class: tuple[float | None, ...]
    index: NDArray[np.int64]
    sample_score: NDArray[np.float32]

    def summary(self) -> dict[str, float | None]:
        """The single figures by name, the main one first; proportions, 0 to 1."""
        return {self.main_name: self.main}

    def lines(self) -> list[str]:
        """The summary as text, one figure a line; proportions in percent."""
        rows = self.summary()
        width = max(map(len, rows), default=0)
        return [
            f"{name:<{width}}  {'-' if value is None else format(100 * value, '.2f') + ' %'}"
            for name, value in rows.items()
        ]


class Scorer(ABC):
    """Collects outputs batch by batch; scorers of several processes merge into one.

    Only what the scores need is kept, and it stays on the outputs' device until asked for.
    """

    @abstractmethod
    def update(self, outputs: Tensor, targets: Tensor, index: Any) -> None:
        """Add one batch: the net's outputs, the loader's targets, the sample numbers (N,)."""

    @abstractmethod
    def state(self) -> State:
        """Everything so far as arrays, to be sent to another process."""

    @abstractmethod
    def merge(self, state: State) -> None:
        """Add the `state()` of another scorer of the same task; the order of merging does not count."""

    @abstractmethod
    def result(self) -> Scores:
        """The scores of all samples so far.

        Raises:
            StriateError: no sample was added, or the outputs hold NaN.
        """


class Task(ABC):
    """One kind of question to a picture: owns head, loss, decoding, scoring and drawing.

    A subclass is registered in `TASKS` under its `name`; `dense` says that targets are masks.
    """

    name: ClassVar[str]
    dense: ClassVar[bool] = False

    def __init__(
        self, classes: Sequence[str], *, label_smoothing: float = 0.0, class_weights: Any = None
    ) -> None:
        self.classes = tuple(str(label) for label in classes)
        if not self.classes:
            raise StriateError("a task without classes", hint="give at least one class name")
        if not _is_number(label_smoothing) or not 0 <= label_smoothing < 1:
            raise StriateError(f"label-smoothing is {label_smoothing!r}", allowed="0 to below 1")
        self.label_smoothing = float(label_smoothing)
        self.class_weights = self._check_weights(class_weights)
        self._weights: Tensor | None = None

    @classmethod
    @abstractmethod
    def balanced(cls, dataset: Dataset) -> Any:
        """Class weights that give every class the same say: inverse frequency, mean 1 over the samples."""

    @abstractmethod
    def build_net(
        self, net: str, *, in_channels: int, size: Any = None, options: Mapping[str, Any] | None = None
    ) -> Net:
        """The named net with this task's head; `size` is the input's height and width or its side."""

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The training loss, a scalar: mean over the examples, weighted by class where weights are set."""

    @abstractmethod
    def posterior(self, outputs: Tensor) -> Tensor:
        """Probabilities, float32, of the same shape as `outputs`."""

    def outputs_of(self, posterior: Tensor) -> Tensor:
        """Outputs that have this posterior, the inverse of `posterior`: for a softmax its logarithm."""
        # A probability that underflowed to 0 keeps a finite logarithm: no infinity reaches the scores.
        return posterior.clamp_min(torch.finfo(torch.float32).tiny).log()

    @abstractmethod
    def decode(
        self,
        outputs: Tensor,
        *,
        top: int = 5,
        preprocess: Preprocess | None = None,
        sizes: Sequence[tuple[int, int]] | None = None,
    ) -> list[Any]:
        """One typed answer an image.

        A dense task gives it in the original image's geometry when `preprocess` and the original
        (height, width) of each image are given, otherwise in that of the outputs.

        Raises:
            StriateError: the outputs hold NaN.
        """

    @abstractmethod
    def scorer(self) -> Scorer:
        """A new, empty scorer."""

    @abstractmethod
    def draw(self, image: NDArray[np.uint8], answer: Any) -> NDArray[np.uint8]:
        """`image` (H, W, 1 or 3) uint8 with the answer on it, (H, W, 3) uint8."""

    def expected_initial_loss(self) -> float | None:
        """The loss of a net that gives every class the same probability: ln K."""
        return math.log(len(self.classes))

    def settings(self) -> dict[str, Any]:
        """Plain JSON values; `Task.from_settings` takes them back."""
        return {
            "name": self.name,
            "classes": list(self.classes),
            "label_smoothing": self.label_smoothing,
            "class_weights": None if self.class_weights is None else self.class_weights.tolist(),
        }

    @staticmethod
    def from_settings(settings: Mapping[str, Any]) -> Task:
        """The task that `settings` describes.

        Raises:
            StriateError: an unknown task or setting, or a value of the wrong kind.
        """
        values = dict(settings)
        name = values.pop("name", None)
        if not isinstance(name, str):
            raise StriateError(f"a task's name is {name!r}", allowed=TASKS.names())
        kind = TASKS.get(name)
        known = ("classes", "label_smoothing", "class_weights")
        for key in values:
            if key not in known:
                raise unknown("task setting", key, known)
        classes = values.pop("classes", None)
        if not isinstance(classes, (list, tuple)) or not all(isinstance(label, str) for label in classes):
            raise StriateError("the task's classes are not a list of names")
        return kind(classes, **values)

    def _weights_shape(self) -> tuple[int, ...]:
        return (len(self.classes),)

    def _check_weights(self, weights: Any) -> NDArray[np.float32] | None:
        if weights is None:
            return None
        shape = self._weights_shape()
        try:
            array = np.asarray(weights, np.float32)
        except (TypeError, ValueError, OverflowError):
            array = np.zeros(0, np.float32)
        if array.shape != shape or not np.isfinite(array).all() or (array < 0).any() or not array.any():
            raise StriateError(
                f"class weights do not fit {len(self.classes)} classes",
                allowed=f"numbers of shape {shape}, none negative, not all 0",
            )
        return array

    def _weights_like(self, outputs: Tensor) -> Tensor | None:
        """The class weights as a tensor on the device of `outputs`; kept, as every step asks for it."""
        if self.class_weights is None:
            return None
        if self._weights is None or self._weights.device != outputs.device:
            self._weights = torch.from_numpy(self.class_weights).to(outputs.device)
        return self._weights


TASKS: Registry[type[Task]] = Registry("task", "striate.tasks")


def make_task(
    dataset: Dataset, *, name: str = "auto", label_smoothing: float = 0.0, class_weights: str = "none"
) -> Task:
    """The task for a data set: by its kind, or by name; "balanced" weights come from its training split.

    Raises:
        StriateError: an unknown name, or a task that does not fit the data.
    """
    if name != "auto" and TASKS.get(name).name != dataset.kind:
        raise StriateError(
            f"task {name!r} does not fit {dataset.name!r}, whose annotations are for {dataset.kind!r}",
            hint="leave the task 'auto', or give other data",
        )
    if class_weights not in WEIGHTINGS:
        raise unknown("class-weights", class_weights, WEIGHTINGS)
    kind = TASKS.get(dataset.kind)
    weights = kind.balanced(dataset) if class_weights == "balanced" else None
    return kind(dataset.classes, label_smoothing=label_smoothing, class_weights=weights)


def balanced_weights(counts: Any) -> NDArray[np.float32]:
    """Inverse frequency N / (K n_c), mean 1 over the N samples; 1 for classes without samples.

    K counts the classes that occur. King & Zeng, Logistic Regression in Rare Events Data (2001).
    """
    counts = np.asarray(counts, np.float64)
    present = counts > 0
    weights = np.ones_like(counts)
    weights[present] = counts.sum() / (max(1, int(present.sum())) * counts[present])
    return np.asarray(weights, np.float32)


def family_options(options: Mapping[str, Any] | None) -> dict[str, Any]:
    """The options of a net's family, without those that the data decide."""
    given = dict(options or {})
    for key in ("name", "classes", "in_channels", "size"):
        if key in given:
            raise StriateError(f"{key!r} is no option of a net", hint="it follows from the data and settings")
    return given


def must_be_finite(outputs_are_finite: bool) -> None:
    """Raise when a net's outputs were not numbers."""
    if not outputs_are_finite:
        raise StriateError(
            "the network's outputs are not numbers (NaN or infinite)",
            hint="its training diverged: train again with a lower learning rate",
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
