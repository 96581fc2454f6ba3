"""The learning-rate range test: the loss while the rate rises by equal factors, and a rate to train with."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from striate.core import machine
from striate.core.errors import StriateError
from striate.core.files import write_bytes
from striate.core.results import Result
from striate.core.runs import next_folder
from striate.data.samples import Dataset
from striate.train.devices import place, threads
from striate.train.fit import Job, fit, rate_at
from striate.train.optimize import OPTIMIZERS
from striate.train.recipe import Recipe
from striate.train.schedules import Plan
from striate.train.session import begin, open_set
from striate.train.setup import prepare

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STEPS = 120
# The lowest and the highest rate, as multiples of the optimiser's usual one.
LOW, HIGH = 1e-4, 1e2
# Weight of the past in the smoothed loss; how many times its least value ends the test.
MEMORY, DIVERGED = 0.9, 4.0
# The suggestion, as a part of the rate at which the smoothed loss is least.
MARGIN = 0.1
NAME = "range-test"


@dataclass(frozen=True)
class RangeTest(Result):
    """Rates that were tried, one a step, with the training loss of that step, also smoothed.

    `lowest` is the rate at which the smoothed loss is least, `steepest` the one at which it falls fastest
    over the logarithm of the rate, `diverged` the one that ended the test (None: it never did);
    `suggested` is a tenth of `lowest`: a highest rate for schedules that fall from it.
    """

    ROWS = ("rates", "losses", "smoothed")  # type: tuple[str, ...]

    net: str
    optimizer: str
    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    lowest: float
    steepest: float
    suggested: float
    diverged: float | None
    folder: str | None = None  # where it was written

    @property
    def fell(self) -> bool:
        """Whether the smoothed loss ever lost a tenth of what it began with."""
        return min(self.smoothed) < 0.9 * self.smoothed[0]

    def lines(self) -> list[str]:
        """The suggestion and what it rests on."""
        end = (
            f"diverges at {self.diverged:.2g}" if self.diverged else "does not diverge: the rates end too low"
        )
        return [
            f"suggested: --lr {self.suggested:.2g}, a tenth of {self.lowest:.2g}, where the loss is least",
            f"{self.optimizer} on {self.net}: loss falls fastest at {self.steepest:.2g}; {end}"
            f" ({len(self.rates)} steps)",
            *(["the loss hardly fell: take the suggestion with care"] if not self.fell else []),
            *([f"written: {self.folder}"] if self.folder else []),
        ]

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write to `path` by its suffix: also a .png or .svg of the plot; else as every result."""
        target = Path(path)
        if target.suffix not in (".png", ".svg"):
            return super().save(target)
        from matplotlib import rc_context

        buffer, kind = io.BytesIO(), target.suffix[1:]
        with rc_context({"svg.hashsalt": "striate"}):
            metadata = {"Date": None} if kind == "svg" else {"Software": None}
            self.figure().savefig(buffer, format=kind, dpi=150, metadata=metadata)
        return write_bytes(target, buffer.getvalue())

    def figure(self) -> Figure:
        """The losses over the rates as a matplotlib figure; no window opens."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        made = Figure(figsize=(7, 4), layout="constrained", facecolor="white")
        FigureCanvasAgg(made)
        axes = made.add_subplot(
            xscale="log",
            xlabel="learning rate",
            ylabel="training loss",
            title=f"{self.net}, {self.optimizer}",
        )
        axes.plot(self.rates, self.losses, color="#c9c6bf", linewidth=1, label="each step")
        axes.plot(self.rates, self.smoothed, color="#3f6fe0", linewidth=2, label="smoothed")
        axes.axvline(self.suggested, color="#2f9e6e", label=f"suggested {self.suggested:.2g}")
        axes.axvline(self.steepest, color="#b08a12", linestyle=":", label=f"steepest {self.steepest:.2g}")
        least, first = min(self.smoothed), self.smoothed[0]
        span = max(first - least, 0.05 * abs(first), 1e-6)
        axes.set_ylim(least - 0.1 * span, first + span)
        axes.grid(color="#e6e4df")
        axes.legend()
        return made


class Enough(Exception):
    """The test has seen what it needs."""


class Watch:
    """Reads the loss of each step of the loop, and ends it when the loss has grown too far."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.rates: list[float] = []
        self.losses: list[float] = []
        self.smoothed: list[float] = []
        self.diverged: float | None = None
        self._mean = 0.0
        self._before = (0.0, 0)

    def __call__(self, event: str, job: Job) -> None:
        """Listen to the loop."""
        if event == "epoch-start":
            self._before = (0.0, 0)
        elif event == "step":
            total, batches = float(job.state.loss), job.state.batch
            loss = (total - self._before[0]) / (batches - self._before[1])
            self._before = (total, batches)
            self.take(rate_at(job, job.state.step - 1), loss)

    def take(self, rate: float, loss: float) -> None:
        """Note the loss of one step at its rate.

        Raises:
            Enough: it is far above the least so far, no number, or the last one asked for.
        """
        if not math.isfinite(loss):
            self.diverged = rate
            raise Enough
        self.rates.append(rate)
        self.losses.append(loss)
        self._mean = MEMORY * self._mean + (1 - MEMORY) * loss
        # Without the divisor the first values would be drawn to 0.
        self.smoothed.append(self._mean / (1 - MEMORY ** len(self.losses)))
        if self.smoothed[-1] > DIVERGED * min(self.smoothed):
            self.diverged = rate
            raise Enough
        if len(self.losses) >= self.steps:
            raise Enough


def conclude(watch: Watch, recipe: Recipe) -> RangeTest:
    """What the losses say.

    Raises:
        StriateError: too few steps before the loss was no number.
    """
    rates, smoothed = watch.rates, watch.smoothed
    if len(rates) < 5:
        raise StriateError(
            f"the loss is no number from the rate {watch.diverged or 0:.2g} on",
            hint="check the data and the net",
        )
    least = min(range(len(rates)), key=smoothed.__getitem__)
    slopes = [
        (smoothed[k + 1] - smoothed[k - 1]) / math.log(rates[k + 1] / rates[k - 1])
        for k in range(1, max(2, least))
    ]
    steepest = 1 + min(range(len(slopes)), key=slopes.__getitem__)
    return RangeTest(
        recipe.net, recipe.optimizer, tuple(rates), tuple(watch.losses), tuple(smoothed), rates[least],
        rates[steepest], float(f"{MARGIN * rates[least]:.2g}"), watch.diverged,
    )  # fmt: skip


def run_test(job: Job, *, steps: int = STEPS) -> RangeTest:
    """Train a job's net for at most `steps` steps with rising rates; the job is used up.

    The steps are those of `fit`, with everything that the recipe asks for but averages, validation and
    frozen stages' thawing.

    Raises:
        StriateError: the optimiser finds its rate itself.
    """
    capabilities = OPTIMIZERS.entry(job.recipe.optimizer).capabilities
    if capabilities.get("fixed_rate"):
        raise StriateError(
            f"optimizer {job.recipe.optimizer!r} searches its rate itself", hint="train without a range test"
        )
    usual = float(capabilities["lr"])
    a_pass = max(1, job.plan.steps_per_epoch)
    job.recipe = job.recipe.with_(
        schedule=NAME, lr=HIGH * usual, floor=LOW / HIGH, epochs=-(-steps // a_pass), patience=0, warmup=None
    )
    job.plan = dataclasses.replace(Plan.of(job.recipe, a_pass), steps=steps)
    job.val, job.average = None, None
    if job.freezing:
        job.freezing.epochs = dict.fromkeys(job.freezing.at(0), math.inf)
    watch = Watch(steps)
    with contextlib.suppress(Enough):
        fit(job, watch)
    return conclude(watch, job.recipe)


def range_test(
    data: str | os.PathLike[str] | Dataset,
    recipe: Recipe | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    steps: int = STEPS,
    **changes: Any,
) -> RangeTest:
    """Try rates on a data set and net, and write what was found as .json, .csv and .svg.

    out: the folder for them, by default runs/range-test-NET-N. Nothing is trained that could be used.

    Raises:
        StriateError: as `train`; several processes.
    """
    machine.keep_heap()
    wanted = (recipe or Recipe()).with_(**changes)
    with place(wanted.device, wanted.amp) as here, threads(wanted.threads) as computing:
        if here.world > 1:
            raise StriateError("a range test takes one process", hint="start it without torchrun")
        start = begin(data, wanted, None, out, False, trains=False)
        setup = prepare(open_set(data, start), wanted, here, computing)
        try:
            found = run_test(setup.job, steps=steps)
        finally:
            setup.close()
    folder = Path(out) if out is not None else next_folder(Path("runs"), f"{NAME}-{found.net}")
    found = dataclasses.replace(found, folder=str(folder))
    for suffix in (".json", ".csv", ".svg"):
        found.save(folder / f"{NAME}{suffix}")
    return found
