"""What the operations of a net send back to their inputs, written out: a transposed network on boxes."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from striate.visualize.boxes import Span, gather
from striate.visualize.plan import JOINED, Plan, Step

# From a signal at the boxes (y, x) of a step's output to those at the boxes (down, across) that it reads.
Send = Callable[[Tensor, Span, Span, Span, Span], Sequence[Tensor]]

RELUS = {F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_"}
SUMS = {operator.add, operator.iadd, torch.add, "add", "add_"}
SAME = (nn.Identity, nn.Dropout, nn.Dropout2d, nn.AlphaDropout)


def sender(step: Step, plan: Plan, rule: str) -> Send | None:
    """What a step sends back by a backward rule; None where autograd must say it.

    A signal that is handed over belongs to the receiver, who may change it.
    """
    module = plan.modules.get(str(step.node.target)) if step.node.op == "call_module" else None
    kind = type(module) if module is not None else step.node.target
    if step.adjoint is not None and step.scale is None:
        adjoint = step.adjoint
        return lambda signal, *_: [adjoint(signal)]
    if step.switches is not None:
        return _to_switches(step, plan)
    if kind is nn.ReLU or kind in RELUS:
        return _rectified(step, plan, rule)
    if isinstance(module, nn.BatchNorm2d) and module.running_var is not None and not module.training:
        scale = torch.rsqrt(module.running_var + module.eps)
        factor = (scale if module.weight is None else scale * module.weight).detach().view(-1, 1, 1)
        return lambda signal, *_: [signal.mul_(factor)]
    if kind in SAME:
        return lambda signal, *_: [signal]
    if kind in SUMS and len(step.sources) == 2 and len(step.node.args) == 2 and not step.node.kwargs:
        same = len({plan.shapes[source] for source in step.sources}) == 1
        return (lambda signal, *_: [signal, signal.clone()]) if same else None
    if kind in JOINED and _several(step.node.args[:1]) == len(step.sources):
        sizes = [plan.shapes[source][1] for source in step.sources]
        return lambda signal, *_: signal.split(sizes, 1)
    return None


def _several(args: Sequence[object]) -> int:
    """How many maps a concatenation is given."""
    given = args[0] if args else None
    return (
        len(given) if isinstance(given, (list, tuple)) and all(isinstance(n, fx.Node) for n in given) else 0
    )


def _rectified(step: Step, plan: Plan, rule: str) -> Send:
    if rule == "deconvnet":
        return lambda signal, *_: [signal.clamp_(min=0)]
    active = plan.kept[step.sources[0]].value[0] > 0

    def send(signal: Tensor, y: Span, x: Span, *_: Span) -> list[Tensor]:
        passed = signal.mul_(gather(active, y, x))
        return [passed.clamp_(min=0) if rule == "guided" else passed]

    return send


def _to_switches(step: Step, plan: Plan) -> Send:
    """Each signal goes to the place where its maximum was."""
    clean = plan.kept[step.sources[0]].value
    assert step.switches is not None  # by `sender`
    places = step.switches(clean)[0]
    width = clean.shape[-1]
    rows, columns = places.div(width, rounding_mode="floor"), places.remainder(width)

    def send(signal: Tensor, y: Span, x: Span, down: Span, across: Span) -> list[Tensor]:
        count, channels = signal.shape[:2]
        first = torch.from_numpy(down.start * across.length + across.start).to(signal.device)
        local = gather(rows, y, x).mul_(across.length).add_(gather(columns, y, x))
        local.sub_(first.view(-1, 1, 1, 1))
        # Positions before channels: with channels last in memory these are views.
        where, values = (part.permute(0, 2, 3, 1).flatten(1, 2) for part in (local, signal))
        found = signal.new_zeros((count, down.length * across.length, channels))
        found.scatter_add_(1, where, values)
        return [found.view(count, down.length, across.length, channels).permute(0, 3, 1, 2)]

    return send
