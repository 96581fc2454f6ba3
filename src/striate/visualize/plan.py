"""Which operations of a net can be redone on a part of a map: from its graph and one clean pass."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from striate.core.errors import StriateError
from striate.layers.activations import maxout
from striate.layers.normalization import neighbour_energy
from striate.nets.graph import traced
from striate.nets.net import check_input
from striate.nets.tracker import FAILURES
from striate.visualize.boxes import Kept, Window
from striate.visualize.sliding import sliding

# At each position, the output has no more than the inputs there, by one formula for all positions.
POINT_MODULES = {
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Sigmoid, nn.Tanh, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Softplus, nn.Softsign, nn.LogSigmoid,
    nn.Threshold, nn.Identity, nn.Dropout, nn.Dropout2d, nn.AlphaDropout, nn.Softmax2d, nn.ChannelShuffle,
}  # fmt: skip
POINT_FUNCTIONS = {
    F.relu, F.relu_, F.relu6, F.leaky_relu, F.leaky_relu_, F.elu, F.selu, F.celu, F.gelu, F.silu, F.mish,
    F.hardtanh, F.hardswish, F.hardsigmoid, F.softplus, F.softsign, F.sigmoid, F.tanh, F.threshold, F.prelu,
    torch.relu, torch.relu_, torch.sigmoid, torch.tanh, torch.clamp, torch.abs, torch.square, torch.sqrt,
    torch.exp, torch.neg, torch.pow, torch.add, torch.sub, torch.mul, torch.div, torch.maximum, torch.minimum,
    operator.add, operator.sub, operator.mul, operator.truediv, operator.neg, operator.pow, operator.iadd,
    operator.isub, operator.imul, operator.itruediv, neighbour_energy, maxout,
}  # fmt: skip
POINT_METHODS = {
    "relu", "relu_", "sigmoid", "sigmoid_", "tanh", "tanh_", "clamp", "clamp_", "clamp_min", "abs", "square",
    "sqrt", "exp", "neg", "pow", "add", "add_", "sub", "sub_", "mul", "mul_", "div", "div_", "contiguous",
    "clone", "detach",
}  # fmt: skip
SHAPE_METHODS = {"size", "dim", "ndimension", "numel"}
JOINED = (torch.cat, getattr(torch, "concat", torch.cat), getattr(torch, "concatenate", torch.cat))


@dataclass
class Step:
    """One operation that is redone on boxes.

    sources: the steps that it reads maps from. Without `windows` it acts at each position alone: `run` takes
    the sources' values at common boxes. With `windows` (height, width) it slides over its only source, on
    which `run` is done without padding; `fill` is the value outside of the map, and `scale` a factor (1, 1,
    H, W) for each output position, where averages count fewer units at the border. `macs`: multiply-adds
    for one position of the output. `adjoint`: of a linear `run`, its transpose. `switches`: of a maximum,
    where it lies in the whole map (1, C, H, W), as flat numbers. `joins`: it sets the sources' channels one
    after the other, and does no more.
    """

    node: fx.Node
    sources: tuple[fx.Node, ...]
    run: Callable[..., Tensor]
    windows: tuple[Window, Window] | None = None
    fill: float = 0.0
    scale: Tensor | None = None
    macs: int = 0
    adjoint: Callable[[Tensor], Tensor] | None = None
    switches: Callable[[Tensor], Tensor] | None = None
    joins: bool = False


@dataclass
class Plan:
    """A net's pass in two parts: `steps`, redone on boxes; `rest`, the nodes after them, done as a whole.

    picture: the node of the input; result: that of the output; kept: clean values of what the parts read;
    constants: what does not depend on the picture; edges: box steps that the rest reads; watched: the node of
    a stage, and its clean value.
    """

    graph: fx.Graph
    modules: Mapping[str, nn.Module]
    picture: fx.Node
    result: fx.Node
    steps: list[Step] = field(default_factory=list)
    rest: list[tuple[fx.Node, Any, Any]] = field(default_factory=list)
    kept: dict[fx.Node, Kept] = field(default_factory=dict)
    constants: dict[fx.Node, Any] = field(default_factory=dict)
    edges: list[fx.Node] = field(default_factory=list)
    shapes: dict[fx.Node, tuple[int, ...]] = field(default_factory=dict)
    watched: fx.Node | None = None
    watched_clean: Tensor | None = None

    def stage_node(self, stage: str) -> fx.Node | None:
        """The node whose output is that of a stage: the last one inside it."""
        found = None
        for node in self.graph.nodes:
            around = node.meta.get("nn_module_stack") or {}
            paths = [str(v[0] if isinstance(v, tuple) else k) for k, v in around.items()]
            paths.append(str(node.target) if node.op == "call_module" else "")
            if stage in paths and node in self.shapes:
                found = node
        return found


def call(node: fx.Node, modules: Mapping[str, nn.Module], args: Any, kwargs: Any) -> Any:
    """Run one node of a graph."""
    if node.op == "call_module":
        return modules[str(node.target)](*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    return node.target(*args, **kwargs)  # type: ignore[operator]


def make_plan(net: nn.Module, x: Tensor, stage: str | None = None) -> Plan:
    """The plan of a net in evaluation mode for pictures like x (1, C, H, W), with its clean values.

    The output of `stage` is kept, too.

    Raises:
        StriateError: the forward pass cannot be followed, or writes in place where that cannot be followed.
    """
    root = getattr(net, "tapped", net)
    try:
        graph = fx.Tracer().trace(root)
    except (*FAILURES, StriateError):
        graph = traced(root)
    with torch.no_grad():
        return _Planner(root, graph).plan(x, stage)


class _Planner:
    """Runs the clean pass node by node and sorts the nodes into steps and rest."""

    def __init__(self, root: nn.Module, graph: fx.Graph) -> None:
        self.root, self.graph, self.modules = root, graph, dict(root.named_modules())
        self.clean: dict[fx.Node, Any] = {}
        # What depends on the picture at all, and what of it lies in boxes.
        self.depends: set[fx.Node] = set()
        self.boxed: dict[fx.Node, Step | None] = {}
        # After an operation in place, its target stands for what it has overwritten.
        self.now: dict[fx.Node, fx.Node] = {}
        self.same: dict[fx.Node, fx.Node] = {}
        self.views: set[fx.Node] = set()

    def plan(self, x: Tensor, stage: str | None) -> Plan:
        nodes = list(self.graph.nodes)
        picture = next(node for node in nodes if node.op == "placeholder")
        plan = Plan(self.graph, self.modules, picture, picture)
        for node in nodes:
            if node.op == "placeholder":
                self.clean[node] = x if node is picture else (node.args[0] if node.args else None)
                if node is picture:
                    self.boxed[node] = None
                    self.depends.add(node)
            elif node.op == "get_attr":
                self.clean[node] = operator.attrgetter(str(node.target))(self.root)
            elif node.op == "output":
                if not isinstance(node.args[0], fx.Node):
                    raise StriateError("the net gives more than one output")
                plan.result = self._now(node.args[0])
            else:
                self._visit(node, plan)
        self._finish(plan, stage)
        return plan

    def _now(self, node: fx.Node) -> fx.Node:
        return self.now.get(node, node)

    def _visit(self, node: fx.Node, plan: Plan) -> None:
        args, kwargs = (fx.node.map_arg(part, self._now) for part in (node.args, node.kwargs))
        sources = [self._now(n) for n in node.all_input_nodes]
        follows = any(n in self.depends for n in sources)
        if node.op == "call_function" and node.target is check_input:
            self.clean[node] = None
            return
        numbers = fx.node.map_arg((args, kwargs), lambda n: self.clean[n])
        step = self._step(node, numbers[0], numbers[1], args, kwargs) if follows else None
        self._run(node, args, kwargs, whole=step is None)
        if not follows:
            return
        self.depends.add(node)
        value = self.clean[node]
        if step is not None and isinstance(value, Tensor) and value.ndim == 4 and len(value) == 1:
            self.boxed[node] = step
            plan.steps.append(step)
        else:
            plan.rest.append((node, args, kwargs))

    def _run(self, node: fx.Node, args: Any, kwargs: Any, *, whole: bool) -> None:
        """The clean value, on copies of what it reads: an operation in place is seen, and does no harm.

        Behind the boxes (`whole`) tensors are contiguous, as the net's own code may ask for.
        """
        layout = torch.contiguous_format if whole else torch.preserve_format
        copies: dict[fx.Node, Tensor] = {}

        def read(n: fx.Node) -> Any:
            value = self.clean[n]
            if isinstance(value, Tensor) and n in self.depends:
                return copies.setdefault(n, value.clone(memory_format=layout))
            return value

        given = fx.node.map_arg((args, kwargs), read)
        versions = {n: copy._version for n, copy in copies.items()}
        value = call(node, self.modules, *given)
        self.clean[node] = value
        for n, copy in copies.items():
            if copy._version != versions[n]:
                self._overwritten(n, node)
            elif isinstance(value, Tensor) and value is copy:
                self.same[node] = self.same.get(n, n)
            elif isinstance(value, Tensor) and value._base is copy:
                self.views.add(node)

    def _overwritten(self, n: fx.Node, node: fx.Node) -> None:
        root = self.same.get(n, n)
        if n in self.views or root in self.views or any(self._base(v) is root for v in self.views):
            raise StriateError(f"the net overwrites a part of a tensor in place ({node.name})")
        for other in [root, *(m for m, first in self.same.items() if first is root)]:
            self.now[other] = node
        for other, target in list(self.now.items()):
            if target is n:
                self.now[other] = node

    def _base(self, view: fx.Node) -> fx.Node:
        first = view.all_input_nodes[0]
        return self.same.get(first, first)

    def _finish(self, plan: Plan, stage: str | None) -> None:
        """Keep the clean values that are read again, and find where the boxes end."""
        shape_only = {node for node, _, _ in plan.rest if asks_shape(node)}
        read: dict[fx.Node, None] = {}
        for node, args, kwargs in plan.rest:
            if node not in shape_only:
                fx.node.map_arg((args, kwargs), lambda n: read.setdefault(n))
        read.setdefault(plan.result)
        plan.edges = [n for n in read if n in self.boxed]
        wanted = {*plan.edges, *(s for step in plan.steps for s in step.sources), plan.picture}
        for node, _, _ in plan.rest:
            wanted |= {n for n in node.all_input_nodes if n in self.boxed}
        plan.shapes = {n: tuple(v.shape) for n, v in self.clean.items() if isinstance(v, Tensor)}
        if stage is not None:
            plan.watched = plan.stage_node(stage)
            if plan.watched is not None:
                wanted.add(plan.watched)
                plan.watched_clean = self.clean[plan.watched]
        plan.kept = {n: Kept(self.clean[n].detach()) for n in self.boxed if n in wanted}
        for node in list(self.clean):
            if node in self.depends:
                del self.clean[node]
        plan.constants = self.clean

    # ------------------------------------------------------------ what can be redone on boxes

    def _step(self, node: fx.Node, args: Any, kwargs: Any, sources: Any, named: Any) -> Step | None:
        """The step of a node, or None where it must be done on whole maps."""
        read: dict[fx.Node, None] = {}
        fx.node.map_arg((sources, named), lambda n: read.setdefault(n))
        maps = [n for n in read if n in self.boxed]
        if not maps or any(n in self.depends and n not in self.boxed for n in read):
            return None
        module = self.modules.get(str(node.target)) if node.op == "call_module" else None
        target = node.target if module is None else module
        if _is_point(node, module) or (target in JOINED and _dim(args, kwargs) == 1):
            if any(_has_places(self.clean[n]) for n in read if n not in self.boxed):
                return None
            if len({self.clean[n].shape[-2:] for n in maps}) > 1:
                return None
            joins = target in JOINED and tuple(sources[0]) == tuple(maps)
            return Step(node, tuple(maps), self._pointwise(node, maps, sources, named), joins=joins)
        if len(maps) > 1 or not args or args[0] is not self.clean[maps[0]]:
            return None
        if node.target is operator.getitem and _takes_channels(args[1]):
            return Step(node, tuple(maps), self._pointwise(node, maps, sources, named))
        x = self.clean[maps[0]]
        if x.ndim != 4:
            return None
        made = sliding(target, x, args, kwargs)
        return None if made is None else Step(node, tuple(maps), **made)

    def _pointwise(
        self, node: fx.Node, maps: Sequence[fx.Node], args: Any, kwargs: Any
    ) -> Callable[..., Tensor]:
        def run(*values: Tensor) -> Tensor:
            by_node = dict(zip(maps, values, strict=True))
            given = fx.node.map_arg((args, kwargs), lambda n: by_node[n] if n in by_node else constants[n])
            result: Tensor = call(node, self.modules, *given)
            return result

        constants = self.clean
        return run


def _is_point(node: fx.Node, module: nn.Module | None) -> bool:
    if module is not None:
        norm = type(module) is nn.BatchNorm2d and module.running_mean is not None and not module.training
        return norm or (type(module) in POINT_MODULES and not module.training)
    if node.op == "call_method":
        return str(node.target) in POINT_METHODS
    if node.target is F.batch_norm:
        return not (node.args[5:6] == (True,) or node.kwargs.get("training"))
    if node.target in (F.dropout, F.dropout2d):
        given = {**dict(zip(("input", "p", "training"), node.args, strict=False)), **node.kwargs}
        return given.get("training", True) is False
    return node.target in POINT_FUNCTIONS


def asks_shape(node: fx.Node) -> bool:
    """Whether a node reads a tensor's shape or kind, not its values."""
    if node.op == "call_method":
        return str(node.target) in SHAPE_METHODS
    return node.target is getattr and node.args[1] in ("shape", "ndim", "dtype", "device")


def _has_places(value: Any) -> bool:
    """Whether a constant differs between the positions of a map."""
    return isinstance(value, Tensor) and value.ndim >= 2 and math.prod(value.shape[-2:]) > 1


def _takes_channels(index: Any) -> bool:
    """Whether x[index] takes channels alone."""
    parts = index if isinstance(index, tuple) else (index,)
    return (
        2 <= len(parts) <= 4
        and all(isinstance(part, slice) for part in parts)
        and all(part == slice(None) for i, part in enumerate(parts) if i != 1)
    )


def _dim(args: Any, kwargs: Any) -> int:
    dim = args[1] if len(args) > 1 else kwargs.get("dim", kwargs.get("axis", 0))
    return dim + 4 if isinstance(dim, int) and dim < 0 else int(dim)
