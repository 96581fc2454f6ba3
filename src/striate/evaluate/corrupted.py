"""The centre crop spoilt by noise, blur, low contrast or JPEG, and the centre crop moved a little."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import cv2
import numpy as np
from numpy.typing import NDArray

from striate.core.settings import setting
from striate.data.preprocess import Preprocess
from striate.evaluate.protocols import PROTOCOLS, Protocol, View
from striate.images import geometry

# Strength at the severities 1 to 5 on views larger than 64 pixels (ImageNet-C), and on others (CIFAR-10-C).
# Noise: standard deviation, of values 0 to 1. Blur: sigma in pixels. Contrast: what is left of it. JPEG:
# quality.
STRENGTHS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "noise": ((0.08, 0.12, 0.18, 0.26, 0.38), (0.04, 0.06, 0.08, 0.09, 0.10)),
    "blur": ((1, 2, 3, 4, 6), (0.4, 0.6, 0.7, 0.8, 1)),
    "contrast": ((0.4, 0.3, 0.2, 0.1, 0.05), (0.75, 0.5, 0.4, 0.3, 0.15)),
    "jpeg": ((25, 18, 15, 10, 7), (80, 65, 58, 50, 40)),
}
KINDS = tuple(STRENGTHS)
SEVERITIES = (1, 2, 3, 4, 5)
SMALL = 64


def corrupt(view: View, kind: str, severity: int) -> View:
    """A view (h, w, C) uint8 with one of `KINDS` of corruption, at severity 1 to 5; the same each time.

    Gaussian noise, Gaussian blur, contrast towards the mean colour, and JPEG compression, with the strengths
    of ImageNet-C and CIFAR-10-C: Hendrycks & Dietterich, arXiv:1903.12261, section 4. The noise is drawn
    from the view's own bytes.
    """
    large, small = STRENGTHS[kind]
    strength = (small if min(view.shape[:2]) <= SMALL else large)[severity - 1]
    return SPOILERS[kind](view, strength)


def _noise(view: View, deviation: float) -> View:
    draws = np.random.default_rng([1, _number(view)])
    return _levels(view + 255 * deviation * draws.standard_normal(view.shape, np.float32))


def _blur(view: View, sigma: float) -> View:
    blurred = cv2.GaussianBlur(view.astype(np.float32), (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
    return _levels(blurred.reshape(view.shape))


def _contrast(view: View, left: float) -> View:
    mean = view.mean(axis=(0, 1), keepdims=True)
    return _levels((view - mean) * left + mean)


def _jpeg(view: View, quality: float) -> View:
    # OpenCV takes blue first; the coding is that of libjpeg with its colours at half resolution.
    grey = view.shape[2] == 1
    coded = cv2.imencode(
        ".jpg", view if grey else view[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, int(quality)]
    )[1]
    decoded = cv2.imdecode(coded, cv2.IMREAD_GRAYSCALE if grey else cv2.IMREAD_COLOR)
    if decoded is None:
        raise ValueError("OpenCV cannot read the JPEG that it wrote")
    return np.ascontiguousarray(decoded.reshape(view.shape) if grey else decoded[:, :, ::-1]).astype(np.uint8)


SPOILERS: dict[str, Callable[[View, float], View]] = {
    "noise": _noise,
    "blur": _blur,
    "contrast": _contrast,
    "jpeg": _jpeg,
}


def _levels(values: NDArray[Any]) -> View:
    levels: View = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return levels


def _number(view: View) -> int:
    """A number that follows from the view's bytes: the same images get the same draws in any order."""
    return zlib.crc32(view.tobytes())


@PROTOCOLS.register("corrupted", views="1")
@dataclass(frozen=True)
class Corrupted(Protocol):
    """The one view of `center` with a corruption: noise, blur, contrast or jpeg, at severity 1 to 5."""

    name: ClassVar[str] = "corrupted"

    kind: str = setting("noise", help="the corruption", choices=KINDS)
    severity: int = setting(1, help="how strong it is", minimum=1, maximum=5)

    def views(self, image: View, preprocess: Preprocess) -> list[View]:
        """The view that `Model.predict` would run of a clean image, corrupted."""
        return [corrupt(preprocess.view(image), self.kind, self.severity)]


@PROTOCOLS.register("shifted", views="1")
@dataclass(frozen=True)
class Shifted(Protocol):
    """The one view of `center`, moved by whole pixels, up to an eighth of its side along each axis.

    The shift is uniform, drawn from the view's own bytes and `number`; what comes into sight is the rest of
    the image where the crop leaves some, its mirror image beyond the border. 28 pixels for a view of 224.
    """

    name: ClassVar[str] = "shifted"
    takes_maps: ClassVar[bool] = False

    number: int = setting(1, help="which of the random shifts", minimum=1, maximum=1000)

    def views(self, image: View, preprocess: Preprocess) -> list[View]:
        """The view of the image moved to the right and down by the drawn pixels."""
        still = preprocess.view(image)
        size = (still.shape[0], still.shape[1])
        reach = (size[0] // 8, size[1] // 8)
        draws = np.random.default_rng([2, self.number, _number(still)])
        down, right = (int(draws.integers(-most, most + 1)) for most in reach)
        matrix = geometry.compose(
            preprocess.matrix(*image.shape[:2]), geometry.translate(float(right), float(down))
        )
        return [geometry.warp(image, matrix, size, interpolation=preprocess.interpolation, border="reflect")]
