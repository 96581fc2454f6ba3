"""What results save and tell: arrays of results within results, and no arrays in what is printed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from striate.core.errors import StriateError
from striate.core.results import Result


@dataclasses.dataclass(frozen=True)
class Inner(Result):
    ROWS = ("names", "values")

    names: tuple[str, ...]
    values: np.ndarray


@dataclasses.dataclass(frozen=True)
class Outer(Result):
    inner: Inner
    more: dict[str, Any]
    several: list[Inner]
    count: np.int64


INNER = Inner(("a", "b"), np.array([1.5, 2.5]))
OUTER = Outer(INNER, {"mask": np.zeros((2, 3), np.uint8), "text": "x"}, [INNER], np.int64(4))


def test_arrays_within_results_are_saved_by_their_whole_name(tmp_path: Path) -> None:
    with np.load(OUTER.save(tmp_path / "all.NPZ"), allow_pickle=False) as found:
        assert sorted(found.files) == ["count", "inner.values", "more.mask"]
        np.testing.assert_array_equal(found["inner.values"], [1.5, 2.5])


def test_what_is_printed_holds_no_arrays(tmp_path: Path) -> None:
    assert OUTER.brief() == {
        "inner": {"names": ["a", "b"]},
        "more": {"text": "x"},
        "several": [{"names": ["a", "b"]}],
        "count": 4,
    }
    whole = json.loads(OUTER.save(tmp_path / "all.JSON").read_text())
    assert whole["more"]["mask"] == [[0, 0, 0], [0, 0, 0]]
    assert (tmp_path / "all.JSON").exists()
    assert INNER.save(tmp_path / "rows.csv").read_text() == "names,values\na,1.5\nb,2.5\n"


def test_a_result_without_arrays_makes_no_empty_archive(tmp_path: Path) -> None:
    @dataclasses.dataclass(frozen=True)
    class Plain(Result):
        text: str = "x"

    with pytest.raises(StriateError, match=r"cannot save Plain as 'a\.npz'; allowed: \.json$"):
        Plain().save(tmp_path / "a.npz")
    assert not list(tmp_path.iterdir())
