"""Looking inside a network: methods by name, and the pictures with the numbers behind them."""

from __future__ import annotations

import io
import itertools
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from striate.core import settings
from striate.core.errors import StriateError, near, unknown
from striate.core.files import write_bytes
from striate.core.registry import Registry
from striate.core.results import Result
from striate.images import draw
from striate.images.decode import to_image
from striate.images.given import is_one, several
from striate.layers.winograd import tiled
from striate.nets.taps import leaves_as_found

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from striate.model import Model

Pixels = NDArray[np.uint8]
SUFFIXES = (".png", ".svg", ".npz", ".json")
# A picture of more images would be too large to read, and its arrays to hold.
MOST_IMAGES = 64


@dataclass(frozen=True)
class Panel:
    """One drawing in a picture: (h, w, 1 or 3) uint8 pixels as computed, and the line above them."""

    pixels: Pixels
    caption: str = ""


@dataclass(frozen=True)
class Picture(Result):
    """What a method shows, and the numbers behind it.

    arrays: the raw numbers by name; title; note: how to read it (scaling, target, what was left out);
    panels: the drawings in rows of `columns`.
    """

    method: str
    title: str
    note: str
    arrays: dict[str, NDArray[Any]]
    panels: tuple[Panel, ...]
    columns: int

    def image(self, size: int = 96) -> Pixels:
        """The drawings side by side without captions, (H, W, 3) uint8.

        Drawings with a longer side below `size` pixels are enlarged by a whole factor, pixel by pixel.
        """
        longest = max(max(panel.pixels.shape[:2]) for panel in self.panels)
        factor = max(1, size // longest) if len(self.panels) * size < 16384 else 1
        tiles = [
            np.repeat(np.repeat(draw.rgb(panel.pixels), factor, axis=0), factor, axis=1)
            for panel in self.panels
        ]
        return draw.grid(tiles, columns=self.columns, pad=2 if factor * longest >= 16 else 1)

    def figure(self) -> Figure:
        """The picture with title, captions and note as a matplotlib figure; no window opens."""
        from striate.visualize.layout import figure

        return figure(self)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write to `path` by its suffix: .png and .svg (the figure), .npz (the arrays), .json (everything).

        Raises:
            StriateError: another suffix, or the file cannot be written.
        """
        target = Path(path)
        suffix = target.suffix.lower()
        if suffix in (".png", ".svg"):
            return write_bytes(target, self._drawn(suffix[1:]))
        if suffix == ".npz":
            buffer = io.BytesIO()
            np.savez_compressed(buffer, allow_pickle=False, **self.arrays)
            return write_bytes(target, buffer.getvalue())
        if suffix == ".json":
            return super().save(target)
        raise StriateError(
            f"cannot save a picture as {target.suffix or 'a file without suffix'!r}", allowed=SUFFIXES
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: texts, and the arrays as nested lists with shape and dtype; no pixels."""
        return {
            "method": self.method,
            "title": self.title,
            "note": self.note,
            "captions": [panel.caption for panel in self.panels],
            "arrays": {
                name: {"shape": list(a.shape), "dtype": str(a.dtype), "values": _finite(a).tolist()}
                for name, a in self.arrays.items()
            },
        }

    def lines(self) -> list[str]:
        """What there is to say of the picture."""
        return [self.note] if self.note else []

    def brief(self) -> dict[str, Any]:
        """Plain JSON values without arrays."""
        return {"method": self.method, "title": self.title, "note": self.note}

    def _drawn(self, kind: str) -> bytes:
        from striate.visualize.layout import drawn

        return drawn(self, kind)

    def _repr_png_(self) -> bytes:
        return self._drawn("png")

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name} {tuple(array.shape)}" for name, array in self.arrays.items())
        return f"Picture({self.title!r}: {shapes})"


@dataclass(frozen=True)
class Method(ABC):
    """One way of looking inside: a frozen dataclass of options, registered in `METHODS` under its `name`.

    `most_images` and `least_images` say how many images it looks at. While `draw` runs, the net is in
    evaluation mode; afterwards it is exactly as it was found.
    """

    name: ClassVar[str] = ""
    least_images: ClassVar[int] = 1
    most_images: ClassVar[int] = MOST_IMAGES

    def __post_init__(self) -> None:
        settings.check(self)

    @abstractmethod
    def draw(self, model: Model, views: Sequence[Pixels]) -> Picture:
        """The picture for a model and what its net sees of each image, (h, w, C) uint8.

        Raises:
            StriateError: the method has no meaning for this net, or an option does not fit it.
        """


METHODS: Registry[type[Method]] = Registry("visualisation method", "striate.visualize")


def visualize(method: str | Method, model: Model, images: Any = None, **options: Any) -> Picture:
    """Look inside a model by a registered method, with that method's options.

    images: what `Model.predict` takes, one or an iterable; None for methods that look at weights only.
    The net is left exactly as it was found: mode, gradients, hooks, weights, random state.

    Raises:
        BadImage: an image cannot be decoded.
        StriateError: an unknown method or option (with the nearest), a wrong number of images, or a method
            that has no meaning for this net.
    """
    if model.members:
        raise StriateError(
            f"an ensemble of {len(model.members)} nets has no one inside to look at",
            hint="choose a member: load(...).member(1), or FILE#1 on the command line",
        )
    chosen = _method(method, options)
    given = _several(images)
    if len(given) > chosen.most_images or len(given) < chosen.least_images:
        low, high = chosen.least_images, chosen.most_images
        allowed = "no image" if high == 0 else f"{low} to {high} images"
        raise StriateError(f"{chosen.name} is given {len(given)} images", allowed=allowed)
    preprocess = model.preprocess
    pixels = [to_image(i, channels=preprocess.channels, at_least=preprocess.at_least()) for i in given]
    views = [preprocess.view(image) for image in pixels]
    with leaves_as_found(model.net), tiled(model.net):
        # No method reads a weight's gradient.
        model.net.eval().requires_grad_(False)
        return chosen.draw(model, views)


def net_input(model: Model, view: Pixels) -> Tensor:
    """A view as the net's input (1, C, h, w) float32 on its device."""
    return model.preprocess.normalise(torch.from_numpy(np.ascontiguousarray(view[None]))).to(model.device)


def must_be_numbers(values: Tensor, what: str) -> None:
    """Raise StriateError when `values` hold NaN or infinity."""
    if not bool(torch.isfinite(values).all()):
        raise StriateError(
            f"{what} are not numbers (NaN or infinite)",
            hint="the network's training diverged: train again with a lower learning rate",
        )


def _method(method: str | Method, options: Mapping[str, Any]) -> Method:
    if isinstance(method, Method):
        if options:
            raise StriateError("options beside a method that has its own", hint="give the method's name")
        return method
    if not isinstance(method, str):
        raise StriateError(f"a method is given as {method!r}", allowed=METHODS.names())
    kind = METHODS.get(method.strip().lower().replace("_", "-"))
    known = [field.name for field in fields(kind)]
    for name in options:
        if str(name).replace("-", "_") not in known:
            hint = None if known else f"{method} has no options"
            raise unknown(f"option of {method}", name, known, hint=hint)
    return settings.from_dict(kind, options)


def _several(images: Any) -> list[Any]:
    """The images as a list; one image is a list of one, and of very many only as many as tell that."""
    if images is None:
        return []
    return [images] if is_one(images) else list(itertools.islice(several(images), MOST_IMAGES + 1))


def class_index(target: int | str, classes: Sequence[str]) -> int:
    """The class number of a target given by name or number.

    Raises:
        StriateError: there is no such class; near matches are given.
    """
    if isinstance(target, str):
        if target in classes:
            return list(classes).index(target)
        close = near(target, classes, 1)
        if close and close[0].casefold() == target.casefold():
            return list(classes).index(close[0])
        raise unknown("class", target, classes)
    if not 0 <= target < len(classes):
        raise StriateError(
            f"class {target} is not in the model", allowed=f"0 to {len(classes) - 1}, or a name"
        )
    return target


def together(name: str, values: Sequence[NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """One array (n, ...) called `name`; where the shapes differ, one array each: name_0, name_1, ..."""
    if len({value.shape for value in values}) == 1:
        return {name: np.stack(values)}
    return {f"{name}_{i}": value for i, value in enumerate(values)}


def _finite(array: NDArray[Any]) -> NDArray[Any]:
    """JSON has no NaN: such values become null."""
    if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
        return np.where(np.isfinite(array), array, None)  # type: ignore[call-overload, no-any-return]
    return array
