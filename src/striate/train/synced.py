"""Batch norm over the images of all processes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

Norm = nn.modules.batchnorm._BatchNorm


class Sum(torch.autograd.Function):
    """The sum of a tensor over all processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        """Add up, in every process."""
        total = tensor.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Each process's part took part in the result of all of them."""
        total = gradient.clone()
        torch.distributed.all_reduce(total)
        return total


def summed(tensor: Tensor) -> Tensor:
    """The sum of a tensor over all processes, with its gradient."""
    total: Tensor = Sum.apply(tensor)  # type: ignore[no-untyped-call]
    return total


class SyncedNorm(Norm):
    """Batch norm whose mean and variance in training are those of all processes' images together.

    y = (x - m) / sqrt(v + e) * w + b over (N, C, ...); with n values a channel in all, m = sum x / n and
    v = sum (x - m)^2 / n; the running variance takes v n / (n - 1). Gradients flow through the sums of all
    processes, so that w processes with N / w images each learn as one with N does. For devices that PyTorch's
    own SyncBatchNorm, which is for CUDA, does not know. Every process must have the same number of images.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:
        """Normalise; the shape stays."""
        if not self.training:
            return super().forward(input)
        axes = [0, *range(2, input.ndim)]
        shape = [1, -1] + [1] * (input.ndim - 2)
        world = torch.distributed.get_world_size()
        count = input.numel() // input.shape[1] * world
        x = input.float()
        mean = summed(x.sum(axes)) / count
        centred = x - mean.view(shape)
        variance = summed(centred.square().sum(axes)) / count
        if self.track_running_stats and self.running_mean is not None:
            self._remember(mean.detach(), variance.detach() * (count / max(1, count - 1)))
        y = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        return y.to(input.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        weight = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean, weight)
        self.running_var.lerp_(variance, weight)


def synchronise(net: nn.Module) -> int:
    """Replace every batch norm of a net by one over all processes, in place; returns how many there were.

    Weights and statistics are the same tensors, under the same names.
    """
    count = 0
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Norm) and not isinstance(child, (SyncedNorm, nn.SyncBatchNorm)):
                setattr(parent, name, synced(child))
                count += 1
    return count


def synced(norm: Norm) -> Norm:
    """A synchronised norm with the tensors of `norm`."""
    kind: Any = SyncedNorm
    if next((t.device.type for t in (*norm.parameters(), *norm.buffers())), "cpu") == "cuda":
        kind = nn.SyncBatchNorm
    made: Norm = kind(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    for name, parameter in norm.named_parameters(recurse=False):
        setattr(made, name, parameter)
    for name, buffer in norm.named_buffers(recurse=False):
        setattr(made, name, buffer)
    return made.train(norm.training)
