"""A net on the fastest engine that gives its answers: what is at hand, and one choice for each shape."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from striate.core.errors import StriateError, unknown
from striate.engines.engine import ENGINES, Engine, is_hooked
from striate.engines.race import Ground, Shape
from striate.engines.source import Source

AUTO = "auto"
# Shapes with engines of their own at one time: each may hold a copy of the weights.
MOST = 4

# After so many images, how many are still to come; None: nobody knows.
Left = Callable[[int], "int | None"]


def nobody_knows(seen: int) -> int | None:
    """How many images are still to come is not known."""
    return None


class Engines:
    """A net that runs on the fastest engine which gives its answers; or on the one that is wanted.

    Each shape of a batch has a choice of its own (`Shape`). What was measured is kept in the cache folder,
    by machine, net, shape and versions; where it is known already, the engine that is done first, its
    building counted, takes over after the first batch.

    wanted: "auto", or the name of an engine.

    Raises:
        StriateError: an unknown engine, or one that this machine does not have.
    """

    def __init__(self, net: nn.Module, wanted: str = AUTO) -> None:
        self.net, self.wanted = net, check_name(wanted)
        device = next((t.device for t in (*net.parameters(), *net.buffers())), torch.device("cpu"))
        if wanted != AUTO and (reason := ENGINES.get(wanted).missing(device)):
            raise StriateError(
                f"engine {wanted!r} cannot be used: {reason}", allowed=[AUTO, *at_hand(device)]
            )
        names = [wanted] if wanted != AUTO else at_hand(device)
        # The net itself is what eager begins with: that is raced, not forced.
        forced = wanted if wanted not in (AUTO, "eager") else None
        allowed = {name: ENGINES.get(name) for name in names}
        self.ground = Ground(net, device, torch.get_num_threads(), allowed, forced, Source(net))
        self.shapes: dict[tuple[int, ...], Shape] = {}
        self.seen = 0
        self.left: Left = nobody_knows
        self._mark = fingerprint(net)
        self._hooked = is_hooked(net)

    @property
    def notes(self) -> list[str]:
        """Lines on engines that were dropped, and why."""
        return self.ground.notes

    def still_for(self, net: nn.Module, wanted: str) -> bool:
        """Whether this speaks of that net as it is now: the same modules, weights, device and threads."""
        same = net is self.net and wanted == self.wanted and torch.get_num_threads() == self.ground.threads
        return same and fingerprint(net) == self._mark

    @contextmanager
    def passing(self, left: Left = nobody_knows) -> Iterator[Engines]:
        """A pass over images: `left(seen)` tells, after so many of them, how many are still to come."""
        self.seen, self.left = 0, left
        try:
            yield self
        finally:
            for shape in self.shapes.values():
                shape.finish()

    def settled(self, images: Tensor) -> Engine | None:
        """The engine that runs batches of this shape, where that is settled and not the net itself."""
        shape = self.shapes.get(tuple(images.shape))
        if shape is None or (engine := shape.engine) is None:
            return None
        self.seen += len(images)
        shape.images += len(images)
        return engine

    def __call__(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) float32 to the net's outputs; the net is in evaluation mode.

        Raises:
            StriateError: the wanted engine cannot run this net, or does not give its answers.
        """
        if self._hooked:
            # A hook sees, and may change, what the net computes; engines know nothing of it.
            outputs: Tensor = self.net(images)
            return outputs
        key = tuple(images.shape)
        self.seen += len(images)
        shape = self.shapes.get(key)
        if shape is None:
            if self.ground.forced is None and len(self.shapes) >= MOST:
                outputs = self.net(images)
                return outputs
            shape = self.shapes[key] = Shape(self.ground, key)
        others = [other for other in self.shapes.values() if other is not shape]
        return shape(images, self._passes_left(shape), others)

    def _passes_left(self, shape: Shape) -> float:
        """Passes of a shape after the present one; where nobody knows, as many as there were with it."""
        left = self.left(self.seen)
        passes = shape.images / shape.length + 1
        if left is None:
            return passes
        share = (shape.images + shape.length) / max(1, self.seen)
        return max(0, left) * min(1.0, share) / shape.length

    def told(self) -> str:
        """What ran most images, in words: the engine, and its rate beside that of the net as it is."""
        shape = max(self.shapes.values(), key=lambda shape: shape.images, default=None)
        if shape is None or shape.engine is None:
            return "eager"
        rates = shape.rates()
        if rates is None:
            return str(shape.chosen.form)
        return f"{shape.chosen.form}: {rates[0]:,.1f} images/s in the race, {rates[1]:,.1f} the net as it is"

    def lines(self) -> list[str]:
        """What ran the net, where that was another engine, and which were dropped and why."""
        told = self.told()
        ran = [] if told == "eager" else [f"engine: {told}"]
        return [*ran, *(f"engine left out: {note}" for note in self.notes)]


def check_name(wanted: str) -> str:
    """The name of an engine, or auto.

    Raises:
        StriateError: there is no such engine.
    """
    if wanted != AUTO and wanted not in ENGINES:
        raise unknown("engine", wanted, [AUTO, *ENGINES.names()])
    return wanted


def at_hand(device: torch.device) -> list[str]:
    """The engines that this machine has for a device, those first that are expected to win."""
    found = [entry for entry in ENGINES if entry.value.missing(device) is None]
    return [entry.name for entry in sorted(found, key=lambda entry: -entry.value.gain)]


def fingerprint(net: nn.Module) -> tuple[object, ...]:
    """What changes when modules or weights are replaced, or weights written to."""
    tensors = (*net.parameters(), *net.buffers())
    marks = tuple((t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors if not t.is_meta)
    modules = tuple((id(m), bool(m._forward_hooks or m._forward_pre_hooks)) for m in net.modules())
    return (modules, marks)
