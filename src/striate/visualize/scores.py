"""What is explained: one class's score, and its gradient with respect to the picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from striate.core.errors import StriateError
from striate.visualize.method import Pixels, must_be_numbers, net_input
from striate.visualize.rules import backward_rule

if TYPE_CHECKING:
    from striate.model import Model


@dataclass(frozen=True)
class Score:
    """The logit of one class; for masks its sum over the pixels `own` (h, w) that the net gave to it."""

    number: int
    own: Tensor | None = None

    def of(self, outputs: Tensor) -> Tensor:
        """Scores (N,) of outputs (N, K) or (N, K, h, w)."""
        values = outputs[:, self.number].float()
        return values if self.own is None else values[:, self.own].sum(1)


def run(model: Model, x: Tensor) -> Tensor:
    """The net's outputs for x (N, C, H, W), checked: (N, K) or (N, K, h, w).

    Raises:
        StriateError: no score for each class, or outputs that are not numbers.
    """
    # A copy: the net may change its input in place, which a leaf of the graph forbids.
    outputs = model.net(x.clone())
    if not isinstance(outputs, Tensor) or outputs.ndim < 2 or outputs.shape[1] != len(model.classes):
        raise StriateError(
            f"the net gives no score for each of the {len(model.classes)} classes",
            hint="this needs outputs (N, K) or (N, K, h, w)",
        )
    must_be_numbers(outputs, "the network's outputs")
    return outputs


def must_have_rivals(model: Model, method: str) -> None:
    """Raise StriateError where the net knows a single class, whose probability is 1 whatever it sees."""
    if len(model.classes) == 1:
        both = model.task.posterior(torch.tensor([[-1.0], [1.0]]))
        if bool(both[0, 0] == both[1, 0]):
            raise StriateError(
                f"{method} has no meaning for a net of one class: its probability is always 1",
                hint="saliency and grad-cam follow the class's score instead",
            )


def choose(outputs: Tensor, target: int | None, classes: Sequence[str]) -> Score:
    """The score to explain from one image's outputs (K,) or (K, h, w); None takes the predicted class.

    Raises:
        StriateError: the net gives no pixel to the class (masks).
    """
    if outputs.ndim == 1:
        return Score(int(outputs.argmax()) if target is None else target)
    own = outputs.detach().argmax(0)
    counts = torch.bincount(own.flatten(), minlength=len(classes))
    number = int(counts.argmax()) if target is None else target
    if not counts[number]:
        present = [name for name, count in zip(classes, counts.tolist(), strict=True) if count]
        raise StriateError(f"the net gives no pixel of the image to {classes[number]!r}", allowed=present)
    return Score(number, own == number)


def chosen_score(model: Model, x: Tensor, target: int | None) -> tuple[Score, float]:
    """The score to explain for x (1, C, H, W), and its value; raises as `run` and `choose` do."""
    with torch.no_grad():
        outputs = run(model, x)
        score = choose(outputs[0], target, model.classes)
        return score, float(score.of(outputs)[0])


def score_gradient(model: Model, x: Tensor, score: Score, rule: str = "plain") -> tuple[Tensor, Tensor]:
    """Scores (N,) and their signals at the picture (N, C, H, W) by a backward rule, both float32.

    Raises:
        StriateError: there is no gradient, it is not numbers, or the rule has no meaning for the net.
    """
    x = x.detach().requires_grad_()
    with torch.enable_grad(), backward_rule(rule):
        scores = score.of(run(model, x))
        gradient = None
        if scores.requires_grad:
            gradient = torch.autograd.grad(scores.sum(), x, allow_unused=True)[0]
    if gradient is None:
        raise StriateError(
            "the score does not depend on the image by any differentiable path",
            hint="this needs a net of differentiable layers",
        )
    must_be_numbers(gradient, "the gradients")
    return scores.detach(), gradient.float()


def class_gradient(
    model: Model, view: Pixels, target: int | None = None, rule: str = "plain"
) -> tuple[float, int, NDArray[np.float32]]:
    """Score, class number and d score / d input (C, H, W) for one view; None takes the predicted class.

    Raises:
        StriateError: no pixel has the class (masks), outputs that are not numbers, no gradient, or a rule
            without meaning for the net.
    """
    x = net_input(model, view)
    score, value = chosen_score(model, x, target)
    _, gradient = score_gradient(model, x, score, rule)
    return value, score.number, gradient[0].cpu().numpy()
