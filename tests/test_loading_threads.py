"""The profile of loading uses the threads that it reports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from image_sets import classes_of, write
from striate.data.loaders import Loader
from striate.studies import bench_load
from striate.studies.bench import bench_verb


def test_as_many_threads_as_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, made = str(write(tmp_path, classes_of(count=8))), []

    def noted(*arguments: Any, **how: Any) -> Loader:
        made.append(how.get("workers"))
        return Loader(*arguments, **how)

    monkeypatch.setattr(bench_load, "Loader", noted)
    found = bench_verb("load", data, size=4, batch=4, steps=1, threads=1)
    assert found.threads == 1
    bench_verb("load", data, size=4, batch=4, steps=1)
    assert made == [1, None]
