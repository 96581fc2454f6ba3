"""MobileNet-v2: Sandler et al. 2018, Inverted residuals (arXiv:1801.04381), table 2."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

from torch import Tensor, nn

from striate.layers.convolution import SameConv2d
from striate.layers.pooling import GlobalAveragePool
from striate.layers.regularization import DropPath
from striate.nets.net import NETS, Net, Size, check_range, finish, is_small

PAPER = "arXiv:1801.04381, table 2"
# kernel, blocks, stride, expansion, maps
GROUPS = (
    (3, 1, 1, 1, 16), (3, 2, 2, 6, 24), (3, 3, 2, 6, 32), (3, 4, 2, 6, 64),
    (3, 3, 1, 6, 96), (3, 3, 2, 6, 160), (3, 1, 1, 6, 320),
)  # fmt: skip
Rule = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise convolution, linear 1x1 projection; a sum where the shape stays.

    (N, C, H, W) -> (N, M, ceil(H/s), ceil(W/s)). arXiv:1801.04381, section 3.3. With `same` the padding is
    TensorFlow's, otherwise the same on both sides; `eps` and `momentum` are of the batch norms.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        kernel: int,
        stride: int,
        expansion: int,
        *,
        drop_path: float = 0.0,
        same: bool = False,
        eps: float = 1e-5,
        momentum: float = 0.1,
    ) -> None:
        super().__init__()
        inner = channels * expansion
        self.expand = expansion != 1
        if self.expand:
            self.expand_conv = nn.Conv2d(channels, inner, 1, bias=False)
            self.expand_bn = nn.BatchNorm2d(inner, eps, momentum)
            self.expand_relu = nn.ReLU6()
        self.depthwise_conv: nn.Conv2d
        if same:
            self.depthwise_conv = SameConv2d(inner, inner, kernel, stride=stride, groups=inner, bias=False)
        else:
            self.depthwise_conv = nn.Conv2d(
                inner, inner, kernel, stride, kernel // 2, groups=inner, bias=False
            )
        self.depthwise_bn = nn.BatchNorm2d(inner, eps, momentum)
        self.depthwise_relu = nn.ReLU6()
        self.project_conv = nn.Conv2d(inner, width, 1, bias=False)
        self.project_bn = nn.BatchNorm2d(width, eps, momentum)
        self.residual = stride == 1 and channels == width
        if self.residual:
            self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Expand, filter, project, add."""
        wide = self.expand_relu(self.expand_bn(self.expand_conv(x))) if self.expand else x
        wide = self.depthwise_relu(self.depthwise_bn(self.depthwise_conv(wide)))
        y: Tensor = self.project_bn(self.project_conv(wide))
        if self.residual:
            y = x + self.drop_path(y)
        return y


def round_maps(number: float) -> int:
    """The multiple of 8 nearest to `number`, at least 8 and never more than a tenth below it."""
    rounded = max(8, int(number + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * number else rounded


def block_names(prefix: str, counts: Iterable[int]) -> list[str]:
    """`prefix`1a, `prefix`2a, `prefix`2b ... for groups of `counts` blocks."""
    return [
        f"{prefix}{group}{chr(ord('a') + number)}"
        for group, count in enumerate(counts, start=1)
        for number in range(count)
    ]


def from_timm(prefix: str) -> Rule:
    """The rule that translates timm's keys of nets of inverted residuals; blocks are called prefix1a ...

    `blocks.1.0.conv_pwl.weight` is `block2a.project_conv.weight`.
    """
    outer = {
        "conv_stem": "stem_conv", "bn1": "stem_bn", "conv_head": "top_conv", "bn2": "top_bn",
        "classifier": "fc",
    }  # fmt: skip
    inner = {
        "conv_pw": "expand_conv", "bn1": "expand_bn", "conv_dw": "depthwise_conv", "bn2": "depthwise_bn",
        "conv_pwl": "project_conv", "bn3": "project_bn",
    }  # fmt: skip
    # The first group expands nothing: its two convolutions are called as the first two of three.
    first = {
        "conv_dw": "depthwise_conv", "bn1": "depthwise_bn", "conv_pw": "project_conv", "bn2": "project_bn",
    }  # fmt: skip

    def ours(key: str) -> str:
        found = re.fullmatch(r"blocks\.(\d)\.(\d+)\.(\w+)\.(\w+)", key)
        if found:
            names = first if found[1] == "0" else inner
            block = f"{prefix}{int(found[1]) + 1}{chr(ord('a') + int(found[2]))}"
            return f"{block}.{names.get(found[3], found[3])}.{found[4]}"
        head, dot, rest = key.partition(".")
        return outer.get(head, head) + dot + rest

    return lambda state: {ours(key): tensor for key, tensor in state.items()}


def from_torchvision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """torchvision's keys of MobileNet-v2: `features.2.conv.1.0` is `bottleneck2a.depthwise_conv`."""
    names = block_names("bottleneck", (count for _, count, *_ in GROUPS))
    top = str(len(names) + 1)
    outer = {
        "features.0.0": "stem_conv", "features.0.1": "stem_bn", f"features.{top}.0": "top_conv",
        f"features.{top}.1": "top_bn", "classifier.1": "fc",
    }  # fmt: skip
    inner = {
        "0.0": "expand_conv", "0.1": "expand_bn", "1.0": "depthwise_conv", "1.1": "depthwise_bn",
        "2": "project_conv", "3": "project_bn",
    }  # fmt: skip
    first = {"0.0": "depthwise_conv", "0.1": "depthwise_bn", "1": "project_conv", "2": "project_bn"}

    def ours(key: str) -> str:
        place, _, leaf = key.rpartition(".")
        if place in outer:
            return f"{outer[place]}.{leaf}"
        found = re.fullmatch(r"features\.(\d+)\.conv\.([\d.]+)", place)
        if not found or not 1 <= int(found[1]) <= len(names):
            return key
        parts = first if found[1] == "1" else inner
        return f"{names[int(found[1]) - 1]}.{parts.get(found[2], found[2])}.{leaf}"

    return {ours(key): tensor for key, tensor in state.items()}


@NETS.register(
    paper=PAPER,
    family="mobilenet",
    size=224,
    small=True,
    quick={"width": 0.125},
    keys={"torchvision": from_torchvision, "timm": from_timm("bottleneck")},
)
def mobilenet_v2(
    classes: int = 1000,
    in_channels: int = 3,
    *,
    size: Size = 224,
    width: float = 1.0,
    dropout: float = 0.2,
    drop_path: float = 0.0,
) -> Net:
    """MobileNet-v2: seventeen bottlenecks with inverted residuals, ReLU6; 3.5 M parameters.

    `width` is the paper's width multiplier (1.4, 0.75, 0.5, 0.35 ...), which the last convolution follows
    above 1 only. `dropout` precedes the head; block i of L, from 0, drops its branch at the rate
    `drop_path` i / L. Pictures of at most 64 pixels are not reduced by the stem and by bottleneck2a.

    Raises:
        StriateError: a rate outside of 0 to 0.99, or a width outside of 0.05 to 4.
    """
    check_range("dropout", dropout, 0, 0.99)
    check_range("drop_path", drop_path, 0, 0.99)
    check_range("width", width, 0.05, 4)
    small = is_small(size)
    channels = round_maps(32 * width)
    stages: list[tuple[str, nn.Module]] = [
        ("stem_conv", nn.Conv2d(in_channels, channels, 3, 1 if small else 2, 1, bias=False)),
        ("stem_bn", nn.BatchNorm2d(channels)),
        ("stem_relu", nn.ReLU6()),
    ]
    names = block_names("bottleneck", (count for _, count, *_ in GROUPS))
    done, total = 0, len(names)
    for group, (kernel, count, stride, expansion, number) in enumerate(GROUPS, start=1):
        maps = round_maps(number * width)
        for place in range(count):
            step = stride if place == 0 and not (small and group == 2) else 1
            rate = drop_path * done / total
            block = InvertedResidual(channels, maps, kernel, step, expansion, drop_path=rate)
            stages.append((names[done], block))
            channels, done = maps, done + 1
    last = round_maps(1280 * max(1.0, width))
    stages += [
        ("top_conv", nn.Conv2d(channels, last, 1, bias=False)),
        ("top_bn", nn.BatchNorm2d(last)),
        ("top_relu", nn.ReLU6()),
        ("avgpool", GlobalAveragePool()),
        ("flatten", nn.Flatten()),
        ("dropout", nn.Dropout(dropout)),
        ("fc", nn.Linear(last, classes)),
    ]
    return finish(Net(stages, head="fc", in_channels=in_channels, size=size, name="mobilenet_v2"), "he")
