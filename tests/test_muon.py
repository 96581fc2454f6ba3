"""Muon: the orthogonal step against the singular value decomposition, and its two kinds of groups."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from striate.train.muon import muon, orthogonalized
from striate.train.optimize import build_optimizer, set_rate
from striate.train.recipe import Recipe


@pytest.mark.parametrize("shape", [(6, 20), (20, 6), (8, 8)])
def test_the_step_keeps_the_singular_vectors_and_levels_the_values(shape: tuple[int, int]) -> None:
    matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    u, values, v = torch.linalg.svd(matrix, full_matrices=False)
    found = u.T @ orthogonalized(matrix) @ v.T
    level = found.diagonal()
    assert torch.allclose(found, torch.diag(level), atol=1e-4)
    assert float(level.min()) > 0.3
    assert float(level.max()) < 1.3
    assert float(values.max() / values.min()) > float(level.max() / level.min())


def test_filters_keep_their_norm_and_other_tensors_step_as_sgd_does() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    optimizer = build_optimizer(net, Recipe(optimizer="muon", momentum=0.0, weight_decay=0.0))
    set_rate(optimizer, 0.1)
    before = [p.detach().clone() for p in net.parameters()]
    net(torch.randn(3, 2, 3, 3)).square().sum().backward()
    optimizer.step()
    filters, *others = net.parameters()
    scaled = before[0] * 4**0.5 / before[0].norm()
    assert filters.grad is not None
    step = orthogonalized(filters.grad.reshape(4, -1)).view_as(filters)
    assert torch.allclose(filters, scaled - 0.1 * step, atol=1e-6)
    for now, old in zip(others, before[1:], strict=True):
        assert now.grad is not None
        assert torch.allclose(now, old - 0.5 * now.grad, atol=1e-6)


def test_a_rate_of_zero_keeps_filters_as_they_are() -> None:
    net = nn.Sequential(nn.Conv2d(2, 4, 3))
    optimizer = build_optimizer(net, Recipe(optimizer="muon", rates={"*": 0.0}))
    set_rate(optimizer, 0.1)
    before = [p.detach().clone() for p in net.parameters()]
    net(torch.randn(3, 2, 3, 3)).square().sum().backward()
    optimizer.step()
    assert all(torch.equal(p, old) for p, old in zip(net.parameters(), before, strict=True))


def test_rates_of_parts_are_multiples_of_the_others_rate() -> None:
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    optimizer = build_optimizer(net, Recipe(optimizer="muon", rates={"0.*": 2.0, "2.bias": 3.0}))
    set_rate(optimizer, 0.1)
    found = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    multiples = (2.0, 2.0 * 5, 5, 3.0 * 5)
    for p, multiple in zip(net.parameters(), multiples, strict=True):
        assert found[id(p)] == pytest.approx(0.1 * multiple)


def test_groups_without_filters_are_left_whole() -> None:
    weights = [nn.Parameter(torch.ones(3, 2))]
    groups = muon([{"params": weights, "weight_decay": 0.1}], Recipe()).param_groups
    assert [group["filters"] for group in groups] == [False]
    assert groups[0]["weight_decay"] == 0.1
