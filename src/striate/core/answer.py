"""What a verb of the command line says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Answer:
    """What a verb says: lines for people, and the same as JSON values for `--json`."""

    lines: Sequence[str]
    values: dict[str, Any] = field(default_factory=dict)
