"""SqueezeNet 1.0 and 1.1: Iandola et al. 2016 (arXiv:1602.07360), table 1."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from striate.layers.pooling import GlobalAveragePool
from striate.nets.net import NETS, Net, Size, check_range, finish, is_small

PAPER = "arXiv:1602.07360, table 1"
# fire2 to fire9: maps of squeeze1x1, of expand1x1 and of expand3x3.
FIRES = (
    (16, 64), (16, 64), (32, 128), (32, 128), (48, 192), (48, 192), (64, 256), (64, 256),
)  # fmt: skip
# What a pool precedes, for each version; torchvision counts every layer of its row.
POOLS = {"1.0": {2: "pool1", 5: "pool4", 9: "pool8"}, "1.1": {2: "pool1", 4: "pool3", 6: "pool5"}}


class Fire(nn.Module):
    """A 1x1 "squeeze" convolution, then 1x1 and 3x3 "expand" convolutions side by side, each with a ReLU.

    (N, C, H, W) -> (N, 2 * expand, H, W). Section 3.2, figure 1.
    """

    def __init__(self, channels: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze1x1 = nn.Conv2d(channels, squeeze, 1)
        self.squeeze_relu = nn.ReLU()
        self.expand1x1 = nn.Conv2d(squeeze, expand, 1)
        self.expand1x1_relu = nn.ReLU()
        self.expand3x3 = nn.Conv2d(squeeze, expand, 3, padding=1)
        self.expand3x3_relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Squeeze, expand, join."""
        x = self.squeeze_relu(self.squeeze1x1(x))
        return torch.cat([self.expand1x1_relu(self.expand1x1(x)), self.expand3x3_relu(self.expand3x3(x))], 1)


def _squeezenet(
    version: str, classes: int, in_channels: int, size: Size, dropout: float, width: float
) -> Net:
    check_range("dropout", dropout, 0, 0.99)
    check_range("width", width, 0.01, 8)
    small = is_small(size)

    def maps(number: int) -> int:
        return max(1, round(number * width))

    channels, kernel = (maps(96), 7) if version == "1.0" else (maps(64), 3)
    stem = nn.Conv2d(in_channels, channels, 3, 1, 1) if small else nn.Conv2d(in_channels, channels, kernel, 2)
    stages: list[tuple[str, nn.Module]] = [("conv1", stem), ("relu1", nn.ReLU())]
    for number, (squeeze, expand) in enumerate(FIRES, start=2):
        if number in POOLS[version]:
            # Padded pools leave ceil(side / 2) positions of maps of any side.
            pool = nn.MaxPool2d(3, 2, 1) if small else nn.MaxPool2d(3, 2, ceil_mode=True)
            stages.append((POOLS[version][number], pool))
        stages.append((f"fire{number}", Fire(channels, maps(squeeze), maps(expand))))
        channels = 2 * maps(expand)
    stages += [
        ("drop9", nn.Dropout(dropout)),
        ("conv10", nn.Conv2d(channels, classes, 1)),
        ("relu10", nn.ReLU()),
        ("pool10", GlobalAveragePool()),
        ("flatten", nn.Flatten()),
    ]
    least = 1 if small else 21 if version == "1.0" else 17
    name = f"squeezenet{version.replace('.', '_')}"
    net = Net(stages, head="conv10", in_channels=in_channels, size=size, name=name, min_size=least)
    # Without norms, three max pools let the scale of what they pass on grow.
    return finish(net, "he", head=0.3)


def from_torchvision(version: str) -> Callable[[Mapping[str, Tensor]], dict[str, Tensor]]:
    """The rule that translates torchvision's keys of this version: `features.3.squeeze` of 1.0 is fire2's."""
    places = {0: "conv1"}
    place = 2  # behind conv1 and its ReLU
    for number in range(2, len(FIRES) + 2):
        place += number in POOLS[version]
        places[place] = f"fire{number}"
        place += 1

    def ours(key: str) -> str:
        if key.startswith("classifier.1."):
            return "conv10." + key.removeprefix("classifier.1.")
        found = re.fullmatch(r"features\.(\d+)\.(.+)", key)
        if not found or int(found[1]) not in places:
            return key
        return f"{places[int(found[1])]}.{re.sub(r'^squeeze[.]', 'squeeze1x1.', found[2])}"

    return lambda state: {ours(key): tensor for key, tensor in state.items()}


@NETS.register(
    paper=PAPER,
    family="squeezenet",
    size=224,
    small=True,
    quick={"width": 0.125},
    keys={"torchvision": from_torchvision("1.0")},
)
def squeezenet1_0(
    classes: int = 1000, in_channels: int = 3, *, size: Size = 224, dropout: float = 0.5, width: float = 1.0
) -> Net:
    """SqueezeNet 1.0: eight fire modules, no linear layer; 1.2 M parameters.

    The head is the convolution conv10, whose rectified maps are averaged. `dropout` precedes it; `width`
    multiplies all numbers of maps. Pictures of at most 64 pixels get a 3x3 stem of stride 1.

    Raises:
        StriateError: a dropout rate outside of 0 to 0.99, or a width outside of 0.01 to 8.
    """
    return _squeezenet("1.0", classes, in_channels, size, dropout, width)


@NETS.register(
    paper=f"{PAPER}; github.com/forresti/SqueezeNet, v1.1",
    family="squeezenet",
    size=224,
    small=True,
    quick={"width": 0.125},
    keys={"torchvision": from_torchvision("1.1")},
)
def squeezenet1_1(
    classes: int = 1000, in_channels: int = 3, *, size: Size = 224, dropout: float = 0.5, width: float = 1.0
) -> Net:
    """SqueezeNet 1.1: a smaller stem and earlier pools, 2.4 times less work; 1.2 M. As `squeezenet1_0`."""
    return _squeezenet("1.1", classes, in_channels, size, dropout, width)
