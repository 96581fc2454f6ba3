"""Predictions for files: answers beside file names, as table, JSON or mask pictures."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from striate.core.errors import StriateError
from striate.core.files import check_target, write_text
from striate.core.results import Result
from striate.images import draw
from striate.images.decode import to_image
from striate.model import Model, image_files, load


@dataclass(frozen=True)
class Answers(Result):
    """One answer a file, in the order given; files that could not be read are in `bad`.

    engine: what the net ran on; notes: engines that were dropped, and why.
    """

    ROWS = ("files", "answers")

    files: Sequence[str]
    answers: Sequence[Any]
    bad: Sequence[tuple[str, str]] = ()
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
        path = Path(given)
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

    Raises:
        StriateError: nothing to predict, an unreadable file (unless `skip_bad`), a suffix that is not known.
    """
    if out:
        check_target(out, [".csv", ".json"], folder=True)
    loaded = load(model)
    found = loaded.predict(
        list(expand(paths)), top=top, batch=batch, threads=threads or None, device=device,
        on_error="skip" if skip_bad else "raise", engine=engine,
    )  # fmt: skip
    pairs = [pair for pair in zip(found.names, found, strict=True) if pair[1] is not None]
    result = Answers([name for name, _ in pairs], [answer for _, answer in pairs], found.bad, *ran_on(loaded))
    if out:
        _write(result, loaded, Path(out))
    return result


def ran_on(model: Model) -> tuple[str, list[str]]:
    """What a model's net ran on, and the engines that were dropped."""
    engines = model.engines()
    return engines.told(), list(engines.notes)


def _write(result: Answers, model: Model, out: Path) -> None:
    if out.suffix == ".json":
        result.save(out)
    elif out.suffix == ".csv":
        _write_table(result, out)
    else:
        _write_masks(result, model, out)


def _write_table(result: Answers, out: Path) -> None:
    """One row a file: file, then label_1, probability_1, label_2, ... as far as any answer goes."""
    tops = [answer.top for answer in result.answers if hasattr(answer, "top")]
    if len(tops) < len(result.answers):
        raise StriateError("masks do not fit into a table", hint="give a folder with --out, or a .json file")
    most = max((len(top.labels) for top in tops), default=0)
    head = [f"{kind}_{k}" for k in range(1, most + 1) for kind in ("label", "probability")]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", *head])
    for file, top in zip(result.files, tops, strict=True):
        pairs = zip(top.labels, top.probabilities, strict=True)
        writer.writerow([file, *(cell for pair in pairs for cell in pair)])
    write_text(out, text.getvalue())


def _write_masks(result: Answers, model: Model, out: Path) -> None:
    """The index mask of each file as .png (8 bit), and the image with its classes laid over it."""
    if any(not hasattr(answer, "mask") for answer in result.answers):
        raise StriateError(
            f"a {model.task.name} model gives no masks", hint="give a .csv or .json file with --out"
        )
    taken: dict[str, None] = {}
    for file in result.files:
        stem = Path(file).stem
        while not taken.keys().isdisjoint((f"{stem}.png", f"{stem}_overlay.png")):
            stem += "_"
        taken |= {f"{stem}.png": None, f"{stem}_overlay.png": None}
    given = {Path(file).resolve() for file in result.files}
    for name in taken:
        if (out / name).resolve() in given:
            raise StriateError(
                f"the mask {str(out / name)!r} would take the place of a picture that was given",
                hint="give another folder with --out",
            )
    names = iter(taken)
    for file, answer in zip(result.files, result.answers, strict=True):
        draw.save(out / next(names), answer.mask.astype("uint8")[..., None])
        draw.save(out / next(names), model.task.draw(to_image(file), answer))
