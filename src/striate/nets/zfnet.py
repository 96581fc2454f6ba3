"""ZFNet: Zeiler & Fergus, Visualizing and understanding convolutional networks (arXiv:1311.2901)."""

from __future__ import annotations

from torch import nn

from striate.layers.normalization import LocalResponseNorm
from striate.nets.layout import map_size
from striate.nets.net import NETS, Net, Size, check_range, finish

# The smallest picture of which the strides and pools leave a map.
LEAST = 47
QUICK = {"width": 12}


def _zfnet(
    name: str, maps: tuple[int, int, int], classes: int, in_channels: int, size: Size, width: int, rate: float
) -> Net:
    check_range("width", width, 4, 384)
    check_range("dropout", rate, 0, 0.99)
    one, two, three, four, five, hidden = (n * width // 96 for n in (96, 256, *maps, 4096))
    stages: list[tuple[str, nn.Module]] = [
        ("conv1", nn.Conv2d(in_channels, one, 7, 2, 1)),
        ("relu1", nn.ReLU()),
        # The figure's 55, 13 need pools that hang over the end.
        ("pool1", nn.MaxPool2d(3, 2, ceil_mode=True)),
        ("norm1", LocalResponseNorm()),
        ("conv2", nn.Conv2d(one, two, 5, 2)),
        ("relu2", nn.ReLU()),
        ("pool2", nn.MaxPool2d(3, 2, ceil_mode=True)),
        ("norm2", LocalResponseNorm()),
        ("conv3", nn.Conv2d(two, three, 3, padding=1)),
        ("relu3", nn.ReLU()),
        ("conv4", nn.Conv2d(three, four, 3, padding=1)),
        ("relu4", nn.ReLU()),
        ("conv5", nn.Conv2d(four, five, 3, padding=1)),
        ("relu5", nn.ReLU()),
        ("pool5", nn.MaxPool2d(3, 2, ceil_mode=True)),
    ]
    height, wide = map_size(stages, size, name=name)
    units = five * height * wide
    stages.append(("flatten", nn.Flatten()))
    for number in (6, 7):
        stages += [
            (f"fc{number}", nn.Linear(units, hidden)),
            (f"relu{number}", nn.ReLU()),
            (f"drop{number}", nn.Dropout(rate)),
        ]
        units = hidden
    stages.append(("fc8", nn.Linear(units, classes)))
    net = Net(stages, head="fc8", in_channels=in_channels, size=size, name=name, fixed_size=True)
    return finish(net, "he", head=0.1)


@NETS.register(
    paper="arXiv:1311.2901, figure 3", family="zfnet", size=224, small=False, min_size=LEAST, quick=QUICK
)
def zfnet(
    classes: int = 1000, in_channels: int = 3, *, size: Size = 224, width: int = 96, dropout: float = 0.5
) -> Net:
    """ZFNet: AlexNet with 7x7 filters of stride 2 first and without groups; 62.4 M parameters.

    7x7/2, pool, norm; 5x5/2, pool, norm; three 3x3 convolutions of 384, 384, 256 maps, pool; fc6, fc7, fc8.
    The contrast across feature maps is normalised with AlexNet's constants, behind the pools. `width` is the
    number of maps of conv1; all others, and the hidden units, change in proportion.

    Raises:
        StriateError: width outside of 4 to 384, dropout of 0 to 0.99, or pictures that are too small.
    """
    return _zfnet("zfnet", (384, 384, 256), classes, in_channels, size, width, dropout)


@NETS.register(
    paper="arXiv:1311.2901, table 3 (layers 3, 4, 5 of 512, 1024, 512 maps)",
    family="zfnet", size=224, small=False, min_size=LEAST, quick=QUICK,
)  # fmt: skip
def zfnet_512(
    classes: int = 1000, in_channels: int = 3, *, size: Size = 224, width: int = 96, dropout: float = 0.5
) -> Net:
    """ZFNet with 512, 1024, 512 maps in conv3, conv4, conv5: 107.6 M parameters. Options as of `zfnet`."""
    return _zfnet("zfnet_512", (512, 1024, 512), classes, in_channels, size, width, dropout)
