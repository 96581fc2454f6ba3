"""The main job: train, test, look inside, report; and the report of a finished run, made anew."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from striate import __version__
from striate.core import settings
from striate.core.errors import StriateError
from striate.core.files import write_text
from striate.core.results import Result, plain
from striate.core.runs import Run
from striate.data.samples import Dataset
from striate.evaluate.evaluate import evaluate
from striate.model import Model, load
from striate.nets.weights import sha256
from striate.report import html
from striate.report.contents import Fact, ReportData
from striate.studies import collect, pictures
from striate.train import session
from striate.train.devices import find_device
from striate.train.recipe import Recipe
from striate.train.space import is_study

EVALUATION = "evaluation.json"
SHOWN = 10


@dataclass(frozen=True)
class JobResult(Result):
    """A finished run: its folder, its report, the scores (0 to 1) with the split they were measured on."""

    run: Path
    report: Path | None
    split: str
    n: int
    main_name: str
    main: float | None
    interval: tuple[float, float] | None
    scores: dict[str, float | None]
    seconds: float | None
    notes: tuple[str, ...] = ()
    bad: tuple[tuple[str, str], ...] = ()  # (name, reason) of the images of every split that were left out

    def lines(self) -> list[str]:
        """The verdict, and where everything is."""
        told = []
        if self.main is not None:
            text = f"{self.main_name} {100 * self.main:.2f} % on {self.n:,} {self.split} images"
            if self.interval:
                text += f" (95% interval {100 * self.interval[0]:.2f} to {100 * self.interval[1]:.2f})"
            told.append(text)
        told += self.notes
        if self.bad:
            more = len(self.bad) - SHOWN
            told.append(f"left out: {len(self.bad):,} unreadable image{'s' * (len(self.bad) > 1)}")
            for name, reason in self.bad[:SHOWN]:
                told.append(f"  {reason}" if name in reason else f"  {name}: {reason}")
            told += [f"  and {more:,} more, named in the report"] if more > 0 else []
        if self.seconds is not None:
            told.append(f"trained in {collect.clock(self.seconds)}")
        told.append(f"run: {self.run}")
        return [*told, f"report: {self.report}"] if self.report else told


@dataclass(frozen=True)
class Rehearsal(Result):
    """What the checks before a run found: what was settled, and warnings, one line each."""

    found: tuple[str, ...]

    def lines(self) -> list[str]:
        """The findings, and that nothing was trained."""
        return [*self.found, "dry run: nothing was trained or written"]


def train_and_report(
    data: str | os.PathLike[str] | Dataset | None = None,
    recipe: Recipe | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    resume: bool | str | os.PathLike[str] = False,
    progress: bool = True,
    report: bool = True,
    given: Collection[str] | None = None,
) -> JobResult:
    """Train as `train` does, test on the test split (or the validation split), and write the report.

    Raises:
        StriateError: anything in data, settings or folder that the user can mend.
    """
    run = session.train(data, recipe, out=out, resume=resume, progress=progress, given=given)
    if int(os.environ.get("RANK", "0")) != 0:
        # Of several processes only the first tests and writes.
        return _result(run, None, None)
    return finish_run(run, data, report=report)


def finish_run(run: Run, data: Any = None, *, report: bool = True) -> JobResult:
    """Test a finished run's model, unless that is done, and write its report; `data` as in `train`."""
    job = _Job.open(run, data)
    tested = job.tested()
    path = job.report() if report else None
    return _result(run, tested, path)


def split_to_test(data: Dataset) -> str | None:
    """The split that a run is tested on: the test images, else the validation images; None without either."""
    return next((name for name in ("test", "val") if len(data.splits.get(name, ()))), None)


def train_verb(
    data: str | None, recipe: Recipe, *, out: str | None = None, resume: bool | str = False, repeats: int = 1,
    dry_run: bool = False, range_test: bool = False, report: bool = True,
    given: Collection[str] = frozenset(), search: int = 0, ablate: Any = None, **searching: Any,
) -> Any:  # fmt: skip
    """What `striate train` does: the whole job, several of it with `repeats`, or its checks or rates only.

    search, searching: so many trials of a search, with its own arguments. ablate: parts of the recipe that
    are left out in turn.
    """
    if ablate is not None:
        from striate.studies.ablation import ablation_verb

        if search or range_test or any(value is not None for value in searching.values()):
            raise StriateError("ablate takes no search and no range test", hint="leave them out")
        return ablation_verb(
            data, recipe, ablate, out=out, resume=resume, repeats=repeats, dry_run=dry_run, report=report
        )
    if search or any(value is not None for value in searching.values()):
        from striate.studies.search import search_verb

        if repeats != 1 or range_test or resume:
            raise StriateError(
                "a search takes no repeats, range test or resume",
                hint="leave them out; a search goes on where it is started again with the same --out",
            )
        return search_verb(
            data, recipe, trials=search, out=out, dry_run=dry_run, report=report, given=given, **searching
        )
    if data is None and (dry_run or range_test or repeats != 1):
        raise StriateError("no data given", hint="give a folder of images, an archive, a .csv or a name")
    from striate.studies.repeats import check_repeats, folder_of_several, train_repeats

    if repeats < 1:
        raise StriateError(f"repeats is {repeats}", allowed="at least 1")
    if range_test and (repeats != 1 or resume):
        raise StriateError("a range test takes neither repeats nor resume", hint="leave them out")
    if dry_run:
        if resume:
            raise StriateError("a dry run takes no resume", hint="leave out one of them")
        if repeats != 1:
            check_repeats(data or "", recipe, repeats)
        return Rehearsal(tuple(session.rehearse(data or "", recipe, out=out)))
    if range_test:
        from striate.train import range_test as rates

        return rates.range_test(data or "", recipe, out=out)
    if repeats == 1:
        return train_and_report(data, recipe, out=out, resume=resume, report=report, given=given)
    assert data is not None
    folder = folder_of_several(data, recipe, out, resume)
    return train_repeats(
        data, recipe, repeats=repeats, out=folder, resume=bool(resume), report=report, given=given
    )


def make_report(run_path: str | os.PathLike[str]) -> Path:
    """Write the report of a run folder anew, from its files and the data set that they name; or of a study.

    Where the data cannot be opened, or are not the same any more, the report has no pictures of them and
    says so; the scores are then those of the last evaluation.

    Raises:
        StriateError: no finished run in the folder.
    """
    if is_study(run_path):
        from striate.studies import search

        return search.make_report(run_path)
    return _Job.open(Run.open(run_path)).report()


@dataclass
class _Job:
    """A run with its model and, where they can be opened, its data."""

    run: Run
    written: dict[str, Any]
    model: Model
    data: Dataset | None
    device: str = "cpu"  # where it is tested
    notices: list[str] = field(default_factory=list)
    _tested: dict[str, Any] | None = None

    @classmethod
    def open(cls, run: Run, data: Any = None) -> _Job:
        written = run.settings()
        model = load(run.path)
        job = cls(run, written, model, None)
        try:
            asked = settings.from_dict(Recipe, written.get("asked", {}))
            job.device = _present(asked.device)
            start = session.Start(run.path, asked, written)
            job.data = session.open_set(data if isinstance(data, Dataset) else None, start).aligned_to(
                model.classes
            )
        except (StriateError, KeyError) as error:
            job.notices.append(
                f"The data could not be opened, so this report has no pictures of them: {error}."
            )
        return job

    def tested(self) -> dict[str, Any] | None:
        """The evaluation as plain values: from the run where it is of this very model, else measured now."""
        if self._tested is None:
            self._tested = self._kept() or self._measured()
        return self._tested

    def _kept(self) -> dict[str, Any] | None:
        try:
            kept: dict[str, Any] = json.loads((self.run.path / EVALUATION).read_text("utf-8"))
            fits: bool = kept["model_sha256"] == sha256(self.run.model) and bool(kept["scores"]["main_name"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return kept if fits else None

    def _measured(self) -> dict[str, Any] | None:
        if self.data is None:
            return None
        split = split_to_test(self.data)
        if split is None:
            self.notices.append("There are neither test nor validation images: nothing was measured.")
            return None
        try:
            result = evaluate(self.model, self.data, split=split, device=self.device)
        finally:
            # The report's few pictures are made on the processor, the same for every machine.
            self.model.to("cpu")
        values: dict[str, Any] = plain(result.to_dict())
        values["summary"] = plain(result.scores.summary())
        values["scores"].pop("probabilities", None)
        values["model_sha256"] = sha256(self.run.model)
        write_text(self.run.path / EVALUATION, json.dumps(values, ensure_ascii=False) + "\n")
        return values

    def report(self) -> Path:
        """Collect everything and write report.html."""
        tested = self.tested()
        data = self._words(tested)
        return html.write(self._with_pictures(data, tested), self.run.report)

    def _words(self, tested: dict[str, Any] | None) -> ReportData:
        run, written = self.run, self.written
        events = run.events()
        times = collect.Times.of(events)
        scores = tested["scores"] if tested else None
        end: dict[str, Any] = next((e for e in reversed(events) if e.get("event") == "end"), {})
        main = scores["main_name"] if scores else str(end.get("score_name", ""))
        source = written.get("data", {})
        recipe = written.get("recipe", {})
        seen = tested.get("bad", ()) if tested else ()
        if tested and tested["split"] == "val":
            self.notices.append(
                "There are no test images: the scores are those of the validation images, "
                "which training may have looked at."
            )
        warnings = [str(e.get("text")) for e in events if e.get("event") == "warning"]
        bad = collect.bad_files(events, self.data.bad if self.data else (), seen)
        if bad:
            self.notices.append(
                f"{len(bad):,} unreadable {'file was' if len(bad) == 1 else 'files were'} left out."
            )
        return ReportData(
            title=f"{recipe.get('net', 'network')} on {source.get('name', 'data')}",
            subtitle=_subtitle(self.model, recipe),
            created=_date(end.get("time")),
            version=__version__,
            headline=collect.headline(tested) if tested else None,
            facts=self._facts(times, tested),
            notices=(*dict.fromkeys([*self.notices, *warnings]),),
            settings=collect.settings(written),
            curves=collect.curves(run.metrics(), main),
            summary=collect.summary(tested) if tested else (),
            class_table=collect.class_table(scores) if scores else None,
            confusion=collect.confusion(scores) if scores else None,
            calibration=collect.calibration(scores) if scores else None,
            timing=times.facts(tested),
            shares=times.shares(tested),
            data=self._data_lines(source),
            splits={n: len(s) for n, s in self.data.splits.items() if len(s)} if self.data else {},
            bad=bad,
            environment=collect.environment(run),
            commands=collect.commands(run, written),
        )

    def _facts(self, times: collect.Times, tested: Mapping[str, Any] | None) -> tuple[Fact, ...]:
        found = []
        if times.training is not None:
            epochs, device = len(self.run.metrics()), self.written.get("recipe", {}).get("device", "")
            found.append(Fact("Training time", collect.clock(times.training), f"{epochs} epochs on {device}"))
        size = sum(p.numel() for p in self.model.net.parameters())
        found.append(Fact("Parameters", f"{size:,}", f"{collect.size_of(self.run.model)} on disk"))
        if tested and tested.get("multiply_adds"):
            found.append(
                Fact("Operations", collect.amount(tested["multiply_adds"]), "multiply-adds an image")
            )
        if tested and tested.get("network_images_per_second"):
            speed = tested["network_images_per_second"]
            found.append(
                Fact(
                    "Prediction", f"{speed:,.0f} images/s", f"on {tested.get('device', '')}, without loading"
                )
            )
        return tuple(found)

    def _data_lines(self, source: Mapping[str, Any]) -> tuple[str, ...]:
        if self.data is None:
            lines = [f"{source.get('name', '')}: {len(self.model.classes)} classes"]
        else:
            lines = [
                line
                for line in self.data.describe().splitlines()
                if not line.startswith(("left out:", "splits from"))
            ]
        return (*lines, f"Digest of names and labels: {source.get('digest', 'unknown')}")

    def _with_pictures(self, data: ReportData, tested: dict[str, Any] | None) -> ReportData:
        from dataclasses import replace

        split = None
        if self.data is not None:
            split = self.data.splits.get(tested["split"] if tested else "train")
        scores = tested["scores"] if tested else None
        panels, saliency, missing = pictures.inside(self.model, split, scores)
        galleries: Any = ()
        confusion = data.confusion
        if split is not None and scores is not None:
            if self.model.task.dense:
                galleries = pictures.masks(split, self.model, scores)
            else:
                galleries = pictures.mistakes(split, self.model, scores)
                if confusion is not None:
                    confusion = pictures.cells(confusion, split, self.model, scores)
        return replace(
            data, confusion=confusion, galleries=galleries, inside=panels, saliency=saliency,
            notices=(*data.notices, *missing),
        )  # fmt: skip


def _result(run: Run, tested: Mapping[str, Any] | None, report: Path | None) -> JobResult:
    events = run.events()
    times = collect.Times.of(events)
    bad = collect.bad_files(events, tested.get("bad", ()) if tested else ())
    if tested is None:
        return JobResult(run.path, report, "", 0, "", None, None, {}, times.training, bad=bad)
    head = collect.headline(tested)
    return JobResult(
        run=run.path, report=report, split=tested["split"], n=head.n, main_name=head.name, main=head.value,
        interval=head.interval, scores=dict(tested.get("summary", {})), seconds=times.training,
        notes=tuple(tested.get("notes", ())), bad=bad,
    )  # fmt: skip


def _present(device: str) -> str:
    """The device that a run was asked for as this machine has it; the CPU where it is missing."""
    try:
        return str(find_device(device))
    except StriateError:
        return "cpu"


def _subtitle(model: Model, recipe: Mapping[str, Any]) -> str:
    size = model.preprocess.size
    seen = f"{size[0]} × {size[1]} pixels" if size else "any size"
    colour = "grey" if model.preprocess.channels == 1 else "colour"
    kind = model.task.name.replace("_", " ").capitalize()
    classes = f"{len(model.classes):,} classes"
    begun = f", started from the weights of {source}" if (source := recipe.get("start_from")) else ""
    return f"{kind} into {classes}, images of {seen} in {colour}, seed {recipe.get('seed', 0)}{begun}."


def _date(seconds: Any) -> str:
    if not isinstance(seconds, (int, float)):
        return ""
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")
