"""Taps: see or replace what passes through a stage. The only file with hooks, and only inside `with`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from striate.core.errors import StriateError, unknown

Enter = Callable[[str, tuple[Any, ...]], None]
# A value returned takes the place of the output; None leaves it.
Leave = Callable[[str, Any], Any]


class Seen(dict[str, Tensor]):
    """Stage name -> its output (N, ...); `calls` counts how often each stage ran inside the block."""

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__()
        self.calls: dict[str, int] = dict.fromkeys(names, 0)

    def __missing__(self, name: str) -> Tensor:
        if name not in self.calls:
            raise unknown("captured stage", name, self.calls)
        raise StriateError(
            f"stage {name!r} has not run inside this block", hint="run the net first, or leave the stage out"
        )


def places(net: nn.Module) -> dict[str, nn.Module]:
    """Every name that a tap takes: stages and dotted names of submodules, in order of definition.

    A module with two names is found under both.
    """
    root = getattr(net, "tapped", net)
    return {name: module for name, module in root.named_modules(remove_duplicate=False) if name}


def stage(net: nn.Module, name: str) -> nn.Module:
    """The module called `name`.

    Raises:
        StriateError: there is none; near matches and the stages are given.
    """
    module: nn.Module | None = getattr(net, "tapped", net)
    for part in name.split("."):
        module = module._modules.get(part) if module is not None else None
    if module is None:
        raise unknown("stage", name, getattr(net, "stage_names", None) or places(net))
    return module


@contextmanager
def stepping(
    net: nn.Module, names: Iterable[str], *, enter: Enter | None = None, leave: Leave | None = None
) -> Iterator[None]:
    """Call `enter(name, inputs)` before and `leave(name, output)` after each run of the named stages.

    What `leave` returns takes the place of the output, None leaves it. All hooks are gone when the block
    ends, however it ends.

    Raises:
        StriateError: a name is not a stage; nothing was hooked then.
    """
    modules = {name: stage(net, name) for name in names}
    with ExitStack() as hooks:
        for name, module in modules.items():
            if enter is not None:
                hooks.callback(module.register_forward_pre_hook(_before(name, enter)).remove)
            if leave is not None:
                hooks.callback(module.register_forward_hook(_after(name, leave)).remove)
        yield


@contextmanager
def capture(net: nn.Module, names: Iterable[str], *, grad: bool = False) -> Iterator[Seen]:
    """Collect the outputs of the named stages while the block runs the net: `seen[name]`, (N, ...).

    A stage that runs twice in one pass gives its first output; `seen.calls` tells. With `grad` the tensors
    stay in the graph and keep their gradient after `backward()`, also where all weights are frozen; without
    it they are detached.

    Raises:
        StriateError: an unknown stage; an output that is not one tensor; or an output that a later operation
            has overwritten in place, so that what was seen is not what the stage gave.
    """
    names = [names] if isinstance(names, str) else list(names)
    seen = Seen(names)
    versions: dict[str, int] = {}
    shielded = any(getattr(module, "inplace", False) is True for module in net.modules())

    def leave(name: str, output: Any) -> Tensor | None:
        if not isinstance(output, Tensor):
            raise StriateError(f"stage {name!r} gives {type(output).__name__}, not one tensor")
        seen.calls[name] += 1
        if seen.calls[name] > 1:
            return None
        kept = output
        if grad and not kept.requires_grad:
            kept = kept.detach().requires_grad_()
        elif not grad:
            kept = kept.detach()
        if grad:
            kept.retain_grad()
        seen[name], versions[name] = kept, kept._version
        # An in-place module behind this stage must find another tensor to overwrite.
        return kept.clone() if shielded and grad else output.clone() if shielded else kept if grad else None

    with stepping(net, names, leave=leave):
        yield seen
        # Inference tensors keep no version; the block's own operations are the caller's business.
    for name, version in versions.items():
        if not seen[name].is_inference() and seen[name]._version != version:
            raise StriateError(
                f"the output of stage {name!r} was overwritten in place after it was seen",
                hint="take a stage after the in-place operation, or make that operation not in place",
            )


@contextmanager
def replace(net: nn.Module, functions: Mapping[str, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Inside the block the output of each named stage becomes `functions[name](output)`, at every run of it.

    Raises:
        StriateError: an unknown stage.
    """
    with stepping(net, functions, leave=lambda name, output: functions[name](output)):
        yield


@contextmanager
def leaves_as_found(net: nn.Module) -> Iterator[None]:
    """Give back, however the block ends, what looking inside can change.

    Restored: training flag of every module, `requires_grad` and `.grad` of every parameter (inside the block
    gradients start as None), buffers such as running means, and PyTorch's random states.
    """
    modes = [(module, module.training) for module in net.modules()]
    parameters = [(p, p.requires_grad, p.grad) for p in net.parameters()]
    buffers = [(b, b.detach().clone()) for b in net.buffers()]
    devices = {t.device.index or 0 for t in (*net.parameters(), *net.buffers()) if t.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(devices)):
        for parameter, _, _ in parameters:
            parameter.grad = None
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode
            for parameter, wanted, gradient in parameters:
                parameter.requires_grad_(wanted)
                parameter.grad = gradient
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)


def shadow(module: nn.Module) -> nn.Module:
    """A copy of `module` on the meta device, in evaluation mode and without hooks: shapes, no memory.

    Raises:
        StriateError: the module cannot be copied.
    """
    memo: dict[int, Any] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        bare = torch.empty_like(tensor, device="meta")
        memo[id(tensor)] = (
            nn.Parameter(bare, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else bare
        )
    try:
        copied = copy.deepcopy(module, memo)
    except (RuntimeError, TypeError, ValueError) as error:
        raise StriateError(f"{type(module).__name__} cannot be copied ({error})") from error
    for part in copied.modules():
        for hooks in (part._forward_hooks, part._forward_pre_hooks):
            hooks.clear()
    return copied.eval()


def _before(name: str, enter: Enter) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def hook(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        enter(name, inputs)

    return hook


def _after(name: str, leave: Leave) -> Callable[[nn.Module, Any, Any], Any]:
    def hook(_: nn.Module, __: Any, output: Any) -> Any:
        return leave(name, output)

    return hook
