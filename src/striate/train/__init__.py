"""Recipes, preflight, the loop, checkpoints. Calling the module trains: `striate.train("photos")`."""

from __future__ import annotations

import sys
import types
from typing import Any


class _Verb(types.ModuleType):
    """The room's module, callable, since the verb and the room share their name."""

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """Train; see `striate.train.session.train`."""
        from striate.train.session import train

        return train(*arguments, **keywords)


sys.modules[__name__].__class__ = _Verb
