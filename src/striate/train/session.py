"""A training run from data to model: opens, checks, trains, saves, and goes on where it stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from striate.core import machine, settings
from striate.core.errors import StriateError
from striate.core.files import place_of
from striate.core.runs import SETTINGS, SPLITS, Run, next_folder
from striate.data.formats import open_data
from striate.data.samples import Dataset
from striate.train.checkpoint import LAST
from striate.train.devices import Place, place, threads
from striate.train.fit import Interrupted, Job, Listen, Stop, fit
from striate.train.growing import SHALLOW, grow_job, shallow_recipe, to_train_first
from striate.train.members import with_arrays
from striate.train.preflight import preflight
from striate.train.progress import Progress
from striate.train.recipe import FREE, Recipe
from striate.train.setup import prepare
from striate.train.starting import check_apart, check_same
from striate.train.writer import Writer

T = TypeVar("T")

# Settings that a resumed run may be given anew although they change the result: it is extended.
EXTENDS = ("epochs", "patience")
# Settings that a resumed run keeps, whatever it is given: the last bits depend on them.
KEPT = ("threads",)


@dataclass(frozen=True)
class Start:
    """Where a run begins: its folder, the settings asked for, and what an earlier part wrote down."""

    folder: Path
    asked: Recipe
    written: dict[str, Any] | None  # settings.json of the earlier part


def train(
    data: str | os.PathLike[str] | Dataset | None = None,
    recipe: Recipe | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    resume: bool | str | os.PathLike[str] = False,
    progress: bool = True,
    given: Collection[str] | None = None,
    watch: Listen | None = None,
    **changes: Any,
) -> Run:
    """Train a network and leave a run folder with its model.

    data: a path, a name or an open data set; may be left out when resuming.
    recipe, changes: the settings, and single ones of them by name. out: the run folder; by default
    runs/NET-DATA-N. resume: continue the run in `out` (which is begun when it is not there yet), or in the
    folder named. On the CPU the result has the same bytes as if the run had never stopped; a larger `epochs`
    extends a run, with the learning-rate schedule of the new length from there on. When resuming, only the
    settings named in `given` (None: all of `recipe`, or else `changes`) are compared with the run's.
    watch: told each event of the loop after it was written down; what it raises ends the run there.

    Raises:
        StriateError: anything in data, settings or folder that the user can mend.
        Interrupted: SIGINT or SIGTERM; the state was saved.
    """
    machine.keep_heap()
    base = recipe or Recipe()
    wanted = base.with_(**changes)
    named = set(given) if given is not None else None if recipe is not None else set()
    named = None if named is None else named | set(changes)
    with place(*where(data, wanted, named, out, resume)) as here:
        start = on_first(here, lambda: begin(data, wanted, named, out, resume))
        return _train(data, start, here, progress and here.first, watch)


def _train(data: Any, start: Start, here: Place, progress: bool, watch: Listen | None = None) -> Run:
    """Train from a `Start` to the finished model."""
    written = start.written or {}
    count = written.get("recipe", {}).get("threads") or start.asked.threads
    with threads(count) as computing, Progress(progress) as show, contextlib.ExitStack() as held:
        dataset = open_set(data, start)
        begun = start.written is not None and (Run(start.folder).checkpoints / LAST).exists()
        setup = prepare(dataset, start.asked, here, computing, start.written, begun=begun)
        writer = Writer(Run(start.folder), setup, show)
        source = {"given": spec(data, start), "name": dataset.name, "digest": dataset.digest()}
        held.callback(setup.close)

        def opened() -> list[str]:
            # What is wrong is said before anything is written.
            if setup.started:
                check_same(writer.run, setup.started)
            check = start.asked.preflight and not begun
            warnings = list(setup.started.warnings) if setup.started else []
            warnings += preflight(setup.job, start.folder) if check else []
            held.enter_context(writer.run.alone())
            writer.open(start.written is not None, source)
            return warnings

        warnings = on_first(here, opened)
        if begun:
            writer.restore()
        elif start.asked.grow_from:
            writer.grown(grow_job(setup.job, shallow(dataset, start, here, progress)))
        elif setup.started:
            writer.started(setup.started)
        writer.note(warnings)
        with Stop().listening() as stop:
            done = fit(setup.job, after(writer.listen, watch), due=show.due, stop=stop)
    if not done:
        raise Interrupted(stop.number or 15, str(start.folder))
    return writer.run


def shallow(dataset: Dataset, start: Start, here: Place, progress: bool) -> str | Path:
    """The trained model that a run grows its net from: it is trained now where the recipe names a net.

    Raises:
        StriateError: as `train`.
    """
    if not to_train_first(start.asked):
        return start.asked.grow_from
    folder = start.folder / SHALLOW
    first = on_first(here, lambda: begin(dataset, shallow_recipe(start.asked), None, folder, True))
    try:
        return _train(dataset, first, here, progress).path
    except Interrupted as stopped:
        raise Interrupted(stopped.signal, str(start.folder)) from stopped


def after(first: Listen, second: Listen | None) -> Listen:
    """A listener that tells both, one after the other."""
    if second is None:
        return first

    def both(event: str, job: Job) -> None:
        first(event, job)
        second(event, job)

    return both


def rehearse(
    data: str | os.PathLike[str] | Dataset,
    recipe: Recipe | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    **changes: Any,
) -> list[str]:
    """Make every check of `train`, but train and write nothing; returns lines: what was settled, warnings.

    Raises:
        StriateError: what would end the run.
    """
    wanted = (recipe or Recipe()).with_(**changes)
    with place(wanted.device, wanted.amp) as here, threads(wanted.threads) as computing:
        start = begin(data, wanted, None, out, False)
        setup = prepare(open_set(data, start), wanted, here, computing)
        lines = [f"run: {start.folder}", setup.headline()]
        warnings = preflight(setup.job, start.folder)
        if setup.started:
            lines.append(setup.started.line())
            warnings = [*setup.started.warnings, *warnings]
        return [*lines, *(f"warning: {text}" for text in warnings)]


def on_first(here: Place, work: Callable[[], T]) -> T:
    """What `work` gives in the first process, in all of them; its error is raised in all of them."""
    value: Any = None
    error: StriateError | None = None
    if here.first:
        try:
            value = work()
        except StriateError as found:
            error = found
    value, error = here.gather((value, error))[0]
    if error is not None:
        raise error
    return value  # type: ignore[no-any-return]


def spec(data: Any, start: Start) -> str:
    """What the data were given as, for settings.json."""
    if data is None:
        return str((start.written or {}).get("data", {}).get("given", ""))
    return (data.path or data.name) if isinstance(data, Dataset) else os.fspath(data)


def open_set(data: Any, start: Start) -> Dataset:
    """The data set with the splits of the run's earlier part.

    Raises:
        StriateError: it cannot be opened, or has changed since the run began.
    """
    if isinstance(data, Dataset):
        dataset = data
    else:
        splits = start.folder / SPLITS
        kept = splits if start.written is not None and splits.exists() else None
        dataset = open_asked(spec(data, start), start.asked, kept)
    if start.written is not None and dataset.digest() != start.written["data"]["digest"]:
        raise StriateError(
            f"the data {dataset.name!r} are not those that {str(start.folder)!r} was started with",
            hint="give the same images, labels and splits, or start a new run with --out",
        )
    return dataset


def open_asked(spec: str | os.PathLike[str], asked: Recipe, split_file: Path | None = None) -> Dataset:
    """The data set with the splits that a recipe draws, or those of a file; raises as `open_data`."""
    return open_data(
        spec, val=asked.val, test=asked.test, seed=asked.seed, split_file=split_file,
        contiguous=asked.contiguous, label_column=asked.label_column,
    )  # fmt: skip


def where(data: Any, wanted: Recipe, named: Collection[str] | None, out: Any, resume: Any) -> tuple[str, str]:
    """Device and precision to compute with: a resumed run keeps those that it was begun with.

    Raises:
        StriateError: there is no run to resume, or its settings cannot be read.
    """
    folder = find_folder(data, wanted, out, resume) if resume else None
    if folder is None or not (folder / SETTINGS).exists():
        return wanted.device, wanted.amp
    begun = settings.from_dict(Recipe, Run.open(folder).settings().get("asked", {}))
    device, amp = (
        getattr(wanted if named is None or name in named else begun, name) for name in ("device", "amp")
    )
    return device, amp


def begin(
    data: Any, wanted: Recipe, named: Collection[str] | None, out: Any, resume: Any, *, trains: bool = True
) -> Start:
    """Where to begin: a new folder, or an earlier part with settings that agree with `wanted`.

    trains: whether a run is to be written there.

    Raises:
        StriateError: nothing to resume, a folder in use, of a study or another model, or within the data, or
            settings that differ from the run's.
    """
    folder = find_folder(data, wanted, out, resume)
    if resume and (folder / SETTINGS).exists():
        written = Run.open(folder).settings()
        try:
            asked, settled = (settings.from_dict(Recipe, written[key]) for key in ("asked", "recipe"))
            written["data"]["digest"], written["preprocess"]
        except (KeyError, TypeError) as error:
            raise StriateError(
                f"{str(folder)!r} has settings without {error}", hint="start a new run"
            ) from error
        merged = agree(folder, wanted, named, asked, settled)
        changes = {name: getattr(merged, name) for name in (*FREE, *EXTENDS)}
        written["recipe"] = settings.to_dict(settled.with_(**changes))
        return Start(folder, merged, with_arrays(folder, written))
    if data is None:
        raise StriateError("no data given", hint="give a folder of images, an archive, a .csv or a name")
    if (folder / SETTINGS).exists():
        raise StriateError(
            f"{str(folder)!r} already holds a run",
            hint="continue it with --resume, or choose another folder with --out",
        )
    if trains:
        check_apart(folder, wanted.start_from)
    images = data.path if isinstance(data, Dataset) else os.fspath(data)
    if images and place_of(images).is_dir() and folder.resolve().is_relative_to(place_of(images).resolve()):
        # Its files would be a part of the data the next time.
        raise StriateError(
            f"the run folder {str(folder)!r} lies within the data {images!r}",
            hint="choose a folder outside of them with --out",
        )
    return Start(folder, wanted, None)


def check_folder(out: Any, resume: Any) -> None:
    """Where both are folders, `out` and `resume` name the same one.

    Raises:
        StriateError: they do not.
    """
    if out is None or not isinstance(resume, (str, os.PathLike)):
        return
    if Path(out).resolve() != Path(resume).resolve():
        raise StriateError(
            f"out is {os.fspath(out)!r}, but {os.fspath(resume)!r} is to be resumed", hint="give one of them"
        )


def find_folder(data: Any, wanted: Recipe, out: Any, resume: Any) -> Path:
    """The run folder that the arguments mean.

    Raises:
        StriateError: there is no run to resume, or two folders are named.
    """
    check_folder(out, resume)
    if isinstance(resume, (str, os.PathLike)):
        return Run.open(resume).path
    if out is not None:
        return Path(out)
    root = Path("runs")
    if resume:
        runs = sorted(root.glob(f"*/{SETTINGS}"), key=lambda path: path.stat().st_mtime)
        if not runs:
            raise StriateError("there is no run to resume in 'runs'", hint="name its folder with --out")
        return runs[-1].parent
    name = data.name if isinstance(data, Dataset) else Path(os.fspath(data or "")).stem
    return next_folder(root, f"{wanted.net}-{name}" if wanted.net != "auto" else name)


def agree(
    folder: Path, wanted: Recipe, named: Collection[str] | None, asked: Recipe, settled: Recipe
) -> Recipe:
    """The settings of a resumed run: those it was begun with, but for those that may change.

    Raises:
        StriateError: lists each setting that differs.
    """
    changes, wrong = {}, []
    for field in dataclasses.fields(Recipe):
        name = field.name
        if name in KEPT or (named is not None and name not in named):
            continue
        value, before = getattr(wanted, name), getattr(asked, name)
        if value in (before, getattr(settled, name)):
            continue
        if name in FREE or name in EXTENDS:
            changes[name] = value
        else:
            wrong.append(f"{name.replace('_', '-')} {value!r}, not {before!r}")
    if wrong:
        raise StriateError(
            f"{str(folder)!r} was begun with other settings: {'; '.join(wrong)}",
            hint="give the same settings, or start a new run with --out",
        )
    return asked.with_(**changes)


def final_score(run: Run) -> tuple[str, float]:
    """Name and value of the main validation score after the last epoch.

    Raises:
        StriateError: the run had no validation images.
    """
    for event in reversed(run.events()):
        if event.get("event") == "end" and event.get("score") is not None:
            return str(event["score_name"]), float(event["score"])
    raise StriateError(f"{str(run.path)!r} has no validation score", hint="give --val 0.1")
