"""A linear layer on maps that differ little from one clean map: its weights act on the difference alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from striate.visualize.plan import Plan, asks_shape, call

# Copies that a pass over the weights costs as much as: taking them apart by positions takes that long.
GATHER = 150
# The weights that are put in another order at a time.
TURNED_BYTES = 64_000_000


@dataclass(frozen=True)
class LinearDifference:
    """The first linear layer behind the boxes, where it reads one step's maps (C, H, W) as they are.

    z(x) = z(clean) + sum over the positions where x differs of W[:, :, position] (x - clean)[:, position].
    """

    node: fx.Node
    edge: fx.Node
    weight: Tensor
    clean: Tensor
    before: Tensor

    @property
    def places(self) -> int:
        """Positions of a map."""
        return self.clean.shape[-2] * self.clean.shape[-1]

    def macs(self, touched: int) -> int:
        """Multiply-adds for so many positions."""
        return touched * self.clean.shape[1] * self.weight.shape[0]

    def pays(self, touched: int, copies: int) -> bool:
        """Whether so many positions, over all copies, are less work than the copies in full."""
        return touched + GATHER * self.places < copies * self.places

    def apply(self, maps: Tensor, tolerance: float) -> tuple[Tensor, float] | None:
        """The layer's outputs (n, K) for maps (n, C, H, W), and multiply-adds a copy; None if it saves none.

        Differences of at most `tolerance` are rounding.
        """
        copies, channels = maps.shape[:2]
        change = maps - self.clean
        touched = (change.abs().amax(1) > tolerance).flatten(1)
        total = int(touched.sum())
        if not self.pays(total, copies):
            return None
        outputs = self.before.expand(copies, -1).clone()
        flat = change.flatten(2)
        where = [(place, touched[:, place].nonzero()[:, 0]) for place in range(self.places)]
        signals = [(place, chosen, flat[chosen, :, place]) for place, chosen in where if len(chosen)]
        rows = max(1, TURNED_BYTES // (self.weight.shape[1] * self.weight.element_size()))
        for some, out in zip(torch.split(self.weight, rows), torch.split(outputs, rows, 1), strict=True):
            # The weights of a position lie far apart; turning a matrix over brings them together.
            turned = some.reshape(-1, self.places).t().contiguous().view(self.places, -1, channels)
            for place, chosen, signal in signals:
                out.index_add_(0, chosen, signal @ turned[place].t())
        return outputs, self.macs(total) / copies


def linear_difference(plan: Plan) -> LinearDifference | None:
    """The linear layer of a plan that can take differences; None where there is none."""
    made: dict[fx.Node, fx.Node] = {}
    asks: dict[fx.Node, tuple[Any, Any]] = {}
    for node, args, kwargs in plan.rest:
        read = [n for n in dict.fromkeys(node.all_input_nodes) if n not in plan.constants and n not in asks]
        if len(read) != 1:
            continue
        if asks_shape(node):
            asks[node] = args, kwargs
            continue
        source = made.get(read[0], read[0])
        if source not in plan.edges or source not in plan.kept:
            continue
        found = _linear(node, plan)
        if found is not None:
            weight, bias = found
            clean = plan.kept[source].value.contiguous()
            if clean.ndim == 4 and clean[0].numel() == weight.shape[1]:
                return LinearDifference(node, source, weight, clean, F.linear(clean.flatten(1), weight, bias))
        elif _only_flattens((node, args, kwargs), source, read[0], plan, asks):
            made[node] = source
    return None


def _linear(node: fx.Node, plan: Plan) -> tuple[Tensor, Tensor | None] | None:
    """The weights and biases of a linear layer."""
    if node.op == "call_module":
        module = plan.modules[str(node.target)]
        # A hook on the module would see, or change, what is not computed.
        if type(module) is not nn.Linear or module._forward_hooks or module._forward_pre_hooks:
            return None
        return module.weight.detach(), None if module.bias is None else module.bias.detach()
    if node.op == "call_function" and node.target is F.linear:
        given = dict(zip(("input", "weight", "bias"), node.args, strict=False)) | dict(node.kwargs)
        weight, bias = (
            plan.constants.get(n) if isinstance(n, fx.Node) else n
            for n in (given.get("weight"), given.get("bias"))
        )
        if isinstance(weight, Tensor) and weight.ndim == 2 and (bias is None or isinstance(bias, Tensor)):
            return weight.detach(), None if bias is None else bias.detach()
    return None


def _only_flattens(
    step: tuple[fx.Node, Any, Any], source: fx.Node, read: fx.Node, plan: Plan,
    asks: dict[fx.Node, tuple[Any, Any]],
) -> bool:  # fmt: skip
    """Whether a node gives the values of a map in their order: what it makes of numbered maps says so."""
    node, args, kwargs = step
    clean = plan.kept[source].value
    numbers = torch.arange(1, clean.numel() + 1, dtype=clean.dtype, device=clean.device).view(clean.shape)
    for numbered in (numbers, -numbers):

        def value(n: fx.Node, numbered: Tensor = numbered) -> Any:
            if n in asks:
                return call(n, plan.modules, *fx.node.map_arg(asks[n], value))
            if n is source:
                return numbered.clone()
            return numbered.flatten(1) if n is read else plan.constants[n]

        try:
            found = call(node, plan.modules, *fx.node.map_arg((args, kwargs), value))
        except (KeyError, RuntimeError, TypeError, ValueError):
            return False
        flat = numbered.flatten(1)
        if not (isinstance(found, Tensor) and found.shape == flat.shape and torch.equal(found, flat)):
            return False
    return True
