"""The demo: LeNet-5 on embedded digits with its report, and two photographs recognised."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from striate.core.errors import StriateError
from striate.core.files import write_json
from striate.core.results import Result
from striate.model import load
from striate.studies.job import JobResult, train_and_report
from striate.train.recipe import Recipe

MARK = "demo.json"  # in a folder that the demo made, and may make anew
NET = "efficientnet_lite0"
# One thread: on pictures this small, several spend their time waiting for one another.
RECIPE = Recipe(
    net="lenet5", epochs=12, size=28, batch=32, optimizer="adamw", lr=3e-3, test=0.2, threads=1,
    augment="affine(rotate=8,translate=0.06,scale=0.1)",
)  # fmt: skip


@dataclass(frozen=True)
class Demo(Result):
    """What the demo did: the run on the digits, and for each photograph its likeliest classes (0 to 1)."""

    ROWS = ("photographs", "answers")  # type: tuple[str, ...]

    digits: JobResult
    photographs: tuple[str, ...]
    answers: tuple[tuple[tuple[str, float], ...], ...]
    trouble: str = ""

    def lines(self) -> list[str]:
        """Scores, photographs, and where the report is."""
        told = [
            "LeNet-5 on 1,797 handwritten digits of scikit-learn",
            *(f"  {line}" for line in self.digits.lines()),
        ]
        if self.photographs:
            told.append("EfficientNet-Lite0, trained on ImageNet, on two photographs of scikit-learn")
        for name, answer in zip(self.photographs, self.answers, strict=True):
            told.append(f"  {name}: " + ", ".join(f"{label} {100 * p:.0f} %" for label, p in answer))
        if self.trouble:
            told.append(f"photographs left out: {self.trouble}")
        return [*told, f"Open the report: {self.digits.report}"]


def demo(out: str | os.PathLike[str] = "runs/demo", *, seed: int = 0, progress: bool = True) -> Demo:
    """Train, test and explain LeNet-5 on embedded digits in `out`; recognise two photographs.

    A folder that an earlier demo made is made anew. Where the weights of EfficientNet-Lite0 are not
    installed, the photographs are left out and the result says how to get them.

    Raises:
        StriateError: `out` holds something else.
    """
    folder = Path(out)
    _clear(folder)
    write_json(folder / MARK, {"made by": "striate demo", "seed": seed})
    done = train_and_report("digits", RECIPE.with_(seed=seed), out=folder, progress=progress)
    try:
        names, answers = recognise(photographs())
    except StriateError as error:
        return Demo(done, (), (), str(error))
    return Demo(done, names, answers)


def recognise(paths: list[Path]) -> tuple[tuple[str, ...], tuple[tuple[tuple[str, float], ...], ...]]:
    """The names of image files and their three likeliest ImageNet classes with probabilities.

    Raises:
        StriateError: the weights are not installed; says how to get them.
    """
    answers: list[Any] = load(NET).predict(paths, top=3)
    told = tuple(tuple((row.label, float(row.probability)) for row in _rows(answer)) for answer in answers)
    return tuple(path.name for path in paths), told


def photographs() -> list[Path]:
    """The two photographs that come with scikit-learn: china.jpg and flower.jpg."""
    from sklearn.datasets import load_sample_images

    return [Path(name) for name in sorted(load_sample_images().filenames)]


@dataclass(frozen=True)
class _Row:
    label: str
    probability: float


def _rows(answer: Any) -> list[_Row]:
    return [
        _Row(str(label), float(p))
        for label, p in zip(answer.top.labels, answer.top.probabilities, strict=True)
    ]


def _clear(folder: Path) -> None:
    """Remove a folder that an earlier demo made.

    Raises:
        StriateError: it holds something else.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        ours = json.loads((folder / MARK).read_text("utf-8")).get("made by") == "striate demo"
    except (OSError, ValueError, AttributeError):
        ours = False
    if not ours or folder.is_symlink():
        raise StriateError(
            f"{str(folder)!r} holds something else than a demo", hint="choose another with --out"
        )
    shutil.rmtree(folder)
