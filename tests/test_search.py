"""The search: proposals, pruning, errors, and several workers on one study."""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from striate.core.errors import StriateError
from striate.core.runs import Run
from striate.data.formats import open_data
from striate.data.samples import Dataset
from striate.train import search as room
from striate.train import session
from striate.train.fit import Interrupted
from striate.train.progress import Progress
from striate.train.recipe import Recipe
from striate.train.samplers import PRUNERS, SAMPLERS
from striate.train.search import search
from striate.train.study import Study

Score = Callable[[Recipe, int], float]


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return open_data("digits")


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Recipe]:
    """Training of no cost: the score of each epoch is a function of the recipe; returns what was trained."""
    asked: list[Recipe] = []

    def train(data: Any, recipe: Recipe, *, out: Path, watch: Any, **_: Any) -> Run:
        asked.append(recipe)
        run = Run(out) if (out / "settings.json").exists() else Run.create(out, {"asked": {}})
        job = SimpleNamespace(recipe=recipe, state=SimpleNamespace(scores=[], epoch=0, stopped=False))
        job.state.score_name = "top-1"
        for epoch in range(1, recipe.epochs + 1):
            job.state.scores.append(score(recipe, epoch))
            job.state.epoch = epoch
            watch("epoch", job)
        run.event("end", score_name="top-1", score=job.state.scores[-1])
        run.model.write_bytes(f"model of lr {recipe.lr}".encode())
        return run

    monkeypatch.setattr(session, "train", train)
    return asked


def score(recipe: Recipe, epoch: int) -> float:
    """Best at lr 0.1; rises with the epochs."""
    import math

    return max(0.0, 0.9 - 0.1 * abs(math.log10(recipe.lr or 1) + 1) - 0.3 / epoch)


def run(digits: Dataset, out: Path, trials: int = 6, **more: Any) -> Study:
    space = more.pop("space", {"lr": "log(1e-3,1)", "batch": "64,128"})
    settings = {"epochs": 3, "pruner": "none"} | more
    return search(digits, space=space, trials=trials, out=out, progress=False, **settings)


def proposals(study: Study) -> list[dict[str, Any]]:
    return [record.settings for record in study.records()]


@pytest.mark.parametrize("name", SAMPLERS.names())
def test_one_process_proposes_the_same_again_however_often_it_is_started(
    name: str, tmp_path: Path, digits: Dataset, trained: list[Recipe]
) -> None:
    space = {"lr": "log(1e-3,1,4)" if name == "grid" else "log(1e-3,1)", "batch": "64,128,256"}
    more = {"sampler": name, "space": space}
    first = proposals(run(digits, tmp_path / "a", 12, **more))
    for trials in (3, 11, 12):  # stopped and begun anew in between
        study = run(digits, tmp_path / "b", trials, **more)
    assert proposals(study) == first
    assert len({json.dumps(p) for p in first}) == 12
    assert proposals(run(digits, tmp_path / "c", 3, seed=1, **more)) != first[:3]


def test_a_grid_is_every_combination_once_and_then_done(
    tmp_path: Path, digits: Dataset, trained: list[Recipe]
) -> None:
    space = {"lr": "log(1e-3,1,4)", "batch": "64,128"}
    study = run(digits, tmp_path / "s", 100, space=space, sampler="grid")
    found = sorted((p["lr"], p["batch"]) for p in proposals(study))
    assert found == sorted(itertools.product((0.001, 0.01, 0.1, 1.0), (64, 128)))
    best = study.best()
    assert best is not None
    assert best.settings["lr"] == 0.1
    assert (tmp_path / "s" / "model.safetensors").read_bytes() == b"model of lr 0.1"


def test_bayesian_search_beats_random_on_a_smooth_hill(
    tmp_path: Path, digits: Dataset, trained: list[Recipe]
) -> None:
    far = {}
    for name in ("random", "tpe", "gp"):
        study = run(digits, tmp_path / name, 22, sampler=name, space={"lr": "log(1e-5,10)"}, epochs=1)
        lrs = [p["lr"] for p in proposals(study)][10:]
        far[name] = sum(abs(score(Recipe(lr=lr), 1) - score(Recipe(lr=0.1), 1)) for lr in lrs)
    assert far["tpe"] < 0.6 * far["random"]
    assert far["gp"] < 0.6 * far["random"]


def test_the_settings_reach_the_recipe_and_all_trials_share_the_split(
    tmp_path: Path, digits: Dataset, trained: list[Recipe]
) -> None:
    study = run(digits, tmp_path / "s", 4, space={"lr": "0.1,0.5", "seed": "3,4,5"}, momentum=0.8)
    for recipe, values in zip(trained, proposals(study), strict=True):
        assert recipe == Recipe(epochs=3, momentum=0.8).with_(**values)
    records = study.records()
    assert [r.scores for r in records] == [
        {k: pytest.approx(score(Recipe(lr=r.settings["lr"]), k)) for k in (1, 2, 3)} for r in records
    ]
    assert [Path(r.folder).name for r in records] == ["0000", "0001", "0002", "0003"]


@pytest.mark.parametrize("name", PRUNERS.names())
def test_pruning_ends_poor_trials_and_keeps_good_ones(
    name: str, tmp_path: Path, digits: Dataset, trained: list[Recipe]
) -> None:
    more = {"space": {"lr": "log(1e-5,10)"}, "epochs": 9, "sampler": "random"}
    study = run(digits, tmp_path / "s", 24, pruner=name, **more)
    records = study.records()
    early = [r for r in records if r.state == "ended early"]
    assert {r.state for r in records} <= {"finished", "ended early"}
    if name == "none":
        assert not early
        return
    assert 4 <= len(early) <= 20
    assert all(len(r.scores) < 9 and r.score == r.scores[max(r.scores)] for r in early)
    done = [r for r in records if r.state == "finished"]
    distance = [score(Recipe(lr=r.settings["lr"]), 9) for r in done]
    assert max(distance) == max(score(Recipe(lr=r.settings["lr"]), 9) for r in records)
    assert not (Run(early[0].folder).model).exists()


def test_a_trial_that_cannot_be_trained_does_not_end_the_search(
    tmp_path: Path, digits: Dataset, monkeypatch: pytest.MonkeyPatch, trained: list[Recipe]
) -> None:
    train = session.train

    def failing(data: Any, recipe: Recipe, **more: Any) -> Run:
        if recipe.batch == 128:
            raise StriateError("the loss is no longer a number in epoch 1")
        if recipe.batch == 256:
            raise MemoryError
        return train(data, recipe, **more)

    monkeypatch.setattr(session, "train", failing)
    study = run(digits, tmp_path / "s", 9, space={"batch": "64,128,256", "lr": "0.1,0.2,0.3"}, sampler="grid")
    states = {(r.settings["batch"], r.state, r.error) for r in study.records()}
    assert states == {
        (64, "finished", ""),
        (128, "failed", "the loss is no longer a number in epoch 1"),
        (256, "failed", "out of memory"),
    }
    with pytest.raises(StriateError, match="first 3 trials all ended by errors, the last: the loss"):
        run(digits, tmp_path / "t", 9, space={"batch": "128,256", "lr": "0.1,0.2"}, sampler="grid", seed=2)


def test_an_interrupted_trial_goes_to_the_next_worker_in_its_own_folder(
    tmp_path: Path, digits: Dataset, monkeypatch: pytest.MonkeyPatch, trained: list[Recipe]
) -> None:
    train = session.train

    def stopped(data: Any, recipe: Recipe, *, out: Path, **more: Any) -> Run:
        Run.create(out, {"asked": {"device": "auto", "mode": "auto"}})
        (out / "half").write_text("")
        raise Interrupted(signal.SIGTERM, str(out))

    run(digits, tmp_path / "s", 2)
    monkeypatch.setattr(session, "train", stopped)
    with pytest.raises(Interrupted, match=r"SIGTERM.*--out") as error:
        run(digits, tmp_path / "s", 4)
    assert error.value.exit_code == 143
    assert str(tmp_path / "s") in str(error.value)
    assert "trials" not in str(error.value)
    monkeypatch.setattr(session, "train", train)
    records = run(digits, tmp_path / "s", 4).records()
    assert [r.state for r in records] == ["finished", "finished", "lost", "finished", "finished"]
    assert records[3].retry_of == 2
    # Stopping in good order is no crash: it may happen as often as it likes.

    def halted(*_: Any, **__: Any) -> Run:
        raise Interrupted(signal.SIGTERM, "")

    monkeypatch.setattr(session, "train", halted)
    for _ in range(room.TRIES + 1):
        with pytest.raises(Interrupted):
            run(digits, tmp_path / "s", 5)
    monkeypatch.setattr(session, "train", train)
    states = [r.state for r in run(digits, tmp_path / "s", 5).records()]
    assert states.count("finished") == 5
    assert records[3].settings == records[2].settings
    assert (Path(records[3].folder) / "half").exists()
    assert not Path(records[2].folder).exists()


def test_a_trial_that_kills_its_workers_is_given_up(
    tmp_path: Path, digits: Dataset, monkeypatch: pytest.MonkeyPatch, trained: list[Recipe]
) -> None:
    train = session.train

    def deadly(data: Any, recipe: Recipe, **more: Any) -> Run:
        if recipe.batch == 64:
            raise KeyboardInterrupt
        return train(data, recipe, **more)

    monkeypatch.setattr(session, "train", deadly)
    space, deaths = {"batch": "64,128"}, 0
    for _ in range(10):
        try:
            study = run(digits, tmp_path / "s", 2, space=space, sampler="grid")
            break
        except KeyboardInterrupt:
            deaths += 1
    assert deaths == room.TRIES
    assert sorted(r.state for r in study.records()) == ["finished", "lost", "lost", "lost"]


def test_a_trial_of_a_dead_machine_is_put_up_again_after_its_silence(
    tmp_path: Path, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*_: Any, **__: Any) -> Run:
        raise KeyboardInterrupt

    monkeypatch.setattr(session, "train", dies)
    monkeypatch.setattr(room.Worker, "hand_back", lambda self, trial: None)
    with pytest.raises(KeyboardInterrupt):
        run(digits, tmp_path / "s")
    study = Study.open(tmp_path / "s")
    worker = room.Worker(study, 2, "random", "none", Progress(False))
    lease = study.lease(0)
    lease.write_text("another-kernel 7\n")
    worker.reap()
    assert [r.state for r in study.records()] == ["running"]
    os.utime(lease, (1, 1))
    worker.reap()
    worker.reap()
    assert [r.state for r in study.records()] == ["lost", "waiting"]
    assert not lease.exists()


def test_who_was_taken_for_dead_stops_and_changes_nothing(
    tmp_path: Path, digits: Dataset, monkeypatch: pytest.MonkeyPatch, trained: list[Recipe]
) -> None:
    begin = room.Lease.begin

    def taken(self: room.Lease) -> room.Lease:
        begin(self)
        self.lost = self.path.name == "0000"
        if self.lost:
            self.path.unlink()
        return self

    monkeypatch.setattr(room.Lease, "begin", taken)
    study = run(digits, tmp_path / "s", 2)
    assert [r.state for r in study.records()] == ["lost", "finished", "finished"]
    assert study.records()[1].settings == study.records()[0].settings


def test_optunas_own_tools_read_the_journal_and_take_turns(
    tmp_path: Path, digits: Dataset, trained: list[Recipe]
) -> None:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    run(digits, tmp_path / "s", 3)
    path = tmp_path / "s" / "journal.jsonl"
    theirs = optuna.load_study(study_name="study", storage=JournalStorage(JournalFileBackend(str(path))))
    theirs.set_user_attr("note", "theirs")
    assert [t.number for t in theirs.trials] == [0, 1, 2]
    path.write_bytes(path.read_bytes() + b'{"op_code": 4, "stu')
    assert len(run(digits, tmp_path / "s", 5).records()) == 5
    assert theirs.user_attrs["note"] == "theirs"
    assert len(theirs.trials) == 5


def test_a_study_is_joined_without_saying_anything_and_refuses_what_differs(
    tmp_path: Path, digits: Dataset, trained: list[Recipe]
) -> None:
    out = tmp_path / "s"
    run(digits, out, 2, sampler="random")
    assert search(trials=3, out=out, progress=False).sampler == "random"
    assert len(search(digits, trials=5, out=out, progress=False, threads=1).records()) == 5
    assert trained[-1].threads == 1
    for change, words in [
        (
            {"space": {"lr": "log(1e-4,1)", "batch": "64,128"}},
            r"space.lr log\(0.0001,1\), not log\(0.001,1\)",
        ),
        ({"space": {"lr": "log(1e-3,1)"}}, "space.batch not searched, not 64,128"),
        ({"epochs": 7}, "epochs 7, not 3"),
    ]:
        with pytest.raises(StriateError, match=words):
            search(digits, trials=6, out=out, progress=False, **change)  # type: ignore[arg-type]
    with pytest.raises(StriateError, match="are not those that the study"):
        search(open_data("digits", seed=9), trials=6, out=out, progress=False)
    # The same space in another order and another notation is the same.
    assert len(run(digits, out, 5, space={"batch": [64, 128], "lr": "log( 0.001 , 1.0 )"}).records()) == 5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"trials": 0}, "search is 0; allowed: at least 1 trial"),
        ({"sampler": "tpes"}, "unknown sampler 'tpes'; allowed: gp, grid, random, tpe; did you mean 'tpe'"),
        ({"pruner": "hyper"}, "did you mean 'hyperband'"),
        ({"sampler": "grid"}, "a grid needs the number of points of lr"),
        ({"lr": 0.1}, "lr is both given and searched"),
        ({"space": {"net": "lenet5,lenet6"}}, "unknown net 'lenet6'"),
        ({"net": "lenet5", "space": {"net_options.wdth": "1,2"}}, "unknown option of net"),
        ({"space": {"net_options.wdth": "1,2"}}, "unknown option of net 'resnet20' 'wdth'"),
        ({"net_options": {"wdth": 3}}, "unknown option of net 'resnet20' 'wdth'"),
        ({"space": None}, "no search space given"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(
    change: dict[str, Any], words: str, tmp_path: Path, digits: Dataset
) -> None:
    with pytest.raises(StriateError) as error:
        run(digits, tmp_path / "s", **({"trials": 3} | change))
    assert words in str(error.value)
    assert not (tmp_path / "s").exists()


def test_a_search_goes_by_whether_there_are_validation_images(
    tmp_path: Path, digits: Dataset, trained: list[Recipe]
) -> None:
    with pytest.raises(StriateError, match=r"a search needs validation images; give --val 0\.1"):
        run(open_data("digits", val=0), tmp_path / "without", 1)
    assert not (tmp_path / "without").exists()
    assert len(run(digits, tmp_path / "with", 1, val=0.0).records()) == 1


def test_a_folder_with_a_run_in_it_is_no_study(tmp_path: Path, digits: Dataset) -> None:
    Run.create(tmp_path / "r", {})
    with pytest.raises(StriateError, match="holds a run, not a study"):
        run(digits, tmp_path / "r")
    with pytest.raises(StriateError, match="no data given"):
        search(trials=3, out=tmp_path / "none", progress=False)


def test_without_optuna_one_line_says_what_to_install(
    tmp_path: Path, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(StriateError) as error:
        run(digits, tmp_path / "s")
    assert str(error.value) == "a search needs Optuna, which is not installed; pip install 'striate[search]'"


def test_importance_tells_the_setting_that_matters(
    tmp_path: Path, digits: Dataset, trained: list[Recipe]
) -> None:
    study = run(digits, tmp_path / "s", 30, sampler="random", space={"lr": "log(1e-3,1)", "clip": "0,1,2"})
    importance = study.result().importance
    assert importance["lr"] > 0.6
    assert sum(importance.values()) == pytest.approx(1)
    assert list(importance) == ["lr", "clip"]
