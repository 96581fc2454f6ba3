"""The net as the loop runs it: compiled, with activations worked out again, with norms over all processes."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from striate.core.errors import StriateError
from striate.layers.winograd import tiled
from striate.nets.net import Net, check_input
from striate.train.devices import Place
from striate.train.recipe import Recipe
from striate.train.synced import synchronise


def wrapped(net: nn.Module, recipe: Recipe, place: Place) -> nn.Module:
    """The module that the loop trains `net` through; it holds the net's own weights.

    Raises:
        StriateError: as `check_wrapping`.
    """
    check_wrapping(net, recipe)
    if recipe.sync_norm and place.world > 1:
        synchronise(net)
    module = Recomputed(net, recipe.recompute) if recipe.recompute and isinstance(net, Net) else net
    if recipe.compiled:
        module = torch.compile(module)  # type: ignore[assignment]
    return place.parallel(module)


def quick(recipe: Recipe, *nets: nn.Module) -> contextlib.AbstractContextManager[None]:
    """A block in which the nets' 3 x 3 convolutions run on tiles; the compiler has its own ways."""
    return tiled(*nets) if recipe.winograd and not recipe.compiled else contextlib.nullcontext()


def check_wrapping(net: nn.Module, recipe: Recipe) -> None:
    """The recipe's way to run the net is possible for this net and on this machine.

    Raises:
        StriateError: gradient checkpointing of a net that is no plain sequence of stages, or together with
            compiling; no compiler.
    """
    if recipe.recompute and recipe.compiled:
        raise StriateError("recompute and compiled exclude each other", hint="leave one of them out")
    if recipe.recompute and (not isinstance(net, Net) or type(net).forward is not Net.forward):
        raise StriateError(
            f"recompute needs a net whose stages run one after the other; {recipe.net!r} is none",
            hint="leave out --recompute, or lower --batch and raise --accumulate",
        )
    if recipe.compiled and recipe.device.startswith("cpu") and not compiler():
        raise StriateError("compiled needs a C++ compiler, and none is found", hint="install g++, or set CXX")


def compiler() -> str | None:
    """The C++ compiler that compiled nets are built with on the CPU; None without any."""
    names = filter(None, (os.environ.get("CXX"), "g++", "clang++", "clang"))
    return next((path for path in map(shutil.which, names) if path), None)


class Recomputed(nn.Module):
    """A net whose stages run in segments; only what passes between them is kept for the backward pass.

    The activations inside of a segment are worked out again when its gradients are due, with the same draws
    of dropout; running statistics of norms are updated once. The gradients are the same. With sqrt(n)
    segments memory grows with the root of the depth, for one forward pass more: Chen et al. 2016,
    arXiv:1604.06174, section 4.1.
    """

    def __init__(self, net: Net, segments: int) -> None:
        super().__init__()
        self.net = net
        names = net.stage_names
        count = min(segments, len(names))
        ends = [round(len(names) * k / count) for k in range(count + 1)]
        self.parts = [names[a:b] for a, b in itertools.pairwise(ends)]

    def forward(self, x: Tensor) -> Tensor:
        """As the net's: (N, C, H, W) -> its outputs."""
        net = self.net
        check_input(x, net.in_channels, net.input_size, net.fixed_size, net.min_size)
        for number, names in enumerate(self.parts):
            # What follows the last boundary is needed again at once.
            if number == len(self.parts) - 1 or not (self.training and torch.is_grad_enabled()):
                x = run(net, names, x)
                continue
            x = checkpoint(
                run, net, names, x, use_reentrant=False,
                context_fn=lambda: (contextlib.nullcontext(), statistics_kept(net)),
            )  # fmt: skip
        return x


def run(net: nn.Module, names: tuple[str, ...], x: Tensor) -> Tensor:
    """Run some stages in order."""
    for name in names:
        x = net.get_submodule(name)(x)
    return x


@contextlib.contextmanager
def statistics_kept(net: nn.Module) -> Iterator[None]:
    """After the block, the running statistics of batch norms in training are what they were."""
    norms: list[Any] = [
        module
        for module in net.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        and module.training
        and module.running_mean is not None
    ]
    momenta = [norm.momentum for norm in norms]
    counts = [norm.num_batches_tracked.clone() for norm in norms]
    for norm in norms:
        # The statistics move by nothing: r <- (1 - 0) r + 0 b.
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, count in zip(norms, momenta, counts, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)
