"""Rooms that bear the name of their verb: `striate.train` is a package, and calling it trains."""

from __future__ import annotations

import importlib
import sys
import types
from typing import Any


def callable_room(room: str, module: str, verb: str) -> None:
    """Make the package `room` callable: a call is passed on to `module.verb`, imported when first called.

    Importing a sub-module binds the package itself to the name in its parent, so that a function of the
    same name cannot stand there.
    """

    class Room(types.ModuleType):
        __doc__ = sys.modules[room].__doc__

        def __call__(self, *arguments: Any, **keywords: Any) -> Any:
            return getattr(importlib.import_module(module), verb)(*arguments, **keywords)

    sys.modules[room].__class__ = Room
