"""Winograd's minimal filtering: 3 x 3 convolutions with a quarter of the products, on the processor."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# F(4, 3) of Lavin & Gray (arXiv:1509.09308, section 4.3): 4 outputs of a 3-tap filter from 6 inputs.
_INPUT = ((4.0, 0, -5, 0, 1, 0), (0, -4, -4, 1, 1, 0), (0, 4, -4, -1, 1, 0),
          (0, -2, -1, 2, 1, 0), (0, 2, -1, -2, 1, 0), (0, 4, 0, -5, 0, 1))  # fmt: skip
_FILTER = ((1 / 4, 0, 0), (-1 / 6, -1 / 6, -1 / 6), (-1 / 6, 1 / 6, -1 / 6),
           (1 / 24, 1 / 12, 1 / 6), (1 / 24, -1 / 12, 1 / 6), (0, 0, 1))  # fmt: skip
_OUTPUT = ((1.0, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))

# Tiles that are transformed together: enough for full matrix products, few enough for the caches.
BLOCK = 256


# The transforms of Lavin & Gray, section 4.3: B^T of the input, G of the filter, A^T of the output.
_TO_INPUT, _TO_FILTER, _TO_OUTPUT = (torch.tensor(rows) for rows in (_INPUT, _FILTER, _OUTPUT))
_FROM_OUTPUT = _TO_OUTPUT.T.contiguous()


def filters(weight: Tensor) -> Tensor:
    """Filters (M, C, 3, 3) to their transforms (36, C, M): G g G^T of Lavin & Gray, equation 8."""
    maps, channels = weight.shape[:2]
    taps = weight.permute(2, 3, 1, 0).reshape(3, 3, channels * maps)
    return _transformed(_TO_FILTER.to(weight), taps).view(36, channels, maps)


def turned(weight: Tensor) -> Tensor:
    """The filters (C, M, 3, 3) of the convolution that leads a gradient back to the input."""
    return weight.flip(2, 3).transpose(0, 1)


def pays(shape: tuple[int, ...], maps: int, padding: tuple[int, int], fresh: bool = False) -> bool:
    """Whether tiles cost clearly less than the convolution of maps (N, C, H, W) itself.

    Measured, not derived: with the 144 products per tile and pair of maps of the convolution as 144, the
    matrix products of a tile take 42, the filters as long as those of 14 tiles to come from memory, once a
    block, and the transforms 4200 / C + 4200 / M. `fresh` filters, of weights in training, are to be
    transformed first, which takes as long as 120 tiles.
    """
    count, channels, height, width = shape
    height, width = height + 2 * padding[0] - 2, width + 2 * padding[1] - 2
    if min(height, width) < 1:
        return False
    tiles = -(-height // 4) * -(-width // 4)
    waits = 14 / min(BLOCK, count * tiles) + (120 / (count * tiles) if fresh else 0)
    cost = 42 * (1 + waits) + 4200 * (1 / channels + 1 / maps)
    return 1.1 * cost * tiles < 9 * height * width


def _transformed(matrix: Tensor, tiles: Tensor) -> Tensor:
    """M t M^T of tiles (a, a, n), for a matrix (b, a): (b, b, n)."""
    wide, deep = matrix.shape
    columns = torch.bmm(matrix.expand(deep, wide, deep), tiles)
    return (matrix @ columns.view(deep, -1)).view(wide, wide, -1)


class _Plan:
    """The tiles of maps (N, C, H, W), a block at a time: windows of `side` rows and columns, one every 4."""

    def __init__(self, x: Tensor, side: int, padding: tuple[int, int], out: tuple[int, int]) -> None:
        self.x, self.side, self.padding = x.permute(0, 2, 3, 1), side, padding
        self.rows, self.columns = (-(-length // 4) for length in out)
        self.images = max(1, min(x.shape[0], BLOCK // (self.rows * self.columns)))
        self.high = self.rows if self.images > 1 else max(1, min(self.rows, BLOCK // self.columns))
        # Maps lie inside zeros; the buffer holds the rows of one block, with a border that stays zero.
        self.room = x.new_zeros(
            self.images, 4 * self.high + side - 4, 4 * self.columns + side - 4, x.shape[1]
        )

    def blocks(self) -> list[tuple[slice, slice]]:
        """Images and rows of tiles of each block."""
        count = self.x.shape[0]
        return [
            (slice(image, min(count, image + self.images)), slice(row, min(self.rows, row + self.high)))
            for image in range(0, count, self.images)
            for row in range(0, self.rows, self.high)
        ]

    def tiles(self, images: slice, rows: slice) -> Tensor:
        """The tiles (side, side, n * rows * columns * C) of a block."""
        top, left = self.padding
        first = 4 * rows.start - top
        low, high = max(0, first), min(self.x.shape[1], 4 * rows.stop + self.side - 4 - top)
        width = min(self.x.shape[2], self.room.shape[2] - left)
        room = self.room[: images.stop - images.start]
        room[:, : low - first].zero_()
        room[:, low - first : high - first, left : left + width] = self.x[images, low:high, :width]
        room[:, high - first :].zero_()
        image, row, column, _ = room.stride()
        shape = (self.side, self.side, len(room), rows.stop - rows.start, self.columns, room.shape[3])
        found = room.as_strided(shape, (row, column, image, 4 * row, 4 * column, 1))
        return found.reshape(self.side, self.side, -1)


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
    plan = _Plan(x, 6, padding, out)
    found = x.new_empty(count, 4 * plan.rows, 4 * plan.columns, maps)
    places = found.view(count, plan.rows, 4, plan.columns, 4, maps)
    for images, rows in plan.blocks():
        tiles = _transformed(_TO_INPUT, plan.tiles(images, rows)).view(36, -1, channels)
        products = torch.bmm(tiles, transformed).view(6, 6, -1)
        place = places[images, rows]
        values = _transformed(_TO_OUTPUT, products).view(4, 4, *place.shape[:2], plan.columns, maps)
        values = values.permute(2, 3, 0, 4, 1, 5)
        if bias is None:
            place.copy_(values)
        else:
            torch.add(values, bias, out=place)
    whole = found[:, : out[0], : out[1]].permute(0, 3, 1, 2)
    return whole.contiguous(memory_format=torch.channels_last)


def filters_gradient(x: Tensor, slopes: Tensor, padding: tuple[int, int]) -> Tensor:
    """The gradient (M, C, 3, 3) of the filters: maps x (N, C, H, W), outputs' gradient (N, M, H', W').

    Where V are the transformed inputs, the transformed filters have the gradient V^T (A dY A^T), summed over
    the tiles, and G^T leads it back.
    """
    channels, maps = x.shape[1], slopes.shape[1]
    out = (slopes.shape[2], slopes.shape[3])
    plan, signal = _Plan(x, 6, padding, out), _Plan(slopes, 4, (0, 0), out)
    total = x.new_zeros(36, channels, maps)
    for images, rows in plan.blocks():
        tiles = _transformed(_TO_INPUT, plan.tiles(images, rows)).view(36, -1, channels)
        signals = _transformed(_FROM_OUTPUT, signal.tiles(images, rows)).view(36, -1, maps)
        total.baddbmm_(tiles.transpose(1, 2), signals)
    taps = _transformed(_TO_FILTER.T.contiguous(), total.view(6, 6, -1))
    return taps.view(3, 3, channels, maps).permute(3, 2, 0, 1).contiguous()


class Tiled(torch.autograd.Function):
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
        self.keep = True
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
            if self.keep and not weight.requires_grad:
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
        return self.padded(x, weight, bias, self.padding)

    def padded(self, x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int]) -> Tensor:
        """The convolution with another padding than the net's own."""
        if serves(x, weight, padding):
            outputs: Tensor = Tiled.apply(x, weight, bias, padding, self.filters)  # type: ignore[no-untyped-call]
            return outputs
        return F.conv2d(x, weight, bias, 1, padding)


def serves(x: Tensor, weight: Tensor, padding: tuple[int, int]) -> bool:
    """Whether tiles are for these tensors: plain float32 maps on the processor, large enough to pay."""
    if not isinstance(x, Tensor) or type(x) not in (Tensor, nn.Parameter) or x.dim() != 4:
        return False
    if x.device.type != "cpu" or weight.device != x.device or torch.is_autocast_enabled("cpu"):
        return False
    if x.dtype != torch.float32 or weight.dtype != torch.float32:
        return False
    return pays((*x.shape,), weight.shape[0], padding, weight.requires_grad)


def run(module: nn.Conv2d, x: Tensor) -> Tensor:
    """A convolution of maps that have their padding already; on tiles where the module's are."""
    forward = module.__dict__.get("_conv_forward")
    if isinstance(forward, TiledForward):
        return forward.padded(x, module.weight, module.bias, (0, 0))
    return F.conv2d(x, module.weight, module.bias, module.stride, 0, module.dilation, module.groups)


def both_ways(
    weight: Tensor, bias: Tensor | None, stride: tuple[int, int], dilation: tuple[int, int], groups: int
) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """A convolution without padding and its transpose (without bias), by tiles where they pay.

    The weight is not to change, and takes no gradient.
    """

    def ahead(x: Tensor) -> Tensor:
        if plain and serves(x, weight, (0, 0)):
            return convolve_tiles(x, kept.ahead(weight), bias, (0, 0))
        return F.conv2d(x, weight, bias, stride, 0, dilation, groups)

    def back(slopes: Tensor) -> Tensor:
        if plain and serves(slopes, swapped, (2, 2)):
            return convolve_tiles(slopes, kept.back(weight), None, (2, 2))
        return F.conv_transpose2d(slopes, weight, None, stride, 0, 0, groups, dilation)

    plain = weight.shape[2:] == (3, 3) and stride == dilation == (1, 1) and groups == 1
    kept, swapped = Filters(), weight.transpose(0, 1)
    return ahead, back


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


def keep_no_filters(net: nn.Module) -> None:
    """Transform the filters of a net on tiles anew at each run: kept ones take four times its own memory."""
    for module in net.modules():
        if isinstance(forward := module.__dict__.get("_conv_forward"), TiledForward):
            forward.filters = Filters()
            forward.filters.keep = False


@contextmanager
def tiled(*nets: nn.Module) -> Iterator[None]:
    """In the block the 3 x 3 convolutions of nets run on tiles where that pays; answers agree to 1e-5."""
    for net in nets:
        tile(net)
    try:
        yield
    finally:
        for module in itertools.chain.from_iterable(net.modules() for net in nets):
            module.__dict__.pop("_conv_forward", None)
