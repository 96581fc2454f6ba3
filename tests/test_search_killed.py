"""A search in several processes of which one is killed."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from processes import start
from searchers import SETTINGS, work
from striate.core.runs import Run
from striate.train import session
from striate.train.study import Study


@pytest.mark.timeout(300)
def test_three_processes_and_one_killed_lose_only_the_running_trial(tmp_path: Path) -> None:
    """Real processes on real digits: the killed worker's trial is marked, taken over and finished."""
    folder, trials = tmp_path / "study", 7
    victim = start(work, str(folder), trials, 2)
    others = [start(work, str(folder), trials, 0) for _ in range(2)]
    marker = folder / "stopped"
    deadline = time.monotonic() + 200
    while not marker.exists() or not marker.read_text():
        assert time.monotonic() < deadline
        assert all(p.exitcode in (None, 0) for p in (victim, *others))
        time.sleep(0.02)
    number = int(marker.read_text())
    before = {r.number: r for r in Study.open(folder).records()}
    assert before[number].state == "running"
    assert victim.pid is not None
    os.kill(victim.pid, signal.SIGKILL)
    for process in others:
        process.join(200)
    assert [p.exitcode for p in others] == [0, 0]

    study = Study.open(folder)
    records = {r.number: r for r in study.records()}
    lost = [r for r in records.values() if r.state == "lost"]
    assert [r.number for r in lost] == [number]
    again = [r for r in records.values() if r.retry_of == number]
    assert len(again) == 1
    assert again[0].state == "finished"
    assert again[0].settings == lost[0].settings
    assert sorted(again[0].scores) == [1, 2]
    # Nothing else was lost, done twice, or changed.
    assert sum(r.state == "finished" for r in records.values()) == trials
    assert len(records) == trials + 1
    for old in before.values():
        if old.state == "finished":
            assert records[old.number] == old
    assert list((folder / "leases").iterdir()) == []

    # The epoch done before the kill was kept, and the run ends as one that was never killed.
    kept = Run(again[0].folder)
    assert [e["event"] for e in kept.events() if e["event"] in ("start", "resume")] == ["start", "resume"]
    recipe = study.space.recipe(study.recipe, again[0].settings)
    whole = session.train("digits", recipe, out=tmp_path / "whole", progress=False)
    assert (whole.path / "metrics.csv").read_bytes() == (kept.path / "metrics.csv").read_bytes()
    assert whole.model.read_bytes() == kept.model.read_bytes()
    best = study.best()
    assert best is not None
    assert (folder / "model.safetensors").read_bytes() == Run(best.folder).model.read_bytes()
    assert SETTINGS["net"] == study.recipe.net
