"""Averages of a net's weights along its training, and batch norm's statistics for them."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from striate.nets import averaging
from striate.train.devices import Place
from striate.train.recipe import Recipe

# Training batches from which SWA's averages get their statistics, unless the recipe says otherwise.
NORM_BATCHES = 100


class Average:
    """A net of its own whose weights are an average of another's; `updates` counts what was taken in.

    Buffers (batch norm's mean and variance) are copied. While `updates` is 0, the average is not in use.
    """

    def __init__(self, net: nn.Module, average: nn.Module, norm_batches: int = 0) -> None:
        self.net, self.average, self.norm_batches = net, average, norm_batches
        self.updates = 0
        self.last = 0  # the epoch, from 1, after which weights were last taken in
        self.begin()

    def begin(self) -> None:
        """Start from the net's present weights."""
        self.average.load_state_dict(self.net.state_dict())
        self.average.requires_grad_(False).eval()

    def after_step(self) -> None:
        """Called after each step of the optimiser."""

    def after_epoch(self, epoch: int) -> bool:
        """Called after each pass over the training images, with the number of passes done.

        Returns whether the norms' statistics of the average are to be estimated now.
        """
        return True

    @torch.no_grad()
    def take(self, weight: float) -> None:
        """Move the average by `weight` (0 to 1) of the way to the net's present weights."""
        ours: list[Tensor] = list(self.average.parameters())
        theirs: list[Tensor] = list(self.net.parameters())
        torch._foreach_lerp_(ours, theirs, weight)
        copy_all(self.average.buffers(), self.net.buffers())
        self.updates += 1


class WeightAverage(Average):
    """An exponential moving average: w' <- d w' + (1 - d) w after each step.

    d = min(decay, (1 + t) / (10 + t)) at update t from 0, so that the first weights are soon forgotten.
    """

    def __init__(self, net: nn.Module, average: nn.Module, decay: float, norm_batches: int = 0) -> None:
        super().__init__(net, average, norm_batches)
        self.decay = decay

    def after_step(self) -> None:
        """Take the net's present weights in."""
        self.update()

    def update(self) -> None:
        """Take the net's present weights in."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.take(1 - decay)


class EqualAverage(Average):
    """Stochastic weight averaging: the mean of the weights after some epochs, each with the same weight.

    w' <- w' + (w - w') / (n + 1) after the epochs first, first + every, first + 2 every ... (from 1).
    Izmailov et al. 2018, arXiv:1803.05407, algorithm 1.
    """

    def __init__(
        self, net: nn.Module, average: nn.Module, first: int, every: int = 1, norm_batches: int = NORM_BATCHES
    ) -> None:
        super().__init__(net, average, norm_batches)
        self.first, self.every = first, every

    def after_epoch(self, epoch: int) -> bool:
        """Take the net's present weights in, if it is this epoch's turn; once, however often it is called."""
        if epoch < self.first:
            # A run that was extended begins to average later.
            self.updates = 0
        elif (epoch - self.first) % self.every == 0 and self.last != epoch:
            self.take(1 / (self.updates + 1))
            self.last = epoch
        return self.last == epoch


def make_average(net: nn.Module, recipe: Recipe) -> Average | None:
    """The average that a recipe asks for, in a copy of the net; None for none."""
    if recipe.swa:
        first = max(1, round(recipe.swa * recipe.epochs))
        batches = NORM_BATCHES if recipe.norm_batches is None else recipe.norm_batches
        return EqualAverage(net, copy.deepcopy(net), first, recipe.swa_every, batches)
    if recipe.ema:
        return WeightAverage(net, copy.deepcopy(net), recipe.ema, recipe.norm_batches or 0)
    return None


@torch.no_grad()
def copy_all(targets: Iterable[Tensor], sources: Iterable[Tensor]) -> None:
    """Copy tensors pairwise, each into the memory of its target."""
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)


def estimate_norms(
    average: Average, batches: Callable[[], Iterable[Any]], place: Place, memory: torch.memory_format
) -> int:
    """Estimate batch norm's statistics for the averaged weights; returns the number of batches seen.

    Mean and variance become the plain means over those of `norm_batches` batches, and over the processes.
    `batches` begins a pass over training images. Norms that the net itself holds fixed (frozen stages) keep
    theirs. arXiv:1803.05407, section 3.2 and algorithm 1.

    Raises:
        StriateError: there is no batch.
    """
    pairs = zip(average.average.modules(), average.net.modules(), strict=True)
    learning = {ours for ours, theirs in pairs if theirs.training}
    norms = [norm for norm in averaging.norms_of(average.average) if norm in learning]
    if not norms or not average.norm_batches or not average.updates:
        return 0

    def run(batch: Any) -> None:
        images = batch.images.to(place.device, memory_format=memory, non_blocking=True)
        with place.autocast():
            average.average(images)

    source = batches()
    try:
        some = itertools.islice(source, average.norm_batches)
        seen = averaging.estimate_norms(average.average, some, norms, run)
    finally:
        close = getattr(source, "close", None)
        if close is not None:
            close()
    for norm in norms if place.world > 1 else ():
        for buffer in (norm.running_mean, norm.running_var):
            assert buffer is not None
            buffer.copy_(place.sum(buffer) / place.world)
    return seen
