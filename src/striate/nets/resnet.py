"""ResNet-18 to -152 and plain counterparts: He, Zhang, Ren & Sun 2015 (arXiv:1512.03385), table 1."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from striate.layers.pooling import GlobalAveragePool
from striate.layers.regularization import DropPath
from striate.nets.net import NETS, Net, Size, check_range, finish, is_small

PAPER = "arXiv:1512.03385, table 1"
DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
# More blocks than this in one group, and the authors number them: res4a, res4b1, res4b2 ...
LETTERS = 6
QUICK = {"width": 8}
DEEP = {"width": 8, "blocks": 4}


class Projection(nn.Module):
    """Shortcut of option B: 1x1 convolution and batch norm; (N, C, H, W) -> (N, M, H/s, W/s). Section 3.3."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 1, stride, bias=False)
        self.bn = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """Project."""
        projected: Tensor = self.bn(self.conv(x))
        return projected


def _shortcut(channels: int, width: int, stride: int) -> nn.Module:
    same = stride == 1 and channels == width
    return nn.Identity() if same else Projection(channels, width, stride)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, ReLU after the sum; (N, C, H, W) -> (N, M, H/s, W/s)."""

    expansion = 1

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = _shortcut(channels, width, stride)
        self.relu2 = nn.ReLU()
        self.drop_path: DropPath | None = None

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """The norm before the sum."""
        return self.bn2

    def forward(self, x: Tensor) -> Tensor:
        """The residual sum."""
        y = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        y = y if self.drop_path is None else self.drop_path(y)
        out: Tensor = self.relu2(y + self.shortcut(x))
        return out


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut; (N, C, H, W) -> (N, 4 M, H/s, W/s). Figure 5.

    The stride is in the 3x3 convolution, as in the weights that are published.
    """

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.shortcut = _shortcut(channels, 4 * width, stride)
        self.relu3 = nn.ReLU()
        self.drop_path: DropPath | None = None

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """The norm before the sum."""
        return self.bn3

    def forward(self, x: Tensor) -> Tensor:
        """The residual sum."""
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(self.relu2(self.bn2(self.conv2(y)))))
        y = y if self.drop_path is None else self.drop_path(y)
        out: Tensor = self.relu3(y + self.shortcut(x))
        return out


def _stem(in_channels: int, width: int, small: bool) -> list[tuple[str, nn.Module]]:
    """conv1, bn1, relu1, pool1; for small pictures a 3x3 convolution of stride 1 and no pool."""
    kernel, stride = (3, 1) if small else (7, 2)
    stages: list[tuple[str, nn.Module]] = [
        ("conv1", nn.Conv2d(in_channels, width, kernel, stride, kernel // 2, bias=False)),
        ("bn1", nn.BatchNorm2d(width)),
        ("relu1", nn.ReLU()),
    ]
    return stages if small else [*stages, ("pool1", nn.MaxPool2d(3, 2, 1))]


def _block_name(group: int, number: int, depth: int, deepest: int) -> str:
    """res2a, res2b ...; in nets with a deep group, groups of more than 3 blocks are res4a, res4b1 ..."""
    if number and depth > 3 and deepest > LETTERS:
        return f"res{group}b{number}"
    return f"res{group}{chr(ord('a') + number)}"


def _resnet(
    layers: int,
    block: type[BasicBlock] | type[Bottleneck],
    classes: int,
    in_channels: int,
    size: Size,
    zero_init: bool,
    width: int,
    drop_path: float,
    blocks: int = 36,
) -> Net:
    check_range("width", width, 1, 1024)
    check_range("blocks", blocks, 1, 36)
    depths = [min(depth, blocks) for depth in DEPTHS[layers]]
    stages = _stem(in_channels, width, is_small(size))
    channels = width
    for group, depth in enumerate(depths, start=2):
        maps = width << (group - 2)
        for number in range(depth):
            stride = 2 if group > 2 and number == 0 else 1
            name = _block_name(group, number, depth, max(depths))
            stages.append((name, block(channels, maps, stride)))
            channels = maps * block.expansion
    stages += [
        ("pool5", GlobalAveragePool()),
        ("flatten", nn.Flatten()),
        ("fc", nn.Linear(channels, classes)),
    ]
    net = finish(Net(stages, head="fc", in_channels=in_channels, size=size, name=f"resnet{layers}"), "he")
    found = [module for module in net.modules() if isinstance(module, (BasicBlock, Bottleneck))]
    for module in found if zero_init else ():
        nn.init.zeros_(module.last_norm.weight)
    set_drop_path(found, drop_path)
    return net


def set_drop_path(blocks: Sequence[nn.Module], rate: float) -> None:
    """Give each residual block its rate of stochastic depth: l / L of `rate` for block l of L, from 1.

    arXiv:1603.09382, section 3, linear decay. With rate 0 the blocks stay as they are.

    Raises:
        StriateError: `rate` is not in 0 to 0.99.
    """
    check_range("drop_path", rate, 0, 0.99)
    for number, block in enumerate(blocks if rate else (), start=1):
        block.drop_path = DropPath(rate * number / len(blocks))


def _plain(layers: int, classes: int, in_channels: int, size: Size, width: int) -> Net:
    """The convolutions of the basic blocks in a row, without shortcuts: table 1's conv2_x as conv2_1 ..."""
    check_range("width", width, 1, 1024)
    stages = _stem(in_channels, width, is_small(size))
    channels = width
    for group, depth in enumerate(DEPTHS[layers], start=2):
        maps = width << (group - 2)
        for number in range(1, 2 * depth + 1):
            stride = 2 if group > 2 and number == 1 else 1
            stages += plain_layer(f"{group}_{number}", channels, maps, stride)
            channels = maps
    stages += [
        ("pool5", GlobalAveragePool()),
        ("flatten", nn.Flatten()),
        ("fc", nn.Linear(channels, classes)),
    ]
    return finish(Net(stages, head="fc", in_channels=in_channels, size=size, name=f"plain{layers}"), "he")


def plain_layer(place: str, channels: int, width: int, stride: int) -> list[tuple[str, nn.Module]]:
    """3x3 convolution, batch norm and ReLU as the stages conv, bn and relu of `place`."""
    return [
        (f"conv{place}", nn.Conv2d(channels, width, 3, stride, 1, bias=False)),
        (f"bn{place}", nn.BatchNorm2d(width)),
        (f"relu{place}", nn.ReLU()),
    ]


def from_torchvision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """torchvision's and timm's keys of residual nets to ours: `layer1.0.downsample.1` is `res2a.shortcut.bn`.

    How the blocks are called depends on how many the state holds.
    """
    places = [re.match(r"layer([1-4])\.(\d+)\.", key) for key in state]
    blocks = [(int(found[1]), int(found[2])) for found in places if found]
    depths = {group: 1 + max(number for g, number in blocks if g == group) for group, _ in set(blocks)}
    shortcut = {"downsample.0.": "shortcut.conv.", "downsample.1.": "shortcut.bn."}

    def ours(key: str) -> str:
        found = re.fullmatch(r"layer([1-4])\.(\d+)\.(.+)", key)
        if not found:
            return key
        group, number, rest = int(found[1]), int(found[2]), found[3]
        name = _block_name(group + 1, number, depths[group], max(depths.values()))
        for theirs, mine in shortcut.items():
            if rest.startswith(theirs):
                rest = mine + rest.removeprefix(theirs)
        return f"{name}.{rest}"

    return {ours(key): tensor for key, tensor in state.items()}


KEYS = {"torchvision": from_torchvision, "timm": from_torchvision}


@NETS.register(paper=PAPER, family="resnet", size=224, small=True, quick=QUICK, keys=KEYS)
def resnet18(
    classes: int = 1000, in_channels: int = 3, *, size: Size = 224, zero_init: bool = False, width: int = 64,
    drop_path: float = 0.0,
) -> Net:  # fmt: skip
    """ResNet-18: 2, 2, 2, 2 basic blocks of 64 to 512 maps; 11.7 M parameters.

    Pictures of at most 64 pixels get a 3x3 stem of stride 1 without pooling. With `zero_init` the last norm
    of each block starts at 0, so that each block starts as its shortcut (arXiv:1706.02677, section 5.1).
    `width` is the number of maps of conv1 and of the first group; `drop_path` the rate of stochastic depth of
    the last block, rising linearly from the first (arXiv:1603.09382).

    Raises:
        StriateError: `width` is not in 1 to 1024, or `drop_path` not in 0 to 0.99.
    """
    return _resnet(18, BasicBlock, classes, in_channels, size, zero_init, width, drop_path)


@NETS.register(paper=PAPER, family="resnet", size=224, small=True, quick=QUICK, keys=KEYS)
def resnet34(
    classes: int = 1000, in_channels: int = 3, *, size: Size = 224, zero_init: bool = False, width: int = 64,
    drop_path: float = 0.0,
) -> Net:  # fmt: skip
    """ResNet-34: 3, 4, 6, 3 basic blocks; 21.8 M parameters. Options as of `resnet18`."""
    return _resnet(34, BasicBlock, classes, in_channels, size, zero_init, width, drop_path)


@NETS.register(paper=PAPER, family="resnet", size=224, small=True, quick=QUICK, keys=KEYS)
def resnet50(
    classes: int = 1000, in_channels: int = 3, *, size: Size = 224, zero_init: bool = False, width: int = 64,
    drop_path: float = 0.0,
) -> Net:  # fmt: skip
    """ResNet-50: 3, 4, 6, 3 bottleneck blocks; 25.6 M parameters. Options as of `resnet18`."""
    return _resnet(50, Bottleneck, classes, in_channels, size, zero_init, width, drop_path)


@NETS.register(paper=PAPER, family="resnet", size=224, small=True, quick=DEEP, keys=KEYS)
def resnet101(
    classes: int = 1000, in_channels: int = 3, *, size: Size = 224, zero_init: bool = False, width: int = 64,
    drop_path: float = 0.0, blocks: int = 23,
) -> Net:  # fmt: skip
    """ResNet-101: 3, 4, 23, 3 bottleneck blocks; 44.5 M parameters. Options as of `resnet18`.

    A group has at most `blocks` blocks.
    """
    return _resnet(101, Bottleneck, classes, in_channels, size, zero_init, width, drop_path, blocks)


@NETS.register(paper=PAPER, family="resnet", size=224, small=True, quick=DEEP, keys=KEYS)
def resnet152(
    classes: int = 1000, in_channels: int = 3, *, size: Size = 224, zero_init: bool = False, width: int = 64,
    drop_path: float = 0.0, blocks: int = 36,
) -> Net:  # fmt: skip
    """ResNet-152: 3, 8, 36, 3 bottleneck blocks; 60.2 M parameters. Options as of `resnet18`.

    A group has at most `blocks` blocks.
    """
    return _resnet(152, Bottleneck, classes, in_channels, size, zero_init, width, drop_path, blocks)


@NETS.register(paper=f"{PAPER} and section 3.3", family="resnet", size=224, small=True, quick=QUICK)
def plain18(classes: int = 1000, in_channels: int = 3, *, size: Size = 224, width: int = 64) -> Net:
    """The plain 18-layer net: the convolutions of ResNet-18 without shortcuts; 11.5 M parameters.

    `width` is the number of maps of conv1 and of the first group. Small pictures as in `resnet18`.

    Raises:
        StriateError: `width` is not in 1 to 1024.
    """
    return _plain(18, classes, in_channels, size, width)


@NETS.register(paper=f"{PAPER} and section 3.3", family="resnet", size=224, small=True, quick=QUICK)
def plain34(classes: int = 1000, in_channels: int = 3, *, size: Size = 224, width: int = 64) -> Net:
    """The plain 34-layer net of figure 3: ResNet-34 without shortcuts; 21.6 M. Options as of `plain18`."""
    return _plain(34, classes, in_channels, size, width)
