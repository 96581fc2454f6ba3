"""Training, evaluation and prediction speak of the same images: no training image is ever tested."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from striate.core.runs import MODEL, SPLITS, Run
from striate.data.formats import open_data
from striate.evaluate.evaluate import evaluate
from striate.evaluate.opening import images_to_test
from striate.images import draw
from striate.model import Model, load
from striate.studies import job
from striate.train import session
from striate.train.recipe import Recipe

# Splits that no default would draw.
OTHER = {"seed": 7, "val": 0.25, "test": 0.4, "threads": 1, "preflight": False, "workers": 0}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """LeNet-5 after one epoch of digits, tested as `striate train` does."""
    recipe = Recipe(net="lenet5", epochs=1, batch=32, optimizer="adamw", lr=3e-3, **(OTHER | {"test": 0.2}))
    folder = tmp_path_factory.mktemp("runs") / "digits"
    job.train_and_report("digits", recipe, out=folder, progress=False, report=False)
    return Run.open(folder)


def squares(root: Path, count: int = 20, seed: int = 0) -> Path:
    """Two classes of noise pictures."""
    rng = np.random.default_rng(seed)
    for place, name in enumerate(("dark", "light")):
        for k in range(count):
            image = rng.integers(100 * place, 100 * place + 100, (12, 12, 1)).astype(np.uint8)
            draw.save(root / name / f"{seed}-{k:02d}.png", image)
    return root


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A softmax classifier of such pictures, with splits that no default would draw."""
    data = squares(tmp_path / "squares")
    return session.train(
        str(data), net="linear", epochs=1, batch=8, lr=0.01, out=tmp_path / "run", progress=False, **OTHER
    )


def written(run: Run, split: str) -> set[str]:
    return set(json.loads((run.path / SPLITS).read_text())["splits"][split])


def seen(
    model: Model, data: Path | str, split: str = "test", **opening: Any
) -> tuple[set[str], Sequence[str]]:
    """The names of the images that would be tested, and the notes."""
    _, samples, notes = images_to_test(data, model, split, opening)
    return set(samples.names), notes


def test_evaluate_counts_what_the_run_itself_counted(digits: Run) -> None:
    own = json.loads((digits.path / job.EVALUATION).read_text())
    again = evaluate(digits.path, "digits")
    assert again.notes == ()
    assert (again.split, again.n, again.digest) == ("test", own["n"], digits.settings()["data"]["digest"])
    assert again.scores.summary() == own["summary"]
    assert again.scores.predicted.tolist() == own["scores"]["predicted"]


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_predict_on_every_test_image_gives_what_evaluate_counted(digits: Run, batch: int) -> None:
    model = load(digits.path)
    counted = evaluate(model, "digits").scores
    data, split, _ = images_to_test("digits", model, "test", {})
    assert len(split) == counted.n == 359
    answers = model.predict([split.image(i, channels=data.channels) for i in range(len(split))], batch=batch)
    assert [answer.index for answer in answers] == counted.predicted.tolist()
    assert sum(a.index == t for a, t in zip(answers, counted.true, strict=True)) == counted.correct
    assert evaluate(model, "digits", batch=batch).scores.predicted.tolist() == counted.predicted.tolist()


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize("copied", [False, True])
def test_the_splits_are_those_of_the_training(run: Run, tmp_path: Path, split: str, copied: bool) -> None:
    path = run.model
    if copied:
        path = Path(shutil.copy(path, tmp_path / "elsewhere.safetensors"))
    names, notes = seen(load(path), tmp_path / "squares", split)
    assert names == written(run, split)
    assert len(notes) == (split == "train")


def test_images_that_came_later_are_not_tested(run: Run, tmp_path: Path) -> None:
    squares(tmp_path / "squares", seed=1)
    names, notes = seen(load(run.path), tmp_path / "squares")
    assert names == written(run, "test")
    assert notes == ["40 images of squares are in no split and were not tested"]


def test_other_data_with_the_same_file_names_and_more_are_tested_whole(run: Run, tmp_path: Path) -> None:
    more = squares(tmp_path / "more", count=30)
    assert seen(load(run.path), more, "all") == (
        {f"{label}/0-{k:02d}.png" for label in ("dark", "light") for k in range(30)},
        ["split 'all' may hold images that the model was trained on"],
    )
    assert len(seen(load(run.path), more)[0]) == 60


def test_data_that_have_changed_are_told(run: Run, tmp_path: Path) -> None:
    (tmp_path / "squares" / sorted(written(run, "train"))[0]).unlink()
    names, notes = seen(load(run.path), tmp_path / "squares")
    assert len(names & written(run, "train")) <= 2
    assert "squares has other images or splits than when the model was trained on it" in notes[0]
    other = open_data(tmp_path / "squares", seed=1)
    assert "may be among those tested" in images_to_test(other, load(run.path), "test", {})[2][0]


def test_other_data_without_splits_are_tested_whole(run: Run, tmp_path: Path) -> None:
    more = squares(tmp_path / "more", count=9, seed=2)
    model = load(run.path)
    assert evaluate(model, more).n == 18
    assert len(seen(model, more, test=0.5)[0]) == 9
    model.card = {"recipe": {"val": "all", "seed": None}, "data": {"digest": 3}}
    assert len(seen(model, more)[0]) == 18


def test_the_options_that_are_given_win(run: Run, tmp_path: Path) -> None:
    names, notes = seen(load(run.path), tmp_path / "squares", seed=1)
    assert names == set(open_data(tmp_path / "squares", **(splits() | {"seed": 1})).split("test").names)
    assert "other images or splits" in notes[0]


def splits() -> dict[str, Any]:
    return {name: OTHER[name] for name in ("seed", "val", "test")}


def test_the_label_column_of_the_training_is_kept(tmp_path: Path) -> None:
    data = squares(tmp_path / "set")
    rows = [
        f"{path.relative_to(data)},{path.stem[-1]},{path.parent.name}" for path in sorted(data.rglob("*.png"))
    ]
    for name in ("first", "second"):
        (data / f"{name}.csv").write_text("\n".join(["path,label,shade", *rows]))
    given = f"train={data / 'first.csv'},test={data / 'second.csv'}"
    run = session.train(
        given, net="linear", epochs=1, batch=8, lr=0.01, label_column="shade", out=tmp_path / "run",
        progress=False, **OTHER,
    )  # fmt: skip
    model = load(run.path)
    assert model.classes == ("dark", "light")
    assert evaluate(model, given).n == 40
    assert (run.path / MODEL) == model.path
