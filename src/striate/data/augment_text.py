"""The written form of augmentations: `name(value, key=value)` joined by `+`."""

from __future__ import annotations

import dataclasses
import re

from striate.core.written import FORM, read_call
from striate.data.augmentations import AUGMENTATIONS, Augmentation, build


def steps_of(text: str) -> tuple[Augmentation, ...]:
    """The augmentations of a written form, in order.

    Raises:
        StriateError: not of that form, an unknown name or setting (near matches given), or a value not
        allowed.
    """
    plain = text.strip()
    if plain in ("", "none"):
        return ()
    steps = []
    for part in re.split(r"\+(?![^()]*\))", plain):
        call = read_call(part, "augmentation", allowed=f"{FORM}, joined by +", hint="or 'none'")
        steps.append(build(call.name, call.positional, call.named))
    return tuple(steps)


def name_of(step: Augmentation) -> str:
    """The name under which it is registered."""
    return next(entry.name for entry in AUGMENTATIONS if entry.value is type(step))


def written(step: Augmentation) -> str:
    """The written form of one augmentation; `steps_of` takes it back."""
    given = []
    for field in dataclasses.fields(step):
        value = getattr(step, field.name)
        if value != field.default or (step.in_full and value is not None):
            given.append(f"{field.name}={value}")
    return name_of(step) + (f"({', '.join(given)})" if given else "")
