"""Registries: named things with capabilities, defined where they are written."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from striate.core.errors import unknown

T = TypeVar("T")


@dataclass(frozen=True)
class Entry(Generic[T]):
    """One registered thing: its name, itself, what it can do, and the first line of its docstring."""

    name: str
    value: T
    capabilities: dict[str, Any] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        """The first line of the docstring, or an empty text."""
        text = inspect.getdoc(self.value) or ""
        return text.splitlines()[0] if text else ""


class Registry(Generic[T]):
    """Names to things of one kind.

    `package` names the package whose modules define them: all of its modules are imported when the
    registry is first read, so that one new file is found without an edit elsewhere.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self.package = package
        self._entries: dict[str, Entry[T]] = {}
        self._loaded = False

    def register(self, name: str | None = None, **capabilities: Any) -> Callable[[T], T]:
        """Decorator: register under `name`, or under the thing's own name.

        Raises:
            ValueError: the name is taken by another thing.
        """

        def decorate(value: T) -> T:
            key = name if name is not None else str(getattr(value, "__name__", value))
            old = self._entries.get(key)
            if old is not None and _origin(old.value) != _origin(value):
                raise ValueError(f"two {self.kind} entries are called {key!r}")
            self._entries[key] = Entry(key, value, dict(capabilities))
            return value

        return decorate

    def _load(self) -> None:
        if self._loaded:
            return
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__):
            if not module.name.startswith("_"):
                importlib.import_module(f"{self.package}.{module.name}")
        self._loaded = True

    def entry(self, name: str) -> Entry[T]:
        """The entry called `name`.

        Raises:
            StriateError: there is none; near matches and the list are given.
        """
        if name not in self._entries:
            self._load()
        if name not in self._entries:
            raise unknown(self.kind, name, self._entries, hint=f"'striate list' shows every {self.kind}")
        return self._entries[name]

    def get(self, name: str) -> T:
        """The thing called `name`; raises as `entry` does."""
        return self.entry(name).value

    def names(self, **capabilities: Any) -> list[str]:
        """All names, sorted; with keywords, those whose capabilities have these values."""
        self._load()
        return sorted(
            entry.name
            for entry in self._entries.values()
            if all(entry.capabilities.get(key) == value for key, value in capabilities.items())
        )

    def __iter__(self) -> Iterator[Entry[T]]:
        return iter([self._entries[name] for name in self.names()])

    def __contains__(self, name: object) -> bool:
        self._load()
        return name in self._entries


def _origin(value: object) -> tuple[str, str]:
    return (getattr(value, "__module__", ""), getattr(value, "__qualname__", repr(value)))
