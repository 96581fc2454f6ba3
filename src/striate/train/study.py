"""A study: the folder that workers of a search share, what it was begun with, and its trials so far."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from striate import __version__
from striate.core import settings
from striate.core.errors import StriateError
from striate.core.files import write_json
from striate.core.locks import Turn
from striate.core.results import Result, plain
from striate.core.runs import SETTINGS, next_folder, read_json
from striate.data.formats import open_data
from striate.data.samples import Dataset
from striate.train.journal import open_study
from striate.train.recipe import FREE, Recipe
from striate.train.samplers import PRUNERS, SAMPLERS, optuna
from striate.train.setup import check_names, check_settled, training_splits
from striate.train.space import STUDY, Dimension, Space, parse, told
from striate.train.starting import check_no_model, open_source

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.study import Study as OptunaStudy
    from optuna.trial import FrozenTrial

TRIALS, LEASES, TURN = "trials", "leases", "turn"
SAMPLER, PRUNER = "tpe", "median"
# Settings that each worker may have its own way: they belong to its machine.
OWN = (*FREE, "threads", "device")
FEWEST = 4  # finished trials that importances need
STATES = {
    "COMPLETE": "finished", "PRUNED": "ended early", "FAIL": "lost", "RUNNING": "running",
    "WAITING": "waiting",
}  # fmt: skip


@dataclass(frozen=True)
class TrialRecord:
    """One trial. `score` is that of the last epoch, 0 to 1; `scores` holds those of all epochs, from 1.

    state: finished, ended early, failed (`error` says why), lost (its worker died), running or waiting.
    retry_of: the lost trial whose settings it has, and whose epochs where they could be taken over.
    """

    number: int
    state: str
    settings: dict[str, Any]
    score: float | None
    scores: dict[int, float]
    seconds: float | None
    folder: str
    error: str = ""
    retry_of: int | None = None


@dataclass(frozen=True)
class SearchResult(Result):
    """What a search found: its trials, the best of them, and how much each setting mattered.

    importance: setting to its part of the scores' variance over the space, 0 to 1 (functional ANOVA, Hutter
    et al. 2014, ICML); empty with fewer than four finished trials or one setting.
    """

    folder: str
    data: str
    score_name: str
    space: dict[str, str]
    trials: tuple[TrialRecord, ...]
    best: TrialRecord | None
    importance: dict[str, float]

    def lines(self) -> list[str]:
        """The best trial, how the others ended, and where everything is."""
        counted = {name: sum(t.state == name for t in self.trials) for name in (*STATES.values(), "failed")}
        found = [f"trials: {', '.join(f'{n} {name}' for name, n in counted.items() if n)}"]
        if self.best is not None and self.best.score is not None:
            values = "  ".join(f"--{name} {told(value)}" for name, value in self.best.settings.items())
            found.append(
                f"best: trial {self.best.number}, {self.score_name} {100 * self.best.score:.2f} %"
                f" on validation images: {values}"
            )
        if self.importance:
            parts = (f"{name} {100 * part:.0f} %" for name, part in self.importance.items())
            found.append(f"importance: {', '.join(parts)}")
        return [*found, f"study: {self.folder}"]


@dataclass
class Study:
    """A study as one process sees it: `recipe` is that of all trials, with this machine's own settings."""

    folder: Path
    written: dict[str, Any]
    recipe: Recipe
    space: Space
    sampler: str = SAMPLER
    pruner: str = PRUNER
    _data: Dataset | None = field(default=None, repr=False)

    # --- entering ---------------------------------------------------------------------------------------

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Study:
        """An existing study.

        Raises:
            StriateError: there is none in the folder, or its settings cannot be read.
        """
        path = Path(folder)
        if not (path / STUDY).is_file():
            raise StriateError(f"{str(folder)!r} holds no study (it has no {STUDY})", hint="check the folder")
        written = read_json(path / STUDY)
        try:
            recipe = settings.from_dict(Recipe, written["asked"])
            space = parse(written["space"], recipe)
            return cls(path, written, recipe, space, str(written["sampler"]), str(written["pruner"]))
        except (KeyError, TypeError, AttributeError) as error:
            raise StriateError(
                f"{str(path / STUDY)!r} has no {error}", hint="start a new study with --out"
            ) from error

    @classmethod
    def enter(
        cls,
        data: str | os.PathLike[str] | Dataset | None,
        base: Recipe,
        named: Collection[str] | None,
        space: Mapping[str, Any] | None,
        *,
        out: str | os.PathLike[str] | None = None,
        sampler: str | None = None,
        pruner: str | None = None,
        dry: bool = False,
    ) -> Study:
        """Begin a study, or join the one in `out`; see `search` for the arguments. dry: nothing is written.

        Raises:
            StriateError: what is given is wrong, or is not what the study was begun with.
        """
        folder = Path(out) if out is not None else cls._new_folder(data)
        for registry, name in ((SAMPLERS, sampler), (PRUNERS, pruner)):
            if name is not None:
                registry.entry(name)
        if (folder / STUDY).exists():
            return cls.open(folder)._joined(data, base, named, space)
        if data is None:
            raise StriateError("no data given", hint="give a folder of images, an archive, a .csv or a name")
        study = cls._described(folder, base, named, space, sampler or SAMPLER, pruner or PRUNER)
        study._open(data)
        study._check_settled()
        if dry:
            return study
        with Turn(folder / TURN):
            if (folder / STUDY).exists():
                return cls.open(folder)._joined(study._data, base, named, space)
            write_json(folder / STUDY, study.written)
        return study

    @classmethod
    def _described(
        cls,
        folder: Path,
        base: Recipe,
        named: Collection[str] | None,
        space: Mapping[str, Any] | None,
        sampler: str,
        pruner: str,
    ) -> Study:
        if (folder / SETTINGS).exists():
            raise StriateError(
                f"{str(folder)!r} holds a run, not a study", hint="choose another folder with --out"
            )
        check_no_model(folder)
        found = parse(space or {}, base)
        default = Recipe()
        for name in found.names:
            given = name in named if named is not None else False
            if given or (named is None and "." not in name and _differs(base, default, name)):
                raise StriateError(
                    f"{name} is both given and searched", hint=f"leave out --{name} or --space.{name}"
                )
        for dimension in found.dimensions:
            for value in dimension.ends():
                check_names(found.recipe(base, {dimension.name: value}))
        if SAMPLERS.entry(sampler).capabilities.get("finite"):
            found.combinations()
        written = {
            "format": 1,
            "version": __version__,
            "space": found.to_dict(),
            "sampler": sampler,
            "pruner": pruner,
            "asked": settings.to_dict(base),
        }
        return cls(folder, written, base, found, sampler, pruner)

    def _joined(
        self, data: Any, base: Recipe, named: Collection[str] | None, space: Mapping[str, Any] | None
    ) -> Study:
        wrong = []
        if space:
            asked, own = parse(space, self.recipe), self.space
            before = {d.name: d for d in own.dimensions}
            after = {d.name: d for d in asked.dimensions}
            for name in dict.fromkeys([*after, *before]):
                if before.get(name) != after.get(name):
                    given, kept = (
                        d.text if d else "not searched" for d in (after.get(name), before.get(name))
                    )
                    wrong.append(f"space.{name} {given}, not {kept}")
        changes = {}
        for each in dataclasses.fields(Recipe):
            name, value = each.name, getattr(base, each.name)
            if (named is not None and name not in named) or not _differs(base, self.recipe, name):
                continue
            if name in OWN:
                changes[name] = value
            else:
                wrong.append(f"{name} {told(value)}, not {told(getattr(self.recipe, name))}")
        if wrong:
            raise StriateError(
                f"the study in {str(self.folder)!r} was begun otherwise: {'; '.join(wrong)}",
                hint="leave these out, or start a new study with --out",
            )
        self.recipe = self.recipe.with_(**changes)
        self._open(self.written["data"]["given"] if data is None else data)
        return self

    @staticmethod
    def _new_folder(data: Any) -> Path:
        name = data.name if isinstance(data, Dataset) else Path(os.fspath(data or "")).stem
        return next_folder("runs", f"search-{name}" if name else "search")

    def _open(self, data: str | os.PathLike[str] | Dataset) -> None:
        """Open the data, and see that they are those of the study.

        Raises:
            StriateError: they cannot be opened, are others, or have no validation images.
        """
        asked = self.recipe
        if isinstance(data, Dataset):
            self._data = data
        else:
            self._data = open_data(
                os.fspath(data), val=asked.val, test=asked.test, seed=asked.seed,
                contiguous=asked.contiguous, label_column=asked.label_column,
            )  # fmt: skip
        given = (data.path or data.name) if isinstance(data, Dataset) else os.fspath(data)
        source = {"given": given, "name": self._data.name, "digest": self._data.digest()}
        if self.written.setdefault("data", source)["digest"] != source["digest"]:
            raise StriateError(
                f"the data {self._data.name!r} are not those that the study in {str(self.folder)!r} was begun"
                " with",
                hint="give the same images, labels and splits, or start a new study with --out",
            )
        if training_splits(self._data, asked)[1] is None:
            raise StriateError("a search needs validation images", hint="give --val 0.1")

    def _check_settled(self) -> None:
        """What is searched fits the net that the data settle on, where one net is chosen for all trials.

        Raises:
            StriateError: no net can be built with such an option or value; as `open_source`.
        """
        if "start_from" in self.space.names:
            return
        open_source(self.recipe)
        if "net" in self.space.names:
            return
        for dimension in self.space.dimensions:
            for value in dimension.ends():
                trial = self.space.recipe(self.recipe, {dimension.name: value})
                check_settled(trial, self.data(), open_source(trial))

    # --- its parts --------------------------------------------------------------------------------------

    def data(self) -> Dataset:
        """The open data set, with the same splits in every trial."""
        if self._data is None:
            self._open(self.written["data"]["given"])
        assert self._data is not None
        return self._data

    def trial(self, number: int) -> Path:
        """The run folder of a trial."""
        return self.folder / TRIALS / f"{number:04d}"

    def lease(self, number: int) -> Path:
        """The sign of life of a running trial."""
        return self.folder / LEASES / f"{number:04d}"

    def epochs(self) -> int:
        """The most epochs that a trial may take."""
        ends = [d.ends() for d in self.space.dimensions if d.name == "epochs"]
        return int(max(ends[0])) if ends else self.recipe.epochs

    def storage(self) -> OptunaStudy:
        """Optuna's study, freshly opened."""
        return open_study(self.folder)

    def distribution(self, dimension: Dimension) -> BaseDistribution:
        """What Optuna draws a setting from."""
        found = optuna().distributions
        if dimension.values:
            return found.CategoricalDistribution(list(dimension.coded()))  # type: ignore[no-any-return]
        kind = found.IntDistribution if dimension.whole else found.FloatDistribution
        low, high = dimension.low, dimension.high
        return kind(low, high, log=dimension.kind == "log")  # type: ignore[no-any-return]

    # --- its trials -------------------------------------------------------------------------------------

    def records(self, storage: OptunaStudy | None = None) -> list[TrialRecord]:
        """Every trial so far, in order."""
        return [self._record(trial) for trial in (storage or self.storage()).get_trials(deepcopy=False)]

    def best(self, storage: OptunaStudy | None = None) -> TrialRecord | None:
        """The finished trial with the highest score, the earlier one of equals; None without any."""
        done = [r for r in self.records(storage) if r.state == "finished" and r.score is not None]
        return max(done, key=lambda r: (r.score or 0.0, -r.number), default=None)

    def result(self) -> SearchResult:
        """The study as plain values."""
        storage = self.storage()
        records = self.records(storage)
        return SearchResult(
            folder=str(self.folder),
            data=str(self.written["data"]["name"]),
            score_name=str(storage.user_attrs.get("score_name", "score")),
            space=self.space.to_dict(),
            trials=tuple(records),
            best=self.best(storage),
            importance=self._importance(storage, records),
        )

    def _importance(self, storage: OptunaStudy, records: list[TrialRecord]) -> dict[str, float]:
        scores = [r.score for r in records if r.state == "finished"]
        if len(scores) < FEWEST or len(set(scores)) < 2 or len(self.space.names) < 2:
            return {}
        package = optuna()
        evaluator = package.importance.FanovaImportanceEvaluator(seed=0)
        found = package.importance.get_param_importances(storage, evaluator=evaluator)
        return {name: float(part) for name, part in found.items() if math.isfinite(part)}

    def _record(self, trial: FrozenTrial) -> TrialRecord:
        state, error = STATES[trial.state.name], str(trial.user_attrs.get("error", ""))
        seconds = None
        if trial.datetime_start and trial.datetime_complete:
            seconds = (trial.datetime_complete - trial.datetime_start).total_seconds()
        whole = len(trial.params) == len(self.space.names)
        values = self.space.decode(trial.params) if whole else {}
        scores = {int(k): float(v) for k, v in sorted(trial.intermediate_values.items())}
        score = trial.values[0] if trial.values else None
        retry = trial.user_attrs.get("retry_of")
        return TrialRecord(
            number=trial.number, state="failed" if error else state, settings=plain(values), score=score,
            scores=scores, seconds=seconds, folder=str(self.trial(trial.number)), error=error,
            retry_of=None if retry is None else int(retry),
        )  # fmt: skip


def _differs(one: Recipe, other: Recipe, name: str) -> bool:
    return bool(plain(getattr(one, name)) != plain(getattr(other, name)))
