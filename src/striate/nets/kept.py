"""What training keeps: the tensors that autograd saves for the backward pass, stage by stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from striate.core.errors import StriateError
from striate.nets.taps import shadow, stepping
from striate.nets.tracker import BETWEEN, FAILURES


def kept_bytes(
    net: nn.Module, size: tuple[int, int], channels: int, names: Sequence[str]
) -> dict[str, int] | None:
    """Bytes that autograd keeps for one picture of a batch in training, by the stage that keeps them first.

    Each block of memory counts once, wherever it is used again; weights and buffers do not count. What does
    not grow with the batch (a norm's batch statistics) is left out: two passes without numbers, of two and
    of three pictures, are subtracted. None where a foreign module cannot make such a pass.

    Raises:
        StriateError: the net cannot take such a picture.
    """
    kind = next((t.dtype for t in net.parameters() if t.is_floating_point()), torch.float32)
    try:
        bare = _light(shadow(net).train())
        two, three = (
            _kept(bare, torch.empty(n, channels, *size, device="meta", dtype=kind), names) for n in (2, 3)
        )
    except (*FAILURES, StriateError):
        if getattr(net, "tapped", None) is net:
            raise
        return None
    return {name: three[name] - two.get(name, 0) for name in three}


class _Normed(torch.autograd.Function):
    """Batch norm without numbers, keeping what the real one keeps: its input and two numbers a channel."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None) -> Tensor:
        """A tensor like x (N, C, ...)."""
        ctx.save_for_backward(x, x.new_empty(x.shape[1]), x.new_empty(x.shape[1]))
        return torch.empty_like(x)


def _light(net: nn.Module) -> nn.Module:
    """The copy with quick batch norms: without numbers PyTorch takes each apart into a hundred operations."""
    for module in net.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
            module.forward = partial(_normed, module, module.forward)  # type: ignore[method-assign]
    return net


def _normed(module: nn.Module, forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    module._check_input_dim(x)  # type: ignore[operator]
    if not module.training or x.shape[1] != module.num_features:
        return forward(x)
    normed: Tensor = _Normed.apply(x, module.weight)  # type: ignore[no-untyped-call]
    return normed


def _kept(net: nn.Module, x: Tensor, names: Sequence[str]) -> dict[str, int]:
    # Memory blocks by their address; the tensors are held, so that no address is used twice.
    blocks: dict[int, tuple[Tensor, str]] = {}
    own = {t.untyped_storage()._cdata for t in (*net.parameters(), *net.buffers())}
    running: list[str] = []

    def keep(tensor: Tensor) -> Tensor:
        address = tensor.untyped_storage()._cdata
        if address not in own:
            blocks.setdefault(address, (tensor, running[-1] if running else BETWEEN))
        return tensor

    def enter(name: str, _: tuple[Any, ...]) -> None:
        running.append(name)

    def leave(_: str, __: Any) -> None:
        running.pop()

    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        stepping(net, names, enter=enter, leave=leave),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        net(x)
    found = dict.fromkeys(names, 0)
    for tensor, name in blocks.values():
        found[name] = found.get(name, 0) + tensor.untyped_storage().nbytes()
    return found
