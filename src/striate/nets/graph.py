"""The graph of a net: what runs inside each stage, in which order, on which inputs, with which shapes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from striate.core.errors import StriateError, first_line
from striate.nets.geometry import ask
from striate.nets.net import Size
from striate.nets.taps import shadow
from striate.nets.tracker import FAILURES, Outlined


@dataclass(frozen=True)
class Step:
    """One operation of a pass: a module without children, or a function such as add or cat.

    target: the module's dotted name, or the function's; inputs: names of the steps that it takes tensors
    from; stage: the stage that it belongs to, "" outside of all; shape: of its output without the batch,
    () where that is not a tensor. The first step is the picture ("input").
    """

    name: str
    target: str
    inputs: tuple[str, ...]
    stage: str
    shape: tuple[int, ...]
    module: nn.Module | None = None


class _Leaves(fx.Tracer):
    """Every module without children is one step: nothing inside it is followed."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not any(True for _ in m.children()) or super().is_leaf_module(m, module_qualified_name)


def traced(root: nn.Module) -> fx.Graph:
    """The operations of a module's forward pass in its present mode; the module is not run.

    Raises:
        StriateError: its forward pass depends on values, so that it has no one graph.
    """
    try:
        return _Leaves().trace(root)
    except (*FAILURES, StriateError) as error:
        reason = first_line(error)
        raise StriateError(
            f"the forward pass of {type(root).__name__} cannot be followed ({reason})",
            hint="its control flow must not depend on what the tensors hold",
        ) from error


class _Shapes(fx.Interpreter):
    """Runs a graph and keeps the shape of every output."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.found: dict[str, tuple[int, ...]] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.found[n.name] = tuple(result.shape[1:])
        return result


def steps(net: nn.Module, size: Size | None = None, in_channels: int | None = None) -> tuple[Step, ...]:
    """The steps of one picture's pass in evaluation, in order, with shapes; nothing is computed.

    `size` is the picture's side or (height, width), the net's own if None.

    Raises:
        StriateError: the forward pass cannot be followed, or the net cannot take such a picture.
    """
    height_width, channels, names = ask(net, size, in_channels)
    bare = shadow(net)
    root = getattr(bare, "tapped", bare)
    graph = traced(root)
    shapes = _Shapes(fx.GraphModule(root, graph))
    kind = next((t.dtype for t in net.parameters() if t.is_floating_point()), torch.float32)
    try:
        with torch.inference_mode(), Outlined():  # type: ignore[no-untyped-call]
            shapes.run(torch.empty(1, channels, *height_width, device="meta", dtype=kind))
    except (*FAILURES, StriateError) as error:
        reason = first_line(error)
        raise StriateError(
            f"the net cannot take a picture of {channels} x {height_width[0]} x {height_width[1]} ({reason})",
            hint="give another size or number of channels",
        ) from error
    modules = dict(root.named_modules())
    return tuple(_step(node, modules, set(names), shapes.found) for node in graph.nodes if _tells(node))


def _tells(node: fx.Node) -> bool:
    """Whether a node is a step: the output and the check of the input are none."""
    return node.op != "output" and not (node.op == "call_function" and _function(node) == "check_input")


def _step(
    node: fx.Node, modules: Mapping[str, nn.Module], stages: set[str], shapes: Mapping[str, tuple[int, ...]]
) -> Step:
    target, module = _function(node), None
    if node.op == "placeholder":
        target = "input"
    elif node.op == "call_module":
        target = str(node.target)
        module = modules[target]
    inputs = tuple(source.name for source in node.all_input_nodes)
    return Step(node.name, target, inputs, _stage(node, stages), shapes.get(node.name, ()), module)


def _function(node: fx.Node) -> str:
    target = node.target
    return target if isinstance(target, str) else str(getattr(target, "__name__", target)).strip("_")


def _stage(node: fx.Node, stages: set[str]) -> str:
    """The stage of a node: the first of the names of the modules around it that is one."""
    around = node.meta.get("nn_module_stack") or OrderedDict()
    paths = [value[0] if isinstance(value, tuple) else str(key) for key, value in around.items()]
    if node.op == "call_module":
        paths.append(str(node.target))
    for path in map(str, paths):
        parts = path.split(".")
        for length in range(1, len(parts) + 1):
            if ".".join(parts[:length]) in stages:
                return ".".join(parts[:length])
    return ""
