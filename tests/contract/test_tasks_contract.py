"""What every registered task must do, whatever it asks of a picture."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from striate.core.errors import StriateError
from striate.core.results import Result
from striate.data.pools import IGNORE
from striate.data.preprocess import Preprocess
from striate.data.samples import Dataset, Split
from striate.tasks.task import TASKS, Task, make_task

CLASSES = ("ant", "bee", "cat", "dog", "eel", "fox")
N, SIDE = 12, 5


def logits_and_targets(task: Task, seed: int) -> tuple[Tensor, Tensor]:
    """Random outputs and targets of the shapes that the task works with."""
    random = torch.Generator().manual_seed(seed)
    k = len(task.classes)
    shape = (N, k, SIDE, SIDE) if task.dense else (N, k)
    outputs = torch.randn(shape, generator=random) * 3
    if task.name == "multi-label":
        return outputs, (torch.rand(shape, generator=random) < 0.4).float()
    targets = torch.randint(0, k, (N, SIDE, SIDE) if task.dense else (N,), generator=random)
    if task.dense:
        targets[torch.rand(targets.shape, generator=random) < 0.1] = IGNORE
    return outputs, targets


def perfect(task: Task, targets: Tensor) -> Tensor:
    """Outputs that give each target nearly all of the probability."""
    if task.name == "multi-label":
        return (targets - 0.5) * 40
    known = targets.where(targets != IGNORE, 0) if task.dense else targets
    return torch.nn.functional.one_hot(known, len(task.classes)).movedim(-1, 1).float() * 40


def weights_of(kind: type[Task]) -> Any:
    numbers = np.linspace(0.5, 2, len(CLASSES))
    return np.stack([numbers, numbers[::-1]]).tolist() if kind.name == "multi-label" else numbers.tolist()


@pytest.fixture(params=TASKS.names())
def kind(request: pytest.FixtureRequest) -> type[Task]:
    return TASKS.get(request.param)


@pytest.fixture(params=["plain", "smoothed", "weighted", "both"])
def task(request: pytest.FixtureRequest, kind: type[Task]) -> Task:
    return kind(
        CLASSES,
        label_smoothing=0.1 if request.param in ("smoothed", "both") else 0.0,
        class_weights=weights_of(kind) if request.param in ("weighted", "both") else None,
    )


def dataset_for(kind: type[Task]) -> Dataset:
    random = np.random.default_rng(0)
    pictures = random.integers(0, 256, (N, SIDE, SIDE, 3), dtype=np.uint8)
    masks = random.integers(0, len(CLASSES), (N, SIDE, SIDE)).astype(np.int32) if kind.dense else None
    targets = None if kind.dense else random.integers(0, len(CLASSES), N)
    if kind.name == "multi-label":
        targets = random.integers(0, 2, (N, len(CLASSES)))
    return Dataset("toy", kind.name, CLASSES, [Split.from_arrays("train", pictures, targets, masks=masks)])


def test_the_name_is_the_registered_one(kind: type[Task]) -> None:
    assert TASKS.get(kind.name) is kind
    assert TASKS.entry(kind.name).summary


def test_loss_is_finite_differentiable_and_falls_along_its_gradient(task: Task) -> None:
    outputs, targets = logits_and_targets(task, 0)
    outputs.requires_grad_()
    loss = task.loss(outputs, targets)
    assert loss.ndim == 0
    assert loss.isfinite()
    (gradient,) = torch.autograd.grad(loss, outputs)
    assert gradient.isfinite().all()
    assert task.loss(outputs - 0.1 * gradient, targets) < loss


def test_uniform_outputs_have_the_expected_initial_loss(task: Task) -> None:
    outputs, targets = logits_and_targets(task, 1)
    assert float(task.loss(torch.zeros_like(outputs), targets)) == pytest.approx(
        task.expected_initial_loss(), rel=1e-5
    )


def test_perfect_outputs_score_one_and_have_the_least_loss(task: Task) -> None:
    outputs, targets = logits_and_targets(task, 2)
    scorer = task.scorer()
    scorer.update(perfect(task, targets), targets, np.arange(N))
    scores = scorer.result()
    assert scores.main == 1
    assert (scores.sample_score > 0.999).all()
    if not task.label_smoothing:
        assert task.loss(perfect(task, targets), targets) < 1e-6 < task.loss(outputs, targets)


def as_json(scores: Result) -> str:
    return json.dumps(scores.to_dict(), allow_nan=False)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_merged_scorers_give_the_scores_of_all(kind: type[Task], order: tuple[int, ...]) -> None:
    task = kind(CLASSES)
    outputs, targets = logits_and_targets(task, 3)
    index = np.random.default_rng(0).permutation(N)
    whole, merged = task.scorer(), task.scorer()
    whole.update(outputs, targets, index)
    for part in order:
        scorer, chosen = task.scorer(), slice(part * 4, part * 4 + 4)
        scorer.update(outputs[chosen], targets[chosen], index[chosen])
        merged.merge(scorer.state())
    merged.merge(task.scorer().state())
    assert as_json(merged.result()) == as_json(whole.result())


def test_scores_have_names_rows_lines_and_strict_json(kind: type[Task]) -> None:
    task = kind(CLASSES)
    outputs, targets = logits_and_targets(task, 4)
    # One class is nowhere in the truth, as in a small test split.
    if kind.name == "multi-label":
        targets[:, 5] = 0
    else:
        targets[targets == 5] = 0
    scorer = task.scorer()
    scorer.update(outputs, targets, np.arange(N))
    scores = scorer.result()
    summary = scores.summary()
    assert next(iter(summary)) == scores.main_name
    assert summary[scores.main_name] == scores.main
    assert scores.n == N == len(scores.index) == len(scores.sample_score)
    assert len(scores.per_class) == len(scores.classes) == len(CLASSES)
    assert len(scores.lines()) == len(summary)
    assert "NaN" not in as_json(scores)


def test_nothing_to_score_and_outputs_that_are_no_numbers_are_told(kind: type[Task]) -> None:
    task = kind(CLASSES)
    with pytest.raises(StriateError, match="nothing to score"):
        task.scorer().result()
    outputs, targets = logits_and_targets(task, 5)
    outputs[3] = float("nan")
    scorer = task.scorer()
    with pytest.raises(StriateError, match="not numbers"):
        scorer.update(outputs, targets, np.arange(N)) or scorer.result()
    with pytest.raises(StriateError, match="not numbers"):
        task.decode(outputs)


def test_settings_round_trip_through_json(task: Task) -> None:
    settings = json.loads(json.dumps(task.settings(), allow_nan=False))
    again = Task.from_settings(settings)
    assert type(again) is type(task)
    assert again.settings() == task.settings()
    outputs, targets = logits_and_targets(task, 6)
    assert torch.equal(again.loss(outputs, targets), task.loss(outputs, targets))


def test_wrong_settings_are_refused(kind: type[Task]) -> None:
    good = kind(CLASSES).settings()
    for wrong in (
        {"label_smoothing": 1.0},
        {"label_smoothing": "much"},
        {"class_weights": [1, 2]},
        {"class_weights": "balanced"},
        {"classes": 6},
        {"classes": []},
        {"colour": 1},
        {"name": "clasification"},
        {"name": None},
    ):
        with pytest.raises(StriateError):
            Task.from_settings({**good, **wrong})


def test_decoded_answers_are_typed_and_of_the_image(kind: type[Task]) -> None:
    task = kind(CLASSES)
    outputs, _ = logits_and_targets(task, 7)
    answers = task.decode(outputs, top=3)
    assert len(answers) == N
    for answer in answers:
        assert isinstance(answer, Result)
        json.dumps(answer.to_dict(), allow_nan=False)
        assert str(answer)
        if hasattr(answer, "top"):
            assert len(answer.top.labels) == 3
            assert list(answer.top.probabilities) == sorted(answer.top.probabilities, reverse=True)
            assert answer.top.labels == tuple(CLASSES[i] for i in answer.top.indices)


@pytest.mark.parametrize("channels", [1, 3])
def test_drawing_keeps_the_size(kind: type[Task], channels: int) -> None:
    task = kind(CLASSES)
    outputs, _ = logits_and_targets(task, 8)
    image = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, channels), dtype=np.uint8)
    before = image.copy()
    drawn = task.draw(image, task.decode(outputs)[0])
    assert drawn.shape == (SIDE, SIDE, 3)
    assert drawn.dtype == np.uint8
    assert np.array_equal(image, before)


def test_posterior_has_the_shape_of_the_outputs(kind: type[Task]) -> None:
    task = kind(CLASSES)
    outputs, _ = logits_and_targets(task, 9)
    posterior = task.posterior(outputs.bfloat16())
    assert posterior.shape == outputs.shape
    assert posterior.dtype == torch.float32
    assert ((posterior >= 0) & (posterior <= 1)).all()


def test_a_task_is_made_from_data_and_balanced_from_its_training_split(kind: type[Task]) -> None:
    data = dataset_for(kind)
    assert make_task(data).class_weights is None
    task = make_task(data, class_weights="balanced", label_smoothing=0.1)
    assert type(task) is kind
    weights, split = task.class_weights, data.split("train")
    assert weights is not None
    if kind.name == "multi-label":
        targets = np.asarray(split.targets)
        each = np.where(targets > 0, weights[1], weights[0])
        assert each.mean(0) == pytest.approx(np.ones(len(CLASSES)), rel=1e-5)
        return
    labels = np.concatenate([split.mask(i).ravel() for i in range(N)]) if kind.dense else split.targets
    assert weights[labels].mean() == pytest.approx(1, rel=1e-5)
    totals = [weights[labels][labels == c].sum() for c in np.unique(labels)]
    assert totals == pytest.approx([totals[0]] * len(totals), rel=1e-4)


def test_an_unfit_task_or_weighting_is_refused(kind: type[Task]) -> None:
    other = next(name for name in TASKS.names() if name != kind.name)
    with pytest.raises(StriateError, match="does not fit"):
        make_task(dataset_for(kind), name=other)
    with pytest.raises(StriateError, match="balanced"):
        make_task(dataset_for(kind), class_weights="balance")


def test_the_net_it_builds_fits_its_loss(kind: type[Task]) -> None:
    task = kind(CLASSES)
    torch.manual_seed(0)
    net = task.build_net("lenet5", in_channels=1, size=28, options={})
    images = torch.randn(2, 1, 28, 28)
    outputs = net(images)
    assert net.classes == len(CLASSES)
    assert outputs.shape[:2] == (2, len(CLASSES))
    targets = {
        "classification": torch.tensor([0, 5]),
        "multi-label": torch.zeros(2, len(CLASSES)),
        "segmentation": torch.zeros(2, 28, 28, dtype=torch.long),
    }
    loss = task.loss(outputs, targets[kind.name])
    loss.backward()
    assert loss.detach().isfinite()
    assert all(p.grad is not None for p in net.parameters())
    net.reset_head(4)
    assert net(images).shape[1] == 4


def test_dense_answers_come_back_in_the_geometry_of_the_image(kind: type[Task]) -> None:
    task = kind(CLASSES)
    outputs, _ = logits_and_targets(task, 10)
    preprocess = Preprocess(size=(SIDE, SIDE), resize="squash")
    sizes = [(7 + i, 20 - i) for i in range(N)]
    answers = task.decode(outputs, preprocess=preprocess, sizes=sizes)
    if task.dense:
        assert [answer.mask.shape for answer in answers] == sizes
