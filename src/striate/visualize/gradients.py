"""Saliency: which pixels a class's score depends on, by its gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from striate.core.errors import StriateError
from striate.core.settings import setting
from striate.images import draw
from striate.visualize.method import (
    METHODS,
    Method,
    Panel,
    Picture,
    Pixels,
    class_index,
    must_be_numbers,
    net_input,
    together,
)

if TYPE_CHECKING:
    from striate.model import Model


@METHODS.register("saliency", images="one or more", target=True)
@dataclass(frozen=True)
class Saliency(Method):
    """How much each pixel moves a class's score: the gradient of the logit before softmax or sigmoid.

    M = max over channels of |d score / d x|, x being the net's normalised input; with `signed`, of the same
    channel d score / d x itself. For masks the score is the sum over the pixels that the net gives to the
    class. arrays: "saliency" (images, H, W) float32, "gradient" (images, C, H, W), "target" (images,) class
    numbers, "score" (images,), "input" (images, H, W, C) uint8.
    Simonyan et al., Deep Inside Convolutional Networks (arXiv:1312.6034), section 3.
    """

    name: ClassVar[str] = "saliency"

    target: int | str | None = setting(None, help="class by name or number; nothing takes the predicted one")
    signed: bool = setting(False, help="keep the sign: red raises the score, blue lowers it")
    clip: float = setting(
        99.0, help="per cent of the pixels drawn below full strength", minimum=50, maximum=100
    )

    def draw(self, model: Model, views: Sequence[Pixels]) -> Picture:
        """The picture; raises StriateError for an unknown class, or a score without a gradient."""
        wanted = None if self.target is None else class_index(self.target, model.classes)
        scores, targets, gradients, maps, panels = [], [], [], [], []
        for view in views:
            score, target, gradient = class_gradient(model, view, wanted)
            values = reduce_channels(gradient, signed=self.signed)
            scores.append(score)
            targets.append(target)
            gradients.append(gradient)
            maps.append(values)
            heat = draw.heatmap(values, signed=self.signed, low=0.0, high=_top(values, self.clip))
            panels += [Panel(view, model.classes[target]), Panel(heat, f"score {score:.3g}")]
        across = len(views) if len(views) <= 3 else 4
        return Picture(
            method=self.name,
            title="Saliency" if wanted is None else f"Saliency of {model.classes[wanted]}",
            note=self._note(model, maps),
            arrays={
                "target": np.array(targets),
                "score": np.array(scores, np.float32),
                **together("saliency", maps),
                **together("gradient", gradients),
                **together("input", views),
            },
            panels=tuple(panels),
            columns=2 * across,
        )

    def _note(self, model: Model, maps: list[NDArray[np.float32]]) -> str:
        where = " summed over the pixels given to it" if model.task.dense else ""
        full = "largest" if self.clip == 100 else f"strongest {100 - self.clip:g} % of its pixels"
        how = (
            f"Per pixel the channel of largest |gradient|: red raises the score, blue lowers it, full colour "
            f"is the image's {full}."
            if self.signed
            else f"Per pixel the largest |gradient| over the channels: dark is 0, bright the image's {full}."
        )
        whose = "" if self.target is not None else " The class is the predicted one."
        flat = sum(not values.any() for values in maps)
        still = f" For {flat} of {len(maps)} images it is 0 everywhere." if flat else ""
        logit = f"the class's logit{where}, before softmax"
        return f"Gradient of {logit}, at the net's normalised input. {how}{whose}{still}"


def class_gradient(
    model: Model, view: Pixels, target: int | None = None
) -> tuple[float, int, NDArray[np.float32]]:
    """Score, class number and d score / d input (C, H, W) for one view; None takes the predicted class.

    Raises:
        StriateError: no pixel has the class (masks), outputs that are not numbers, or no gradient.
    """
    x = net_input(model, view).requires_grad_()
    with torch.enable_grad():
        # A copy: the net may change its input in place, which a leaf of the graph forbids.
        outputs = model.net(x.clone())
        if not isinstance(outputs, Tensor) or outputs.ndim < 2 or outputs.shape[1] != len(model.classes):
            raise StriateError(
                f"the net gives no score for each of the {len(model.classes)} classes",
                hint="saliency needs outputs (N, K) or (N, K, h, w)",
            )
        must_be_numbers(outputs, "the network's outputs")
        number, score = _score(outputs[0].float(), target, model.classes)
        gradient = torch.autograd.grad(score, x, allow_unused=True)[0] if score.requires_grad else None
    if gradient is None:
        raise StriateError(
            "the score does not depend on the image by any differentiable path",
            hint="saliency needs a net of differentiable layers",
        )
    must_be_numbers(gradient, "the gradients")
    return float(score.detach()), number, gradient[0].float().cpu().numpy()


def reduce_channels(gradient: NDArray[np.float32], *, signed: bool = False) -> NDArray[np.float32]:
    """Gradient (C, H, W) to (H, W): max over channels of the absolute value; signed: that channel's value."""
    place = np.abs(gradient).argmax(axis=0)[None]
    values: NDArray[np.float32] = np.take_along_axis(gradient, place, axis=0)[0]
    return values if signed else np.abs(values)


def _score(outputs: Tensor, target: int | None, classes: Sequence[str]) -> tuple[int, Tensor]:
    """Class number and score from one image's outputs (K,) or (K, h, w)."""
    if outputs.ndim == 1:
        number = int(outputs.argmax()) if target is None else target
        return number, outputs[number]
    own = outputs.detach().argmax(0)
    counts = torch.bincount(own.flatten(), minlength=len(classes))
    number = int(counts.argmax()) if target is None else target
    if not counts[number]:
        present = [name for name, count in zip(classes, counts.tolist(), strict=True) if count]
        raise StriateError(f"the net gives no pixel of the image to {classes[number]!r}", allowed=present)
    return number, outputs[number][own == number].sum()


def _top(values: NDArray[np.float32], clip: float) -> float:
    """The absolute value drawn at full strength: few pixels stand out so far that all else would be dark."""
    return float(np.percentile(np.abs(values), clip)) or float(np.abs(values).max()) or 1.0
