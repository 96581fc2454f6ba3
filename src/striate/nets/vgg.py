"""VGG, columns A, A-LRN, B, C, D, E: Simonyan & Zisserman (arXiv:1409.1556), table 1."""

from __future__ import annotations

import math

import torch
from torch import nn

from striate.core.errors import unknown
from striate.layers.normalization import LocalResponseNorm
from striate.nets.net import NETS, Net, Size, check_range, finish, is_small, pair

# Maps of the five groups, in those of the first.
WIDTHS = (1, 2, 4, 8, 8)
# Convolutions in each of the five groups; column C has a 1x1 convolution last in its last three.
COLUMNS = {"A": (1, 1, 2, 2, 2), "B": (2, 2, 2, 2, 2), "D": (2, 2, 3, 3, 3), "E": (2, 2, 4, 4, 4)}
HEADS = ("auto", "4096-4096", "512-512", "linear")


def _vgg(
    name: str,
    column: str,
    classes: int,
    in_channels: int,
    size: Size,
    head: str,
    dropout: float,
    width: int,
    norm: str = "",
) -> Net:
    if head not in HEADS:
        raise unknown("head", head, HEADS)
    check_range("dropout", dropout, 0, 0.99)
    check_range("width", width, 4, 256)
    small = is_small(size)
    stages: list[tuple[str, nn.Module]] = []
    channels = in_channels
    for group, maps in enumerate((n * width for n in WIDTHS), start=1):
        for number in range(1, COLUMNS["D" if column == "C" else column][group - 1] + 1):
            kernel = 1 if column == "C" and group >= 3 and number == 3 else 3
            place = f"{group}_{number}"
            stages.append((f"conv{place}", nn.Conv2d(channels, maps, kernel, padding=kernel // 2)))
            if norm == "batch":
                stages.append((f"bn{place}", nn.BatchNorm2d(maps)))
            stages.append((f"relu{place}", nn.ReLU()))
            channels = maps
            if norm == "response" and group == 1:
                stages.append((f"norm{place}", LocalResponseNorm()))
        # Rounding up lets pictures below 32 pixels through the five pools.
        stages.append((f"pool{group}", nn.MaxPool2d(2, ceil_mode=small)))
    height, wide = (-(-n // 32) if small else n // 32 for n in pair(size))
    units = channels * height * wide
    stages.append(("flatten", nn.Flatten()))
    if head == "auto":
        head = "linear" if small else "4096-4096"
    if head != "linear":
        hidden = int(head.partition("-")[0])
        for number in (6, 7):
            stages += [
                (f"fc{number}", nn.Linear(units, hidden)),
                (f"relu{number}", nn.ReLU()),
                (f"drop{number}", nn.Dropout(dropout)),
            ]
            units = hidden
    stages.append(("fc8", nn.Linear(units, classes)))
    net = Net(
        stages, head="fc8", in_channels=in_channels, size=size, name=name, fixed_size=True,
        min_size=1 if small else 32,
    )  # fmt: skip
    # Without norms, five max pools let the scale of what they pass on grow; the first logits must not.
    finish(net, "he", head=1.0 if norm == "batch" else 0.1)
    _allow_for_padding(net)
    return net


def _allow_for_padding(net: Net) -> None:
    """Raise the weights of each convolution for the part of its window that lies in the padding.

    He's rule counts all k k C inputs of a unit; on a map of one pixel only one in nine is not padding, and
    small pictures leave such maps to the last convolutions, whose signal would die out. With the mean
    number of inputs inside the map instead, the scale is kept on maps of any size.
    """
    sides = list(net.input_size)
    for name in net.stage_names:
        layer = net.get_submodule(name)
        if isinstance(layer, nn.MaxPool2d):
            sides = [-(-side // 2) if layer.ceil_mode else side // 2 for side in sides]
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3):
            inside = math.prod((3 * side - 2) / (3 * side) for side in sides)
            with torch.no_grad():
                layer.weight.mul_(inside**-0.5)


PAPER = "arXiv:1409.1556, table 1"
QUICK = {"width": 8}


@NETS.register(paper=PAPER, family="vgg", size=224, small=True, column="A", quick=QUICK)
def vgg11(
    classes: int = 1000,
    in_channels: int = 3,
    *,
    size: Size = 224,
    head: str = "auto",
    dropout: float = 0.5,
    width: int = 64,
) -> Net:
    """VGG-11, column A: 8 convolutions of 3x3, five pools, fc6, fc7, fc8; 132.9 M parameters.

    `head` is "4096-4096" (fc6 and fc7 of the paper), "512-512", "linear" (fc8 alone), or "auto": the paper's,
    and "linear" for pictures of at most 64 pixels. `dropout` follows fc6 and fc7. `width` is the number of
    maps of the first group; the others have 2, 4, 8 and 8 times as many. Weights start by He's rule, with
    which the deep columns train from scratch.

    Raises:
        StriateError: an unknown head, a dropout rate outside of 0 to 0.99, or a width outside of 4 to 256.
    """
    return _vgg("vgg11", "A", classes, in_channels, size, head, dropout, width)


@NETS.register(paper=PAPER, family="vgg", size=224, small=True, column="A-LRN", quick=QUICK)
def vgg11_lrn(
    classes: int = 1000,
    in_channels: int = 3,
    *,
    size: Size = 224,
    head: str = "auto",
    dropout: float = 0.5,
    width: int = 64,
) -> Net:
    """VGG-11 with AlexNet's response norm behind conv1_1, column A-LRN: 132.9 M parameters.

    The norm has no parameters, and the paper finds that it does not help (section 4.1). Options as of
    `vgg11`.
    """
    return _vgg("vgg11_lrn", "A", classes, in_channels, size, head, dropout, width, "response")


@NETS.register(paper=PAPER, family="vgg", size=224, small=True, column="B", quick=QUICK)
def vgg13(
    classes: int = 1000,
    in_channels: int = 3,
    *,
    size: Size = 224,
    head: str = "auto",
    dropout: float = 0.5,
    width: int = 64,
) -> Net:
    """VGG-13, column B: 10 convolutions of 3x3; 133.0 M parameters. Options as of `vgg11`."""
    return _vgg("vgg13", "B", classes, in_channels, size, head, dropout, width)


@NETS.register(paper=PAPER, family="vgg", size=224, small=True, column="C", quick=QUICK)
def vgg16_c(
    classes: int = 1000,
    in_channels: int = 3,
    *,
    size: Size = 224,
    head: str = "auto",
    dropout: float = 0.5,
    width: int = 64,
) -> Net:
    """VGG-16 with three 1x1 convolutions, column C: 133.6 M parameters. Options as of `vgg11`."""
    return _vgg("vgg16_c", "C", classes, in_channels, size, head, dropout, width)


@NETS.register(paper=PAPER, family="vgg", size=224, small=True, column="D", quick=QUICK)
def vgg16(
    classes: int = 1000,
    in_channels: int = 3,
    *,
    size: Size = 224,
    head: str = "auto",
    dropout: float = 0.5,
    width: int = 64,
) -> Net:
    """VGG-16, column D: 13 convolutions of 3x3; 138.4 M parameters. Options as of `vgg11`."""
    return _vgg("vgg16", "D", classes, in_channels, size, head, dropout, width)


@NETS.register(paper=PAPER, family="vgg", size=224, small=True, column="E", quick=QUICK)
def vgg19(
    classes: int = 1000,
    in_channels: int = 3,
    *,
    size: Size = 224,
    head: str = "auto",
    dropout: float = 0.5,
    width: int = 64,
) -> Net:
    """VGG-19, column E: 16 convolutions of 3x3; 143.7 M parameters. Options as of `vgg11`."""
    return _vgg("vgg19", "E", classes, in_channels, size, head, dropout, width)


NORMED = f"{PAPER}; batch norm after each convolution, arXiv:1502.03167"


@NETS.register(paper=NORMED, family="vgg", size=224, small=True, column="A", quick=QUICK)
def vgg11_bn(
    classes: int = 1000,
    in_channels: int = 3,
    *,
    size: Size = 224,
    head: str = "auto",
    dropout: float = 0.5,
    width: int = 64,
) -> Net:
    """VGG-11 with batch norm between each convolution and its ReLU. Options as of `vgg11`."""
    return _vgg("vgg11_bn", "A", classes, in_channels, size, head, dropout, width, "batch")


@NETS.register(paper=NORMED, family="vgg", size=224, small=True, column="B", quick=QUICK)
def vgg13_bn(
    classes: int = 1000,
    in_channels: int = 3,
    *,
    size: Size = 224,
    head: str = "auto",
    dropout: float = 0.5,
    width: int = 64,
) -> Net:
    """VGG-13 with batch norm between each convolution and its ReLU. Options as of `vgg11`."""
    return _vgg("vgg13_bn", "B", classes, in_channels, size, head, dropout, width, "batch")


@NETS.register(paper=NORMED, family="vgg", size=224, small=True, column="D", quick=QUICK)
def vgg16_bn(
    classes: int = 1000,
    in_channels: int = 3,
    *,
    size: Size = 224,
    head: str = "auto",
    dropout: float = 0.5,
    width: int = 64,
) -> Net:
    """VGG-16 with batch norm between each convolution and its ReLU. Options as of `vgg11`."""
    return _vgg("vgg16_bn", "D", classes, in_channels, size, head, dropout, width, "batch")


@NETS.register(paper=NORMED, family="vgg", size=224, small=True, column="E", quick=QUICK)
def vgg19_bn(
    classes: int = 1000,
    in_channels: int = 3,
    *,
    size: Size = 224,
    head: str = "auto",
    dropout: float = 0.5,
    width: int = 64,
) -> Net:
    """VGG-19 with batch norm between each convolution and its ReLU. Options as of `vgg11`."""
    return _vgg("vgg19_bn", "E", classes, in_channels, size, head, dropout, width, "batch")
