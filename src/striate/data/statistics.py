"""Input statistics: what is done to the values of a view before the net sees them, by name."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from striate.core import settings
from striate.core.errors import BadImage, StriateError
from striate.core.registry import Registry

if TYPE_CHECKING:
    from striate.data.preprocess import Images, Preprocess

FORM = re.compile(r"(?P<name>[a-z]+(-[a-z]+)*)(\((?P<values>[^()]*)\))?", re.IGNORECASE)
GRAMMAR = "steps joined by '+', such as channels, pixels, lcn(9) or gcn+zca"
# Values of training views from which arrays are computed: those of CIFAR-10 are 154 million.
ARRAY_VALUES, BATCH_VALUES = 200_000_000, 4_000_000
Size = tuple[int, int]
Pixels = NDArray[np.uint8]
Shapes = dict[str, tuple[int, ...]]
# Makes a pass over the training views: batches (N, C, h, w) float32, as the step is given them.
Views = Callable[[], Iterable[Tensor]]


class Arrays(Mapping[str, NDArray[np.float32]]):
    """Arrays by name that cannot be changed; two are equal if their values are."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._arrays: dict[str, NDArray[np.float32]] = {}
        for name, value in sorted(values.items()):
            array = np.array(np.asarray(value), dtype=np.float32)
            array.setflags(write=False)
            self._arrays[name] = array
        self._placed: dict[torch.device, dict[str, Tensor]] = {}

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Arrays) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"Arrays({', '.join(f'{name} {array.shape}' for name, array in self.items())})"

    def __getstate__(self) -> dict[str, Any]:
        return {"_arrays": self._arrays, "_placed": {}}

    @cached_property
    def digest(self) -> str:
        """SHA-256 over names, shapes and values."""
        found = hashlib.sha256()
        for name, array in self.items():
            found.update(f"{name}{array.shape}".encode())
            found.update(array.tobytes())
        return found.hexdigest()

    def on(self, device: torch.device) -> dict[str, Tensor]:
        """The arrays as tensors on a device; kept, as every batch asks for them."""
        if device not in self._placed:
            self._placed[device] = {
                name: torch.from_numpy(array.copy()).to(device) for name, array in self.items()
            }
        return self._placed[device]


@dataclass(frozen=True)
class Step(ABC):
    """One step from the values of a view to those that the net sees.

    A subclass is a frozen dataclass of numbers, registered in `INPUTS` under its `name`. sized: it holds
    arrays for views of one size. lost: what cannot be had back from its output; empty where it can be
    inverted.
    """

    name: ClassVar[str] = ""
    sized: ClassVar[bool] = False
    lost: ClassVar[str] = ""

    def __post_init__(self) -> None:
        settings.check(self)

    def shapes(self, size: Size | None, channels: int) -> Shapes:
        """The arrays that the step holds, for views of `size`.

        Raises:
            StriateError: it has no meaning for views of this size.
        """
        return {}

    def fit(self, views: Views, size: Size | None, channels: int) -> dict[str, Tensor]:
        """The arrays, computed from the training views."""
        return {}

    @abstractmethod
    def apply(self, x: Tensor, arrays: Mapping[str, Tensor]) -> Tensor:
        """(N, C, h, w) to the same shape; differentiable."""

    def invert(self, x: Tensor, arrays: Mapping[str, Tensor]) -> Tensor:
        """The x that `apply` made this of.

        Raises:
            StriateError: it cannot be had back.
        """
        raise StriateError(
            f"input {self.name!r} cannot be inverted: {self.lost} is lost",
            allowed=[entry.name for entry in INPUTS if not entry.value.lost],
        )

    def __str__(self) -> str:
        values = [getattr(self, f.name) for f in fields(self)]
        # Numbers go by their place, so only those at the end can be left out.
        while values and values[-1] == fields(self)[len(values) - 1].default:
            values.pop()
        return f"{self.name}({', '.join(map(_written, values))})" if values else self.name


def _written(value: float) -> str:
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


INPUTS: Registry[type[Step]] = Registry("input statistic", "striate.data")


@INPUTS.register("channels", invertible=True)
@dataclass(frozen=True)
class Channels(Step):
    """(x - mean) / std of each channel, both over all pixels of the training views; stands first.

    The values are `Preprocess.mean` and `std`.
    """

    name: ClassVar[str] = "channels"

    def apply(self, x: Tensor, arrays: Mapping[str, Tensor]) -> Tensor:
        """Nothing: `Preprocess` has done it."""
        return x

    def invert(self, x: Tensor, arrays: Mapping[str, Tensor]) -> Tensor:
        """Nothing: `Preprocess` does it."""
        return x


def parse_input(text: str) -> tuple[Step, ...]:
    """The steps that `text` names: NAME or NAME(number, ...), joined by `+`; they are done in this order.

    Raises:
        StriateError: an unknown name (with the nearest), a number that is not allowed, or no such form.
    """
    if not isinstance(text, str) or not text.strip():
        raise StriateError(f"input is {text!r}", allowed=GRAMMAR)
    steps = []
    for piece in "".join(text.split()).split("+"):
        found = FORM.fullmatch(piece)
        if found is None:
            raise StriateError(f"cannot read {piece!r} in input {text!r}", allowed=GRAMMAR)
        kind = INPUTS.get(found["name"].lower())
        names = [field.name for field in fields(kind)]
        values = [_number(part, text) for part in (found["values"] or "").split(",") if part]
        if len(values) > len(names):
            raise StriateError(
                f"{len(values)} numbers in {piece!r}",
                allowed=f"{kind.name}({', '.join(names)})" if names else kind.name,
            )
        steps.append(settings.from_dict(kind, dict(zip(names, values, strict=False))))
    kinds = [step.name for step in steps]
    if "channels" in kinds[1:] or len(set(kinds)) < len(kinds):
        raise StriateError(f"input is {text!r}", allowed="each step once, channels before all others")
    return tuple(steps)


def fit_steps(steps: tuple[Step, ...], views: Views, size: Size | None, channels: int) -> Arrays | None:
    """The arrays of all steps, each computed from what the steps before it make of the training views.

    views: batches (N, C, h, w) float32, 0 to 1, or standardised where the first step is "channels".

    Raises:
        StriateError: views that a step has no meaning for.
    """
    arrays: dict[str, Tensor] = {}
    for number, step in enumerate(steps):
        if not step.shapes(size, channels):
            continue

        def before(count: int = number) -> Iterator[Tensor]:
            known = {name: tensor.float() for name, tensor in arrays.items()}
            for batch in views():
                yield apply_steps(steps[:count], batch, known)

        for name, tensor in step.fit(before, size, channels).items():
            arrays[f"{number}.{name}"] = tensor
    return Arrays(arrays) if arrays else None


def expected(steps: tuple[Step, ...], size: Size | None, channels: int) -> Shapes:
    """The names and shapes of the arrays that the steps hold; raises StriateError as `Step.shapes` does."""
    return {
        f"{number}.{name}": shape
        for number, step in enumerate(steps)
        for name, shape in step.shapes(size, channels).items()
    }


def apply_steps(steps: tuple[Step, ...], x: Tensor, arrays: Mapping[str, Tensor]) -> Tensor:
    """All steps in their order on (N, C, h, w) floats."""
    for number, step in enumerate(steps):
        x = step.apply(x, _own(arrays, number))
    return x


def invert_steps(steps: tuple[Step, ...], x: Tensor, arrays: Mapping[str, Tensor]) -> Tensor:
    """The inverse of `apply_steps`; raises StriateError where a step has none."""
    for number, step in reversed(list(enumerate(steps))):
        x = step.invert(x, _own(arrays, number))
    return x


def sample_views(split: Images, preprocess: Preprocess) -> list[Pixels]:
    """Views of training images, evenly spaced, in batches (n, h, w, C) of one size.

    At most ARRAY_VALUES values of them; images that cannot be read are passed over.
    """
    views: list[Pixels] = []
    held, step = 0, 1.0
    place = 0.0
    while round(place) < len(split):
        with contextlib.suppress(BadImage):
            image = split.image(round(place), at_least=preprocess.at_least(), channels=preprocess.channels)
            views.append(preprocess.view(image))
            if not held:
                # As many as there is room for, all as large as the first.
                step = max(1.0, len(split) * views[0].size / ARRAY_VALUES)
            held += views[-1].size
            if held >= 2 * ARRAY_VALUES:
                break
        place += step
    batches = []
    for _, same in itertools.groupby(views, key=lambda view: view.shape):
        part = list(same)
        count = max(1, BATCH_VALUES // part[0].size)
        batches += [np.stack(part[low : low + count]) for low in range(0, len(part), count)]
    return batches


def _own(arrays: Mapping[str, Tensor], number: int) -> dict[str, Tensor]:
    lead = f"{number}."
    return {name[len(lead) :]: tensor for name, tensor in arrays.items() if name.startswith(lead)}


def _number(part: str, text: str) -> int | float:
    for read in (int, float):
        try:
            return read(part)
        except ValueError:
            continue
    raise StriateError(f"{part!r} in input {text!r} is no number", allowed=GRAMMAR)
