"""Hyper-parameter search: many processes or machines work on one study, which is a folder.

The folder holds `study.json` (what is searched, on which data), `journal.jsonl` (Optuna's storage), one
ordinary run folder a trial in `trials`, a sign of life of each running trial in `leases`, and at the end the
best trial's `model.safetensors`.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from striate.core import settings
from striate.core.errors import StriateError
from striate.core.files import write_bytes
from striate.core.locks import Lease, Turn, alive
from striate.core.runs import SPLITS, Run
from striate.data.samples import Dataset
from striate.train import session
from striate.train.devices import mixed
from striate.train.fit import Interrupted, Job
from striate.train.progress import Progress
from striate.train.recipe import Recipe
from striate.train.samplers import PRUNERS, SAMPLERS, Asked, optuna
from striate.train.space import told
from striate.train.study import Study, TrialRecord

if TYPE_CHECKING:
    from optuna.study import Study as OptunaStudy
    from optuna.trial import FrozenTrial, Trial

TRIES = 3  # times that the same trial may lose its worker before it is given up
BROKEN = 3  # trials ended by errors, with none finished, after which a search stops
POLL = 1.0  # seconds between two looks at what the other workers do
EVERY = 15.0  # seconds between two lines about a running trial


class Pruned(Exception):
    """Raised by the watch of a trial that is ended early."""


class Lost(Exception):
    """Raised by the watch of a trial that others took for dead and do anew."""


def search(
    data: str | os.PathLike[str] | Dataset | None = None,
    recipe: Recipe | None = None,
    space: Mapping[str, Any] | None = None,
    *,
    trials: int,
    out: str | os.PathLike[str] | None = None,
    sampler: str | None = None,
    pruner: str | None = None,
    progress: bool = True,
    given: Collection[str] | None = None,
    **changes: Any,
) -> Study:
    """Train with settings drawn from a space until the study has `trials` trials; returns the study.

    data, recipe, changes, given: as in `train`; those of an existing study may be left out. space: setting
    name to its written form, such as {"lr": "log(1e-3,1)", "batch": "64,128", "net": ["lenet5", "resnet20"]},
    see `striate.train.space.parse`. trials: how many in all, those of other workers and of earlier calls
    included. out: the study's folder, by default runs/search-DATA-N; every process that is given the same one
    works on the same study. sampler, pruner: "tpe" and "median", or what the study was begun with.

    A trial is scored by the main validation score of its last epoch. What is proposed follows from the
    recipe's seed, the trial's number and the trials that are finished.

    Raises:
        StriateError: anything in data, settings, space or folder that the user can mend.
        Interrupted: SIGINT or SIGTERM; the running trial is left for the next worker.
    """
    study = join(
        data, recipe, space, trials=trials, out=out, sampler=sampler, pruner=pruner, given=given, **changes
    )
    with Progress(progress) as show:
        show.line(f"study: {study.folder}")
        for line in study.space.lines():
            show.line(f"  {line}")
        Worker(study, trials, sampler or study.sampler, pruner or study.pruner, show).work()
    return study


def join(
    data: str | os.PathLike[str] | Dataset | None, recipe: Recipe | None, space: Mapping[str, Any] | None,
    *, trials: int, out: str | os.PathLike[str] | None = None, sampler: str | None = None,
    pruner: str | None = None, given: Collection[str] | None = None, dry: bool = False, **changes: Any,
) -> Study:  # fmt: skip
    """The study that `search` works on, begun or joined; dry: with every check, but nothing is written.

    Raises:
        StriateError: as `search`.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise StriateError(
            "a search cannot run under torchrun", hint="start several processes with the same --out instead"
        )
    if trials < 1:
        raise StriateError(f"search is {trials}", allowed="at least 1 trial")
    optuna()
    base = (recipe or Recipe()).with_(**changes)
    named = set(given) if given is not None else None if recipe is not None else set()
    named = None if named is None else named | set(changes)
    study = Study.enter(data, base, named, space, out=out, sampler=sampler, pruner=pruner, dry=dry)
    if SAMPLERS.entry(sampler or study.sampler).capabilities.get("finite"):
        study.space.combinations()
    return study


@dataclass
class Worker:
    """One process that works on a study until it has `trials` trials."""

    study: Study
    trials: int
    sampler: str
    pruner: str
    show: Progress

    def __post_init__(self) -> None:
        self.states = optuna().trial.TrialState
        self.turn = Turn(self.study.folder / "turn")
        self.storage: OptunaStudy = self.study.storage()
        self.storage.pruner = PRUNERS.get(self.pruner)(self.study.epochs())
        self._told = False

    def work(self) -> None:
        """Do trials until there are enough and none runs any more; keep the best one's model.

        Raises:
            StriateError: the first trials all ended by errors.
            Interrupted: as `search` says.
        """
        while True:
            with self.turn:
                self.reap()
                asked = self.next()
                busy = self.running()
            if asked is not None:
                self.run(*asked)
                self.check()
            elif busy:
                self.wait(len(busy))
            else:
                break
        with self.turn:
            self.keep_best()

    # --- in turn ----------------------------------------------------------------------------------------

    def all(self) -> list[FrozenTrial]:
        """Every trial so far."""
        return self.storage.get_trials(deepcopy=False)

    def running(self) -> list[FrozenTrial]:
        """The trials that some worker is at."""
        return [trial for trial in self.all() if trial.state == self.states.RUNNING]

    def reap(self) -> None:
        """Mark the running trials whose worker is dead, and put them up again."""
        for trial in self.running():
            if not alive(self.study.lease(trial.number)):
                self.give_up(trial)

    def give_up(self, trial: FrozenTrial) -> None:
        """Mark a trial as lost and put its settings up again; after three crashes no more."""
        handed_on = bool(trial.user_attrs.get("handed_on"))
        attempt = int(trial.user_attrs.get("attempt", 1)) - handed_on
        again = attempt < TRIES and len(trial.params) == len(self.study.space.names)
        if again and not any(other.user_attrs.get("retry_of") == trial.number for other in self.all()):
            # First put up, then marked: a kill in between loses nothing, and the next worker marks it.
            self.storage.enqueue_trial(
                trial.params, user_attrs={"attempt": attempt + 1, "retry_of": trial.number}
            )
        self.storage.tell(trial.number, state=self.states.FAIL, skip_if_finished=True)
        with contextlib.suppress(OSError):
            self.study.lease(trial.number).unlink()
        fate = "its settings are tried again" if again else "given up"
        self.show.line(f"trial {trial.number}: its worker is gone; {fate}")

    def next(self) -> tuple[Trial, Lease] | None:
        """The next trial with its sign of life, or None when enough have been begun."""
        trials = self.all()
        waiting = [trial for trial in trials if trial.state == self.states.WAITING]
        if not waiting and sum(counts(trial, self.states) for trial in trials) >= self.trials:
            return None
        number = waiting[0].number if waiting else len(trials)
        seed = self.study.recipe.seed
        taken = [trial.params for trial in trials if counts(trial, self.states)]
        asked = Asked(mixed(seed, 4, number) % 2**32, seed, self.study.space, taken)
        sampler = SAMPLERS.get(self.sampler)(asked)
        if sampler is None and not waiting:
            if not self._told:
                self.show.line(f"the grid of {len(taken):,} combinations is done")
            self._told = True
            return None
        if sampler is not None:
            self.storage.sampler = sampler
        distributions = {d.name: self.study.distribution(d) for d in self.study.space.dimensions}
        trial = self.storage.ask(fixed_distributions=distributions)
        return trial, Lease(self.study.lease(trial.number)).begin()

    def keep_best(self) -> None:
        """Copy the best trial's model, and which images it was trained on, into the study's folder."""
        best = self.study.best()
        if best is not None:
            run = Run(best.folder)
            for file in (run.model, run.path / SPLITS):
                if file.exists():
                    write_bytes(self.study.folder / file.name, file.read_bytes())

    # --- alone ------------------------------------------------------------------------------------------

    def run(self, trial: Trial, lease: Lease) -> None:
        """Train one trial and tell the study how it ended."""
        values = self.study.space.decode(trial.params)
        words = "  ".join(f"{name} {told(value)}" for name, value in values.items())
        self.show.line(f"trial {trial.number}: {words}")
        folder = self.study.trial(trial.number)
        watch = Watch(trial, lease, self.show)
        try:
            try:
                self.take_over(trial, folder)
                recipe = self.study.space.recipe(self.study.recipe, values)
                run = session.train(
                    self.study.data(), recipe, out=folder, resume=True, progress=False, watch=watch
                )
                name, score = session.final_score(run)
                self.storage.set_user_attr("score_name", name)
            except Pruned:
                self.tell(trial, f"ended early after epoch {watch.told}", state=self.states.PRUNED)
            except Lost:
                self.show.line(f"trial {trial.number}: taken for dead, and done by another worker")
            except Interrupted as stopped:
                trial.set_user_attr("handed_on", True)
                self.hand_back(trial)
                raise Interrupted(stopped.signal, str(self.study.folder)) from stopped
            except (StriateError, MemoryError, torch.cuda.OutOfMemoryError) as error:
                # Told as ended early, with no score: tpe then counts these settings among the worst.
                reason = " ".join(str(error).split()) or "out of memory"
                trial.set_user_attr("error", reason)
                self.tell(trial, f"ended by an error: {reason}", state=self.states.PRUNED)
            except BaseException:
                self.hand_back(trial)
                raise
            else:
                self.tell(trial, f"{name} {100 * score:.2f} %", values=score)
        finally:
            lease.end()

    def take_over(self, trial: Trial, folder: Path) -> None:
        """Go on with the folder of the lost trial that this one does again, if nobody else is at it."""
        lost = trial.user_attrs.get("retry_of")
        before = self.study.trial(int(lost)) if lost is not None else None
        if before is None or not before.is_dir() or folder.exists():
            return
        with contextlib.suppress(StriateError, OSError, LookupError), Run(before).alone():
            begun, own = Run(before).settings()["asked"], settings.to_dict(self.study.recipe)
            if all(begun[name] == own[name] for name in ("device", "mode")):
                before.rename(folder)

    def tell(self, trial: Trial, words: str, *, values: float | None = None, state: Any = None) -> None:
        """Tell the study how a trial ended, and the reader."""
        self.storage.tell(trial, values=values, state=state, skip_if_finished=True)
        best = self.study.best(self.storage)
        good = "" if best is None else f"  best {100 * (best.score or 0.0):.2f} % (trial {best.number})"
        self.show.line(f"trial {trial.number}: {words}{good}")

    def hand_back(self, trial: Trial) -> None:
        """Leave the trial to the next worker."""
        with contextlib.suppress(Exception), self.turn:
            frozen = next(each for each in self.all() if each.number == trial.number)
            if frozen.state == self.states.RUNNING:
                self.give_up(frozen)

    def check(self) -> None:
        """Stop when nothing but errors came of the first trials.

        Raises:
            StriateError: tells the last of them.
        """
        trials = self.all()
        errors = [t.user_attrs["error"] for t in trials if "error" in t.user_attrs]
        if len(errors) >= BROKEN and not any(t.state == self.states.COMPLETE for t in trials):
            raise StriateError(f"the first {len(errors)} trials all ended by errors, the last: {errors[-1]}")

    def wait(self, busy: int) -> None:
        """Wait for trials of other workers, to take them over should these die."""
        if not self._told:
            self.show.line(f"waiting for {busy} trial{'s' * (busy > 1)} of other workers")
        self._told = True
        time.sleep(POLL)


def counts(trial: FrozenTrial, states: Any) -> bool:
    """Whether a trial is one of those asked for: lost ones that were put up again are not."""
    if trial.state == states.FAIL:
        return int(trial.user_attrs.get("attempt", 1)) >= TRIES and not trial.user_attrs.get("handed_on")
    return bool(trial.state != states.WAITING)


@dataclass
class Watch:
    """Listens to the loop of a trial: reports its scores, and ends it when it is behind."""

    trial: Trial
    lease: Lease
    show: Progress
    told: int = 0  # epochs reported
    last: float = field(default_factory=time.monotonic)  # when a line was last written

    def __call__(self, event: str, job: Job) -> None:
        """Act on the end of an epoch, which is saved by then.

        Raises:
            Pruned: the trial is behind the others.
            Lost: others took it for dead.
        """
        if event != "epoch":
            return
        if self.lease.lost:
            raise Lost
        state = job.state
        for epoch in range(self.told, len(state.scores)):
            self.trial.report(state.scores[epoch], epoch + 1)
        self.told = len(state.scores)
        if state.epoch < job.recipe.epochs and not state.stopped and self.trial.should_prune():
            raise Pruned
        now = time.monotonic()
        if now - self.last >= EVERY:
            self.last = now
            self.show.line(
                f"trial {self.trial.number}: epoch {state.epoch}/{job.recipe.epochs}"
                f"  {state.score_name} {100 * state.scores[-1]:.2f} %"
            )


__all__ = ["Study", "TrialRecord", "Worker", "search"]
