"""From a classification net to a dense one: its convolutional stages with an upsampling head."""

from __future__ import annotations

import math
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from striate.core.errors import StriateError, unknown
from striate.layers.pooling import GlobalAveragePool, GlobalMaxPool
from striate.nets.net import Net, check_input, check_range, create_net
from striate.nets.taps import shadow

# Options of `pixel_net` that are not of the family.
DECODING = ("decoder", "decoder_width")
DECODERS = ("fcn", "unet")
PROBE = 256
MAX_WIDTH = 256
GLOBAL = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, GlobalAveragePool, GlobalMaxPool, nn.Flatten)


class Upsample(nn.Module):
    """Adds score maps of several strides and brings the sum to the input's size.

    maps: (N, K, h, w) each, coarsest first; every sum is enlarged bilinearly to the size of the next.
    """

    def forward(self, maps: list[Tensor], size: tuple[int, int]) -> Tensor:
        """The sum at `size` (height, width): (N, K, height, width)."""
        total = maps[0]
        for finer in maps[1:]:
            total = enlarge(total, finer.shape[-2:]) + finer
        return enlarge(total, size)


class Merge(nn.Module):
    """One step of a decoder: enlarge, concatenate with the encoder's map of that stride, convolve 3x3."""

    def __init__(self, coarse: int, skip: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(coarse + skip, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        nn.init.kaiming_normal_(self.conv.weight, nonlinearity="relu")

    def forward(self, coarse: Tensor, skip: Tensor) -> Tensor:
        """(N, coarse, h, w) and (N, skip, H, W) -> (N, width, H, W)."""
        joined = torch.cat([enlarge(coarse, skip.shape[-2:]), skip], 1)
        merged: Tensor = self.relu(self.bn(self.conv(joined)))
        return merged


def enlarge(maps: Tensor, size: Any) -> Tensor:
    """Bilinear resampling to `size` (height, width), pixel centres at one half."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return functional.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)


class PixelNet(Net):
    """A net that answers each pixel: (N, in_channels, H, W) -> logits (N, K, H, W), for any H and W.

    shapes: (channels, stride) of the encoder's stages that are kept, from `map_shapes`.

    The encoder's stages keep their names. `skips` names the last stage of each finer stride. Head "fcn":
    a 1x1 score convolution on the deepest map (`score`) and on each skip (`score_<stage>`), summed from
    coarse to fine (arXiv:1411.4038, section 4.2). Head "unet": from coarse to fine, one `Merge` with each
    skip (`up_<stage>`), then one score convolution (arXiv:1505.04597, section 2, with one convolution a
    step). The last stage, `upsample`, gives the input's height and width in either case.
    """

    def __init__(
        self, encoder: Net, shapes: dict[str, tuple[int, int]], classes: int, *, decoder: str, width: int
    ) -> None:
        parts: list[tuple[str, nn.Module]] = [(name, encoder.get_submodule(name)) for name in shapes]
        skips, deep = last_of_each_stride(shapes)
        channels = {name: channels for name, (channels, _) in shapes.items()}
        if decoder == "unet":
            below = channels[deep]
            for name in reversed(skips):
                wide = width or min(channels[name], MAX_WIDTH)
                parts.append((f"up_{name}", Merge(below, channels[name], wide)))
                below = wide
            parts.append(("score", nn.Conv2d(below, classes, 1)))
        else:
            parts.append(("score", nn.Conv2d(channels[deep], classes, 1)))
            parts += [(f"score_{name}", nn.Conv2d(channels[name], classes, 1)) for name in reversed(skips)]
        super().__init__(
            [*parts, ("upsample", Upsample())],
            head="score",
            in_channels=encoder.in_channels,
            size=encoder.input_size,
            name=encoder.name,
            min_size=encoder.min_size,
        )
        self.encoder_stages = tuple(shapes)
        self.skips = tuple(skips)
        self.decoder = decoder
        for layer in self.score_layers:
            start_small(layer)

    @property
    def score_layers(self) -> tuple[nn.Conv2d, ...]:
        """The 1x1 convolutions with one output a class."""
        found = [self.get_submodule(name) for name in self.stage_names if name.startswith("score")]
        return tuple(layer for layer in found if isinstance(layer, nn.Conv2d))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K, H, W) for (N, in_channels, H, W) floats; raises as `Net.forward` does."""
        size = (x.shape[-2], x.shape[-1])
        deep, skips = self._encode(x)
        if self.decoder == "unet":
            maps = [self.get_submodule("score")(self._merge(deep, skips))]
        else:
            maps = [self.get_submodule("score")(deep)]
            maps += [self.get_submodule(f"score_{name}")(skips[name]) for name in reversed(self.skips)]
        logits: Tensor = self.get_submodule("upsample")(maps, size)
        return logits

    def features(self, x: Tensor) -> Tensor:
        """What the stage `score` sees: (N, feature_dim, h, w)."""
        deep, skips = self._encode(x)
        return self._merge(deep, skips) if self.decoder == "unet" else deep

    def reset_head(self, classes: int) -> Self:
        """Replace every score convolution by a new one; returns the net itself."""
        check_range("classes", classes, 1, 1_000_000)
        for name in self.stage_names:
            old = self.get_submodule(name)
            if name.startswith("score") and isinstance(old, nn.Conv2d):
                place: dict[str, Any] = {"device": old.weight.device, "dtype": old.weight.dtype}
                setattr(self, name, start_small(nn.Conv2d(old.in_channels, classes, 1, **place)))
        return self

    def _encode(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        check_input(x, self.in_channels, self.input_size, self.fixed_size, self.min_size)
        skips = {}
        for name in self.encoder_stages:
            x = self._modules[name](x)  # type: ignore[misc]
            if name in self.skips:
                skips[name] = x
        return x, skips

    def _merge(self, deep: Tensor, skips: dict[str, Tensor]) -> Tensor:
        for name in reversed(self.skips):
            deep = self.get_submodule(f"up_{name}")(deep, skips[name])
        return deep


def pixel_net(
    name: str,
    classes: int,
    in_channels: int,
    *,
    size: Any = None,
    decoder: str = "unet",
    decoder_width: int = 0,
    **options: Any,
) -> PixelNet:
    """The registered net `name` with an upsampling head; `options` are the family's own.

    decoder: "unet" or "fcn", see `PixelNet`; decoder_width: maps after each `Merge`, 0 for as many as the
    skip has (at most 256).

    Raises:
        StriateError: an unknown net or option, or a net without convolutional stages.
    """
    if decoder not in DECODERS:
        raise unknown("decoder", decoder, DECODERS)
    if type(decoder_width) is not int:
        raise StriateError(f"decoder_width is {decoder_width!r}", allowed="a whole number")
    check_range("decoder_width", decoder_width, 0, 4096)
    encoder = create_net(name, classes, in_channels, size=size, **options)
    shapes = map_shapes(encoder)
    if not shapes:
        raise StriateError(
            f"net {name!r} has no convolutional stages to answer each pixel with",
            hint="choose one of the families resnet, vgg or efficientnet",
        )
    net = PixelNet(encoder, shapes, classes, decoder=decoder, width=decoder_width)
    net.name = name
    net.options = {**options, "decoder": decoder, "decoder_width": decoder_width}
    return net


def map_shapes(encoder: Net) -> dict[str, tuple[int, int]]:
    """(channels, stride) of each stage before any flattening or global pooling, in order.

    Found with a probe of 256 x 256 pixels on the meta device, so no numbers are computed; the stride is
    256 / height of the map, to the nearest power of two, as unpadded convolutions cut the edges.
    """
    found: dict[str, tuple[int, int]] = {}
    bare = shadow(encoder)
    x = torch.empty(1, encoder.in_channels, PROBE, PROBE, device="meta")
    for name in encoder.stage_names:
        stage = bare.get_submodule(name)
        if name == encoder.head or any(isinstance(module, GLOBAL) for module in stage.modules()):
            break
        with torch.no_grad():
            x = stage(x)
        if x.ndim != 4 or x.shape[-1] == 1:
            break
        found[name] = (x.shape[1], 1 << round(math.log2(PROBE / x.shape[-2])))
    return found


def last_of_each_stride(shapes: dict[str, tuple[int, int]]) -> tuple[list[str], str]:
    """The last stage of each stride but the coarsest, finest first, and the deepest stage.

    `shapes` holds (channels, stride) of each stage in order, as `map_shapes` gives them.
    """
    last = {stride: name for name, (_, stride) in shapes.items()}
    deepest = next(reversed(shapes))
    return [last[stride] for stride in sorted(last) if stride < shapes[deepest][1]], deepest


def start_small(layer: nn.Conv2d) -> nn.Conv2d:
    """Draw a score layer so small that every class starts with about the same probability."""
    nn.init.normal_(layer.weight, std=0.01)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
