"""Many changed copies of one picture through a net, redoing only what the change can have touched.

Each stage's clean maps are kept. For every copy, the box of a map that can differ from the clean one follows
from the box before it and the operation's window, so that only this box is computed, on input gathered from
the clean map and the box before. From the first operation that looks at the whole map on, the net is run as
usual. Results are those of the full pass up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from striate.visualize.boxes import Boxes, Ints, Kept, Span, gather, joined, shrunk, span, whole, within
from striate.visualize.difference import linear_difference
from striate.visualize.plan import Plan, Step, call, make_plan

# Copies redone together, and the bytes that their whole maps and later stages may take.
CHUNK = 32
REST_BYTES = 192_000_000
BOX_BYTES = 96_000_000
# Differences up to this part of a map's largest value are rounding: boxes shrink to what is above it.
ROUNDING = 1e-6
# Rows of a box are then one piece of memory, and convolutions and pools take channels at once.
LAYOUT = torch.channels_last


@dataclass
class Patches:
    """Where each of k copies differs from the clean picture: squares of `side` at rows `y`, columns `x`.

    `source` (1, C, H, W) is the picture that shows through the squares, `clean` the one around them.
    """

    clean: Tensor
    source: Tensor
    y: Ints
    x: Ints
    side: int

    def __len__(self) -> int:
        return len(self.y)

    def some(self, chosen: Ints) -> Patches:
        """Some of the copies."""
        return Patches(self.clean, self.source, self.y[chosen], self.x[chosen], self.side)

    def boxes(self, chosen: Ints) -> Boxes:
        """The squares of the chosen copies."""
        y, x = Span(self.y[chosen], self.side), Span(self.x[chosen], self.side)
        return Boxes(gather(self.source[0], y, x), y, x)

    def pictures(self, chosen: Ints) -> Tensor:
        """The chosen copies as a whole, (k, C, H, W)."""
        return whole(Kept(self.clean), self.boxes(chosen))


@dataclass
class Outcome:
    """What the net makes of each copy: outputs (k, K); total of each one's watched map (k,), or None.

    multiply_adds: those done for one copy, mean over all of them, in boxes and after them.
    """

    outputs: Tensor
    totals: Tensor | None
    multiply_adds: float


class Incremental:
    """A net's pass for changed copies of one picture.

    stage: one whose maps are to be watched.
    shrink: measure the boxes, where that saves enough: changes that end in a ReLU or lose against a maximum
    are gone exactly, and what differs by no more than rounding does not count.

    Raises:
        StriateError: the net's forward pass cannot be followed.
    """

    def __init__(
        self, net: nn.Module, clean: Tensor, *, stage: str | None = None, shrink: bool = True
    ) -> None:
        self.plan: Plan = make_plan(net, clean.contiguous(memory_format=LAYOUT), stage)
        self.clean, self.shrink = clean, shrink
        self._readers = {source for step in self.plan.steps if step.windows for source in step.sources}
        self._scale = {n: ROUNDING * float(k.value.abs().max()) for n, k in self.plan.kept.items()}
        self._saved: dict[fx.Node, list[float]] = {}
        self._last_use = self._uses()
        self._linear = linear_difference(self.plan)
        self.rest_macs = sum(_work(node, self.plan) for node, _, _ in self.plan.rest)

    def run(self, patches: Patches, channel: int | None = None) -> Outcome:
        """Outputs for every copy, and the totals of map `channel` of the watched stage."""
        count = len(patches)
        node = self.plan.watched
        watch = None if node is None or channel is None else (node, channel)
        outputs: Tensor | None = None
        totals = torch.zeros(count) if watch else None
        work, waiting, held = 0.0, [], 0
        chunks = list(self.chunks(patches))
        for number, chosen in enumerate(chunks):
            edges, done = self._boxes(patches, chosen, watch, totals)
            work += done
            waiting.append((chosen, edges))
            held += sum(t.nbytes for t in edges.values())
            if held * 2 < REST_BYTES and number + 1 < len(chunks):
                continue
            together = np.concatenate([part for part, _ in waiting])
            joined = {n: torch.cat([found[n] for _, found in waiting]) for n in edges}
            result, done_after = self._rest(joined, len(together), watch, totals, together)
            work += done_after * len(together)
            if outputs is None:
                outputs = result.new_empty((count, *result.shape[1:]))
            outputs[torch.from_numpy(together)] = result
            waiting, held = [], 0
        assert outputs is not None  # there is at least one copy
        return Outcome(outputs, totals, work / count)

    def predicted(self, patches: Patches) -> float:
        """Multiply-adds for one copy by receptive fields alone, mean over all copies."""
        work, touched, linear = 0, 0, self._linear
        for chosen in self.chunks(patches):
            spans = self._spans(patches.y[chosen], patches.x[chosen], patches.side)
            for step in self.plan.steps:
                y, x = spans[step.node]
                work += step.macs * y.length * x.length * len(chosen)
            if linear is not None:
                y, x = spans[linear.edge]
                touched += y.length * x.length * len(chosen)
        if linear is not None and linear.pays(touched, len(patches)):
            work += linear.macs(touched) - linear.macs(linear.places * len(patches))
        return work / len(patches) + self.rest_macs

    def full_macs(self) -> int:
        """Multiply-adds of the full pass, for one copy."""
        shapes = self.plan.shapes
        boxes = sum(s.macs * shapes[s.node][2] * shapes[s.node][3] for s in self.plan.steps if s.macs)
        return boxes + self.rest_macs

    def chunks(self, patches: Patches) -> Iterator[Ints]:
        """The copies in groups whose boxes are of like size, so that little is computed in vain."""
        high, wide = (self._lengths(s, a, patches.side) for a, s in enumerate((patches.y, patches.x)))
        order = np.lexsort((patches.x, patches.y, wide, high))
        most = max(1, min(CHUNK, BOX_BYTES // max(1, self._largest(patches))))
        for level in np.unique(high):
            group = order[high[order] == level]
            yield from np.array_split(group, -(-len(group) // most))

    # ------------------------------------------------------------ geometry

    def _spans(self, y: Ints, x: Ints, side: int) -> dict[fx.Node, tuple[Span, Span]]:
        """The boxes of every step by receptive fields."""
        found = {self.plan.picture: (Span(y, side), Span(x, side))}
        for step in self.plan.steps:
            sources = [found[source] for source in step.sources]
            if step.windows:
                down, across = (w.touched(s) for w, s in zip(step.windows, sources[0], strict=True))
            else:
                room = self.plan.shapes[step.node][-2:]
                down, across = (_union([s[a] for s in sources], room[a]) for a in (0, 1))
            found[step.node] = down, across
        return found

    def _lengths(self, starts: Ints, axis: int, side: int) -> Ints:
        """For each copy, the length of its box along an axis at the last step that multiplies."""
        deepest = [step.node for step in self.plan.steps if step.macs][-1:] or [self.plan.picture]
        distinct, place = np.unique(starts, return_inverse=True)
        found = [self._spans(np.array([s]), np.array([s]), side)[deepest[0]][axis].length for s in distinct]
        return np.array(found)[place]

    def _largest(self, patches: Patches) -> int:
        """Bytes of the largest box of one copy, and what its window reads."""
        middle = np.array([self.clean.shape[2] // 2]), np.array([self.clean.shape[3] // 2])
        y, x = (np.minimum(m, s.max()) for m, s in zip(middle, (patches.y, patches.x), strict=True))
        spans = self._spans(y, x, patches.side)
        size = self.clean.element_size()
        return max(self.plan.shapes[n][1] * a.length * b.length * size for n, (a, b) in spans.items())

    def _uses(self) -> dict[fx.Node, int]:
        """For each step the number of the last step that reads it."""
        last = {}
        for number, step in enumerate(self.plan.steps):
            for source in step.sources:
                last[source] = number
        return last

    # ------------------------------------------------------------ work

    def _boxes(
        self, patches: Patches, chosen: Ints, watch: tuple[fx.Node, int] | None, totals: Tensor | None
    ) -> tuple[dict[fx.Node, Tensor], int]:
        """The maps at which boxes end, whole, and the multiply-adds done."""
        found = {self.plan.picture: patches.boxes(chosen)}
        edges: dict[fx.Node, Tensor] = {}
        work = 0
        for number, step in enumerate(self.plan.steps):
            boxes = self._one(step, [found[s] for s in step.sources])
            work += step.macs * boxes.y.length * boxes.x.length * len(chosen)
            if watch and totals is not None and step.node is watch[0]:
                totals[torch.from_numpy(chosen)] = self._total(step.node, boxes, watch[1])
            if self.shrink and step.node in self._readers:
                boxes = self._measured(step.node, boxes)
            found[step.node] = boxes
            if step.node in self.plan.edges:
                edges[step.node] = whole(self.plan.kept[step.node], boxes)
            for source in step.sources:
                if self._last_use[source] == number:
                    found.pop(source, None)
        if self.plan.picture in self.plan.edges:
            edges[self.plan.picture] = patches.pictures(chosen)
        return edges, work

    def _one(self, step: Step, sources: Sequence[Boxes]) -> Boxes:
        """One step for all copies of a chunk."""
        first, kept = sources[0], self.plan.kept
        if step.windows is None:
            if len(sources) == 1:
                return Boxes(step.run(first.values), first.y, first.x)
            room = self.plan.shapes[step.node][-2:]
            y, x = _union([s.y for s in sources], room[0]), _union([s.x for s in sources], room[1])
            maps = [kept[n].value[0] for n in step.sources]
            if step.joins:
                return Boxes(joined(maps, sources, y, x), y, x)
            parts = [within(m, s, y, x) for m, s in zip(maps, sources, strict=True)]
            return Boxes(step.run(*parts), y, x)
        down, across = step.windows
        y, x = down.touched(first.y), across.touched(first.x)
        rows, columns = down.needed(y), across.needed(x)
        sides = (down.before, down.after, across.before, across.after)
        padded = kept[step.sources[0]].padded(sides, step.fill)
        result = step.run(within(padded, first, rows, columns, down.before, across.before))
        if step.scale is not None:
            result = result * gather(step.scale[0], y, x)
        return Boxes(result, y, x)

    def _measured(self, node: fx.Node, boxes: Boxes) -> Boxes:
        """The boxes, shrunk where that has saved something so far."""
        saved = self._saved.setdefault(node, [])
        if len(saved) >= 3 and sum(saved) / len(saved) < 0.1 and len(saved) % 8:
            saved.append(sum(saved) / len(saved))
            return boxes
        smaller = shrunk(self.plan.kept[node], boxes, self._scale[node])
        saved.append(1 - smaller.y.length * smaller.x.length / (boxes.y.length * boxes.x.length))
        return smaller

    def _total(self, node: fx.Node, boxes: Boxes, channel: int) -> Tensor:
        """The total activation of one map for each copy."""
        clean = self.plan.kept[node].value[0, channel : channel + 1]
        before = gather(clean, boxes.y, boxes.x)[:, 0]
        change = (boxes.values[:, channel].double() - before.double()).sum((1, 2))
        return (float(clean.double().sum()) + change).float().cpu()

    def _rest(
        self,
        edges: dict[fx.Node, Tensor],
        count: int,
        watch: tuple[fx.Node, int] | None,
        totals: Tensor | None,
        chosen: Ints,
    ) -> tuple[Tensor, float]:
        """The nodes after the boxes, as the net has them, and the multiply-adds of one copy."""
        values: dict[fx.Node, object] = dict(edges)
        work, linear = float(self.rest_macs), self._linear
        if linear is not None:
            found = linear.apply(edges[linear.edge], self._scale[linear.edge])
            if found is not None:
                values[linear.node], saved = found[0], _work(linear.node, self.plan)
                work += found[1] - saved

        def read(node: fx.Node) -> Any:
            if node in values:
                return values[node]
            if node in self.plan.kept:
                kept = self.plan.kept[node].value.contiguous()
                return kept.expand(count, *kept.shape[1:])
            return self.plan.constants[node]

        for node, args, kwargs in self.plan.rest:
            if node not in values:
                given = fx.node.map_arg((args, kwargs), read)
                values[node] = call(node, self.plan.modules, *given)
            if watch and totals is not None and node is watch[0]:
                maps = values[node]
                assert isinstance(maps, Tensor)
                totals[torch.from_numpy(chosen)] = maps[:, watch[1]].sum((1, 2)).float().cpu()
        result = values[self.plan.result]
        assert isinstance(result, Tensor)
        return result, work


def _union(spans: Sequence[Span], room: int) -> Span:
    """Spans that hold all of the given ones."""
    if all(s == spans[0] for s in spans[1:]):
        return spans[0]
    low = np.min([s.start for s in spans], axis=0)
    return span(low, np.max([s.end for s in spans], axis=0), room)


def _work(node: fx.Node, plan: Plan) -> int:
    """Multiply-adds of a node after the boxes, for one copy: those of its weights, if it has any."""
    shape = plan.shapes.get(node, ())
    weight = getattr(plan.modules.get(str(node.target)), "weight", None) if node.op == "call_module" else None
    if node.op == "call_function" and len(node.args) > 1 and isinstance(node.args[1], fx.Node):
        weight = plan.constants.get(node.args[1])
    if not isinstance(weight, Tensor) or weight.ndim not in (2, 4) or len(shape) < 2:
        return 0
    places = math.prod(shape[2:]) if weight.ndim == 4 else math.prod(shape[1:-1])
    return weight.numel() * places
