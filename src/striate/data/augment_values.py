"""Augmentations that change values: AlexNet's shift of principal colours, grey, blur, noise, erased boxes."""

from __future__ import annotations

import copy
import functools
import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from striate.core.errors import BadImage, StriateError
from striate.core.settings import setting
from striate.data.augmentations import AUGMENTATIONS, Augmentation, Colour, Floats
from striate.images import colour, tone

if TYPE_CHECKING:
    from striate.data.preprocess import Preprocess
    from striate.data.samples import Split

Bytes = NDArray[np.uint8]
# What fb.resnet.torch and its followers use for ImageNet's training images, values 0 to 1: the weight of
# each component, and the components (R, G, B) as columns.
IMAGENET = (
    np.array([0.2175, 0.0188, 0.0045]),
    np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]),
)
FITTED_ON = 500
"""Training images from which the principal colours are computed."""


@AUGMENTATIONS.register("pca-colour", kind="colour")
@dataclass(frozen=True)
class PcaColour(Colour):
    """Add to every pixel sum_i p_i a_i l_i, p_i and l_i the principal colours and their variances.

    a_i: normal, standard deviation `sigma`, one for each component of an image. Krizhevsky et al. (AlexNet,
    NIPS 2012), section 4.1. statistics "imagenet": the published ones (0.2175, 0.0188, 0.0045); "data":
    eigenvectors and eigenvalues of the covariance of the training views' pixels (values 0 to 1; at most 500
    images, evenly spaced). A grey image takes the luma of the shift.
    """

    draws: ClassVar[int] = 3
    sigma: float = setting(0.1, help="standard deviation of the a_i", minimum=0.0, maximum=10.0)
    statistics: str = setting("imagenet", help="where p_i and l_i come from", choices=("imagenet", "data"))

    def fitted(self, split: Split, preprocess: Preprocess) -> Augmentation:
        if self.statistics == "imagenet" or "components" in self.__dict__:
            return self
        found = copy.copy(self)
        object.__setattr__(found, "components", principal_colours(split, preprocess))
        return found

    def shift(self, u: Floats) -> Floats:
        """What is added to every pixel, (C,) in levels of 0 to 255, for numbers u (draws,)."""
        found: tuple[Floats, Floats] | None = self.__dict__.get("components")
        if found is None:
            if self.statistics == "data":
                raise StriateError(
                    "the principal colours of the data are not computed yet", hint="use fitted(split, ...)"
                )
            found = IMAGENET
        variances, components = found
        drawn = np.array([NormalDist().inv_cdf(x) for x in u.tolist()[: len(variances)]]) * self.sigma
        return np.asarray(255 * components @ (drawn * variances))

    def change(self, image: Bytes, u: Floats, fill: tuple[int, ...]) -> Bytes:
        added = self.shift(u)
        if image.shape[2] == 1 and len(added) == 3:
            added = np.array([colour.LUMA @ added])
        return tone.shift(image, added)


def principal_colours(split: Split, preprocess: Preprocess) -> tuple[Floats, Floats]:
    """Variances (C,), largest first, and principal colours (C, C), as columns, of the training views' pixels.

    Raises:
        StriateError: no image can be read.
    """
    count, total, squares = 0, np.zeros(preprocess.channels), np.zeros((preprocess.channels,) * 2)
    for index in np.unique(np.linspace(0, len(split) - 1, min(FITTED_ON, len(split))).astype(int)):
        try:
            image = split.image(int(index), at_least=preprocess.at_least(), channels=preprocess.channels)
        except BadImage:
            continue
        pixels = preprocess.view(image).reshape(-1, preprocess.channels) / 255
        count, total, squares = count + len(pixels), total + pixels.sum(axis=0), squares + pixels.T @ pixels
    if not count:
        raise StriateError(
            "no readable image to compute the principal colours from", hint="see 'striate data check'"
        )
    mean = total / count
    variances, components = np.linalg.eigh(squares / count - np.outer(mean, mean))
    # The sign of an eigenvector is free: its largest entry is made positive.
    largest = np.abs(components).argmax(axis=0)
    components = components * np.sign(components[largest, np.arange(len(largest))])
    return np.maximum(variances[::-1], 0), components[:, ::-1]


@AUGMENTATIONS.register("grey", kind="colour", needs_colour=True)
@dataclass(frozen=True)
class Grey(Colour):
    """With probability p, all channels become the luma 0.299 R + 0.587 G + 0.114 B.

    Chen et al. (SimCLR), arXiv:2002.05709, appendix A: p = 0.2.
    """

    draws: ClassVar[int] = 1
    p: float = setting(0.2, help="probability", minimum=0.0, maximum=1.0)

    def change(self, image: Bytes, u: Floats, fill: tuple[int, ...]) -> Bytes:
        if image.shape[2] == 1 or not float(u[0]) < self.p:
            return image
        return np.repeat(colour.to_grey(image), image.shape[2], axis=2)


@AUGMENTATIONS.register("blur", kind="colour")
@dataclass(frozen=True)
class Blur(Colour):
    """With probability p, a Gaussian blur whose standard deviation is uniform in [low, high] pixels.

    Chen et al. (SimCLR), arXiv:2002.05709, appendix A: 0.1 to 2 pixels, p = 0.5.
    """

    draws: ClassVar[int] = 2
    low: float = setting(0.1, help="least standard deviation in pixels", minimum=0.01, maximum=100.0)
    high: float = setting(2.0, help="largest standard deviation in pixels", minimum=0.01, maximum=100.0)
    p: float = setting(0.5, help="probability", minimum=0.0, maximum=1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        ordered("blur", self.low, self.high)

    def change(self, image: Bytes, u: Floats, fill: tuple[int, ...]) -> Bytes:
        if not float(u[0]) < self.p:
            return image
        return tone.blur(image, self.low + float(u[1]) * (self.high - self.low))


@AUGMENTATIONS.register("noise", kind="colour")
@dataclass(frozen=True)
class Noise(Colour):
    """Add normal noise of standard deviation `sigma` (values 0 to 1) to each value, rounded and clipped.

    Sietsma & Dow, "Creating artificial neural networks that generalize", Neural Networks 4 (1991).
    """

    draws: ClassVar[int] = 2
    sigma: float = setting(0.05, help="standard deviation, for values 0 to 1", minimum=0.0, maximum=1.0)

    def change(self, image: Bytes, u: Floats, fill: tuple[int, ...]) -> Bytes:
        added = normals()[words(u, image.size).reshape(image.shape)]
        added = np.rint(image + np.float32(255 * self.sigma) * added)
        return np.clip(added, 0, 255, out=added).astype(np.uint8)


@AUGMENTATIONS.register("cutout", kind="colour")
@dataclass(frozen=True)
class Cutout(Colour):
    """A square of side `size` pixels, its centre uniform over the image, filled with the mean colour.

    It may reach beyond the image; masks and boxes stay. DeVries & Taylor, arXiv:1708.04552, section 3.
    """

    draws: ClassVar[int] = 2
    size: int = setting(8, help="side of the square in pixels of the view", minimum=1, maximum=16384)

    def box(self, u: Floats, height: int, width: int) -> tuple[int, int, int, int]:
        """x0, y0, x1, y1 of the square, cut to the image."""
        x0, y0 = (int(float(x) * side) - self.size // 2 for x, side in zip(u, (width, height), strict=True))
        return max(0, x0), max(0, y0), min(width, x0 + self.size), min(height, y0 + self.size)

    def change(self, image: Bytes, u: Floats, fill: tuple[int, ...]) -> Bytes:
        x0, y0, x1, y1 = self.box(u, *image.shape[:2])
        found = image.copy()
        found[y0:y1, x0:x1] = fill
        return found


@AUGMENTATIONS.register("random-erasing", kind="colour")
@dataclass(frozen=True)
class RandomErasing(Colour):
    """With probability p, a box of random area, aspect and place filled with random values, one each.

    Area: uniform in [low, high] of the image; height / width: uniform in [ratio, 1 / ratio]; its corner:
    uniform over the image; drawn anew (at most 12 times) until it lies within. Masks and boxes stay. Zhong
    et al., arXiv:1708.04896, algorithm 1.
    """

    TRIES: ClassVar[int] = 12
    draws: ClassVar[int] = 3 + 4 * TRIES
    p: float = setting(0.5, help="probability", minimum=0.0, maximum=1.0)
    low: float = setting(0.02, help="least area, as a fraction of the image", minimum=0.0, maximum=1.0)
    high: float = setting(0.4, help="largest area, as a fraction of the image", minimum=0.0, maximum=1.0)
    ratio: float = setting(0.3, help="least height / width", minimum=0.01, maximum=1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        ordered("random-erasing", self.low, self.high)

    def box(self, u: Floats, height: int, width: int) -> tuple[int, int, int, int] | None:
        """x0, y0, x1, y1 of the box; None where there is none."""
        numbers = u.tolist()
        if not numbers[0] < self.p:
            return None
        for area, aspect, x, y in zip(*(iter(numbers[3:]),) * 4, strict=True):
            size = (self.low + area * (self.high - self.low)) * height * width
            shape = self.ratio + aspect * (1 / self.ratio - self.ratio)
            rows, columns = round(math.sqrt(size * shape)), round(math.sqrt(size / shape))
            x0, y0 = int(x * width), int(y * height)
            if x0 + columns <= width and y0 + rows <= height:
                return x0, y0, x0 + columns, y0 + rows
        return None

    def change(self, image: Bytes, u: Floats, fill: tuple[int, ...]) -> Bytes:
        found = self.box(u, *image.shape[:2])
        if found is None:
            return image
        x0, y0, x1, y1 = found
        changed = image.copy()
        part = changed[y0:y1, x0:x1]
        part[...] = words(u[1:3], part.size).view(np.uint8)[: part.size].reshape(part.shape)
        return changed


def ordered(name: str, low: float, high: float) -> None:
    """Raise where a range is the wrong way round.

    Raises:
        StriateError: low > high.
    """
    if low > high:
        raise StriateError(f"{name}: low is {low:g} and high {high:g}", allowed="the smaller one first")


def words(u: Floats, count: int) -> NDArray[np.uint16]:
    """`count` even 16-bit numbers: the words of Philox-4x64-10 with the two random numbers u as its key."""
    key = [int(float(x) * 2**32) for x in u[:2]]
    raw = np.random.Philox(key=np.array(key, dtype=np.uint64), counter=0).random_raw(-(-count // 4))
    return np.asarray(raw, dtype="<u8").view("<u2")[:count].astype(np.uint16, copy=False)


@functools.cache
def normals() -> NDArray[np.float32]:
    """The normal quantiles of 16-bit numbers, (65536,): a look-up makes an even number a normal one."""
    upper = [NormalDist().inv_cdf((i + 0.5) / 65536) for i in range(32768, 65536)]
    half: NDArray[Any] = np.array(upper, dtype=np.float32)
    return np.concatenate([-half[::-1], half])
