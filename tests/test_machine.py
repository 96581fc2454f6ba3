"""The machine: free memory by way of psutil, and paths as users give them."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from striate.core import machine
from striate.core.errors import StriateError
from striate.core.files import place_of


def test_where_the_system_does_not_tell_psutil_does(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def unknown(name: str) -> int:
        raise ValueError(name)

    monkeypatch.setattr(machine.os, "sysconf", unknown)
    monkeypatch.setattr(machine, "_PROC", tmp_path)
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert machine.free_memory() is None
    told = SimpleNamespace(virtual_memory=lambda: SimpleNamespace(available=7 << 30))
    monkeypatch.setitem(sys.modules, "psutil", told)
    assert machine.free_memory() == 7 << 30


def test_a_path_is_looked_for_once_and_told_shortly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert place_of("~/pictures") == tmp_path / "pictures"
    for wrong in ("~nobody-has-this-name/x", "y" * 300):
        with pytest.raises(StriateError, match="cannot look for") as caught:
            place_of(wrong)
        assert len(str(caught.value)) < 160
