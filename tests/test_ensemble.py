"""Ensembles: fusion against explicit means, hostile files, and the verb."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from little_models import CLASSES, conv_model, drawn_model, pictures
from striate import cli, modelfile
from striate.core.errors import BadModelFile, StriateError
from striate.data.preprocess import Preprocess
from striate.data.samples import Dataset, Split
from striate.ensemble import Ensemble
from striate.evaluate.compare import compare
from striate.evaluate.evaluate import evaluate
from striate.evaluate.paired import bootstrap as bootstrap_interval
from striate.evaluate.paired import difference, mcnemar
from striate.evaluate.robustness import robustness
from striate.model import Model, load
from striate.studies.ensemble import found_models
from striate.tasks.classification import Classification
from striate.tasks.task import Task
from striate.visualize.method import visualize


def mixed() -> Ensemble:
    """Members of three sizes and two nets, one with its classes in another order."""
    turned = (CLASSES[2], CLASSES[0], CLASSES[1])
    return Ensemble([drawn_model(0), drawn_model(1, 6, turned), drawn_model(2, 10, net="mlp")])


def little_set(count: int = 30, kind: str = "classification") -> Dataset:
    images, draws = np.stack(pictures(count, 12, 15)), np.random.default_rng(2)
    images = (images * draws.uniform(0.1, 1, (count, 1, 1, 3))).astype(np.uint8)
    if kind == "segmentation":
        split = Split.from_arrays("test", images, masks=draws.integers(0, 3, (count, 12, 15)))
    elif kind == "multi-label":
        split = Split.from_arrays("test", images, draws.integers(0, 2, (count, 3)))
    else:
        split = Split.from_arrays("test", images, draws.integers(0, 3, count))
    return Dataset("little", kind, CLASSES, [split])


def probabilities(model: Model, image: np.ndarray) -> np.ndarray:
    top = model.predict(image, top=3).top
    return np.array([top.probabilities[top.labels.index(label)] for label in CLASSES])


# ---------------------------------------------------------------------- fusion


def test_predict_gives_the_mean_of_the_members_posteriors() -> None:
    made = mixed()
    for image in pictures(6, 20, 14):
        mean = np.mean([probabilities(member, image) for member in made.members], axis=0)
        np.testing.assert_allclose(probabilities(made, image), mean, atol=1e-6)
    shapes = [(20, 14), (9, 30), (20, 14), (7, 7)]
    many = [pictures(1, *shape, seed=k)[0] for k, shape in enumerate(shapes)]
    answers = made.predict(many, batch=3)
    assert [answer.index for answer in answers] == [made.predict(image).index for image in many]


def test_members_that_see_alike_may_be_given_views() -> None:
    models = [drawn_model(0), drawn_model(1), drawn_model(2)]
    made = Ensemble(models)
    views = np.stack(pictures(5))
    mean = torch.stack([model.forward(views).softmax(1) for model in models]).mean(0)
    torch.testing.assert_close(made.forward(views).softmax(1), mean)
    with pytest.raises(StriateError, match="in different ways"):
        mixed().forward(views)


@pytest.mark.parametrize("protocol", ["center", "center+flip", "ten-crop", "grid(3)@x1,x1.5", "dense@x1.5"])
def test_every_protocol_gives_the_mean_of_what_it_gives_the_members(protocol: str) -> None:
    made = Ensemble([conv_model(seed=k, size=8 + 2 * k) for k in range(3)])
    data = little_set()
    tested = evaluate(made, data, protocol=protocol)
    table = compare(made.members, data, [protocol])
    assert tested.scores.to_dict() == table.scores[-1].to_dict()
    assert tested.n == 30
    each = [evaluate(member, data, protocol=protocol) for member in made.members]
    truth = np.mean([one.scores.sample_score for one in each], axis=0)
    np.testing.assert_allclose(tested.scores.sample_score, truth, atol=1e-6)
    best = max(each, key=lambda one: one.scores.correct)
    assert tested.multiply_adds == sum(one.multiply_adds or 0 for one in each)
    gain, low, high = (
        100 * part
        for part in difference(
            tested.scores.predicted == tested.scores.true, best.scores.predicted == best.scores.true
        )
    )
    text = " ".join(tested.lines())
    assert f"top-1 {gain:+.2f} points over the best member" in text
    assert f"(95% interval {low:+.2f} to {high:+.2f})" in text
    p = mcnemar(tested.scores.predicted == tested.scores.true, best.scores.predicted == best.scores.true)
    assert f"p {p:.2g}" in text
    assert f"#3 {100 * each[2].scores.main:.2f} %" in text


@pytest.mark.parametrize("kind", ["multi-label", "segmentation"])
def test_other_tasks_fuse_too(kind: str) -> None:
    made = Ensemble([conv_model(kind, seed=k) for k in range(3)])
    data = little_set(9, kind)
    views = np.stack(pictures(4))
    mean = torch.stack([made.task.posterior(member.forward(views)) for member in made.members]).mean(0)
    torch.testing.assert_close(made.task.posterior(made.forward(views)), mean, atol=1e-6, rtol=1e-5)
    tested = evaluate(made, data)
    mains = [evaluate(member, data).scores.main for member in made.members]
    gain = 100 * (tested.scores.main - max(mains))
    assert f"{gain:+.2f} points over the best member" in " ".join(tested.notes)
    assert "95% paired bootstrap interval" in " ".join(tested.notes)
    with pytest.raises(StriateError, match="of an ensemble for"):
        evaluate(made, data, protocol="dense@x1.5")


def test_tables_and_corruptions_take_an_ensemble() -> None:
    made, data = Ensemble([conv_model(seed=0), conv_model(seed=1)]), little_set(12)
    table = compare([made], data, ["center", "dense"])
    assert table.row == ("center", "dense", "center", "dense", "fusion: center", "fusion: dense")
    assert [gain is None for gain in table.gains] == [True] * 4 + [False] * 2
    assert table.model[0].endswith("#1")
    found = robustness(made, data)
    assert found.clean == table.scores[4].top1
    assert len(found.accuracy) == len(found.corruption)


def test_an_ensemble_beside_a_model_counts_by_its_members() -> None:
    models, data = [drawn_model(k) for k in range(3)], little_set(12)
    joined = compare([Ensemble(models[:2]), models[2]], data, ["center"])
    apart = compare(models, data, ["center"])
    assert joined.scores[-1].to_dict() == apart.scores[-1].to_dict()
    nested = Ensemble([Ensemble(models[:2]), models[2]])
    assert nested.members == tuple(models)


# ---------------------------------------------------------------------- what is refused


def test_the_inside_of_an_ensemble_is_refused() -> None:
    made = mixed()
    with pytest.raises(StriateError, match="choose a member"):
        visualize("saliency", made, pictures(1))
    for name in ("stage_names", "spatial_stages", "features", "head"):
        with pytest.raises(StriateError, match="choose a member"):
            getattr(made.net, name)
    with pytest.raises(StriateError, match="takes views"):
        made.net(torch.zeros(1, 3, 8, 8))
    assert visualize("saliency", made.member(2), pictures(1)).arrays
    assert made.member("m2") is made.members[2]
    for which in (0, 4, "m7", "9" * 30):
        with pytest.raises(StriateError, match="unknown member"):
            made.member(which)
    with pytest.raises(StriateError, match="only an ensemble"):
        drawn_model(0).member(1)


def test_models_that_do_not_fit_are_refused() -> None:
    with pytest.raises(StriateError, match="an ensemble of 1 model; allowed: 2 to 64"):
        Ensemble([drawn_model(0)])
    with pytest.raises(StriateError, match="different classes, such as 'cat'"):
        Ensemble([drawn_model(0), drawn_model(1, 8, ("dark", "bright", "cat"))])
    with pytest.raises(StriateError, match="one model does"):
        Ensemble([conv_model(), conv_model("multi-label")])
    with pytest.raises(StriateError, match="do not lie on each other"):
        Ensemble([conv_model("segmentation"), conv_model("segmentation", size=10)])


# ---------------------------------------------------------------------- files


def test_one_file_holds_all_and_comes_back(tmp_path: Path) -> None:
    made = mixed()
    split = Split.from_arrays("train", np.stack(pictures(40, 8, 8)), np.zeros(40, dtype=int))
    white = drawn_model(3)
    white.preprocess = Preprocess.fit(split, 8, resize="squash", input="zca")
    made = Ensemble([*made.members, white], {"origin": "a test"})
    path = made.save(tmp_path / "e.safetensors")
    again = load(path)
    assert isinstance(again, Ensemble)
    assert again.card["origin"] == "a test"
    assert again.names == ("m0", "m1", "m2", "m3")
    assert [member.preprocess for member in again.members] == [m.preprocess for m in made.members]
    assert [member.classes for member in again.members] == [m.classes for m in made.members]
    for image in pictures(3, 11, 12):
        np.testing.assert_array_equal(probabilities(again, image), probabilities(made, image))
    assert again.save(tmp_path / "again.safetensors").read_bytes() == path.read_bytes()
    one = load(f"{path}#4")
    assert one.preprocess.input == "zca"
    assert load(f"{path}#m1").classes[0] == CLASSES[2]
    with pytest.raises(StriateError, match="unknown member '5'"):
        load(f"{path}#5")


def header_and_tensors(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    made = Ensemble([drawn_model(0), drawn_model(1)])
    made.save(path)
    header = modelfile.read_table(path)[1]
    assert header is not None
    tensors = {
        f"member-{k}/{name}": tensor
        for k, member in enumerate(made.members, 1)
        for name, tensor in member.tensors().items()
    }
    return header, tensors


def change(header: dict[str, Any], place: str, value: Any) -> None:
    """Put a value where `place` says, such as ensemble/members/0/net."""
    *way, last = place.split("/")
    at: Any = header
    for key in way:
        at = at[int(key)] if isinstance(at, list) else at[key]
    at[int(last) if isinstance(at, list) else last] = value


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("ensemble", None),
        ("ensemble", []),
        ("ensemble/members", None),
        ("ensemble/members", {}),
        ("ensemble/members", []),
        ("ensemble/members", [{}] * 1000),
        ("ensemble/members/0", 7),
        ("ensemble/members/0", {"ensemble": {"members": []}, "name": "x"}),
        ("ensemble/members/0/name", ["x"]),
        ("ensemble/members/0/net", None),
        ("ensemble/members/0/net/name", "resnet152"),
        ("ensemble/members/0/net/name", "no such net"),
        ("ensemble/members/0/net/in_channels", 10**9),
        ("ensemble/members/0/net/size", [10**9, 10**9]),
        ("ensemble/members/1/preprocess", None),
        ("ensemble/members/1/preprocess/input", "zca"),
        ("ensemble/members/1/preprocess/arrays", {"0.mean": [1.0]}),
        ("ensemble/members/1/order", [0, 1]),
        ("ensemble/members/1/order", [0, 1, 1]),
        ("ensemble/members/1/order", [0, 1, "2"]),
        ("ensemble/members/1/order", [0, 1, True]),
        ("ensemble/members/1/order", {"a": 1}),
        ("ensemble/members/1/card", "x"),
        ("task/name", "segmentation"),
        ("classes", ["a"]),
    ],
)
def test_hostile_headers_are_refused(place: str, value: Any, tmp_path: Path) -> None:
    path = tmp_path / "e.safetensors"
    header, tensors = header_and_tensors(path)
    change(header, place, value)
    modelfile.write(path, header, tensors)
    with pytest.raises(BadModelFile) as caught:
        load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["member-3/fc.weight", "fc.weight", "member-1/extra", "member-2/preprocess/x"]
)
def test_tensors_of_no_member_are_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "e.safetensors"
    header, tensors = header_and_tensors(path)
    modelfile.write(path, header, {**tensors, name: torch.ones(3)})
    with pytest.raises(BadModelFile):
        load(path)
    gone = dict(list(tensors.items())[1:])
    with pytest.raises(BadModelFile):
        load(modelfile.write(path, header, gone))


# ---------------------------------------------------------------------- the verb


def test_the_paired_bootstrap_is_near_the_normal_interval() -> None:
    draws = np.random.default_rng(1)
    other = draws.uniform(0, 1, 400)
    one = other + draws.normal(0.03, 0.1, 400)
    value, low, high = bootstrap_interval(one, other)
    gaps = one - other
    spread = 1.96 * gaps.std() / 20
    assert value == pytest.approx(gaps.mean())
    assert low == pytest.approx(gaps.mean() - spread, abs=0.1 * spread)
    assert high == pytest.approx(gaps.mean() + spread, abs=0.1 * spread)
    assert bootstrap_interval(one, other) == (value, low, high)
    assert bootstrap_interval(one, one) == (0, 0, 0)
    with pytest.raises(ValueError, match="no pairs"):
        bootstrap_interval(one, other[1:])


def test_a_folder_stands_for_its_models_in_order(tmp_path: Path) -> None:
    for number in (10, 9, 1):
        drawn_model(0).save(tmp_path / f"cycle-{number}.safetensors")
    assert [Path(one).stem for one in found_models([tmp_path])] == ["cycle-1", "cycle-9", "cycle-10"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(StriateError, match="no model in the folder"):
        found_models([tmp_path / "empty"])
    with pytest.raises(StriateError, match="no model is given"):
        found_models([])


@pytest.mark.parametrize("average", ["posteriors", "weights"])
def test_the_verb_joins_and_tests(average: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "data"
    from PIL import Image

    for split in ("train", "test"):
        for k in range(8):
            path = folder / split / CLASSES[k % 2] / f"{k}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image = pictures(1, 8, 8, seed=k)[0] // (1 + k % 2)
            Image.fromarray(image).save(path)
    models = [drawn_model(k, 32, CLASSES[:2], net="resnet20") for k in range(2)]
    models[1].preprocess = models[0].preprocess
    files = [str(model.save(tmp_path / f"m{k}.safetensors")) for k, model in enumerate(models)]
    out = tmp_path / "joined.safetensors"
    arguments = ["ensemble", *files, "--out", str(out), "--average", average, "--data", str(folder)]
    assert cli.main(arguments) == 0
    text = capsys.readouterr().out
    assert f"{average} of 2 models averaged" in text
    assert "points over the best member" in text
    assert "95% interval" in text
    assert len(load(out).members) == (2 if average == "posteriors" else 0)
    assert cli.main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tested"]["n"] == 8


def test_the_verb_tells_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(drawn_model(0).save(tmp_path / "m.safetensors"))
    assert cli.main(["ensemble", file, "--out", str(tmp_path / "e.safetensors")]) == 2
    assert "an ensemble of 1 model; allowed: 2 to 64" in capsys.readouterr().err
    assert cli.main(["ensemble", file, file, "--out", str(tmp_path / "e.pt")]) == 2
    assert "allowed: .safetensors" in capsys.readouterr().err
    assert cli.main(["ensemble", file, file, "--protocol", "tencrop"]) == 2
    assert "did you mean 'ten-crop'" in capsys.readouterr().err
    assert cli.main(["ensemble", file, file, "--out", str(tmp_path)]) == 2
    assert "is a folder" in capsys.readouterr().err
    assert cli.main(["ensemble", file, file, "--last", "1"]) == 2
    assert "last is 1" in capsys.readouterr().err
    assert cli.main(["ensemble", file, file, "--last", "3"]) == 2
    assert "last is 3 of 2 models" in capsys.readouterr().err
    assert cli.main(["ensemble", file, file, "--protocol", "ten-crop"]) == 2
    assert "protocol 'ten-crop' is given without data; give --data" in capsys.readouterr().err
    for k in range(2):
        net = drawn_model(k, 32, net="resnet20")
        net.preprocess = Preprocess(size=(32, 32))
        net.save(tmp_path / f"r{k}.safetensors")
    files = [str(tmp_path / f"r{k}.safetensors") for k in range(2)]
    assert (
        cli.main(["ensemble", *files, "--average", "weights", "--out", str(tmp_path / "w.safetensors")]) == 2
    )
    assert "--data" in capsys.readouterr().err


def test_a_tied_task_keeps_its_settings(tmp_path: Path) -> None:
    task: Task = Classification(CLASSES, class_weights=[1, 2, 3])
    models = [drawn_model(0), drawn_model(1, classes=(CLASSES[1], CLASSES[0], CLASSES[2]))]
    models[0].task = task
    again = load(Ensemble(models).save(tmp_path / "e.safetensors"))
    assert again.task.settings() == task.settings()
