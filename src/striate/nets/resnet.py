"""ResNet-18, -34 and -50: He, Zhang, Ren & Sun, Deep residual learning (arXiv:1512.03385), table 1."""

from __future__ import annotations

from torch import Tensor, nn

from striate.layers.pooling import GlobalAveragePool
from striate.nets.net import NETS, Net, Size, finish, is_small

PAPER = "arXiv:1512.03385, table 1"
WIDTHS = (64, 128, 256, 512)


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

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """The norm before the sum."""
        return self.bn2

    def forward(self, x: Tensor) -> Tensor:
        """The residual sum."""
        y = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
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

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """The norm before the sum."""
        return self.bn3

    def forward(self, x: Tensor) -> Tensor:
        """The residual sum."""
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(self.relu2(self.bn2(self.conv2(y)))))
        out: Tensor = self.relu3(y + self.shortcut(x))
        return out


def _resnet(
    name: str,
    block: type[BasicBlock] | type[Bottleneck],
    depths: tuple[int, ...],
    classes: int,
    in_channels: int,
    size: Size,
    zero_init: bool,
) -> Net:
    small = is_small(size)
    stem = nn.Conv2d(in_channels, 64, 3, 1, 1, bias=False) if small else nn.Conv2d(
        in_channels, 64, 7, 2, 3, bias=False
    )  # fmt: skip
    stages: list[tuple[str, nn.Module]] = [("conv1", stem), ("bn1", nn.BatchNorm2d(64)), ("relu1", nn.ReLU())]
    if not small:
        stages.append(("pool1", nn.MaxPool2d(3, 2, 1)))
    channels = 64
    for group, (width, depth) in enumerate(zip(WIDTHS, depths, strict=True), start=2):
        for number in range(depth):
            stride = 2 if group > 2 and number == 0 else 1
            stages.append((f"res{group}{chr(ord('a') + number)}", block(channels, width, stride)))
            channels = width * block.expansion
    stages += [
        ("pool5", GlobalAveragePool()),
        ("flatten", nn.Flatten()),
        ("fc", nn.Linear(channels, classes)),
    ]
    net = finish(Net(stages, head="fc", in_channels=in_channels, size=size, name=name), "he")
    if zero_init:
        for module in net.modules():
            if isinstance(module, (BasicBlock, Bottleneck)):
                nn.init.zeros_(module.last_norm.weight)
    return net


@NETS.register(paper=PAPER, family="resnet", size=224, small=True)
def resnet18(classes: int = 1000, in_channels: int = 3, *, size: Size = 224, zero_init: bool = False) -> Net:
    """ResNet-18: 2, 2, 2, 2 basic blocks of 64 to 512 maps; 11.7 M parameters.

    Pictures of at most 64 pixels get a 3x3 stem of stride 1 without pooling. With `zero_init` the last norm
    of each block starts at 0, so that each block starts as its shortcut (arXiv:1706.02677, section 5.1).
    """
    return _resnet("resnet18", BasicBlock, (2, 2, 2, 2), classes, in_channels, size, zero_init)


@NETS.register(paper=PAPER, family="resnet", size=224, small=True)
def resnet34(classes: int = 1000, in_channels: int = 3, *, size: Size = 224, zero_init: bool = False) -> Net:
    """ResNet-34: 3, 4, 6, 3 basic blocks; 21.8 M parameters. Options as of `resnet18`."""
    return _resnet("resnet34", BasicBlock, (3, 4, 6, 3), classes, in_channels, size, zero_init)


@NETS.register(paper=PAPER, family="resnet", size=224, small=True)
def resnet50(classes: int = 1000, in_channels: int = 3, *, size: Size = 224, zero_init: bool = False) -> Net:
    """ResNet-50: 3, 4, 6, 3 bottleneck blocks; 25.6 M parameters. Options as of `resnet18`."""
    return _resnet("resnet50", Bottleneck, (3, 4, 6, 3), classes, in_channels, size, zero_init)
