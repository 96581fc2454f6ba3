"""What a run writes while it trains: checkpoints, metrics, events, models; and how it takes them up again."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Mapping
from typing import Any

import torch

from striate.core import settings
from striate.core.errors import BadModelFile, StriateError
from striate.core.runs import SETTINGS, SPLITS, Run
from striate.model import Model
from striate.train.checkpoint import (
    BEST,
    LAST,
    clean,
    optimizer_state,
    read_checkpoint,
    restore_net,
    restore_optimizer,
    write_checkpoint,
)
from striate.train.fit import Job, State, rate_at
from striate.train.members import snapshot_path, write_arrays
from striate.train.progress import Progress, Tick, clock
from striate.train.recipe import FREE
from striate.train.setup import Setup
from striate.train.starting import Started

# Settings that say how a run computes, not what: they are no part of the model's card.
MACHINE = (*FREE, "threads", "device", "mode")


class Writer:
    """The listener of a run: all of its files are written here, by the first process only."""

    def __init__(self, run: Run, setup: Setup, progress: Progress) -> None:
        self.run, self.setup, self.progress = run, setup, progress
        self.first = setup.job.place.first
        self._bad: set[str] = set()

    # --- taking up --------------------------------------------------------------------------------------

    def open(self, resumed: bool, data: Mapping[str, Any]) -> None:
        """Make or open the folder, with settings and splits in it; remove what a kill left half-written.

        Raises:
            StriateError: it already holds a run, or cannot be written; what a new run wrote is gone again.
        """
        if resumed or (self.run.path / SETTINGS).exists():
            self._open(resumed, data)
            return
        try:
            self._open(resumed, data)
        except StriateError:
            self.run.discard()
            raise

    def _open(self, resumed: bool, data: Mapping[str, Any]) -> None:
        setup = self.setup
        values = {
            "data": dict(data),
            "recipe": settings.to_dict(setup.recipe),
            "asked": settings.to_dict(setup.asked),
            "preprocess": setup.preprocess.to_dict(),
        }
        if resumed:
            for folder in (self.run.path, self.run.checkpoints):
                clean(folder)
            if values != self.run.settings():
                self._check_length()
                self.run.update_settings(values)
        else:
            clean(self.run.path)
            write_arrays(self.run.path, setup.preprocess)
            Run.create(self.run.path, values)
        if not resumed or not (self.run.path / SPLITS).exists():
            setup.dataset.write_splits(self.run.path / SPLITS)
        job = setup.job
        self.run.event(
            "resume" if resumed else "start", threads=torch.get_num_threads(), processes=job.place.world
        )
        self.progress.line(f"run: {self.run.path}")
        self.progress.line(setup.headline())
        self.report_bad(setup.dataset.bad)

    def restore(self) -> bool:
        """Put the last checkpoint into the job; False when there is none.

        Raises:
            StriateError: the checkpoint is damaged, or does not fit the settings.
        """
        path, job = self.run.checkpoints / LAST, self.setup.job
        if not path.exists():
            return False
        saved = read_checkpoint(path)
        try:
            state = State(**saved["state"])
            restore_net(job.net, saved["net"])
            restore_optimizer(job.optimizer, saved["optimizer"])
            if job.average:
                restore_net(job.average.average, saved["average"])
                job.average.updates = int(saved["updates"])
                job.average.last = int(saved.get("averaged", 0))
        except (KeyError, TypeError, AttributeError) as error:
            raise BadModelFile(
                f"{str(path)!r} does not hold the state of this run ({error})",
                hint="start a new run with --out",
            ) from error
        job.state = state
        self._extend(state)
        if self.first:
            self.run.write_metrics(state.history)
        done = f"epoch {state.epoch}" + (f" and {state.batch} batches" if state.batch else "")
        self.progress.line(f"continuing after {done}")
        return True

    def _extend(self, state: State) -> None:
        """Fit the state to the settings, where a run was given more epochs or patience.

        Raises:
            StriateError: fewer epochs than are done.
        """
        recipe = self.setup.recipe
        self._check_epochs(state.epoch)
        if state.stopped and not (recipe.patience and state.stale >= recipe.patience):
            state.stopped = False

    def _check_length(self) -> None:
        """As `_check_epochs`, before new settings take the place of the old ones."""
        path = self.run.checkpoints / LAST
        if path.exists():
            with contextlib.suppress(KeyError, TypeError):  # damage is told where the state is restored
                self._check_epochs(int(read_checkpoint(path)["state"]["epoch"]))

    def _check_epochs(self, done: int) -> None:
        if done > self.setup.recipe.epochs:
            raise StriateError(
                f"{str(self.run.path)!r} has done {done} epochs, and epochs is {self.setup.recipe.epochs}",
                hint=f"give --epochs {done} or more",
            )

    # --- listening --------------------------------------------------------------------------------------

    def listen(self, event: str, job: Job) -> None:
        """Do what an event of `fit` asks for."""
        if event == "tick":
            self.progress.tick(self.tick(job))
        elif event == "step" and self.first and self.setup.recipe.snapshots:
            self.snapshot(job)
        elif event == "epoch-start":
            self.keep(job)
        elif event == "checkpoint":
            self.checkpoint(job)
        elif event == "best" and self.first:
            self.model(job).save(self.run.checkpoints / BEST)
        elif event == "epoch":
            self.epoch(job)
        elif event == "end" and self.first:
            self.end(job)

    def snapshot(self, job: Job) -> None:
        """Keep the model where a cycle of the rate ends."""
        path = snapshot_path(self.run.path, job.plan, job.state.step)
        if path is not None:
            self.model(job).save(path)

    def checkpoint(self, job: Job) -> None:
        """Write everything that resuming needs, to one file."""
        state = {f.name: getattr(job.state, f.name) for f in dataclasses.fields(job.state)}
        state["loss"] = job.place.sum(job.state.loss) / job.place.world
        if not self.first:
            return
        tree: dict[str, Any] = {
            "state": state,
            "net": job.net.state_dict(),
            "optimizer": optimizer_state(job.optimizer),
        }
        if job.average:
            tree |= {
                "average": job.average.average.state_dict(),
                "updates": job.average.updates,
                "averaged": job.average.last,
            }
        # Before the checkpoint: a run that is killed between the two writes it again.
        self.keep(job)
        write_checkpoint(self.run.checkpoints / LAST, tree)

    def keep(self, job: Job) -> None:
        """Keep the model as it stands between two epochs, every `keep_every` epochs and before the first."""
        every, epoch = job.recipe.keep_every, job.state.epoch
        path = self.run.checkpoints / f"epoch-{epoch:04d}.safetensors"
        if self.first and every and job.state.batch == 0 and epoch % every == 0 and not path.exists():
            self.model(job).save(path)

    def epoch(self, job: Job) -> None:
        """Write the metrics and tell of the epoch; a meeting point of all processes."""
        # Each process reads images of its own, and knows of those only.
        bad = job.place.gather([*job.train.bad, *(job.val.bad if job.val else [])])
        if not self.first:
            return
        state, row = job.state, job.state.history[-1]
        self.run.write_metrics(state.history)
        self.report_bad([image for part in bad for image in part])
        self.run.event("epoch", **row, seconds=round(state.seconds, 3), **speed(job))
        scores = job.last_scores
        tested = "" if scores is None else f"  val {scores.main_name} {100 * scores.main:.2f}%"
        best = "  best" if state.best_epoch == state.epoch else ""
        self.progress.line(
            f"epoch {state.epoch}/{job.recipe.epochs}  train loss {row['train_loss']:.4f}{tested}{best}"
            f"  {clock(state.seconds)}"
        )
        if state.stopped:
            self.progress.line(f"stopped: no better score for {state.stale} epochs (patience)")

    def end(self, job: Job) -> None:
        """Write the metrics and the finished model."""
        self.run.write_metrics(job.state.history)
        self.model(job).save(self.run.model)
        scores = job.state.scores
        main = {"score_name": job.state.score_name, "score": scores[-1]} if scores else {}
        self.run.event(
            "end", seconds=round(job.state.seconds, 3), epochs=job.state.epoch, bad=len(self._bad), **main
        )
        summary = f"done: {self.run.model}  {clock(job.state.seconds)}"
        if self._bad:
            summary += f"  {len(self._bad)} unreadable image{'s' * (len(self._bad) > 1)} left out"
        self.progress.line(summary)

    def model(self, job: Job) -> Model:
        """The model as it stands; nothing in its card depends on time or machine."""
        recipe = {k: v for k, v in settings.to_dict(self.setup.recipe).items() if k not in MACHINE}
        card: dict[str, Any] = {
            "data": {"name": self.setup.dataset.name, "digest": self.setup.dataset.digest()},
            "recipe": recipe,
            "epoch": len(job.state.history),
        }
        if job.state.history:
            card["scores"] = job.state.history[-1]
        if math.isfinite(job.state.best):
            card["best"] = {"epoch": job.state.best_epoch, "score": job.state.best}
        return Model(job.tested, job.task, self.setup.preprocess, card)

    def grown(self, layers: tuple[str, ...]) -> None:
        """Tell which layers come from another net."""
        source = self.setup.asked.grow_from
        self.progress.line(f"started from {source}: {', '.join(layers)}")
        if self.first:
            self.run.event("grown", source=source, layers=list(layers))

    def started(self, found: Started) -> None:
        """Tell which trained weights the net starts from, and which layers they do not give."""
        self.progress.line(found.line())
        if self.first:
            self.run.event("started", source=found.source, new=list(found.new), sha256=found.sha256)

    # --- telling ----------------------------------------------------------------------------------------

    def note(self, warnings: list[str]) -> None:
        """Show warnings and log them."""
        for warning in warnings:
            self.progress.line(f"warning: {warning}")
            if self.first:
                self.run.event("warning", text=warning)

    def report_bad(self, bad: list[tuple[str, str]]) -> None:
        """Name each unreadable image once."""
        for name, reason in bad:
            if name not in self._bad:
                self._bad.add(name)
                self.run.event("bad-image", name=name, reason=reason)
                self.progress.line(
                    f"unreadable image left out: {reason if name in reason else f'{name}: {reason}'}"
                )

    def tick(self, job: Job) -> Tick:
        """Where the run stands."""
        state, batches = job.state, len(job.train)
        done = (state.epoch + state.batch / max(1, batches)) / job.recipe.epochs
        spent = state.seconds + max(0.0, time.monotonic() - job.counted)
        left = spent / max(done, 1e-9) * (1 - done)
        return Tick(
            state.epoch + 1, job.recipe.epochs, state.batch, batches, job.mean_loss(),
            rate_at(job, state.step - 1), job.images_per_second, job.data_wait, left,
        )  # fmt: skip


def speed(job: Job) -> dict[str, float]:
    """Training images a second, and the part of the time spent waiting for data, in the last epoch."""
    return {"images_per_second": round(job.images_per_second, 1), "data_wait": round(job.data_wait, 4)}
