"""The guide is a test: its blocks run in order, in an empty folder."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from striate import cli

ROOT = Path(__file__).resolve().parent.parent


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


def test_the_pages_name_only_verbs_and_flags_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    helps = {}
    for verb in cli.VERBS:
        cli.main([verb, "--help"])
        helps[verb] = capsys.readouterr().out
    pages = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"]
    checked = 0
    for page in pages:
        for line in re.findall(r"^striate (.+)$", page.read_text().replace("\\\n", " "), flags=re.MULTILINE):
            verb, *words = shlex.split(line, comments=True)
            if verb.startswith("-"):
                continue
            assert verb in helps, f"{page.name}: {line}"
            for word in words:
                if word.startswith("--") and not word.startswith("--options."):
                    flag = "--" + word[2:].split("=")[0].replace("-", "_").split(".")[0]
                    assert flag in helps[verb], f"{page.name}: {line}"
            checked += 1
    assert checked > 10
