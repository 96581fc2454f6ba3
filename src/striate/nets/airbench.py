"""Jordan's net for fast training on CIFAR-10: whitened first layer, early pooling, identity start."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from striate.core.errors import unknown
from striate.layers.normalization import Scale
from striate.layers.pooling import GlobalMaxPool
from striate.nets.net import NETS, Net, check_range, initialise

PAPER = "arXiv:2404.00498, section 3"


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    # The approximation by tanh costs half of the error function on processors.
    "gelu": lambda: nn.GELU("tanh"),
}


def _block(number: int, channels: int, width: int, activation: str) -> list[tuple[str, nn.Module]]:
    """convN_1, pool, norm, ReLU, convN_2, norm, ReLU: (N, C, H, W) -> (N, width, H // 2, W // 2)."""
    act = ACTIVATIONS[activation]
    return [
        (f"conv{number}_1", nn.Conv2d(channels, width, 3, 1, 1, bias=False)),
        # Pooling before the norm and the ReLU gives both a quarter of the work.
        (f"pool{number}", nn.MaxPool2d(2)),
        (f"bn{number}_1", nn.BatchNorm2d(width)),
        (f"{activation}{number}_1", act()),
        (f"conv{number}_2", nn.Conv2d(width, width, 3, 1, 1, bias=False)),
        (f"bn{number}_2", nn.BatchNorm2d(width)),
        (f"{activation}{number}_2", act()),
    ]


@NETS.register(
    paper=PAPER, family="airbench", size=32, small=True, min_size=9, whiten="whiten", quick={"width": 8}
)
def airbench(classes: int = 10, in_channels: int = 3, *, width: int = 64, activation: str = "relu") -> Net:
    """The net of airbench94: a 2x2 convolution, then blocks of 1, 4, 4 times `width` maps.

    Convolutions start as the identity on as many maps as they are given (section 3.2); the logits are
    divided by 9. The first stage is meant to be set to whitening filters of the training images
    (section 3.1), which `first_layer: whitened` in a recipe does; it has 8 filters an input channel.
    `activation` is "relu" or the paper's "gelu", which names its stages `gelu1_1` and takes a tenth longer.

    Raises:
        StriateError: `width` is not in 4 to 512, or an unknown activation.
    """
    check_range("width", width, 4, 512)
    if activation not in ACTIVATIONS:
        raise unknown("activation", activation, ACTIVATIONS)
    filters = 8 * in_channels
    stages: list[tuple[str, nn.Module]] = [
        ("whiten", nn.Conv2d(in_channels, filters, 2)),
        (f"{activation}0", ACTIVATIONS[activation]()),
    ]
    widths = (filters, width, 4 * width, 4 * width)
    for number in (1, 2, 3):
        stages += _block(number, widths[number - 1], widths[number], activation)
    stages += [
        ("pool4", GlobalMaxPool()),
        ("flatten", nn.Flatten()),
        ("fc", nn.Linear(4 * width, classes, bias=False)),
        ("scale", Scale(1 / 9)),
    ]
    net = Net(stages, head="fc", in_channels=in_channels, size=32, name="airbench", min_size=9)
    initialise(net, "uniform")
    for name, module in net.named_modules():
        if name.startswith("conv") and isinstance(module, nn.Conv2d):
            nn.init.dirac_(module.weight.data[: module.in_channels])
    return net
