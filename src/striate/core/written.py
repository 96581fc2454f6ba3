"""The written form of a named thing with settings: NAME, NAME(value, ...) or NAME(key=value, ...)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from striate.core.errors import StriateError

FORM = "name or name(value, key=value)"
_CALL = re.compile(r"\s*([A-Za-z][\w-]*)\s*(?:\(([^()]*)\))?\s*")


@dataclass(frozen=True)
class Call:
    """What a written form says: a name, settings without a name in their order, and settings by name."""

    name: str
    positional: list[Any] = field(default_factory=list)
    named: dict[str, Any] = field(default_factory=dict)


def read_call(text: str, kind: str, **words: str) -> Call:
    """The call that `text` writes; values are whole numbers, numbers or words.

    kind, words: what it is and what else is said (`allowed`, `hint`) where it has no such form.

    Raises:
        StriateError: not of that form, or a setting without a name after one with.
    """
    match = _CALL.fullmatch(text)
    if match is None:
        raise StriateError(f"{kind} {text.strip()!r}", **{"allowed": FORM, **words})
    call = Call(match[1])
    for item in filter(None, (piece.strip() for piece in (match[2] or "").split(","))):
        key, equals, value = item.partition("=")
        if equals:
            call.named[key.strip()] = _value(value)
        elif call.named:
            raise StriateError(
                f"{item!r} after a named setting in {text.strip()!r}", hint="values without a name come first"
            )
        else:
            call.positional.append(_value(item))
    return call


def _value(text: str) -> Any:
    text = text.strip()
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
