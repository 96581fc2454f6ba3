"""Muon: steps whose matrix is orthogonal, for the filters of convolutions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from striate.train.optimize import OPTIMIZERS, Groups
from striate.train.recipe import Recipe

# Coefficients of the quintic Newton-Schulz step, and how often it is taken.
A, B, C = 3.4445, -4.7750, 2.0315
ROUNDS = 3
# The rate of all other tensors (norms, biases, linear layers), as a multiple of the filters' rate.
OTHERS = 5.0


def orthogonalized(matrix: Tensor) -> Tensor:
    """The matrix with its singular values brought near 1: (M, N) float -> (M, N).

    With X the matrix over its Frobenius norm, X <- a X + (b S + c S S) X, S = X X^T, a few times: the
    singular values end within about 0.7 and 1.2, but for those that were next to nothing.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(ROUNDS):
        s = x @ x.T
        x = A * x + (B * s + C * (s @ s)) @ x
    found: Tensor = x.T if tall else x
    return found


class Muon(torch.optim.Optimizer):
    """Filters: an orthogonalized Nesterov step on weights kept at constant norm; the rest: SGD.

    For filters W, reshaped to (M, N): m <- p m + g; W <- W sqrt(M) / |W| - lr * orthogonalized(g + p m).
    """

    def __init__(self, groups: Groups, momentum: float) -> None:
        super().__init__(groups, {"lr": 0.1, "momentum": momentum, "weight_decay": 0.0, "filters": False})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Take one step; gradients are read, not changed."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None or not group["lr"]:  # filters are rescaled: a rate of 0 must keep them
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(weight)
                gradient = weight.grad
                if group["weight_decay"]:
                    gradient = gradient.add(weight, alpha=group["weight_decay"])
                state["momentum"].mul_(group["momentum"]).add_(gradient)
                step = gradient.add(state["momentum"], alpha=group["momentum"])
                if group["filters"]:
                    weight.mul_(len(weight) ** 0.5 / weight.norm().clamp_min(1e-7))
                    step = orthogonalized(step.reshape(len(step), -1)).view(step.shape)
                weight.add_(step, alpha=-group["lr"])
        return loss


@OPTIMIZERS.register("muon", lr=0.1, adaptive=False, decay="coupled", moments=1)
def muon(groups: Groups, recipe: Recipe) -> torch.optim.Optimizer:
    """Muon for filters (github.com/KellerJordan/Muon, 2024), SGD at 5 times the rate for all else."""
    split: Groups = []
    for group in groups:
        filters = [p for p in group["params"] if p.ndim == 4]
        others = [p for p in group["params"] if p.ndim != 4]
        if filters:
            split.append({**group, "params": filters, "weight_decay": 0.0, "filters": True})
        if others:
            split.append({**group, "params": others, "lr_scale": OTHERS * group.get("lr_scale", 1.0)})
    return Muon(split, recipe.momentum)
