"""Real engines: the same answers as the net, refusals, and nets that no engine can take."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from little_models import conv_model, found, pictures
from striate.core.errors import StriateError
from striate.data.samples import Dataset, Split
from striate.engines.engine import ENGINES
from striate.engines.source import export, value_dependent
from striate.ensemble import Ensemble
from striate.evaluate.evaluate import evaluate

needs_runtime = pytest.mark.skipif(
    bool(ENGINES.get("onnxruntime").missing(torch.device("cpu"))),
    reason="the extra 'engines' is not installed",
)


def test_unknown_and_missing_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    model = conv_model()
    with pytest.raises(StriateError, match=r"unknown engine 'onnx'.*onnxruntime"):
        model.predict(pictures(1), engine="onnx")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        StriateError, match=r"openvino.*pip install 'striate\[engines\]'.*allowed: auto, .*eager"
    ):
        model.predict(pictures(1), engine="openvino")


def test_control_flow_that_looks_at_values_is_found() -> None:
    class Looks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    class Plain(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2

    assert value_dependent(Looks())
    assert value_dependent(nn.Sequential(nn.Conv2d(3, 3, 1), Looks()))
    assert value_dependent(Plain()) is None
    assert value_dependent(conv_model().net) is None
    with pytest.raises(StriateError, match="cannot be written"):
        export(Looks(), (1, 3, 4, 4))


@needs_runtime
def test_a_wanted_engine_gives_the_same_answers_and_leaves_all_as_found() -> None:
    model, images = conv_model(), pictures(7)
    before = found(model.net)
    wanted = model.predict(images, batch=3, engine="eager")
    for name in ("onnxruntime", "openvino"):
        answers = model.predict(images, batch=3, engine=name)
        assert model.engines().told().startswith(name)
        for mine, theirs in zip(answers, wanted, strict=True):
            assert mine.label == theirs.label
            np.testing.assert_allclose(mine.top.probabilities, theirs.top.probabilities, atol=1e-5)
        # The last batch is shorter.
        assert {key[0] for key in model.engines().shapes} == {3, 1}
    assert found(model.net) == before


@needs_runtime
def test_the_members_of_an_ensemble_run_on_the_wanted_engine() -> None:
    joined, images = Ensemble([conv_model(seed=seed) for seed in (1, 2)]), pictures(7)
    wanted = joined.predict(images, batch=3, engine="eager")
    assert joined.engines().told() == "eager"
    answers = joined.predict(images, batch=3, engine="onnxruntime")
    assert joined.engines().told().startswith("onnxruntime")
    for mine, theirs in zip(answers, wanted, strict=True):
        np.testing.assert_allclose(mine.top.probabilities, theirs.top.probabilities, atol=1e-5)
    data = Dataset(
        "set", "classification", joined.classes,
        [Split.from_arrays("test", np.stack(images), np.arange(7) % 3)],
    )  # fmt: skip
    notes = evaluate(joined, data, batch=4, engine="onnxruntime").notes
    assert any(note.startswith("engine: onnxruntime") for note in notes)
    assert not any("was not used" in note for note in notes)


@needs_runtime
def test_changed_weights_are_not_answered_from_an_old_graph() -> None:
    model, image = conv_model(), pictures(1)
    first = model.predict(image, engine="onnxruntime")[0]
    with torch.no_grad():
        model.net.fc3.weight.mul_(-3)
    second = model.predict(image)[0]
    wanted = model.predict(image, engine="eager")[0]
    assert abs(second.probability - wanted.probability) < 1e-5
    assert abs(first.probability - wanted.probability) > 1e-3


@needs_runtime
def test_evaluate_counts_the_same_on_every_engine() -> None:
    model = conv_model()
    data = Dataset(
        "set", "classification", model.classes,
        [Split.from_arrays("test", np.stack(pictures(10)), np.arange(10) % 3)],
    )  # fmt: skip
    wanted = evaluate(model, data, batch=4, engine="eager")
    got = evaluate(model, data, batch=4, engine="onnxruntime")
    assert np.array_equal(wanted.scores.predicted, got.scores.predicted)  # type: ignore[attr-defined]
    assert any(note.startswith("engine: onnxruntime") for note in got.notes)
    assert not any(note.startswith("engine") for note in wanted.notes)


@needs_runtime
def test_a_wanted_engine_that_a_protocol_cannot_use_is_told() -> None:
    model = conv_model()
    data = Dataset(
        "set", "classification", model.classes, [Split.from_arrays("test", np.stack(pictures(3)), [0, 1, 0])]
    )
    notes = evaluate(model, data, engine="onnxruntime", protocol="dense", threads=1).notes
    assert any("'onnxruntime' was not used" in note for note in notes)


def test_evaluation_outside_of_a_pass_runs_the_net_itself() -> None:
    model = conv_model()
    model.engine = "auto"
    views = np.stack(pictures(2))
    with torch.inference_mode():
        wanted = model.net(model.preprocess.normalise(torch.from_numpy(views)))
    assert torch.equal(model.forward(views), wanted)
    with model.running() as engines:
        assert torch.equal(model.forward(views), wanted)
    assert engines.seen == 2
