"""Testing a model by a protocol: its scores, their intervals, and what they cost."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from striate.core.errors import StriateError
from striate.core.files import place_of
from striate.core.results import Result
from striate.data.samples import Dataset
from striate.engines.chooser import check_name
from striate.evaluate.opening import images_to_test
from striate.evaluate.protocols import Protocol, parse_protocol
from striate.evaluate.reading import check_counts, run_over
from striate.evaluate.runner import Runner
from striate.model import Model, load
from striate.tasks.task import Scores

SHOWN = 10


@dataclass(frozen=True)
class Evaluation(Result):
    """How a model does on the images of a split, by a protocol, and what that cost.

    scores: the task's own; intervals: 95 % intervals of its proportions, by name. n: images scored; bad:
    (name, reason) of the images that could not be read and are in no score. views: mean number of views an
    image. multiply_adds: for one image with all its views, None where the net cannot be counted. seconds:
    wall time; waited: the part of it that the net stood still for want of images. images_per_second counts
    all of the time, network_images_per_second leaves out the waiting.
    """

    model: str
    data: str
    digest: str
    split: str
    protocol: str
    scores: Scores
    intervals: dict[str, tuple[float, float]]
    n: int
    bad: tuple[tuple[str, str], ...]
    views: float
    multiply_adds: float | None
    seconds: float
    waited: float
    device: str
    batch: int
    notes: tuple[str, ...] = ()

    @property
    def images_per_second(self) -> float:
        """Images a second of wall time, loading included."""
        return self.n / max(self.seconds, 1e-9)

    @property
    def network_images_per_second(self) -> float:
        """Images a second of the time in which the net did not wait for images."""
        return self.n / max(self.seconds - self.waited, 1e-9)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, the rates among them."""
        return {**super().to_dict(), **self._rates()}

    def brief(self) -> dict[str, Any]:
        """Plain JSON values without arrays, the rates among them."""
        return {**super().brief(), **self._rates()}

    def _rates(self) -> dict[str, float]:
        return {
            "images_per_second": self.images_per_second,
            "network_images_per_second": self.network_images_per_second,
        }

    def lines(self) -> list[str]:
        """The scores with their intervals, what they cost, and what was left out, as text."""
        figures = self.scores.summary()
        width = max(map(len, figures), default=0)
        told = [
            f"{self.model} on {self.data}, split {self.split}: {self.n:,} images, protocol {self.protocol}"
        ]
        for name, value in figures.items():
            text = "-" if value is None else f"{100 * value:.2f} %"
            if name in self.intervals:
                low, high = self.intervals[name]
                text += f"  (95% interval {100 * low:.2f} to {100 * high:.2f})"
            told.append(f"  {name:<{width}}  {text}")
        told.append(f"cost: {self._cost()}")
        told += self.notes
        if self.bad:
            more = len(self.bad) - SHOWN
            told.append(f"left out: {len(self.bad)} unreadable")
            told += [f"  {name}: {reason}" for name, reason in self.bad[:SHOWN]]
            told += [f"  and {more} more"] if more > 0 else []
        return told

    def _cost(self) -> str:
        views = f"{self.views:.4g} view{'' if self.views == 1 else 's'} an image"
        counted = (
            [] if self.multiply_adds is None else [f"{amount(self.multiply_adds)} multiply-adds an image"]
        )
        rates = (
            f"{self.images_per_second:,.1f} images/s with loading, "
            f"{self.network_images_per_second:,.1f} without"
        )
        return "; ".join(
            [views, *counted, f"{rates} ({self.device}, batch {self.batch}, {self.seconds:.1f} s)"]
        )


def evaluate(
    model: Model | str | os.PathLike[str] | Sequence[Model | str | os.PathLike[str]],
    data: Dataset | str | os.PathLike[str],
    *,
    split: str = "test",
    protocol: str | Protocol = "center",
    batch: int = 64,
    device: str | None = None,
    threads: int | None = None,
    engine: str | None = None,
    **opening: Any,
) -> Evaluation:
    """Test a model on a split of a data set by a protocol.

    model: a Model, or what `load` takes; a list of them, or names joined by "+", is fused: the mean of the
    members' posteriors, with the gain over the best member in the notes. data: a Dataset, or what
    `open_data` takes, with its options in `opening`; its classes are matched to the model's by name. The
    data that the model was trained on keep the splits of the training; other data that come without splits
    are tested whole. split: where there is no "test", "val" is taken and a note says so. batch: views of the
    net's own size a forward pass. device: auto, cpu, cuda or mps; None leaves the model where it is.
    threads: for loading and computing; None or 0 takes all processors. engine: what the net runs on, as
    `Model.engine`, which None leaves as it is. Unreadable images are left out, named and counted.

    Raises:
        StriateError: an unknown split, protocol or option, data of another kind or other classes than the
            model's, no readable image, outputs that are not numbers, or a setting out of range.
    """
    check_counts(batch, threads)
    chosen = parse_protocol(protocol)
    several = given_models(model)
    if len(several) > 1:
        from striate.evaluate.compare import compare

        how: dict[str, Any] = {"split": split, "batch": batch, "device": device, "threads": threads}
        how["engine"] = engine
        return compare(several, data, [chosen], **how, **opening).evaluation()
    loaded = several[0] if isinstance(several[0], Model) else load(several[0])
    if device is not None:
        loaded.to(device)
    set_engine(loaded, engine)
    name, tested = model_name(loaded, several[0]), one_model
    if loaded.members:
        from striate.evaluate.ensembles import ensemble as tested
    return tested(loaded, name, data, chosen, split=split, batch=batch, threads=threads, opening=opening)


def one_model(
    loaded: Model, name: str, data: Any, chosen: Protocol, *, split: str, batch: int, threads: int | None,
    opening: Mapping[str, Any],
) -> Evaluation:  # fmt: skip
    """What `evaluate` gives for a model that is called `name` in the result."""
    runner = Runner(chosen, loaded, batch=batch)
    opened, samples, notes = images_to_test(data, loaded, split, opening)
    scorer = loaded.task.scorer()
    done = run_over(runner, samples, scorer.update, threads)
    scores = scorer.result()
    return Evaluation(
        model=name,
        data=opened.name,
        digest=opened.digest(),
        split=samples.name,
        protocol=str(chosen),
        scores=scores,
        intervals=intervals_of(scores),
        n=scores.n,
        bad=(*((str(name), str(reason)) for name, reason in opened.bad), *done.bad),
        views=done.views,
        multiply_adds=done.multiply_adds,
        seconds=done.seconds,
        waited=done.waited,
        device=str(loaded.device),
        batch=batch,
        notes=(*notes, *done.engines),
    )


def set_engine(model: Model, engine: str | None) -> None:
    """Let a model run on an engine; None leaves it as it is.

    Raises:
        StriateError: there is no such engine.
    """
    if engine is not None:
        model.engine = check_name(engine)


def given_models(model: Any) -> list[Model | str | os.PathLike[str]]:
    """The models that were given: one, a list, or names joined by "+" (a path that exists is one name).

    Raises:
        StriateError: none was given.
    """
    found: Any = model
    if isinstance(model, str) and "+" in model and not place_of(model).exists():
        found = [part.strip() for part in model.split("+")]
    listed: list[Any] = list(found) if isinstance(found, (list, tuple)) else [found]
    if not listed or any(isinstance(part, str) and not part for part in listed):
        raise StriateError(f"the model is given as {model!r}", allowed="a model, or several as A+B")
    return listed


def intervals_of(scores: Scores) -> dict[str, tuple[float, float]]:
    """The 95 % intervals that a task's scores hold, under the names of their figures."""
    names = {"interval": ("top-1", "all labels right"), "top5_interval": ("top-5",)}
    figures = scores.summary()
    found = {}
    for field, targets in names.items():
        value = getattr(scores, field, None)
        for target in targets:
            if value is not None and target in figures:
                found[target] = value
    return found


def model_name(model: Model, given: Any) -> str:
    """What a model is called in a result: the text that it was given by, or its own name."""
    return model.name if isinstance(given, Model) else str(given)


def amount(value: float) -> str:
    """A count with its unit: 1,234, 5.67 million, 1.23 billion."""
    for size, word in ((1e9, " billion"), (1e6, " million")):
        if value >= size:
            return f"{value / size:.3g}{word}"
    return f"{value:,.0f}"
