"""Residual networks for small pictures: He et al. 2015 section 4.2, and Page's nine-layer net."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from striate.layers.normalization import Scale
from striate.layers.pooling import GlobalAveragePool, GlobalMaxPool
from striate.nets.net import NETS, Net, check_range, finish, initialise


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

    def forward(self, x: Tensor) -> Tensor:
        """The residual sum."""
        y = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        out: Tensor = self.relu2(y + self.shortcut(x))
        return out


def _cifar_resnet(name: str, blocks: int, classes: int, in_channels: int, zero_init: bool) -> Net:
    stages: list[tuple[str, nn.Module]] = [
        ("conv1", nn.Conv2d(in_channels, 16, 3, 1, 1, bias=False)),
        ("bn1", nn.BatchNorm2d(16)),
        ("relu1", nn.ReLU()),
    ]
    channels = 16
    for group, width in enumerate((16, 32, 64), start=1):
        for block in range(blocks):
            stride = 2 if group > 1 and block == 0 else 1
            stages.append((f"res{group}{chr(ord('a') + block)}", Block(channels, width, stride)))
            channels = width
    stages += [
        ("avgpool", GlobalAveragePool()),
        ("flatten", nn.Flatten()),
        ("fc", nn.Linear(64, classes)),
    ]
    net = finish(Net(stages, head="fc", in_channels=in_channels, size=32, name=name), "he")
    if zero_init:
        for module in net.modules():
            if isinstance(module, Block):
                nn.init.zeros_(module.bn2.weight)
    return net


PAPER = "arXiv:1512.03385, section 4.2"


@NETS.register(paper=PAPER, family="cifar_resnet", size=32, small=True)
def resnet20(classes: int = 10, in_channels: int = 3, *, zero_init: bool = False) -> Net:
    """ResNet-20 for CIFAR: 3 blocks each of 16, 32, 64 maps; option A shortcuts; 0.27 M parameters."""
    return _cifar_resnet("resnet20", 3, classes, in_channels, zero_init)


@NETS.register(paper=PAPER, family="cifar_resnet", size=32, small=True)
def resnet32(classes: int = 10, in_channels: int = 3, *, zero_init: bool = False) -> Net:
    """ResNet-32 for CIFAR: 5 blocks each of 16, 32, 64 maps; option A shortcuts; 0.46 M parameters."""
    return _cifar_resnet("resnet32", 5, classes, in_channels, zero_init)


@NETS.register(paper=PAPER, family="cifar_resnet", size=32, small=True)
def resnet44(classes: int = 10, in_channels: int = 3, *, zero_init: bool = False) -> Net:
    """ResNet-44 for CIFAR: 7 blocks each of 16, 32, 64 maps; option A shortcuts; 0.66 M parameters."""
    return _cifar_resnet("resnet44", 7, classes, in_channels, zero_init)


@NETS.register(paper=PAPER, family="cifar_resnet", size=32, small=True)
def resnet56(classes: int = 10, in_channels: int = 3, *, zero_init: bool = False) -> Net:
    """ResNet-56 for CIFAR: 9 blocks each of 16, 32, 64 maps; option A shortcuts; 0.85 M parameters."""
    return _cifar_resnet("resnet56", 9, classes, in_channels, zero_init)


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
