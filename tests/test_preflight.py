"""What preflight says, and that it leaves everything as it was."""

from __future__ import annotations

import copy
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from striate.core.errors import StriateError
from striate.core.settings import from_dict
from striate.train import preflight as module
from striate.train import room
from striate.train.devices import Place
from striate.train.fit import fit
from striate.train.idle import idle_settings
from striate.train.preflight import preflight
from striate.train.recipe import Recipe
from trials import Part, same_weights, small_job, small_net


def test_a_sound_job_passes_and_nothing_changes(tmp_path: Path) -> None:
    net = small_net(norm=True, dropout=0.2)
    job, untouched = small_job(net), small_job(copy.deepcopy(net))
    before = torch.get_rng_state()
    assert preflight(job, tmp_path / "new" / "run") == []
    assert torch.equal(before, torch.get_rng_state())
    assert same_weights(net, untouched.net)
    assert net.training
    assert all(p.grad is None for p in net.parameters())
    assert not job.optimizer.state
    assert list(tmp_path.iterdir()) == []
    fit(job)
    fit(untouched)
    assert same_weights(job.net, untouched.net)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, []),
        ({"optimizer": "adam", "betas": (0.8, 0.9), "schedule": "cosine", "restarts": 2, "floor": 0.1}, []),
        ({"optimizer": "adam", "momentum": 0.5}, ["momentum has no effect with the optimizer adam; it is"]),
        ({"schedule": "cosine", "gamma": 0.5}, ["gamma has no effect with the schedule cosine; it is for"]),
        ({"restarts": 1, "growth": 2.0}, ["restarts has no", "growth has no effect with the schedule one-c"]),
        ({"swa_every": 2, "norm_batches": 3}, ["swa_every has no effect", "norm_batches has no effect"]),
        ({"grow_epochs": 3, "momentum": 0.0, "nesterov": False}, ["grow_epochs has no effect"]),
        ({"warmup": 3.0, "epochs": 3}, ["warmup is 3 of 3 epochs"]),
    ],
)  # fmt: skip
def test_settings_without_effect_are_told(changes: dict[str, object], told: list[str]) -> None:
    found = idle_settings(Recipe(**changes))
    assert len(found) == len(told)
    assert all(text.startswith(part) for text, part in zip(found, told, strict=True))


def test_the_recipes_have_no_setting_without_effect() -> None:
    files = sorted(Path(__file__).parent.parent.glob("recipes/*.yaml"))
    assert files
    for file in files:
        values = yaml.safe_load(file.read_text())
        recipe = from_dict(Recipe, {k: v for k, v in values.items() if k in Recipe.__dataclass_fields__})
        assert idle_settings(recipe) == [], file.name


def test_head_of_another_size(tmp_path: Path) -> None:
    net = small_net(classes=4)
    net.classes = 4
    with pytest.raises(StriateError, match="4 outputs and the data 3 classes"):
        preflight(small_job(net), tmp_path)


@pytest.mark.parametrize("value", [-1, 3])
def test_targets_out_of_range(tmp_path: Path, value: int) -> None:
    job = small_job()
    job.val.split = Part("val", np.array([0, value]))
    with pytest.raises(StriateError, match=f"'val' holds target {value}; allowed: 0 to 2"):
        preflight(job, tmp_path)


def test_shapes_that_do_not_fit(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(5, 3))
    with pytest.raises(StriateError, match=r"cannot take a batch \(16, 1, 8, 8\)") as caught:
        preflight(small_job(net), tmp_path)
    assert "\n" not in str(caught.value)


def test_a_first_loss_that_is_no_number(tmp_path: Path) -> None:
    net = small_net()
    with torch.no_grad():
        net[0].weight.fill_(float("nan"))
    with pytest.raises(StriateError, match="first loss is nan"):
        preflight(small_job(net), tmp_path)


def test_a_first_loss_far_too_high(tmp_path: Path) -> None:
    net = small_net()
    with torch.no_grad():
        net[-1].weight.mul_(1000)
    (warning,) = preflight(small_job(net), tmp_path)
    assert "1.10 is expected" in warning


def test_a_net_that_learns_nothing(tmp_path: Path) -> None:
    class Deaf(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x * 0) * 0

    (warning,) = preflight(small_job(nn.Sequential(nn.Flatten(), Deaf(64, 3))), tmp_path, seconds=30)
    assert "could not be memorised" in warning


def test_too_little_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage._replace(free=100))
    with pytest.raises(StriateError, match="MiB are free, and checkpoints need"):
        preflight(small_job(), tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StriateError, match="--out"):
        preflight(small_job(), tmp_path / "run")


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StriateError, match="--out"):
        preflight(small_job(), tmp_path / "file" / "run")


def test_fewer_images_than_a_batch(tmp_path: Path) -> None:
    job = small_job(count=10)
    with pytest.raises(StriateError, match="10 training images do not fill one batch of 16"):
        preflight(job, tmp_path)


def test_memory_is_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    job = small_job()
    monkeypatch.setattr(room, "step_bytes", lambda _: 10 << 30)
    monkeypatch.setattr(room, "free_memory", lambda: 8 << 30)
    (warning,) = room.memory_warnings(job)
    assert "--batch 8 --accumulate 2" in warning
    monkeypatch.setattr(room, "free_memory", lambda: 80 << 30)
    assert room.memory_warnings(job) == []
    monkeypatch.setattr(room, "streaming", lambda job: [job.train])
    job.recipe = job.recipe.with_(cache=60)
    assert room.memory_warnings(job) == []
    job.recipe = job.recipe.with_(cache=64)
    assert room.memory_warnings(job) == ["decoded images may take 64 GiB and 70.0 are left: lower --cache"]
    monkeypatch.setattr(room, "free_memory", lambda: None)
    assert room.memory_warnings(job) == []
    monkeypatch.setattr(room, "free_memory", lambda: 80 << 30)
    monkeypatch.setattr(room, "streaming", lambda job: [])
    assert room.memory_warnings(job) == []
    # Each process of a run takes its steps.
    job.place = Place(torch.device("cpu"), 0, 8)
    (warning,) = room.memory_warnings(job)
    assert "a step needs about 80.0 GiB and 80.0 are free" in warning


def test_bytes_of_a_checkpoint() -> None:
    job = small_job(ema=0.9)
    weights = 4 * sum(p.numel() for p in job.net.parameters())
    assert module.checkpoint_bytes(job) == 3 * weights + 4096
    assert module.checkpoint_bytes(small_job(momentum=0.0)) == weights + 4096
    assert module.checkpoint_bytes(small_job(optimizer="adam")) == 3 * weights + 4096
