"""Units: one pass over a data set finds the strongest images of every unit of any stages."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from striate.core.errors import StriateError, unknown
from striate.core.results import Result, plain
from striate.data.loaders import Batch, Loader
from striate.data.samples import Split
from striate.layers.winograd import tiled
from striate.nets.taps import leaves_as_found, stepping
from striate.visualize.running import Facts, Running
from striate.visualize.stages import with_maps

if TYPE_CHECKING:
    from striate.model import Model

# Positions are counted on at most about so many images, evenly spaced; responses on all.
POSITIONS_OF = 512
# Stages wider than this get no matrix of correlations.
WIDEST = 1024
Tell = Callable[[int, int], None]


@dataclass(frozen=True)
class StageUnits:
    """The C units of one stage.

    A unit is a map, or one value of a stage without maps. Its response to an image is its largest value over
    the positions of the map.

    shape: of the stage's output for one image; values, index (C, k), places (C, k, 2): the responses of the k
    strongest images, strongest first, their sample numbers, and row and column of the largest value; where
    there are fewer different images, -inf, -1 and (-1, -1).
    mean, variance, active (C,): of the values at all positions of about 512 images, evenly spaced; active
    is the share above 0. response_mean, response_variance, response_active (C,): the same of the responses
    to all images. sparseness (C,): of the rectified responses r, (1 - (sum r)^2 / (n sum r^2)) / (1 - 1/n): 0
    for a unit that answers to all images alike, 1 for one that answers to a single one, NaN for one that
    never answers (Vinje and Gallant, Science 287, 2000).
    correlation (C, C): Pearson's, of the responses to all images; None for stages wider than asked for.
    """

    stage: str
    shape: tuple[int, ...]
    values: NDArray[np.float32]
    index: NDArray[np.int64]
    places: NDArray[np.int64]
    mean: NDArray[np.float64]
    variance: NDArray[np.float64]
    active: NDArray[np.float64]
    response_mean: NDArray[np.float64]
    response_variance: NDArray[np.float64]
    response_active: NDArray[np.float64]
    sparseness: NDArray[np.float64]
    correlation: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.values)

    @property
    def dead(self) -> NDArray[np.int64]:
        """Numbers of the units that are above 0 on no image."""
        return np.flatnonzero(self.response_active == 0)

    def like(self, unit: int, count: int = 3) -> list[tuple[int, float]]:
        """The units whose responses go most with those of `unit`, with the correlation, best first."""
        if self.correlation is None:
            return []
        row = np.nan_to_num(self.correlation[unit], nan=-2.0)
        row[unit] = -2
        order = np.argsort(-row, kind="stable")[:count]
        return [(int(other), float(row[other])) for other in order if row[other] > -2]


@dataclass(frozen=True)
class Units(Result):
    """The units of all stages that were watched.

    model, data, split: what was shown to what; images: how many; k: strongest images kept for each unit;
    names: sample number -> name of the images kept; bad: (name, reason) of those that could not be read.
    """

    model: str
    data: str
    split: str
    images: int
    k: int
    stages: tuple[StageUnits, ...]
    names: dict[int, str] = field(default_factory=dict)
    bad: tuple[tuple[str, str], ...] = ()

    def stage(self, name: str) -> StageUnits:
        """The units of a stage.

        Raises:
            StriateError: it was not watched; near matches are given.
        """
        for found in self.stages:
            if found.stage == name:
                return found
        raise unknown("watched stage", name, [found.stage for found in self.stages])

    def lines(self) -> list[str]:
        """A few lines for people."""
        head = f"{self.model} on {self.images:,} images of {self.data or 'the data'} ({self.split})"
        rows = [f"{'stage':<16} {'units':>6} {'dead':>6} {'active':>8} {'sparseness':>11}"]
        for found in self.stages:
            alive = found.sparseness[np.isfinite(found.sparseness)]
            sparse = f"{np.median(alive):.2f}" if len(alive) else "-"
            rows.append(
                f"{found.stage:<16} {len(found):>6} {len(found.dead):>6} {100 * found.active.mean():>7.1f}% "
                f"{sparse:>11}"
            )
        left = [f"left out: {len(self.bad)} unreadable images"] if self.bad else []
        return [head, *rows, "dead: above 0 on no image; sparseness: the median unit's", *left]

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All numbers by name, such as "conv2.values"."""
        found: dict[str, NDArray[Any]] = {}
        for stage in self.stages:
            for each in fields(stage):
                value = getattr(stage, each.name)
                if isinstance(value, np.ndarray):
                    found[f"{stage.stage}.{each.name}"] = value
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; numbers that are not finite become null."""
        values: dict[str, Any] = _finite(super().to_dict())
        return values

    def _arrays(self) -> dict[str, NDArray[Any]]:
        return self.arrays()


def find_units(
    model: Model,
    split: Split,
    stages: Sequence[str] | None = None,
    *,
    k: int = 9,
    batch: int = 64,
    workers: int | None = None,
    widest: int = WIDEST,
    data: str = "",
    tell: Tell | None = None,
) -> Units:
    """The k strongest images of every unit of the stages, and the units' statistics, in one pass.

    stages: names of stages or modules, None for every stage with maps. Images are streamed as in a test;
    memory depends on k and the number of units, not on the number of images, and the answer not on `batch`
    (but for the last bits of what the net computes). tell(done, all) is called after each batch. The net is
    left as it was found.

    Raises:
        StriateError: an unknown stage, one whose output holds no units, or numbers out of range.
    """
    for name, value in (("k", k), ("batch", batch)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise StriateError(f"{name} is {value!r}", allowed="a whole number, at least 1")
    if not len(split):
        raise StriateError(f"split {split.name!r} holds no images")
    if model.preprocess.size is None:
        # Images of different sizes do not fit into one batch.
        batch = 1
    watch = Watch(chosen_stages(model, stages), k, len(split), widest)
    # One pass: views that are kept would only take memory.
    loader = Loader(split, model.preprocess, batch=batch, workers=workers, mode="stream")
    try:
        with leaves_as_found(model.net), tiled(model.net), torch.inference_mode():
            model.net.eval().requires_grad_(False)
            with watch.on(model.net), closing(loader.batches(0)) as batches:
                for part in batches:
                    watch.show(model, part)
                    if tell is not None:
                        tell(watch.images, len(split))
    finally:
        loader.close()
    return watch.found(model, split, data, tuple(loader.bad))


def chosen_stages(model: Model, stages: Sequence[str] | None) -> list[str]:
    """The stages asked for, each once; every stage with maps where none is.

    Raises:
        StriateError: none is named, and the net does not tell its own.
    """
    names = list(dict.fromkeys([stages] if isinstance(stages, str) else stages or with_maps(model)))
    if not names:
        raise StriateError("the net does not name its stages", hint="name some of its modules with 'stages'")
    return names


class Watch:
    """Stages under watch while images stream through a net."""

    def __init__(self, stages: Sequence[str], k: int, total: int, widest: int = WIDEST) -> None:
        self.running = {stage: Running(stage, min(k, total), widest) for stage in stages}
        self.k, self.images = min(k, total), 0
        self._step = max(1, math.ceil(total / POSITIONS_OF))
        self._facts: Facts | None = None
        self._seen: set[str] = set()

    @contextmanager
    def on(self, net: torch.nn.Module) -> Iterator[None]:
        """Watch the net inside the block; raises StriateError for an unknown stage."""

        def leave(name: str, output: object) -> None:
            # A stage that runs twice in a pass is watched in its first run.
            if self._facts is None or name in self._seen:
                return
            self._seen.add(name)
            if isinstance(output, Tensor) and self._facts.index.device != output.device:
                self._facts = self._facts.to(output.device)
            self.running[name].see(output, self._facts)

        with stepping(net, self.running, leave=leave):
            yield

    def show(self, model: Model, batch: Batch) -> None:
        """Run the net on a batch and take in what the stages give.

        Raises:
            StriateError: a stage does not run.
        """
        self._facts, self._seen = self._told(batch), set()
        model.net(batch.images.to(model.device))
        self._facts = None
        missing = [name for name in self.running if name not in self._seen]
        if missing:
            raise StriateError(f"stage {missing[0]!r} does not run in evaluation", hint="leave it out")
        self.images += len(batch.images)

    def _told(self, batch: Batch) -> Facts:
        pixels = batch.images.permute(0, 2, 3, 1).contiguous().numpy()
        digests = [
            int.from_bytes(hashlib.blake2b(one, digest_size=8).digest(), "little", signed=True)
            for one in pixels
        ]
        return Facts(
            torch.from_numpy(batch.index),
            torch.tensor(digests, dtype=torch.int64),
            self._sampled(len(digests)),
        )

    def _sampled(self, length: int) -> slice:
        """The images of a batch whose positions are counted: of large batches more in every fourth one."""
        every = min(4, self._step)
        if length < self._step:
            return slice(-self.images % self._step, None, self._step)
        if self.images // length % every:
            return slice(length, None)
        return slice(0, None, -(-self._step // every))

    def found(self, model: Model, split: Split, data: str = "", bad: Sequence[tuple[str, str]] = ()) -> Units:
        """What has been found so far."""
        stages = []
        for name, one in self.running.items():
            one.settle()
            stages.append(
                StageUnits(
                    name,
                    one.shape,
                    one.values.cpu().numpy(),
                    one.index.cpu().numpy(),
                    one.places.cpu().numpy(),
                    correlation=one.correlation(),
                    **one.statistics(),
                )
            )
        kept = {int(number) for one in stages for number in np.unique(one.index) if number >= 0}
        names = {number: split.name_of(number) for number in sorted(kept)}
        return Units(model.name, data, split.name, self.images, self.k, tuple(stages), names, tuple(bad))


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: such numbers become null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return plain(value)
