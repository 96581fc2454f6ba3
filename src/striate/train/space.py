"""The search space: what each searched setting may be, in one written form. Imports no PyTorch, no Optuna."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from striate.core.errors import StriateError, unknown
from striate.train.recipe import Recipe

STUDY = "study.json"  # the file that tells what a study searches
RANGES = ("uniform", "log")
# Settings that say which images a trial is scored by: all trials of a study share them.
SHARED = ("val", "test", "contiguous", "label_column")
OPTIONS = "net_options"
MANY = 1_000_000  # combinations of a grid


@dataclass(frozen=True)
class Dimension:
    """One searched setting: a list of values, or a range.

    name: a setting of the recipe, or net_options.NAME. kind: "list", "uniform" or "log". values: those of a
    list, or the evenly spaced points of a range that was given their number. low, high: the ends of a range,
    both included; whole numbers where `whole`.
    """

    name: str
    kind: str
    values: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    whole: bool = False

    @property
    def text(self) -> str:
        """The written form, which `parse` takes back."""
        if self.kind == "list":
            return ",".join(_written(value, self.name) for value in self.values)
        points = f",{len(self.values)}" if self.values else ""
        return f"{self.kind}({told(self.low)},{told(self.high)}{points})"

    def coded(self) -> dict[Any, Any]:
        """The values by what stands for them in the study's storage: themselves, or JSON text."""
        return {_code(value): value for value in self.values}

    def ends(self) -> tuple[Any, ...]:
        """The values that must be right for all to be: every one of a list, the ends of a range."""
        return self.values if self.kind == "list" else (self.low, self.high)


@dataclass(frozen=True)
class Space:
    """All searched settings, in the order in which they were written."""

    dimensions: tuple[Dimension, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the searched settings."""
        return tuple(dimension.name for dimension in self.dimensions)

    def to_dict(self) -> dict[str, str]:
        """Name to written form."""
        return {dimension.name: dimension.text for dimension in self.dimensions}

    def lines(self) -> list[str]:
        """One line a setting, for people."""
        width = max(map(len, self.names), default=0)
        return [f"{d.name:<{width}}  {_words(d)}" for d in self.dimensions]

    def decode(self, stored: Mapping[str, Any]) -> dict[str, Any]:
        """The settings' values from what stands for them in the storage; numbers with six digits."""
        found = {}
        for dimension in self.dimensions:
            value = stored[dimension.name]
            if dimension.values:
                value = dimension.coded()[value]
            elif not dimension.whole:
                value = min(dimension.high, max(dimension.low, float(f"{value:.6g}")))
            found[dimension.name] = value
        return found

    def recipe(self, base: Recipe, values: Mapping[str, Any]) -> Recipe:
        """The recipe of a trial: `base` with these values.

        Raises:
            StriateError: values that contradict each other or the base.
        """
        flat = {name: value for name, value in values.items() if "." not in name}
        options = {name.partition(".")[2]: value for name, value in values.items() if "." in name}
        if options:
            flat[OPTIONS] = {**base.net_options, **options}
        return base.with_(**flat)

    def combinations(self) -> int:
        """How many there are.

        Raises:
            StriateError: a range without points, or more than a million.
        """
        for dimension in self.dimensions:
            if not dimension.values:
                text = f"{dimension.kind}({told(dimension.low)},{told(dimension.high)},5)"
                raise StriateError(
                    f"a grid needs the number of points of {dimension.name}",
                    hint=f"write {text} for five, or a list of values",
                )
        count = math.prod(len(dimension.values) for dimension in self.dimensions)
        if count > MANY:
            raise StriateError(f"the grid has {count:,} combinations", allowed=f"at most {MANY:,}")
        return count

    def combination(self, number: int) -> dict[str, Any]:
        """The coded values of combination `number` from 0; the last setting changes fastest."""
        found = {}
        for dimension in reversed(self.dimensions):
            number, at = divmod(number, len(dimension.values))
            found[dimension.name] = list(dimension.coded())[at]
        return {name: found[name] for name in self.names}


def parse(written: Mapping[str, Any], base: Recipe) -> Space:
    """A search space from its written form: setting name to text, or to a list of values.

    A list is `64,128,256`, `resnet20,lenet5` or `flip,pad-crop(4)+flip`: commas within brackets do not
    separate, nor do those of a text in quotes, `'24@0.5,28@0.8',24@0.3`, in which '' is one quote. A range is
    `uniform(LOW,HIGH)`, or `log(LOW,HIGH)` where the logarithm is uniform; both ends belong to it. A third
    number, `log(1e-4,1e-1,4)`, restricts it to as many evenly spaced points. A setting that takes whole
    numbers only is drawn as such, a net's option where both ends are written without a point. Every value is
    checked against `base`, as the command line does it.

    Raises:
        StriateError: an unknown setting (near matches are named) or range, a value that is not allowed, a
            list of one, or a setting that all trials must share.
    """
    names = [field.name for field in dataclasses.fields(Recipe)]
    dimensions: list[Dimension] = []
    for key, text in _flattened(written):
        name = _named(key, names)
        if name in (d.name for d in dimensions):
            raise StriateError(f"space.{name} is given twice", hint="give it once")
        dimension = _dimension(name, text)
        for value in dimension.ends():
            Space((dimension,)).recipe(base, {name: value})
        dimensions.append(dimension)
    if not dimensions:
        raise StriateError(
            "no search space given", hint='give what to search, such as --space.lr "log(1e-3,1)"'
        )
    return Space(tuple(dimensions))


def is_study(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder holds a study."""
    return (Path(folder) / STUDY).is_file()


def told(value: Any) -> str:
    """A value as it is written on the command line; numbers with as many digits as they need."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.6g}" if float(f"{value:.6g}") == value else repr(value)
    return value if isinstance(value, str) else json.dumps(value)


def _written(value: Any, name: str) -> str:
    """A value of a list as `parse` takes it back: a text that it would take otherwise is quoted."""
    text = told(value)
    if not isinstance(value, str):
        return text
    # A bracket or quote that is left open would swallow the values beside it.
    alone = parts_of(f"{text},(,),{text}") == [text, "(,)", text]
    if alone and text[:1] not in ("[", "{", '"', "'") and read_value(text, name) == value:
        return text
    return "'" + text.replace("'", "''") + "'"


def _flattened(written: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in written.items():
        if isinstance(value, Mapping):
            for inner, more in value.items():
                yield f"{key}.{inner}", more
        else:
            yield str(key), value


def _named(key: str, names: Sequence[str]) -> str:
    head, dot, option = key.partition(".")
    name = head.replace("-", "_")
    if name not in names or (dot and name != OPTIONS):
        raise unknown("setting to search", key, names)
    if name in SHARED:
        raise StriateError(
            f"{name} cannot be searched: it says which images the trials are scored by",
            hint=f"give it for all trials with --{name}",
        )
    if name == OPTIONS and not option:
        raise StriateError(
            "net_options cannot be searched as a whole", hint="search one: --space.net_options.NAME VALUES"
        )
    return f"{name}.{option}" if option else name


def _dimension(name: str, text: Any) -> Dimension:
    if isinstance(text, str):
        call = re.fullmatch(r"\s*([A-Za-z][\w-]*)\s*\((.*)\)\s*", text)
        if call and _one_call(text) and (call[1] in RANGES or _takes_numbers(name)):
            return _range(name, call[1], call[2])
        values = [read_value(part, name) for part in parts_of(text)]
    elif isinstance(text, (list, tuple)):
        values = [read_value(item, name) if isinstance(item, str) else _frozen(item) for item in text]
    else:
        values = [text]
    if len(values) == 1:
        raise StriateError(
            f"space.{name} has one value, {told(values[0])!r}",
            hint=f"give several, or give it for all trials with --{name}",
        )
    if not values or len({_code(value) for value in values}) < len(values):
        raise StriateError(f"space.{name} is {text!r}", hint="give two values or more, each once")
    return Dimension(name, "list", tuple(values))


def _range(name: str, kind: str, inside: str) -> Dimension:
    if kind not in RANGES:
        raise unknown("range", kind, RANGES)
    form = f"{kind}(LOW,HIGH) or {kind}(LOW,HIGH,POINTS)"
    found = [read_value(part, ".") for part in parts_of(inside)]
    good = len(found) in (2, 3) and all(isinstance(v, (int, float)) and math.isfinite(v) for v in found)
    if not good or any(isinstance(v, bool) for v in found) or not found[0] < found[1]:
        raise StriateError(f"space.{name} is {kind}({inside})", allowed=f"{form}, LOW below HIGH")
    low, high = found[:2]
    if kind == "log" and low <= 0:
        raise StriateError(
            f"space.{name} is {kind}({inside})", hint="a logarithmic range begins above 0; or use uniform"
        )
    whole = _takes_whole(name) if "." not in name else all(isinstance(v, int) for v in (low, high))
    if whole and (float(low).is_integer(), float(high).is_integer()) != (True, True):
        raise StriateError(f"space.{name} is {kind}({inside})", allowed="whole numbers")
    low, high = (int(low), int(high)) if whole else (float(low), float(high))
    points: tuple[Any, ...] = ()
    if len(found) == 3:
        if not isinstance(found[2], int) or found[2] < 2:
            raise StriateError(f"space.{name} has {found[2]} points", allowed="a whole number from 2 on")
        points = _points(kind, low, high, found[2], whole)
    return Dimension(name, kind, points, low, high, whole)


def _points(kind: str, low: float, high: float, count: int, whole: bool) -> tuple[Any, ...]:
    """`count` values evenly spaced from low to high, rounded to six digits; whole ones each once."""
    if kind == "log":
        spaced = [low * (high / low) ** (k / (count - 1)) for k in range(count)]
    else:
        spaced = [low + (high - low) * k / (count - 1) for k in range(count)]
    rounded = [round(value) if whole else float(f"{value:.6g}") for value in spaced]
    return tuple(dict.fromkeys([low, *rounded[1:-1], high]))


def parts_of(text: str) -> list[str]:
    """The parts of a text between commas that are not within brackets or quotes."""
    found, depth, quote, part = [], 0, "", ""
    for char in text:
        if quote:
            quote = "" if char == quote else quote
        elif char in "\"'":
            quote = char
        elif char in "([{":
            depth += 1
        elif char in ")]}":
            depth -= 1
        if char == "," and depth <= 0 and not quote:
            found.append(part.strip())
            part = ""
        else:
            part += char
    return [*found, part.strip()]


def _one_call(text: str) -> bool:
    """Whether the first bracket of the text is closed by its last one."""
    depth = 0
    for at, char in enumerate(text.rstrip()):
        depth += (char == "(") - (char == ")")
        if char == ")" and depth == 0:
            return at == len(text.rstrip()) - 1
    return False


def read_value(text: str, name: str) -> Any:
    """One value: a text where the setting is one; else a number, true, false, null, or YAML in brackets.

    Not all of YAML: it takes `off` for false and 1e-3 for a text.
    """
    if len(text) > 1 and text[0] == text[-1] == "'":
        return text[1:-1].replace("''", "'")
    words = {"true": True, "false": False, "null": None}
    kinds = (Any,) if "." in name else _kinds(name)
    if str in kinds and not (text == "null" and type(None) in kinds):
        return text.strip("\"'")
    if text in words:
        return words[text]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    try:
        return _frozen(_structure(text)) if text[:1] in ("[", "{", '"', "'") else text
    except yaml.YAMLError as error:
        raise StriateError(f"space.{name} has {text!r}", hint="check its brackets and quotes") from error


def _structure(text: str) -> Any:
    with contextlib.suppress(ValueError):
        return json.loads(text)  # YAML takes the 1e-05 of the written form for a text
    return yaml.safe_load(text)


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value


def _code(value: Any) -> Any:
    return value if value is None or isinstance(value, (bool, int, float, str)) else json.dumps(value)


def _kinds(name: str) -> tuple[Any, ...]:
    hint = typing.get_type_hints(Recipe).get(name, Any)
    several = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if several else (hint,)


def _takes_whole(name: str) -> bool:
    return int in _kinds(name) and float not in _kinds(name)


def _takes_numbers(name: str) -> bool:
    return "." not in name and bool({int, float} & set(_kinds(name)))


def _words(dimension: Dimension) -> str:
    if dimension.values:
        return f"{len(dimension.values)} values: {', '.join(told(v) for v in dimension.values)}"
    kind = "whole numbers" if dimension.whole else "numbers"
    spread = ", uniform in the logarithm" if dimension.kind == "log" else ""
    return f"{kind} from {told(dimension.low)} to {told(dimension.high)}{spread}"
