"""The guide is a test: its blocks run in order, in an empty folder."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import pytest

from striate import cli
from striate.arguments import make_parser

ROOT = Path(__file__).resolve().parent.parent
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"]


def blocks(text: str) -> list[tuple[str, str]]:
    return re.findall(r"^```(\w+)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def test_every_block_of_the_guide_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = blocks((ROOT / "docs" / "guide.md").read_text())
    assert {kind for kind, _ in found} == {"sh", "python"}
    names: dict[str, object] = {}
    for kind, code in found:
        if kind == "python":
            exec(compile(code, "docs/guide.md", "exec"), names)  # noqa: S102
            continue
        for line in code.splitlines():
            words = shlex.split(line)
            assert words[0] == "striate"
            assert cli.main(words[1:]) == 0, line
    for left in ("runs/first/report.html", "digits.safetensors", "filters.png", "maps.png"):
        assert (tmp_path / left).stat().st_size > 0


def commands(page: Path) -> list[tuple[str, list[str]]]:
    """Each command line on a page, in its blocks and in its running text, and the words after `striate`."""
    text = page.read_text().replace("\\\n", " ")
    running = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    lines = re.findall(r"^striate (.+)$", text, flags=re.MULTILINE)
    lines += re.findall(r"`striate ([^`]+)`", running)
    return [(f"{page.name}: {line}", shlex.split(line, comments=True)) for line in lines]


def actions(verb: Callable[..., object]) -> tuple[str, ...]:
    """What the first argument of a verb may be; nothing where that is free."""
    first = next(iter(get_type_hints(verb).values()))
    return get_args(first) if get_origin(first) is Literal else ()


def test_the_pages_name_only_verbs_and_flags_that_exist() -> None:
    flags = {verb: make_parser(verb, call)._option_string_actions for verb, call in cli.VERBS.items()}
    checked = 0
    for page in PAGES:
        for where, (verb, *words) in commands(page):
            if verb.startswith("-") or verb == "VERB":
                continue
            assert verb in flags, where
            allowed = actions(cli.VERBS[verb])
            assert not (words and allowed) or words[0] in allowed, where
            for word in words:
                if word.startswith("--"):
                    flag = "--" + word[2:].split("=")[0].replace("-", "_").split(".")[0]
                    assert flag in flags[verb], where
            checked += 1
    assert checked > 150


def test_the_page_names_all_that_can_be_listed() -> None:
    text = (ROOT / "docs" / "more.md").read_text()
    (told,) = re.findall(r"^`list` shows .*?(?=\n\n)", text, flags=re.MULTILINE | re.DOTALL)
    assert sorted(re.findall(r"`(\w+)`", told)[1:]) == sorted(get_args(cli.ListKind))
