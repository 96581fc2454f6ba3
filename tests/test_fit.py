"""The loop against loops written out by hand, and the promises of its docstring."""

from __future__ import annotations

import copy
import inspect
import os
import signal

import pytest
import torch
from torch import nn

from striate.core.errors import StriateError
from striate.layers.pooling import GlobalAveragePool
from striate.nets.mixing import AuxiliaryNet
from striate.train import fit as module
from striate.train.devices import mixed
from striate.train.fit import EVENTS, Interrupted, Stop, fit, loss_of
from striate.train.schedules import one_cycle
from trials import blobs, same_weights, small_job, small_net


def test_equals_a_bare_loop() -> None:
    net = small_net(norm=True)
    bare = copy.deepcopy(net)
    job = small_job(net, schedule="one-cycle", weight_decay=0.0, momentum=0.9, nesterov=True)
    assert fit(job)

    optimizer = torch.optim.SGD(bare.parameters(), lr=1, momentum=0.9, nesterov=True)
    step = 0
    for epoch in range(3):
        bare.train()
        for batch in job.train.batches(epoch):
            optimizer.param_groups[0]["lr"] = 0.05 * one_cycle(step, job.plan, [])
            optimizer.zero_grad()
            images = batch.images.contiguous(memory_format=torch.channels_last)
            nn.functional.cross_entropy(bare(images), batch.targets).backward()
            optimizer.step()
            step += 1
    for ours, theirs in zip(net.parameters(), bare.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    assert [row["epoch"] for row in job.state.history] == [1, 2, 3]
    assert job.state.step == step == 18


def test_learns() -> None:
    job = small_job(epochs=8)
    fit(job)
    assert job.state.history[-1]["val_top1"] > 0.8
    assert job.state.history[-1]["train_loss"] < 0.6 * job.state.history[0]["train_loss"]
    assert job.state.best == max(job.state.scores)


@pytest.mark.parametrize("clip", [0.0, 0.1])
def test_accumulation_equals_the_large_batch(clip: float) -> None:
    small, large = small_net(), small_net()
    # 96 images: 6 batches of 16 in 3 groups of 2, or 3 batches of 32 of the same images.
    fit(small_job(small, batch=16, accumulate=2, clip=clip))
    fit(small_job(large, batch=32, accumulate=1, clip=clip))
    for one, two in zip(small.parameters(), large.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


def test_accumulation_of_an_incomplete_last_group() -> None:
    job = small_job(batch=16, accumulate=4)  # 6 batches an epoch: groups of 4 and 2
    fit(job)
    assert job.state.step == 3 * 2
    ours = small_net()
    other = small_job(ours, batch=16, accumulate=4, epochs=1, schedule="constant", momentum=0.0)
    batches = list(other.train.batches(0))
    expected = small_net()
    sgd = torch.optim.SGD(expected.parameters(), lr=0.05)
    for group in (batches[:4], batches[4:]):
        images = torch.cat([batch.images for batch in group])
        targets = torch.cat([batch.targets for batch in group])
        sgd.zero_grad()
        (nn.functional.cross_entropy(expected(images), targets) + decay(expected)).backward()
        sgd.step()
    fit(other)
    for one, two in zip(ours.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


def decay(net: nn.Module) -> torch.Tensor:
    """Weight decay as a loss: half the factor times the squares of the weights that are decayed."""
    return 0.5 * 5e-4 * sum((p**2).sum() for p in net.parameters() if p.ndim > 1)


@pytest.mark.parametrize("moment", range(1, 19))
def test_stopping_anywhere_changes_nothing(moment: int) -> None:
    """Stopped after step `moment`, the state in memory goes on as if nothing had been."""
    settings = {
        "ema": 0.9,
        "clip": 1.0,
        "optimizer": "adamw",
        "lr": 0.01,
        "schedule": "plateau",
        "plateau": 1,
    }
    whole = small_job(small_net(norm=True, dropout=0.3), **settings)
    assert fit(whole)
    parted, stop = small_job(small_net(norm=True, dropout=0.3), **settings), Stop()

    def listen(event: str, job: module.Job) -> None:
        if event == "step" and job.state.step == moment:
            stop.number = signal.SIGTERM

    assert fit(parted, listen, stop=stop) is False
    assert parted.state.step == moment
    torch.randn(10)  # others draw numbers between
    assert fit(parted)
    assert same_weights(whole.net, parted.net)
    assert same_weights(whole.average.average, parted.average.average)
    assert whole.state.history == parted.state.history


def test_events_come_in_order() -> None:
    job, seen = small_job(epochs=2, checkpoint_every=1e9), []
    fit(job, lambda event, job: seen.append((event, job.state.epoch)))
    kinds = [event for event, _ in seen if event != "step"]
    assert set(kinds) | {"step"} <= set(EVENTS)
    assert len(EVENTS) <= 8
    assert kinds[:1] == ["epoch-start"]
    assert kinds[-3:] == ["checkpoint", "epoch", "end"]
    assert kinds.count("checkpoint") == 2
    assert seen.count(("step", 0)) == 6


def test_the_loop_is_short_and_reads_no_device() -> None:
    text = inspect.getsource(module._fit)
    assert len(text.splitlines()) <= 150
    inside = text.split("for batch in")[1].split("if due(now)")[0]
    assert not any(word in inside for word in (".item(", "float(", ".cpu(", "bool(", "numpy("))


def test_early_stopping_counts_epochs_without_a_better_score() -> None:
    job = small_job(epochs=50, patience=2, lr=1e-12, schedule="constant")
    fit(job)
    assert job.state.stopped
    assert job.state.epoch == 3  # the first is the best, two more are not better
    assert job.state.best_epoch == 1


def test_divergence_is_one_line_with_a_rate_to_try() -> None:
    with pytest.raises(StriateError, match=r"no longer a number in epoch 1.*--lr"):
        fit(small_job(lr=1e30, epochs=2))


def test_dropout_depends_on_the_place_in_the_run_only() -> None:
    assert mixed(3, 0, 1, 0) != mixed(3, 1, 0, 0) != mixed(3, 0, 0, 1)
    assert len({mixed(seed, step) for seed in range(50) for step in range(50)}) == 2500
    assert 0 <= mixed(2**70, 2**70) < 2**63
    jobs = [small_job(small_net(dropout=0.5)) for _ in range(2)]
    for draws, job in enumerate(jobs):
        torch.randn(1 + draws)
        fit(job)
    assert same_weights(jobs[0].net, jobs[1].net)


def test_auxiliary_classifiers_learn_with_the_net() -> None:
    torch.manual_seed(0)
    branch = nn.Sequential(GlobalAveragePool(), nn.Flatten(), nn.Linear(4, 3))
    stages = [("conv", nn.Conv2d(1, 4, 3)), ("relu", nn.ReLU()), ("flatten", nn.Flatten())]
    net = AuxiliaryNet(
        [*stages, ("fc", nn.Linear(144, 3))], auxiliary={"aux1": ("relu", branch)}, weight=0.3,
        head="fc", in_channels=1, size=8, name="small",
    )  # fmt: skip
    job = small_job(net, epochs=1, lr=0.02)
    images, targets = blobs(96)
    h = torch.relu(net.conv(images))
    first = nn.functional.cross_entropy(net.fc(h.flatten(1)), targets)
    first = first + 0.3 * nn.functional.cross_entropy(branch(h), targets)
    torch.testing.assert_close(loss_of(job.task, net.train()(images), targets), first)
    before = copy.deepcopy(net.state_dict())
    assert fit(job)
    assert all(not torch.equal(value, before[name]) for name, value in net.state_dict().items())
    # The validation is of the logits alone.
    assert job.last_scores is not None
    assert job.last_scores.top1 == job.state.history[-1]["val_top1"]


def test_without_validation() -> None:
    job = small_job()
    job.val = None
    fit(job)
    assert set(job.state.history[0]) == {"epoch", "lr", "train_loss"}
    assert job.state.scores == []


def test_train_loss_is_the_mean_over_the_batches() -> None:
    job = small_job(epochs=1, lr=1e-30)
    fit(job)
    images, targets = blobs()
    with torch.no_grad():
        expected = nn.functional.cross_entropy(small_net()(images), targets)
    assert job.state.history[0]["train_loss"] == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_noted_once_and_handlers_come_back(number: int) -> None:
    before = signal.getsignal(number)
    with Stop().listening() as stop:
        os.kill(os.getpid(), number)
        assert stop.number == number
        assert signal.getsignal(number) is before  # a second one is not held up
    assert signal.getsignal(number) is before
    error = Interrupted(number, "runs/x")
    assert error.exit_code == 128 + number
    assert "--resume" in str(error)
