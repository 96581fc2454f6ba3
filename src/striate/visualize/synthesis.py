"""Pictures by optimisation: objective + image parametrisation + robustness + optimiser, and nothing else."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from striate.core.errors import StriateError
from striate.images import draw
from striate.visualize.ascent import Climb
from striate.visualize.forms import Form
from striate.visualize.kept import Keeper
from striate.visualize.objectives import Objective
from striate.visualize.robustness import Robustness
from striate.visualize.studio import Look, Studio, to_pixels


@dataclass(frozen=True)
class Step:
    """How far a synthesis is: steps done of all, the objective's value and parts, and the pictures."""

    done: int
    steps: int
    value: float
    parts: dict[str, float]
    phase: str
    pictures: Callable[[], Tensor]


Watcher = Callable[[Step], None]


@dataclass
class Phase:
    """One climb: `steps` steps of `objective` (looked up already) from the form's values."""

    studio: Studio
    objective: Objective
    form: Form
    climb: Climb
    steps: int
    robustness: Robustness = field(default_factory=Robustness)
    seed: int = 0
    label: str = ""
    # How a step is looked at, where not by one pass: (objective, pictures, step) -> Look.
    look: Callable[[Objective, Tensor, int], Look] | None = None
    # Applied to the values after each step, such as keeping their norm.
    project: Callable[[Tensor], Tensor] | None = None


def ascend(
    phase: Phase,
    *,
    watch: Watcher | None = None,
    keeper: Keeper | None = None,
    state: dict[str, Any] | None = None,
    around: dict[str, Any] | None = None,
    history: list[float] | None = None,
) -> Tensor:
    """Climb, and give the pictures (N, C, h, w) in 0 .. 1; unbounded forms are cut there.

    state: of this phase, from a kept file, to go on from; around: what the recipe keeps beside it. The state
    is saved now and then and when the run is stopped (Ctrl-C), so that a continued run gives equal bytes.
    `history` takes the value of every step.

    Raises:
        StriateError: the objective is not a number; the net is left as it was found by `Studio.open`.
    """
    form = phase.form
    values, begin = form.values, 0
    past: list[float] = [] if history is None else history
    if state is not None:
        values, begin = state["values"], int(state["step"])
        phase.climb.restore(state["climb"])
        past[:] = [float(value) for value in state["past"]]

    def kept(step: int) -> dict[str, Any]:
        mine = {"values": values, "step": step, "climb": phase.climb.state(), "past": list(past)}
        return {**(around or {}), "phase": mine}

    # What is saved is always the state after a whole step: one that was cut short is done again.
    whole = kept(begin)
    try:
        for step in range(begin, phase.steps):
            gradient, value, parts = _gradient(phase, form.draw(values), values, step)
            values = phase.climb.step(values, form.pull(values, gradient), value)
            if phase.project is not None:
                values = phase.project(values)
            past.append(value)
            whole = kept(step + 1)
            if watch is not None:
                now = values
                watch(Step(step + 1, phase.steps, value, parts, phase.label, lambda: form.draw(now)))  # noqa: B023
            if keeper is not None and keeper.due():
                keeper.save(whole)
    except KeyboardInterrupt:
        if keeper is not None:
            keeper.save(whole)
        raise
    form.values = values
    with torch.no_grad():
        return form.draw(values).clamp(0, 1)


def _gradient(
    phase: Phase, picture: Tensor, values: Tensor, step: int
) -> tuple[Tensor, float, dict[str, float]]:
    """Gradient with respect to the picture, the value, and its parts."""
    studio = phase.studio
    if phase.look is not None:
        look = phase.look(phase.objective, picture, step)
        gradient = look.gradient
    elif phase.robustness == Robustness():
        look = studio.look(phase.objective, picture.to(studio.device))
        gradient = look.gradient
    else:
        leaf = picture.detach().requires_grad_()
        with torch.enable_grad():
            shown = phase.robustness.apply(leaf, phase.seed, step)
        look = studio.look(phase.objective, shown.detach().to(studio.device), picture.to(studio.device))
        gradient = torch.autograd.grad(shown, leaf, look.gradient.to(shown.device))[0]
        if look.own is not None:
            gradient = gradient + look.own.to(gradient.device)
    finite = bool(torch.isfinite(look.values).all()) and bool(torch.isfinite(gradient.sum()))
    if not finite and step == 0:
        raise StriateError(
            "the objective or its gradients are not numbers (NaN or infinite)",
            hint="the network's training diverged: train again with a lower learning rate",
        )
    return gradient.to(values.device), look.value, look.parts


class Reporter:
    """A watcher that writes progress to a terminal and a preview picture to a file now and then.

    preview: the file, .png or .jpg, written whole each time; every: steps between two previews.
    """

    def __init__(
        self,
        preview: str | os.PathLike[str] | None = None,
        every: int = 25,
        *,
        progress: bool = True,
        finish: Callable[[Tensor], Any] | None = None,
    ) -> None:
        self.preview = None if preview is None else Path(preview)
        if self.preview is not None and self.preview.suffix.lower() not in (".png", ".jpg", ".jpeg"):
            raise StriateError(f"cannot write a preview as {self.preview.name!r}", allowed=".png, .jpg")
        self.every, self.finish = max(1, every), finish
        self.loud = progress and sys.stderr.isatty()
        self._last = 0.0

    def __call__(self, step: Step) -> None:
        """Take note of one step."""
        last = step.done == step.steps
        if self.preview is not None and (step.done % self.every == 0 or last):
            pictures = step.pictures()
            pixels = [to_pixels(p) for p in pictures] if self.finish is None else [self.finish(pictures)]
            draw.save(self.preview, pixels[0] if len(pixels) == 1 else draw.grid(pixels))
        if self.loud and (last or time.monotonic() - self._last > 0.2):
            self._last = time.monotonic()
            text = f"\r{step.phase} step {step.done}/{step.steps}  value {step.value:.6g}"
            print(f"{text:<72}", end="\n" if last else "", file=sys.stderr, flush=True)
