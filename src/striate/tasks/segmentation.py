"""Semantic segmentation: one class for each pixel; scored by mean intersection over union."""

from __future__ import annotations

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
from striate.data.pools import IGNORE
from striate.images import draw, geometry
from striate.tasks import metrics
from striate.tasks.task import (
    TASKS,
    Scorer,
    Scores,
    State,
    Task,
    balanced_weights,
    family_options,
    must_be_finite,
)
from striate.tasks.upsampling import pixel_net

if TYPE_CHECKING:
    from striate.data.preprocess import Preprocess
    from striate.data.samples import Dataset
    from striate.nets.net import Net

COUNTED_MASKS = 200


@dataclass(frozen=True)
class Segmented(Result):
    """The answer for one image: `mask` (H, W) uint8 class numbers, as large as the original image.

    255 marks pixels that the net did not see, as where a view cuts the edges off. `fractions` is each
    class's share of the pixels seen, 0 to 1.
    """

    ROWS = ("classes", "fractions")

    classes: tuple[str, ...]
    fractions: tuple[float, ...]
    mask: NDArray[np.uint8]

    def __str__(self) -> str:
        order = np.argsort(-np.asarray(self.fractions), kind="stable")
        return ", ".join(
            f"{self.classes[i]} {100 * self.fractions[i]:.1f} %" for i in order if self.fractions[i]
        )


@dataclass(frozen=True)
class SegmentationScores(Scores):
    """Scores of a segmentation; the main figure is the mean IoU.

    Pixels whose truth is 255 count nowhere. `per_class` is each class's IoU over all images together, None
    for a class neither in truth nor in prediction; such classes are left out of `mean_iou` (None if no
    pixel counts). `mean_accuracy` is the mean over the classes of their recall (arXiv:1411.4038, section 5).
    `confusion` (K, K) counts pixels: rows are the truth. `pixels` counts each class's pixels in the truth.
    `sample_score` is the pixel accuracy of each image, 1 where every pixel is ignored.
    """

    ROWS = ("classes", "pixels", "per_class", "accuracy", "precision")

    mean_iou: float | None
    pixel_accuracy: float | None
    mean_accuracy: float | None
    pixels: tuple[int, ...]
    accuracy: tuple[float | None, ...]
    precision: tuple[float | None, ...]
    confusion: NDArray[np.int64]

    def summary(self) -> dict[str, float | None]:
        """Mean IoU, pixel accuracy and mean class accuracy; 0 to 1."""
        return {
            "mean IoU": self.mean_iou,
            "pixel accuracy": self.pixel_accuracy,
            "mean class accuracy": self.mean_accuracy,
        }


@TASKS.register("segmentation", targets="(N, H, W) class numbers, 255 ignored")
class Segmentation(Task):
    """Which class each pixel belongs to: softmax and cross-entropy at every pixel that is not ignored."""

    name: ClassVar[str] = "segmentation"
    dense: ClassVar[bool] = True

    def __init__(
        self, classes: Sequence[str], *, label_smoothing: float = 0.0, class_weights: Any = None
    ) -> None:
        super().__init__(classes, label_smoothing=label_smoothing, class_weights=class_weights)
        if len(self.classes) > IGNORE:
            raise StriateError(
                f"{len(self.classes)} classes of pixels",
                allowed=f"at most {IGNORE}, as 255 marks ignored ones",
            )

    @classmethod
    def balanced(cls, dataset: Dataset) -> NDArray[np.float32]:
        """One weight a class from the pixels of at most 200 training masks, evenly spaced."""
        split, counts = dataset.split("train"), np.zeros(256, np.int64)
        for index in np.unique(np.linspace(0, len(split) - 1, min(COUNTED_MASKS, len(split))).astype(int)):
            counts += np.bincount(split.mask(int(index)).ravel(), minlength=256)[:256]
        return balanced_weights(counts[: len(dataset.classes)])

    def build_net(
        self, net: str, *, in_channels: int, size: Any = None, options: Mapping[str, Any] | None = None
    ) -> Net:
        """The convolutional stages of the named net with an upsampling head; raises as `pixel_net` does."""
        return pixel_net(net, len(self.classes), in_channels, size=size, **family_options(options))

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy, mean over all pixels that count; with class weights w, Σ w_y loss / Σ w_y.

        outputs (N, K, H, W), targets (N, H, W) int64; 255 is ignored. 0 where every pixel is.

        Raises:
            StriateError: a mask of another size, or (on the CPU) a value that is no class.
        """
        targets = targets.long()
        self._check(outputs, targets)
        weights = self._weights_like(outputs)
        kept = targets != IGNORE
        try:
            each = functional.cross_entropy(
                outputs,
                targets,
                ignore_index=IGNORE,
                label_smoothing=self.label_smoothing,
                reduction="sum" if weights is None else "none",
            )
        except IndexError as error:
            raise self._no_class(targets) from error
        if weights is None:
            return each / kept.sum().clamp_min(1)
        own = weights[targets.where(kept, 0)] * kept
        return (own * each).sum() / own.sum().clamp_min(1e-12)

    def posterior(self, outputs: Tensor) -> Tensor:
        """Softmax over the classes in float32; (N, K, H, W)."""
        return outputs.float().softmax(1)

    def decode(
        self,
        outputs: Tensor,
        *,
        top: int = 5,
        preprocess: Preprocess | None = None,
        sizes: Sequence[tuple[int, int]] | None = None,
    ) -> list[Any]:
        """A `Segmented` for each image; logits are laid back onto the original image bilinearly."""
        logits = outputs.detach().float()
        must_be_finite(bool(logits.isfinite().all()))
        masks = []
        for number, maps in enumerate(logits):
            if preprocess is None or sizes is None or preprocess.same_pixels(*sizes[number]):
                masks.append(maps.argmax(0).to(torch.uint8).cpu().numpy())
            else:
                masks.append(lay_back(maps.cpu().numpy(), preprocess, sizes[number]))
        return [self._answer(mask) for mask in masks]

    def _answer(self, mask: NDArray[np.uint8]) -> Segmented:
        counts = np.bincount(mask.ravel(), minlength=256)[: len(self.classes)]
        fractions = counts / max(1, counts.sum())
        return Segmented(self.classes, tuple(fractions.tolist()), mask)

    def scorer(self) -> Scorer:
        """A scorer for logits (N, K, H, W) and masks (N, H, W)."""
        return SegmentationScorer(self)

    def draw(self, image: NDArray[np.uint8], answer: Any) -> NDArray[np.uint8]:
        """The image with each class's colour laid over it half-transparently."""
        return draw.overlay_mask(image, answer.mask.astype(np.int32), ignore=IGNORE)

    def _check(self, outputs: Tensor, targets: Tensor) -> None:
        if outputs.ndim != 4 or outputs.shape[1] != len(self.classes):
            raise StriateError(
                f"the network gives outputs of shape {tuple(outputs.shape)}",
                allowed=f"(N, {len(self.classes)}, H, W), one logit for each class and pixel",
            )
        if outputs.shape[0] != targets.shape[0] or outputs.shape[2:] != targets.shape[1:]:
            raise StriateError(
                f"the network gives maps of {tuple(outputs.shape[2:])} pixels, "
                f"the masks have {tuple(targets.shape[1:])}",
                hint="every mask must be as large as its image",
            )

    def _no_class(self, targets: Tensor) -> StriateError:
        wrong = targets[(targets != IGNORE) & ((targets < 0) | (targets >= len(self.classes)))]
        return StriateError(
            f"a mask holds the value {int(wrong[0]) if len(wrong) else '?'}",
            allowed=f"0 to {len(self.classes) - 1}, and 255 for ignored pixels",
        )


def lay_back(maps: NDArray[np.float32], preprocess: Preprocess, size: tuple[int, int]) -> NDArray[np.uint8]:
    """The class of each pixel of the original image from the logits (K, h, w) of its view.

    Class by class, so that memory is that of two maps however many classes there are; pixels that the
    view did not show are 255.
    """
    forth = preprocess.matrix(*size)
    back = np.linalg.inv(forth).astype(np.float64)
    best = np.full(size, -np.inf, np.float32)
    mask = np.zeros(size, np.uint8)
    for number, logits in enumerate(maps):
        own = geometry.warp(np.ascontiguousarray(logits), back, size, "bilinear", border="edge")
        better = own > best
        mask[better], best[better] = number, own[better]
    # The view's own extent, in the coordinates of its pixels.
    height, width = maps.shape[1:]
    x = forth[0, 0] * (np.arange(size[1]) + 0.5) + forth[0, 2]
    y = forth[1, 1] * (np.arange(size[0]) + 0.5) + forth[1, 2]
    seen = ((y >= 0) & (y <= height))[:, None] & ((x >= 0) & (x <= width))[None]
    mask[~seen] = IGNORE
    return mask


class SegmentationScorer(Scorer):
    """Keeps one confusion matrix of pixels, and the pixel accuracy of each image."""

    def __init__(self, task: Segmentation) -> None:
        self.task = task
        self._matrix: Tensor | None = None
        self._rows: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def update(self, outputs: Tensor, targets: Tensor, index: Any) -> None:
        """Add logits (N, K, H, W), masks (N, H, W) and sample numbers (N,)."""
        outputs, k = outputs.detach().float(), len(self.task.classes)
        targets = targets.to(outputs.device).long()
        self.task._check(outputs, targets)
        kept = targets != IGNORE
        if bool(((targets < 0) | (targets >= k))[kept].any()):
            raise self.task._no_class(targets)
        must_be_finite(bool(outputs.isfinite().all()))
        predicted = outputs.argmax(1)
        pairs = (targets * k + predicted)[kept]
        matrix = torch.bincount(pairs, minlength=k * k)
        self._matrix = matrix if self._matrix is None else self._matrix + matrix
        right = ((predicted == targets) & kept).flatten(1).sum(1).double()
        counted = kept.flatten(1).sum(1)
        score = torch.where(counted > 0, right / counted.clamp_min(1), 1.0).float()
        self._rows.append((torch.as_tensor(np.asarray(index, np.int64)), score))

    def state(self) -> State:
        """The matrix as (K * K,) and the rows."""
        if self._matrix is None:
            return {}
        return {
            "matrix": self._matrix.cpu().numpy(),
            "index": torch.cat([index for index, _ in self._rows]).numpy(),
            "sample_score": torch.cat([score.cpu() for _, score in self._rows]).numpy(),
        }

    def merge(self, state: State) -> None:
        """Add another scorer's matrix and rows."""
        if state:
            matrix = torch.as_tensor(state["matrix"])
            self._matrix = matrix if self._matrix is None else self._matrix.cpu() + matrix
            self._rows.append((torch.as_tensor(state["index"]), torch.as_tensor(state["sample_score"])))

    def result(self) -> SegmentationScores:
        """The scores; raises as `Scorer.result` does."""
        state, k = self.state(), len(self.task.classes)
        if not state or not len(state["index"]):
            raise StriateError("there is nothing to score", hint="give a split that holds images")
        matrix = state["matrix"].reshape(k, k)
        order = np.argsort(state["index"], kind="stable")
        each, accuracy = metrics.iou(matrix), metrics.recall(matrix)
        mean_iou = metrics.mean(each)
        return SegmentationScores(
            main_name="mean IoU",
            main=mean_iou or 0.0,
            n=len(order),
            classes=self.task.classes,
            per_class=each,
            index=state["index"][order],
            sample_score=state["sample_score"][order],
            mean_iou=mean_iou,
            pixel_accuracy=metrics.ratio(np.trace(matrix), matrix.sum()),
            mean_accuracy=metrics.mean(accuracy),
            pixels=tuple(matrix.sum(1).tolist()),
            accuracy=accuracy,
            precision=metrics.precision(matrix),
            confusion=matrix,
        )
