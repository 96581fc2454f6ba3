"""The written form of augmentations: `name(value, key=value)` joined by `+`."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from striate.core.errors import StriateError
from striate.data.augmentations import AUGMENTATIONS, Augmentation, build

_STEP = re.compile(r"\s*([A-Za-z][\w-]*)\s*(?:\(([^()]*)\))?\s*")


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
        match = _STEP.fullmatch(part)
        if match is None:
            raise StriateError(
                f"augmentation {part.strip()!r}",
                allowed="name or name(value, key=value), joined by +",
                hint="or 'none'",
            )
        positional: list[Any] = []
        named: dict[str, Any] = {}
        for item in filter(None, (piece.strip() for piece in (match[2] or "").split(","))):
            key, equals, value = item.partition("=")
            if equals:
                named[key.strip()] = _value(value)
            elif named:
                raise StriateError(
                    f"{item!r} after a named setting in {part.strip()!r}",
                    hint="values without a name come first",
                )
            else:
                positional.append(_value(item))
        steps.append(build(match[1], positional, named))
    return tuple(steps)


def _value(text: str) -> Any:
    text = text.strip()
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


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
