"""The training loop: one visible function."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from striate.core.errors import StriateError
from striate.train.again import Again
from striate.train.averages import Average, estimate_norms
from striate.train.devices import Place, mixed
from striate.train.freezing import Freezing
from striate.train.noise import noisy_gradients, noisy_inputs, noisy_weights
from striate.train.optimize import OPTIMIZERS, clip_gradients, set_rate
from striate.train.penalties import Penalty
from striate.train.recipe import Recipe
from striate.train.resizing import parse_steps, shrink, side_at
from striate.train.schedules import SCHEDULES, Plan
from striate.train.wrapping import quick, wrapped

if TYPE_CHECKING:
    from striate.data.loaders import Loader
    from striate.tasks.task import Scores, Task

# What `fit` tells its listener, and when:
EVENTS = (
    "epoch-start",  # before the first batch of an epoch, or of what is left of it
    "step",  # after each step of the optimiser
    "tick",  # when the progress line is due: the only moment in an epoch at which the loss is read
    "checkpoint",  # when the state is to be saved: between two steps, or after an epoch
    "best",  # the epoch just tested has the best validation score so far
    "epoch",  # an epoch is done, tested and saved
    "end",  # the last epoch is done
)

# With several processes, steps between two agreements on stopping and saving.
MEETING = 20


@dataclass
class State:
    """Where a run stands; with the weights and the optimiser's moments, all that resuming needs."""

    epoch: int = 0  # epochs done
    batch: int = 0  # batches done in the present epoch
    step: int = 0  # steps of the optimiser done in the whole run
    loss: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))  # sum over the batches
    history: list[dict[str, Any]] = field(default_factory=list)  # one row of metrics an epoch
    scores: list[float] = field(default_factory=list)  # main validation score of each epoch
    score_name: str = ""
    best: float = -math.inf
    best_epoch: int = 0
    stale: int = 0  # epochs since the best
    stopped: bool = False  # by early stopping
    seconds: float = 0.0  # spent in training and validation, resumed parts included


@dataclass
class Job:
    """All that `fit` works on; listeners are given it and may look and change."""

    net: nn.Module
    task: Task
    optimizer: torch.optim.Optimizer
    train: Loader
    val: Loader | None
    recipe: Recipe  # resolved: `lr` and `batch` are numbers
    plan: Plan
    place: Place = field(default_factory=lambda: Place(torch.device("cpu")))
    average: Average | None = None
    penalty: Penalty | None = None
    freezing: Freezing | None = None
    state: State = field(default_factory=State)
    began: float = 0.0  # monotonic second at which this part of the epoch began
    counted: float = 0.0  # monotonic second up to which `state.seconds` counts
    first: int = 0  # the batch it began with
    waited: float = 0.0  # seconds waited for data before it
    images_per_second: float = 0.0  # in training, this epoch
    data_wait: float = 0.0  # part of the time spent waiting for data, this epoch
    last_scores: Scores | None = None

    @property
    def tested(self) -> nn.Module:
        """The net that is validated and kept: the average where there is one in use."""
        return self.average.average if self.average and self.average.updates else self.net

    def mean_loss(self) -> float:
        """Mean training loss of this epoch so far, of this process; reads the device."""
        return float(self.state.loss) / max(1, self.state.batch)


class Interrupted(StriateError):
    """Raised when a signal ended the run after its state was saved; `exit_code` is 128 + the signal."""

    def __init__(self, number: int, folder: str) -> None:
        self.signal = number
        self.exit_code = 128 + number
        super().__init__(
            f"stopped by {signal.Signals(number).name}, state saved",
            hint=f"continue with the same command and: --resume --out {folder}",
        )


class Diverged(StriateError):
    """Raised when the loss is no longer a number."""


@dataclass
class Stop:
    """Set by the first SIGINT or SIGTERM; the second one acts as if nobody listened."""

    number: int = 0

    @contextlib.contextmanager
    def listening(self) -> Iterator[Stop]:
        """Catch the signals within the block; outside the main thread do nothing."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        def note(number: int, frame: FrameType | None) -> None:
            self.number = number
            for each, handler in before.items():
                signal.signal(each, handler)

        for number in before:
            signal.signal(number, note)
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


Listen = Callable[[str, Job], None]


def silent(event: str, job: Job) -> None:
    """A listener that does nothing."""


def never(now: float) -> bool:
    """No progress line is wanted."""
    return False


def fit(
    job: Job, listen: Listen = silent, *, due: Callable[[float], bool] = never, stop: Stop | None = None
) -> bool:
    """Train `job.net` until `recipe.epochs` are done; False when `stop` was set first.

    A step averages the gradients of `accumulate` batches, so that their images count alike. Nothing in it
    depends on anything but the state, the loaders and the recipe: a run that is saved at any "checkpoint"
    and continued computes the same bits on the CPU. `due(now)` says when a "tick" is wanted; `listen` is
    told each of EVENTS.

    Raises:
        Diverged: the loss is no longer a number.
        StriateError: whatever the net, task or data raise.
    """
    averages = [job.average.average] if job.average else []
    with quick(job.recipe, job.net, *averages):
        return _fit(job, listen, due, stop or Stop())


def _fit(job: Job, listen: Listen, due: Callable[[float], bool], stop: Stop) -> bool:
    recipe, state, place, net, task = job.recipe, job.state, job.place, job.net, job.task
    memory = torch.channels_last if recipe.channels_last else torch.contiguous_format
    forward = wrapped(net, recipe, place)
    sizes = parse_steps(recipe.progressive)
    # Some optimisers work out the loss of a step's batches several times.
    again = OPTIMIZERS.entry(recipe.optimizer).capabilities.get("again", False)
    held: list[tuple[tuple[Any, ...], Tensor]] = []
    # Apple's devices have no float64.
    state.loss = state.loss.to(place.device, torch.float32 if place.device.type == "mps" else torch.float64)
    saved = job.counted = time.monotonic()

    def learn(number: int, images: Tensor, targets: Tensor, group: int, closes: bool) -> Tensor:
        # Dropout and the like depend on the place in the run only.
        torch.manual_seed(mixed(recipe.seed, state.epoch, number, place.rank))
        with place.quiet(forward, not closes), noisy_weights(net, recipe.weight_noise):
            with place.autocast():
                loss = loss_of(task, forward(noisy_inputs(images, recipe.input_noise)), targets)
            (loss / group if group > 1 else loss).backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    while state.epoch < recipe.epochs and not state.stopped:
        # --- one pass over the training images -------------------------------------------------------
        forward.train()
        if job.freezing and job.freezing.apply(state.epoch):
            forward = wrapped(net, recipe, place)
        job.began, job.first, job.waited = time.monotonic(), state.batch, job.train.waited
        listen("epoch-start", job)
        batches, side = len(job.train), side_at(sizes, state.epoch, recipe.epochs)
        for batch in job.train.batches(state.epoch, start=state.batch) if state.batch < batches else ():
            group_start = state.batch - state.batch % recipe.accumulate
            group = min(recipe.accumulate, batches - group_start)
            closes = state.batch + 1 == group_start + group

            images = shrink(batch.images.to(place.device, memory_format=memory, non_blocking=True), side)
            targets = batch.targets.to(place.device, non_blocking=True)
            batch_of_step = (state.batch, images, targets, group, closes)
            loss = learn(*batch_of_step)
            if again:
                held.append((batch_of_step, loss))
            state.loss += loss
            state.batch += 1
            if not closes:
                continue

            set_rate(job.optimizer, rate_at(job, state.step))
            if recipe.clip:
                clip_gradients(net, recipe.clip)
            if job.penalty:
                job.penalty.before()
            if recipe.gradient_noise:
                noisy_gradients(net, recipe.gradient_noise, recipe.seed, state.step)
            if again:
                job.optimizer.step(Again(learn, held, job.optimizer, place, job.penalty))
                held.clear()
            else:
                job.optimizer.step()
            if job.penalty:
                job.penalty.after()
            job.optimizer.zero_grad(set_to_none=True)
            if job.average:
                job.average.after_step()
            state.step += 1
            listen("step", job)

            now = time.monotonic()
            if due(now):
                must_be_finite(job)
                measure(job)
                listen("tick", job)
            if place.world > 1 and state.step % MEETING:
                continue
            stopping = place.any(stop.number != 0)
            if stopping or place.any(now - saved >= recipe.checkpoint_every):
                must_be_finite(job)
                spend(job)
                listen("checkpoint", job)
                saved = time.monotonic()
                if stopping:
                    return False

        # --- test it, remember it, save it -----------------------------------------------------------
        must_be_finite(job)
        measure(job)
        if job.average and job.average.after_epoch(state.epoch + 1):
            estimate_norms(job.average, lambda: job.train.batches(state.epoch), place, memory)
        row: dict[str, Any] = {"epoch": state.epoch + 1, "lr": rate_at(job, state.step - 1)}
        row["train_loss"] = float(place.sum(state.loss)) / place.world / max(1, batches)
        if job.val is not None:
            scores = validate(job, stop)
            if scores is None:
                spend(job)
                listen("checkpoint", job)
                return False
            row |= scores
        state.history.append(row)
        if job.last_scores is not None and job.val is not None:
            main = job.last_scores.main
            state.scores.append(main)
            state.score_name = job.last_scores.main_name
            state.stale = 0 if main > state.best else state.stale + 1
            if main > state.best:
                state.best, state.best_epoch = main, state.epoch + 1
                listen("best", job)
            state.stopped = bool(recipe.patience) and state.stale >= recipe.patience
        state.epoch, state.batch = state.epoch + 1, 0
        state.loss.zero_()
        spend(job)
        listen("checkpoint", job)
        saved = time.monotonic()
        listen("epoch", job)
        if place.any(stop.number != 0) and state.epoch < recipe.epochs and not state.stopped:
            return False
    listen("end", job)
    return True


def loss_of(task: Task, outputs: Any, targets: Tensor) -> Tensor:
    """The task's loss in training; auxiliary classifiers add theirs by `outputs.loss`."""
    added = getattr(outputs, "loss", None)
    loss: Tensor = task.loss(outputs, targets) if added is None else added(task.loss, targets)
    return loss


def validate(job: Job, stop: Stop) -> dict[str, Any] | None:
    """Loss and scores of `job.tested` on the validation images as a row of metrics; None when stopped.

    Each process tests its own share of the images; `job.last_scores` are those of all of them.
    """
    assert job.val is not None
    place, net = job.place, job.tested
    scorer = job.task.scorer()
    memory = torch.channels_last if job.recipe.channels_last else torch.contiguous_format
    total, count = torch.zeros_like(job.state.loss), 0
    net.eval()
    stopped = False
    with torch.inference_mode():
        for batch in job.val.batches(0):
            images = batch.images.to(place.device, memory_format=memory, non_blocking=True)
            targets = batch.targets.to(place.device, non_blocking=True)
            with place.autocast():
                outputs = net(images)
                loss = job.task.loss(outputs, targets)
            scorer.update(outputs, targets, batch.index)
            total += loss * len(images)
            count += len(images)
            if stop.number and place.world == 1:
                stopped = True
                break
    if stopped:
        return None
    parts = place.gather((scorer.state(), float(total), count))
    if place.world > 1:
        scorer = job.task.scorer()
        for state, _, _ in parts:
            scorer.merge(state)
    job.last_scores = scorer.result()
    row = {"val_loss": sum(part[1] for part in parts) / max(1, sum(part[2] for part in parts))}
    figures = job.last_scores.summary()
    return row | {f"val_{column(name)}": value for name, value in figures.items() if value is not None}


def column(name: str) -> str:
    """The name of a figure as a column of metrics.csv: `top-1 error` becomes `top1_error`."""
    return name.replace("-", "").replace(" ", "_").lower()


def rate_at(job: Job, step: int) -> float:
    """The learning rate of a step, from 0; it follows from the recipe, the step and the scores so far."""
    return (job.recipe.lr or 0.0) * SCHEDULES.get(job.recipe.schedule)(step, job.plan, job.state.scores)


def must_be_finite(job: Job) -> None:
    """Raise when the loss of this epoch is no longer a number, before a checkpoint could keep it.

    Raises:
        Diverged: says at which epoch, and which rate to try.
    """
    if not math.isfinite(float(job.state.loss)):
        raise Diverged(
            f"the loss is no longer a number in epoch {job.state.epoch + 1}: the training diverged",
            hint=f"lower the rate (--lr {(job.recipe.lr or 0.0) / 3:.2g}) or clip gradients (--clip 1)",
        )


def measure(job: Job) -> None:
    """Note speed and waiting in this epoch so far; called where the loss has just been read."""
    seconds = max(time.monotonic() - job.began, 1e-9)
    job.images_per_second = (job.state.batch - job.first) * (job.recipe.batch or 1) / seconds
    job.data_wait = min(1.0, max(0.0, (job.train.waited - job.waited) / seconds))


def spend(job: Job) -> None:
    """Add the time since the last call to the run's seconds."""
    now = time.monotonic()
    job.state.seconds += now - job.counted
    job.counted = now
