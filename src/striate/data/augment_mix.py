"""Samples made of two: mixup and cutmix, with soft targets; and several views of an image in one batch."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from striate.core.errors import StriateError
from striate.core.settings import setting
from striate.data import philox
from striate.data.augmentations import AUGMENTATIONS, Floats, Mixer, Repeats

if TYPE_CHECKING:
    from striate.data.augment import Pipeline
    from striate.data.samples import Split

POINTS = 4096


@AUGMENTATIONS.register("mixup", kind="mix")
@dataclass(frozen=True)
class Mixup(Mixer):
    """w * x_i + (1 - w) * x_j of two images of the batch, targets alike; w from Beta(alpha, alpha).

    w is drawn for each image. With probability 1 - p an image stays as it is. Zhang et al.,
    arXiv:1710.09412, section 2: alpha 0.1 to 0.4 on ImageNet, 1 on CIFAR-10.
    """

    mixing: ClassVar[int] = 1
    alpha: float = setting(0.2, help="parameter of the Beta distribution", minimum=0.01, maximum=100.0)
    p: float = setting(1.0, help="probability", minimum=0.0, maximum=1.0)

    def weights(self, u: Floats, height: int, width: int) -> tuple[Floats, NDArray[np.int64] | None]:
        return beta(u[:, 0], self.alpha), None


@AUGMENTATIONS.register("cutmix", kind="mix")
@dataclass(frozen=True)
class CutMix(Mixer):
    """A box of another image of the batch, targets (or masks) mixed by area; its area 1 - w, w from Beta.

    The box has the image's aspect, sides sqrt(1 - w) of it; its centre is even over the image, what lies
    beyond is cut off, and the target's weight is the area left. Yun et al., arXiv:1905.04899, section 3.1:
    Beta(1, 1). With probability 1 - p an image stays as it is.
    """

    mixing: ClassVar[int] = 3
    alpha: float = setting(1.0, help="parameter of the Beta distribution", minimum=0.01, maximum=100.0)
    p: float = setting(1.0, help="probability", minimum=0.0, maximum=1.0)

    def weights(self, u: Floats, height: int, width: int) -> tuple[Floats, NDArray[np.int64] | None]:
        sides = np.array([width, height])
        cut = np.floor(np.sqrt(1 - beta(u[:, 0], self.alpha))[:, None] * sides).astype(np.int64)
        centre = np.floor(u[:, 1:3] * sides).astype(np.int64)
        low = np.maximum(centre - cut // 2, 0)
        high = np.minimum(centre - cut // 2 + cut, sides)
        high = np.maximum(high, low)
        area = (high - low).prod(axis=1)
        return 1 - area / (height * width), np.concatenate([low, high], axis=1)


@AUGMENTATIONS.register("repeat", kind="repeat")
@dataclass(frozen=True)
class Repeat(Repeats):
    """Each image `times` times a batch, drawn anew each time; an epoch keeps its length, with fewer images.

    An epoch thus shows one in `times` of the images. Berman et al. (MultiGrain), arXiv:1902.05509, section
    3.2; Hoffer et al., "Augment your batch", arXiv:1901.09335.
    """

    times: int = setting(3, help="how often an image is in a batch", minimum=1, maximum=1024)


class Mixing:
    """Mixes the batches of a training split.

    A sample is mixed with the one before it in its process's part of the batch (past other views of the
    same image), by one of the pipeline's mixers, each as likely. Its numbers come from (seed, epoch, its
    place in the epoch's order).

    Raises:
        StriateError: targets that cannot be mixed, or class numbers without the number of classes.
    """

    def __init__(self, pipeline: Pipeline, split: Split, seed: int, classes: int | None) -> None:
        self.mixers, self.apart, self.seed, self.classes = pipeline.mixers, pipeline.times, seed, classes
        self.count = 2 + max((mixer.mixing for mixer in self.mixers), default=0)
        if split.targets is None:
            averaging = [mixer for mixer in self.mixers if not isinstance(mixer, CutMix)]
            if split.masks is None:
                raise StriateError(f"{pipeline.text!r} of images without targets", hint="leave it out")
            if averaging:
                raise StriateError(
                    "mixup of masks: a pixel cannot be of two classes at once",
                    allowed="cutmix, which takes a box of image and mask alike",
                )
        elif split.targets.ndim == 1 and classes is None:
            raise StriateError(
                f"{pipeline.text!r} without the number of classes", hint="give the loader `classes`"
            )

    def __call__(self, images: Tensor, targets: Tensor, epoch: int, first: int) -> tuple[Tensor, Tensor]:
        """Mixed images (N, C, h, w) float32, and targets: (N, K) float32, or masks (N, h, w) int64.

        first: the place of the batch's first sample in the epoch's order. Images and masks are written into.
        """
        count, _, height, width = images.shape
        keep, boxes = self._drawn(np.arange(first, first + count), epoch, height, width)
        other = (np.arange(count) - self.apart) % count
        # NumPy, in this thread alone: PyTorch's threads would wait for processors that the workers hold.
        _mix(images.permute(0, 2, 3, 1).numpy(), keep, boxes, self.apart)
        if targets.ndim == 3:
            # The masks' boxes only: mixup of masks was refused.
            _mix(targets.numpy(), np.ones(count), boxes, self.apart)
            return images, targets
        if targets.dtype == torch.int64:
            assert self.classes is not None
            targets = torch.nn.functional.one_hot(targets, self.classes).float()
        weight = torch.from_numpy(keep.astype(np.float32))[:, None]
        return images, targets * weight + targets[torch.from_numpy(other)] * (1 - weight)

    def _drawn(
        self, places: NDArray[np.int64], epoch: int, height: int, width: int
    ) -> tuple[Floats, NDArray[np.int64]]:
        """How much of itself each sample keeps, and the boxes it takes from another one (empty: none)."""
        u = philox.uniforms(self.seed, epoch, places, self.count, use=philox.BATCH)
        chosen = np.minimum((u[:, 0] * len(self.mixers)).astype(int), len(self.mixers) - 1)
        keep, boxes = np.ones(len(places)), np.zeros((len(places), 4), dtype=np.int64)
        for number, mixer in enumerate(self.mixers):
            mine = (chosen == number) & (u[:, 1] < mixer.p)
            keep[mine], found = mixer.weights(u[mine, 2:], height, width)
            if found is not None:
                boxes[mine] = found
        return keep, boxes


def _mix(stack: NDArray[Any], keep: Floats, boxes: NDArray[np.int64], apart: int) -> None:
    """Average each of `stack` (N, h, w, ...) with the one `apart` before it, or take its box, in place.

    keep: (N,) weights; boxes: (N, 4), used instead where they are not empty.
    """
    count = len(stack)
    saved = stack[max(0, count - apart) :].copy()
    # From the last one on: what a sample takes from is still as it was; the first take from `saved`.
    for i in range(count - 1, -1, -1):
        j = (i - apart) % count
        source = stack[j] if j < i else saved[j - count + len(saved)]
        x0, y0, x1, y1 = boxes[i].tolist()
        if x1 > x0:
            stack[i, y0:y1, x0:x1] = source[y0:y1, x0:x1]
        elif keep[i] < 1:
            weight = np.float32(keep[i])
            # Two roundings, not one fused step: the same bytes on every machine.
            stack[i] *= weight
            stack[i] += source * (1 - weight)


def beta(u: Floats, alpha: float) -> Floats:
    """Quantiles of Beta(alpha, alpha): even numbers in (0, 1) become its draws."""
    cumulated, roots = _half_beta(alpha)
    lower = np.interp(np.minimum(u, 1 - u), cumulated, roots) ** (1 / min(alpha, 1))
    return np.where(u < 0.5, lower, 1 - lower)


@functools.lru_cache(maxsize=16)
def _half_beta(alpha: float) -> tuple[Floats, Floats]:
    """The distribution up to its middle: F at points t, where x = t^(1 / min(alpha, 1)).

    Its density x^(a-1) (1-x)^(a-1) dx is infinite at 0 for a < 1; (1 - t^(1/a))^(a-1) dt is smooth. Summed
    by Simpson's rule.
    """
    roots = np.linspace(0, 0.5 ** min(alpha, 1), 2 * POINTS + 1)
    x = roots ** (1 / min(alpha, 1))
    density = (1 - x) ** (alpha - 1) * (x ** (alpha - 1) if alpha > 1 else 1)
    pieces = density[:-2:2] + 4 * density[1::2] + density[2::2]
    cumulated = np.concatenate([[0], np.cumsum(pieces)])
    return cumulated / cumulated[-1] / 2, roots[::2]
