"""Testing an ensemble: its members on the same images, and its gain over the best of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from striate.core.errors import StriateError
from striate.evaluate.compare import compare
from striate.evaluate.evaluate import Evaluation, one_model
from striate.evaluate.paired import bootstrap, mcnemar
from striate.evaluate.protocols import Protocol
from striate.model import Model


def ensemble(
    loaded: Model, name: str, data: Any, chosen: Protocol, *, split: str, batch: int, threads: int | None,
    opening: Mapping[str, Any],
) -> Evaluation:  # fmt: skip
    """The evaluation of an ensemble by a protocol, with its gain over the best member in the notes.

    The best member is the one that does best on these very images, which is to the ensemble's disadvantage.
    Classifiers are fused view by view as in `compare`, so that each member has the protocol in its own form;
    other tasks take the posteriors of one view.

    Raises:
        StriateError: as of `evaluate`.
    """
    how: dict[str, Any] = {"split": split, "batch": batch, "threads": threads}
    if loaded.task.name == "classification":
        table = compare([loaded], data, [chosen], **how, **opening)
        members = [(scores.main_name, scores.main) for scores in table.scores[:-1]]
        best = max(range(len(members)), key=lambda m: int(table.right[m].sum()))
        p = mcnemar(table.right[-1], table.right[best])
        made = table.evaluation()
        against = f"McNemar's exact test against the best member, #{best + 1}: p {p:.2g}"
        return dataclasses.replace(made, model=name, notes=(*made.notes, against, _each(members)))
    if chosen.members != (chosen,) or str(chosen).partition("+")[0] != "center":
        raise StriateError(
            f"protocol {str(chosen)!r} of an ensemble for {loaded.task.name}",
            allowed=["center", "center+flip"],
        )
    whole = one_model(loaded, name, data, chosen, **how, opening=opening)
    tests = [one_model(member, name, data, chosen, **how, opening=opening) for member in loaded.members]
    best = max(range(len(tests)), key=lambda m: tests[m].scores.main)
    gain = whole.scores.main - tests[best].scores.main
    told = f"{whole.scores.main_name} {100 * gain:+.2f} points over the best member, #{best + 1}"
    if list(whole.scores.index) == list(tests[best].scores.index):
        found = bootstrap(whole.scores.sample_score, tests[best].scores.sample_score)
        value, low, high = (100 * part for part in found)
        told += f"; per image {value:+.2f} points (95% paired bootstrap interval {low:+.2f} to {high:+.2f})"
    each = _each([(test.scores.main_name, test.scores.main) for test in tests])
    return dataclasses.replace(whole, notes=(*whole.notes, told, each))


def _each(members: list[tuple[str, float]]) -> str:
    """One line with the main figure of each member."""
    listed = ", ".join(f"#{number} {100 * value:.2f} %" for number, (_, value) in enumerate(members, 1))
    return f"{members[0][0]} of the members: {listed}"
