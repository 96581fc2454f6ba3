"""Whole runs on small folders: corrupt images, masks, several labels, no validation, rehearsal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import striate
from striate.core.errors import StriateError
from striate.core.runs import Run
from striate.train import session
from striate.train.recipe import Recipe

FEW: dict[str, Any] = {
    "epochs": 2, "batch": 8, "threads": 1, "workers": 1, "progress": False, "val": 0.25, "test": 0.0,
    "lr": 0.01,
}  # fmt: skip


def folder(
    place: Path, count: int = 16, size: int = 12, classes: tuple[str, ...] = ("dark", "light")
) -> Path:
    """Grey noise as PNG, brighter from class to class."""
    draw = np.random.default_rng(0)
    for number, name in enumerate(classes):
        (place / name).mkdir(parents=True)
        for k in range(count):
            image = draw.integers(0, 100, (size, size)) + 140 * number
            cv2.imwrite(str(place / name / f"{k:02d}.png"), image.astype(np.uint8))
    return place


def test_three_corrupt_images_are_named_and_counted(tmp_path: Path) -> None:
    data = folder(tmp_path / "data")
    whole = (data / "dark" / "00.png").read_bytes()
    (data / "dark" / "03.png").write_bytes(whole[:60])
    (data / "light" / "05.png").write_bytes(b"no image at all")
    (data / "light" / "06.png").write_bytes(b"")
    run = session.train(data, net="linear", out=tmp_path / "run", **FEW)
    bad = [event["name"] for event in run.events() if event["event"] == "bad-image"]
    assert sorted(Path(name).name for name in bad) == ["03.png", "05.png", "06.png"]
    assert run.events()[-1]["bad"] == 3
    assert run.metrics()[-1]["val_top1"] > 0.9
    model = striate.load(run.path)
    for label in ("dark", "light"):
        assert model.predict(data / label / "00.png").label == label


def test_a_folder_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The beginner's command: every setting is worked out and written down."""
    monkeypatch.chdir(tmp_path)
    data = folder(tmp_path / "photos", count=20, size=16)
    run = striate.train(data, epochs=1, threads=1, progress=False)
    assert run.path == Path("runs/photos-1")
    settled = run.settings()["recipe"]
    assert settled["net"] == "resnet20"
    assert settled["size"] == [16, 16]
    assert settled["channels"] == 1
    assert settled["resize"] == "none"
    assert settled["augment"] == "pad-crop(1)"
    assert settled["batch"] == 8
    assert settled["lr"] == 0.1 * 8 / 128
    assert run.settings()["asked"]["net"] == "auto"
    assert all(
        value is not None for key, value in settled.items() if key in ("lr", "batch", "size", "threads")
    )
    assert (run.checkpoints / "best.safetensors").exists()
    card = striate.load(run.path).card
    assert card["scores"] == Run.open(run.path).metrics()[-1]
    assert "seconds" not in str(card)


def test_without_validation_images(tmp_path: Path) -> None:
    data = folder(tmp_path / "data")
    run = session.train(data, net="linear", out=tmp_path / "run", **(FEW | {"val": 0.0}))
    assert list(run.metrics()[0]) == ["epoch", "lr", "train_loss"]
    for wrong in ({"patience": 2}, {"schedule": "plateau"}):
        with pytest.raises(StriateError, match="needs validation images"):
            session.train(data, net="linear", out=tmp_path / "other", **(FEW | {"val": 0.0} | wrong))
    with pytest.raises(StriateError, match="leaves no trained net"):
        session.train(data, net="linear", out=tmp_path / "other", **(FEW | {"schedule": "range-test"}))
    assert not (tmp_path / "other").exists()


def test_masks_train_too(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for name in ("images", "labels"):
        (tmp_path / "data" / name).mkdir(parents=True)
    for k in range(8):
        mask = np.zeros((32, 32), np.uint8)
        mask[:, draw.integers(4, 28) :] = 255
        image = draw.integers(0, 80, (32, 32)) + (mask > 0) * 150
        cv2.imwrite(str(tmp_path / "data" / "images" / f"{k}.png"), image.astype(np.uint8))
        cv2.imwrite(str(tmp_path / "data" / "labels" / f"{k}.png"), mask)
    settings = FEW | {"batch": 2, "epochs": 6, "lr": 0.1}
    run = session.train(tmp_path / "data", out=tmp_path / "run", **settings)
    assert run.settings()["recipe"]["task"] == "segmentation"
    # An untrained net is right in half of the pixels.
    assert run.metrics()[-1]["val_pixel_accuracy"] > 0.9
    session.train(resume=run.path, epochs=7, progress=False)
    assert len(run.metrics()) == 7


def test_several_labels_train_too(tmp_path: Path) -> None:
    data = folder(tmp_path / "data", count=12)
    rows = ["path,labels"]
    for k in range(12):
        rows += [f"data/dark/{k:02d}.png,a;b", f"data/light/{k:02d}.png,b;c"]
    (tmp_path / "table.csv").write_text("\n".join(rows) + "\n")
    assert data.is_dir()
    settings = FEW | {"epochs": 6, "lr": 0.1}
    run = session.train(tmp_path / "table.csv", net="linear", out=tmp_path / "run", **settings)
    assert run.settings()["recipe"]["task"] == "multi-label"
    first, *_, last = run.metrics()
    assert last["train_loss"] < first["train_loss"]
    # An untrained net's loss is ln 2.
    assert last["val_loss"] < min(first["val_loss"], 0.3)
    assert last["val_all_labels_right"] > 0.9


def test_the_model_is_that_of_the_last_epoch_and_the_best_is_kept_beside_it(tmp_path: Path) -> None:
    settings = FEW | {"epochs": 4, "lr": 5.0, "schedule": "constant", "keep_every": 1}
    run = session.train("digits", net="linear", augment="none", out=tmp_path / "run", **settings)
    scores = [row["val_top1"] for row in run.metrics()]
    best = scores.index(max(scores)) + 1
    assert best < 4
    for epoch, path in ((4, run.model), (best, run.checkpoints / "best.safetensors")):
        wanted = load_file(run.checkpoints / f"epoch-{epoch:04d}.safetensors")
        found = load_file(path)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("last", [True, False])
def test_it_trains_in_the_memory_order_that_is_asked_for(tmp_path: Path, last: bool) -> None:
    orders: set[bool] = set()

    def note(module: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        # Of one channel both orders are the same.
        if isinstance(module, nn.Conv2d) and given[0].shape[1] > 1:
            orders.add(given[0].is_contiguous(memory_format=torch.channels_last))

    hook = nn.modules.module.register_module_forward_pre_hook(note)
    try:
        settings = FEW | {"channels_last": last, "size": 28, "preflight": False, "epochs": 4, "lr": 0.1}
        run = session.train(folder(tmp_path / "data"), net="lenet5", out=tmp_path / "run", **settings)
    finally:
        hook.remove()
    assert orders == {last}
    assert run.metrics()[-1]["val_top1"] > 0.9


def test_a_rehearsal_writes_nothing(tmp_path: Path) -> None:
    data = folder(tmp_path / "data")
    before = sorted(tmp_path.rglob("*"))
    settings = {key: value for key, value in FEW.items() if key != "progress"}
    lines = session.rehearse(data, Recipe(net="linear"), out=tmp_path / "run", **settings)
    assert lines[0] == f"run: {tmp_path / 'run'}"
    assert "24 images to train, 8 to validate" in lines[1]
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(StriateError, match="'resnet20'"):
        session.rehearse(data, net="resnet21")
    with pytest.raises(StriateError, match="no device 'cuda:99'"):
        session.rehearse(data, device="cuda:99")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"net": "resnet21"}, "'resnet20'"),
        ({"optimizer": "sdg"}, "'sgd'"),
        ({"schedule": "cosin"}, "'cosine'"),
        ({"augment": "flop"}, "'flip'"),
        ({"net_options": {"hiden": 3}, "net": "mlp"}, "hidden"),
        ({"epoch": 3}, "'epochs'"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_written(tmp_path: Path, settings: dict, words: str) -> None:
    data = folder(tmp_path / "data", count=4)
    with pytest.raises(StriateError, match=words) as caught:
        session.train(data, out=tmp_path / "run", **(FEW | settings))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
