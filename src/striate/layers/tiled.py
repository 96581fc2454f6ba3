"""Tiled convolution: filters that repeat every few positions."""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from striate.core.errors import StriateError
from striate.layers.convolution import OwnWeights
from striate.layers.registry import LAYERS
from striate.layers.windows import Padding, Size, pad_map, pair, sides_of


@LAYERS.register(
    paper="Gregor & LeCun 2010, arXiv:1006.0448; Le et al., NIPS 2010",
    example=lambda: (TiledConv2d(2, 4, 3, tiles=2, padding="same", groups=2), torch.randn(2, 2, 5, 6)),
)
class TiledConv2d(OwnWeights):
    """Convolution whose filters change from position to position and repeat every `tiles` positions.

    y[m, i, j] = (weight[i mod t, j mod t, m] * x)[i, j] + bias[i mod t, j mod t, m], t = `tiles` (Goodfellow,
    Bengio & Courville, Deep Learning, equation 9.10). t = 1 is a convolution, t at least the map's side is a
    locally connected layer. weight is (t, t, M, C / groups, kh, kw), bias (t, t, M), drawn uniformly within
    1 / sqrt(inputs). Costs as many products as a convolution. Gregor & LeCun 2010; Le et al. 2010.
    (N, C, H, W) -> (N, M, ...).

    Raises:
        StriateError: `tiles` is not a positive whole number, or the channels are not multiples of `groups`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        *,
        tiles: int,
        stride: Size = 1,
        padding: Padding = "valid",
        pad_value: float = 0.0,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__(kernel_size, stride, padding, pad_value)
        pair(tiles, "tiles")
        if groups < 1 or in_channels % groups or out_channels % groups:
            raise StriateError(
                f"{in_channels} and {out_channels} channels in {groups} groups",
                allowed="channels that are multiples of the groups",
            )
        self.in_channels, self.out_channels, self.tiles, self.groups = (
            in_channels,
            out_channels,
            tiles,
            groups,
        )
        shape = (tiles, tiles, out_channels, in_channels // groups, *self.kernel_size)
        self.weight = nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.empty(tiles, tiles, out_channels)) if bias else None
        if not self.weight.is_meta:
            for parameter in self.parameters():
                bound = 1 / math.sqrt(self.fans()[0])
                nn.init.uniform_(parameter, -bound, bound)

    def fans(self) -> tuple[float, float]:
        """Inputs of a unit, and units that an input reaches, at stride 1."""
        area = math.prod(self.kernel_size)
        return self.in_channels // self.groups * area, self.out_channels // self.groups * area

    def matrices(self) -> list[Tensor]:
        """The weights as matrices with a unit a row: one for each place of the tile and each group."""
        return [part for place in self.weight.flatten(0, 1) for part in place.chunk(self.groups)]

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, each position with the filters of its place in the tile."""
        return tiled_convolve(x, self.weight, self.bias, self.stride, self.sides, self.groups, self.pad_value)


def tiled_convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: Padding,
    groups: int,
    value: float,
) -> Tensor:
    """The tiled convolution: one ordinary one for each place in the tile, at `tiles` times the stride."""
    tiles, maps = weight.shape[0], weight.shape[2]
    kernel = (weight.shape[-2], weight.shape[-1])
    x = pad_map(x, sides_of(padding, (x.shape[-2], x.shape[-1]), kernel, stride), value)
    height, width = ((x.shape[i - 2] - kernel[i]) // stride[i] + 1 for i in (0, 1))
    if height < 1 or width < 1:
        raise StriateError(
            f"the padded maps are {x.shape[-2]} x {x.shape[-1]}",
            allowed=f"at least {kernel[0]} x {kernel[1]}",
        )
    # All places get maps of the largest size, so that they can be interleaved; what is too much is cut off.
    rows, columns = -(-height // tiles), -(-width // tiles)
    places = []
    for a, b in itertools.product(range(tiles), repeat=2):
        if a >= height or b >= width:
            places.append(x.new_zeros(x.shape[0], maps, rows, columns))
            continue
        part = x[:, :, a * stride[0] :, b * stride[1] :]
        step = (tiles * stride[0], tiles * stride[1])
        y = F.conv2d(part, weight[a, b], None if bias is None else bias[a, b], step, 0, 1, groups)
        places.append(F.pad(y, (0, columns - y.shape[-1], 0, rows - y.shape[-2])))
    full = F.pixel_shuffle(torch.stack(places, 2).flatten(1, 2), tiles)
    return full[:, :, :height, :width]


torch.fx.wrap("tiled_convolve")
