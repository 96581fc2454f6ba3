"""Sizes behind chains of windows, and the smallest pictures that the nets take."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from striate.core.errors import StriateError
from striate.nets.layout import map_size, smallest
from striate.nets.net import NETS, skeleton

LEAST = {"zfnet": 47, "zfnet_512": 47, "overfeat_fast": 71, "overfeat_accurate": 77, "maxout_cifar": 8,
         "stochastic_cifar": 8, "lenet5_1998": 4}  # fmt: skip


@pytest.mark.parametrize("name", LEAST)
def test_the_smallest_pictures(name):
    least = LEAST[name]
    assert NETS.entry(name).capabilities["min_size"] == least
    net = skeleton(name, 3, size=(least, least + 5))
    assert net(torch.empty(1, 3, least, least + 5, device="meta")).shape == (1, 3)
    if name != "lenet5_1998":
        with pytest.raises(StriateError, match=f"size is .*allowed: at least {least} for net '{name}'"):
            skeleton(name, 3, size=(least + 5, least - 1))


def test_sizes_between_the_two_forms_of_alexnet_are_refused():
    for size in (65, 66):
        with pytest.raises(StriateError, match="allowed: at least 67 for net 'alexnet', or at most 64"):
            skeleton("alexnet", 10, size=size)
    assert skeleton("alexnet_single", 10, size=65).feature_dim == 4096


def test_map_sizes_are_those_that_pytorch_computes():
    for kernel, stride, padding, ceil_mode in itertools.product(
        (1, 2, 3, 5), (1, 2, 3), (0, 1), (False, True)
    ):
        if padding > kernel // 2:
            continue
        stages = [
            ("conv", nn.Conv2d(1, 1, kernel, stride, padding, device="meta")),
            ("relu", nn.ReLU()),
            ("pool", nn.MaxPool2d(kernel, stride, padding, ceil_mode=ceil_mode)),
        ]
        least = smallest(stages)
        for size in range(least, least + 9):
            x = torch.empty(1, 1, size, 40, device="meta")
            for _, stage in stages:
                x = stage(x)
            assert map_size(stages, (size, 40), name="x") == x.shape[-2:]
        if least > 1:
            with pytest.raises(StriateError, match=f"at least {least}"):
                map_size(stages, least - 1, name="x")
