"""Runs that are killed, stopped, starved of disk, spread over processes or extended end as they should."""

from __future__ import annotations

import os
import random
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from processes import moments, start, train, train_parallel
from striate.core.errors import StriateError
from striate.core.runs import Run
from striate.train import session
from striate.train.checkpoint import LAST, read_checkpoint
from striate.train.fit import Interrupted
from striate.train.writer import Writer

TINY: dict[str, Any] = {
    "net": "lenet5", "epochs": 4, "batch": 128, "optimizer": "adamw", "lr": 2e-3, "ema": 0.9, "clip": 1.0,
    "augment": "affine(rotate=10)", "workers": 1, "checkpoint_every": 0.0, "device": "cpu",
}  # fmt: skip


def result(folder: Path) -> tuple[bytes, str]:
    run = Run.open(folder)
    return run.model.read_bytes(), (folder / "metrics.csv").read_text()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, str]:
    """What the tiny run gives when nothing happens to it."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    process = start(train, str(folder), 0, "digits", TINY)
    process.join(60)
    assert process.exitcode == 0
    return result(folder)


def test_killed_at_twenty_moments_the_bytes_are_the_same(tmp_path: Path, whole: tuple[bytes, str]) -> None:
    folder, draw = tmp_path / "run", random.Random(4)
    faults = moments(seed=2, count=20, last=14)
    for kill in range(20):
        # Two of three die in the middle of writing, the others within a step: together in 31 steps at most.
        fault, share = (faults[kill], 0.0) if kill % 3 else (0, draw.uniform(0.01, 1.2))
        # Other numbers of loader threads give the same bytes.
        process = start(train, str(folder), fault, "digits", TINY | {"workers": kill % 3}, share)
        process.join(60)
        assert process.exitcode == -signal.SIGKILL, (folder / "error.txt").read_text()
    process = start(train, str(folder), 0, "digits", TINY)
    process.join(60)
    assert process.exitcode == 0
    assert result(folder) == whole
    assert not list(folder.rglob("*.tmp"))
    kinds = [event["event"] for event in Run.open(folder).events()]
    assert kinds.count("end") == 1
    assert kinds.count("start") >= 1


def newest(folder: Path) -> int:
    """When the last checkpoint was written, in nanoseconds; 0 without one."""
    try:
        return (folder / "checkpoints" / LAST).stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def quick(folder: Path, **settings: Any) -> Run:
    values = TINY | {"epochs": 2, "threads": 1, "checkpoint_every": 60.0, "preflight": False} | settings
    return session.train("digits", out=folder, progress=False, **values)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_says_how_to_go_on(
    tmp_path: Path, whole: tuple[bytes, str], number: int, code: int
) -> None:
    folder = tmp_path / "run"
    process = start(train, str(folder), 0, "digits", TINY)
    ready = time.monotonic() + 30
    while not newest(folder) and time.monotonic() < ready:
        time.sleep(0.005)
    os.kill(process.pid, number)
    process.join(60)
    assert process.exitcode == code
    text = (folder / "error.txt").read_text()
    assert text.startswith(f"stopped by {signal.Signals(number).name}, state saved")
    assert f"--resume --out {folder}" in text
    assert not (folder / "model.safetensors").exists()
    session.train(resume=folder, progress=False)
    assert result(folder) == whole


def test_the_same_seed_gives_the_same_bytes_and_another_one_does_not(tmp_path: Path) -> None:
    first = result(quick(tmp_path / "a").path)
    assert result(quick(tmp_path / "b", workers=2, checkpoint_every=0.0).path) == first
    assert result(quick(tmp_path / "c", seed=1).path)[0] != first[0]


def test_threads_are_kept_when_resuming(tmp_path: Path) -> None:
    run = quick(tmp_path / "run")
    before = result(run.path)
    session.train("digits", out=run.path, resume=True, threads=2, progress=False)
    assert run.settings()["recipe"]["threads"] == 1
    assert run.events()[-2]["threads"] == 1
    assert result(run.path) == before


def test_device_and_precision_are_kept_when_resuming(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = quick(tmp_path / "run", epochs=1, device="cpu", amp="auto")
    asked = []

    def noted(device: str, amp: str) -> Any:
        asked.append((device, amp))
        return place(device, amp)

    place = session.place
    monkeypatch.setattr(session, "place", noted)
    session.train(resume=run.path, epochs=2, progress=False)
    session.train(resume=run.path, epochs=2, device="cpu", progress=False)
    assert asked == [("cpu", "auto")] * 2


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "muon", "first_layer": "whitened", "net": "airbench", "net_options": {"width": 4}},
        {"optimizer": "sgd", "net": "mlp", "net_options": {"dropout": 0.5, "hidden": 30}, "accumulate": 3},
        {"schedule": "plateau", "plateau": 1, "patience": 2, "ema": 0.0, "class_weights": "balanced"},
        {"net": "lenet5", "initialisation": "lsuv", "size": 28},
    ],
    ids=["muon and a whitened layer", "dropout and accumulation", "plateau and early stopping", "lsuv"],
)
def test_stopped_in_the_middle_of_an_epoch_the_bytes_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    settings = {"epochs": 3, "test": 0.8, "batch": 32, "workers": 0, "size": 9} | settings
    straight = quick(tmp_path / "straight", **settings)
    listen, steps = Writer.listen, []

    def stop_at_some(self: Writer, event: str, job: Any) -> None:
        listen(self, event, job)
        steps.append(event)
        if event == "step" and steps.count("step") in (1, 4, 12):
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Writer, "listen", stop_at_some)
    folder = tmp_path / "run"
    stopped = 0
    for _ in range(5):
        try:
            quick(folder, **settings, resume=True)
            break
        except Interrupted:
            stopped += 1
    assert stopped >= 2
    assert result(folder) == result(straight.path)


def test_a_finished_run_is_extended(tmp_path: Path) -> None:
    run = quick(tmp_path / "run", schedule="constant")
    session.train(resume=run.path, epochs=3, progress=False)
    straight = quick(tmp_path / "straight", schedule="constant", epochs=3)
    # A constant rate does not depend on the length: extending equals training on.
    assert (run.path / "metrics.csv").read_text() == (straight.path / "metrics.csv").read_text()
    ours, theirs = load_file(run.model), load_file(straight.model)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert run.settings()["recipe"]["epochs"] == 3
    with pytest.raises(StriateError, match=r"has done 3 epochs.*--epochs 3"):
        session.train(resume=run.path, epochs=2, progress=False)


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    run = quick(tmp_path / "run", epochs=1)
    with pytest.raises(StriateError, match=r"batch 32, not 128; seed 9, not 0") as caught:
        session.train(resume=run.path, seed=9, batch=32, progress=False)
    assert "\n" not in str(caught.value)
    with pytest.raises(StriateError, match="already holds a run"):
        quick(run.path)
    with pytest.raises(StriateError, match="net 'auto', not 'lenet5'"):
        session.train("digits", session.Recipe(), resume=run.path, progress=False)


def test_changed_data_are_refused(tmp_path: Path) -> None:
    from striate.data.formats import open_data

    run = quick(tmp_path / "run", epochs=1)
    changed = open_data("digits", seed=5)
    with pytest.raises(StriateError, match="are not those that"):
        session.train(changed, resume=run.path, progress=False)


def test_nothing_to_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StriateError, match="no run to resume"):
        session.train("digits", resume=True, progress=False)
    with pytest.raises(StriateError, match="is not a run folder"):
        session.train("digits", resume=tmp_path / "nothing", progress=False)
    with pytest.raises(StriateError, match="no data given"):
        session.train(out=tmp_path / "new", progress=False)
    assert not list(tmp_path.iterdir())


def test_a_damaged_checkpoint_is_one_line(tmp_path: Path) -> None:
    run = quick(tmp_path / "run", epochs=1)
    path = run.checkpoints / LAST
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(StriateError, match="not a whole checkpoint"):
        session.train(resume=run.path, epochs=2, progress=False)


def test_a_full_disk_is_one_line_and_the_last_checkpoint_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from striate.core import files

    fsync, calls = os.fsync, [0]

    def full(handle: int) -> None:
        calls[0] += 1
        if calls[0] > 12:
            raise OSError(28, os.strerror(28))
        fsync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        with pytest.raises(StriateError, match=r"cannot write .*last.safetensors.*the disk is full"):
            quick(tmp_path / "run", checkpoint_every=0.0)
    folder = tmp_path / "run"
    assert read_checkpoint(folder / "checkpoints" / LAST)["state"]["step"] > 0
    assert not [path for path in folder.rglob("*") if path.suffix == ".tmp"]
    assert not (folder / "model.safetensors").exists()
    session.train(resume=folder, progress=False)
    assert result(folder) == result(quick(tmp_path / "other").path)


def test_a_refused_length_leaves_the_run_as_it_was(tmp_path: Path) -> None:
    folder = quick(tmp_path / "run").path
    before = (folder / "settings.json").read_bytes()
    with pytest.raises(StriateError, match=r"has done \d+ epochs, and epochs is 1"):
        session.train(resume=folder, progress=False, epochs=1)
    assert (folder / "settings.json").read_bytes() == before
    session.train(resume=folder, progress=False)


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """The same images a step, the same gradients: a net without batch norm ends with the same weights."""
    settings = TINY | {"augment": "none", "optimizer": "sgd", "lr": 0.02, "clip": 0.0, "epochs": 2}
    # Without ReLUs and maxima: where one of them tips over by a rounding error, the gradient jumps.
    settings["net_options"] = {"activation": "tanh", "pool": "average"}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = str(tmp_path / "two")
    both = [start(train_parallel, rank, 2, port, folder, "digits", settings) for rank in (0, 1)]
    one = quick(tmp_path / "one", **settings)
    for process in both:
        process.join(60)
        assert process.exitcode == 0
    ours, theirs = load_file(one.model), load_file(Run.open(folder).model)
    for name, tensor in ours.items():
        torch.testing.assert_close(theirs[name], tensor, rtol=1e-5, atol=1e-5)
    rows = zip(one.metrics(), Run.open(folder).metrics(), strict=True)
    for mine, other in rows:
        assert other["train_loss"] == pytest.approx(mine["train_loss"], rel=1e-4)
        assert other["val_loss"] == pytest.approx(mine["val_loss"], rel=1e-3)
