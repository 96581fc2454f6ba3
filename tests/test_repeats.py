"""Several runs of the main job with other seeds, and the spread of their scores."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from striate.core.errors import StriateError
from striate.core.runs import Run
from striate.data.loaders import Batch, Loader
from striate.data.samples import Dataset, Split
from striate.images.draw import save
from striate.studies.job import JobResult, train_verb
from striate.studies.repeats import Repeats, train_repeats
from striate.train.recipe import Recipe

QUICK = Recipe(
    net="lenet5", epochs=1, batch=10, optimizer="adamw", lr=2e-3, threads=1, seed=3, augment="none",
    preflight=False,
)  # fmt: skip


def squares(*names: str) -> Dataset:
    """Dark and light squares, whose labels are wrong now and then; splits of 40 by these names."""
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 2, 40 * len(names))
    shown = np.where(rng.random(len(targets)) < 0.8, targets, 1 - targets)
    pictures = (rng.integers(0, 120, (len(targets), 28, 28)) + 100 * shown[:, None, None]).astype(np.uint8)
    whole = Split.from_arrays("all", pictures, targets)
    parts = [whole.select(np.arange(40 * i, 40 * i + 40), name) for i, name in enumerate(names)]
    return Dataset("squares", "classification", ("dark", "light"), parts)


def repeat(data: Dataset, out: Path, **how: bool) -> Repeats:
    found = train_repeats(data, QUICK, repeats=2, out=out, progress=False, report=False, **how)
    assert isinstance(found, Repeats)
    return found


@pytest.mark.parametrize(
    ("names", "split"),
    [(("train", "val", "test"), "test"), (("train", "test"), "test"), (("train", "val"), "val")],
)
def test_mean_and_spread_are_of_the_images_kept_aside(
    names: tuple[str, ...], split: str, tmp_path: Path
) -> None:
    found = repeat(squares(*names), tmp_path)
    assert (found.seeds, found.split, found.n) == ((3, 4), split, 40)
    told = []
    for seed in found.seeds:
        kept = json.loads((tmp_path / f"seed-{seed}" / "evaluation.json").read_text())
        assert kept["split"] == split
        told.append(kept["scores"]["main"])
    assert found.scores == tuple(told)
    assert found.mean == pytest.approx(sum(told) / 2)
    assert found.sd == pytest.approx(statistics.stdev(told))
    assert json.loads((tmp_path / "repeats.json").read_text())["mean"] == found.mean
    assert "±" in found.lines()[-1]
    assert found.lines()[-1].endswith(f"on 40 {split} images")
    weights = [(tmp_path / f"seed-{seed}" / "model.safetensors").read_bytes() for seed in found.seeds]
    assert weights[0] != weights[1]


def test_what_is_done_is_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = repeat(squares("train", "test"), tmp_path)
    batches = Loader.batches

    def untrained(self: Loader, *args: int) -> Iterator[Batch]:
        assert not self.train
        return batches(self, *args)

    monkeypatch.setattr(Loader, "batches", untrained)
    assert repeat(squares("train", "test"), tmp_path, resume=True) == first


def test_repeats_go_into_no_folder_of_others(tmp_path: Path) -> None:
    data = squares("train", "test")
    repeat(data, tmp_path / "mine")
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "study.json").write_text("{}")
    for folder in ("mine", "study", "mine/seed-3"):
        with pytest.raises(StriateError, match=r"already holds .*continue repeats with --resume, or choose"):
            repeat(data, tmp_path / folder)
    assert not list((tmp_path / "mine" / "seed-3").glob("seed-*"))


def test_without_images_to_score_by_nothing_is_trained(tmp_path: Path) -> None:
    with pytest.raises(StriateError, match="neither test nor validation images to score by; give --val"):
        repeat(squares("train"), tmp_path)
    assert not (tmp_path / "seed-3").exists()


def test_splits_that_each_seed_draws_are_told(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for k in range(20):
            save(tmp_path / "data" / name / f"{k}.png", rng.integers(0, 256, (28, 28, 3), dtype=np.uint8))
    for given, drawn in (("data", True), ("train=data,test=data", False)):
        spec = given.replace("data", str(tmp_path / "data"))
        out = tmp_path / str(drawn)
        found = train_repeats(spec, QUICK, repeats=2, out=out, progress=False, report=False)
        assert isinstance(found, Repeats)
        assert found.redrawn is drawn
        assert found.lines()[-1].endswith("drawn anew by each seed") is drawn


def test_processes_that_do_not_test_have_no_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    data = squares("train", "test")
    # The first process may have begun meanwhile.
    (tmp_path / "seed-9").mkdir()
    (tmp_path / "seed-9" / "settings.json").write_text("{}")
    found = train_repeats(data, QUICK, repeats=1, out=tmp_path, progress=False, report=False)
    assert isinstance(found, JobResult)
    assert found.main is None


def test_fewer_than_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StriateError, match="repeats is 0"):
        train_repeats(squares("train", "test"), QUICK, repeats=0, out=tmp_path)


def test_resumed_without_its_settings_it_goes_on_as_it_was_begun(tmp_path: Path) -> None:
    """Neither a finished run nor one that is still to begin takes the defaults of what is not given."""
    rng = np.random.default_rng(1)
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for k in range(20):
            save(tmp_path / "data" / name / f"{k}.png", rng.integers(0, 256, (28, 28, 3), dtype=np.uint8))
    data, out = str(tmp_path / "data"), tmp_path / "out"
    first = train_repeats(data, QUICK, repeats=2, out=out, progress=False, report=False)
    assert isinstance(first, Repeats)
    before = [(Path(folder) / "model.safetensors").read_bytes() for folder in first.folders]
    given = frozenset({"data", "repeats", "out", "resume"})
    found = train_verb(data, Recipe(), repeats=3, out=str(out), resume=True, report=False, given=given)
    assert found.seeds == (3, 4, 5)
    assert found.scores[:2] == first.scores
    assert [(out / f"seed-{seed}" / "model.safetensors").read_bytes() for seed in (3, 4)] == before
    asked = [Run.open(out / f"seed-{seed}").settings()["asked"] for seed in found.seeds]
    assert [one["seed"] for one in asked] == [3, 4, 5]
    assert all({**one, "seed": 3} == asked[0] for one in asked)


def test_resumed_with_more_epochs_every_run_is_extended(tmp_path: Path) -> None:
    data = squares("train", "test")
    repeat(data, tmp_path)
    recipe, given = Recipe(epochs=2), {"epochs"}
    train_repeats(data, recipe, repeats=2, out=tmp_path, resume=True, progress=False, given=given)
    assert [len(Run.open(tmp_path / f"seed-{seed}").metrics()) for seed in (3, 4)] == [2, 2]
    with pytest.raises(StriateError, match="net 'mlp', not 'lenet5'"):
        train_repeats(data, Recipe(net="mlp"), repeats=2, out=tmp_path, resume=True, given={"net"})
