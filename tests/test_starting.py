"""Runs that start from trained weights."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from striate.core.errors import StriateError
from striate.core.fetch import sha256
from striate.core.runs import Run
from striate.data.preprocess import Preprocess
from striate.data.samples import Dataset, Split
from striate.ensemble import Ensemble
from striate.model import Model, load
from striate.nets.net import NETS, create_net
from striate.studies.job import make_report
from striate.studies.sheet import show_augmented
from striate.tasks.classification import Classification, MultiLabel
from striate.tasks.segmentation import Segmentation
from striate.train import session
from striate.train.fit import Interrupted
from striate.train.recipe import Recipe
from striate.train.search import search
from striate.train.starting import class_layers, open_source, start_from
from striate.train.writer import Writer

LETTERS = ("a", "b", "c")
STILL: dict[str, Any] = {
    "epochs": 1, "batch": 8, "threads": 1, "workers": 0, "device": "cpu", "lr": 1e-12, "weight_decay": 0.0,
    "preflight": False, "augment": "none",
}  # fmt: skip


def shades(classes: tuple[str, ...] = LETTERS, channels: int = 3, count: int = 24) -> Dataset:
    """Noise, brighter from class to class."""
    draws = np.random.default_rng(1)
    labels = np.arange(count) % len(classes)
    images = (draws.integers(0, 90, (count, 10, 12, channels)) + 50 * labels[:, None, None, None]).astype(
        np.uint8
    )
    halves = (("train", slice(0, count // 2)), ("test", slice(count // 2, count)))
    parts = [Split.from_arrays(name, images[half], labels[half]) for name, half in halves]
    return Dataset("shades", "classification", classes, parts)


def trained(
    folder: Path, net: str = "vgg11", classes: tuple[str, ...] = LETTERS, channels: int = 3, **options: Any
) -> Path:
    """A model file with weights unlike those of a new net, and values that no data has."""
    torch.manual_seed(5)
    made = create_net(net, len(classes), channels, size=32, **options)
    values = Preprocess(size=(32, 32), channels=channels, mean=(0.11,), std=(0.77,), interpolation="bicubic")
    return Model(made.eval(), Classification(classes), values).save(folder / "trained.safetensors")


def run(folder: Path, source: Path | str, data: Dataset | None = None, **settings: Any) -> Run:
    return session.train(
        data or shades(), out=folder, progress=False, start_from=str(source), **(STILL | settings)
    )


def test_the_same_classes_go_on_where_they_ended(tmp_path: Path) -> None:
    source = trained(tmp_path, width=4)
    done = run(tmp_path / "run", source)
    before, after = load(source), load(done.path)
    assert (after.net.name, after.net.options) == ("vgg11", {"width": 4})
    assert after.preprocess.size == (32, 32)
    assert (after.preprocess.mean, after.preprocess.std) == (before.preprocess.mean, before.preprocess.std)
    assert after.preprocess.interpolation == "bicubic"
    for name, tensor in before.net.state_dict().items():
        torch.testing.assert_close(after.net.state_dict()[name], tensor, msg=name)
    event = next(event for event in done.events() if event["event"] == "started")
    assert (event["source"], event["new"]) == (str(source), [])
    assert f"started from the weights of {source}" in make_report(done.path).read_text("utf-8")


@pytest.mark.parametrize(
    "classes", [("a", "b"), ("x", "y", "z"), ("b", "a", "c")], ids=["fewer", "others", "turned"]
)
def test_other_classes_get_a_new_head_and_nothing_else(classes: tuple[str, ...], tmp_path: Path) -> None:
    source = trained(tmp_path, width=4)
    done = run(tmp_path / "run", source, shades(classes))
    before, after = load(source).net.state_dict(), load(done.path).net.state_dict()
    same = {
        name: before[name].shape == t.shape and torch.allclose(before[name], t) for name, t in after.items()
    }
    assert {name for name, kept in same.items() if not kept} == {"fc8.weight", "fc8.bias"}
    assert "fc8" in next(event["new"] for event in done.events() if event["event"] == "started")


def test_its_own_values_where_they_are_asked_for(tmp_path: Path) -> None:
    source = trained(tmp_path, "nin", width=8)
    done = run(tmp_path / "run", source, size=40, channels=3, input="channels", resize="pad", crop=1.0)
    found = load(done.path).preprocess
    assert (found.size, found.resize, found.mean[0]) == ((40, 40), "pad", 0.11)
    sheet = show_augmented(shades(), out=None, start_from=str(source), augment="none", images=1, views=1)
    assert sheet.size == (32, 32)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_rate_is_gentler_where_steps_are_not_scaled(optimizer: str, tmp_path: Path) -> None:
    source, settings = trained(tmp_path, width=4), {"lr": None, "optimizer": optimizer}
    fine = run(tmp_path / "fine", source, **settings).settings()["recipe"]["lr"]
    new = session.train(
        shades(), out=tmp_path / "new", progress=False, **(STILL | settings),
        net="vgg11", net_options={"width": 4}, size=32,
    )  # fmt: skip
    assert fine == pytest.approx(new.settings()["recipe"]["lr"] * {"sgd": 0.1, "adamw": 1.0}[optimizer])


def test_stopped_before_and_after_the_first_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = {"epochs": 2, "lr": 0.01, "augment": "pad-crop(2)", "ema": 0.5}
    source = trained(tmp_path, net="resnet20", width=4)
    straight = run(tmp_path / "straight", source, **how)
    listen = Writer.listen

    def killed(self: Writer, event: str, job: Any) -> None:
        raise KeyboardInterrupt  # nothing has been saved yet

    monkeypatch.setattr(Writer, "listen", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", source, **how)
    assert not list((tmp_path / "run" / "checkpoints").glob("last*"))
    shutil.move(source, tmp_path / "former")
    trained(tmp_path, net="resnet20", width=4, classes=LETTERS[::-1])
    with pytest.raises(StriateError, match=r"is not the file that .* was started from"):
        run(tmp_path / "run", source, resume=True, **how)
    shutil.move(tmp_path / "former", source)
    steps: list[str] = []

    def stop_once(self: Writer, event: str, job: Any) -> None:
        listen(self, event, job)
        steps.append(event)
        if event == "step" and steps.count("step") == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Writer, "listen", stop_once)
    with pytest.raises(Interrupted):
        run(tmp_path / "run", source, resume=True, **how)
    # From here on the run has all that it needs.
    shutil.move(source, tmp_path / "elsewhere")
    run(tmp_path / "run", source, resume=True, **how)
    assert Run.open(tmp_path / "run").model.read_bytes() == straight.model.read_bytes()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"start_from": "efficientnet_lit0"}, "did you mean"),
        ({"start_from": "none/such.safetensors"}, "no file or folder"),
        ({"net": "vgg13"}, "is a vgg11, and net is 'vgg13'"),
        ({"grow_from": "vgg11"}, "both say how the net begins"),
        ({"first_layer": "whitened"}, "both say how the net begins"),
        ({"initialisation": "he"}, "initialisation and start_from both say how the net begins"),
        ({"net_options": {"width": 8}}, "do not fit this net: conv1_1"),
        ({"channels": 1}, "inputs with 3 channels, and channels is 1"),
        ({"input": "gcn"}, "learned with input 'channels', and input is 'gcn'"),
    ],
)
def test_what_cannot_be_started_from(settings: dict[str, Any], words: str, tmp_path: Path) -> None:
    how: dict[str, Any] = {"source": trained(tmp_path, width=4)} | settings
    how["source"] = how.pop("start_from", how["source"])
    with pytest.raises(StriateError, match=words):
        run(tmp_path / "run", **how)
    assert not (tmp_path / "run").exists()


def test_models_that_are_no_single_net_of_ours(tmp_path: Path) -> None:
    preprocess = Preprocess(size=(8, 8))
    linear = [
        Model(create_net("linear", 3, 3, size=8).eval(), Classification(LETTERS), preprocess) for _ in "ab"
    ]
    both = Ensemble(linear).save(tmp_path / "both.safetensors")
    with pytest.raises(StriateError, match="is an ensemble; start from one of it"):
        open_source(Recipe(start_from=str(both)))
    found = open_source(Recipe(start_from=f"{both}#2"))
    assert found is not None
    assert torch.equal(found.net.fc.weight, linear[1].net.fc.weight)
    assert open_source(Recipe()) is None


def test_another_task_has_a_head_of_its_own() -> None:
    source = Model(
        create_net("nin", 3, 3, size=32).eval(), Classification(LETTERS), Preprocess(size=(32, 32))
    )
    net = create_net("nin", 3, 3, size=32)
    assert start_from(net, MultiLabel(LETTERS), source, shades()).new == ("cccp6",)
    assert torch.equal(net.conv1.weight, source.net.conv1.weight)
    assert not torch.equal(net.cccp6.weight, source.net.cccp6.weight)


@pytest.mark.parametrize("name", NETS.names())
def test_layers_of_the_classes_are_the_heads(name: str) -> None:
    entry = NETS.entry(name)
    task = Classification(LETTERS)
    with torch.device("meta"):
        net = task.build_net(name, in_channels=3, options=entry.capabilities.get("quick", {}))
    found = class_layers(net, task)
    assert net.head in found
    for layer in found:
        weight = net.get_submodule(layer).weight
        assert weight.shape[0] == 3
    assert len(found) == 1 + len(getattr(net, "auxiliary", {}))


def test_segmentation_goes_on_with_other_classes_and_knows_classifiers_apart(tmp_path: Path) -> None:
    draws = np.random.default_rng(0)

    def scenes(count: int) -> Dataset:
        images = draws.integers(0, 255, (12, 32, 32, 3)).astype(np.uint8)
        masks = draws.integers(0, count, (12, 32, 32))
        halves = (("train", slice(0, 8)), ("val", slice(8, 12)))
        parts = [Split.from_arrays(name, images[half], masks=masks[half]) for name, half in halves]
        return Dataset("scenes", "segmentation", tuple("abcdef"[:count]), parts)

    how = {"net": "resnet18", "net_options": {"width": 4, "decoder": "fcn"}, "size": 32}
    first = session.train(scenes(2), out=tmp_path / "first", progress=False, **(STILL | how))
    assert load(first.path).net.options["decoder"] == "fcn"
    again = run(tmp_path / "again", first.path, scenes(3))
    new = next(event["new"] for event in again.events() if event["event"] == "started")
    assert new
    assert all("score" in name or "up_" in name for name in new)
    with pytest.raises(StriateError, match=r"a model for segmentation, and the data have .* each image"):
        run(tmp_path / "no", first.path)
    with pytest.raises(StriateError, match=r"a model for classification, and the data have .* each pixel"):
        run(tmp_path / "no", trained(tmp_path, width=4), scenes(3))
    study = {"trials": 1, "space": {"momentum": "0.5,0.9"}, "out": tmp_path / "study", "progress": False}
    found = search(scenes(3), Recipe(start_from=str(first.path), **STILL), **study)
    assert [trial.state for trial in found.result().trials] == ["finished"]


def test_a_search_reads_the_model_before_its_first_trial(tmp_path: Path) -> None:
    recipe = Recipe(start_from=str(tmp_path / "none"), net="resnet20", **STILL)
    parts = shades().splits
    halves = [parts["train"], parts["test"].select(np.arange(12), "val")]
    data = Dataset("shades", "classification", LETTERS, halves)
    with pytest.raises(StriateError, match="no file or folder"):
        search(data, recipe, {"momentum": "0.5,0.9"}, trials=1, out=tmp_path / "study", progress=False)


def test_flips_are_for_pictures_that_are_coloured_themselves(tmp_path: Path) -> None:
    source = trained(tmp_path, "nin", width=8)
    for channels, flipped in ((1, False), (3, True)):
        how = {"start_from": str(source), "augment": "auto", "val": 0.0}
        told = session.rehearse(shades(channels=channels), Recipe(**(STILL | how)), out=tmp_path / "run")
        assert ("flip" in told[1]) is flipped
        assert told[2] == f"started from {source}"


def test_statistics_of_the_training_are_kept_with_their_filter(tmp_path: Path) -> None:
    how = {"input": "gcn+zca", "net": "nin", "net_options": {"width": 8}, "size": 8}
    first = session.train(shades(), out=tmp_path / "first", progress=False, **(STILL | how))
    again = run(tmp_path / "again", first.path, input="gcn+zca")
    assert load(again.path).preprocess == load(first.path).preprocess
    with pytest.raises(StriateError, match=r"learned with input 'gcn\+zca'"):
        run(tmp_path / "no", first.path)


def test_images_of_other_splits_may_have_been_learned(tmp_path: Path) -> None:
    parts = shades().splits
    fewer = [parts["train"].select(np.arange(9)), parts["test"]]
    turned = Dataset("shades", "classification", LETTERS, fewer)
    how = {"net": "nin", "net_options": {"width": 8}, "size": 8}
    first = session.train(shades(), out=tmp_path / "first", progress=False, **(STILL | how))
    same, other = run(tmp_path / "same", first.path), run(tmp_path / "other", first.path, turned)
    told = [[e["text"] for e in done.events() if e["event"] == "warning"] for done in (same, other)]
    assert not told[0]
    assert "may have learned images that are tests here" in told[1][0]
    started = next(event for event in same.events() if event["event"] == "started")
    assert started["sha256"] == sha256(first.model)


def test_the_model_is_not_replaced_by_the_run(tmp_path: Path) -> None:
    (tmp_path / "only").mkdir()
    shutil.copy(trained(tmp_path, width=4), tmp_path / "only" / "model.safetensors")
    for source in ("only", "only/model.safetensors"):
        with pytest.raises(StriateError, match="holds the model to start from"):
            run(tmp_path / "only", tmp_path / source)


def test_as_many_classes_of_pixels_as_there_can_be() -> None:
    task = Segmentation([str(number) for number in range(255)])
    with torch.device("meta"):
        net = task.build_net("unet", in_channels=3, size=32, options={"width": 4, "depth": 2})
    assert class_layers(net, task) == {net.head}
