"""Stages that learn later, or never: gradual unfreezing."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from striate.core.errors import StriateError, unknown

ALLOWED = (
    "STAGE, FIRST..LAST, ..LAST or FIRST.., with @EPOCHS after which they learn: 'conv1..pool2@3,conv3@1'"
)


def parse_freeze(text: str) -> tuple[tuple[str, str, float], ...]:
    """The written form `conv1..pool2@3,fc6` as ((first, last, epochs), ...); epochs are infinite without @.

    `..pool2` begins at the first stage, `fc6..` ends at the last; such an end is an empty text.

    Raises:
        StriateError: another form.
    """
    found = []
    for item in filter(None, (item.strip() for item in text.split(","))):
        stages, at, epochs = item.partition("@")
        first, dots, last = stages.partition("..")
        whole = not at or (epochs.isdecimal() and int(epochs) > 0)
        if not whole or not stages or stages == ".." or ".." in last:
            raise StriateError(f"freeze holds {item!r}", allowed=ALLOWED)
        found.append((first, last if dots else first, float(epochs) if at else math.inf))
    return tuple(found)


@dataclass
class Freezing:
    """Which stages of a net are frozen in which epochs: a function of the epoch, nothing of it needs saving.

    A frozen stage's weights have no gradients, and its norms and dropouts act as in testing. Weights that do
    not learn for another reason stay so.
    """

    net: nn.Module
    epochs: dict[str, float]  # stage -> epochs for which it is frozen
    learning: set[int] = field(default_factory=set)  # ids of the parameters that learn otherwise
    frozen: frozenset[str] = frozenset()  # at present

    def at(self, epoch: int) -> frozenset[str]:
        """The stages that are frozen in this epoch, from 0."""
        return frozenset(name for name, until in self.epochs.items() if epoch < until)

    def apply(self, epoch: int) -> bool:
        """Freeze and unfreeze for this epoch; whether other weights learn than before.

        To be called after `train()`, which wakes the norms of frozen stages.
        """
        now = self.at(epoch)
        changed = now != self.frozen
        self.frozen = now
        root = tapped(self.net)
        held = {id(p) for name in now for p in root.get_submodule(name).parameters()}
        for parameter in self.net.parameters():
            if id(parameter) in self.learning:
                parameter.requires_grad_(id(parameter) not in held)
                if id(parameter) in held:
                    parameter.grad = None
        for name in now:
            root.get_submodule(name).eval()
        return changed


def make_freezing(net: nn.Module, text: str) -> Freezing | None:
    """The freezing of the written form; None for an empty text.

    Raises:
        StriateError: another form, an unknown stage, or nothing that would learn in the first epoch.
    """
    items = parse_freeze(text)
    if not items:
        return None
    names = list(getattr(net, "stage_names", None) or [name for name, _ in net.named_children()])
    epochs: dict[str, float] = {}
    for first, last, until in items:
        for name in filter(None, (first, last)):
            if name not in names:
                raise unknown("stage", name, names)
        begin = names.index(first) if first else 0
        end = names.index(last) if last else len(names) - 1
        if begin > end:
            raise StriateError(f"freeze: stage {first!r} comes after {last!r}", hint=f"give {last}..{first}")
        for name in names[begin : end + 1]:
            epochs[name] = max(until, epochs.get(name, 0.0))
    freezing = Freezing(net, epochs, {id(p) for p in net.parameters() if p.requires_grad})
    root = tapped(net)
    held = {id(p) for name in freezing.at(0) for p in root.get_submodule(name).parameters()}
    if not freezing.learning - held:
        raise StriateError(f"freeze {text!r} leaves nothing that learns", hint="leave the head out of it")
    return freezing


def tapped(net: nn.Module) -> nn.Module:
    """The module below which the stages have their names."""
    root: Any = getattr(net, "tapped", net)
    return root if isinstance(root, nn.Module) else net
