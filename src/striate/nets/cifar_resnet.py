"""Residual and plain networks for small pictures: He et al. 2015 section 4.2; Page's nine-layer net."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from striate.layers.normalization import Scale
from striate.layers.pooling import GlobalAveragePool, GlobalMaxPool
from striate.layers.regularization import DropPath
from striate.nets.net import NETS, Net, check_range, finish, initialise
from striate.nets.resnet import plain_layer, set_drop_path


class PadShortcut(nn.Module):
    """Shortcut of option A: every `stride`-th position, zeros for the added channels; no parameters.

    (N, C, H, W) -> (N, C + added, ceil(H / stride), ceil(W / stride)). arXiv:1512.03385, section 3.3.
    """

    def __init__(self, stride: int, added: int) -> None:
        super().__init__()
        self.stride, self.added = stride, added

    def forward(self, x: Tensor) -> Tensor:
        """Subsample and pad."""
        before = self.added // 2
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.added - before))


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut, ReLU after the sum; (N, C, H, W) -> (N, M, H/s, W/s)."""

    def __init__(self, channels: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        same = stride == 1 and channels == width
        self.shortcut: nn.Module = nn.Identity() if same else PadShortcut(stride, width - channels)
        self.relu2 = nn.ReLU()
        self.drop_path: DropPath | None = None

    def forward(self, x: Tensor) -> Tensor:
        """The residual sum."""
        y = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        y = y if self.drop_path is None else self.drop_path(y)
        out: Tensor = self.relu2(y + self.shortcut(x))
        return out


def _groups(layers: int, blocks: int | None, width: int) -> tuple[int, int]:
    """Blocks in each of the three groups (6 n + 2 layers) and maps of the first."""
    check_range("width", width, 1, 1024)
    if blocks is None:
        return (layers - 2) // 6, width
    check_range("blocks", blocks, 1, 1000)
    return blocks, width


def _block_name(group: int, number: int, blocks: int) -> str:
    """res1a, res1b ...; with more blocks than letters res1a, res1b1, res1b2 ..."""
    return f"res{group}b{number}" if number and blocks > 26 else f"res{group}{chr(ord('a') + number)}"


def _head(maps: int, classes: int) -> list[tuple[str, nn.Module]]:
    return [
        ("avgpool", GlobalAveragePool()),
        ("flatten", nn.Flatten()),
        ("fc", nn.Linear(maps, classes)),
    ]


def _cifar_resnet(
    layers: int, classes: int, in_channels: int, zero_init: bool, width: int, drop_path: float,
    blocks: int | None = None,
) -> Net:  # fmt: skip
    blocks, channels = _groups(layers, blocks, width)
    stages: list[tuple[str, nn.Module]] = plain_layer("1", in_channels, channels, 1)
    for group in (1, 2, 3):
        maps = width << (group - 1)
        for number in range(blocks):
            stride = 2 if group > 1 and number == 0 else 1
            stages.append((_block_name(group, number, blocks), Block(channels, maps, stride)))
            channels = maps
    stages += _head(channels, classes)
    # Each block adds its variance to the sum: behind more than ResNet-56 has, logits would start large.
    small = (3 / blocks) ** 0.5 if blocks > 9 else 1.0
    net = Net(stages, head="fc", in_channels=in_channels, size=32, name=f"resnet{layers}")
    finish(net, "he", head=small)
    found = [module for module in net.modules() if isinstance(module, Block)]
    for module in found if zero_init else ():
        nn.init.zeros_(module.bn2.weight)
    set_drop_path(found, drop_path)
    return net


def _cifar_plain(layers: int, classes: int, in_channels: int, width: int, blocks: int | None = None) -> Net:
    """The convolutions of the blocks in a row: those of res1a and res1b are conv1_1 to conv1_4."""
    blocks, channels = _groups(layers, blocks, width)
    stages: list[tuple[str, nn.Module]] = plain_layer("1", in_channels, channels, 1)
    for group in (1, 2, 3):
        maps = width << (group - 1)
        for number in range(1, 2 * blocks + 1):
            stride = 2 if group > 1 and number == 1 else 1
            stages += plain_layer(f"{group}_{number}", channels, maps, stride)
            channels = maps
    stages += _head(channels, classes)
    return finish(Net(stages, head="fc", in_channels=in_channels, size=32, name=f"plain{layers}"), "he")


PAPER = "arXiv:1512.03385, section 4.2"
QUICK = {"width": 4}
DEEP = {"width": 4, "blocks": 2}


@NETS.register(paper=PAPER, family="cifar_resnet", size=32, small=True, quick=QUICK)
def resnet20(
    classes: int = 10, in_channels: int = 3, *, zero_init: bool = False, width: int = 16,
    drop_path: float = 0.0,
) -> Net:  # fmt: skip
    """ResNet-20 for CIFAR: 3 blocks each of 16, 32, 64 maps; option A shortcuts; 0.27 M parameters.

    With `zero_init` the last norm of each block starts at 0, so that each block starts as its shortcut.
    `width` is the number of maps of the first group, doubled in the next two; `drop_path` the rate of
    stochastic depth of the last block, rising linearly from the first (arXiv:1603.09382).

    Raises:
        StriateError: `width` is not in 1 to 1024, or `drop_path` not in 0 to 0.99.
    """
    return _cifar_resnet(20, classes, in_channels, zero_init, width, drop_path)


@NETS.register(paper=PAPER, family="cifar_resnet", size=32, small=True, quick=QUICK)
def resnet32(
    classes: int = 10, in_channels: int = 3, *, zero_init: bool = False, width: int = 16,
    drop_path: float = 0.0,
) -> Net:  # fmt: skip
    """ResNet-32 for CIFAR: 5 blocks each of 16, 32, 64 maps; option A shortcuts; 0.46 M parameters."""
    return _cifar_resnet(32, classes, in_channels, zero_init, width, drop_path)


@NETS.register(paper=PAPER, family="cifar_resnet", size=32, small=True, quick=DEEP)
def resnet44(
    classes: int = 10, in_channels: int = 3, *, zero_init: bool = False, width: int = 16,
    drop_path: float = 0.0, blocks: int = 7,
) -> Net:  # fmt: skip
    """ResNet-44 for CIFAR: 7 blocks each of 16, 32, 64 maps; option A shortcuts; 0.66 M parameters.

    Options as of `resnet20`; `blocks` is the number of blocks in each group.
    """
    return _cifar_resnet(44, classes, in_channels, zero_init, width, drop_path, blocks)


@NETS.register(paper=PAPER, family="cifar_resnet", size=32, small=True, quick=DEEP)
def resnet56(
    classes: int = 10, in_channels: int = 3, *, zero_init: bool = False, width: int = 16,
    drop_path: float = 0.0, blocks: int = 9,
) -> Net:  # fmt: skip
    """ResNet-56 for CIFAR: 9 blocks each of 16, 32, 64 maps; option A shortcuts; 0.85 M parameters.

    Options as of `resnet20`; `blocks` is the number of blocks in each group.
    """
    return _cifar_resnet(56, classes, in_channels, zero_init, width, drop_path, blocks)


@NETS.register(paper=PAPER, family="cifar_resnet", size=32, small=True, quick=DEEP)
def resnet110(
    classes: int = 10, in_channels: int = 3, *, zero_init: bool = False, width: int = 16,
    drop_path: float = 0.0, blocks: int = 18,
) -> Net:  # fmt: skip
    """ResNet-110 for CIFAR: 18 blocks each of 16, 32, 64 maps; option A shortcuts; 1.7 M parameters.

    Options as of `resnet20`; `blocks` is the number of blocks in each group.
    """
    return _cifar_resnet(110, classes, in_channels, zero_init, width, drop_path, blocks)


@NETS.register(paper=PAPER, family="cifar_resnet", size=32, small=True, quick=DEEP)
def resnet1202(
    classes: int = 10, in_channels: int = 3, *, zero_init: bool = False, width: int = 16,
    drop_path: float = 0.0, blocks: int = 200,
) -> Net:  # fmt: skip
    """ResNet-1202 for CIFAR: 200 blocks each of 16, 32, 64 maps; option A shortcuts; 19.4 M parameters.

    Options as of `resnet20`; `blocks` is the number of blocks in each group.

    Raises:
        StriateError: `width` is not in 1 to 1024, or `blocks` not in 1 to 1000.
    """
    return _cifar_resnet(1202, classes, in_channels, zero_init, width, drop_path, blocks)


@NETS.register(paper=PAPER, family="cifar_resnet", size=32, small=True, quick=QUICK)
def plain20(classes: int = 10, in_channels: int = 3, *, width: int = 16) -> Net:
    """The plain 20-layer net for CIFAR: ResNet-20 without shortcuts, as many parameters (0.27 M).

    `width` is the number of maps of the first group, doubled in the next two.

    Raises:
        StriateError: `width` is not in 1 to 1024.
    """
    return _cifar_plain(20, classes, in_channels, width)


@NETS.register(paper=PAPER, family="cifar_resnet", size=32, small=True, quick=QUICK)
def plain32(classes: int = 10, in_channels: int = 3, *, width: int = 16) -> Net:
    """The plain 32-layer net for CIFAR: ResNet-32 without shortcuts; 0.46 M. Options as of `plain20`."""
    return _cifar_plain(32, classes, in_channels, width)


@NETS.register(paper=PAPER, family="cifar_resnet", size=32, small=True, quick=DEEP)
def plain44(classes: int = 10, in_channels: int = 3, *, width: int = 16, blocks: int = 7) -> Net:
    """The plain 44-layer net for CIFAR: ResNet-44 without shortcuts; 0.66 M. Options as of `plain20`.

    `blocks` is half the number of layers of each group.
    """
    return _cifar_plain(44, classes, in_channels, width, blocks)


@NETS.register(paper=PAPER, family="cifar_resnet", size=32, small=True, quick=DEEP)
def plain56(classes: int = 10, in_channels: int = 3, *, width: int = 16, blocks: int = 9) -> Net:
    """The plain 56-layer net for CIFAR: ResNet-56 without shortcuts; 0.85 M. Options as of `plain20`.

    `blocks` is half the number of layers of each group.
    """
    return _cifar_plain(56, classes, in_channels, width, blocks)


@NETS.register(paper=PAPER, family="cifar_resnet", size=32, small=True, quick=DEEP)
def plain110(classes: int = 10, in_channels: int = 3, *, width: int = 16, blocks: int = 18) -> Net:
    """The plain 110-layer net for CIFAR: ResNet-110 without shortcuts; 1.7 M. Options as of `plain20`.

    `blocks` is half the number of layers of each group.
    """
    return _cifar_plain(110, classes, in_channels, width, blocks)


class Residual(nn.Module):
    """x + two times convolution, batch norm, ReLU: (N, C, H, W) -> the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """The residual sum; here the ReLU comes before it."""
        y: Tensor = self.relu2(self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x))))))
        return x + y


def _layer(channels: int, width: int, pool: bool, residual: bool) -> nn.Sequential:
    parts: list[tuple[str, nn.Module]] = [("conv", nn.Conv2d(channels, width, 3, 1, 1, bias=False))]
    # Pooling commutes with the ReLU, and batch norm then has a quarter of the work.
    parts += [("pool", nn.MaxPool2d(2))] if pool else []
    parts += [("bn", nn.BatchNorm2d(width)), ("relu", nn.ReLU())]
    parts += [("residual", Residual(width))] if residual else []
    layer = nn.Sequential()
    for name, part in parts:
        layer.add_module(name, part)
    return layer


@NETS.register(
    paper="D. Page, How to train your ResNet (2018), part 4",
    family="cifar_resnet",
    size=32,
    small=True,
    min_size=8,
    quick={"width": 8},
)
def resnet9(classes: int = 10, in_channels: int = 3, *, width: int = 64) -> Net:
    """Page's nine-layer residual net for fast training: `width`, 2, 4, 8 times as many maps; 6.6 M at 64.

    The logits are multiplied by 0.125, which keeps the softmax soft at high learning rates.

    Raises:
        StriateError: `width` is not in 4 to 1024.
    """
    check_range("width", width, 4, 1024)
    stages: list[tuple[str, nn.Module]] = [
        ("prep", _layer(in_channels, width, pool=False, residual=False)),
        ("layer1", _layer(width, 2 * width, pool=True, residual=True)),
        ("layer2", _layer(2 * width, 4 * width, pool=True, residual=False)),
        ("layer3", _layer(4 * width, 8 * width, pool=True, residual=True)),
        ("pool", GlobalMaxPool()),
        ("flatten", nn.Flatten()),
        ("fc", nn.Linear(8 * width, classes)),
        ("scale", Scale(0.125)),
    ]
    net = Net(stages, head="fc", in_channels=in_channels, size=32, name="resnet9", min_size=8)
    initialise(net, "uniform")
    return net
