"""What each part of a recipe is worth: the recipe as it is, and without one part after the other."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from striate.core.errors import StriateError, unknown
from striate.core.files import place_of, write_bytes
from striate.core.results import Result
from striate.data.augment_text import name_of, steps_of, written
from striate.data.samples import Dataset
from striate.evaluate.paired import difference, over_runs
from striate.studies.job import EVALUATION, JobResult, Rehearsal
from striate.studies.repeats import Repeats, check_free, check_repeats, folder_of_several, train_repeats
from striate.train import session
from striate.train.fit import Diverged, Interrupted
from striate.train.recipe import Recipe
from striate.train.setup import check_settled
from striate.train.space import OPTIONS, SHARED, parts_of, read_value, told
from striate.train.starting import like_source, open_source

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WHOLE, EVERY = "whole recipe", "all of these"
LONGEST = 60  # letters of a folder's name, before its number
# Settings that runs which are compared must share, or that change no result.
FIXED = (*SHARED, "seed", "epochs", "threads", "workers", "cache", "device", "checkpoint_every", "keep_every")


@dataclass(frozen=True)
class Arm:
    """One of the recipes that are compared; change: what it has otherwise; folder: its name in the whole."""

    name: str
    change: str
    recipe: Recipe
    folder: str


@dataclass(frozen=True)
class Ablation(Result):
    """Recipes that differ in one part each, trained with the same seeds; the first row is the whole recipe.

    means, sds: of the main score over the seeds, 0 to 1; sds None for one seed. differences: of the means to
    the first row's, with `lows` and `highs`, the 95% interval: Student's over the seeds; for one seed that of
    the two nets on the images, None where the task has no answer a picture that is right or wrong. verdicts:
    better or worse than the whole, or "cannot be told"; empty for one seed, as the chance of training is in
    no interval then; of a row whose training diverged, without figures, that it did. redrawn: each seed has
    other images, as the data come without splits.
    """

    ROWS = (
        "names", "changes", "means", "sds", "differences", "lows", "highs", "verdicts", "folders"
    )  # type: tuple[str, ...]  # fmt: skip

    main_name: str
    split: str
    n: int
    seeds: tuple[int, ...]
    names: tuple[str, ...]
    changes: tuple[str, ...]
    means: tuple[float | None, ...]
    sds: tuple[float | None, ...]
    differences: tuple[float | None, ...]
    lows: tuple[float | None, ...]
    highs: tuple[float | None, ...]
    verdicts: tuple[str, ...]
    folders: tuple[str, ...]
    redrawn: bool = False

    def lines(self) -> list[str]:
        """The table, and what its intervals are of."""
        wide = max(map(len, self.names))
        rows = []
        for i, name in enumerate(self.names):
            mean, sd = self.means[i], self.sds[i]
            spread = "" if sd is None else f" ± {100 * sd:.2f}"
            score = f"{name:<{wide}}  " + (self.verdicts[i] if mean is None else f"{100 * mean:6.2f}{spread}")
            rows.append(score if i == 0 or mean is None else f"{score}  {self._gap(i)}")
        count = len(self.seeds)
        of = f"{count} seeds" if count > 1 else "one seed"
        drawn = ", images drawn anew by each" if self.redrawn else ""
        return [f"{self.main_name} in %, on {self.n:,} {self.split} images, {of}{drawn}", *rows, self._note()]

    def figure(self) -> Figure:
        """The differences with their intervals as a matplotlib figure; no window opens."""
        from striate.studies.ablation_figure import figure

        return figure(self)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write to `path` by its suffix: .json (everything), .csv (the rows), .png or .svg (the figure).

        Raises:
            StriateError: another suffix, or the file cannot be written.
        """
        target = Path(path)
        suffix = target.suffix.lower()
        if suffix not in (".png", ".svg"):
            return super().save(target)
        from striate.studies.compare_figure import encoded

        return write_bytes(target, encoded(self.figure(), suffix[1:]))

    def _gap(self, row: int) -> str:
        gap, low, high = self.differences[row], self.lows[row], self.highs[row]
        text = "" if gap is None else f"{100 * gap:+6.2f} points"
        if low is None or high is None:
            return text
        told = f"{text} (95% interval {100 * low:+.2f} to {100 * high:+.2f})  {self.verdicts[row]}"
        return told.rstrip()

    def _note(self) -> str:
        if len(self.seeds) > 1:
            return "intervals: Student's over the paired runs, one by one; of many rows some differ by chance"
        return "one seed: what chance in training makes is in no interval; give --repeats 3 or more"


def check_ablation(
    data: str | os.PathLike[str] | Dataset, recipe: Recipe, parts: str | Sequence[str]
) -> list[Arm]:
    """The recipes that are compared: the whole, without each part, and, of several parts, without them all.

    parts: names of settings, which are left out, NAME=VALUE for another value instead, augment.STEP for one
    step of the augmentation, net_options.NAME=VALUE; a list, or joined by commas. Without them all there is
    no recipe where two parts are of the same setting, or exclude each other.

    Raises:
        StriateError: no part, an unknown setting or step (with the nearest), one that cannot be left out,
            that changes nothing or the same as another, or a recipe that cannot be trained.
    """
    given = [part for text in ([parts] if isinstance(parts, str) else parts) for part in parts_of(text)]
    if not any(given):
        raise StriateError(
            "ablate names no part of the recipe", hint="give some: --ablate augment,weight_decay"
        )
    dataset = data if isinstance(data, Dataset) else session.open_asked(data, recipe)
    source = open_source(recipe)
    settled = [check_settled(recipe, dataset, source)]
    alike = like_source(recipe, source, dense=source.task.dense) if source else recipe
    whole = _Whole(recipe, settled[0], alike)
    arms = [Arm(WHOLE, "", recipe, _folder(WHOLE, "", []))]
    bare: Recipe | None = recipe
    changes: list[str] = []
    for part in given:
        name, change, made = whole.without(part, recipe)
        found = check_settled(made, dataset, open_source(made))
        if found in settled:
            other = "the whole" if found == settled[0] else repr(given[settled.index(found) - 1])
            raise StriateError(f"{part!r} gives the same recipe as {other}", hint="leave it out of --ablate")
        settled.append(found)
        text = change if "=" in part else f"without {name}"
        arms.append(Arm(text, change, made, _folder(text, change, arms)))
        again = any(change.split(" ")[0] == before.split(" ")[0] != "augment" for before in changes)
        bare = None if bare is None or again else _together(whole, part, bare)
        changes.append(change)
    if bare is not None and check_settled(bare, dataset, open_source(bare)) not in settled:
        arms.append(Arm(EVERY, "; ".join(changes), bare, _folder(EVERY, "; ".join(changes), arms)))
    return arms


def _together(whole: _Whole, part: str, recipe: Recipe) -> Recipe | None:
    """The recipe without one part more; None where the parts exclude each other."""
    try:
        return whole.without(part, recipe, again=True)[2]
    except StriateError:
        return None


def _folder(name: str, change: str, others: Sequence[Arm]) -> str:
    """The name of a recipe's folder: the same for the same change, whatever is compared beside it."""
    folder = re.sub(r"[^\w.+=-]+", "-", name).strip("-.")
    if name == EVERY or len(folder) > LONGEST or folder in (arm.folder for arm in others):
        return f"{folder[:LONGEST]}-{zlib.crc32(change.encode()):08x}"
    return folder


@dataclass(frozen=True)
class _Whole:
    """The recipe as it is asked for, as it is settled, and with the net of what it starts from."""

    asked: Recipe
    settled: Recipe
    alike: Recipe

    def without(self, part: str, recipe: Recipe, *, again: bool = False) -> tuple[str, str, Recipe]:
        """A recipe that lacks a part: the part's name, the change as it is written, and the recipe.

        again: others were left out before it.
        """
        known = {field.name: field for field in dataclasses.fields(Recipe)}
        name, equals, text = (word.strip() for word in part.partition("="))
        head, dot, inner = name.partition(".")
        head = head.replace("-", "_")
        if head not in known or (dot and head not in ("augment", OPTIONS)):
            raise unknown("setting to leave out", name, [key for key in known if key not in FIXED])
        if head in FIXED:
            raise StriateError(
                f"{head} cannot be compared", hint="all runs share it, or it changes no result"
            )
        if dot and head == "augment" and not equals:
            asked = recipe.augment if recipe.augment != "auto" else self.settled.augment
            augment = _without(asked, inner, again)
            return name, f"augment {augment}", recipe.with_(augment=augment)
        value = (
            read_value(text, f"{head}.{inner}" if dot else head) if equals else known[head].metadata["off"]
        )
        if value is dataclasses.MISSING or bool(dot) != (head == OPTIONS):
            having = [key for key, field in known.items() if field.metadata["off"] is not dataclasses.MISSING]
            other = f"{OPTIONS}.{inner or 'NAME'}" if head == OPTIONS else head
            raise StriateError(
                f"{name} has no value that leaves it out",
                allowed=having,
                hint=f"or another value: {other}=VALUE",
            )
        if dot:
            made = recipe.with_(net_options={**recipe.net_options, inner: value})
            return name, f"{OPTIONS}.{inner} {told(value)}", made
        if head == "start_from" and not value:
            # The same net, though it is the source that named it.
            like = self.alike
            recipe = recipe.with_(
                net=like.net, net_options=like.net_options, size=like.size, channels=like.channels
            )
        return head, f"{head} {told(value)}", recipe.with_(**{head: value})


def _without(augment: str, name: str, again: bool) -> str:
    """The augmentation without its steps of that name."""
    steps = steps_of(augment)
    kept = [written(step) for step in steps if name_of(step) != name]
    if len(kept) == len(steps) and not again:
        raise unknown(
            "step of the augmentation", name, map(name_of, steps), hint=f"the recipe has {augment!r}"
        )
    return "+".join(kept) or "none"


def ablate(
    data: str | os.PathLike[str] | Dataset, recipe: Recipe, parts: str | Sequence[str], *, repeats: int = 1,
    out: str | os.PathLike[str], resume: bool = False, progress: bool = True, report: bool = True,
) -> Ablation | JobResult:  # fmt: skip
    """Train the whole recipe and each that lacks a part, with the same seeds, and compare their scores.

    parts: as of `check_ablation`. Every run lies in `out/RECIPE/seed-N`; resume: finished ones are kept.
    Writes `ablation.json`, `ablation.csv` and `ablation.png`. Of several processes those that do not test
    give what they know of the last run.

    Raises:
        StriateError: as `check_ablation` and `train_repeats`.
        Interrupted: SIGINT or SIGTERM; the state of the running one was saved.
    """
    root = place_of(out)
    arms = check_ablation(data, recipe, parts)
    check_repeats(data, recipe, repeats)
    if int(os.environ.get("RANK", "0")) == 0:
        check_free(root, resume)
    found: list[Repeats | str] = []
    for arm in arms:
        try:
            runs = train_repeats(
                data, arm.recipe, repeats=repeats, out=root / arm.folder, resume=resume, progress=progress,
                report=report,
            )  # fmt: skip
        except Interrupted as stopped:
            raise Interrupted(stopped.signal, str(root)) from stopped
        except Diverged as error:
            # That a part keeps training from diverging is worth a row, too.
            if arm is arms[0]:
                raise
            found.append(str(error).partition(";")[0])
            continue
        if not isinstance(runs, Repeats):
            last = runs
            continue
        found.append(runs)
    if not found or isinstance(found[0], str):
        return last
    result = _compared(arms, found[0], found, root)
    for suffix in ("json", "csv", "png"):
        result.save(root / f"ablation.{suffix}")
    return result


def ablation_verb(
    data: str | None, recipe: Recipe, parts: str | Sequence[str], *, out: str | None, resume: bool | str,
    repeats: int, dry_run: bool, report: bool,
) -> Any:  # fmt: skip
    """What `striate train --ablate` does: the runs and their comparison, or the checks only.

    Raises:
        StriateError: anything in the arguments that the user can mend.
    """
    if data is None:
        raise StriateError("no data given", hint="give a folder of images, an archive, a .csv or a name")
    if dry_run and resume:
        raise StriateError("a dry run takes no resume", hint="leave out one of them")
    folder = folder_of_several(data, recipe, out, resume)
    if not dry_run:
        return ablate(data, recipe, parts, repeats=repeats, out=folder, resume=bool(resume), report=report)
    arms = check_ablation(data, recipe, parts)
    check_repeats(data, recipe, repeats)
    lines = []
    for arm in arms:
        check_free(place_of(folder) / arm.folder, False)
        told_of = session.rehearse(data, arm.recipe, out=place_of(folder) / arm.folder)
        lines += [f"{arm.name}: {arm.change}" if arm.change else arm.name, *(f"  {line}" for line in told_of)]
    return Rehearsal(tuple(lines))


def _compared(arms: Sequence[Arm], whole: Repeats, found: Sequence[Repeats | str], root: Path) -> Ablation:
    gaps = [_gap(runs, whole) for runs in found]
    several = len(whole.seeds) > 1
    done = [runs if isinstance(runs, Repeats) else None for runs in found]
    return Ablation(
        main_name=whole.main_name, split=whole.split, n=whole.n, seeds=whole.seeds,
        names=tuple(arm.name for arm in arms), changes=tuple(arm.change for arm in arms),
        means=tuple(None if runs is None else runs.mean for runs in done),
        sds=tuple(None if runs is None else runs.sd for runs in done),
        differences=tuple(gap[0] for gap in gaps), lows=tuple(gap[1] for gap in gaps),
        highs=tuple(gap[2] for gap in gaps),
        verdicts=tuple(
            runs if isinstance(runs, str) else _verdict(gap) if several and runs is not whole else ""
            for runs, gap in zip(found, gaps, strict=True)
        ),
        folders=tuple(str(root / arm.folder) for arm in arms), redrawn=whole.redrawn,
    )  # fmt: skip


def _gap(runs: Repeats | str, whole: Repeats) -> tuple[float | None, float | None, float | None]:
    """By how much a recipe's mean is above that of the whole, with its interval."""
    if isinstance(runs, str):
        return None, None, None
    if len(runs.scores) > 1:
        return over_runs(np.subtract(runs.scores, whole.scores))
    right, other = _right(runs.folders[0]), _right(whole.folders[0])
    if right is None or other is None or len(right) != len(other):
        return runs.mean - whole.mean, None, None
    return difference(right, other)


def _right(folder: str) -> Any:
    """Which images a run's net answered rightly; None where that is no question of its task."""
    scores = json.loads((Path(folder) / EVALUATION).read_text("utf-8"))["scores"]
    if not {"predicted", "true"} <= set(scores) or np.ndim(scores["true"]) != 1:
        return None
    return np.equal(scores["predicted"], scores["true"])


def _verdict(gap: tuple[float | None, float | None, float | None]) -> str:
    """What the interval of a difference to the whole recipe says."""
    low, high = gap[1:]
    if low is None or high is None:
        return ""
    return "worse" if high < 0 else "better" if low > 0 else "cannot be told"
