"""A net without some of its stages, wired anew where the shapes allow."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from striate.core.errors import StriateError, first_line, unknown
from striate.nets.net import Net, initialise
from striate.nets.taps import leaves_as_found, shadow
from striate.nets.tracker import FAILURES

# Reading these two tells how many maps a layer takes.
WIDTHS = {nn.Linear: "in_features", nn.BatchNorm1d: "num_features", nn.BatchNorm2d: "num_features"}


class _Stuck(Exception):
    """Why the remaining stages do not fit together; the first stage that does not."""


class Ablated(Net):
    """A net with stages left out: `removed` names them, `redrawn` the layers that were drawn anew.

    Made by `ablate`; everything else has the weights of the net that it was made from.
    """

    removed: tuple[str, ...] = ()
    redrawn: tuple[str, ...] = ()


def ablate(net: Net, stages: str | Iterable[str]) -> Ablated:
    """A copy of the net without the named stages, as in table 3 of arXiv:1311.2901.

    Where the shape before a stage is the shape after it, the rest is joined as it is, weights included.
    Otherwise each following convolution, linear layer or batch norm that gets another number of maps is made
    anew for it, its weights drawn from PyTorch's random state by He's rule (the head's within 1 / sqrt(n)):
    `redrawn` names these. Stages that are more than one layer, such as residual blocks, must fit as they are.

    Raises:
        StriateError: an unknown stage; the head; or the rest does not fit together (the stage that does not
            is named, and those stages that can go by themselves).
    """
    check_chain(net)
    removed = [stages] if isinstance(stages, str) else list(stages)
    for name in removed:
        if name not in net.stage_names:
            raise unknown("stage", name, net.stage_names)
    if not removed:
        raise StriateError("no stage to leave out is named", allowed=net.stage_names)
    if net.head in removed:
        raise StriateError(f"{net.head!r} is the head", hint="reset_head(classes) replaces it")
    bare: Net = shadow(net)  # type: ignore[assignment]
    try:
        redrawn = _fit(_Runner(bare), [n for n in net.stage_names if n not in removed], _picture(net))
    except _Stuck as reason:
        raise StriateError(
            f"without {', '.join(removed)} the rest of {net.name} does not fit: {reason}",
            allowed=f"each of these can go: {', '.join(removable(net)) or '(none)'}",
        ) from reason
    kept: list[tuple[str, nn.Module]] = []
    for name in net.stage_names:
        if name not in removed:
            module = copy.deepcopy(net.get_submodule(name))
            if name in redrawn:
                module = _widened(module, redrawn[name])
                initialise(module, "uniform" if name == net.head else "he")
            kept.append((name, module))
    made = Ablated(
        kept, head=net.head, in_channels=net.in_channels, size=net.input_size, name=f"{net.name}-ablated",
        fixed_size=net.fixed_size or any(isinstance(bare.get_submodule(n), nn.Linear) for n in redrawn),
        min_size=net.min_size,
    )  # fmt: skip
    made.options = dict(net.options)
    made.removed, made.redrawn = tuple(removed), tuple(redrawn)
    made.training = net.training
    return made


def removable(net: Net) -> tuple[str, ...]:
    """The stages that `ablate` can leave out, each by itself."""
    check_chain(net)
    bare: Net = shadow(net)  # type: ignore[assignment]
    names = net.stage_names
    run = _Runner(bare)
    inputs: list[Tensor] = []
    x = _picture(net)
    for name in names:
        inputs.append(x)
        x = run(name, x)
    inputs.append(x)
    found = []
    for place, name in enumerate(names):
        if name == net.head:
            continue
        if inputs[place].shape != inputs[place + 1].shape:
            try:
                _fit(run, names[place + 1 :], inputs[place], [x.shape for x in inputs[place + 1 :]])
            except _Stuck:
                continue
        found.append(name)
    return tuple(found)


def check_chain(net: nn.Module) -> None:
    """Refuse what is not a sequence of named stages.

    Raises:
        StriateError: the module is no `Net`, or wraps another; or its forward pass does more than run its
            stages in order.
    """
    if not isinstance(net, Net) or net.tapped is not net:
        raise StriateError(
            f"{type(net).__name__} is not a net of named stages in sequence", hint="give one of create_net"
        )
    if type(net).forward is Net.forward or any(t.is_meta for t in (*net.parameters(), *net.buffers())):
        return
    place = next(t for t in net.parameters() if t.is_floating_point())
    x = torch.rand(1, net.in_channels, *net.input_size, generator=torch.Generator().manual_seed(0))
    x = x.to(place.device, place.dtype)
    with torch.no_grad(), leaves_as_found(net):
        net.eval()
        wanted, found = net(x), x
        for name in net.stage_names:
            found = net.get_submodule(name)(found)
    if found.shape[:2] != wanted.shape[:2] or not torch.allclose(wanted, found, rtol=1e-4, atol=1e-4):
        raise StriateError(f"{net.name} does more than run its stages in order")


def _picture(net: Net) -> Tensor:
    kind = next((t.dtype for t in net.parameters() if t.is_floating_point()), torch.float32)
    return torch.empty(2, net.in_channels, *net.input_size, device="meta", dtype=kind)


class _Runner:
    """Runs stages on the meta device; equal stages run once for each shape of what they are given."""

    def __init__(self, bare: Net) -> None:
        self.bare = bare
        self._forms = {name: _form(bare.get_submodule(name)) for name in bare.stage_names}
        self._seen: dict[tuple[Any, torch.Size], Tensor] = {}

    def __call__(self, name: str, x: Tensor, module: nn.Module | None = None) -> Tensor:
        """The output of a stage, or of `module`, which takes its place for this input."""
        key = (self._forms[name], x.shape)
        if key not in self._seen:
            self._seen[key] = (module or self.bare.get_submodule(name))(x)
        return self._seen[key]


def _form(stage: nn.Module) -> Any:
    """All that a stage's shapes can depend on: kinds, plain values and sizes of weights of all its parts."""
    plain = (int, float, str, tuple, list, type(None))
    return tuple(
        (
            name,
            type(part),
            tuple((key, repr(value)) for key, value in vars(part).items() if isinstance(value, plain)),
            tuple((key, tuple(t.shape)) for key, t in part.named_parameters(recurse=False)),
        )
        for name, part in stage.named_modules()
    )


def _fit(
    run: _Runner, names: Sequence[str], x: Tensor, usual: Sequence[torch.Size] | None = None
) -> dict[str, int]:
    """Run stages on the meta device; which of them need another number of inputs, and how many.

    usual: the shapes that the stages take in the whole net: once one is met, the rest fits as it is.
    """
    redrawn: dict[str, int] = {}
    for place, name in enumerate(names):
        if usual is not None and x.shape == usual[place]:
            return redrawn
        module = run.bare.get_submodule(name)
        wants = _takes(module)
        gets = x.shape[-1] if isinstance(module, nn.Linear) else x.shape[1]
        if wants is not None and wants != gets:
            module = _widened(copy.deepcopy(module), gets, name)
            redrawn[name] = gets
        try:
            x = run(name, x, module)
        except (*FAILURES, StriateError) as error:
            reason = first_line(error)
            raise _Stuck(f"{name} cannot take {_by(x)} ({reason})" if reason else name) from error
    if x.shape != (2, run.bare.classes):
        raise _Stuck(f"the last stage gives {_by(x)} instead of {run.bare.classes} logits")
    return redrawn


def _takes(module: nn.Module) -> int | None:
    """How many maps (units) a layer takes; None for what is not one plain layer."""
    if isinstance(module, nn.Conv2d):
        plain = (module.out_channels, module.in_channels // module.groups, *module.kernel_size)
        return module.in_channels if tuple(module.weight.shape) == plain else None
    field = WIDTHS.get(type(module))
    return None if field is None else int(getattr(module, field))


def _widened(module: nn.Module, width: int, name: str = "") -> nn.Module:
    """The layer itself with `width` inputs, its weights not yet drawn."""
    if isinstance(module, nn.Conv2d):
        if width % module.groups or module.groups == module.in_channels > 1:
            raise _Stuck(f"{name} has {module.groups} groups and would get {width} maps")
        shape = (module.out_channels, width // module.groups, *module.kernel_size)
        module.in_channels = width
        module.weight = _blank(module.weight, shape)
    elif isinstance(module, nn.Linear):
        module.in_features = width
        module.weight = _blank(module.weight, (module.out_features, width))
    elif isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
        like = next((t for t in (*module.parameters(), *module.buffers())), torch.empty(0))
        made = type(module)(
            width, module.eps, module.momentum, module.affine, module.track_running_stats,
            device=like.device, dtype=like.dtype if like.is_floating_point() else None,
        )  # fmt: skip
        return made.train(module.training)
    return module


def _blank(old: Tensor, shape: Sequence[int]) -> nn.Parameter:
    return nn.Parameter(torch.zeros(*shape, device=old.device, dtype=old.dtype), old.requires_grad)


def _by(x: Any) -> str:
    return "x".join(map(str, x.shape[1:])) if isinstance(x, Tensor) else type(x).__name__
