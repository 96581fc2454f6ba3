"""A pass with gradients in little memory: segments that are run again, strip by strip, on the way back.

The values and gradients are those of the whole pass: a strip takes as many more rows of its input as its
windows see, pads only at the border of the map, and objectives are functions of sums over positions.
Recomputing activations instead of keeping them: Chen et al. 2016 (arXiv:1604.06174).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from striate.layers import winograd
from striate.nets.net import Net
from striate.nets.taps import shadow, stepping
from striate.visualize.objectives import OUTPUT, Leaf, Place

POINTWISE = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SiLU, nn.GELU, nn.Sigmoid, nn.Tanh, nn.Softplus,
    nn.BatchNorm2d, nn.Dropout, nn.Dropout2d, nn.Identity,
)  # fmt: skip
# What the graph of one strip may hold.
STRIP = 48 * 2**20
Rows = tuple[int, int]


@dataclass
class Layer:
    """A stage: how far its windows reach along rows (kernel, stride, padding, dilation)."""

    name: str
    module: nn.Module
    window: tuple[int, int, int, int] = (1, 1, 0, 1)
    kind: str = "point"
    height: int = 0

    def needed(self, rows: Rows) -> Rows:
        """The input rows that these output rows see; they may lie in the padding."""
        kernel, stride, padding, dilation = self.window
        return rows[0] * stride - padding, (rows[1] - 1) * stride - padding + (kernel - 1) * dilation + 1

    def run(self, x: Tensor, top: int, bottom: int) -> Tensor:
        """The stage on some rows, with `top` and `bottom` rows of padding."""
        module: Any = self.module
        if self.kind == "point":
            return module(x)  # type: ignore[no-any-return]
        sides = module.padding if isinstance(module.padding, tuple) else (module.padding, module.padding)
        if top or bottom or sides[1]:
            value = float("-inf") if self.kind == "max" else 0.0
            x = F.pad(x, (sides[1], sides[1], top, bottom), value=value)
        if self.kind == "conv":
            return winograd.run(module, x)
        if self.kind == "max":
            return F.max_pool2d(x, module.kernel_size, module.stride, 0, module.dilation)
        return F.avg_pool2d(x, module.kernel_size, module.stride, 0)


@dataclass
class Segment:
    """Stages between two maps that are held: several that go by strips, or one that goes whole."""

    layers: list[Layer]
    by_strips: bool
    entry: int = 0
    bytes: int = 0
    kept: bool = False
    wanted: set[str] = field(default_factory=set)

    @property
    def height(self) -> int:
        """Rows of the output."""
        return self.layers[-1].height

    def strips(self) -> list[Rows]:
        """Rows of the output, so that the graph of one strip stays small."""
        if not self.by_strips or self.kept or self.height < 2:
            return [(0, self.height)]
        count = min(self.height, max(1, -(-self.bytes // STRIP)))
        rows = max(1, -(-self.height // count))
        return [(low, min(low + rows, self.height)) for low in range(0, self.height, rows)]

    def plan(self, rows: Rows) -> tuple[list[Rows], list[Rows]]:
        """For a strip of the output: the rows to have before each layer and at the end, and owned after.

        Rows owned by the strips share out the map of every stage, so that sums count each position once.
        """
        owned: list[Rows] = []
        scale = 1
        for layer in reversed(self.layers):
            high = layer.height if rows[1] == self.height else min(rows[1] * scale, layer.height)
            owned.insert(0, (min(rows[0] * scale, high), high))
            scale *= layer.window[1]
        have = [rows]
        for number in range(len(self.layers) - 1, -1, -1):
            layer = self.layers[number]
            before = self.layers[number - 1].height if number else self.entry
            low, high = layer.needed(have[0])
            low, high = max(0, low), min(before, high)
            if number and self.layers[number - 1].name in self.wanted:
                own = owned[number - 1]
                low, high = min(low, own[0]), max(high, own[1])
            have.insert(0, (low, high))
        return have, owned

    def run(self, x: Tensor, rows: Rows, see: Any) -> Tensor:
        """The output rows from the input rows that `plan` asks for; `see(name, maps, first row, height)`."""
        if not self.by_strips:
            layer = self.layers[0]
            x = layer.module(x)
            if layer.name in self.wanted:
                see(layer.name, x, 0, layer.height)
            return x
        have, owned = self.plan(rows)
        for number, layer in enumerate(self.layers):
            before = self.layers[number - 1].height if number else self.entry
            low, high = layer.needed(have[number + 1])
            first, last = max(0, low), min(before, high)
            x = x[:, :, first - have[number][0] : last - have[number][0]]
            x = layer.run(x, first - low, high - last)
            if layer.name in self.wanted:
                start, end = owned[number]
                base = have[number + 1][0]
                see(layer.name, x[:, :, start - base : end - base], start, layer.height)
        return x


class Lean:
    """A net's stages up to the last that is looked at, as segments; equal to the whole pass."""

    def __init__(self, net: Net, names: Sequence[str], shape: tuple[int, ...]) -> None:
        self.names = set(names)
        order = list(net.stage_names)
        last = len(order) if OUTPUT in self.names else 1 + max(order.index(name) for name in names)
        self.last = order[last - 1]
        self.segments: list[Segment] = []
        kind = next((p.dtype for p in net.parameters() if p.is_floating_point()), torch.float32)
        x = torch.empty((1, *shape[1:]), device="meta", dtype=kind)
        fresh = True
        for name in order[:last]:
            module = net.get_submodule(name)
            layer = described(name, module)
            entry = x.shape[2] if x.ndim == 4 else 1
            x, weight = measured(module, x)
            by_strips = layer is not None and x.ndim == 4
            layer = layer or Layer(name, module, kind="whole")
            layer.height = x.shape[2] if x.ndim == 4 else 1
            if not by_strips or fresh:
                self.segments.append(Segment([], by_strips, entry))
            segment = self.segments[-1]
            segment.layers.append(layer)
            segment.bytes += weight * shape[0]
            if name in self.names or (OUTPUT in self.names and name == self.last):
                segment.wanted.add(name)
            # Pools end a segment: what is held between segments is small behind them.
            fresh = not by_strips or layer.window[1] > 1

    @staticmethod
    def refuses(net: Net, names: Sequence[str]) -> str | None:
        """Why such stages cannot be read in parts, or None."""
        if type(net).forward is not Net.forward:
            return "it is not a sequence of stages"
        inner = [name for name in names if name != OUTPUT and name not in net.stage_names]
        return f"{inner[0]!r} lies inside of a stage" if inner else None

    def whole_bytes(self) -> int:
        """About what the graph of the whole pass holds."""
        return sum(segment.bytes for segment in self.segments)

    def keep(self, budget: int) -> None:
        """Keep the graphs of the last segments that fit into `budget` bytes, rather than run them again."""
        for segment in reversed(self.segments):
            segment.kept = segment.bytes <= budget
            budget -= segment.bytes if segment.kept else 0

    def forward(self, x: Tensor, leaves: Sequence[Leaf]) -> list[tuple[Tensor, Place]]:
        """The sums of each objective, without gradients."""
        sums: dict[int, tuple[Tensor, Place]] = {}
        for segment in self.segments:
            x = self._forward(segment, x, leaves, sums)
        return [sums[id(leaf)] for leaf in leaves]

    def both(self, x: Tensor, terms: Sequence[tuple[float, Leaf]], values: dict[int, Tensor]) -> Tensor:
        """The gradient with respect to x of the sum of weighted objectives; values (N,) go into `values`."""
        leaves = [leaf for _, leaf in terms]
        sums: dict[int, tuple[Tensor, Place]] = {}
        inputs: list[Tensor] = []
        graphs: dict[int, tuple[Tensor, Tensor, dict[int, Tensor]]] = {}
        for number, segment in enumerate(self.segments):
            inputs.append(x)
            if segment.kept:
                leaf_x = x.detach().requires_grad_()
                own: dict[int, Tensor] = {}
                with torch.enable_grad():
                    y = segment.run(leaf_x, (0, segment.height), _seer(leaves, own, sums, self.last))
                graphs[number], x = (leaf_x, y, own), y.detach()
            else:
                with torch.no_grad():
                    x = self._forward(segment, x, leaves, sums)
        signals = _signals(terms, sums, values)
        del x
        gradient: Tensor | None = None
        for number in range(len(self.segments) - 1, -1, -1):
            given = inputs.pop()
            if number in graphs:
                leaf_x, y, own = graphs.pop(number)
                gradient = _pull(leaf_x, y, gradient, own, signals)
            else:
                gradient = self._backward(self.segments[number], given, gradient, leaves, signals)
        assert gradient is not None  # there is at least one segment
        return gradient

    def _forward(
        self, segment: Segment, x: Tensor, leaves: Sequence[Leaf], sums: dict[int, tuple[Tensor, Place]]
    ) -> Tensor:
        whole: Tensor | None = None
        strips = segment.strips()
        for rows in strips:
            own: dict[int, Tensor] = {}
            low, high = segment.plan(rows)[0][0] if segment.by_strips else (0, segment.entry)
            part = x[:, :, low:high] if segment.by_strips else x
            y = segment.run(part, rows, _seer(leaves, own, sums, self.last))
            if len(strips) == 1:
                return y
            if whole is None:
                last = y.ndim == 4 and y.is_contiguous(memory_format=torch.channels_last)
                layout = torch.channels_last if last else torch.contiguous_format
                shape = (*y.shape[:2], segment.height, *y.shape[3:])
                whole = torch.empty(shape, dtype=y.dtype, device=y.device, memory_format=layout)
            whole[:, :, rows[0] : rows[1]] = y
        assert whole is not None  # there is at least one strip
        return whole

    def _backward(
        self,
        segment: Segment,
        given: Tensor,
        above: Tensor | None,
        leaves: Sequence[Leaf],
        signals: dict[int, Tensor],
    ) -> Tensor:
        below = torch.zeros_like(given)
        for rows in segment.strips():
            low, high = segment.plan(rows)[0][0] if segment.by_strips else (0, segment.entry)
            part = given[:, :, low:high] if segment.by_strips else given
            x = part.detach().clone().requires_grad_()
            own: dict[int, Tensor] = {}
            with torch.enable_grad():
                y = segment.run(x, rows, _seer(leaves, own, {}, self.last))
            signal = above
            if above is not None and segment.by_strips:
                signal = above[:, :, rows[0] : rows[1]]
            pulled = _pull(x, y, signal, own, signals)
            if segment.by_strips:
                below[:, :, low:high] += pulled
            else:
                below += pulled
        return below


def _seer(
    leaves: Sequence[Leaf], own: dict[int, Tensor], sums: dict[int, tuple[Tensor, Place]], last: str
) -> Any:
    """A function that adds what the objectives gather, with its graph to `own` and as numbers to `sums`."""

    def see(name: str, maps: Tensor, first: int, height: int) -> None:
        if maps.ndim == 2:
            maps = maps[:, :, None, None]
        place = Place(first, 0, height, maps.shape[3])
        for leaf in leaves:
            if leaf.where() == name or (leaf.where() == OUTPUT and name == last):
                part = leaf.gather(maps, place)
                own[id(leaf)] = part
                whole = Place(0, 0, height, maps.shape[3])
                old = sums.get(id(leaf))
                added = part.detach() if old is None else old[0] + part.detach()
                sums[id(leaf)] = (added, whole)

    return see


def _signals(
    terms: Sequence[tuple[float, Leaf]],
    sums: dict[int, tuple[Tensor, Place]],
    values: dict[int, Tensor],
) -> dict[int, Tensor]:
    """d (weighted sum of values) / d sums of each objective; the values (N,) go into `values`."""
    signals: dict[int, Tensor] = {}
    for weight, leaf in terms:
        gathered, place = sums[id(leaf)]
        x = gathered.detach().requires_grad_()
        with torch.enable_grad():
            value = leaf.score(x, place)
            signal = torch.autograd.grad(weight * value.sum(), x)[0]
        values[id(leaf)] = value.detach()
        signals[id(leaf)] = signals[id(leaf)] + signal if id(leaf) in signals else signal
    return signals


def _pull(
    x: Tensor, y: Tensor, above: Tensor | None, own: dict[int, Tensor], signals: dict[int, Tensor]
) -> Tensor:
    """The signal at x from that at y and from the objectives on the way."""
    outputs = [part for part in own.values() if part.requires_grad]
    given: list[Tensor | None] = [signals[key] for key, part in own.items() if part.requires_grad]
    if above is not None and y.requires_grad:
        outputs.append(y)
        given.append(above)
    if not outputs:
        return torch.zeros_like(x)
    return torch.autograd.grad(outputs, x, given, allow_unused=True)[0]


def described(name: str, module: nn.Module) -> Layer | None:
    """How a stage goes by strips of rows; None where it must have the whole map."""
    if type(module) in POINTWISE:
        return Layer(name, module)
    kind = {nn.Conv2d: "conv", nn.MaxPool2d: "max", nn.AvgPool2d: "avg"}.get(type(module))
    if kind is None:
        return None
    layer: Any = module
    if isinstance(layer.padding, str) or getattr(layer, "padding_mode", "zeros") != "zeros":
        return None
    kernel, stride, padding, dilation = (
        value[0] if isinstance(value, tuple) else int(value)
        for value in (layer.kernel_size, layer.stride, layer.padding, getattr(layer, "dilation", 1))
    )
    if getattr(layer, "ceil_mode", False) or getattr(layer, "return_indices", False):
        return None
    if kind == "avg" and (padding or layer.divisor_override):
        return None
    return Layer(name, module, (kernel, stride, padding, dilation), kind)


def measured(module: nn.Module, x: Tensor) -> tuple[Tensor, int]:
    """The output of a stage without numbers, and about the bytes that its graph holds."""
    copied = shadow(module)
    held = [0]
    names = [name for name, part in copied.named_modules() if name and not list(part.children())]

    def leave(_: str, output: Any) -> None:
        held[0] += output.numel() if isinstance(output, Tensor) else 0

    with torch.no_grad(), stepping(copied, names, leave=leave):
        y: Tensor = copied(x)
    # Max pools keep the positions of their winners, in 8 bytes each.
    own = y.numel() * (3 if isinstance(module, nn.MaxPool2d) else 1)
    return y, 4 * max(own, held[0])
