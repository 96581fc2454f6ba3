"""One shape of batches: first on the net itself, then perhaps a race of engines, then on what won."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from striate.core.errors import StriateError, first_line
from striate.engines import record as records
from striate.engines.engine import PLAIN, Engine, Form, Plain, Unusable, difference
from striate.engines.record import SURE, Record
from striate.engines.source import Source

# A turn of a candidate is a pass that finds the processors still warm from the one before (threads that spin,
# caches) and does not count, then passes for so many seconds, one at least.
TURN = 0.4
ROUNDS = 7
# A candidate is out after its first pass if it is so much slower than the best; then after so many rounds, by
# the median turn: one turn on a shared machine may be a third off.
HOPELESS, BEHIND = 3.0, (1.6, 1.3, 1.15, 1.08)
# With fewer passes to come a choice is made after the first one.
FEW = 8
# Passes shorter than this are tried with one thread too.
SHORT = 0.005


@dataclass
class Lane:
    """One candidate at one shape: its engine, the seconds to build it, and those of a pass.

    Before its first turn they are those of its fastest pass, then the median over turns of a turn's mean.
    Within a turn the mean: a runtime whose threads wait for each other is held up again and again, which its
    fastest and its median pass do not show. Over turns the median: other work comes and goes.
    """

    form: Form
    engine: Engine
    setup: float = 0.0
    seconds: float = float("inf")
    turn: list[float] = field(default_factory=list)  # passes of the present turn
    turns: list[float] = field(default_factory=list)  # the mean pass of each one before

    def run(self, images: Tensor) -> tuple[Tensor, float]:
        """Outputs, and seconds."""
        _wait(images)
        began = time.perf_counter()
        outputs = self.engine(images)
        _wait(images)
        return outputs, time.perf_counter() - began


@dataclass
class Ground:
    """What all shapes of one net share: the net, what its engines are made from, which ones may be chosen."""

    net: nn.Module
    device: torch.device
    threads: int
    allowed: Mapping[str, type[Engine]]  # those first that are expected to win
    forced: str | None
    source: Source
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Keep a line about what was left out, once."""
        if text not in self.notes:
            self.notes.append(text)


class Shape:
    """Batches of one shape (N, C, H, W).

    The first batch runs on the net itself. What that took and the number of passes left decide whether
    engines are built; each is compared with the net's answers on that batch, then they run the following
    batches in turn, until the fastest is known.
    """

    def __init__(self, ground: Ground, key: tuple[int, ...]) -> None:
        self.ground, self.key, self.length = ground, key, max(1, key[0])
        self.images = 0
        self.plain = Lane(PLAIN, Plain(ground.source, torch.empty(0), PLAIN))
        self.lanes: list[Lane] = []  # those that race, the net itself among them
        self.chosen: Lane = self.plain
        self.record = Record()
        self._about: dict[str, Any] | None = None
        self.decided = False  # whether the net itself goes on, for as long as nothing changes
        self._turn = self._round = 0
        self._tried: set[Form] = set()  # built by this process: once is enough
        self.remembered: frozenset[Form] = frozenset()  # those whose times are of an earlier race
        self._kept = True

    @property
    def engine(self) -> Engine | None:
        """What runs the batches, once that is not the net itself."""
        return None if self.chosen is self.plain or self.lanes else self.chosen.engine

    def __call__(self, images: Tensor, left: float, others: list[Shape]) -> Tensor:
        """Run a batch; `left` passes of this shape are still to come, `others` are the net's other shapes.

        Raises:
            StriateError: the wanted engine cannot run this net, or does not give its answers.
        """
        self.images += self.length
        if self.lanes:
            return self._race(images)
        if self.chosen is not self.plain:
            return self.chosen.engine(images)
        outputs, seconds = self.plain.run(images)
        self.plain.seconds = min(self.plain.seconds, seconds)
        if self.ground.forced is not None:
            self._force(images, outputs, others)
        elif left > 0:
            self._consider(images, outputs, left)
        return outputs

    def finish(self) -> None:
        """The pass over the images is done, the race perhaps not: keep what is known."""
        if self._kept or self._about is None:
            return
        for lane in self.lanes:
            self._remember(lane)
        self._kept = True
        if (trouble := records.save(self._about, self.record)) is not None:
            self.ground.note(f"what was measured about engines is not kept: {trouble}")

    def rates(self) -> tuple[float, float] | None:
        """Images a second of what was chosen, and of the net as it is; None where they were not measured."""
        mine, plain = (self.record.timings.get(form) for form in (self.chosen.form, PLAIN))
        if mine is None or plain is None:
            return None
        return self.length / mine.seconds, self.length / plain.seconds

    # ------------------------------------------------------------------ before a race

    def _consider(self, images: Tensor, wanted: Tensor, left: float) -> None:
        """After a pass of the net itself: go on with it, build what is known to be faster, or race."""
        if self.images == self.length and left >= FEW:
            return  # the first pass of all is slower than the others; there is time for a second look
        spent, kinds = self.plain.seconds, self.ground.allowed
        # Nothing is looked up for a job that is done before an engine could be built.
        self.decided = True
        if left * spent < 0.5 * min((kind.setup for kind in kinds.values()), default=0.0):
            return
        if self._about is None:
            ground = self.ground
            self._about = records.key(ground.net, self.key, ground.device, ground.threads)
            self.record = records.load(self._about).only_for(ground.net)
            self.remembered = frozenset(self.record.known() - {*self.record.dropped})
        self.record.add(PLAIN, 0.0, spent, 0)
        spent = min(spent, self.record.timings[PLAIN].seconds)
        known = self.record.known() | self._tried
        fresh = [
            form
            for form in self._forms()
            if form not in known and kinds[form.engine].gain * left * spent > kinds[form.engine].setup + spent
        ]
        best = self.record.best(left, [PLAIN.engine, *kinds])
        self.decided = not fresh and best == PLAIN
        if not self.decided:
            self._open([*({best} - {PLAIN, *fresh}), *fresh], images, wanted)
            if not fresh and self.lanes:
                self._settle(self.lanes[-1])

    def _forms(self) -> list[Form]:
        threads = {self.ground.threads, 1} if self.plain.seconds < SHORT else {self.ground.threads}
        return [
            Form(name, layout, count)
            for count in sorted(threads, reverse=True)
            for name, kind in self.ground.allowed.items()
            if kind.suits(self.ground.net)
            for layout in kind.layouts
        ]

    def _open(self, forms: list[Form], images: Tensor, wanted: Tensor) -> None:
        """Build candidates; those that cannot run the net, or answer otherwise, are dropped with a note."""
        lanes = [self.plain]
        self._tried.update(forms)
        for form in forms:
            try:
                lanes.append(self._build(form, images, wanted))
            except Unusable as reason:
                self.record.drop(form, str(reason), self.ground.net)
                self.ground.note(f"{form}: {reason}")
        self.ground.source.release()
        self._kept = False
        fastest = min(lane.seconds for lane in lanes)
        self.lanes = self._without(lanes, HOPELESS * fastest)
        self._turn = self._round = 0
        if len(self.lanes) == 1:
            self._settle(self.lanes[0])

    def _build(self, form: Form, images: Tensor, wanted: Tensor) -> Lane:
        """A candidate that gives the net's answers on this batch.

        Raises:
            Unusable: it cannot be built, or does not.
        """
        kind, source = self.ground.allowed[form.engine], self.ground.source
        written, began = source.seconds, time.perf_counter()
        try:
            engine = kind(source, images, form)
            # Who writes the graph first pays for all who read it: each is charged alike.
            paid = source.seconds - written
            setup = (
                time.perf_counter() - began - paid + (source.seconds_of(images) if kind.reads_graph else 0)
            )
            lane = Lane(form, engine, setup)
            found, lane.seconds = lane.run(images)
            before = self.record.timings.get(form)
            if before is not None and before.trials >= SURE:
                lane.seconds = before.seconds  # one pass, perhaps a cold one, does not change that
        except (RuntimeError, ValueError, TypeError, ImportError, StriateError) as error:
            raise Unusable(first_line(error)) from error
        reason = difference(found, wanted)
        if reason is not None:
            raise Unusable(reason)
        return lane

    # ------------------------------------------------------------------ the race

    def _race(self, images: Tensor) -> Tensor:
        """Run a batch on the candidate whose turn it is."""
        lane = self.lanes[self._turn]
        outputs, seconds = lane.run(images)
        lane.turn.append(seconds)
        if sum(counted := lane.turn[1:]) >= TURN:
            lane.turns.append(statistics.fmean(counted))
            lane.seconds = statistics.median(lane.turns)
            lane.turn.clear()
            self._turn += 1
        if self._turn == len(self.lanes):
            fastest = min(self.lanes, key=lambda lane: lane.seconds)
            behind = BEHIND[min(self._round, len(BEHIND) - 1)]
            self._turn, self._round = 0, self._round + 1
            self.lanes = self._without(self.lanes, behind * fastest.seconds)
            if len(self.lanes) == 1 or self._round >= ROUNDS:
                self._settle(fastest)
        return outputs

    def _without(self, lanes: list[Lane], limit: float) -> list[Lane]:
        """The lanes that are not slower than a limit; the times of the others are kept."""
        for lane in lanes:
            if lane.seconds > limit:
                self._remember(lane)
        return [lane for lane in lanes if lane.seconds <= limit]

    def _remember(self, lane: Lane) -> None:
        self.record.add(lane.form, lane.setup, lane.seconds, len(lane.turns))

    def _settle(self, winner: Lane) -> None:
        for lane in self.lanes:
            self._remember(lane)
        self.lanes, self.chosen, self.decided = [], winner, True
        self.finish()

    # ------------------------------------------------------------------ a wanted engine

    def _force(self, images: Tensor, wanted: Tensor, others: list[Shape]) -> None:
        name = str(self.ground.forced)
        kind = self.ground.allowed[name]
        # An engine for larger batches of such images takes smaller ones too.
        larger = [
            other.chosen
            for other in others
            if other.chosen.form.engine == name
            and other.key[1:] == self.key[1:]
            and other.length > self.length
            and not isinstance(other.chosen.engine, Padded)
        ]
        try:
            if larger:
                engine = larger[0].engine
                lane = Lane(
                    larger[0].form, engine if kind.any_batch else Padded(engine, _length(larger[0], others))
                )
                reason = difference(lane.engine(images), wanted)
                if reason is not None:
                    raise Unusable(reason)
            else:
                lane = self._build(Form(name, kind.layouts[-1], self.ground.threads), images, wanted)
        except Unusable as reason:
            raise StriateError(
                f"engine {name!r} cannot run this net: {reason}", hint="leave out --engine, or give eager"
            ) from reason
        self.chosen, self.decided = lane, True


class Padded(Engine):
    """An engine for batches of one length, with shorter ones: the last image is repeated, its answers cut."""

    def __init__(self, engine: Engine, length: int) -> None:
        self.engine, self.length = engine, length

    @classmethod
    def missing(cls, device: torch.device) -> str | None:
        """It goes with the engine."""
        return None

    def __call__(self, images: Tensor) -> Tensor:
        """Run the batch."""
        more = images[-1:].expand(self.length - len(images), -1, -1, -1)
        return self.engine(torch.cat([images, more]))[: len(images)]


def _length(lane: Lane, shapes: list[Shape]) -> int:
    return next(shape.length for shape in shapes if shape.chosen is lane)


def _wait(images: Tensor) -> None:
    if images.is_cuda:
        torch.cuda.synchronize(images.device)
