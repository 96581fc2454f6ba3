"""What makes the members of an ensemble: cycles of one run, bootstraps; and the mean of their weights."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from little_models import CLASSES, conv_model, drawn_model, pictures
from striate.core.errors import StriateError
from striate.data.samples import Dataset, Split
from striate.ensemble import average_weights
from striate.model import load
from striate.nets.averaging import average_states, estimate_norms
from striate.studies.ensemble import ensemble
from striate.train.members import bootstrap, cycle_ends
from striate.train.recipe import Recipe
from striate.train.schedules import SCHEDULES, Plan
from striate.train.session import train


@pytest.mark.parametrize("growth", [1.0, 2.0, 1.37])
@pytest.mark.parametrize(("restarts", "warmup"), [(1, 0), (4, 0), (3, 7.5)])
def test_cycles_end_where_the_rate_jumps_up(growth: float, restarts: int, warmup: float) -> None:
    plan = Plan(steps=200, steps_per_epoch=10, warmup=warmup, restarts=restarts, growth=growth)
    rates = [SCHEDULES.get("cosine")(step, plan, []) for step in range(200)]
    jumps = [step for step in range(int(warmup) + 2, 200) if rates[step] > rates[step - 1]]
    assert cycle_ends(plan) == (*jumps, 200)


def colours(count: int = 48) -> Dataset:
    draws = np.random.default_rng(0)
    labels = np.arange(count) % 3
    images = draws.integers(0, 90, (count, 8, 8, 3)) + 50 * labels[:, None, None, None]
    parts = {
        "train": slice(0, 2 * count // 3),
        "val": slice(2 * count // 3, count - 8),
        "test": slice(count - 8, count),
    }
    splits = [
        Split.from_arrays(name, images[part].astype(np.uint8), labels[part]) for name, part in parts.items()
    ]
    return Dataset("colours", "classification", CLASSES, splits)


def test_a_cyclic_run_keeps_the_model_of_each_cycle(tmp_path: Path) -> None:
    recipe = Recipe(
        net="linear", epochs=6, batch=8, schedule="cosine", restarts=2, snapshots=True, preflight=False
    )
    data = colours()
    run = train(data, recipe, out=tmp_path / "run", progress=False)
    files = sorted(file.name for file in (run.path / "snapshots").iterdir())
    assert files == ["cycle-1.safetensors", "cycle-2.safetensors", "cycle-3.safetensors"]
    last, final = load(run.path / "snapshots" / files[2]), load(run.path)
    assert all(torch.equal(a, b) for a, b in zip(last.net.parameters(), final.net.parameters(), strict=True))
    alone = train(
        data, recipe.with_(epochs=2, restarts=0, snapshots=False), out=tmp_path / "2", progress=False
    )
    one = load(run.path / "snapshots" / files[0])
    # The first cycle is a run of its own length.
    for a, b in zip(one.net.parameters(), load(alone.path).net.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    joined = ensemble([run.path], out=tmp_path / "e.safetensors", last=2)
    assert joined.members == tuple(str(run.path / "snapshots" / name) for name in files[1:])
    assert load(joined.path).names == ("cycle-2", "cycle-3")
    with pytest.raises(StriateError, match="give --schedule cosine and --restarts"):
        train(data, recipe.with_(restarts=0), out=tmp_path / "no", progress=False)


def test_bootstrap_draws_with_replacement_by_the_seed() -> None:
    count = 2000
    split = Split.from_arrays("train", np.zeros((count, 2, 2, 3), np.uint8), np.arange(count))
    drawn = bootstrap(split, 5)
    assert len(drawn) == count
    assert np.array_equal(drawn.targets, bootstrap(split, 5).targets)
    assert not np.array_equal(drawn.targets, bootstrap(split, 6).targets)
    # 1 - 1/e of the images, give or take.
    assert abs(len(np.unique(drawn.targets)) / count - 0.632) < 0.02
    assert np.bincount(np.bincount(drawn.targets, minlength=count))[:3] / count == pytest.approx(
        [0.368, 0.368, 0.184], abs=0.03
    )
    assert [drawn.name_of(k) for k in range(5)] == [split.name_of(int(drawn.targets[k])) for k in range(5)]


def test_bagged_nets_see_other_images(tmp_path: Path) -> None:
    data = colours()
    recipe = Recipe(net="linear", epochs=1, batch=8, augment="none", preflight=False, input="pixels")
    runs = [
        train(data, recipe.with_(bootstrap=True, seed=seed), out=tmp_path / f"seed-{seed}", progress=False)
        for seed in (0, 1)
    ]
    means = [load(run.path).preprocess.mean for run in runs]
    assert means[0] != means[1]
    with pytest.raises(StriateError, match="is given without data"):
        ensemble([tmp_path], out=tmp_path / "e.safetensors", split="val")
    joined = ensemble([tmp_path], out=tmp_path / "e.safetensors", data=None)
    assert load(joined.path).names == ("seed-0", "seed-1")


# ---------------------------------------------------------------------- averaged weights


def test_averaged_weights_are_the_mean_of_the_weights() -> None:
    models = [drawn_model(k) for k in range(3)]
    for model in models:
        model.preprocess = models[0].preprocess
    made = average_weights(models)
    for name, tensor in made.net.state_dict().items():
        mean = sum(model.net.state_dict()[name].double() for model in models) / 3
        torch.testing.assert_close(tensor.double(), mean, rtol=1e-6, atol=1e-7)
    # A linear net: the mean of weights is the mean of logits.
    views = np.stack(pictures(4))
    logits = torch.stack([model.forward(views) for model in models]).mean(0)
    torch.testing.assert_close(made.forward(views), logits)
    before = copy.deepcopy(models[0].net.state_dict())
    assert all(torch.equal(before[name], value) for name, value in models[0].net.state_dict().items())


def test_whole_numbers_are_not_averaged() -> None:
    states = [
        {"count": torch.tensor(3), "w": torch.tensor([1.0])},
        {"count": torch.tensor(8), "w": torch.tensor([4.0])},
    ]
    found = average_states(states)
    assert found["count"] == 3
    assert found["w"].tolist() == [2.5]


def test_batch_norm_is_estimated_anew() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(4, 2, 3),
                        nn.BatchNorm2d(2, momentum=0.3)).eval()  # fmt: skip
    batches = [torch.randn(5, 3, 9, 9) + k for k in range(3)]
    first = [net[0](batch).detach() for batch in batches]
    mean = torch.stack([x.mean((0, 2, 3)) for x in first]).mean(0)
    variance = torch.stack([x.var((0, 2, 3)) for x in first]).mean(0)
    assert estimate_norms(net, iter(batches)) == 3
    torch.testing.assert_close(net[1].running_mean, mean)
    torch.testing.assert_close(net[1].running_var, variance)
    # The second norm sees what the first gives in training: each batch by its own statistics, no dropout.
    normed = [
        nn.functional.batch_norm(x, None, None, net[1].weight, net[1].bias, training=True) for x in first
    ]
    second = [net[4](torch.relu(x)) for x in normed]
    torch.testing.assert_close(
        net[5].running_mean, torch.stack([x.mean((0, 2, 3)) for x in second]).mean(0).detach()
    )
    assert net[5].momentum == 0.3
    assert not any(module.training for module in net.modules())
    with pytest.raises(StriateError, match="no training image"):
        estimate_norms(net, [])
    assert estimate_norms(nn.Sequential(nn.Linear(2, 2)), []) == 0


def test_weights_without_an_average_are_refused() -> None:
    with pytest.raises(StriateError, match="average of 1 model"):
        average_weights([drawn_model(0)])
    with pytest.raises(StriateError, match="name 'linear' and 'mlp'"):
        average_weights([drawn_model(0), drawn_model(1, net="mlp")])
    with pytest.raises(StriateError, match="differ in preprocessing"):
        average_weights([drawn_model(0), drawn_model(1)])
    with pytest.raises(StriateError, match="wants training images"):
        average_weights([conv_model(seed=0), conv_model(seed=1)])
