"""Batch norm's statistics estimated anew: one way for averages in training and for models put together."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from striate.core.errors import StriateError
from striate.nets import averaging
from striate.train.averages import WeightAverage, estimate_norms
from striate.train.devices import Place
from trials import small_job, small_net

CPU = Place(torch.device("cpu"))


def test_an_average_without_batches_is_refused() -> None:
    """Its norms would be left with the statistics of nothing, mean 0 and variance 1."""
    net = small_net(norm=True).train()
    average = WeightAverage(net, copy.deepcopy(net), 0.5, norm_batches=4)
    average.update()
    with pytest.raises(StriateError, match="no training image for the statistics of batch norm"):
        estimate_norms(average, lambda: iter(()), CPU, torch.contiguous_format)
    assert average.average[1].momentum == 0.1


def test_averages_and_models_have_the_same_statistics() -> None:
    net = small_net(norm=True).train()
    average = WeightAverage(net, copy.deepcopy(net), 0.5, norm_batches=3)
    average.update()
    other = copy.deepcopy(average.average)
    batches = list(small_job().train.batches(0))[:3]
    assert estimate_norms(average, lambda: iter(batches), CPU, torch.contiguous_format) == 3
    assert averaging.estimate_norms(other, [batch.images for batch in batches]) == 3
    torch.testing.assert_close(average.average[1].running_mean, other[1].running_mean)
    torch.testing.assert_close(average.average[1].running_var, other[1].running_var)


def test_chosen_norms_only_and_every_mode_as_before() -> None:
    net = nn.Sequential(nn.BatchNorm2d(2), nn.Dropout(0.5), nn.BatchNorm2d(2)).train()
    net[1].eval()
    seen: list[list[bool]] = []

    def run(images: Tensor) -> None:
        seen.append([module.training for module in net])
        net(images + 1)

    images = torch.randn(4, 2, 3, 3)
    assert averaging.estimate_norms(nn.Sequential(net, nn.Linear(1, 1)), [images], [net[0]], run) == 1
    assert seen == [[True, False, False]]
    torch.testing.assert_close(net[0].running_mean, (images + 1).mean((0, 2, 3)))
    assert torch.equal(net[2].running_mean, torch.zeros(2))
    assert [module.training for module in net] == [True, False, True]
