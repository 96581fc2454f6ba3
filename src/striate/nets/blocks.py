"""What a drawing of a net shows: blocks in order, repeated ones once, and the branches inside of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from torch import nn

from striate.core.errors import StriateError
from striate.nets.cost import Cost, cost
from striate.nets.describe import describe, role
from striate.nets.graph import Step, steps
from striate.nets.net import Size
from striate.nets.taps import places
from striate.nets.tracker import BETWEEN

# Roles that get a block of their own; the others are stripes on the block before them.
SOLID = ("convolution", "connected", "pool", "sum", "branches", "several")
JOINS = {
    "add": "+", "iadd": "+", "sum": "+", "mul": "×", "imul": "×", "sub": "−", "cat": "concat",
    "concat": "concat", "concatenate": "concat", "stack": "concat",
}  # fmt: skip


@dataclass(frozen=True)
class Block:
    """One block of a drawing: a stage, or several equal ones after each other.

    role: what it is for (`SOLID`, or "input"); stripes: the roles of the layers that follow it and keep its
    shape; names: of the stages, stripes left out.
    """

    names: tuple[str, ...]
    role: str
    text: str
    shape: tuple[int, ...]
    before: tuple[int, ...]
    parameters: int = 0
    multiply_adds: int = 0
    stripes: tuple[str, ...] = ()
    inside: Inside | None = None

    @property
    def depth(self) -> int:
        """The number of maps, or of units."""
        return self.shape[0] if self.shape else 1

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of the map; 1 and 1 of a vector."""
        return (self.shape[1], self.shape[2]) if len(self.shape) == 3 else (1, 1)

    @property
    def label(self) -> str:
        """The stage's name, or the first and the last of several with their number."""
        if len(self.names) == 1:
            return self.names[0]
        return f"{self.names[0]} … {self.names[-1]}"

    @property
    def short_label(self) -> str:
        """The label with the part that first and last name share said once: res4b–f."""
        first, last = self.names[0], self.names[-1]
        if len(self.names) == 1:
            return first
        shared = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
        while shared and last[shared : shared + 1].isdigit() and first[shared - 1].isdigit():
            shared -= 1
        return f"{first}–{last[shared:]}"


@dataclass(frozen=True)
class Node:
    """One box, join ("+", "concat") or end ("in", "out") inside a stage; `inputs` are numbers of nodes."""

    role: str
    text: str
    shape: tuple[int, ...]
    inputs: tuple[int, ...]
    stripes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Inside:
    """The layers of one stage as a graph: the first node is what comes in, the last what goes out."""

    nodes: tuple[Node, ...] = field(default=())

    @property
    def joins(self) -> tuple[str, ...]:
        """The texts of the nodes in which branches meet."""
        return tuple(node.text for node in self.nodes if node.role == "join")


def blocks(net: nn.Module, size: Size | None = None) -> tuple[tuple[Block, ...], Cost]:
    """The blocks of a net for pictures of `size` (its own if None), the picture first; and its cost.

    Raises:
        StriateError: the net cannot take such a picture.
    """
    table = cost(net, size, training=False)
    try:
        found = steps(net, size)
    except StriateError:
        # A forward pass that cannot be followed is drawn without its branches.
        found = ()
    modules = places(net)
    shape: tuple[int, ...] = (table.in_channels, *table.size)
    made = [Block(("input",), "input", "", shape, shape)]
    for place, name in enumerate(table.stage):
        if name == BETWEEN:
            continue
        module = modules[name]
        inside = _inside(name, found) if _several(module) else None
        kind, text = _role(module, inside), table.layer[place]
        stripes: tuple[str, ...] = ()
        if inside is not None and len(inside.nodes) == 3:
            # One layer with what follows it needs no picture of its inside.
            only = inside.nodes[1]
            kind, text, stripes, inside = only.role, only.text, only.stripes, None
        if kind in SOLID and table.shape[place]:
            made.append(
                Block(
                    (name,), kind, text, table.shape[place], shape, table.parameters[place],
                    table.multiply_adds[place], stripes, inside,
                )
            )  # fmt: skip
        elif kind != "shape":
            made[-1] = replace(made[-1], stripes=(*made[-1].stripes, kind))
        shape = table.shape[place]
    return _gathered(made), table


def _several(module: nn.Module) -> bool:
    """Whether a module is more than one layer."""
    return sum(1 for part in module.modules() if not any(True for _ in part.children())) > 1


def _role(module: nn.Module, inside: Inside | None) -> str:
    if not _several(module):
        leaf = next(part for part in module.modules() if not any(True for _ in part.children()))
        return role(leaf)
    if inside is None:
        return "several"
    joins = inside.joins
    return "branches" if "concat" in joins else "sum" if joins else "several"


def _gathered(made: Sequence[Block]) -> tuple[Block, ...]:
    """Equal stages of several layers after each other become one block."""
    kept: list[Block] = []
    for block in made:
        last = kept[-1] if kept else None
        if (
            last is not None
            and block.inside is not None
            and replace(last, names=(), multiply_adds=0, parameters=0, before=())
            == replace(block, names=(), multiply_adds=0, parameters=0, before=())
            and last.shape == block.before
            and last.before == block.before
        ):
            kept[-1] = replace(
                last,
                names=(*last.names, *block.names),
                parameters=last.parameters + block.parameters,
                multiply_adds=last.multiply_adds + block.multiply_adds,
            )
        else:
            kept.append(block)
    return tuple(kept)


def _inside(stage: str, found: Sequence[Step]) -> Inside | None:
    """The graph of one stage; None where its steps are not known, or it has not one way in and out."""
    own = [step for step in found if step.stage == stage]
    if not own:
        return None
    names = {step.name for step in own}
    shapes = {step.name: step.shape for step in found}
    outer = [source for step in own for source in step.inputs if source not in names and shapes[source]]
    if len(set(outer)) != 1:
        return None
    users: dict[str, int] = {}
    for step in found:
        for source in step.inputs:
            users[source] = users.get(source, 0) + 1
    nodes = [Node("in", "", shapes[outer[0]], ())]
    at = {outer[0]: 0}
    for step in own:
        inputs = tuple(dict.fromkeys(at[source] for source in step.inputs if source in at))
        kind, text = _kind(step, inputs)
        if kind == "stripe":
            last = inputs[0]
            node = nodes[last]
            shared = users[step.inputs[0]] > 1 or node.role == "in"
            if shared:
                nodes.append(Node("plain", text or step.target, step.shape, inputs))
                at[step.name] = len(nodes) - 1
                continue
            if text:
                nodes[last] = replace(node, stripes=(*node.stripes, text), shape=step.shape)
            at[step.name] = last
        elif kind == "skip":
            at[step.name] = inputs[0] if inputs else 0
        else:
            nodes.append(Node(kind, text, step.shape, inputs))
            at[step.name] = len(nodes) - 1
    nodes.append(Node("out", "", nodes[at[own[-1].name]].shape, (at[own[-1].name],)))
    return Inside(tuple(nodes))


def _kind(step: Step, inputs: tuple[int, ...]) -> tuple[str, str]:
    """What a step is inside a stage: a box with its text, a join, a stripe with its role, or nothing."""
    if step.module is None:
        if step.target in JOINS and len(step.inputs) > 1:
            return "join", JOINS[step.target]
        return ("stripe", "other") if step.shape and inputs else ("skip", "")
    kind = role(step.module)
    if kind in ("convolution", "connected", "pool"):
        return kind, describe(step.module)
    if isinstance(step.module, nn.Identity):
        return "skip", ""
    return "stripe", "" if kind == "shape" else kind
