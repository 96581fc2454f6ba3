"""A clock for a training step: every moment belongs to one part, forward and backward of each stage apart."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from striate.nets.taps import stepping

DATA, BEFORE, LOSS, STEP, REST = "data", "before", "loss", "step", "rest"
FORWARD, BACKWARD = "forward", "backward"


class Clock:
    """Seconds by part: `mark(part)` gives all the time since the mark before to a part."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[tuple[str, str], float] = defaultdict(float)
        self.running = False
        self._last = 0.0

    def start(self) -> None:
        """Forget what was counted and count from now on."""
        self.seconds.clear()
        self.running = True
        self._last = self._now()

    def mark(self, part: str, stage: str = "") -> None:
        """What has passed since the last mark was spent on this part."""
        if self.running:
            now = self._now()
            self.seconds[(part, stage)] += now - self._last
            self._last = now

    def stop(self) -> None:
        """Count no longer."""
        self.running = False

    def of(self, part: str) -> float:
        """Seconds of a part, all stages together."""
        return sum(seconds for (name, _), seconds in self.seconds.items() if name == part)

    def _now(self) -> float:
        if self.device.type == "cuda":
            # Only a profile waits for the device: the loop that it looks at does not.
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


class _Passed(torch.autograd.Function):
    """The identity; its backward pass tells the clock that the stage behind it has its gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, clock: Clock, part: str, stage: str) -> Tensor:
        """x itself."""
        ctx.told = (clock, part, stage)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """The gradient itself."""
        clock, part, stage = ctx.told
        clock.mark(part, stage)
        return gradients[0], None, None, None


@contextmanager
def timed_stages(net: nn.Module, names: Sequence[str], clock: Clock) -> Iterator[None]:
    """Inside the block a pass tells the clock forward and backward of each stage.

    The stages must run one after the other; what lies between two is counted to the later one. The first
    stage's backward pass ends with whatever the caller marks next, as (BACKWARD, names[0]).
    """
    behind = dict(zip(names, [*names[1:], ""], strict=True))

    def enter(name: str, _: Any) -> None:
        if name == names[0]:
            clock.mark(BEFORE)

    def leave(name: str, output: Any) -> Any:
        clock.mark(FORWARD, name)
        if not isinstance(output, Tensor) or not output.requires_grad:
            return None
        after = behind[name]
        passed: Any = _Passed.apply
        return passed(output, clock, BACKWARD if after else LOSS, after)

    with stepping(net, names, enter=enter, leave=leave):
        yield


class ClockedLoader:
    """A loader of `warm` batches that do not count and `steps` that do, over several epochs if need be."""

    def __init__(self, loader: Any, clock: Clock, warm: int, steps: int) -> None:
        self.loader, self.clock, self.warm, self.steps = loader, clock, warm, steps
        self.split, self.bad = loader.split, loader.bad

    @property
    def waited(self) -> float:
        """As the loader's."""
        return float(self.loader.waited)

    def __len__(self) -> int:
        return self.warm + self.steps

    def close(self) -> None:
        """End the loader's processes."""
        self.loader.close()

    def batches(self, epoch: int, start: int = 0) -> Generator[Any, None, None]:
        """Its batches; the clock starts when the warm ones are done, and stops after the last."""
        count, again = 0, 0
        while count < len(self):
            source = self.loader.batches(again)
            try:
                for batch in source:
                    self.clock.mark(DATA)
                    yield batch
                    count += 1
                    self.clock.mark(REST)
                    if count == self.warm:
                        self.clock.start()
                    if count == len(self):
                        break
            finally:
                source.close()
            again += 1
        self.clock.stop()


@contextmanager
def timed_optimizer(optimizer: Any, clock: Clock, first: str) -> Iterator[None]:
    """Inside the block the optimiser's steps are told to the clock; before them was `first`'s backward."""
    step = optimizer.step

    def timed(*arguments: Any, **keywords: Any) -> Any:
        clock.mark(BACKWARD, first)
        found = step(*arguments, **keywords)
        clock.mark(STEP)
        return found

    optimizer.step = timed
    try:
        yield
    finally:
        del optimizer.step
