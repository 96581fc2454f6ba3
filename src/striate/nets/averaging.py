"""Averages of several nets' weights, and the statistics of batch norm for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from striate.core.errors import StriateError

Norm = nn.modules.batchnorm._BatchNorm


def average_states(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of each floating tensor over the states, taken in float64; all else is the first state's."""
    first = states[0]
    found = {}
    for name, tensor in first.items():
        if tensor.is_floating_point():
            total = torch.zeros(tensor.shape, dtype=torch.float64)
            for state in states:
                total += state[name].detach().to("cpu", torch.float64)
            found[name] = (total / len(states)).to(tensor.dtype)
        else:
            found[name] = tensor.detach().cpu().clone()
    return found


def norms_of(net: nn.Module) -> list[Norm]:
    """The batch norms that keep a mean and variance."""
    return [
        module for module in net.modules() if isinstance(module, Norm) and module.running_mean is not None
    ]


def estimate_norms(
    net: nn.Module,
    batches: Iterable[Any],
    norms: Sequence[Norm] | None = None,
    run: Callable[[Any], object] | None = None,
) -> int:
    """Give batch norm the mean and variance that it sees over some batches; returns how many these were.

    norms: those of the net to estimate, by default all. run: passes one batch through the net; by default
    batches are tensors (N, C, h, w). Each batch counts alike; the norms are in training mode meanwhile, all
    else in evaluation mode. Izmailov et al. 2018, arXiv:1803.05407, algorithm 1. Without norms nothing runs.

    Raises:
        StriateError: there is no batch.
    """
    norms = norms_of(net) if norms is None else norms
    if not norms:
        return 0
    modes = [(module, module.training) for module in net.modules()]
    momenta = [norm.momentum for norm in norms]
    device = next(net.parameters()).device
    run = run or (lambda images: net(images.to(device)))
    net.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # PyTorch's way to ask for the plain mean
        norm.train()
    count = 0
    try:
        with torch.no_grad():
            for batch in batches:
                run(batch)
                count += 1
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, mode in modes:
            module.training = mode
    if not count:
        raise StriateError("no training image for the statistics of batch norm", hint="give other data")
    return count
