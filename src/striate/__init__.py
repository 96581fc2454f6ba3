"""Striate: a workbench for convolutional networks on images.

Importing it is light: PyTorch and everything else come in when they are first needed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public name -> the module that holds it.
_PUBLIC = {
    "StriateError": "striate.core.errors",
    "open_data": "striate.data.formats",
    "Model": "striate.model",
    "load": "striate.model",
    "wrap": "striate.nets.wrapped",
    "create_net": "striate.nets.net",
    "Recipe": "striate.train.recipe",
}
# Packages that are called as verbs.
_ROOMS = ("train", "evaluate", "visualize")

if TYPE_CHECKING:
    from striate.core.errors import StriateError as StriateError


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"striate.{name}")
    if name not in _PUBLIC:
        raise AttributeError(f"module 'striate' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted([*_PUBLIC, *_ROOMS, "__version__"])


__all__ = ["__version__", *sorted((*_PUBLIC, *_ROOMS))]
