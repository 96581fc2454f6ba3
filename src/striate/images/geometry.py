"""Geometry: 3x3 matrices between pictures, and one warp that applies them.

Coordinates are (x, y) in pixels, x to the right and y down. The picture covers [0, W] x [0, H]; the centre
of the pixel in row r and column c is (c + 0.5, r + 0.5). Every matrix (float64) maps points of the INPUT
picture to points of the OUTPUT picture, so that it also carries boxes and landmarks along; `warp` inverts
it to fetch each pixel.
"""

from __future__ import annotations

import math
from typing import Any, TypeVar, cast

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from striate.core.errors import StriateError, unknown

Matrix = npt.NDArray[np.float64]
Bytes = npt.NDArray[np.uint8]
T = TypeVar("T", bound=npt.NDArray[Any])

INTERPOLATIONS = ("bilinear", "bicubic", "nearest", "area")
BORDERS = ("constant", "reflect", "edge")
CV_FLAGS = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC, "area": cv2.INTER_LINEAR}
CV_BORDERS = {
    "constant": cv2.BORDER_CONSTANT,
    "reflect": cv2.BORDER_REFLECT_101,
    "edge": cv2.BORDER_REPLICATE,
}
_CV_TYPES = tuple(np.dtype(t) for t in (np.uint8, np.uint16, np.int16, np.float32, np.float64))
SHRINK = 1.5  # beyond this reduction, bicubic is preceded by averaging over areas
SOFTEN = 3.0  # up to this reduction, bilinear is preceded by a short blur; beyond, by averaging
MAX_SIDE = 32_000  # OpenCV's warp counts source pixels in 16 bits
Fill = float | tuple[float, ...]


def identity() -> Matrix:
    """The matrix that leaves every point in place."""
    return np.eye(3)


def translate(dx: float, dy: float) -> Matrix:
    """Move by `dx` pixels to the right and `dy` down."""
    return np.array([[1, 0, dx], [0, 1, dy], [0, 0, 1]], float)


def scale(sx: float, sy: float | None = None, center: tuple[float, float] = (0.0, 0.0)) -> Matrix:
    """Enlarge `sx`-fold in x and `sy`-fold in y (the same when left out), keeping `center` in place."""
    return _about(np.diag([sx, sx if sy is None else sy, 1.0]), center)


def rotate(degrees: float, center: tuple[float, float] = (0.0, 0.0)) -> Matrix:
    """Turn by `degrees`, counter-clockwise as seen on the screen, about `center`."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return _about(np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]]), center)


def shear(x_degrees: float, y_degrees: float = 0.0, center: tuple[float, float] = (0.0, 0.0)) -> Matrix:
    """Slant: x grows by tan(x_degrees) * y and y by tan(y_degrees) * x, measured from `center`."""
    x, y = math.tan(math.radians(x_degrees)), math.tan(math.radians(y_degrees))
    return _about(np.array([[1, x, 0], [y, 1, 0], [0, 0, 1]]), center)


def flip(width: float) -> Matrix:
    """Mirror left and right in a picture of this width: x becomes width - x."""
    return np.array([[-1, 0, width], [0, 1, 0], [0, 0, 1]], float)


def compose(*matrices: Matrix) -> Matrix:
    """One matrix that does all of `matrices`, the first one first."""
    result = np.eye(3)
    for matrix in matrices:
        result = matrix @ result
    return result


def crop_resize(box: tuple[float, float, float, float], size: tuple[int, int]) -> Matrix:
    """Show the box (x0, y0, x1, y1) of the input as a picture of `size` (height, width).

    Boxes on whole pixels inside the picture take the fast path of `warp`.

    Raises:
        StriateError: the box is empty.
    """
    x0, y0, x1, y1 = box
    if not (x1 > x0 and y1 > y0):
        raise StriateError(f"the crop box {box} is empty", allowed="x0 < x1 and y0 < y1")
    sx, sy = size[1] / (x1 - x0), size[0] / (y1 - y0)
    return np.array([[sx, 0, -x0 * sx], [0, sy, -y0 * sy], [0, 0, 1]], float)


def center_crop_matrix(h: int, w: int, size: tuple[int, int], crop_pct: float = 1.0) -> Matrix:
    """The evaluation view: the largest centred box of the shape of `size`, times `crop_pct`, shown as `size`.

    The same as resizing so that `size / crop_pct` is covered and cutting out the middle, in one step.
    """
    factor = max(size[0] / h, size[1] / w) / crop_pct
    bh, bw = size[0] / factor, size[1] / factor
    return crop_resize(((w - bw) / 2, (h - bh) / 2, (w + bw) / 2, (h + bh) / 2), size)


def transform_points(points: npt.ArrayLike, matrix: Matrix) -> npt.NDArray[np.float64]:
    """Points (N, 2) of the input as points (N, 2) of the output."""
    xy = np.asarray(points, float).reshape(-1, 2)
    moved = np.concatenate([xy, np.ones((len(xy), 1))], axis=1) @ matrix.T
    return moved[:, :2] / moved[:, 2:]


def resize(image: T, size: tuple[int, int], interpolation: str = "bilinear") -> T:
    """The whole picture at `size` (height, width); as `warp` otherwise."""
    h, w = image.shape[:2]
    return warp(image, crop_resize((0, 0, w, h), size), size, interpolation, border="edge")


def slice_view(image: Bytes, box: tuple[int, int, int, int], size: tuple[int, int], mirrored: bool) -> Bytes:
    """What `warp` by "bilinear" makes of the whole pixels x0, y0, x1, y1 of a picture (H, W, C), sooner."""
    x0, y0, x1, y1 = box
    part = image[y0:y1, x0:x1]
    seen: Bytes = _resized(part, size, "bilinear").reshape(*size, image.shape[2])
    if mirrored:
        return np.asarray(cv2.flip(seen, 1), np.uint8).reshape(seen.shape)
    return seen.copy() if seen.base is not None and np.shares_memory(seen, image) else seen


def warp(
    image: T,
    matrix: Matrix,
    size: tuple[int, int],
    interpolation: str = "bilinear",
    border: str = "constant",
    fill: Fill = 0,
) -> T:
    """The picture of `size` (height, width) that `matrix` makes of `image`; dtype and channels are kept.

    `image` is (H, W) or (H, W, C) of any real dtype. Points outside the input are `fill` (border
    "constant"), its nearest pixel ("edge") or its mirror image without repeating the edge ("reflect").
    "nearest" takes the pixel that contains the point and works on any integers. Where the picture shrinks
    along an axis, fine patterns must not alias: "bilinear" blurs first (a box by more than 1.1, other maps
    by more than 1.5), so that the whole is about the triangle filter of Pillow's antialiased bilinear, and
    averages over areas beyond 3; "bicubic" averages beyond 1.5, "area" always; "bicubic" on uint8 boxes
    inside the picture is Pillow's antialiased bicubic (a = -0.5).

    Raises:
        StriateError: an unknown interpolation or border, an empty picture or size, or a matrix without
        inverse.
    """
    _check(image, size, interpolation, border)
    inverse = _inverse(np.asarray(matrix, float))
    if interpolation == "nearest":
        return cast(T, _nearest(image, inverse, size, border, fill))
    plain = image if image.dtype in _CV_TYPES else image.astype(np.float32)
    result = _boxed(plain, inverse, size, interpolation)
    if result is None:
        result = _affine(plain, inverse, size, interpolation, border, fill)
    if result.dtype != image.dtype:
        result = _cast(result, image.dtype)
    return cast(T, result.reshape(*size, *image.shape[2:]))


def _inverse(matrix: Matrix) -> Matrix:
    """The inverse, its last entry 1; raises StriateError where there is none."""
    (a, b, c), (d, e, f), last = matrix.tolist()
    determinant = a * e - b * d
    # Written out for affine maps: ten times as fast as the general way, once for each image of a loader.
    if last == [0, 0, 1] and math.isfinite(determinant + c + f) and abs(determinant) > 1e-12:
        rows = [[e, -b, b * f - c * e], [-d, a, c * d - a * f], [0, 0, determinant]]
        return cast(Matrix, np.array(rows, float) / determinant)
    try:
        inverse = np.linalg.inv(matrix)
    except np.linalg.LinAlgError:
        inverse = np.full((3, 3), np.nan)
    if not np.isfinite(inverse).all() or abs(inverse[2]).max() > 1e12:
        raise StriateError("the matrix of the warp has no inverse", hint="do not scale by 0")
    return cast(Matrix, inverse / inverse[2, 2])


def _about(matrix: Matrix, center: tuple[float, float]) -> Matrix:
    return compose(translate(-center[0], -center[1]), matrix, translate(*center))


def _check(image: npt.NDArray[Any], size: tuple[int, int], interpolation: str, border: str) -> None:
    if interpolation not in INTERPOLATIONS:
        raise unknown("interpolation", interpolation, INTERPOLATIONS)
    if border not in BORDERS:
        raise unknown("border", border, BORDERS)
    if image.ndim not in (2, 3) or 0 in image.shape or min(size) < 1:
        raise StriateError(
            f"a picture of shape {image.shape} cannot be warped to {tuple(size)}",
            allowed="(H, W) or (H, W, C) with pixels, and sizes of at least 1x1",
        )


def _cast(values: npt.NDArray[Any], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    if dtype == np.bool_:
        return np.asarray(values >= 0.5)
    if np.issubdtype(dtype, np.integer):
        values = np.clip(np.rint(values), np.iinfo(dtype).min, np.iinfo(dtype).max)
    return np.asarray(values, dtype=dtype)


def _boxed(
    image: npt.NDArray[Any], inverse: Matrix, size: tuple[int, int], interpolation: str
) -> npt.NDArray[Any] | None:
    """The output when it shows an upright or mirrored box within the input; None in all other cases."""
    (sx, slant_x, dx), (slant_y, sy, dy), last = inverse.tolist()
    if slant_x or slant_y or last[0] or last[1]:
        return None
    h, w = image.shape[:2]
    xs, ys = sorted((dx, dx + sx * size[1])), sorted((dy, dy + sy * size[0]))
    tolerance = 1e-6 * max(h, w)
    if xs[0] < -tolerance or ys[0] < -tolerance or xs[1] > w + tolerance or ys[1] > h + tolerance:
        return None
    near = [round(value) for value in (xs[0], ys[0], xs[1], ys[1])]
    whole = all(abs(a - b) <= tolerance for a, b in zip(near, (xs[0], ys[0], xs[1], ys[1]), strict=True))
    x0, y0, x1, y1 = near
    if interpolation == "bicubic" and image.dtype == np.uint8 and _channels(image) in (1, 3):
        box = (max(xs[0], 0.0), max(ys[0], 0.0), min(xs[1], float(w)), min(ys[1], float(h)))
        result = _pillow_bicubic(image, (x0, y0, x1, y1) if whole else box, size)
    elif whole and x1 > x0 and y1 > y0:
        result = _resized(image[y0:y1, x0:x1], size, interpolation)
    else:
        return None
    left_right, up_down = sx < 0, sy < 0
    if left_right or up_down:
        return np.asarray(cv2.flip(result, -1 if left_right and up_down else int(left_right)))
    return np.array(result) if np.shares_memory(result, image) else result


def _channels(image: npt.NDArray[Any]) -> int:
    return 1 if image.ndim == 2 else image.shape[2]


def _pillow_bicubic(
    image: npt.NDArray[Any], box: tuple[float, ...], size: tuple[int, int]
) -> npt.NDArray[Any]:
    # Only the rows and columns in reach of the filter (2 pixels, times the reduction) are handed over.
    reach_x = math.ceil(2 * max(1.0, (box[2] - box[0]) / size[1])) + 1
    reach_y = math.ceil(2 * max(1.0, (box[3] - box[1]) / size[0])) + 1
    left, top = max(0, math.floor(box[0]) - reach_x), max(0, math.floor(box[1]) - reach_y)
    part = image[top : math.ceil(box[3]) + reach_y, left : math.ceil(box[2]) + reach_x]
    picture = Image.fromarray(np.ascontiguousarray(part[..., 0] if part.shape[2:] == (1,) else part))
    inside = (box[0] - left, box[1] - top, box[2] - left, box[3] - top)
    return np.array(picture.resize(size[::-1], Image.Resampling.BICUBIC, box=inside))


def _resized(part: npt.NDArray[Any], size: tuple[int, int], interpolation: str) -> npt.NDArray[Any]:
    """An OpenCV resize, preceded by blurring or averaging along the axes that shrink."""
    h, w = part.shape[:2]
    if (h, w) == tuple(size):
        return part
    limit = _area_limit(interpolation)
    if interpolation == "bilinear":
        part = _softened(part, w / size[1], h / size[0], 1.1)
    middle = (size[0] if h > limit * size[0] else h, size[1] if w > limit * size[1] else w)
    if middle != (h, w):
        part = cv2.resize(part, middle[::-1], interpolation=cv2.INTER_AREA)
    if middle != tuple(size):
        part = cv2.resize(part, size[::-1], interpolation=CV_FLAGS[interpolation])
    return part


def _area_limit(interpolation: str) -> float:
    """The reduction beyond which a picture is averaged over areas first."""
    return {"area": 1.0, "bilinear": SOFTEN}.get(interpolation, SHRINK)


def _softened(image: npt.NDArray[Any], x: float, y: float, least: float) -> npt.NDArray[Any]:
    """Blurred for a reduction by `x` and `y`, along the axes where it is above `least`, up to SOFTEN.

    Linear interpolation is a triangle filter of half-width 1 and variance 1/6; reduced by s, the half-width
    should be s. A blur of variance (s^2 - 1) / 6 makes up the difference. It costs a third of averaging
    over areas, and comes closer to the triangle.
    """
    (taps_x, sigma_x), (taps_y, sigma_y) = (_blur(s) if least < s <= SOFTEN else (1, 1.0) for s in (x, y))
    if taps_x == taps_y == 1:
        return image
    border = cv2.BORDER_REPLICATE
    return np.asarray(cv2.GaussianBlur(image, (taps_x, taps_y), sigma_x, sigmaY=sigma_y, borderType=border))


def _blur(reduction: float) -> tuple[int, float]:
    """Taps and sigma of the blur before a reduction."""
    variance = (reduction**2 - 1) / 6
    if reduction > 2:
        return 5, math.sqrt(variance)
    # Three taps [a, 1 - 2a, a] have variance 2a; OpenCV makes them from a / (1 - 2a) = exp(-1 / (2 sigma^2)).
    a = variance / 2
    return 3, math.sqrt(-0.5 / math.log(a / (1 - 2 * a)))


def _affine(
    image: npt.NDArray[Any],
    inverse: Matrix,
    size: tuple[int, int],
    interpolation: str,
    border: str,
    fill: Fill,
) -> npt.NDArray[Any]:
    """One OpenCV warp, after blurring or averaging where the picture shrinks."""
    if abs(inverse[2, :2]).max() > 0:
        raise StriateError("the matrix of the warp is a perspective one", allowed="affine: last row 0 0 1")
    # How many input pixels, along each input axis, lie under one step of the output.
    x, y = np.hypot(inverse[:2, 0], inverse[:2, 1]).tolist()
    image, sx, sy = antialiased(image, x, y, interpolation)
    if (sx, sy) != (1, 1):
        inverse = scale(sx, sy) @ inverse
    centred = translate(-0.5, -0.5) @ inverse @ translate(0.5, 0.5)
    return cast(
        "npt.NDArray[Any]",
        cv2.warpAffine(
            image,
            centred[:2],
            size[::-1],
            flags=CV_FLAGS[interpolation] | cv2.WARP_INVERSE_MAP,
            borderMode=CV_BORDERS[border],
            borderValue=fill_values(image, fill),
        ),
    )


def antialiased(
    image: npt.NDArray[Any], x: float, y: float, interpolation: str
) -> tuple[npt.NDArray[Any], float, float]:
    """A picture made ready to be reduced by `x` and `y`, blurred or averaged, and its scale since then."""
    h, w = image.shape[:2]
    limit = _area_limit(interpolation)
    if interpolation == "bilinear":
        image = _softened(image, x, y, SHRINK)
    reduced = [
        max(1, round(side / factor)) if factor > limit else min(side, MAX_SIDE)
        for side, factor in ((w, x), (h, y))
    ]
    if reduced == [w, h]:
        return image, 1.0, 1.0
    return cv2.resize(image, reduced, interpolation=cv2.INTER_AREA), reduced[0] / w, reduced[1] / h


def fill_values(image: npt.NDArray[Any], fill: Fill) -> tuple[float, ...]:
    """The colour beyond the picture as OpenCV wants it: one value for each of up to 4 channels."""
    values = (fill,) * _channels(image) if isinstance(fill, (int, float)) else tuple(fill)
    return values[:4]


def _nearest(
    image: npt.NDArray[Any], inverse: Matrix, size: tuple[int, int], border: str, fill: Fill
) -> npt.NDArray[Any]:
    """The input pixel under each output pixel's centre, by indexing: exact for any dtype."""
    y, x = np.arange(size[0]) + 0.5, np.arange(size[1]) + 0.5
    if not inverse[0, 1] and not inverse[1, 0]:
        columns = np.floor(inverse[0, 0] * x + inverse[0, 2] + 1e-9).astype(np.int64)[None, :]
        rows = np.floor(inverse[1, 1] * y + inverse[1, 2] + 1e-9).astype(np.int64)[:, None]
    else:
        columns = np.floor(
            inverse[0, 0] * x[None] + inverse[0, 1] * y[:, None] + inverse[0, 2] + 1e-9
        ).astype(int)
        rows = np.floor(inverse[1, 0] * x[None] + inverse[1, 1] * y[:, None] + inverse[1, 2] + 1e-9).astype(
            int
        )
    return fetched(image, columns, rows, border, fill)


def fetched(
    image: npt.NDArray[Any],
    columns: npt.NDArray[np.int64],
    rows: npt.NDArray[np.int64],
    border: str,
    fill: Fill,
) -> npt.NDArray[Any]:
    """The pixels of a picture at these columns and rows, which may lie outside of it."""
    h, w = image.shape[:2]
    inside = (columns >= 0) & (columns < w) & (rows >= 0) & (rows < h)
    if border == "reflect":
        columns, rows = _mirror(columns, w), _mirror(rows, h)
    else:
        columns, rows = columns.clip(0, w - 1), rows.clip(0, h - 1)
    result = image[rows, columns]
    if border == "constant" and not inside.all():
        result[~inside] = np.asarray(fill).astype(image.dtype)
    return np.ascontiguousarray(result)


def _mirror(index: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    if count == 1:
        return np.zeros_like(index)
    period = 2 * (count - 1)
    return (count - 1) - abs(index % period - (count - 1))
