"""What an optimiser asks for that works the loss of one step out several times: the closure of L-BFGS."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from striate.train.devices import Place
from striate.train.penalties import Penalty


class Again:
    """Loss and gradients of the batches of one step at the net's present weights; PyTorch calls it a closure.

    `learn` runs one batch forward and backward and returns its loss; `held` are its arguments, batch after
    batch, with the loss found for it in the loop. Each batch draws the same dropout every time, so that this
    is a function of the weights. The loss is the mean over batches and processes, with the penalty: all
    processes see the same numbers, and so decide alike.
    """

    def __init__(
        self,
        learn: Callable[..., Tensor],
        held: Sequence[tuple[tuple[Any, ...], Tensor]],
        optimizer: torch.optim.Optimizer,
        place: Place,
        penalty: Penalty | None,
    ) -> None:
        self.learn, self.held, self.optimizer = learn, held, optimizer
        self.place, self.penalty = place, penalty
        self.calls = 0

    def __call__(self) -> float:
        """The loss; gradients are left on the weights. The first call takes those of the loop."""
        self.calls += 1
        if self.calls == 1:
            losses = [loss for _, loss in self.held]
        else:
            self.optimizer.zero_grad(set_to_none=True)
            losses = [self.learn(*arguments) for arguments, _ in self.held]
            if self.penalty:
                self.penalty.before()
        value = self.place.sum(torch.stack(losses).mean()) / self.place.world
        return float(value + self.penalty.value() if self.penalty else value)
