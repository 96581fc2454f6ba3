"""What each part of a recipe is worth: the recipes that are compared, their differences, the command."""

from __future__ import annotations

import csv
import itertools
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from striate import cli
from striate.core.errors import StriateError
from striate.data.loaders import Batch, Loader
from striate.data.preprocess import Preprocess
from striate.data.samples import Dataset, Split
from striate.evaluate.paired import difference, over_runs, student
from striate.model import Model
from striate.nets.net import create_net
from striate.studies import ablation
from striate.studies.ablation import EVERY, WHOLE, Ablation, ablate, check_ablation
from striate.studies.repeats import Repeats, train_repeats
from striate.tasks.classification import Classification
from striate.train.fit import Diverged, Interrupted
from striate.train.recipe import Recipe
from striate.train.setup import check_settled

QUICK = Recipe(net="lenet5", epochs=1, batch=10, threads=1, workers=0, preflight=False, label_smoothing=0.1)


def shades(channels: int = 3) -> Dataset:
    """Dark and light squares of 28 pixels, some with the wrong label."""
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 2
    shown = np.where(rng.random(60) < 0.8, labels, 1 - labels)
    images = rng.integers(0, 120, (60, 28, 28, channels)) + 100 * shown[:, None, None, None]
    whole = Split.from_arrays("all", images.astype(np.uint8), labels)
    parts = [
        whole.select(np.arange(*span), name) for name, span in {"train": (0, 30), "test": (30, 60)}.items()
    ]
    return Dataset("shades", "classification", ("dark", "light"), parts)


def arms(parts: Any, **settings: Any) -> dict[str, Recipe]:
    return {arm.name: arm.recipe for arm in check_ablation(shades(), QUICK.with_(**settings), parts)}


def test_each_recipe_lacks_one_part_and_the_last_all() -> None:
    parts = "augment.flip, weight_decay,schedule=constant,net_options.width=1"
    found = arms(parts, augment="pad-crop(2)+flip", net="resnet20")
    whole = found[WHOLE]
    assert whole == QUICK.with_(augment="pad-crop(2)+flip", net="resnet20")
    assert found["without augment.flip"] == whole.with_(augment="pad-crop(pixels=2)")
    assert found["without weight_decay"] == whole.with_(weight_decay=0.0)
    assert found["schedule constant"] == whole.with_(schedule="constant")
    assert found["net_options.width 1"] == whole.with_(net_options={"width": 1})
    assert found[EVERY] == whole.with_(
        augment="pad-crop(pixels=2)", weight_decay=0.0, schedule="constant", net_options={"width": 1}
    )
    assert len(found) == 6


def test_of_one_part_there_is_no_row_for_all_and_both_steps_can_go() -> None:
    assert list(arms(["momentum"])) == [WHOLE, "without momentum"]
    found = arms(["augment.flip", "augment"], augment="pad-crop(2)+flip")
    assert list(found) == [WHOLE, "without augment.flip", "without augment"]
    assert found["without augment"].augment == "none"
    assert arms("augment='flip(p=0.2)+blur'")["augment flip(p=0.2)+blur"].augment == "flip(p=0.2)+blur"


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"drop_connect": 0.5}, "drop_connect"),
        ({"net": "vgg11", "stochastic_pooling": True}, "stochastic_pooling"),
        ({"net": "vgg11", "dropout": 0.4}, "dropout=null"),
        ({"net": "vgg11", "net_options": {"width": 4}}, "net_options.width=8"),
    ],
)
def test_what_is_an_option_of_the_net_goes_with_its_setting(settings: dict[str, Any], part: str) -> None:
    data = shades()
    whole, lacking = (check_settled(recipe, data, None) for recipe in arms(part, **settings).values())
    assert whole.net_options != lacking.net_options


def test_the_net_of_trained_weights_stays_without_them(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = create_net("resnet20", 2, 3, size=16, width=4)
    source = Model(
        net.eval(), Classification(("dark", "light")), Preprocess(size=(16, 16), mean=(0.3,), std=(0.4,))
    )
    path = str(source.save(tmp_path / "trained.safetensors"))
    found = arms("start_from,momentum", net="auto", start_from=path)
    alone = check_settled(found["without start_from"], shades(), None)
    assert (alone.net, alone.net_options["width"], alone.size) == ("resnet20", 4, (16, 16))
    assert found[EVERY] == found["without start_from"].with_(momentum=0.0)


def test_parts_that_exclude_each_other_have_no_row_together() -> None:
    for parts in ("ema=0.99,swa=0.5", "schedule=constant,schedule=cosine"):
        assert [name.split(" ")[0] for name in arms(parts)] == [
            "whole",
            *re.findall("ema|swa|schedule", parts),
        ]
    with pytest.raises(StriateError, match="width"):
        arms("net_options.width=0", net="resnet20")


def test_a_recipe_that_diverges_is_a_row_without_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = fake_runs({"whole-recipe": (0.5, 0.7)}, monkeypatch)
    trained = ablation.train_repeats

    def diverging(data: Any, recipe: Recipe, *, out: Path, **how: Any) -> Any:
        if out.name == "lr-9":
            raise Diverged("the loss is no longer a number in epoch 2", hint="lower the rate")
        return trained(data, recipe, out=out, **how)

    monkeypatch.setattr(ablation, "train_repeats", diverging)
    found = ablate(shades(), QUICK, "lr=9.0", repeats=2, out=tmp_path)
    assert isinstance(found, Ablation)
    assert len(runs) == 1
    assert (found.means[1], found.differences[1], found.lows[1]) == (None, None, None)
    assert found.lines()[2] == "lr 9          the loss is no longer a number in epoch 2"
    assert [text.get_text().strip() for text in found.figure().axes[0].texts] == ["diverged"]


def test_every_recipe_has_a_folder_of_its_own() -> None:
    long = "+".join(f"blur(p=0.{k})" for k in range(1, 10))
    parts = ["augment=flip(0.1)", "augment=flip(0.2)", f"augment={long}"]
    folders = [arm.folder for arm in check_ablation(shades(), QUICK, [*parts, f"augment={long}+flip"])]
    assert len(set(folders)) == len(folders) == 5
    assert max(map(len, folders)) <= 60 + len("-12345678")
    assert all(re.fullmatch(r"[\w.+=-]+", folder) for folder in folders)


def test_a_stopped_comparison_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: Any, **__: Any) -> None:
        raise Interrupted(15, "the folder of one run")

    monkeypatch.setattr("striate.studies.repeats.train_and_report", stopped)
    with pytest.raises(Interrupted, match=rf"--resume --out {re.escape(str(tmp_path / 'a'))}$") as found:
        ablate(shades(), QUICK, "momentum", repeats=2, out=tmp_path / "a")
    assert found.value.exit_code == 128 + 15
    with pytest.raises(Interrupted, match=rf"--resume --out {re.escape(str(tmp_path / 'b'))}$"):
        train_repeats(shades(), QUICK, repeats=2, out=tmp_path / "b")


def test_every_setting_that_can_be_left_out_is_checked_by_the_recipe() -> None:
    """The values that leave settings out are of their types and bounds."""
    import dataclasses

    fields = [f for f in dataclasses.fields(Recipe) if f.metadata["off"] is not dataclasses.MISSING]
    assert len(fields) > 20
    assert Recipe(**{field.name: field.metadata["off"] for field in fields}).momentum == 0


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ("augmnt", "unknown setting to leave out 'augmnt'.*did you mean 'augment'"),
        ("seed=4", "seed cannot be compared; all runs share it"),
        ("test=0.4", "test cannot be compared"),
        ("net_options={width: 4}", "net_options has no value that leaves it out.*net_options.NAME=VALUE"),
        ("optimizer", "optimizer has no value that leaves it out.*another value: optimizer=VALUE"),
        ("net_options.width", "no value that leaves it out.*net_options.width=VALUE"),
        ("augment.flip=0.3", "augment.flip has no value that leaves it out.*or another value: augment=VALUE"),
        ("weight_decay.all", "unknown setting to leave out 'weight_decay.all'"),
        ("label_smoothing=0.1", "'label_smoothing=0.1' gives the same recipe as the whole"),
        ("l1", "'l1' gives the same recipe as the whole; leave it out of --ablate"),
        ("drop_connect=null", "gives the same recipe as the whole"),
        ("patience=3", "patience"),
        ("freeze=conv9", "unknown stage 'conv9'"),
        ("progressive=99@0.5", "99"),
        ("initialisation=gaussian(-1)", "std is -1"),
        ("weight_decay,weight-decay=0", "'weight-decay=0' gives the same recipe as 'weight_decay'"),
        ("augment.flp", "unknown step of the augmentation 'flp'.*did you mean 'flip'.*pad-crop"),
        ("nesterov,nesterov", "'nesterov' gives the same recipe as 'nesterov'"),
        ("lr=-1", "lr is -1"),
        ("optimizer=sgdd", "unknown optimizer 'sgdd'"),
        ("dropout", "net 'lenet5' has no dropout rate"),
        ("momentum,", "unknown setting to leave out ''"),
        ("", "ablate names no part of the recipe"),
        ([], "ablate names no part of the recipe"),
    ],
)
def test_what_cannot_be_left_out(parts: Any, words: str) -> None:
    with pytest.raises(StriateError, match=words):
        arms(parts, augment="pad-crop(2)+flip")


def test_student_s_quantiles_are_those_of_the_tables() -> None:
    # Two-sided 95 % and 99 %, as printed in tables of the distribution.
    table = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 9: 2.262, 30: 2.042}
    assert {n: round(student(n), 3) for n in table} == table
    assert round(student(4, 0.99), 3) == 4.604
    assert student(2000) == pytest.approx(1.961, abs=1e-3)


def test_the_interval_over_runs_by_hand() -> None:
    middle, low, high = over_runs([0.01, 0.03, 0.02])
    assert middle == pytest.approx(0.02)
    assert (high - middle, middle - low) == (pytest.approx(4.303 * 0.01 / math.sqrt(3), rel=1e-3),) * 2


def fake_runs(scores: dict[str, tuple[float, ...]], monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Training of no cost: the scores of a recipe are given by its folder's name."""
    asked = []

    def runs(data: Any, recipe: Recipe, *, out: Path, **how: Any) -> Repeats:
        name = re.sub(r"-[0-9a-f]{8}$", "", out.name)
        asked.append((name, recipe, how))
        found = scores[name]
        seeds = tuple(range(len(found)))
        folders = tuple(str(out / f"seed-{seed}") for seed in seeds)
        return Repeats("top-1 accuracy", "test", 30, sum(found) / len(found), 0.01, seeds, found, folders)

    monkeypatch.setattr(ablation, "train_repeats", runs)
    return asked


def test_differences_go_by_pairs_of_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = {
        "whole-recipe": (0.50, 0.70, 0.90),
        "without-label_smoothing": (0.48, 0.67, 0.88),
        "momentum-0.5": (0.60, 0.61, 0.92),
        "all-of-these": (0.55, 0.74, 0.95),
    }
    asked = fake_runs(scores, monkeypatch)
    found = ablate(
        shades(), QUICK, "label_smoothing,momentum=0.5", repeats=3, out=tmp_path / "a", resume=True
    )
    assert isinstance(found, Ablation)
    assert [name for name, _, _ in asked] == list(scores)
    assert all(how["repeats"] == 3 and how["resume"] for _, _, how in asked)
    # The spread between seeds is far larger than the difference, which all pairs agree on.
    assert found.verdicts == ("", "worse", "cannot be told", "better")
    assert found.differences == pytest.approx((0.0, -0.07 / 3, 0.01, 0.14 / 3))
    expected = over_runs([-0.02, -0.03, -0.02])
    assert (found.lows[1], found.highs[1]) == pytest.approx(expected[1:])
    told = found.lines()
    assert told[0] == "top-1 accuracy in %, on 30 test images, 3 seeds"
    assert told[2].startswith(
        "without label_smoothing   67.67 ± 1.00   -2.33 points (95% interval -3.77 to -0.90)"
    )
    assert told[2].endswith("  worse")
    with (tmp_path / "a" / "ablation.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["verdicts"] for row in rows] == list(found.verdicts)
    assert json.loads((tmp_path / "a" / "ablation.json").read_text("utf-8")) == found.to_dict()
    assert found.save(tmp_path / "a.svg").read_bytes() == found.save(tmp_path / "b.svg").read_bytes()
    axes = found.figure().axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == list(found.names[1:])
    drawn = [line.get_xdata() for line in axes.lines[1:]]
    assert list(itertools.chain(*drawn[:2])) == pytest.approx([100 * v for v in (*expected[1:], expected[0])])


def test_the_command_trains_tests_compares_and_resumes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "a"
    words = ["train", "digits", "--net", "linear", "--epochs", "1", "--threads", "1", "--preflight", "false"]
    words += ["--ablate", "momentum,lr=1e-4", "--no_report", "--out", str(out)]
    assert cli.main([*words, "--dry_run"]) == 0
    assert "without momentum: momentum 0" in capsys.readouterr().out.splitlines()
    assert not out.exists()
    assert cli.main(words) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0].endswith("one seed")
    assert told[-1].startswith("one seed: what chance in training makes is in no interval")
    found = json.loads((out / "ablation.json").read_text("utf-8"))
    assert found["names"] == [WHOLE, "without momentum", "lr 0.0001", EVERY]
    right = []
    for folder in found["folders"][:2]:
        scores = json.loads((Path(folder) / "seed-0" / "evaluation.json").read_text("utf-8"))["scores"]
        right.append(np.equal(scores["predicted"], scores["true"]))
    gap = difference(right[1], right[0])
    assert (found["differences"][1], found["lows"][1], found["highs"][1]) == pytest.approx(gap)
    assert found["verdicts"] == [""] * 4

    assert cli.main(words) == 2
    assert "continue repeats with --resume" in capsys.readouterr().err
    batches = Loader.batches

    def untrained(self: Loader, *args: int) -> Iterator[Batch]:
        assert not self.train
        return batches(self, *args)

    monkeypatch.setattr(Loader, "batches", untrained)
    assert cli.main([*words, "--resume"]) == 0
    assert capsys.readouterr().out.splitlines() == told


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--search", "3"], "ablate takes no search and no range test"),
        (["--range_test"], "ablate takes no search and no range test"),
        (["--resume"], "resume does not say which runs"),
        (["--ablate", "nothing"], "unknown setting to leave out 'nothing'"),
    ],
)
def test_mistakes_on_the_command_line(
    more: list[str],
    told: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "digits", "--ablate", "momentum", *more]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
