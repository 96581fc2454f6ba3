"""What all layers with sliding windows share: sizes as pairs, padding, how many windows there are."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from striate.core.errors import StriateError

Size = int | tuple[int, int]
# "valid", "same", a number for all sides, (vertical, horizontal), or (top, bottom, left, right).
Padding = str | int | tuple[int, int] | tuple[int, int, int, int]


def pair(size: Size, name: str = "size") -> tuple[int, int]:
    """`size` as (height, width).

    Raises:
        StriateError: it is not one positive whole number or two.
    """
    both = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    if len(both) != 2 or not all(_whole(n) and n >= 1 for n in both):
        raise StriateError(f"{name} is {size!r}", allowed="a positive whole number, or two: height and width")
    return both[0], both[1]


def windows_of(x: Tensor, kernel: tuple[int, int]) -> Tensor:
    """The window at every place of maps, stride 1, as a vector: (N, C, H, W) -> (N, h, w, C * kh * kw).

    Channel by channel, row by row: the order in which a fully connected layer reads a flattened map.
    """
    windows = x.unfold(2, kernel[0], 1).unfold(3, kernel[1], 1)
    return windows.permute(0, 2, 3, 1, 4, 5).flatten(3)


def same_padding(length: int, kernel: int, stride: int, dilation: int = 1) -> tuple[int, int]:
    """Zeros before and after one axis so that the output has ceil(length / stride) positions.

    TensorFlow's rule "SAME": an odd one goes after.
    """
    total = max(0, (-(-length // stride) - 1) * stride + dilation * (kernel - 1) + 1 - length)
    return total // 2, total - total // 2


def check_padding(padding: Padding) -> Padding:
    """The padding as "same" or (top, bottom, left, right).

    Raises:
        StriateError: it is none of the written forms.
    """
    if padding == "same":
        return padding
    if padding == "valid":
        return (0, 0, 0, 0)
    sides = tuple(padding) if isinstance(padding, (tuple, list)) else (padding,)
    if not all(_whole(n) and int(n) >= 0 for n in sides) or len(sides) not in (1, 2, 4):
        raise StriateError(
            f"padding is {padding!r}",
            allowed="'valid', 'same', a number, (vertical, horizontal) or (top, bottom, left, right)",
        )
    if len(sides) == 4:
        return sides
    vertical, horizontal = sides[0], sides[-1]
    return (vertical, vertical, horizontal, horizontal)  # type: ignore[return-value]


def sides_of(
    padding: Padding,
    shape: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int] = (1, 1),
) -> tuple[int, int, int, int]:
    """Rows and columns to add to a map of `shape`: (top, bottom, left, right), of a checked padding."""
    if padding == "same":
        (top, bottom), (left, right) = (
            same_padding(shape[i], kernel[i], stride[i], dilation[i]) for i in (0, 1)
        )
        return top, bottom, left, right
    return padding  # type: ignore[return-value]


def pad_map(x: Tensor, sides: tuple[int, int, int, int], value: float = 0.0) -> Tensor:
    """Add (top, bottom, left, right) rows and columns of `value` to (N, C, H, W)."""
    top, bottom, left, right = sides
    return F.pad(x, (left, right, top, bottom), value=value) if any(sides) else x


def window_count(length: int, kernel: int, stride: int, padding: int = 0, ceil_mode: bool = False) -> int:
    """How many windows lie along one axis; with `ceil_mode` a last one may hang over the end.

    As PyTorch counts: the last window must begin inside the map or the padding before it.
    """
    room = length + 2 * padding - kernel
    count = (-(-room // stride) if ceil_mode else room // stride) + 1
    return count - 1 if ceil_mode and (count - 1) * stride >= length + padding else count


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
