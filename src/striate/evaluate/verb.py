"""What `striate evaluate` does with its arguments: one protocol, a table of several, or corruptions."""

from __future__ import annotations

from typing import Any

from striate.core.errors import StriateError
from striate.evaluate.compare import compare
from striate.evaluate.evaluate import Evaluation, evaluate, given_models
from striate.evaluate.robustness import Robustness, robustness
from striate.evaluate.table import Table


def evaluate_verb(
    model: str,
    data: str,
    *,
    protocol: str = "center",
    grid: str | None = None,
    corruptions: bool = False,
    trained_side: str | None = None,
    **how: Any,
) -> Evaluation | Table | Robustness:
    """One evaluation; with `grid`, or several models as A+B, a table; with `corruptions`, the robustness.

    Raises:
        StriateError: as of `evaluate`, `compare` and `robustness`; arguments that do not go together.
    """
    several = given_models(model)
    given = {"--grid": grid is not None, "--corruptions": corruptions, "--protocol": protocol != "center"}
    chosen = [flag for flag, value in given.items() if value]
    if len(chosen) > 1:
        raise StriateError(f"{' and '.join(chosen)} are given together", hint="give one of them")
    if grid is not None and not grid.strip():
        raise StriateError("--grid is empty", allowed="vgg, or protocols joined by ';'")
    if trained_side is not None and grid is None:
        raise StriateError("--trained-side is given without --grid vgg", hint="write the sizes behind @")
    if corruptions:
        if len(several) > 1:
            raise StriateError("--corruptions takes one model", hint="test the models one by one")
        return robustness(several[0], data, **how)
    if grid is not None or len(several) > 1:
        return compare(several, data, grid or [protocol], trained_side=trained_side, **how)
    return evaluate(several[0], data, protocol=protocol, **how)
