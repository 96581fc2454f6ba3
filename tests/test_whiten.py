"""The whitened first layer: patches that pass through it have unit covariance."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from striate.core.errors import StriateError
from striate.train.whiten import first_convolution, whitening_filters


def test_patches_are_white_after_the_filters() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(40, 3, 12, 12, generator=generator)
    # Neighbouring pixels and channels are made to depend on each other, as in photographs.
    images = noise + noise.roll(1, -1) + 0.5 * noise.roll(1, 1)
    filters = whitening_filters(images, (2, 2), floor=0.0)
    out = nn.functional.conv2d(images, filters).transpose(0, 1).flatten(1)
    covariance = out @ out.T / out.shape[1]
    assert torch.allclose(covariance, torch.eye(12), atol=1e-3)


def test_the_first_filter_is_the_direction_of_largest_variance() -> None:
    # Constant pictures: the only direction with variance is the mean of the patch.
    images = torch.randn(50, 1, 1, 1, generator=torch.Generator().manual_seed(1)).expand(50, 1, 5, 5)
    first = whitening_filters(images, (2, 2), floor=1e-4)[0]
    assert torch.allclose(first, first.mean().expand(1, 2, 2), atol=1e-5)
    # v / sqrt(l + e) with v = 1/2 and l = 4 * variance
    expected = 0.5 / (4 * images[:, 0, 0, 0].square().mean() + 1e-4).sqrt()
    assert torch.allclose(first.mean(), expected, rtol=1e-4)


def test_a_net_without_a_first_convolution_is_refused() -> None:
    with pytest.raises(StriateError, match="does not begin with a convolution"):
        first_convolution(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)))
