"""Whole runs: the range test, nets grown from shallower ones, and resuming bit for bit."""

from __future__ import annotations

import contextlib
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from striate.core.errors import StriateError
from striate.core.runs import Run
from striate.train import session
from striate.train.fit import Interrupted
from striate.train.growing import SHALLOW, shallow_recipe, to_train_first
from striate.train.range_test import DIVERGED, Enough, RangeTest, Watch, conclude, run_test
from striate.train.range_test import range_test as find_rate
from striate.train.recipe import Recipe
from striate.train.writer import Writer
from trials import small_job, small_net

TINY: dict[str, Any] = {
    "epochs": 3, "batch": 32, "test": 0.8, "size": 9, "workers": 0, "threads": 1, "device": "cpu",
    "preflight": False, "checkpoint_every": 60.0,
}  # fmt: skip
VGG: dict[str, Any] = TINY | {
    "net": "vgg13", "grow_from": "vgg11", "net_options": {"width": 4}, "size": 32, "epochs": 1, "batch": 64,
}  # fmt: skip


def quick(folder: Path, **settings: Any) -> Run:
    return session.train("digits", out=folder, progress=False, **(TINY | settings))


def result(folder: Path) -> tuple[bytes, str]:
    return Run.open(folder).model.read_bytes(), (folder / "metrics.csv").read_text()


# ---------------------------------------------------------------- resuming


@pytest.mark.parametrize(
    "settings",
    [
        {
            "net": "lenet5", "optimizer": "lbfgs", "accumulate": 2, "lbfgs_iterations": 2, "l1": 1e-5,
            "weight_noise": 0.01, "schedule": "constant", "test": 0.9,
        },
        {
            "net": "resnet20", "net_options": {"width": 4}, "optimizer": "rmsprop", "decay": "decoupled",
            "l1": 1e-4, "gradient_noise": 0.01, "input_noise": 0.1, "swa": 0.5, "norm_batches": 2,
            "schedule": "swa", "freeze": "conv1..res1a@1", "recompute": 3, "drop_path": 0.2,
            "test": 0.9, "epochs": 2,
        },
        {
            "net": "lenet5", "optimizer": "adagrad", "schedule": "triangular", "restarts": 1,
            "freeze": "conv1@2",
        },
    ],
    ids=["lbfgs", "swa, freezing, noise and decoupled decay", "adagrad and cycles"],
)  # fmt: skip
def test_stopped_in_the_middle_of_an_epoch_the_bytes_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    straight = quick(tmp_path / "straight", **settings)
    listen, steps = Writer.listen, []

    def stop_at_some(self: Writer, event: str, job: Any) -> None:
        listen(self, event, job)
        steps.append(event)
        if event == "step" and steps.count("step") in (1, 4, 8):
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Writer, "listen", stop_at_some)
    stopped = 0
    for _ in range(5):
        try:
            quick(tmp_path / "run", **settings, resume=True)
            break
        except Interrupted:
            stopped += 1
    assert stopped >= 2
    assert result(tmp_path / "run") == result(straight.path)


# ---------------------------------------------------------------- growing


def test_the_shallow_net_is_trained_first_and_the_deep_one_starts_from_it(tmp_path: Path) -> None:
    run = quick(tmp_path / "run", **VGG, lr=1e-9, weight_decay=0.0)
    shallow = Run.open(tmp_path / "run" / SHALLOW)
    assert shallow.settings()["recipe"]["net"] == "vgg11"
    assert shallow.settings()["data"]["digest"] == run.settings()["data"]["digest"]
    old, new = load_file(shallow.model), load_file(run.model)
    event = next(e for e in run.events() if e["event"] == "grown")
    assert event["layers"][0] == "conv1_1"
    assert {"fc8", "fc"} & set(event["layers"])
    for layer in event["layers"]:
        torch.testing.assert_close(new[f"{layer}.weight"], old[f"{layer}.weight"], rtol=1e-4, atol=1e-5)


def test_stopped_while_the_shallow_net_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    straight = quick(tmp_path / "straight", **VGG, ema=0.9)
    listen, told = Writer.listen, []

    def stop_once(self: Writer, event: str, job: Any) -> None:
        listen(self, event, job)
        told.append(event)
        if told.count("step") in (2, 5) and event == "step":
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Writer, "listen", stop_once)
    folder = tmp_path / "run"
    for _ in range(2):
        with pytest.raises(Interrupted, match=f"--out {folder}$"):
            quick(folder, **VGG, ema=0.9, resume=True)
    quick(folder, **VGG, ema=0.9, resume=True)
    assert result(folder) == result(straight.path)


def test_what_to_grow_from(tmp_path: Path) -> None:
    assert to_train_first(Recipe(grow_from="vgg11"))
    assert not to_train_first(Recipe())
    assert not to_train_first(Recipe(grow_from=str(tmp_path)))
    with pytest.raises(StriateError, match="unknown net 'vgg12'"):
        to_train_first(Recipe(grow_from="vgg12"))
    with pytest.raises(StriateError, match="no layer of 'mlp' fits one of 'vgg13'"):
        quick(tmp_path / "run", **(VGG | {"grow_from": "mlp", "net_options": {}}))
    other = quick(tmp_path / "other", net="mlp", size=8, epochs=1)
    with pytest.raises(StriateError, match="no layer of mlp fits one of vgg13"):
        quick(tmp_path / "run", **(VGG | {"grow_from": str(other.path)}))
    assert not (tmp_path / "run").exists()
    with pytest.raises(StriateError, match="both say how the first layer begins"):
        quick(tmp_path / "run", **VGG, first_layer="whitened")
    recipe = shallow_recipe(Recipe(net="vgg13", grow_from="vgg11", epochs=9, grow_epochs=4))
    assert (recipe.net, recipe.grow_from, recipe.epochs) == ("vgg11", "", 4)
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------- the range test


def test_the_range_test_reads_the_loss_of_each_step() -> None:
    """With a single pass and rates next to nothing, the losses are those of the batches, one by one."""
    job = small_job(small_net(), accumulate=2)
    found = run_test(job, steps=30)
    assert isinstance(found, RangeTest)
    net = small_net()
    batches = list(job.train.batches(0))
    with torch.no_grad():
        first = [torch.nn.functional.cross_entropy(net(b.images), b.targets) for b in batches[:2]]
    assert found.losses[0] == pytest.approx(float(sum(first)) / 2, rel=1e-3)
    assert found.rates[0] == pytest.approx(1e-5)
    ratios = {round(math.log(b / a), 6) for a, b in zip(found.rates[:-1], found.rates[1:], strict=True)}
    assert len(ratios) == 1
    assert found.lowest in found.rates
    assert found.suggested == pytest.approx(0.1 * found.lowest, rel=0.05)


def test_the_range_test_tells_the_rate_of_the_recipe_not_of_a_part() -> None:
    job = small_job(small_net(), rates={"*": 10.0})
    found = run_test(job, steps=6)
    assert found.rates[0] == pytest.approx(1e-5)
    assert {group["lr_scale"] for group in job.optimizer.param_groups} == {10.0}


def test_the_range_test_thaws_nothing() -> None:
    """What is frozen in the first epoch stays so, however many passes the test takes."""
    job = small_job(freeze="0@1", weight_decay=0.0)
    first = job.net[0].weight.detach().clone()
    head = job.net[-1].weight.detach().clone()
    run_test(job, steps=3 * job.plan.steps_per_epoch)
    assert job.state.epoch >= 2
    assert torch.equal(job.net[0].weight, first)
    assert not torch.equal(job.net[-1].weight, head)


def fed(losses: list[float]) -> Watch:
    watch = Watch(len(losses))
    with contextlib.suppress(Enough):
        for k, loss in enumerate(losses):
            watch.take(10.0 ** (k - len(losses)), loss)
    return watch


def test_what_the_losses_say() -> None:
    # Flat, a fall, flat again, and the end: the fall is steepest in its middle.
    losses = [2.0] * 20 + [2.0 - 0.1 * k for k in range(15)] + [0.5] * 15
    watch = fed(losses)
    assert watch.diverged is None
    found = conclude(watch, Recipe(net="lenet5"))
    assert found.lowest == watch.rates[49]
    assert watch.rates[20] < found.steepest <= watch.rates[36]
    smooth, weight = 0.0, 0.0
    for k, loss in enumerate(losses):
        smooth, weight = 0.9 * smooth + 0.1 * loss, 0.9 * weight + 0.1
        assert found.smoothed[k] == pytest.approx(smooth / weight)
    assert found.lines()[0].startswith("suggested: --lr ")
    assert "does not diverge" in found.lines()[1]
    assert found.fell
    assert len(found.lines()) == 2
    flat = conclude(fed([2.0] * 20), Recipe())
    assert "hardly fell" in flat.lines()[2]
    assert flat.figure().axes[0].get_xscale() == "log"


def test_divergence_ends_the_test() -> None:
    watch = fed([1.0] * 10 + [100.0] * 10)
    assert watch.diverged == watch.rates[-1]
    assert watch.smoothed[-1] > DIVERGED * min(watch.smoothed)
    watch = fed([1.0] * 10 + [math.nan] * 10)
    assert watch.diverged == pytest.approx(1e-10)
    assert len(watch.losses) == 10
    with pytest.raises(StriateError, match="no number from the rate"):
        conclude(fed([1.0, math.inf]), Recipe())


def test_the_verb_writes_a_table_and_a_plot(tmp_path: Path) -> None:
    out = tmp_path / "rates"
    settings = {key: value for key, value in TINY.items() if key not in ("epochs", "preflight")}
    found = find_rate("digits", out=out, steps=25, net="lenet5", **settings)
    assert sorted(path.name for path in out.iterdir()) == [
        "range-test.csv", "range-test.json", "range-test.svg",
    ]  # fmt: skip
    assert len((out / "range-test.csv").read_text().splitlines()) == len(found.rates) + 1
    assert "learning rate" in (out / "range-test.svg").read_text()
    assert found.lines()[-1] == f"written: {out}"
    assert found.save(tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(StriateError, match="searches its rate itself"):
        find_rate("digits", out=tmp_path / "other", optimizer="lbfgs", **settings)
