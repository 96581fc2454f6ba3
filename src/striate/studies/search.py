"""A search from data to report: `striate train DATA --search N`, and the report of a study made anew."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from striate import __version__
from striate.core.locks import only_one
from striate.core.results import Result
from striate.core.runs import REPORT, Run, environment
from striate.report import study as page
from striate.report.contents import Fact
from striate.report.figures import number, percent
from striate.studies import collect, job
from striate.train import session
from striate.train.recipe import Recipe
from striate.train.samplers import PRUNERS, SAMPLERS
from striate.train.search import join, search
from striate.train.space import Dimension, told
from striate.train.study import FEWEST, LEASES, TRIALS, SearchResult, Study, TrialRecord

IMPORTANCE = (
    "How much of the scores' variance over the whole space each setting explains by itself and with others "
    "(functional analysis of variance by random forests over the finished trials: rough with a few dozen)."
)


@dataclass(frozen=True)
class SearchDone(Result):
    """A finished search: what it found, the best trial's test, and the study's report."""

    found: SearchResult
    tested: job.JobResult | None
    report: Path | None

    def lines(self) -> list[str]:
        """The best trial, its test, and where everything is."""
        told = self.found.lines()
        if self.tested is not None and self.tested.main is not None:
            told[-1:-1] = ["the best trial's model: " + self.tested.lines()[0]]
        return [*told, f"report: {self.report}"] if self.report else told


def search_verb(
    data: str | None, recipe: Recipe, *, trials: int, space: Mapping[str, Any] | None = None,
    sampler: str | None = None, pruner: str | None = None, out: str | None = None, dry_run: bool = False,
    report: bool = True, given: Collection[str] = frozenset(),
) -> Any:  # fmt: skip
    """What `striate train --search N` does: the trials, then the best one's test, and the report.

    Raises:
        StriateError: anything in the arguments that the user can mend.
    """
    how: dict[str, Any] = {"trials": trials, "out": out, "sampler": sampler, "pruner": pruner, "given": given}
    if dry_run:
        study = join(data, recipe, space, dry=True, **how)
        first = study.space.recipe(study.recipe, {d.name: d.ends()[0] for d in study.space.dimensions})
        told = session.rehearse(study.data(), first, out=study.folder / TRIALS / "rehearsal")
        lines = [f"study: {study.folder}", *told[1:]]
        return job.Rehearsal((*lines, *(f"search: {line}" for line in study.space.lines())))
    study = search(data, recipe, space, **how)
    return finish(study, report=report)


def finish(study: Study, *, report: bool = True) -> SearchDone:
    """Test the best trial's model once, and write the reports; of several workers one does it."""
    tested: job.JobResult | None = None
    written: Path | None = None
    with only_one(study.folder / LEASES / "report") as mine:
        best = study.best()
        if mine and best is not None:
            run = Run(best.folder)
            tested = job.finish_run(run, study.data(), report=report and not run.report.exists())
        if mine and report:
            written = make_report(study, tested)
    return SearchDone(study.result(), tested, written)


def make_report(study: Study | str | os.PathLike[str], tested: job.JobResult | None = None) -> Path:
    """Write the report of a study anew from its folder, also while trials are still running.

    Raises:
        StriateError: no study in the folder, or Optuna is not installed.
    """
    study = study if isinstance(study, Study) else Study.open(study)
    found = study.result()
    if tested is None and found.best is not None and (Path(found.best.folder) / job.EVALUATION).exists():
        tested = job.finish_run(Run(found.best.folder), report=False)
    return page.write(_words(study, found, tested), study.folder / REPORT)


def _words(study: Study, found: SearchResult, tested: job.JobResult | None) -> page.StudyData:
    dimensions = study.space.dimensions
    done = [t for t in found.trials if t.state == "finished"]
    if found.importance:
        note = IMPORTANCE
    elif len(dimensions) < 2:
        note = "Only one setting was searched."
    else:
        note = f"To tell how much each setting matters takes at least {FEWEST} finished trials that differ."
    best = found.best
    name = collect.FULL_NAMES.get(found.score_name, found.score_name)
    return page.StudyData(
        title=f"Search of {_count(len(dimensions), 'setting')} on {found.data}",
        subtitle=_subtitle(study, len(found.trials)),
        score_name=name[:1].upper() + name[1:],
        axes=tuple(_axis(d) for d in dimensions),
        trials=tuple(_row(study, t, found.trials) for t in found.trials),
        created=datetime.fromtimestamp(time.time()).strftime("%Y-%m-%d %H:%M"),
        version=__version__,
        facts=_facts(found, tested),
        best_settings=tuple(Fact(k, _shown(v)) for k, v in best.settings.items()) if best else (),
        notices=() if done else ("No trial has finished yet.",),
        importance=found.importance,
        importance_note=note,
        commands=_commands(study, best),
        environment=tuple((k, str(v)) for k, v in environment()["packages"].items()),
    )


def _subtitle(study: Study, count: int) -> str:
    how = SAMPLERS.entry(study.sampler).summary.split(" (")[0].rstrip(".")
    pruner = PRUNERS.entry(study.pruner).name
    early = "every trial to its end" if pruner == "none" else f"{pruner} pruning"
    return f"{_count(count, 'trial')}; {how[:1].lower() + how[1:]}; {early}; seed {study.recipe.seed}."


def _facts(found: SearchResult, tested: job.JobResult | None) -> tuple[Fact, ...]:
    counted = {name: sum(t.state == name for t in found.trials) for name in ("finished", "ended early")}
    others = len(found.trials) - sum(counted.values())
    parts = [f"{n} {name}" for name, n in counted.items() if n] + ([f"{others} other"] if others else [])
    facts = [Fact("Trials", number(len(found.trials)), ", ".join(parts))]
    seconds = sum(t.seconds or 0.0 for t in found.trials)
    if seconds:
        facts.append(Fact("Time", collect.clock(seconds), "of all trials together"))
    if tested is not None and tested.main is not None:
        interval = tested.interval
        span = f"95\u00a0% interval {100 * interval[0]:.1f}–{percent(interval[1])}, " if interval else ""
        facts.append(Fact("Test of the best", percent(tested.main, 2), f"{span}{tested.n:,} images"))
    return tuple(facts)


def _axis(dimension: Dimension) -> page.Axis:
    if dimension.kind == "list":
        return page.Axis(dimension.name, "list", tuple(_shown(v) for v in dimension.values))
    return page.Axis(dimension.name, dimension.kind, (), float(dimension.low), float(dimension.high))


def _row(study: Study, trial: TrialRecord, trials: Collection[TrialRecord]) -> page.TrialRow:
    values = tuple(
        _shown(trial.settings[d.name]) if d.kind == "list" else float(trial.settings[d.name])
        for d in study.space.dimensions
        if d.name in trial.settings
    )
    note = trial.error
    again = next((t.number for t in trials if t.retry_of == trial.number), None)
    if again is not None:
        note = f"its worker died; done again as trial {again}"
    elif trial.retry_of is not None:
        note = f"in the place of trial {trial.retry_of}"
    folder = Path(trial.folder)
    link = ""
    if folder.is_dir():
        link = folder.relative_to(study.folder).as_posix() + "/"
        link += REPORT if (folder / REPORT).exists() else ""
    return page.TrialRow(
        trial.number,
        trial.state,
        values,
        trial.score,
        max(trial.scores, default=0),
        trial.seconds,
        link,
        note,
    )


def _commands(study: Study, best: TrialRecord | None) -> tuple[tuple[str, str], ...]:
    data, folder = str(study.written["data"]["given"]), str(study.folder)
    more = ["striate", "train", data, "--search", "N", "--out", folder]
    found = [("More trials, N in all; on other machines too, at the same time:", shlex.join(more))]
    if best is not None:
        words = ["striate", "train", data]
        for each in collect.settings({"recipe": study.written["asked"]}):
            if each.changed and each.name not in (*collect.LEFT_OUT, "net_options"):
                words += [f"--{each.name}", each.value]
        options = {f"net_options.{k}": v for k, v in study.recipe.net_options.items()}
        for name, value in {**options, **best.settings}.items():
            words += [f"--{name}", told(value)]
        found.append(("Train again with the best settings:", shlex.join(words)))
    found.append(("Test the best trial's model:", shlex.join(["striate", "evaluate", folder, data])))
    found.append(("Write this report anew:", shlex.join(["striate", "report", folder])))
    return tuple(found)


def _shown(value: Any) -> str:
    return number(value) if isinstance(value, float) and not float(value).is_integer() else told(value)


def _count(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' * (count != 1)}"
