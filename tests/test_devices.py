"""Which device a process computes on, and that a run is tested where it was trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from image_sets import classes_of, write
from little_models import conv_model
from striate.core.errors import StriateError
from striate.core.machine import device_called
from striate.studies import job
from striate.train import session
from striate.train.devices import find_device, place
from striate.train.recipe import Recipe


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with two CUDA devices."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.mark.usefixtures("two")
def test_each_process_has_a_device_of_its_own() -> None:
    for name in ("auto", "cuda"):
        assert [find_device(name, rank, 2) for rank in (0, 1)] == [torch.device("cuda", k) for k in (0, 1)]
    assert find_device("cuda:1") == torch.device("cuda", 1)
    assert [find_device("cpu", rank, 3) for rank in range(3)] == [torch.device("cpu")] * 3
    with pytest.raises(StriateError, match="no device 'cuda:2'"):
        find_device("cuda:2")


@pytest.mark.parametrize("ask", [find_device, conv_model().to, device_called])
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gpu", "unknown device 'gpu'; allowed: auto, cpu, cuda, mps; did you mean 'cpu'"),
        ("cuda:7", "this machine has no device 'cuda:7'; allowed: auto, cpu"),
        ("meta", "this machine has no device 'meta'; allowed: auto, cpu"),
    ],
)
def test_one_rule_says_which_devices_there_are(
    ask: Callable[[str], object], name: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(StriateError, match=words):
        ask(name)


@pytest.mark.usefixtures("two")
@pytest.mark.parametrize(
    ("device", "words"),
    [
        ("auto", r"no CUDA device for process 2 \(from 0\); allowed: up to 2 processes; give torchrun"),
        ("cuda", r"no CUDA device for process 2 \(from 0\); allowed: up to 2 processes; give torchrun"),
        ("cuda:1", "device is 'cuda:1', and 3 processes would share it; give --device cuda"),
    ],
)
def test_more_processes_than_devices(device: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": 2, "LOCAL_RANK": 2, "WORLD_SIZE": 3}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(StriateError, match=words), place(device, "off"):
        pass


def test_a_process_that_is_shown_one_device_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert find_device("cuda", 3, 4) == torch.device("cuda", 0)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    with pytest.raises(StriateError, match="allowed: up to 1 process;"):
        find_device("cuda", 3, 4)


@pytest.mark.usefixtures("two")
def test_one_process_a_machine_may_name_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    joined: list[str] = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: joined.append(str(device)))
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    for name, value in {"RANK": 1, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 1}.items():
        monkeypatch.setenv(name, str(value))
    with place("cuda:1", "off") as here:
        assert (here.device, here.rank, here.world) == (torch.device("cuda", 1), 1, 2)
    assert joined == ["cuda:1"]


def test_a_run_is_tested_where_it_was_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write(tmp_path / "data", classes_of(count=8))
    recipe = Recipe(net="linear", epochs=1, batch=4, threads=1, workers=0, preflight=False)
    run = session.train(data, recipe, out=tmp_path / "run", progress=False)
    evaluate, seen = job.evaluate, []

    def noted(*arguments: Any, device: str | None = None, **how: Any) -> Any:
        seen.append(device)
        return evaluate(*arguments, **how)

    monkeypatch.setattr(job, "evaluate", noted)
    with monkeypatch.context() as patch:
        patch.setattr(job, "find_device", lambda name: torch.device("cuda", 0) if name == "auto" else None)
        assert job.finish_run(run, report=False).main is not None
    # The report of a run whose device this machine does not have.
    written = run.settings()
    written["asked"]["device"] = "cuda:99"
    run.update_settings(json.loads(json.dumps(written)))
    (run.path / job.EVALUATION).unlink()
    assert job.finish_run(run, report=False).main is not None
    assert seen == ["cuda:0", "cpu"]
