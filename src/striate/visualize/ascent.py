"""Optimisers of a picture's values: Adam, L-BFGS, normalised gradient ascent; their states can be kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from striate.core.errors import StriateError, unknown


class Climb:
    """An optimiser: `step(values, gradient, value)` gives the next values; what it makes large is `value`."""

    def step(self, values: Tensor, gradient: Tensor, value: float) -> Tensor:
        """The next values, from the gradient of the objective at these."""
        raise NotImplementedError

    def state(self) -> dict[str, Any]:
        """Numbers and tensors that `restore` takes back."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken."""


class Ascent(Climb):
    """values + rate * gradient / mean |gradient|: steps of one size (Mordvintsev et al. 2015)."""

    def __init__(self, rate: float) -> None:
        self.rate = rate

    def step(self, values: Tensor, gradient: Tensor, value: float) -> Tensor:
        """One step along the gradient."""
        mean = float(torch.linalg.vector_norm(gradient, 1)) / gradient.numel()
        return torch.add(values, gradient, alpha=self.rate / (mean + 1e-12))


class Adam(Climb):
    """Kingma & Ba 2014 (arXiv:1412.6980), algorithm 1, upwards."""

    def __init__(self, rate: float, betas: tuple[float, float] = (0.9, 0.999)) -> None:
        self.rate, self.betas = rate, betas
        self.count = 0
        self.mean: Tensor | None = None
        self.square: Tensor | None = None

    def step(self, values: Tensor, gradient: Tensor, value: float) -> Tensor:
        """One step."""
        if self.mean is None or self.square is None:
            self.mean, self.square = torch.zeros_like(values), torch.zeros_like(values)
        self.count += 1
        b1, b2 = self.betas
        # New tensors, not in place: a state that was taken before stays what it was.
        self.mean = torch.lerp(self.mean, gradient, 1 - b1)
        self.square = torch.lerp(self.square, gradient.square(), 1 - b2)
        scale = (self.square / (1 - b2**self.count)).sqrt_().add_(1e-8)
        return values + self.mean.div(scale).mul_(self.rate / (1 - b1**self.count))

    def state(self) -> dict[str, Any]:
        """Count and moments."""
        return {"count": self.count, "mean": self.mean, "square": self.square}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from these moments."""
        self.count, self.mean, self.square = int(state["count"]), state["mean"], state["square"]


class LBFGS(Climb):
    """Limited-memory BFGS (Liu & Nocedal 1989; Nocedal & Wright 2006, algorithm 7.4), one pass a step.

    Without a line search, as neural style is used to: the first step has length `rate` along the gradient in
    the largest component, the others `rate` times the quasi-Newton step. Pairs without positive curvature
    are left out; where the value is not a number, the last values are taken again with half the step.
    `pairs` are kept, by default as many as 256 MB hold, 8 to 100.
    """

    def __init__(self, rate: float = 1.0, pairs: int | None = None) -> None:
        self.rate, self.pairs = rate, pairs
        self.moves: list[Tensor] = []
        self.changes: list[Tensor] = []
        self.products: list[float] = []
        self.values: Tensor | None = None
        self.gradient: Tensor | None = None
        self.shrink = 1.0

    def step(self, values: Tensor, gradient: Tensor, value: float) -> Tensor:
        """The next values."""
        if self.pairs is None:
            self.pairs = int(max(8, min(100, 2**28 // max(1, 8 * values.numel()))))
        down = gradient.neg()
        if self.values is not None and self.gradient is not None:
            if not (abs(value) < float("inf") and bool(torch.isfinite(gradient.sum()))):
                return self._again()
            self._remember(values - self.values, down - self.gradient)
        self.values, self.gradient = values, down
        direction = self._direction(down)
        slope = float(direction.flatten() @ down.flatten())
        if not slope < 0:
            self.moves, self.changes, self.products = [], [], []
            direction = down.neg()
        if not self.moves:
            # One grey level, or so, to begin with.
            direction = direction * (0.01 / max(float(direction.abs().max()), 1e-30))
        return values + direction * (self.rate * self.shrink)

    def _again(self) -> Tensor:
        assert self.values is not None
        assert self.gradient is not None
        self.shrink *= 0.5
        if self.shrink < 1e-6:
            raise StriateError(
                "the objective is not a number however small the step", hint="give a lower rate, or Adam"
            )
        self.moves, self.changes, self.products = [], [], []
        direction = self.gradient * (-0.01 / max(float(self.gradient.abs().max()), 1e-30))
        return self.values + direction * (self.rate * self.shrink)

    def _remember(self, move: Tensor, change: Tensor) -> None:
        product = float(move.flatten() @ change.flatten())
        if product <= 1e-10 * float(change.flatten() @ change.flatten()) * 1e-6:
            return
        self.moves.append(move)
        self.changes.append(change)
        self.products.append(product)
        while len(self.moves) > (self.pairs or 1):
            del self.moves[0], self.changes[0], self.products[0]

    def _direction(self, down: Tensor) -> Tensor:
        """Minus the inverse Hessian's estimate times the gradient, by the two-loop recursion."""
        q = down.neg().flatten()
        count = len(self.moves)
        alphas = [0.0] * count
        for i in range(count - 1, -1, -1):
            alphas[i] = float(self.moves[i].flatten() @ q) / self.products[i]
            q.add_(self.changes[i].flatten(), alpha=-alphas[i])
        if count:
            last = self.changes[-1].flatten()
            q.mul_(self.products[-1] / float(last @ last))
        for i in range(count):
            beta = float(self.changes[i].flatten() @ q) / self.products[i]
            q.add_(self.moves[i].flatten(), alpha=alphas[i] - beta)
        return q.view_as(down)

    def state(self) -> dict[str, Any]:
        """Pairs, the last values and their gradient."""
        return {
            "moves": list(self.moves), "changes": list(self.changes), "products": list(self.products),
            "values": self.values, "gradient": self.gradient, "shrink": self.shrink, "pairs": self.pairs,
        }  # fmt: skip

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from these pairs."""
        self.moves, self.changes = list(state["moves"]), list(state["changes"])
        self.products, self.pairs = [float(p) for p in state["products"]], state["pairs"]
        self.values, self.gradient = state["values"], state["gradient"]
        self.shrink = float(state["shrink"])


CLIMBS = ("adam", "l-bfgs", "ascent")


def climb(name: str, rate: float) -> Climb:
    """A new optimiser by name.

    Raises:
        StriateError: an unknown name.
    """
    if name not in CLIMBS:
        raise unknown("optimizer", name, CLIMBS)
    return Adam(rate) if name == "adam" else LBFGS(rate) if name == "l-bfgs" else Ascent(rate)
