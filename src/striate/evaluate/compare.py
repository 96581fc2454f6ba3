"""Running several protocols, and several models, over the same images."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from striate.core.errors import StriateError
from striate.data.samples import Dataset, Split
from striate.evaluate.evaluate import model_name, set_engine
from striate.evaluate.opening import Trained, images_to_test
from striate.evaluate.paired import difference, mcnemar
from striate.evaluate.protocols import Protocol, parse_protocol
from striate.evaluate.reading import Pass, check_counts, run_over
from striate.evaluate.runner import Runner
from striate.evaluate.table import Table
from striate.evaluate.vgg_grid import rows_of_vgg
from striate.model import Model, load
from striate.tasks.scores import ClassificationScores

# The number of a model and a protocol that it runs in one pass over the images.
Leaf = tuple[int, Protocol]


@dataclass
class _Row:
    """One row while it is made: its passes with their weights, and the sum of their posteriors so far."""

    name: str
    models: tuple[int, ...]
    protocols: tuple[Protocol, ...]
    weights: dict[Leaf, float]
    sum: Tensor | None = None

    def add(self, leaf: Leaf, outputs: Tensor, posterior: Tensor) -> None:
        """Add one pass; a row of one pass keeps the outputs themselves."""
        if leaf not in self.weights:
            return
        if len(self.weights) == 1:
            self.sum = outputs
        else:
            part = self.weights[leaf] * posterior
            self.sum = part if self.sum is None else self.sum + part


def compare(
    models: Sequence[Model | str | os.PathLike[str]],
    data: Dataset | str | os.PathLike[str],
    protocols: str | Sequence[str | Protocol] = "vgg",
    *,
    split: str = "test",
    batch: int = 64,
    device: str | None = None,
    threads: int | None = None,
    engine: str | None = None,
    trained_side: str | None = None,
    **opening: Any,
) -> Table:
    """Test classifiers by several protocols on the same images.

    protocols: "vgg" for the rows of VGG's tables (`rows_of_vgg`, where `trained_side` is S), or a list, or
    a text of protocols joined by ";". Several models are also fused: the mean of their posteriors, row by
    row. What rows have in common is computed once. The members of an ensemble count as several models.
    Everything else as in `evaluate`.

    Raises:
        StriateError: as of `evaluate`; models of other classes, or of a task other than classification.
    """
    check_counts(batch, threads)
    loaded, names, together = _ready(models, device, engine)
    rows, notes = _rows(loaded, protocols, trained_side)
    leaves = _checked(rows, loaded)
    opened, samples, told = images_to_test(data, loaded[0], split, opening)
    told += _other_splits(samples, data, loaded, names, split, opening)
    passes: dict[Leaf, Pass] = {}
    index = targets = np.zeros(0, np.int64)
    for leaf in leaves:
        runner = Runner(leaf[1], loaded[leaf[0]], batch=batch)
        index, targets, outputs, passes[leaf] = _one_pass(runner, samples, loaded[0].classes, threads)
        posterior = loaded[0].task.posterior(outputs)
        for row in rows:
            row.add(leaf, outputs, posterior)
    scores = [_scored(row, loaded[0], index, targets) for row in rows]
    right = np.stack([s.predicted == s.true for s in scores])
    return Table(
        row=tuple(row.name for row in rows),
        model=tuple(together if len(row.models) > 1 else names[row.models[0]] for row in rows),
        protocol=tuple(" | ".join(dict.fromkeys(map(str, row.protocols))) for row in rows),
        **_costs(rows, passes),
        gains=_gains(rows, right),
        scores=tuple(scores),
        right=right,
        p_values=tuple(tuple(mcnemar(a, b) for b in right) for a in right),
        data=opened.name,
        digest=opened.digest(),
        split=samples.name,
        n=len(index),
        bad=(*((str(name), str(reason)) for name, reason in opened.bad), *passes[leaves[0]].bad),
        device=str(loaded[0].device),
        batch=batch,
        notes=(*notes, *told, *dict.fromkeys(note for done in passes.values() for note in done.engines)),
    )


def _ready(
    models: Sequence[Model | str | os.PathLike[str]], device: str | None, engine: str | None
) -> tuple[list[Model], list[str], str]:
    """The models on their device, members of ensembles apart; what each is called, and all together."""
    loaded = [model if isinstance(model, Model) else load(model) for model in models]
    names = [model_name(model, given) for model, given in zip(loaded, models, strict=True)]
    together = "+".join(names)
    loaded, names = apart(loaded, names)
    for model in loaded:
        _fits(model, loaded[0])
        if device is not None:
            model.to(device)
        set_engine(model, engine)
    return loaded, names, together


def apart(models: Sequence[Model], names: Sequence[str]) -> tuple[list[Model], list[str]]:
    """The models with the members of each ensemble in its place, and what each is called."""
    pairs = [
        (member, f"{name}#{number}" if model.members else name)
        for model, name in zip(models, names, strict=True)
        for number, member in enumerate(model.members or (model,), 1)
    ]
    return [member for member, _ in pairs], [name for _, name in pairs]


def _checked(rows: Sequence[_Row], models: Sequence[Model]) -> list[Leaf]:
    """All passes that the rows need, each once; none is refused when others have run for an hour."""
    leaves = list(dict.fromkeys(leaf for row in rows for leaf in row.weights))
    for m, protocol in leaves:
        protocol.check(models[m])
    for m, protocol in {(m, type(protocol)): (m, protocol) for m, protocol in leaves}.values():
        protocol.network(models[m])
    return leaves


def _costs(rows: Sequence[_Row], passes: Mapping[Leaf, Pass]) -> dict[str, Any]:
    """Views, multiply-adds and times of each row: the sums of its passes."""
    each = [[passes[leaf] for leaf in row.weights] for row in rows]
    return {
        "views": tuple(sum(done.views for done in own) for own in each),
        "multiply_adds": tuple(_sum([done.multiply_adds for done in own]) for own in each),
        "seconds": tuple(sum(done.seconds for done in own) for own in each),
        "waited": tuple(sum(done.waited for done in own) for own in each),
    }


def _rows(
    models: Sequence[Model], protocols: str | Sequence[str | Protocol], trained_side: str | None
) -> tuple[list[_Row], list[str]]:
    """The rows of each model, then, where there are several, those of all of them fused."""
    notes: list[str] = []
    each: list[list[tuple[str, Protocol]]] = []
    if isinstance(protocols, str) and protocols.strip().lower() == "vgg":
        for model in models:
            found, told = rows_of_vgg(model, trained_side)
            each.append(found)
            notes += [line for line in told if line not in notes]
    else:
        if trained_side is not None:
            raise StriateError("trained-side is given without the grid vgg", hint="write the sizes behind @")
        texts = protocols.split(";") if isinstance(protocols, str) else protocols
        parsed = [parse_protocol(text) for text in texts]
        if not parsed:
            raise StriateError("no protocol is given", allowed="vgg, or protocols joined by ';'")
        each = [[(f"{protocol}", protocol) for protocol in parsed] for _ in models]
    rows = [
        _Row(name, (m,), (protocol,), {(m, part): weight for part, weight in _parts(protocol)})
        for m, own in enumerate(each)
        for name, protocol in own
    ]
    if len(models) > 1:
        for number in range(len(each[0])):
            members = [own[number][1] for own in each]
            weights = {
                (m, part): weight / len(models)
                for m, protocol in enumerate(members)
                for part, weight in _parts(protocol)
            }
            rows.append(
                _Row(f"fusion: {each[0][number][0]}", tuple(range(len(models))), tuple(members), weights)
            )
    return rows, notes


def _parts(protocol: Protocol, weight: float = 1.0) -> list[tuple[Protocol, float]]:
    """The protocols whose weighted mean of posteriors a protocol is, each once."""
    parts = protocol.parts
    if parts == (protocol,):
        return [(protocol, weight)]
    summed: dict[Protocol, float] = {}
    for part in parts:
        for leaf, share in _parts(part, weight / len(parts)):
            summed[leaf] = summed.get(leaf, 0.0) + share
    return list(summed.items())


def _fits(model: Model, first: Model) -> None:
    if model.task.name != "classification":
        raise StriateError(
            f"a table, or several models, are for classification; this model does {model.task.name}",
            hint="test one model by one protocol",
        )
    if set(model.classes) != set(first.classes) or len(model.classes) != len(first.classes):
        mine, theirs = set(first.classes), set(model.classes)
        odd = sorted(mine ^ theirs)[:3]
        raise StriateError(
            f"the models know different classes, such as {', '.join(map(repr, odd))}",
            hint="fuse models of the same classes",
        )


def _other_splits(
    samples: Split, data: Any, models: Sequence[Model], names: Sequence[str], split: str, opening: Any
) -> list[str]:
    """A line for each further model whose own split, by its card, holds other images than those tested."""
    notes = []
    for model, name in zip(models[1:], names[1:], strict=True):
        if Trained.of(model) is None:
            continue
        _, theirs, _ = images_to_test(data, model, split, opening)
        if list(map(str, theirs.names)) != list(map(str, samples.names)):
            notes.append(
                f"{name} was trained with other splits: "
                "images that it was trained on may be among those tested"
            )
    return notes


def _one_pass(
    runner: Runner, samples: Split, classes: Sequence[str], threads: int | None
) -> tuple[NDArray[np.int64], NDArray[np.int64], Tensor, Pass]:
    """Sample numbers (n,), targets (n,) and outputs (n, K) in order of the samples and of `classes`."""
    kept: list[tuple[Any, Tensor, Tensor]] = []

    def take(outputs: Tensor, targets: Tensor, index: Any) -> None:
        kept.append((index, outputs.cpu(), targets.cpu()))

    done = run_over(runner, samples, take, threads)
    index = np.concatenate([part[0] for part in kept]).astype(np.int64)
    order = np.argsort(index, kind="stable")
    outputs, targets = (torch.cat([part[i] for part in kept])[order] for i in (1, 2))
    own = runner.model.classes
    if tuple(own) != tuple(classes):
        outputs = outputs[:, [own.index(label) for label in classes]]
    return index[order], targets.numpy(), outputs, done


def _scored(row: _Row, model: Model, index: Any, targets: Any) -> ClassificationScores:
    assert row.sum is not None  # every row has a pass
    outputs = row.sum if len(row.weights) == 1 else model.task.outputs_of(row.sum)
    scorer = model.task.scorer()
    scorer.update(outputs, torch.from_numpy(targets), index)
    scores = scorer.result()
    assert isinstance(scores, ClassificationScores)  # `_fits` takes no other task
    return scores


def _gains(rows: Sequence[_Row], right: Any) -> tuple[tuple[float, float, float] | None, ...]:
    """For each fused row: the difference to the best of its members' rows, with its interval."""
    count = len([row for row in rows if len(row.models) > 1])
    found: list[tuple[float, float, float] | None] = []
    for i, row in enumerate(rows):
        if len(row.models) < 2:
            found.append(None)
            continue
        number = (i - (len(rows) - count)) % count
        members = [number + m * count for m in row.models]
        best = max(members, key=lambda m: int(right[m].sum()))
        found.append(difference(right[i], right[best]))
    return tuple(found)


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None
