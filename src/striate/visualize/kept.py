"""The state of a stopped run: tensors and plain values in one safetensors file, written in one step."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from striate.core.errors import BadModelFile, StriateError
from striate.core.files import write_bytes
from striate.core.results import plain

KEY = "striate-picture"
FORMAT = 1


class Keeper:
    """Where a run keeps its state: `path`, or nowhere; `facts` are what a run must agree in to go on.

    Raises:
        StriateError: `resume` without a path.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        facts: Mapping[str, Any],
        *,
        resume: bool = False,
        seconds: float = 30.0,
    ) -> None:
        if resume and path is None:
            raise StriateError("nothing to resume", hint="name the file with the state of the run: --state")
        self.path = None if path is None else Path(path)
        # As they come back from JSON.
        self.facts = json.loads(json.dumps(plain(dict(facts))))
        self.resume, self.seconds = resume, seconds
        self._last = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """The state to go on from, or None to begin.

        Raises:
            BadModelFile: the file is damaged or of another kind.
            StriateError: it is of a run with other settings; the first difference is told.
        """
        if not self.resume or self.path is None or not self.path.exists():
            return None
        try:
            with safe_open(os.fspath(self.path), framework="pt", device="cpu") as file:
                header = json.loads((file.metadata() or {})[KEY])
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            if header["format"] != FORMAT:
                raise ValueError("another format")
            facts, tree = header["facts"], _unpack(header["tree"], tensors)
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise BadModelFile(
                f"{str(self.path)!r} is not the whole state of a picture ({type(error).__name__})",
                hint="start again without --resume",
            ) from error
        for name in sorted({*facts, *self.facts}):
            if facts.get(name) != self.facts.get(name):
                raise StriateError(
                    f"{str(self.path)!r} is of a run whose {name} is {_short(facts.get(name))}",
                    allowed=f"{_short(self.facts.get(name))}, as now",
                    hint="give the settings of that run, or start again without --resume",
                )
        return dict(tree)

    def save(self, state: Mapping[str, Any]) -> None:
        """Write the state; the old file stays whole until the new one is."""
        if self.path is None:
            return
        tensors: dict[str, Tensor] = {}
        header = {"format": FORMAT, "facts": self.facts, "tree": _pack(dict(state), tensors, "")}
        write_bytes(self.path, save(tensors, metadata={KEY: json.dumps(header)}))
        self._last = time.monotonic()

    def due(self) -> bool:
        """Whether it is time to save again."""
        return self.path is not None and time.monotonic() - self._last >= self.seconds

    def done(self) -> None:
        """The picture is made: remove the state."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def _pack(tree: Any, tensors: dict[str, Tensor], where: str) -> Any:
    if isinstance(tree, Tensor):
        # A copy of its own: safetensors refuses tensors that share memory.
        tensors[where] = tree.detach().to("cpu", copy=True).contiguous()
        return {"$tensor": where}
    if isinstance(tree, Mapping):
        return {str(key): _pack(value, tensors, f"{where}/{key}") for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [_pack(value, tensors, f"{where}/{n}") for n, value in enumerate(tree)]
    return tree


def _unpack(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(tree, dict):
        if set(tree) == {"$tensor"}:
            return tensors[tree["$tensor"]]
        return {key: _unpack(value, tensors) for key, value in tree.items()}
    return [_unpack(value, tensors) for value in tree] if isinstance(tree, list) else tree


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
