"""Winograd's minimal filtering: 3 x 3 convolutions with a quarter of the products, on the processor."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# F(4, 3) of Lavin & Gray (arXiv:1509.09308, section 4.3): 4 outputs of a 3-tap filter from 6 inputs.
_INPUT = ((4, 0, -5, 0, 1, 0), (0, -4, -4, 1, 1, 0), (0, 4, -4, -1, 1, 0),
          (0, -2, -1, 2, 1, 0), (0, 2, -1, -2, 1, 0), (0, 4, 0, -5, 0, 1))  # fmt: skip
_FILTER = ((1 / 4, 0, 0), (-1 / 6, -1 / 6, -1 / 6), (-1 / 6, 1 / 6, -1 / 6),
           (1 / 24, 1 / 12, 1 / 6), (1 / 24, -1 / 12, 1 / 6), (0, 0, 1))  # fmt: skip
_OUTPUT = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))

# Tiles that are transformed together: enough for full matrix products, few enough for the caches.
BLOCK = 256


def _both_ways(rows: tuple[tuple[float, ...], ...]) -> Tensor:
    """The matrix that applies a transform along the rows and the columns of a flattened tile."""
    matrix = torch.tensor(rows, dtype=torch.float64)
    return torch.kron(matrix, matrix)


_TO_INPUT, _TO_FILTER, _TO_OUTPUT = (_both_ways(rows) for rows in (_INPUT, _FILTER, _OUTPUT))
_INPUT32, _OUTPUT32 = _TO_INPUT.float(), _TO_OUTPUT.float()


def filters(weight: Tensor) -> Tensor:
    """Filters (M, C, 3, 3) to their transforms (36, C, M): G g G^T of Lavin & Gray, equation 8."""
    maps, channels = weight.shape[:2]
    taps = weight.permute(2, 3, 1, 0).reshape(9, channels * maps)
    return (_TO_FILTER.to(weight) @ taps).view(36, channels, maps)


def turned(weight: Tensor) -> Tensor:
    """The filters (C, M, 3, 3) of the convolution that leads a gradient back to the input."""
    return weight.flip(2, 3).transpose(0, 1)


def pays(shape: tuple[int, ...], maps: int, padding: tuple[int, int]) -> bool:
    """Whether the tiles of maps (N, C, H, W) cost clearly less than the convolution itself.

    Per tile a convolution has 144 products for each pair of maps. The tiles' 36 run at 0.8 of its rate and
    need their filters from memory once a block, and both transforms touch each map: measured, not derived.
    """
    count, channels, height, width = shape
    height, width = height + 2 * padding[0] - 2, width + 2 * padding[1] - 2
    if min(height, width) < 1:
        return False
    tiles = -(-height // 4) * -(-width // 4)
    block = min(BLOCK, count * tiles)
    cost = 45 * (1 + 30 / block) + 2200 * (1 / channels + 1 / maps)
    return 1.1 * cost * tiles < 9 * height * width


def _padded(x: Tensor, padding: tuple[int, int], out: tuple[int, int]) -> Tensor:
    """Maps as (N, H, W, C), contiguous, padded to whole tiles."""
    rows, columns = (-(-side // 4) * 4 + 2 for side in out)
    top, left = padding
    below, right = rows - x.shape[2] - top, columns - x.shape[3] - left
    return F.pad(x.permute(0, 2, 3, 1), (0, 0, left, right, top, below)).contiguous()


def _blocks(count: int, rows: int, columns: int) -> Iterator[tuple[slice, slice]]:
    """Images and rows of tiles of each block."""
    if rows * columns <= BLOCK:
        step = BLOCK // (rows * columns)
        for first in range(0, count, step):
            yield slice(first, min(count, first + step)), slice(0, rows)
        return
    step = max(1, BLOCK // columns)
    for image in range(count):
        for first in range(0, rows, step):
            yield slice(image, image + 1), slice(first, min(rows, first + step))


def _tiles(x: Tensor, images: slice, rows: slice, columns: int, side: int) -> Tensor:
    """The tiles (side^2, n * rows * columns, C) of padded maps, one every 4 rows and columns."""
    n, high, channels = images.stop - images.start, rows.stop - rows.start, x.shape[3]
    image, row, column, _ = x.stride()
    start = x.storage_offset() + images.start * image + 4 * rows.start * row
    strides = (row, column, image, 4 * row, 4 * column, 1)
    found = x.as_strided((side, side, n, high, columns, channels), strides, start)
    return found.reshape(side * side, n * high * columns * channels)


def convolve_tiles(
    x: Tensor, transformed: Tensor, bias: Tensor | None = None, padding: tuple[int, int] = (1, 1)
) -> Tensor:
    """The 3 x 3 convolution of maps (N, C, H, W) float32 with `filters(weight)`, stride 1.

    Y = A^T [(G g G^T) . (B^T d B)] A over tiles of 6 x 6 (Lavin & Gray, equations 8 and 11). The same numbers
    as the convolution but for rounding, about 1e-5 of the largest. In channels-last memory.
    """
    count, channels = x.shape[:2]
    maps = transformed.shape[2]
    out = (x.shape[2] + 2 * padding[0] - 2, x.shape[3] + 2 * padding[1] - 2)
    rows, columns = (-(-side // 4) for side in out)
    source = _padded(x, padding, out)
    found = x.new_empty(count, rows, 4, columns, 4, maps)
    for images, high in _blocks(count, rows, columns):
        tiles = _INPUT32 @ _tiles(source, images, high, columns, 6)
        products = torch.bmm(tiles.view(36, -1, channels), transformed)
        values = (_OUTPUT32 @ products.view(36, -1)).view(4, 4, images.stop - images.start, -1, columns, maps)
        values, place = values.permute(2, 3, 0, 4, 1, 5), found[images, high]
        if bias is None:
            place.copy_(values)
        else:
            torch.add(values, bias, out=place)
    whole = found.view(count, rows * 4, columns * 4, maps)[:, : out[0], : out[1]]
    return whole.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def filters_gradient(x: Tensor, slopes: Tensor, padding: tuple[int, int]) -> Tensor:
    """The gradient (M, C, 3, 3) of the filters: maps x (N, C, H, W), outputs' gradient (N, M, H', W').

    Where V are the transformed inputs, the transformed filters have the gradient V^T (A dY A^T), summed over
    the tiles, and G^T leads it back.
    """
    count, channels = x.shape[:2]
    maps, out = slopes.shape[1], (slopes.shape[2], slopes.shape[3])
    rows, columns = (-(-side // 4) for side in out)
    source, signal = _padded(x, padding, out), _padded(slopes, (0, 0), out)
    total = x.new_zeros(36, channels, maps)
    back = _OUTPUT32.T.contiguous()
    for images, high in _blocks(count, rows, columns):
        tiles = (_INPUT32 @ _tiles(source, images, high, columns, 6)).view(36, -1, channels)
        signals = (back @ _tiles(signal, images, high, columns, 4)).view(36, -1, maps)
        total.baddbmm_(tiles.transpose(1, 2), signals)
    taps = _TO_FILTER.to(total).T @ total.view(36, -1)
    return taps.view(3, 3, channels, maps).permute(3, 2, 0, 1).contiguous()


class _Tiled(torch.autograd.Function):
    """The convolution and its gradients, each over tiles where that pays."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int], kept: Filters
    ) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        ctx.shape, ctx.padding, ctx.kept = x.shape, padding, kept
        return convolve_tiles(x, kept.ahead(weight), bias, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slopes: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        to_x, to_weight, to_bias = ctx.needs_input_grad[:3]
        inner = (2 - ctx.padding[0], 2 - ctx.padding[1])
        gradients: list[Tensor | None] = [None, None, None]
        if to_x:
            gradients[0] = convolve_tiles(slopes, ctx.kept.back(weight), None, inner)
        if to_weight:
            gradients[1] = filters_gradient(x, slopes, ctx.padding)
        if to_bias:
            gradients[2] = slopes.sum((0, 2, 3))
        return (*gradients, None, None)


class Filters:
    """The transforms of one weight, made once while it stays as it is and takes no gradient."""

    def __init__(self) -> None:
        self._found: dict[bool, tuple[tuple[int, int], Tensor]] = {}

    def ahead(self, weight: Tensor) -> Tensor:
        """For the convolution itself."""
        return self._of(weight, False)

    def back(self, weight: Tensor) -> Tensor:
        """For the gradient of its input."""
        return self._of(weight, True)

    def _of(self, weight: Tensor, back: bool) -> Tensor:
        mark = (weight.data_ptr(), 0 if weight.is_inference() else weight._version)
        if weight.requires_grad or (found := self._found.get(back)) is None or found[0] != mark:
            made = filters(turned(weight.detach()) if back else weight.detach())
            if not weight.requires_grad:
                self._found[back] = (mark, made)
            return made
        return found[1]

    def __deepcopy__(self, memo: object) -> Filters:
        return Filters()

    def __reduce__(self) -> tuple[type[Filters], tuple[()]]:
        return Filters, ()


class TiledForward:
    """What a 3 x 3 convolution of a net does with its input: tiles where they pay, else the convolution."""

    def __init__(self, padding: tuple[int, int]) -> None:
        self.padding, self.filters = padding, Filters()

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.serves(x, weight):
            outputs: Tensor = _Tiled.apply(x, weight, bias, self.padding, self.filters)
            return outputs
        return F.conv2d(x, weight, bias, 1, self.padding)

    def serves(self, x: Tensor, weight: Tensor) -> bool:
        """Whether this is for these tensors: plain float32 maps on the processor, large enough to pay."""
        if type(x) is not Tensor or x.dim() != 4 or x.device.type != "cpu" or weight.device != x.device:
            return False
        if x.dtype != torch.float32 or weight.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
            return False
        return pays((*x.shape,), weight.shape[0], self.padding)


def tileable(module: nn.Module) -> bool:
    """Whether a module is a plain 3 x 3 convolution of stride 1 with enough maps for tiles to pay."""
    if type(module) is not nn.Conv2d or module.padding_mode != "zeros" or isinstance(module.padding, str):
        return False
    plain = module.kernel_size == (3, 3) and module.stride == module.dilation == (1, 1) and module.groups == 1
    large = pays((BLOCK, module.in_channels, 6, 6), module.out_channels, (0, 0))
    return plain and large and max(module.padding) <= 2


def tile(net: nn.Module) -> int:
    """Let the 3 x 3 convolutions of a net run on tiles where that pays, for good; how many there are."""
    found = [module for module in net.modules() if tileable(module)]
    for module in found:
        module.__dict__["_conv_forward"] = TiledForward(module.padding)  # type: ignore[arg-type]
    return len(found)


@contextmanager
def tiled(net: nn.Module) -> Iterator[nn.Module]:
    """In the block the 3 x 3 convolutions of a net run on tiles where that pays; answers agree to 1e-5."""
    tile(net)
    try:
        yield net
    finally:
        for module in net.modules():
            module.__dict__.pop("_conv_forward", None)
