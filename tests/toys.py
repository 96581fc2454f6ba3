"""Small nets whose answers can be worked out by hand."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from striate.nets.net import Net


def ones_conv(channels: int, width: int, kernel: int, stride: int = 1, padding: int = 0) -> nn.Conv2d:
    """A convolution whose weights are all 1: it sums its window."""
    conv = nn.Conv2d(channels, width, kernel, stride, padding, bias=False)
    nn.init.ones_(conv.weight)
    return conv


def summing_net(side: int = 4) -> Net:
    """conv1 sums 3x3 windows, pool1 takes the maximum of 2x2, fc adds all up and gives (s, 2 s).

    For a picture of ones of 4 x 4 pixels: conv1 is 9 everywhere (2 x 2), pool1 is 9, logits (9, 18).
    """
    units = ((side - 2) // 2) ** 2
    fc = nn.Linear(units, 2, bias=False)
    with torch.no_grad():
        fc.weight.copy_(torch.tensor([[1.0], [2.0]]).expand(2, units))
    stages = [
        ("conv1", ones_conv(1, 1, 3)),
        ("relu1", nn.ReLU()),
        ("pool1", nn.MaxPool2d(2)),
        ("flatten", nn.Flatten()),
        ("fc", fc),
    ]
    return Net(stages, head="fc", in_channels=1, size=side, name="summing", fixed_size=True)


class Branch(nn.Module):
    """3x3 and then 5x5 sums beside a shortcut: a receptive field of 7, whatever the shortcut's is."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = ones_conv(1, 1, 3, padding=1)
        self.conv2 = ones_conv(1, 1, 5, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.conv1(x))


class Functional(nn.Module):
    """Work outside of modules: functional convolution, pooling and ReLU, and one ReLU that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = ones_conv(3, 4, 3, padding=1)
        self.kernel = nn.Parameter(torch.ones(2, 4, 3, 3))
        self.relu = nn.ReLU()
        self.unused = nn.Linear(7, 7)
        self.out = nn.Linear(2, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.conv(x))
        x = F.max_pool2d(F.conv2d(x, self.kernel, stride=2), 2)
        return self.out(self.relu(x).mean((2, 3)))


class InPlace(nn.Module):
    """conv, then a ReLU that overwrites the convolution's output; conv gives -x."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 1, bias=False)
        nn.init.constant_(self.conv.weight, -1.0)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.relu(self.conv(x)).flatten(1))


class Overwriting(nn.Module):
    """As `InPlace`, by a function instead of a module, which no flag tells."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 1, bias=False)
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).mul_(3).flatten(1))


class Crash(nn.Module):
    """Raises when it runs."""

    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("crash inside the net")


def crashing_net() -> Net:
    """A net whose second stage raises."""
    stages = [("conv1", ones_conv(1, 1, 3)), ("crash", Crash()), ("fc", nn.Linear(4, 2))]
    return Net(stages, head="fc", in_channels=1, size=4, name="crashing")


def hooks(net: nn.Module) -> int:
    """How many hooks of any kind lie on a module and all below it."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, kind)) for module in net.modules() for kind in kinds)
