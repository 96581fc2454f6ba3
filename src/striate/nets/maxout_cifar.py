"""The maxout network for CIFAR: Goodfellow, Warde-Farley, Mirza, Courville & Bengio (arXiv:1302.4389)."""

from __future__ import annotations

from torch import nn

from striate.layers.activations import Maxout
from striate.nets.layout import map_size
from striate.nets.net import NETS, Net, Size, check_range, finish

# Maps of 96 units, kernel and padding of the convolution, side of the pool (stride 2) behind each.
LAYERS = ((96, 8, 4, 4), (192, 8, 3, 4), (192, 5, 3, 2))


@NETS.register(
    paper="arXiv:1302.4389, section 5.2; sizes: its authors' published settings",
    family="maxout", size=32, small=True, min_size=8, quick={"width": 12},
)  # fmt: skip
def maxout_cifar(
    classes: int = 10,
    in_channels: int = 3,
    *,
    size: Size = 32,
    width: int = 96,
    pieces: int = 2,
    dropout: float = 0.5,
    input_dropout: float = 0.2,
) -> Net:
    """Three convolutional maxout layers and a dense one: 96, 192, 192 maps and 500 units; 16.2 M parameters.

    Each convolutional unit is the largest of `pieces` neighbouring maps, each dense unit of five. 8x8, 8x8
    and 5x5 filters; overlapping pools; dropout of the input and before every further layer. `width` is the
    number of units of conv1; all others change in proportion.

    Raises:
        StriateError: width outside of 4 to 384, pieces of 1 to 16, a rate outside of 0 to 0.99, or pictures
            that are too small.
    """
    check_range("width", width, 4, 384)
    check_range("pieces", pieces, 1, 16)
    check_range("dropout", dropout, 0, 0.99)
    check_range("input_dropout", input_dropout, 0, 0.99)
    stages: list[tuple[str, nn.Module]] = [("drop0", nn.Dropout(input_dropout))]
    channels = in_channels
    for number, (maps, kernel, padding, pool) in enumerate(LAYERS, start=1):
        units = maps * width // 96
        stages += [
            (f"conv{number}", nn.Conv2d(channels, units * pieces, kernel, padding=padding)),
            (f"maxout{number}", Maxout(pieces)),
            (f"pool{number}", nn.MaxPool2d(pool, 2, ceil_mode=True)),
            (f"drop{number}", nn.Dropout(dropout)),
        ]
        channels = units
    height, wide = map_size(stages, size, name="maxout_cifar")
    hidden = 500 * width // 96
    stages += [
        ("flatten", nn.Flatten()),
        ("fc4", nn.Linear(channels * height * wide, 5 * hidden)),
        ("maxout4", Maxout(5)),
        ("drop4", nn.Dropout(dropout)),
        ("fc5", nn.Linear(hidden, classes)),
    ]
    net = Net(stages, head="fc5", in_channels=in_channels, size=size, name="maxout_cifar", fixed_size=True)
    # The larger of two pieces has more energy than one: LeCun's rule keeps the scale about as it is.
    return finish(net, "lecun", head=0.1)
