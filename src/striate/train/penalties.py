"""L1 and L2 penalties on weights, as part of the gradient (coupled) or beside it (decoupled)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from striate.train.optimize import OPTIMIZERS, own_decay, parameter_groups
from striate.train.recipe import Recipe


@dataclass
class Penalty:
    """What draws weights to zero, beyond what the optimiser does itself.

    Coupled: the loss has l1 * sum |w| + l2 / 2 * sum w^2 more, so that the gradient gets l1 sign(w) + l2 w.
    Decoupled: w <- (1 - lr l2) w before the optimiser's step (arXiv:1711.05101), and after it
    w <- sign(w) max(|w| - lr l1, 0), the proximal step of L1, which gives exact zeros. Weights without a
    gradient, such as those of frozen stages, stay.
    """

    weights: list[Tensor]
    l1: float
    l2: float
    decoupled: bool
    optimizer: torch.optim.Optimizer

    @torch.no_grad()
    def before(self) -> None:
        """Coupled: add to the gradients. Decoupled: shrink by L2. Called before the optimiser's step."""
        if self.decoupled:
            for rate, weights in self._by_rate() if self.l2 else ():
                torch._foreach_mul_(weights, 1.0 - rate * self.l2)
            return
        for weight in self.weights:
            if weight.grad is not None and self.l2:
                weight.grad.add_(weight, alpha=self.l2)
            if weight.grad is not None and self.l1:
                weight.grad.add_(weight.sign(), alpha=self.l1)

    @torch.no_grad()
    def after(self) -> None:
        """Decoupled: move by L1 towards zero, and not beyond. Called after the optimiser's step."""
        if not (self.decoupled and self.l1):
            return
        for rate, weights in self._by_rate():
            for weight in weights:
                weight.copy_(nn.functional.softshrink(weight, rate * self.l1))

    @torch.no_grad()
    def value(self) -> Tensor:
        """What the coupled form adds to the loss, a scalar."""
        total = torch.zeros((), device=self.weights[0].device if self.weights else None)
        for weight in self.weights:
            total += self.l1 * weight.abs().sum() + 0.5 * self.l2 * weight.square().sum()
        return total

    def _by_rate(self) -> Iterator[tuple[float, list[Tensor]]]:
        """The weights that have gradients, with the rates of their groups."""
        mine = {id(weight) for weight in self.weights}
        for group in self.optimizer.param_groups:
            weights = [p for p in group["params"] if id(p) in mine and p.grad is not None]
            if weights:
                yield group["lr"], weights


def make_penalty(net: nn.Module, recipe: Recipe, optimizer: torch.optim.Optimizer) -> Penalty | None:
    """The penalty that a recipe asks for beyond the optimiser's own decay; None for none.

    It falls on the tensors that `parameter_groups` decays.
    """
    l2 = 0.0 if own_decay(recipe) else recipe.weight_decay
    if not (recipe.l1 or l2):
        return None
    groups = parameter_groups(net, 1.0, decay_norms_and_biases=recipe.decay_norms_and_biases)
    weights = [parameter for group in groups if group["weight_decay"] for parameter in group["params"]]
    return Penalty(weights, recipe.l1, l2, decouples(recipe), optimizer)


def decouples(recipe: Recipe) -> bool:
    """Whether penalties act beside the gradient: as asked for, or as the optimiser's own decay does."""
    if recipe.decay != "auto":
        return recipe.decay == "decoupled"
    return OPTIMIZERS.entry(recipe.optimizer).capabilities.get("decay") == "decoupled"
