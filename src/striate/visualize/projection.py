"""Signals of many units of a stage run back to the picture, each within its own receptive field only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, fx

from striate.core.errors import StriateError
from striate.nets.taps import capture
from striate.visualize.boxes import Boxes, Ints, Span, gather, span
from striate.visualize.method import must_be_numbers
from striate.visualize.plan import Plan, Step, make_plan
from striate.visualize.rules import backward_rule
from striate.visualize.scores import run
from striate.visualize.stages import must_be_maps
from striate.visualize.transposed import Send, sender

if TYPE_CHECKING:
    from striate.model import Model

# A unit of a stage's maps: map, row, column.
Unit = tuple[int, int, int]
# Units run back together, and the bytes that one map of all of them may take.
CHUNK = 32
LAYOUT = torch.channels_last
MOST_BYTES = 64_000_000


@dataclass(frozen=True)
class Projected:
    """One unit's signal at the picture: values (C, h, w) from row `y` and column `x` on; 0 elsewhere."""

    unit: Unit
    y: int
    x: int
    values: Tensor

    def whole(self, height: int, width: int) -> Tensor:
        """The signal (C, height, width) on the whole picture."""
        full = self.values.new_zeros((len(self.values), height, width))
        full[:, self.y : self.y + self.values.shape[1], self.x : self.x + self.values.shape[2]] = self.values
        return full


class Projector:
    """Runs units of one stage back to one picture x (1, C, H, W): one forward pass for all of them.

    maps: what the stage gives, (C, h, w). Where the net can be followed up to the stage, only the part of
    each map that lies between a unit and its receptive field is run back, many units at once; elsewhere
    each unit takes a backward pass of the net.

    Raises:
        StriateError: no such stage, or one that gives no maps.
    """

    def __init__(self, model: Model, x: Tensor, stage: str) -> None:
        self.model, self.x, self.stage = model, x, stage
        with torch.no_grad(), capture(model.net, [stage]) as seen:
            run(model, x)
        maps = must_be_maps(model, stage, seen[stage])
        must_be_numbers(maps, f"the activations of {stage!r}")
        self.maps = maps[0]
        self.plan: Plan | None = None
        try:
            plan = make_plan(model.net, x.contiguous(memory_format=LAYOUT), stage)
        except StriateError:
            return
        found = plan.watched_clean
        same = found is not None and found.shape == maps.shape
        if same and plan.watched in plan.kept and torch.allclose(found, maps, rtol=1e-3, atol=1e-6):  # type: ignore[arg-type]
            self.plan = plan

    def project(self, units: Sequence[Unit], rule: str = "deconvnet") -> Iterator[Projected]:
        """The signal of each unit at the picture, by a backward rule, from a signal of 1 at the unit.

        Raises:
            StriateError: the rule has no meaning for the net.
        """
        if self.plan is None:
            yield from self._by_passes(units, rule)
            return
        back = _Back(self.plan, rule)
        for first in range(0, len(units), back.at_once):
            some = units[first : first + back.at_once]
            boxes = back.run(some)
            must_be_numbers(boxes.values, "the signals")
            places = zip(some, boxes.y.start.tolist(), boxes.x.start.tolist(), boxes.values, strict=True)
            for unit, y, x, values in places:
                yield Projected(unit, y, x, values.float())

    def _by_passes(self, units: Sequence[Unit], rule: str) -> Iterator[Projected]:
        x = self.x.detach().requires_grad_()
        with torch.enable_grad(), capture(self.model.net, [self.stage], grad=True) as seen:
            self.model.net(x.clone())
            maps = seen[self.stage]
            for unit in units:
                channel, row, column = unit
                with backward_rule(rule):
                    # The stage's own output, not a copy: the signal starts there.
                    signal = torch.autograd.grad(
                        maps[0, channel, row, column], x, retain_graph=True, allow_unused=True
                    )[0]
                if signal is None:
                    raise StriateError(
                        f"stage {self.stage!r} does not depend on the image by any differentiable path"
                    )
                must_be_numbers(signal, "the signals")
                yield Projected(unit, 0, 0, signal[0].float())


class _Back:
    """The steps between a stage and the picture, run back on boxes."""

    def __init__(self, plan: Plan, rule: str) -> None:
        assert plan.watched is not None  # the caller has looked
        self.plan, self.rule, self.stage = plan, rule, plan.watched
        wanted, self.steps = {self.stage}, list[Step]()
        for step in reversed(plan.steps):
            if step.node in wanted:
                self.steps.append(step)
                wanted.update(step.sources)
        self._senders: dict[fx.Node, Send | None] = {}
        self.at_once = max(1, min(CHUNK, MOST_BYTES // max(1, self._largest())))

    def run(self, units: Sequence[Unit]) -> Boxes:
        """Signals of 1 at each unit, at the picture."""
        channels, rows, columns = (np.array(part, np.int64) for part in zip(*units, strict=True))
        places = self._places(rows, columns)
        clean = self.plan.kept[self.stage].value
        start = clean.new_zeros((len(units), clean.shape[1], 1, 1))
        start[torch.arange(len(units)), torch.from_numpy(channels)] = 1
        signals = {self.stage: start}
        for step in self.steps:
            signal = signals.pop(step.node)
            for source, part in zip(step.sources, self._back(step, signal, places), strict=True):
                y, x = places[source]
                if source not in signals and part.y == y and part.x == x:
                    signals[source] = part.values
                    continue
                if source not in signals:
                    shape = (len(units), part.values.shape[1], y.length, x.length)
                    signals[source] = part.values.new_zeros(shape)
                _add(signals[source], y, x, part)
        y, x = places[self.plan.picture]
        return Boxes(signals[self.plan.picture], y, x)

    def _places(self, rows: Ints, columns: Ints) -> dict[fx.Node, tuple[Span, Span]]:
        """For each step the box that units at these places depend on."""
        places = {self.stage: (Span(rows, 1), Span(columns, 1))}
        for step in self.steps:
            needs = self._needs(step, *places[step.node])
            for source in step.sources:
                places[source] = self._joined(source, needs, places.get(source))
        return places

    def _largest(self) -> int:
        """Bytes of the largest box of one unit."""
        height, width = self.plan.shapes[self.stage][-2:]
        places = self._places(np.array([height // 2]), np.array([width // 2]))
        size = self.plan.kept[self.stage].value.element_size()
        return max(self.plan.shapes[n][1] * y.length * x.length * size for n, (y, x) in places.items())

    def _needs(self, step: Step, y: Span, x: Span) -> tuple[Span, Span]:
        """What a step reads, padding included."""
        if step.windows is None:
            return y, x
        return step.windows[0].needed(y), step.windows[1].needed(x)

    def _joined(
        self, source: fx.Node, needs: tuple[Span, Span], old: tuple[Span, Span] | None
    ) -> tuple[Span, Span]:
        """What all readers so far need of a source, inside its map."""
        found = []
        for axis, room in enumerate(self.plan.shapes[source][-2:]):
            low, high = needs[axis].start, needs[axis].end
            if old is not None:
                low, high = np.minimum(low, old[axis].start), np.maximum(high, old[axis].end)
            found.append(span(low.clip(0, room - 1), high.clip(1, room), room))
        return found[0], found[1]

    def _back(self, step: Step, signal: Tensor, places: dict[fx.Node, tuple[Span, Span]]) -> Iterator[Boxes]:
        """The signals at what a step reads, from that at its output."""
        here = places[step.node]
        y, x = self._needs(step, *here)
        if step.node not in self._senders:
            self._senders[step.node] = sender(step, self.plan, self.rule)
        send = self._senders[step.node]
        found = self._by_autograd(step, signal, here, y, x) if send is None else send(signal, *here, y, x)
        for part in found:
            yield Boxes(part, y, x)

    def _by_autograd(
        self, step: Step, signal: Tensor, here: tuple[Span, Span], y: Span, x: Span
    ) -> Sequence[Tensor]:
        """The same for any operation: it is run on its boxes, and back."""
        if step.scale is not None:
            signal = signal * gather(step.scale[0], *here)
        if step.adjoint is not None:
            return [step.adjoint(signal)]
        down, across = step.windows or (None, None)
        sides = (down.before, down.after, across.before, across.after) if down and across else (0, 0, 0, 0)
        inputs = []
        for source in step.sources:
            padded = self.plan.kept[source].padded(sides, step.fill)
            inputs.append(gather(padded, y, x, sides[0], sides[2]).requires_grad_())
        with torch.enable_grad(), backward_rule(self.rule):
            # Copies: the step may write into what it reads.
            output = step.run(*(part.clone() for part in inputs))
            return torch.autograd.grad(output, inputs, signal)


def _add(target: Tensor, y: Span, x: Span, boxes: Boxes) -> None:
    """Add boxes to `target` (k, C, h, w), which lies at `y`, `x`; what lies outside is cut."""
    rows, columns = (boxes.y.start - y.start).tolist(), (boxes.x.start - x.start).tolist()
    for whole, part, row, column in zip(target, boxes.values, rows, columns, strict=True):
        top, left = max(0, -row), max(0, -column)
        high, wide = min(boxes.y.length, y.length - row), min(boxes.x.length, x.length - column)
        if high > top and wide > left:
            whole[:, row + top : row + high, column + left : column + wide] += part[:, top:high, left:wide]
