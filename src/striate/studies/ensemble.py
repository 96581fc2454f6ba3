"""What `striate ensemble` does: several trained models as one, by their posteriors or their weights."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from striate.core.errors import StriateError, unknown
from striate.core.files import check_target
from striate.core.results import Result
from striate.core.runs import MODEL, SETTINGS, Run
from striate.data.loaders import Loader
from striate.ensemble import Ensemble, average_weights
from striate.evaluate.evaluate import Evaluation, evaluate
from striate.evaluate.opening import images_to_test
from striate.evaluate.paired import difference, mcnemar
from striate.evaluate.protocols import parse_protocol
from striate.model import Model, load
from striate.tasks.scores import ClassificationScores
from striate.train.members import SNAPSHOTS

AVERAGES = ("posteriors", "weights")
# Training images from which the statistics of batch norm are estimated for averaged weights.
NORM_IMAGES = 10_000


@dataclass(frozen=True)
class Joined(Result):
    """A model made of several: its file, how, of which models, and, where data were given, how it does."""

    path: Path
    average: str
    members: tuple[str, ...]
    tested: Evaluation | None = None
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """What was joined, and how it does."""
        told = [f"{self.average} of {len(self.members)} models averaged: {', '.join(self.members)}"]
        told += self.tested.lines() if self.tested is not None else []
        return [*told, *self.notes, f"model: {self.path}"]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; of the test without what stands once for each image."""
        tested = None if self.tested is None else self.tested.brief()
        return {**super().to_dict(), "tested": tested}


def ensemble(
    models: Sequence[str | os.PathLike[str]],
    *,
    out: str | os.PathLike[str],
    average: str = "posteriors",
    data: str | None = None,
    split: str | None = None,
    last: int = 0,
    **how: Any,
) -> Joined:
    """Join models into one file, and test it where `data` is given.

    models: what `load` takes; a folder of runs or of .safetensors files stands for all of them, and a run
    alone that kept snapshots for those. average: "posteriors" keeps all nets in the file, "weights" gives
    one net; its batch norms are estimated anew from training images of `data`, or of the data that the
    first run names. split: of `data`, "test" by default. last: so many of the models at the end of the list
    only, 0 for all. how: as of `evaluate`.

    Raises:
        StriateError: too few models, or models that do not fit each other; a split without data; no training
            images where the average of weights wants them.
    """
    if average not in AVERAGES:
        raise unknown("average", average, AVERAGES)
    if last < 0 or last == 1:
        raise StriateError(f"last is {last}", allowed="0 for all, or at least 2")
    protocol = how.get("protocol", "center")
    parse_protocol(protocol)
    for name, value in {"split": split, "protocol": None if protocol == "center" else protocol}.items():
        if value is not None and data is None:
            raise StriateError(f"{name} {value!r} is given without data", hint="give --data to test on")
    check_target(out, [".safetensors"])
    given = found_models(models)
    if last > len(given):
        raise StriateError(f"last is {last} of {len(given)} models", allowed="at most all of them")
    given = given[-last:]
    loaded = [load(one) for one in given]
    if data is not None:
        # Before anything is written: that these can be tested on.
        images_to_test(data, loaded[0], split or "test", {})
    if average == "posteriors":
        made: Model = Ensemble(loaded, names=_names(given, loaded))
    else:
        norms = _batches(loaded[0], _spec(data, given[0])) if _has_norms(loaded[0]) else None
        made = average_weights(loaded, norms)
    path = made.save(out)
    tested, notes = None, list[str]()
    if data is not None:
        how["split"] = split or "test"
        tested = evaluate(made, data, **how)
        if average == "weights":
            notes = _gain(tested, [evaluate(one, data, **how) for one in loaded])
    return Joined(path, average, tuple(map(str, given)), tested, tuple(notes))


def found_models(given: Sequence[str | os.PathLike[str]]) -> list[str]:
    """The models that are meant: a folder of several stands for them, a run alone for its snapshots.

    Raises:
        StriateError: a folder without a model.
    """
    if not given:
        raise StriateError("no model is given", hint="give run folders or .safetensors files, two at least")
    found: list[str] = []
    for one in given:
        path = Path(one)
        snapshots = path / SNAPSHOTS
        if len(given) == 1 and snapshots.is_dir():
            path = snapshots
        if not path.is_dir() or (path / MODEL).is_file() or (path / SETTINGS).is_file():
            found.append(os.fspath(one))
            continue
        files = [file for file in path.iterdir() if file.suffix == ".safetensors"]
        runs = [run.parent for run in path.glob(f"*/{MODEL}")]
        if not files and not runs:
            raise StriateError(f"there is no model in the folder {os.fspath(one)!r}", hint="check the path")
        found += [str(part) for part in sorted(files or runs, key=_natural)]
    return found


def _natural(path: Path) -> list[tuple[int, str]]:
    """The order in which cycle-9 stands before cycle-10."""
    return [
        (int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.name) if part
    ]


def _names(given: Sequence[str], models: Sequence[Model]) -> list[str]:
    """What members are called: the ends of their paths that tell them apart."""
    stems = [Path(one).stem for one in given]
    if len(set(stems)) < len(stems):
        stems = [Path(one).parent.name if Path(one).name == MODEL else Path(one).name for one in given]
    if len(set(stems)) < len(stems) or any(model.members for model in models):
        return []
    return stems


def _spec(data: str | None, run: str) -> str:
    """The data of the training: as given, or as the run's settings name them.

    Raises:
        StriateError: neither tells.
    """
    folder = Path(run)
    for place in (folder, folder.parent, folder.parent.parent):
        if data is None and (place / SETTINGS).is_file():
            data = str(Run.open(place).settings().get("data", {}).get("given") or "") or None
    if data is None:
        raise StriateError(
            "the average of nets with batch norm wants training images for its statistics",
            hint="give the data that they were trained on with --data",
        )
    return data


def _has_norms(model: Model) -> bool:
    from striate.nets.averaging import Norm

    return any(isinstance(module, Norm) for module in model.net.modules())


def _batches(model: Model, data: str) -> Iterator[Tensor]:
    """Training images as the training saw them: augmented, in its batches, at most NORM_IMAGES of them."""
    recipe = model.card.get("recipe") or {}
    _, samples, _ = images_to_test(data, model, "train", {})
    batch = int(recipe.get("batch") or 128)
    loader = Loader(
        samples, model.preprocess, batch=min(batch, len(samples)), seed=int(recipe.get("seed") or 0),
        train=True, augment=str(recipe.get("augment") or "none"),
    )  # fmt: skip
    try:
        for part in itertools.islice(loader.batches(0), max(1, NORM_IMAGES // loader.batch)):
            yield part.images
    finally:
        loader.close()


def _gain(tested: Evaluation, members: Sequence[Evaluation]) -> list[str]:
    """The averaged net against the best of those that it is made of, on the same images."""
    best = max(members, key=lambda one: one.scores.main)
    number = list(members).index(best) + 1
    gain = 100 * (tested.scores.main - best.scores.main)
    told = f"{tested.scores.main_name} {gain:+.2f} points over the best member, #{number}"
    if isinstance(tested.scores, ClassificationScores) and tested.n == best.n:
        right, other = (one.scores.predicted == one.scores.true for one in (tested, best))  # type: ignore[attr-defined]
        _, low, high = (100 * part for part in difference(right, other))
        told += f" (95% interval {low:+.2f} to {high:+.2f}; McNemar p {mcnemar(right, other):.2g})"
    listed = ", ".join(f"#{k} {100 * one.scores.main:.2f} %" for k, one in enumerate(members, 1))
    return [told, f"{best.scores.main_name} of the members: {listed}"]
