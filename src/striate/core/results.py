"""Results: typed values that know how to check, tell and save themselves."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from striate.core.errors import StriateError
from striate.core.files import replacing, write_text


@dataclasses.dataclass(frozen=True)
class Result:
    """Base of all results: a frozen dataclass with `to_dict` and `save`.

    A subclass names in `ROWS` the fields that must be of equal length (one entry a row).
    """

    ROWS = ()  # type: tuple[str, ...]

    def __post_init__(self) -> None:
        lengths = {name: len(getattr(self, name)) for name in self.ROWS}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"{type(self).__name__}: fields of unequal length {lengths}")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: arrays as nested lists, nested results as mappings."""
        return {f.name: plain(getattr(self, f.name)) for f in dataclasses.fields(self)}

    def brief(self) -> dict[str, Any]:
        """Plain JSON values without arrays, which stand once for each image or pixel."""
        found: dict[str, Any] = _brief(self)
        return found

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write to `path` by its suffix: .json (everything), .csv (the row fields), .npz (the arrays).

        Arrays of a result within the result are named with it: `scores.predicted`.

        Raises:
            StriateError: another suffix, no rows for a .csv, no arrays for a .npz, or the file cannot be
                written.
        """
        target = Path(path)
        suffix = target.suffix.lower()
        if suffix == ".json":
            return write_text(target, json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n")
        if suffix == ".csv" and self.ROWS:
            return write_text(target, self._csv())
        arrays = self._arrays()
        if suffix == ".npz" and arrays:
            return _save_arrays(target, arrays)
        raise StriateError(
            f"cannot save {type(self).__name__} as {target.name!r}",
            allowed=[".json", *([".npz"] if arrays else []), *([".csv"] if self.ROWS else [])],
        )

    def _arrays(self) -> dict[str, Any]:
        return dict(_within(self))

    def _csv(self) -> str:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.ROWS)
        writer.writerows(zip(*(plain(getattr(self, name)) for name in self.ROWS), strict=True))
        return text.getvalue()


def _fields(result: Result) -> dict[str, Any]:
    return {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}


def _within(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The arrays within a result, in its mappings and in results within it, by dotted name."""
    value = _fields(value) if isinstance(value, Result) else value
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _within(part, f"{name}.{key}" if name else str(key))
    elif hasattr(value, "__array__"):
        yield name, value


def _brief(value: Any) -> Any:
    value = _fields(value) if isinstance(value, Result) else value
    if isinstance(value, Mapping):
        return {str(key): _brief(part) for key, part in value.items() if not getattr(part, "ndim", 0)}
    return [_brief(part) for part in value] if isinstance(value, (list, tuple)) else plain(value)


def _save_arrays(target: Path, arrays: Mapping[str, Any]) -> Path:
    import numpy as np

    with replacing(target) as file:
        np.savez_compressed(file, allow_pickle=False, **{key: np.asarray(v) for key, v in arrays.items()})
    return target


def plain(value: Any) -> Any:
    """`value` as JSON can hold it: arrays and tensors become lists, paths become text."""
    if isinstance(value, Result):
        return value.to_dict()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value
