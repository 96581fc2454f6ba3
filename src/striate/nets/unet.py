"""U-Net's contracting path: Ronneberger, Fischer & Brox, U-Net (arXiv:1505.04597), with batch norm."""

from __future__ import annotations

from torch import nn

from striate.layers.pooling import GlobalAveragePool
from striate.nets.net import NETS, Net, Size, check_range, finish


@NETS.register(paper="arXiv:1505.04597, section 2", family="unet", size=128, min_size=16, quick={"width": 4})
def unet(classes: int = 2, in_channels: int = 1, *, size: Size = 128, width: int = 16, depth: int = 4) -> Net:
    """`depth` levels of two 3x3 convolutions with batch norm, from `width` maps, doubled after each pooling.

    The paper's has width 64 and depth 5, and no padding. Segmentation adds the expanding path to it; for
    whole images, global average pooling and one linear layer.

    Raises:
        StriateError: a width or depth out of range.
    """
    check_range("width", width, 1, 256)
    check_range("depth", depth, 1, 5)
    stages: list[tuple[str, nn.Module]] = []
    below = in_channels
    for level in range(1, depth + 1):
        maps = width * 2 ** (level - 1)
        if level > 1:
            stages.append((f"pool{level - 1}", nn.MaxPool2d(2)))
        for layer in (1, 2):
            name = f"{level}_{layer}"
            stages.append((f"conv{name}", nn.Conv2d(below, maps, 3, padding=1, bias=False)))
            stages.append((f"bn{name}", nn.BatchNorm2d(maps)))
            stages.append((f"relu{name}", nn.ReLU()))
            below = maps
    stages += [
        ("avgpool", GlobalAveragePool()),
        ("flatten", nn.Flatten()),
        ("fc", nn.Linear(below, classes)),
    ]
    net = Net(stages, head="fc", in_channels=in_channels, size=size, name="unet", min_size=2 ** (depth - 1))
    return finish(net, "he")
