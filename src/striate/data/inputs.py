"""The input statistics beside the channels' own: pixel means, contrast normalisation, whitening."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from striate.core.errors import StriateError
from striate.core.settings import setting
from striate.data.statistics import INPUTS, Shapes, Size, Step, Views

# A whitening matrix of more dimensions would be larger than most nets, and its eigenvectors take minutes.
MOST_DIMENSIONS = 4096


@INPUTS.register("pixels", invertible=True)
@dataclass(frozen=True)
class Pixels(Step):
    """(x - M) / s: M the mean training view, pixel by pixel; s the deviation from it, one a channel.

    Krizhevsky et al. 2012, section 2 (there without the division).
    """

    name: ClassVar[str] = "pixels"
    sized: ClassVar[bool] = True

    def shapes(self, size: Size | None, channels: int) -> Shapes:
        """mean (C, h, w), std (C, 1, 1)."""
        return {"mean": (channels, *_one_size(self, size)), "std": (channels, 1, 1)}

    def fit(self, views: Views, size: Size | None, channels: int) -> dict[str, Tensor]:
        """Mean and deviation of the training views."""
        total, squares, count = torch.zeros(()), torch.zeros(()), 0
        for batch in views():
            values = batch.double()
            total, squares, count = total + values.sum(0), squares + (values**2).sum(0), count + len(batch)
        mean = total / count
        spread = (squares / count - mean**2).mean((1, 2), keepdim=True).clamp_min(0).sqrt()
        # One grey level is the least that a picture can vary; a constant channel must not divide by 0.
        return {"mean": mean, "std": spread.clamp_min(1 / 255)}

    def apply(self, x: Tensor, arrays: Mapping[str, Tensor]) -> Tensor:
        """(x - M) / s."""
        return (x - arrays["mean"]) / arrays["std"]

    def invert(self, x: Tensor, arrays: Mapping[str, Tensor]) -> Tensor:
        """x s + M."""
        return x * arrays["std"] + arrays["mean"]


@INPUTS.register("gcn", invertible=False)
@dataclass(frozen=True)
class GlobalContrast(Step):
    """Global contrast normalisation: (x - m) / sqrt(bias + v), m and v the mean and variance of the view.

    Both over all pixels and channels of one view. bias is in squared grey levels of 255: it keeps views of
    little contrast from becoming noise. Coates, Ng & Lee 2011, section 3.1; Goodfellow et al., Deep
    Learning, equation 12.3 with s = 1.
    """

    name: ClassVar[str] = "gcn"
    lost: ClassVar[str] = "the brightness and contrast of each image"

    bias: float = setting(10.0, help="added to the variance, in squared grey levels of 255", minimum=0.0)

    def apply(self, x: Tensor, arrays: Mapping[str, Tensor]) -> Tensor:
        """(x - m) / sqrt(bias + v)."""
        x = x - x.mean((1, 2, 3), keepdim=True)
        variance = (x**2).mean((1, 2, 3), keepdim=True)
        return x / (variance + self.bias / 255**2).sqrt().clamp_min(1e-8)


@INPUTS.register("lcn", invertible=False)
@dataclass(frozen=True)
class LocalContrast(Step):
    """Local contrast normalisation: x less its weighted local mean, over the local deviation.

    v = x - sum w x over a Gaussian window and all channels, with weights that sum to 1 (inside the view, at
    its borders); y = v / max(c, d), d = sqrt(sum w v^2), c the mean of d over the view. The Gaussian's
    deviation is a quarter of the window's side. Jarrett et al. 2009, section 3.1 (who take 1.591 for 9).
    """

    name: ClassVar[str] = "lcn"
    lost: ClassVar[str] = "the local brightness and contrast of each image"

    window: int = setting(9, help="side of the window in pixels, odd", minimum=3, maximum=129)

    def __post_init__(self) -> None:
        super().__post_init__()
        _odd(self, self.window)

    def apply(self, x: Tensor, arrays: Mapping[str, Tensor]) -> Tensor:
        """v / max(c, d)."""
        place = torch.arange(self.window, device=x.device, dtype=x.dtype) - self.window // 2
        weights = torch.exp(-0.5 * (place / (self.window / 4)) ** 2)
        inside = _blur(torch.ones_like(x[:1, :1]), weights)
        v = x - _blur(x.mean(1, keepdim=True), weights) / inside
        deviation = (_blur((v**2).mean(1, keepdim=True), weights) / inside).clamp_min(0).sqrt()
        # A fortieth of a grey level: a view of one colour gives 0, not 0 / 0.
        return v / torch.maximum(deviation, deviation.mean((2, 3), keepdim=True)).clamp_min(1e-4)


@INPUTS.register("zca", invertible=True)
@dataclass(frozen=True)
class Zca(Step):
    """ZCA whitening of whole views of at most 4096 values: y = W (x - m), W = V (L + e)^(-1/2) V'.

    V L V' is the covariance of the training views as vectors; e is `epsilon` times the mean variance, the
    mean of L. Krizhevsky 2009, appendix A; e as in Coates, Ng & Lee 2011 for data of variance 1.
    """

    name: ClassVar[str] = "zca"
    sized: ClassVar[bool] = True

    epsilon: float = setting(
        0.1, help="added to the variances, as a part of their mean", minimum=1e-6, maximum=1e3
    )

    def shapes(self, size: Size | None, channels: int) -> Shapes:
        """mean (D,), matrix (D, D), D = C h w.

        Raises:
            StriateError: views of more than 4096 values, or of no one size.
        """
        dimensions = channels * math.prod(_one_size(self, size))
        if dimensions > MOST_DIMENSIONS:
            raise StriateError(
                f"input {self.name!r} of views of {dimensions:,} values",
                allowed=f"at most {MOST_DIMENSIONS:,}, as 36 x 36 pixels in colour",
                hint="take zca-patches",
            )
        return {"mean": (dimensions,), "matrix": (dimensions, dimensions)}

    def fit(self, views: Views, size: Size | None, channels: int) -> dict[str, Tensor]:
        """Mean and whitening matrix of the training views."""
        return _whitening(lambda: (batch.flatten(1) for batch in views()), self.epsilon)

    def apply(self, x: Tensor, arrays: Mapping[str, Tensor]) -> Tensor:
        """W (x - m)."""
        # The matrix is symmetric: rows times it are it times columns.
        return ((x.flatten(1) - arrays["mean"]) @ arrays["matrix"]).view(x.shape)

    def invert(self, x: Tensor, arrays: Mapping[str, Tensor]) -> Tensor:
        """W^-1 y + m."""
        flat = torch.linalg.solve(arrays["matrix"].double(), x.flatten(1).double().T).T
        found: Tensor = (flat + arrays["mean"]).to(x.dtype).view(x.shape)
        return found


@INPUTS.register("zca-patches", invertible=False)
@dataclass(frozen=True)
class ZcaPatches(Step):
    """ZCA whitening of the patch around each pixel, of which the pixel is kept: images of any size.

    The rows of the patches' whitening matrix (as in `zca`) that belong to the middle pixel, as one
    convolution; beyond the border the edge goes on. Coates, Ng & Lee 2011, section 3.1.
    """

    name: ClassVar[str] = "zca-patches"
    lost: ClassVar[str] = "what the filters take away"

    window: int = setting(5, help="side of the patches in pixels, odd", minimum=3, maximum=33)
    epsilon: float = setting(
        0.1, help="added to the variances, as a part of their mean", minimum=1e-6, maximum=1e3
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        _odd(self, self.window)

    def shapes(self, size: Size | None, channels: int) -> Shapes:
        """kernel (C, C, window, window), bias (C,).

        Raises:
            StriateError: views smaller than a patch.
        """
        if size is not None and min(size) < self.window:
            raise StriateError(
                f"input '{self}' of views of {size[0]} x {size[1]} pixels",
                hint=f"give a window of at most {min(size)}",
            )
        return {"kernel": (channels, channels, self.window, self.window), "bias": (channels,)}

    def fit(self, views: Views, size: Size | None, channels: int) -> dict[str, Tensor]:
        """The filters that whiten the training patches."""

        def patches() -> Iterator[Tensor]:
            for batch in views():
                if min(batch.shape[2:]) >= self.window:
                    # A few images at a time: the patches take the window's area times their memory.
                    for part in torch.split(batch, max(1, 2_000_000 // batch[0].numel() // self.window)):
                        found = functional.unfold(part, self.window)
                        yield found.transpose(1, 2).reshape(-1, found.shape[1])

        found = _whitening(patches, self.epsilon)
        area = self.window**2
        rows = found["matrix"][torch.arange(channels) * area + area // 2]
        kernel = rows.view(channels, channels, self.window, self.window)
        return {"kernel": kernel, "bias": -(rows @ found["mean"])}

    def apply(self, x: Tensor, arrays: Mapping[str, Tensor]) -> Tensor:
        """The convolution."""
        padded = functional.pad(x, [self.window // 2] * 4, mode="replicate")
        return functional.conv2d(padded, arrays["kernel"], arrays["bias"])


def _whitening(rows: Callable[[], Iterable[Tensor]], epsilon: float) -> dict[str, Tensor]:
    """Mean (D,) and ZCA matrix (D, D) of vectors (n, D) that come in batches."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for batch in rows():
        total, count = total + batch.sum(0, dtype=torch.float64), count + len(batch)
    if not count:
        raise StriateError("no training patch to whiten by", hint="give larger images, or a smaller window")
    mean = total / count
    covariance = torch.zeros(len(mean), len(mean), dtype=torch.float64)
    for batch in rows():
        centred = (batch - mean.float()).float()
        covariance += centred.T @ centred
    values, vectors = torch.linalg.eigh(covariance / count)
    floor = max(epsilon * float(values.mean()), 1e-12)
    matrix = (vectors / (values.clamp_min(0) + floor).sqrt()) @ vectors.T
    return {"mean": mean, "matrix": (matrix + matrix.T) / 2}


def _blur(x: Tensor, weights: Tensor) -> Tensor:
    """(N, 1, h, w) filtered by the same weights down and across, 0 beyond the border."""
    half = len(weights) // 2
    x = functional.conv2d(x, weights.view(1, 1, -1, 1), padding=(half, 0))
    return functional.conv2d(x, weights.view(1, 1, 1, -1), padding=(0, half))


def _odd(step: Step, window: int) -> None:
    if window % 2 == 0:
        raise StriateError(f"the window of {step.name!r} is {window}", allowed="an odd number")


def _one_size(step: Step, size: Size | None) -> Size:
    if size is None:
        raise StriateError(f"input {step.name!r} wants images of one size", hint="give a size")
    return size
