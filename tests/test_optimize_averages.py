"""Equal averages of weights and the statistics of their norms, frozen stages, and noise."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

from striate.core.errors import StriateError
from striate.train.averages import EqualAverage, WeightAverage, estimate_norms, make_average
from striate.train.devices import Place
from striate.train.fit import Job, fit
from striate.train.freezing import make_freezing, parse_freeze
from striate.train.noise import noisy_gradients, noisy_inputs, noisy_weights
from striate.train.recipe import Recipe
from trials import same_weights, small_job, small_net

CPU = Place(torch.device("cpu"))


# ---------------------------------------------------------------- averages


def test_equal_average_is_the_mean_of_its_epochs() -> None:
    net = nn.Linear(1, 1, bias=False)
    average = EqualAverage(net, copy.deepcopy(net), first=3, every=2)
    taken = []
    for epoch in range(1, 10):
        nn.init.constant_(net.weight, epoch**2)
        for _ in range(2):  # a stop between the pass and its test calls again
            assert average.after_epoch(epoch) is (epoch in (3, 5, 7, 9))
        if epoch in (3, 5, 7, 9):
            taken.append(epoch**2)
            assert average.average.weight.item() == pytest.approx(sum(taken) / len(taken), rel=1e-6)
        assert average.updates == len(taken)


def test_an_extended_run_averages_anew() -> None:
    net = nn.Linear(1, 1, bias=False)
    average = EqualAverage(net, copy.deepcopy(net), first=5)
    average.updates, average.last = 3, 3
    assert average.after_epoch(4) is False
    assert average.updates == 0
    nn.init.constant_(net.weight, 7.0)
    average.after_epoch(5)
    assert average.average.weight.item() == 7.0


def test_statistics_are_those_of_the_averaged_weights() -> None:
    net = small_net(norm=True)
    average = WeightAverage(net, copy.deepcopy(net), 0.5, norm_batches=4)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.3)
    net.train()
    average.update()
    job = small_job()
    before = copy.deepcopy(net.state_dict())
    seen = estimate_norms(average, lambda: job.train.batches(0), CPU, torch.contiguous_format)
    assert seen == 4
    conv, norm = average.average[0], average.average[1]
    means, variances = [], []
    for batch in list(job.train.batches(0))[:4]:
        maps = conv(batch.images).detach()
        means.append(maps.mean((0, 2, 3)))
        variances.append(maps.var((0, 2, 3), unbiased=True))
    torch.testing.assert_close(norm.running_mean, torch.stack(means).mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(norm.running_var, torch.stack(variances).mean(0), rtol=1e-5, atol=1e-6)
    assert norm.momentum == 0.1
    assert not any(module.training for module in average.average.modules())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_fixed_norms_keep_their_statistics() -> None:
    net = small_net(norm=True).train()
    average = WeightAverage(net, copy.deepcopy(net), 0.5, norm_batches=4)
    average.update()
    net[1].eval()
    assert estimate_norms(average, lambda: iter(()), CPU, torch.contiguous_format) == 0


def test_swa_in_the_loop() -> None:
    """The net is tested until the average begins, then the average; its weights are those of the epochs."""
    job = small_job(small_net(norm=True), epochs=4, swa=0.5, schedule="swa", norm_batches=3)
    ends: list[dict[str, torch.Tensor]] = []
    tested = []

    def listen(event: str, job: Job) -> None:
        if event == "epoch":
            ends.append({name: p.detach().clone() for name, p in job.net.named_parameters()})
            tested.append(job.tested is job.net)

    assert fit(job, listen)
    assert tested == [True, False, False, False]
    assert isinstance(job.average, EqualAverage)
    for name, parameter in job.average.average.named_parameters():
        mean = torch.stack([end[name] for end in ends[1:]]).mean(0)
        torch.testing.assert_close(parameter, mean, rtol=1e-5, atol=1e-6)
    assert not torch.equal(job.average.average[1].running_mean, job.net[1].running_mean)


def test_what_a_recipe_averages() -> None:
    net = small_net()
    assert make_average(net, Recipe()) is None
    assert isinstance(make_average(net, Recipe(ema=0.9)), WeightAverage)
    average = make_average(net, Recipe(swa=0.75, epochs=10, swa_every=2))
    assert isinstance(average, EqualAverage)
    assert (average.first, average.every, average.norm_batches) == (8, 2, 100)
    with pytest.raises(StriateError, match="ema and swa exclude each other"):
        Recipe(ema=0.9, swa=0.5)


# ---------------------------------------------------------------- freezing


def test_the_written_form_of_freezing() -> None:
    assert parse_freeze("") == ()
    assert parse_freeze("conv1..pool2@3, fc6, ..res2@1,fc7..") == (
        ("conv1", "pool2", 3.0), ("fc6", "fc6", math.inf), ("", "res2", 1.0), ("fc7", "", math.inf),
    )  # fmt: skip
    for text in ("conv1@", "conv1@0", "conv1@x", "..", "@3", "a..b..c"):
        with pytest.raises(StriateError, match="freeze holds") as caught:
            parse_freeze(text)
        assert "\n" not in str(caught.value)


def test_freezing_names_stages() -> None:
    net = small_net(norm=True)  # stages 0 to 5
    freezing = make_freezing(net, "..1@2,0@3")
    assert freezing is not None
    assert [sorted(freezing.at(epoch)) for epoch in range(4)] == [["0", "1"], ["0", "1"], ["0"], []]
    assert make_freezing(net, "") is None
    with pytest.raises(StriateError, match="unknown stage '9'"):
        make_freezing(net, "9@1")
    with pytest.raises(StriateError, match="comes after"):
        make_freezing(net, "3..1")
    with pytest.raises(StriateError, match="leaves nothing that learns"):
        make_freezing(net, "0..")


def test_frozen_stages_stay_until_their_epoch() -> None:
    net = small_net(norm=True)
    net[1].bias.requires_grad_(False)
    job = small_job(net, epochs=4, freeze="0..1@2", weight_decay=0.1, ema=0.9)
    begin = copy.deepcopy(net.state_dict())
    moved: list[set[str]] = []

    def listen(event: str, job: Job) -> None:
        if event == "epoch":
            changed = {n for n, value in net.state_dict().items() if not torch.equal(value, begin[n])}
            moved.append(changed - {"0.bias"})  # the norm behind it takes it out

    assert fit(job, listen)
    head = {"5.weight", "5.bias"}
    rest = {"0.weight", "1.weight", "1.running_mean", "1.running_var", "1.num_batches_tracked"}
    assert moved == [head, head, head | rest, head | rest]
    assert not net[1].bias.requires_grad


def test_thawing_is_a_function_of_the_epoch() -> None:
    """Stopped and continued with another object, as a resumed run is: the same bits."""
    settings: dict[str, Any] = {"epochs": 3, "freeze": "0..1@1", "optimizer": "adam", "lr": 0.01}
    whole, parted = (small_job(small_net(norm=True), **settings) for _ in range(2))
    assert fit(whole)
    short = parted.recipe
    parted.recipe = short.with_(epochs=1)
    fit(parted)
    parted.recipe, parted.freezing = short, make_freezing(parted.net, "")
    fresh = small_job(small_net(norm=True), **settings).freezing
    assert fresh is not None
    fresh.net, fresh.learning = parted.net, {id(p) for p in parted.net.parameters()}
    parted.freezing = fresh
    fit(parted)
    assert same_weights(whole.net, parted.net)


# ---------------------------------------------------------------- noise


def test_noise_on_weights_is_gone_afterwards_bit_for_bit() -> None:
    net = small_net(norm=True)
    before = copy.deepcopy(net.state_dict())
    torch.manual_seed(0)
    with noisy_weights(net, 0.5):
        shift = net[5].weight.detach() - before["5.weight"]
        assert torch.equal(net[5].bias, before["5.bias"])
        assert float(shift.std()) == pytest.approx(0.5, rel=0.1)
        net(torch.randn(2, 1, 8, 8)).sum().backward()
    assert all(
        torch.equal(v, before[n])
        for n, v in net.state_dict().items()
        if "running" not in n and "num" not in n
    )
    with pytest.raises(ZeroDivisionError), noisy_weights(net, 0.5):
        raise ZeroDivisionError
    assert torch.equal(net[5].weight, before["5.weight"])


def test_noisy_steps_by_hand() -> None:
    """Gradients at noisy weights and inputs move the weights without noise; the draws follow the place."""
    from striate.train.devices import mixed

    net, bare = small_net(), small_net()
    job = small_job(
        net, epochs=1, schedule="constant", momentum=0.0, weight_decay=0.0, weight_noise=0.1, input_noise=0.2
    )
    fit(job)
    for number, batch in enumerate(job.train.batches(0)):
        images = batch.images.contiguous(memory_format=torch.channels_last)
        torch.manual_seed(mixed(3, 0, number, 0))
        shifted = copy.deepcopy(bare)
        with torch.no_grad():
            for parameter in shifted.parameters():
                if parameter.ndim > 1:
                    parameter.add_(0.1 * torch.randn_like(parameter))
        images = images + 0.2 * torch.randn_like(images)
        nn.functional.cross_entropy(shifted(images), batch.targets).backward()
        with torch.no_grad():
            for mine, other in zip(bare.parameters(), shifted.parameters(), strict=True):
                mine -= 0.05 * other.grad
    for ours, wanted in zip(net.parameters(), bare.parameters(), strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-6)


def test_gradient_noise_falls_as_the_paper_says() -> None:
    net = nn.Linear(200, 200)
    spread = []
    for step in (0, 0, 99):
        net.weight.grad, net.bias.grad = torch.zeros(200, 200), None
        torch.randn(step % 7 + 1)  # what others drew does not count
        noisy_gradients(net, 0.3, 5, step)
        spread.append(net.weight.grad.clone())
        assert net.bias.grad is None
    assert torch.equal(spread[0], spread[1])
    assert float(spread[0].var()) == pytest.approx(0.3, rel=0.03)
    assert float(spread[2].var()) == pytest.approx(0.3 / 100**0.55, rel=0.03)
    assert float(spread[0].mean()) == pytest.approx(0.0, abs=0.01)


def test_input_noise_has_its_deviation() -> None:
    torch.manual_seed(0)
    images = torch.zeros(4, 3, 40, 40)
    assert noisy_inputs(images, 0.0) is images
    assert float(noisy_inputs(images, 0.3).std()) == pytest.approx(0.3, rel=0.02)
