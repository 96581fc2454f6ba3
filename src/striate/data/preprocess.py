"""Preprocessing is part of the weights: one object for training, testing, prediction and visualisation."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from striate.core import settings
from striate.core.errors import BadImage, StriateError
from striate.core.settings import setting
from striate.data import statistics
from striate.data.pools import IGNORE
from striate.data.statistics import Arrays, Step
from striate.images import geometry

RESIZES = ("crop", "squash", "pad", "none")
INTERPOLATIONS = ("bilinear", "bicubic", "area", "nearest")
MAX_SIDE = 16384


class Images(Protocol):
    """What `Preprocess.fit` needs of a split."""

    def __len__(self) -> int: ...

    def image(self, index: int, *, at_least: int | None = None, channels: int = 3) -> NDArray[np.uint8]:
        """Image `index` as (H, W, channels) uint8."""


@dataclass(frozen=True)
class Preprocess:
    """From any image to what the net sees: one affine view, then values by the `input` statistics.

    By default x = (uint8 / 255 - mean) / std per channel; `parse_input` tells what else there is. Its
    arrays, where it has any, are in `arrays` and never in `to_dict`: they lie beside the weights.

    resize: how an image becomes the view of `size`:
        "crop":   the largest centred box of the view's aspect, its sides times `crop` (EfficientNet's
            centre crop);
        "squash": the whole image (its central part of `crop`), aspect not kept;
        "pad":    the whole image, aspect kept, the rest filled with the mean colour;
        "none":   no resampling: centred, cut or filled with the mean colour.
    size None leaves every image as large as it is.
    """

    size: tuple[int, int] | None = setting(None, help="height and width of what the net sees, in pixels")
    channels: int = setting(3, help="colour channels", choices=(1, 3))
    crop: float = setting(1.0, help="fraction of the image's side that is kept", minimum=0.01, maximum=1.0)
    resize: str = setting("crop", help="how an image becomes the view", choices=RESIZES)
    interpolation: str = setting("bilinear", help="resampling filter", choices=INTERPOLATIONS)
    mean: tuple[float, ...] = setting((0.5,), help="mean of each channel, 0 to 1")
    std: tuple[float, ...] = setting((0.5,), help="standard deviation of each channel, 0 to 1")
    input: str = setting("channels", help="statistics of the values ('striate list inputs'), joined by +")
    arrays: Arrays | None = setting(None, help="what the input statistics hold of the training images")  # noqa: RUF009

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            values = getattr(self, name)
            if isinstance(values, tuple) and len(values) == 1 and self.channels in (1, 3):
                object.__setattr__(self, name, values * self.channels)
        settings.check(self)
        object.__setattr__(self, "input", "+".join(map(str, self.steps)))
        for name, low in (("mean", 0.0), ("std", 1e-6)):
            values = getattr(self, name)
            if len(values) != self.channels:
                raise StriateError(
                    f"{name} has {len(values)} values", allowed=f"one for each of {self.channels} channels"
                )
            if not all(math.isfinite(value) and low <= value <= 100 for value in values):
                raise StriateError(
                    f"{name} is {values!r}", allowed=f"numbers of at least {low:g}, for images of 0 to 1"
                )
        if self.size is not None and not all(1 <= side <= MAX_SIDE for side in self.size):
            raise StriateError(f"size is {self.size!r}", allowed=f"two whole numbers, 1 to {MAX_SIDE}")
        if self.crop != 1 and (self.resize in ("pad", "none") or self.size is None):
            raise StriateError(
                f"crop is {self.crop:g}", allowed='1 with resize "pad" or "none", or without a size'
            )

    # ------------------------------------------------------------------ geometry

    def view_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the view of an image of this height and width."""
        return (height, width) if self.size is None else self.size

    def box(self, height: int, width: int) -> tuple[float, float, float, float]:
        """The part (x0, y0, x1, y1) of an image that fills the view, in whole pixels; it may reach beyond."""
        if self.size is None:
            return 0.0, 0.0, float(width), float(height)
        rows, columns = self.size
        if self.resize == "crop":
            unit = self.crop * min(height / rows, width / columns)
            box_height, box_width = unit * rows, unit * columns
        elif self.resize == "squash":
            box_height, box_width = self.crop * height, self.crop * width
        elif self.resize == "pad":
            unit = max(height / rows, width / columns)
            box_height, box_width = unit * rows, unit * columns
        else:
            box_height, box_width = rows, columns
        box_height, box_width = max(1, round(box_height)), max(1, round(box_width))
        x0, y0 = (width - box_width) // 2, (height - box_height) // 2
        return float(x0), float(y0), float(x0 + box_width), float(y0 + box_height)

    def matrix(self, height: int, width: int) -> NDArray[np.float64]:
        """The 3x3 map from an image of this height and width to its view."""
        return geometry.crop_resize(self.box(height, width), self.view_size(height, width))

    def at_least(self) -> int | None:
        """The shorter side in pixels below which an image would lose detail in the view; None = all of it."""
        if self.size is None or self.resize == "none":
            return None
        return math.ceil(max(self.size) / self.crop)

    @property
    def border(self) -> str:
        """What lies beyond the image: the mean colour where the view may reach beyond, else its edge."""
        return "constant" if self.resize in ("pad", "none") else "edge"

    @cached_property
    def fill(self) -> tuple[int, ...]:
        """The mean colour as uint8 values: about 0 after normalising."""
        return tuple(min(255, max(0, round(value * 255))) for value in self.mean)

    def same_pixels(self, height: int, width: int) -> bool:
        """Whether the view of an image of this height and width is the image itself, pixel for pixel."""
        return self.box(height, width) == (0, 0, width, height) and self.view_size(height, width) == (
            height,
            width,
        )

    def view(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """What the net sees of an image: (H, W, C) uint8 -> (h, w, C) uint8, in one warp.

        Raises:
            StriateError: the image has another number of channels.
        """
        height, width, channels = image.shape
        if channels != self.channels:
            raise StriateError(f"an image of {channels} channels", allowed=f"{self.channels}")
        if self.same_pixels(height, width):
            return image
        size = self.view_size(height, width)
        return geometry.warp(
            image,
            self.matrix(height, width),
            size,
            interpolation=self.interpolation,
            border=self.border,
            fill=self.fill,
        )

    def mask_view(self, mask: NDArray[np.int32]) -> NDArray[np.int32]:
        """The same geometry for a mask: (H, W) int32 -> (h, w) int32, nearest; 255 beyond the image."""
        height, width = mask.shape
        if self.same_pixels(height, width):
            return mask
        size = self.view_size(height, width)
        border = "constant" if self.border == "constant" else "edge"
        return geometry.warp(
            mask, self.matrix(height, width), size, interpolation="nearest", border=border, fill=IGNORE
        )

    # ------------------------------------------------------------------ values

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """The steps of the input statistics, in order."""
        return statistics.parse_input(self.input)

    @property
    def plain(self) -> bool:
        """Whether the values are those of each channel alone: nothing but mean and std."""
        return self.input == "channels"

    @property
    def sized(self) -> bool:
        """Whether the statistics hold for views of `size` alone."""
        return any(step.sized for step in self.steps)

    def _known(self, x: Tensor) -> dict[str, Tensor]:
        """The arrays for views like x (N, C, h, w), beside it.

        Raises:
            StriateError: there are none, or they are of views of another size.
        """
        if self.sized and x.shape[1:] != (self.channels, *(self.size or ())):
            raise StriateError(
                f"input {self.input!r} of views {tuple(x.shape[1:])}",
                allowed=f"views {(self.channels, *(self.size or ()))}, as in the training",
            )
        arrays = self.arrays or Arrays({})
        if {name: array.shape for name, array in arrays.items()} != self.array_shapes():
            raise StriateError(f"input {self.input!r} is not computed", hint="make it with Preprocess.fit")
        return {name: tensor.to(x.dtype) for name, tensor in arrays.on(x.device).items()}

    @cached_property
    def _levels(self) -> tuple[Tensor, Tensor]:
        """Mean and 1 / std in units of uint8 levels; 127 / 255 becomes 127 exactly."""
        if self.steps[0].name != "channels":
            # The first step wants 0 to 1.
            return torch.zeros(self.channels), torch.full((self.channels,), 1 / 255)
        mean = torch.tensor([value * 255 for value in self.mean], dtype=torch.float64)
        std = torch.tensor([value * 255 for value in self.std], dtype=torch.float64)
        return mean.to(torch.float32), (1 / std).to(torch.float32)

    def normalise(self, batch: Tensor | NDArray[np.uint8], out: Tensor | None = None) -> Tensor:
        """x = (uint8 / 255 - mean) / std, or what else the input statistics say.

        batch: an array (N, h, w, C), or a tensor of that shape or (N, C, h, w), uint8, on any device.
        Returns (N, C, h, w) float32 in the channels_last memory format, on the same device. Both kinds give
        the same bytes; arrays are done in the calling thread alone. `out`: as many floats to put them into.

        Raises:
            StriateError: not uint8, another number of channels, or views of a size that the statistics are
                not for.
        """
        values = torch.from_numpy(np.ascontiguousarray(batch)) if isinstance(batch, np.ndarray) else batch
        if values.ndim != 4 or values.dtype != torch.uint8:
            raise StriateError(
                f"a batch of shape {tuple(values.shape)} and type {values.dtype}",
                allowed="(N, h, w, C) uint8",
            )
        if values.shape[3] != self.channels:
            if isinstance(batch, np.ndarray) or values.shape[1] != self.channels:
                raise StriateError(
                    f"a batch of shape {tuple(values.shape)}", allowed=f"{self.channels} channels"
                )
            values = values.permute(0, 2, 3, 1)
        count, rows, columns, channels = values.shape
        mean, scale = (level.to(values.device) for level in self._levels)
        # A few rows of pixels as one axis: the inner loop is long. Subtracting and multiplying in two
        # steps rounds each value the same way whatever the number of threads (a fused step does not at the
        # ends of a chunk).
        lines = math.gcd(count * rows, 8)
        mean, scale = mean.repeat(lines * columns), scale.repeat(lines * columns)
        shape = (count * rows // lines, lines * columns * channels)
        flat = (
            torch.empty(shape, dtype=torch.float32, device=values.device) if out is None else out.view(shape)
        )
        levels = values.reshape(flat.shape)
        if isinstance(batch, np.ndarray):
            # PyTorch's threads would wait for processors that the loader's workers hold.
            _normalise(levels.numpy(), mean.numpy(), scale.numpy(), flat.numpy())
        else:
            flat.copy_(levels).sub_(mean).mul_(scale)
        found = flat.view(count, rows, columns, channels).permute(0, 3, 1, 2)
        return found if self.plain else self._through_steps(found)

    def _through_steps(self, x: Tensor) -> Tensor:
        # In the usual memory order: a step's sums are then the same, whatever order the batch came in.
        done = statistics.apply_steps(self.steps, x.contiguous(), self._known(x))
        return done.contiguous(memory_format=torch.channels_last)

    def standardise(self, images: Tensor) -> Tensor:
        """The net's input for images (N, C, h, w) float of 0 to 1 that are views already; differentiable.

        Raises:
            StriateError: as of `normalise`.
        """
        if self.steps[0].name == "channels":
            mean, std = (
                torch.tensor(values, dtype=images.dtype, device=images.device).view(1, -1, 1, 1)
                for values in (self.mean, self.std)
            )
            images = (images - mean) / std
        return images if self.plain else statistics.apply_steps(self.steps, images, self._known(images))

    def invert(self, batch: Tensor) -> NDArray[np.uint8]:
        """The images behind a normalised batch: (N, C, h, w) float -> (N, h, w, C) uint8, rounded and cut.

        Raises:
            StriateError: the input statistics lose something that cannot be had back.
        """
        mean, scale = self._levels
        values = batch.detach().to("cpu", torch.float32)
        if not self.plain:
            values = statistics.invert_steps(self.steps, values, self._known(values))
        values = values.permute(0, 2, 3, 1)
        levels = (values / scale + mean).round_().clamp_(0, 255)
        return np.ascontiguousarray(levels.to(torch.uint8).numpy())

    # ------------------------------------------------------------------ making and storing

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values without the arrays; `from_dict` takes both back."""
        values = settings.to_dict(self)
        del values["arrays"]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], arrays: Mapping[str, Any] | None = None) -> Preprocess:
        """The preprocessing that `to_dict` wrote, with its `arrays`.

        Raises:
            StriateError: not a mapping, an unknown or missing key, a value that is not allowed, or arrays
                that are not those of its input statistics.
        """
        if not isinstance(values, Mapping) or "arrays" in values:
            raise StriateError(f"preprocessing is {str(values)[:60]!r}", allowed="a mapping of settings")
        found: Preprocess = settings.from_dict(cls, values)
        given = Arrays(arrays or {})
        shapes, theirs = found.array_shapes(), {name: array.shape for name, array in given.items()}
        if shapes != theirs:
            raise StriateError(f"input {found.input!r} has the arrays {theirs}", allowed=str(shapes))
        if not all(np.isfinite(array).all() for array in given.values()):
            raise StriateError(f"the arrays of input {found.input!r} are not numbers (NaN or infinite)")
        return dataclasses.replace(found, arrays=given) if given else found

    def array_shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the arrays that the input statistics hold; raises as `Step.shapes` does."""
        return statistics.expected(self.steps, self.size, self.channels)

    @classmethod
    def fit(
        cls,
        split: Images,
        size: int | tuple[int, int] | None,
        *,
        channels: int = 3,
        limit: int = 2000,
        **how: Any,
    ) -> Preprocess:
        """Preprocessing with the mean and standard deviation of a training split's views, per channel.

        At most `limit` images, evenly spaced, are read, unless the split holds its pixels in memory already;
        unreadable ones are passed over. Further input statistics are computed from at most `ARRAY_VALUES`
        values of such views: of small images that is all of most sets. Further keywords are fields of
        Preprocess.

        Raises:
            StriateError: no image can be read, or a setting is not allowed.
        """
        shape = (size, size) if isinstance(size, int) else size
        draft = cls(size=shape, channels=channels, **how)
        draft.array_shapes()
        counts = np.zeros((channels, 256), dtype=np.int64)
        pictures = getattr(split, "pictures", None)
        if pictures is not None and pictures.shape[3] == channels and draft.same_pixels(*pictures.shape[1:3]):
            for start in range(0, len(pictures), 4096):
                counts += _histogram(pictures[start : start + 4096], channels)
        else:
            for index in np.unique(np.linspace(0, len(split) - 1, min(limit, len(split))).astype(np.int64)):
                try:
                    image = split.image(int(index), at_least=draft.at_least(), channels=channels)
                except BadImage:
                    continue
                counts += _histogram(draft.view(image), channels)
        if not counts.any():
            raise StriateError(
                "no readable image to compute the mean colour from", hint="check it with 'striate data check'"
            )
        levels, weights = np.arange(256) / 255, counts / counts.sum(axis=1, keepdims=True)
        mean = weights @ levels
        std = np.sqrt((weights * (levels - mean[:, None]) ** 2).sum(axis=1))
        # One grey level is the least that a picture can vary; a constant channel must not divide by 0.
        std = np.maximum(std, 1 / 255)
        rounded = [tuple(round(float(x), 6) for x in values) for values in (mean, std)]
        draft = dataclasses.replace(draft, mean=rounded[0], std=rounded[1])
        if not draft.array_shapes():
            return draft
        kept = statistics.sample_views(split, draft)
        # What the first step is given: standardised channels, or 0 to 1.
        unit: dict[str, Any] = {"mean": (0.0,), "std": (1.0,)}
        if draft.steps[0].name == "channels":
            unit = {}
        first = dataclasses.replace(draft, input="channels", **unit)
        arrays = statistics.fit_steps(
            draft.steps, lambda: (first.normalise(part) for part in kept), shape, channels
        )
        return dataclasses.replace(draft, arrays=arrays)


def _normalise(
    levels: NDArray[np.uint8],
    mean: NDArray[np.float32],
    scale: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None:
    """out = (levels - mean) * scale, in few steps: threads wait for one another after each."""
    step = max(1, 1_500_000 // len(mean))
    for low in range(0, len(levels), step):
        part = out[low : low + step]
        part[...] = levels[low : low + step]
        np.subtract(part, mean, out=part)
        np.multiply(part, scale, out=part)


def _histogram(images: NDArray[np.uint8], channels: int) -> NDArray[np.int64]:
    flat = images.reshape(-1, channels)
    return np.stack([np.bincount(flat[:, c], minlength=256) for c in range(channels)])
