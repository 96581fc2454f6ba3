"""Fixtures for every test: quiet threads, deterministic seeds, and the optional real data."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

# One thread for each of the processes that share the tests; read when PyTorch is first imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# The same examples in every run, and no limit on the time of one: the machine may be busy.
settings.register_profile("striate", derandomize=True, deadline=None)
settings.load_profile("striate")

# A shell starts what runs in its background deaf to Ctrl-C; tests that press it must be heard there too.
_FIRST_THREAD = threading.current_thread() is threading.main_thread()
if _FIRST_THREAD and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("STRIATE_SHARED_DATA", ROOT.parent / "shared" / "data"))


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """A function from a name in the folder of real data sets to its path; skips where it is missing."""

    def find(name: str) -> Path:
        path = SHARED / name
        if not path.exists():
            pytest.skip(f"real data set {name!r} is not on this machine (set STRIATE_SHARED_DATA)")
        return path

    return find


@pytest.fixture(autouse=True)
def _away_from_home(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test reads or writes the user's cache, and none goes to the network."""
    monkeypatch.setenv("STRIATE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setenv("STRIATE_OFFLINE", "1")
