"""Unreadable images are named wherever they were met: also those of other processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from image_sets import classes_of, write
from striate.train import session
from striate.train.devices import Place

FAR = ("dog/far.png", "it is no image")


def test_images_that_another_process_could_not_read_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = classes_of(count=8) | {"cat/near.png": b"\x89PNG\r\n\x1a\n but no more"}

    def gather(self: Place, value: Any) -> list[Any]:
        # Lists are those of unreadable images: the other process knows of one.
        return [value, [FAR]] if isinstance(value, list) else [value]

    monkeypatch.setattr(Place, "gather", gather)
    run = session.train(
        write(tmp_path / "data", files), net="linear", epochs=2, batch=4, val=0.0, test=0.0, threads=1,
        workers=0, preflight=False, progress=False, out=tmp_path / "run",
    )  # fmt: skip
    bad = [event["name"] for event in run.events() if event["event"] == "bad-image"]
    assert len(bad) == 2
    assert {Path(name).name for name in bad} == {"near.png", "far.png"}
    end = next(event for event in run.events() if event["event"] == "end")
    assert end["bad"] == 2
