"""Batch norm folded into the layer before it, where the graph of the net proves that this is the same."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn

from striate.core.errors import StriateError
from striate.layers.convolution import SameConv2d
from striate.layers.pooling import GlobalAveragePool, GlobalMaxPool
from striate.layers.regularization import DropPath
from striate.nets.graph import traced

M = TypeVar("M", bound=nn.Module)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
# Layers whose output is linear in weight and bias, map by map. Of subclasses nobody knows: types are exact.
FORWARD = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, SameConv2d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
# What may stand between: nothing in evaluation, a mean of each map, or a maximum of each map.
NOTHING = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, DropPath)
MEANS = (GlobalAveragePool, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
PADDED_MEANS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
MAXIMA = (
    GlobalMaxPool, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d,
    nn.AdaptiveMaxPool3d,
)  # fmt: skip
SHOWN = 4


class _Refused(Exception):
    """Why one norm cannot be folded."""


@dataclass(frozen=True)
class _Place:
    """A norm, the layer before it, and whether a maximum stands between."""

    norm: str
    layer: str
    through_maximum: bool


def fold_batch_norm(net: M, *, keep: bool = False) -> M:
    """A copy of the net, in evaluation mode, whose batch norms are part of the layers before them.

    In evaluation batch norm is y = s (x - m) + b with s = weight / sqrt(variance + eps) for each map, so that
    the layer before it may have the weights s w and the bias s (bias - m) + b instead (arXiv:1712.05877,
    section 3.2). Each folded norm is left as an identity under its name; outputs are equal up to rounding.
    Works inside residual and inception stages: the graph of the forward pass must show that the norm alone
    sees the layer's output, directly or through dropout, average pooling, or max pooling where no s is
    negative. With `keep`, norms that cannot be folded stay as they are.

    Raises:
        StriateError: a norm cannot be folded and `keep` is false (all are named, with the reason); the net
            has no batch norm, no weights yet, or a forward pass that depends on values.
    """
    norms = [name for name, module in net.named_modules() if type(module) in NORMS]
    if not norms:
        raise StriateError(f"{_name(net)} has no batch norm", hint="it is as it would be folded")
    if any(t.is_meta for t in (*net.parameters(), *net.buffers())):
        raise StriateError(f"{_name(net)} has no weights yet", hint="create or load it first")
    folded = copy.deepcopy(net).eval()
    root = getattr(folded, "tapped", folded)
    graph = traced(root)
    modules: dict[str, nn.Module] = dict(root.named_modules(remove_duplicate=False))
    uses = _Uses(graph, root, modules)
    refused: dict[str, str] = {}
    for node in graph.nodes:
        if node.op == "call_module" and type(modules[str(node.target)]) in NORMS:
            try:
                _fold(_place(node, modules, uses), modules)
            except _Refused as reason:
                refused[str(node.target)] = str(reason)
                continue
            parent, _, child = str(node.target).rpartition(".")
            setattr(root.get_submodule(parent), child, nn.Identity())
    if refused and not keep:
        told = "; ".join(f"{name}: {reason}" for name, reason in list(refused.items())[:SHOWN])
        more = f"; and {len(refused) - SHOWN} more" if len(refused) > SHOWN else ""
        raise StriateError(
            f"{len(refused)} of {len(norms)} batch norms cannot be folded ({told}{more})",
            hint="keep=True folds the others",
        )
    if hasattr(folded, "stage_names"):
        folded.name = f"{_name(net)}-folded"  # type: ignore[assignment]
    return folded


class _Uses:
    """How often each module runs, and which tensors serve more than one module."""

    def __init__(self, graph: fx.Graph, root: nn.Module, modules: Mapping[str, nn.Module]) -> None:
        called = [str(node.target) for node in graph.nodes if node.op == "call_module"]
        self._runs = Counter(id(modules[target]) for target in called)
        holders = Counter(
            id(p) for module in root.modules() for p in module.parameters(recurse=False) if p is not None
        )
        self._shared = {key for key, count in holders.items() if count > 1}
        # Weights that the forward pass reads outside of their module.
        self._shared |= {id(_attribute(root, str(n.target))) for n in graph.nodes if n.op == "get_attr"}

    def check(self, name: str, module: nn.Module) -> None:
        if self._runs[id(module)] != 1:
            raise _Refused(f"{name} runs {self._runs[id(module)]} times in a pass")
        if any(id(p) in self._shared for p in module.parameters(recurse=False)):
            raise _Refused(f"the weights of {name} serve elsewhere too")


def _attribute(root: nn.Module, dotted: str) -> Any:
    value: Any = root
    for part in dotted.split("."):
        value = getattr(value, part)
    return value


def _place(node: fx.Node, modules: Mapping[str, nn.Module], uses: _Uses) -> _Place:
    """The layer that a norm may be folded into."""
    norm = modules[str(node.target)]
    uses.check(str(node.target), norm)
    if getattr(norm, "running_mean", None) is None:
        raise _Refused("it keeps no running mean")
    through_maximum = False
    before = node
    while True:
        sources = before.all_input_nodes
        if len(sources) != 1 or sources[0].op != "call_module":
            raise _Refused("no layer stands before it")
        source = sources[0]
        name, module = str(source.target), modules[str(source.target)]
        if len(source.users) > 1:
            raise _Refused(f"the output of {name} is used elsewhere too")
        kind = type(module)
        if kind in FORWARD or (kind in TRANSPOSED and module.groups == 1):
            uses.check(name, module)
            return _Place(str(node.target), name, through_maximum)
        if kind in MAXIMA and not getattr(module, "return_indices", False):
            through_maximum = True
        elif kind in PADDED_MEANS and _counts_padding(module):
            raise _Refused(f"{name} counts its padding in the mean")
        elif kind not in (*NOTHING, *MEANS, *PADDED_MEANS):
            raise _Refused(f"{kind.__name__} {name} stands before it")
        before = source


def _counts_padding(pool: Any) -> bool:
    padding = pool.padding if isinstance(pool.padding, tuple) else (pool.padding,)
    odd = getattr(pool, "divisor_override", None) is not None
    return odd or (bool(pool.count_include_pad) and any(padding))


def _fold(place: _Place, modules: Mapping[str, nn.Module]) -> None:
    norm: Any = modules[place.norm]
    layer: Any = modules[place.layer]
    mean, variance = norm.running_mean.double(), norm.running_var.double()
    scale = (variance + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    if place.through_maximum and bool((scale < 0).any()):
        raise _Refused(
            f"{int((scale < 0).sum())} of its factors are negative, and a maximum stands between it and "
            f"{place.layer}"
        )
    axis = 1 if type(layer) in TRANSPOSED else 0
    weight: Tensor = layer.weight.detach()
    if weight.shape[axis] != len(scale):
        raise _Refused(f"{place.layer} does not give its {len(scale)} maps")
    form = [-1 if i == axis else 1 for i in range(weight.ndim)]
    old = torch.zeros_like(mean) if layer.bias is None else layer.bias.detach().double()
    shift = (old - mean) * scale
    if norm.bias is not None:
        shift = shift + norm.bias.detach().double()
    wanted = layer.weight.requires_grad
    layer.weight = nn.Parameter((weight.double() * scale.view(form)).to(weight.dtype), wanted)
    layer.bias = nn.Parameter(shift.to(weight.dtype), wanted)


def _name(net: nn.Module) -> str:
    return str(getattr(net, "name", type(net).__name__))
