"""Predictions for files: answers beside file names, as table, JSON or mask pictures."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from striate.core.errors import BadImage, StriateError
from striate.core.files import check_target, place_of, write_text
from striate.core.results import Result
from striate.engines.chooser import check_name
from striate.images import draw
from striate.images.decode import to_image
from striate.model import Model, image_files, load

SUFFIXES = (".csv", ".json")


@dataclass(frozen=True)
class Answers(Result):
    """One answer a file, in the order given; files that could not be read are in `bad`.

    engine: what the net ran on; notes: engines that were dropped, and why.
    """

    ROWS = ("files", "answers")

    files: list[str]
    answers: list[Any]
    bad: list[tuple[str, str]]
    engine: str = "eager"
    notes: Sequence[str] = ()

    def lines(self) -> list[str]:
        """One line a file, then the unreadable ones."""
        width = max(map(len, self.files), default=0)
        told = [f"{file:<{width}}  {answer}" for file, answer in zip(self.files, self.answers, strict=True)]
        if self.bad:
            told.append(f"{len(self.bad)} unreadable:")
            told += [f"  {file}: {reason}" for file, reason in self.bad]
        return told


def expand(paths: Sequence[str]) -> Iterator[str]:
    """Files as given, and all image files in folders as given, sorted by name.

    Raises:
        StriateError: a folder without image files, or a path that does not exist.
    """
    for given in paths:
        path = place_of(given)
        if not given:
            raise StriateError("the name of an image is empty", hint="give image files or folders")
        if path.is_dir():
            yield from map(str, image_files(path))
        elif path.exists():
            yield str(path)
        else:
            raise StriateError(f"no file {str(path)!r}", hint="check the path")


def predict_files(
    model: str, paths: Sequence[str], *, top: int = 5, batch: int = 32, threads: int = 0,
    device: str = "auto", engine: str = "auto", skip_bad: bool = False, out: str | None = None,
) -> Answers:  # fmt: skip
    """Predict for files and folders; `out` takes a .csv or .json file, or a folder for masks.

    Masks that are written to a folder are not kept in the answers.

    Raises:
        StriateError: nothing to predict, an unreadable file (unless `skip_bad`), a suffix that is not known
            or does not fit the model's answers.
    """
    target = check_target(out, SUFFIXES, folder=True) if out else None
    loaded, files = load(model), list(expand(paths))
    places = _places(loaded, files, target) if target else {}
    loaded.to(device)
    loaded.engine = check_name(engine)
    result = Answers([], [], [])
    for number, (name, answer) in enumerate(
        loaded.stream(
            files, top=top, batch=batch, threads=threads or None, on_error="skip" if skip_bad else "raise"
        )
    ):
        if isinstance(answer, BadImage):
            result.bad.append((name, str(answer)))
            continue
        if number in places:
            mask, overlay = places[number]
            draw.save(mask, answer.mask[..., None])
            draw.save(overlay, loaded.task.draw(to_image(name), answer))
            answer = dataclasses.replace(answer, mask=np.empty((0, 0), np.uint8))
        result.files.append(name)
        result.answers.append(answer)
    engine, notes = ran_on(loaded)
    result = dataclasses.replace(result, engine=engine, notes=notes)
    if target and not places:
        _write(result, target)
    return result


def ran_on(model: Model) -> tuple[str, list[str]]:
    """What a model's net ran on, and the engines that were dropped."""
    engines = model.engines()
    return engines.told(), list(engines.notes)


def _places(model: Model, files: Sequence[str], out: Path) -> dict[int, tuple[Path, Path]]:
    """Where the mask and the overlay of each file go; nothing where `out` is no folder.

    Raises:
        StriateError: `out` cannot hold the answers of such a model, or is where the pictures lie.
    """
    suffix = out.suffix.lower()
    if model.task.dense and suffix == ".csv":
        raise StriateError("masks do not fit into a table", hint="give a folder with --out, or a .json file")
    if suffix in SUFFIXES:
        return {}
    if not model.task.dense:
        raise StriateError(
            f"a {model.task.name} model gives no masks", hint="give a .csv or .json file with --out"
        )
    given = {Path(file).resolve() for file in files}
    taken: set[str] = set()
    found = {}
    for number, file in enumerate(files):
        stem = Path(file).stem
        while not taken.isdisjoint((f"{stem}.png", f"{stem}_overlay.png")):
            stem += "_"
        mask, overlay = out / f"{stem}.png", out / f"{stem}_overlay.png"
        for place in (mask, overlay):
            taken.add(place.name)
            if place.resolve() in given:
                raise StriateError(
                    f"the mask {str(place)!r} would take the place of a picture that was given",
                    hint="give another folder with --out",
                )
        # What an earlier call wrote lies there in pairs.
        if mask.exists() != overlay.exists():
            raise StriateError(
                f"{str(mask if mask.exists() else overlay)!r} would be replaced, which is no earlier answer",
                hint="give another folder with --out",
            )
        found[number] = mask, overlay
    return found


def _write(result: Answers, out: Path) -> None:
    """A .json file of everything; a .csv file of a row a file: label_1, probability_1, label_2, ..."""
    if out.suffix.lower() == ".json":
        result.save(out)
        return
    tops = [answer.top for answer in result.answers]
    most = max((len(top.labels) for top in tops), default=0)
    head = [f"{kind}_{k}" for k in range(1, most + 1) for kind in ("label", "probability")]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", *head])
    for file, top in zip(result.files, tops, strict=True):
        pairs = zip(top.labels, top.probabilities, strict=True)
        writer.writerow([file, *(cell for pair in pairs for cell in pair)])
    write_text(out, text.getvalue())
