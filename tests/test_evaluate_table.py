"""Tables of protocols, fusion of models, and the paired tests, against separate runs and other formulas."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from little_models import CLASSES, conv_model, found, pictures, sharp
from striate import cli
from striate.core.errors import StriateError
from striate.data.preprocess import Preprocess
from striate.data.samples import Dataset, Split
from striate.evaluate.compare import compare
from striate.evaluate.evaluate import evaluate, given_models
from striate.evaluate.paired import difference, mcnemar
from striate.evaluate.protocols import parse_protocol
from striate.evaluate.vgg_grid import rows_of_vgg, training_sides
from striate.images import draw
from striate.model import Model
from striate.nets.net import Net, create_net
from striate.tasks.classification import Classification


def two_models() -> tuple[Model, Model]:
    """Two models of the same classes, the second with another size and order of classes."""
    first, second = sharp(conv_model()), sharp(conv_model(seed=5, size=10))
    assert isinstance(second.net, Net)
    second.task = Classification((CLASSES[2], CLASSES[0], CLASSES[1]))
    return first, second


def little_set(count: int = 24, size: int = 12) -> Dataset:
    images, draws = np.stack(pictures(count, size, size + 3)), np.random.default_rng(2)
    # Brightness differs, so that answers do.
    images = (images * draws.uniform(0.1, 1, (count, 1, 1, 3))).astype(np.uint8)
    return Dataset(
        "little", "classification", CLASSES, [Split.from_arrays("test", images, draws.integers(0, 3, count))]
    )


def posterior(model: Model, data: Dataset, protocol: str) -> np.ndarray:
    """Posteriors (n, K) in order of CLASSES, by an explicit loop over the images."""
    from striate.evaluate.runner import Runner

    rows = []
    runner = Runner(parse_protocol(protocol), model, batch=64)
    for number in range(len(data.split("test"))):
        ((_, outputs),) = runner.outputs([runner.views(data.split("test").image(number))])
        probabilities = model.task.posterior(outputs)[0]
        rows.append([float(probabilities[model.classes.index(label)]) for label in CLASSES])
    return np.array(rows)


# ---------------------------------------------------------------------- tables


def test_each_row_is_what_evaluate_says_of_it() -> None:
    model, data = sharp(conv_model()), little_set()
    protocols = ["center", "dense+flip@8,12", "grid(3)@12,9", "grid(3)@12,9 + dense+flip@8,12", "ten-crop"]
    before = found(model.net)
    table = compare([model], data, protocols, batch=16)
    assert found(model.net) == before
    assert table.protocol == tuple(protocols)
    for number, text in enumerate(protocols):
        alone = evaluate(model, data, protocol=text, batch=16)
        row = table.evaluation(number)
        assert row.scores.predicted.tolist() == alone.scores.predicted.tolist()
        np.testing.assert_allclose(row.scores.sample_score, alone.scores.sample_score, atol=1e-5)
        assert row.intervals == alone.intervals
        assert row.views == alone.views
        assert row.multiply_adds == pytest.approx(alone.multiply_adds)
        assert table.top1_error[number] == pytest.approx(1 - alone.scores.top1)
        assert table.images_per_second[number] > 0
    want = [[mcnemar(a, b) for b in table.right] for a in table.right]
    assert [list(row) for row in table.p_values] == want
    assert len({tuple(row) for row in table.right.tolist()}) > 1


def test_a_row_of_one_pass_keeps_the_outputs_to_the_last_bit() -> None:
    model, data = sharp(conv_model()), little_set()
    alone = evaluate(model, data, protocol="center")
    row = compare([model], data, ["center", "center+flip"]).evaluation(0)
    np.testing.assert_array_equal(row.scores.confidence, alone.scores.confidence)


def test_a_table_is_told_and_saved(tmp_path: Path) -> None:
    table = compare([sharp(conv_model())], little_set(), "center; ten-crop; grid(2)+flip@12")
    text = "\n".join(table.lines())
    for word in ("center", "ten-crop", "grid(2)+flip@12", "top-1 error", "multiply-adds", "McNemar"):
        assert word in text
    with open(table.save(tmp_path / "table.csv"), newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["protocol"] for row in rows] == list(table.protocol)
    assert [float(row["top1_error"]) for row in rows] == list(table.top1_error)
    assert float(rows[2]["views"]) == 8
    told = json.loads(table.save(tmp_path / "table.json").read_text())
    assert told["images_per_second"] == list(table.images_per_second)
    assert np.array(told["right"]).shape == (3, 24)
    assert "right" not in table.brief()


@pytest.mark.parametrize(
    ("protocols", "trained_side", "told"),
    [
        ("centre", None, "did you mean 'center'"),
        ("center;dense@7", None, "a crop of 8 pixels from an image of 7"),
        ([], None, "no protocol is given"),
        ("vgg", "big", "trained-side is 'big'; allowed"),
        ("vgg", "512,256", "trained-side is '512,256'; allowed"),
        ("center", "256", "without the grid vgg"),
    ],
)
def test_wrong_tables_are_one_line(protocols: str, trained_side: str | None, told: str) -> None:
    with pytest.raises(StriateError) as error:
        compare([conv_model()], little_set(), protocols, trained_side=trained_side)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_tables_are_for_classification() -> None:
    images = np.stack(pictures(2))
    data = Dataset(
        "masks", "segmentation", CLASSES, [Split.from_arrays("test", images, masks=images[..., 0])]
    )
    with pytest.raises(StriateError, match="are for classification"):
        compare([conv_model("segmentation")], data, ["center"])


# ---------------------------------------------------------------------- fusion


@pytest.mark.parametrize("protocol", ["center", "center+flip", "dense@x1,x1.5 + grid(2)"])
def test_fusion_is_the_mean_of_the_members_posteriors(protocol: str) -> None:
    members, data = two_models(), little_set()
    want = np.mean([posterior(model, data, protocol) for model in members], axis=0)
    result = evaluate(list(members), data, protocol=protocol, batch=8)
    assert result.scores.predicted.tolist() == want.argmax(1).tolist()
    np.testing.assert_allclose(result.scores.confidence, want.max(1), atol=1e-5)
    np.testing.assert_allclose(
        result.scores.sample_score, want[np.arange(len(want)), result.scores.true], atol=1e-5
    )
    assert result.model == "little+little"
    assert any("over the best member (95% interval" in line for line in result.lines())


def test_fused_rows_stand_behind_their_members_with_the_gain_over_the_best() -> None:
    table = compare(two_models(), little_set(), ["center", "ten-crop"])
    assert table.row == ("center", "ten-crop", "center", "ten-crop", "fusion: center", "fusion: ten-crop")
    assert table.gain[:4] == (None,) * 4
    for number in (4, 5):
        members = [table.right[number - 4], table.right[number - 2]]
        best = max(members, key=lambda right: right.sum())
        assert table.gains[number] == difference(table.right[number], best)
        assert table.views[number] == table.views[number - 4] + table.views[number - 2]
    assert table.multiply_adds[4] == sum(filter(None, (table.multiply_adds[0], table.multiply_adds[2])))


def test_models_of_other_classes_are_refused() -> None:
    first, second = two_models()
    second.task = Classification(("dark", "bright", "cat"))
    with pytest.raises(StriateError, match="different classes, such as 'cat'"):
        evaluate([first, second], little_set())


@pytest.mark.parametrize("seed", [1, 2])
def test_members_that_were_trained_with_other_splits_are_named(tmp_path: Path, seed: int) -> None:
    for number, label in enumerate(CLASSES):
        for i, image in enumerate(pictures(8, seed=number)):
            draw.save(tmp_path / "set" / label / f"{i}.png", image)
    members = []
    for own in (1, seed):
        model = conv_model(seed=own)
        model.card = {
            "name": f"seed {own}",
            "data": {"name": "set", "digest": "another"},
            "recipe": {"val": 0.2, "test": 0.4, "seed": own},
        }
        members.append(model)
    notes = compare(members, tmp_path / "set", ["center"]).notes
    assert any("seed 2 was trained with other splits" in note for note in notes) == (seed == 2)


def test_names_joined_by_plus_are_several_models(tmp_path: Path) -> None:
    assert given_models("runs/a + runs/b") == ["runs/a", "runs/b"]
    odd = tmp_path / "a+b"
    odd.mkdir()
    assert given_models(str(odd)) == [str(odd)]
    with pytest.raises(StriateError, match="given as 'a\\+'"):
        given_models("a+")


# ---------------------------------------------------------------------- Q per S


def with_card(size: int, crop: float, augment: str | None) -> Model:
    model = conv_model(size=size)
    card = {} if augment is None else {"recipe": {"augment": augment}}
    return Model(model.net, model.task, Preprocess(size=(size, size), crop=crop), card)


@pytest.mark.parametrize(
    ("trained", "single", "several"),
    [
        (None, 256, (224, 256, 288)),
        ("256", 256, (224, 256, 288)),
        ("384", 384, (352, 384, 416)),
        ("256,512", 384, (256, 384, 512)),
        ("x1,x2", 336, (224, 336, 448)),
    ],
)
def test_the_paper_s_test_scales(trained: str | None, single: int, several: tuple[int, ...]) -> None:
    rows, _ = rows_of_vgg(with_card(224, 0.875, None), trained)
    sizes = ",".join(map(str, several))
    assert [str(protocol) for _, protocol in rows] == [
        "center",
        f"dense+flip@{single}",
        f"dense+flip@{sizes}",
        f"grid(5)+flip@{sizes}",
        f"grid(5)+flip@{sizes} + dense+flip@{sizes}",
    ]


def test_small_nets_get_scales_in_proportion_and_none_below_their_own() -> None:
    rows, notes = rows_of_vgg(with_card(32, 1.0, "pad-crop(4)+flip"))
    assert str(rows[2][1]) == "dense+flip@32,37"
    assert any("raised" in note for note in notes)


@pytest.mark.parametrize(
    ("augment", "sides"),
    [
        ("random-resized-crop(scale=0.25)+flip", (32, 64)),
        ("random-resized-crop+flip", (32, 113)),
        ("random-resized-crop(0.25,ratio=2)", (32, 64)),
        ("scale-jitter+flip", (256, 256)),
        ("scale-jitter(high=512)+flip", (256, 512)),
        ("scale-jitter(high=48, low=40)", (40, 48)),
        ("flip", (40, 40)),
        ("none", (40, 40)),
        (None, (40, 40)),
        ("random-resized-crop(scale=...)", (40, 40)),
    ],
)
def test_training_sides_from_the_card(augment: str | None, sides: tuple[int, int]) -> None:
    assert training_sides(with_card(32, 0.8, augment)) == sides


# ---------------------------------------------------------------------- paired tests


@settings(max_examples=30)
@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 30))
def test_mcnemar_is_the_binomial_test_of_the_discordant_pairs(b: int, c: int, same: int) -> None:
    from scipy.stats import binomtest

    right = np.array([True] * b + [False] * c + [True] * same)
    other = np.array([False] * b + [True] * c + [True] * same)
    want = binomtest(b, b + c, 0.5).pvalue if b + c else 1.0
    assert mcnemar(right, other) == pytest.approx(want, rel=1e-9)
    assert mcnemar(right, other) == mcnemar(other, right)


def test_mcnemar_of_many_pairs() -> None:
    from scipy.stats import binomtest

    right = np.arange(20_000) < 10_300
    assert mcnemar(right, ~right) == pytest.approx(binomtest(10_300, 20_000).pvalue, rel=1e-6)
    assert mcnemar(right, right) == 1.0
    assert mcnemar(np.ones(3000, bool), np.zeros(3000, bool)) == 0.0


def test_the_interval_of_a_difference_by_hand() -> None:
    # 10 images: 4 that only the first has right, 1 that only the second has, 5 that both have.
    right = np.array([True] * 4 + [False] + [True] * 5)
    other = np.array([False] * 4 + [True] + [True] * 5)
    value, low, high = difference(right, other)
    spread = 1.96 * np.sqrt(6 - 9 / 12) / 12
    assert (value, low, high) == pytest.approx((0.3, 3 / 12 - spread, 3 / 12 + spread))
    assert difference(right, right)[0] == 0


# ---------------------------------------------------------------------- the command line


@pytest.fixture
def on_disk(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Two model files and a folder of images of two of their classes."""
    paths = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = Model(create_net("lenet5", 3, size=28).eval(), Classification(CLASSES), Preprocess((28, 28)))
        paths.append(model.save(tmp_path / f"{seed}.safetensors"))
    for number, name in enumerate(("dark", "bright")):
        for i, image in enumerate(pictures(4, 30, 34, seed=number)):
            draw.save(tmp_path / "set" / name / f"{i}.png", image)
    return paths[0], paths[1], tmp_path / "set"


def test_the_grid_of_vgg_from_the_command_line(
    on_disk: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "table.csv"
    words = ["evaluate", str(on_disk[0]), str(on_disk[2]), "--grid", "vgg", "--out", str(out)]
    assert cli.main([*words, "--threads", "1", "--trained-side", "x1,x1.3"]) == 0
    text = capsys.readouterr().out
    for name in ("centre crop", "single scale, dense", "multi-scale, dense", "multi-crop", "and dense"):
        assert name in text
    assert len(out.read_text().splitlines()) == 6


def test_what_evaluate_writes_has_one_entry_an_image(
    on_disk: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "scores.json"
    words = ["evaluate", str(on_disk[0]), str(on_disk[2]), "--threads", "1", "--out", str(out), "--json"]
    assert cli.main(words) == 0
    scores = json.loads(out.read_text())["scores"]
    each = {"index", "true", "predicted", "confidence", "sample_score"}
    assert {len(scores[name]) for name in each} == {8}
    assert sorted(scores["index"]) == list(range(8))
    assert sum(a == b for a, b in zip(scores["true"], scores["predicted"], strict=True)) == scores["correct"]
    assert not each & json.loads(capsys.readouterr().out)["scores"].keys()


def test_fusion_from_the_command_line(
    on_disk: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", f"{on_disk[0]}+{on_disk[1]}", str(on_disk[2]), "--threads", "1", "--json"]
    assert cli.main(words) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["row"] == ["center", "center", "fusion: center"]
    assert told["gain"][:2] == [None, None]
    assert told["gain_low"][2] <= told["gain"][2] <= told["gain_high"][2]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--grid", "vgg", "--protocol", "ten-crop"], "--grid and --protocol are given together"),
        (["--grid", "vgg", "--corruptions"], "--grid and --corruptions are given together"),
        (["--trained-side", "256"], "without --grid vgg"),
        (
            ["--protocol", "dense@20"],
            "a crop of 28 pixels from an image of 20; allowed: sizes of at least @28",
        ),
        (["--grid", " "], "--grid is empty; allowed: vgg, or protocols joined by ';'"),
        (["--protocol", "densely"], "did you mean 'dense'"),
    ],
)
def test_arguments_that_do_not_go_together(
    on_disk: tuple[Path, Path, Path], words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["evaluate", str(on_disk[0]), str(on_disk[2]), *words]) == 2
    text = capsys.readouterr().err
    assert told in text
    assert text.count("\n") == 1
