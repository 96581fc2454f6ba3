"""From a typed function to its command line: flags, help, settings files, near matches."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import inspect
import io
import os
import re
import types
import typing
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jsonargparse
import yaml

from striate.core import settings
from striate.core.errors import StriateError, near

# A verb with a parameter of this name is told which arguments were given, not left to their defaults.
GIVEN = "given"


def parse(
    program: str, verb: Callable[..., Any], arguments: Sequence[str]
) -> tuple[dict[str, Any] | None, bool]:
    """The keyword arguments for `verb`, and whether `--json` was given; None when help was printed.

    Raises:
        StriateError: an unknown or missing argument, or a value of the wrong kind.
    """
    parser = make_parser(program, verb)
    flags = {option for action in parser._actions for option in action.option_strings}
    written = [_at_home(_underscored(word, flags)) for word in arguments]
    try:
        with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = parser.parse_args(written)
            given = parser.parse_args(written, defaults=False).as_dict()
    except SystemExit as stop:
        if stop.code in (0, None):
            return None, False
        raise StriateError(
            f"cannot read the arguments of '{program}'", hint=f"see '{program} --help'"
        ) from stop
    except Exception as error:
        # jsonargparse raises its own kinds and argparse's; all of them speak of the user's input.
        raise _mistake(program, str(error), flags) from error
    values = found.as_dict()
    as_json = bool(values.pop("json", False))
    for extra in ("config", "print_config"):
        values.pop(extra, None)
    parameters = inspect.signature(verb).parameters
    folded = _fold(verb, values)
    for name, parameter in parameters.items():
        if parameter.default is not inspect.Parameter.empty:
            folded.setdefault(name, parameter.default)
    if GIVEN in parameters:
        folded[GIVEN] = frozenset(given)
    return folded, as_json


def make_parser(program: str, verb: Callable[..., Any]) -> jsonargparse.ArgumentParser:
    """The parser of one verb: positional arguments first, settings classes as flat flags."""
    text = inspect.getdoc(verb) or ""
    parser = jsonargparse.ArgumentParser(
        prog=program, description=text.split("\n\nArgs:")[0], exit_on_error=False, allow_abbrev=False
    )
    helps = _argument_helps(text)
    hints = typing.get_type_hints(verb)
    for name, parameter in inspect.signature(verb).parameters.items():
        kind = hints[name]
        if name == GIVEN:
            continue
        if dataclasses.is_dataclass(kind):
            parser.add_class_arguments(typing.cast(type[Any], kind), None)
            by_name = {f.name: str(f.metadata.get("help", "")) for f in dataclasses.fields(kind)}
            for action in parser._actions:
                if action.dest in by_name:
                    action.help = by_name[action.dest]
            continue
        positional = parameter.kind is not inspect.Parameter.KEYWORD_ONLY
        required = parameter.default is inspect.Parameter.empty
        flag = name if positional else f"--{name}"
        extra: dict[str, Any] = {"help": helps.get(name, "")}
        if positional and _is_list(kind):
            extra |= {"nargs": "+" if required else "*", "type": str}
        elif kind == bool | str:
            # --flag alone is true, --flag TEXT is the text.
            extra |= {"type": kind, "nargs": "?", "const": True}
        elif kind is bool:
            extra |= {"action": "store_true" if not parameter.default else jsonargparse.ActionYesNo}
        else:
            extra |= {"type": kind}
            if positional and not required:
                extra["nargs"] = "?"
        if not required:
            # A default of its own would hide what a settings file says of a positional argument.
            extra["default"] = argparse.SUPPRESS if positional else parameter.default
        parser.add_argument(flag, **extra)
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    parser.add_argument(
        "--config", action="config", help="a YAML file of these settings; flags that follow it win"
    )
    return parser


def _fold(verb: Callable[..., Any], values: dict[str, Any]) -> dict[str, Any]:
    """Gather flat flags into the settings classes that the verb asks for."""
    for name, kind in typing.get_type_hints(verb).items():
        if name != "return" and dataclasses.is_dataclass(kind):
            names = [f.name for f in dataclasses.fields(kind)]
            flat = {n: _numbers(values.pop(n)) for n in names if n in values}
            values[name] = settings.from_dict(typing.cast(type[Any], kind), flat)
    return {name: _numbers(value) for name, value in values.items()}


def _numbers(value: Any) -> Any:
    """`--options.width 32` arrives as text: read the values of a mapping as YAML scalars."""
    if isinstance(value, Mapping):
        return {k: _scalar(v) if isinstance(v, str) else v for k, v in value.items()}
    return value


def _scalar(text: str) -> Any:
    """A text as YAML reads it; itself where that is no YAML."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _underscored(word: str, flags: set[str]) -> str:
    """`--weight-decay` is `--weight_decay`."""
    if not word.startswith("--"):
        return word
    flag, sign, value = word.partition("=")
    other = "--" + flag[2:].replace("-", "_")
    return other + sign + value if flag not in flags and other.split(".")[0] in flags else word


def _at_home(word: str) -> str:
    """`--out=~/runs` as `--out ~/runs`, of which a shell makes a path."""
    flag, sign, value = word.partition("=") if word.startswith("--") else ("", "", word)
    return flag + sign + os.path.expanduser(value) if value.startswith("~/") else word  # noqa: PTH111


def _mistake(program: str, text: str, flags: set[str]) -> StriateError:
    """One line, in the words of the house, for what the parser complained of."""
    text = " ".join(text.split())
    see = f"see '{program} --help'"
    stray = re.search(r"[Uu]nrecognized arguments: (\S+)", text)
    key = re.search(r"(?:Key|Option|[Nn]ame) ['\"]([\w.-]+)['\"] is not (?:expected|accepted)", text)
    if stray or key:
        name = (stray or key).group(1)  # type: ignore[union-attr]
        close = near(name, [flag.lstrip("-") for flag in flags if len(flag) > 2])
        names = [f"--{flag}" if stray else flag for flag in close]
        guess = f"did you mean {' or '.join(names)}?" if names else ""
        return StriateError(
            f"unknown {'argument' if stray else 'setting'} {name!r}", hint=f"{guess} {see}".strip()
        )
    missing = re.search(r"(?:required|arguments are required)[^:]*: (.+)", text) or re.search(
        r"Key ['\"]([\w.]+)['\"] is required", text
    )
    if missing:
        return StriateError(f"missing: {missing.group(1)}", hint=see)
    config = re.match(r"Unexpected config: ?(.*)", text)
    if config:
        held = f"the text {config.group(1)!r}" if config.group(1) else "nothing"
        return StriateError(f"the file given with --config holds {held}", allowed="lines such as lr: 0.1")
    value = re.search(r'Parser key "([\w.]+)":\s*(.*)', text)
    if value:
        return StriateError(f"--{value.group(1)}: {_plain_types(value.group(2))}", hint=see)
    return StriateError(_plain_types(text) or "cannot read the arguments", hint=see)


def _plain_types(text: str) -> str:
    text = re.sub(r"<class '(\w+)'>", r"\1", text).replace("typing.", "")
    several = re.search(r"Union subtypes.*?Errors: - (.*) Given value type: \w+ Given value: (.*)", text)
    if several:
        wanted = several.group(1).replace("Expected a NoneType", "null").split(" - ")
        text = f"{' or '.join(wanted)}. Got value: {several.group(2)}"
    text = text.replace("Expected a int", "expected a whole number").replace(
        "Expected a float", "expected a number"
    )
    text = re.sub("^[Ee]xpected a tuple", "expected numbers such as [2, 3]", text)
    text = re.sub("[Ee]xpected a tuple", "numbers such as [2, 3]", text)
    return re.sub(r"Expected a Literal\[([^\]]*)\]", r"allowed: \1", text)


def _argument_helps(text: str) -> dict[str, str]:
    return dict(re.findall(r"^ {4}(\w+): (.+)$", text.partition("Args:")[2], flags=re.MULTILINE))


def _is_list(kind: Any) -> bool:
    options = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    return any(typing.get_origin(option) is list for option in options)
