"""What there is: the rows of `striate list`."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from striate.core.errors import StriateError, unknown
from striate.core.registry import Registry
from striate.core.results import Result

# Kind -> where its registry stands.
REGISTRIES = {
    "nets": "striate.nets.net:NETS",
    "layers": "striate.layers.registry:LAYERS",
    "initialisations": "striate.train.initial:INITIALISATIONS",
    "weights": "striate.nets.weights:CARDS",
    "formats": "striate.data.formats:FORMATS",
    "augmentations": "striate.data.augment:AUGMENTATIONS",
    "inputs": "striate.data.statistics:INPUTS",
    "tasks": "striate.tasks.task:TASKS",
    "optimizers": "striate.train.optimize:OPTIMIZERS",
    "schedules": "striate.train.schedules:SCHEDULES",
    "samplers": "striate.train.samplers:SAMPLERS",
    "pruners": "striate.train.samplers:PRUNERS",
    "protocols": "striate.evaluate.protocols:PROTOCOLS",
    "methods": "striate.visualize.method:METHODS",
    "objectives": "striate.visualize.objectives:OBJECTIVES",
    "engines": "striate.engines.engine:ENGINES",
}


@dataclass(frozen=True)
class Listing(Result):
    """Rows of a list: a name, and what there is to say of it."""

    ROWS = ("names", "texts")  # type: tuple[str, ...]

    kind: str
    names: Sequence[str]
    texts: Sequence[str]

    def lines(self) -> list[str]:
        """One line a row, names in a column."""
        width = max(map(len, self.names), default=0)
        return [
            f"{name:<{width}}  {text}".rstrip() for name, text in zip(self.names, self.texts, strict=True)
        ]


def rows(kind: str, model: str | None = None) -> Listing:
    """The rows of one kind; `stages` wants a model or a net's name.

    Raises:
        StriateError: an unknown kind, or `stages` without a model.
    """
    if kind == "stages":
        if model is None:
            raise StriateError("stages of which net?", hint="give a model: striate list stages MODEL")
        from striate.studies.stage_list import stages

        return stages(model)
    if kind not in REGISTRIES:
        raise unknown("list", kind, [*REGISTRIES, "stages"])
    module, _, name = REGISTRIES[kind].partition(":")
    entries = getattr(importlib.import_module(module), name)
    if isinstance(entries, Registry):
        found = list(entries)
        return Listing(kind, [e.name for e in found], [_text(e.summary, e.capabilities) for e in found])
    from striate.nets.weights import published

    cards = [published(name) for name in entries]
    return Listing(
        kind, [card.name for card in cards], [f"{card.origin}; {_scores(card.scores)}" for card in cards]
    )


def _scores(scores: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in scores.items()) or "no published scores"


def _text(summary: str, capabilities: dict[str, Any]) -> str:
    told = ", ".join(
        f"{k} {v}" for k, v in capabilities.items() if isinstance(v, (str, int)) and not isinstance(v, bool)
    )
    return f"{summary} [{told}]" if told else summary
