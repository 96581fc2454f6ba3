"""Class names: matching two lists of them, and renumbering targets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from striate.core.errors import StriateError, unknown
from striate.data.pools import IGNORE, Integers


def match_class(name: str, classes: Sequence[str]) -> int:
    """The index of `name` in `classes`: the exact name, else one that differs in case, blanks, `-`, `_` only.

    Raises:
        StriateError: it is not there, or more than once.
    """
    found = [i for i, other in enumerate(classes) if other == name]
    if not found:
        wanted = _plain(name)
        found = [i for i, other in enumerate(classes) if _plain(other) == wanted]
    if len(found) == 1:
        return found[0]
    if found:
        raise StriateError(
            f"class {name!r} is in the list {len(found)} times (indices {', '.join(map(str, found))})",
            hint="label the images by class index (a column 'index')",
        )
    raise unknown("class", name, classes, hint="the data and the model must name their classes alike")


def _plain(name: str) -> str:
    return "".join(c for c in name.casefold() if c.isalnum()) or name


def renumber(lookup: NDArray[np.int32] | None, table: Integers) -> NDArray[np.int32]:
    """Mask value -> class, with classes renumbered by `table` (old index -> new); 255 and -1 stay.

    lookup None: the mask values are the old indices.
    """
    old = np.append(np.arange(len(table)), np.full(256 - len(table), -1)) if lookup is None else lookup
    wide = np.append(table, np.full(max(256 - len(table), 1), -1))
    if lookup is None:
        old[IGNORE] = IGNORE
    return np.where((old >= 0) & (old != IGNORE), wide[np.clip(old, 0, len(wide) - 1)], old).astype(np.int32)
