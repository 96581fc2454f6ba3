"""Settings: frozen dataclasses whose fields carry their help, bounds and choices."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from striate.core.errors import StriateError, unknown

S = TypeVar("S")


def setting(
    default: Any = dataclasses.MISSING,
    *,
    help: str,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[Any, ...] | None = None,
    default_factory: Any = dataclasses.MISSING,
    off: Any = dataclasses.MISSING,
) -> Any:
    """A dataclass field: help text, inclusive bounds, allowed values, and the value that leaves it `off`."""
    metadata = {"help": help, "minimum": minimum, "maximum": maximum, "choices": choices, "off": off}
    if default_factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=default_factory, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def check(settings: object) -> None:
    """Check every field of a settings dataclass against its type, bounds and choices.

    Called from `__post_init__`. Whole numbers are accepted where a float is asked for.

    Raises:
        StriateError: names the setting, the value given and what is allowed.
    """
    hints = typing.get_type_hints(type(settings))
    for field in dataclasses.fields(settings):  # type: ignore[arg-type]
        value = getattr(settings, field.name)
        name = field.name.replace("_", "-")
        if not _fits(value, hints[field.name]):
            raise StriateError(f"{name} is {value!r}", allowed=_describe(hints[field.name]))
        if value is None:
            continue
        choices = field.metadata.get("choices")
        if choices is not None and value not in choices:
            raise unknown(name, value, [str(choice) for choice in choices])
        low, high = field.metadata.get("minimum"), field.metadata.get("maximum")
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            bad = (
                not math.isfinite(value)
                or (low is not None and value < low)
                or (high is not None and value > high)
            )
            if bad and (low is not None or high is not None):
                raise StriateError(f"{name} is {value!r}", allowed=_bounds(low, high))


def from_dict(kind: type[S], values: Mapping[str, Any]) -> S:
    """Build a settings dataclass from a mapping; `-` and `_` are the same, mappings may be nested.

    Raises:
        StriateError: an unknown key (with the nearest valid one), a missing key, or a value that `check`
            refuses.
    """
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    given: dict[str, Any] = {}
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name not in fields:
            raise unknown("setting", key, fields)
        hint = hints[name]
        nested = next((t for t in _options(hint) if dataclasses.is_dataclass(t)), None)
        if nested is not None and isinstance(value, Mapping):
            value = from_dict(typing.cast(type[Any], nested), value)
        elif isinstance(value, list) and any(typing.get_origin(t) is tuple for t in _options(hint)):
            value = tuple(value)
        given[name] = value
    missing = [
        name
        for name, field in fields.items()
        if name not in given
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise StriateError(f"setting {missing[0]!r} is missing", hint=f"give {', '.join(missing)}")
    return kind(**given)


def to_dict(settings: object) -> dict[str, Any]:
    """A settings dataclass as plain JSON values; `from_dict` takes it back."""
    return {
        field.name: _plain(getattr(settings, field.name))
        for field in dataclasses.fields(settings)  # type: ignore[arg-type]
    }


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_dict(value)
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return value


def _options(hint: Any) -> tuple[Any, ...]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return typing.get_args(hint)
    return (hint,)


def _fits(value: Any, hint: Any) -> bool:
    return any(_fits_one(value, option) for option in _options(hint))


def _fits_one(value: Any, hint: Any) -> bool:
    origin = typing.get_origin(hint)
    if hint is Any:
        return True
    if hint is type(None):
        return value is None
    if origin is typing.Literal:
        return value in typing.get_args(hint)
    if origin is tuple:
        args = typing.get_args(hint)
        if not isinstance(value, tuple):
            return False
        if len(args) == 2 and args[1] is Ellipsis:
            return all(_fits(item, args[0]) for item in value)
        return len(value) == len(args) and all(map(_fits, value, args))
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    target = origin or hint
    return isinstance(value, target) if isinstance(target, type) else True


def _describe(hint: Any) -> str:
    words = {
        int: "a whole number",
        float: "a number",
        str: "a text",
        bool: "true or false",
        type(None): "nothing",
    }
    return " or ".join(words.get(option, str(option).replace("typing.", "")) for option in _options(hint))


def _bounds(low: float | None, high: float | None) -> str:
    if low is not None and high is not None:
        return f"{low:g} to {high:g}"
    return f"at least {low:g}" if low is not None else f"at most {high:g}"
