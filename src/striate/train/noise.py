"""Noise as a regulariser: on the inputs, on the weights of a forward pass, on the gradients."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from striate.train.devices import mixed

# Tells the draws of gradients from those of batches, which have other numbers of counters.
GRADIENTS = 0x6E6F6973
# The exponent by which the variance of gradient noise falls.
ANNEALING = 0.55


def noisy_inputs(images: Tensor, std: float) -> Tensor:
    """Images with Gaussian noise of this standard deviation, in units of the normalised input; any shape.

    Drawn from PyTorch's global random state. Bishop 1995, "Training with noise is
    equivalent to Tikhonov regularization".
    """
    return images + std * torch.randn_like(images) if std else images


@contextlib.contextmanager
def noisy_weights(net: nn.Module, std: float) -> Iterator[None]:
    """Within the block, Gaussian noise of this standard deviation lies on all filters and matrices.

    Gradients of a loss worked out in it are those at the noisy weights; afterwards the weights are as they
    were, bit for bit. Drawn from PyTorch's global random state. Murray and Edwards 1994, "Enhanced MLP
    performance and fault tolerance resulting from synaptic weight noise during training", additive noise.
    """
    weights = [p for p in net.parameters() if p.ndim > 1 and p.requires_grad] if std else []
    with torch.no_grad():
        kept = [weight.clone() for weight in weights]
        for weight in weights:
            weight.add_(torch.randn_like(weight), alpha=std)
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, before in zip(weights, kept, strict=True):
                weight.copy_(before)


@torch.no_grad()
def noisy_gradients(net: nn.Module, amount: float, seed: int, step: int) -> None:
    """Add Gaussian noise of variance amount / (1 + step)^0.55 to all gradients, the same in every process.

    Neelakantan et al. 2015, arXiv:1511.06807, equations 1 and 2; the amounts tried there are 0.01, 0.3, 1.
    """
    if not amount:
        return
    std = (amount / (1 + step) ** ANNEALING) ** 0.5
    torch.manual_seed(mixed(seed, GRADIENTS, step))
    for parameter in net.parameters():
        if parameter.grad is not None:
            parameter.grad.add_(torch.randn_like(parameter.grad), alpha=std)
