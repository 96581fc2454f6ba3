"""The main job several times over, with other seeds: the spread that chance alone makes."""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from striate.core import settings
from striate.core.errors import StriateError
from striate.core.files import place_of
from striate.core.results import Result
from striate.core.runs import SETTINGS, SPLITS, Run
from striate.data.samples import Dataset
from striate.studies.job import JobResult, split_to_test, train_and_report
from striate.train import session
from striate.train.fit import Interrupted
from striate.train.recipe import Recipe
from striate.train.space import is_study


@dataclass(frozen=True)
class Repeats(Result):
    """Several runs that differ in their seed only: main score of each, their mean and standard deviation.

    Scores, 0 to 1, are those of the test images, or of the validation images where there are no others, as
    `split` says; redrawn: of other images for each seed, where the data come without splits, which are drawn
    by the seed, too. `sd` is that of a sample (n - 1); None for a single run.
    """

    ROWS = ("seeds", "scores", "folders")  # type: tuple[str, ...]

    main_name: str
    split: str
    n: int
    mean: float
    sd: float | None
    seeds: tuple[int, ...]
    scores: tuple[float, ...]
    folders: tuple[str, ...]
    redrawn: bool = False

    def lines(self) -> list[str]:
        """One line a run, and the mean with its spread."""
        rows = [
            f"seed {seed}: {self.main_name} {100 * score:.2f} %  {folder}"
            for seed, score, folder in zip(self.seeds, self.scores, self.folders, strict=True)
        ]
        spread = "" if self.sd is None else f" ± {100 * self.sd:.2f} (sd of {len(self.scores)} seeds)"
        mean = f"mean {self.main_name} {100 * self.mean:.2f}{spread} %"
        drawn = ", drawn anew by each seed" if self.redrawn else ""
        return [*rows, f"{mean} on {self.n:,} {self.split} images{drawn}"]


def check_repeats(data: str | os.PathLike[str] | Dataset, recipe: Recipe, repeats: int) -> None:
    """There is at least one run, and something to score each by.

    Raises:
        StriateError: there is not, or the data cannot be opened.
    """
    if repeats < 1:
        raise StriateError(f"repeats is {repeats}", allowed="at least 1")
    dataset = data if isinstance(data, Dataset) else session.open_asked(data, recipe)
    if split_to_test(dataset) is None:
        raise StriateError(
            f"{dataset.name!r} has neither test nor validation images to score by", hint="give --val 0.1"
        )


def train_repeats(
    data: str | os.PathLike[str] | Dataset,
    recipe: Recipe,
    *,
    repeats: int,
    out: str | os.PathLike[str],
    resume: bool = False,
    progress: bool = True,
    report: bool = True,
    given: Collection[str] | None = None,
) -> Repeats | JobResult:
    """The whole job `repeats` times with seeds from the recipe's on, each in its folder `out/seed-N`.

    Finished runs are kept when resuming; given: as of `train`, and runs that are still to begin are as the
    others, too. Writes `out/repeats.json`. Of several processes those that do not test give what they know
    of the last run.

    Raises:
        StriateError: as `train_and_report`; fewer than one repeat; no images to score by.
        Interrupted: SIGINT or SIGTERM; the state of the running one was saved.
    """
    root = place_of(out)
    if resume and given is not None:
        recipe = _as_begun(root, recipe, given)
    named = None if given is None else frozenset(given) | {"seed"}
    check_repeats(data, recipe, repeats)
    first = int(os.environ.get("RANK", "0")) == 0
    if first:
        check_free(root, resume)
    found: list[JobResult] = []
    for seed in range(recipe.seed, recipe.seed + repeats):
        folder, own = root / f"seed-{seed}", recipe.with_(seed=seed)
        try:
            found.append(
                train_and_report(
                    data, own, out=folder, resume=resume, progress=progress, report=report, given=named
                )
            )
        except Interrupted as stopped:
            raise Interrupted(stopped.signal, str(root)) from stopped
    if not first:
        return found[-1]
    for each in found:
        if each.main is None:
            raise StriateError(f"{str(each.run)!r} could not be tested", hint="see its report")
    scores = tuple(result.main for result in found if result.main is not None)
    result = Repeats(
        main_name=found[0].main_name, split=found[0].split, n=found[0].n, mean=statistics.fmean(scores),
        sd=statistics.stdev(scores) if len(scores) > 1 else None,
        seeds=tuple(range(recipe.seed, recipe.seed + repeats)), scores=scores,
        folders=tuple(str(each.run) for each in found),
        redrawn=len({_names(each) for each in found}) > 1,
    )  # fmt: skip
    result.save(root / "repeats.json")
    return result


def folder_of_several(data: str, recipe: Recipe, out: str | None, resume: bool | str) -> str:
    """Where several runs go: as given, or a new folder.

    Raises:
        StriateError: resume names none, or none that there is, or another than `out`.
    """
    if resume is True and out is None:
        raise StriateError("resume does not say which runs", hint="name their folder with --out")
    if isinstance(resume, str) and not Path(resume).is_dir():
        raise StriateError(f"there is no folder {resume!r} to resume", hint="check the path")
    session.check_folder(out, resume)
    return out or (resume if isinstance(resume, str) else str(session.find_folder(data, recipe, None, False)))


def check_free(out: Path, resume: bool) -> None:
    """A folder for repeats is no run's and no study's, and holds none but those that are resumed.

    Raises:
        StriateError: it is, or does.
    """
    if is_study(out) or (out / SETTINGS).exists() or (not resume and _begun(out)):
        raise StriateError(
            f"{str(out)!r} already holds {'repeats' if _begun(out) else 'a run or a study'}",
            hint="continue repeats with --resume, or choose another folder with --out",
        )


def _begun(out: Path) -> list[Path]:
    """The settings of the runs that a folder of repeats holds."""
    return sorted(out.glob(f"seed-*/{SETTINGS}"))


def _as_begun(out: Path, recipe: Recipe, given: Collection[str]) -> Recipe:
    """What is given of the recipe, and all else as the first run in the folder was begun with."""
    written = [Run(path.parent).settings().get("asked") for path in _begun(out)]
    begun = [settings.from_dict(Recipe, asked) for asked in written if asked]
    if not begun:
        return recipe
    names = {field.name for field in dataclasses.fields(Recipe)} & set(given)
    first = min(begun, key=lambda asked: asked.seed)
    return first.with_(**{name: getattr(recipe, name) for name in names})


def _names(result: JobResult) -> tuple[str, ...]:
    """The images that a run was tested on."""
    splits = json.loads((result.run / SPLITS).read_text("utf-8"))["splits"]
    return tuple(splits[result.split])
