"""Network in network: Lin, Chen & Yan (arXiv:1312.4400), with the widths of its authors' published models."""

from __future__ import annotations

from typing import Self

from torch import nn

from striate.layers.pooling import GlobalAveragePool
from striate.nets.layout import smallest
from striate.nets.net import NETS, Net, Size, check_range, finish, is_small

Stages = list[tuple[str, nn.Module]]


class ClassMapNet(Net):
    """A net whose class maps pass a ReLU before they are averaged.

    The head's biases start at 1, well above what its small weights add: a class map that is negative for
    every picture gets no gradient, and its class would never be learned.
    """

    def start(self) -> Self:
        """Draw all weights by He's rule, the head's small; returns the net itself."""
        finish(self, "he", head=0.1)
        return self._enliven()

    def reset_head(self, classes: int) -> Self:
        """As `Net.reset_head`, with biases of 1."""
        return super().reset_head(classes)._enliven()

    def _enliven(self) -> Self:
        if self.head_layer.bias is not None:
            nn.init.ones_(self.head_layer.bias)
        return self


def _mlpconv(
    number: int, channels: int, maps: tuple[int, int, int], kernel: int, stride: int, padding: int
) -> Stages:
    """One mlpconv layer (section 3.1): a convolution, then two of 1x1, each with its ReLU."""
    first = 2 * number - 1
    stages: Stages = [
        (f"conv{number}", nn.Conv2d(channels, maps[0], kernel, stride, padding)),
        (f"relu{number}", nn.ReLU()),
    ]
    for place in (0, 1):
        stages += [
            (f"cccp{first + place}", nn.Conv2d(maps[place], maps[place + 1], 1)),
            (f"relu_cccp{first + place}", nn.ReLU()),
        ]
    return stages


@NETS.register(
    paper="arXiv:1312.4400, section 3", family="nin", size=224, small=True, min_size=1, quick={"width": 24}
)
def nin(
    classes: int = 1000, in_channels: int = 3, *, size: Size = 224, width: int = 96, dropout: float = 0.5
) -> Net:
    """Network in network: layers of small perceptrons that slide, and global averages of K class maps.

    For pictures of at most 64 pixels the CIFAR model, three mlpconv layers: 966,986 parameters for 10
    classes; above, the ImageNet model, four: 7,595,176 for 1,000. Widths are those of the models that the
    authors published, in which "cccp" are the 1x1 convolutions; the class maps too pass a ReLU before they
    are averaged. `dropout` is between the layers; `width` is the number of maps of cccp2, all others change
    in proportion.

    Raises:
        StriateError: width outside of 4 to 384, or dropout of 0 to 0.99.
    """
    check_range("width", width, 4, 384)
    check_range("dropout", dropout, 0, 0.99)

    def maps(*counts: int) -> tuple[int, int, int]:
        one, two, three = (n * width // 96 for n in counts)
        return one, two, three

    if is_small(size):
        layers = [
            (maps(192, 160, 96), 5, 1, 2),
            (maps(192, 192, 192), 5, 1, 2),
            (maps(192, 192, 192), 3, 1, 1),
        ]
    else:
        layers = [
            (maps(96, 96, 96), 11, 4, 0), (maps(256, 256, 256), 5, 1, 2),
            (maps(384, 384, 384), 3, 1, 1), (maps(1024, 1024, 1024), 3, 1, 1),
        ]  # fmt: skip
    stages: Stages = []
    channels, last = in_channels, len(layers)
    for number, (counts, kernel, stride, padding) in enumerate(layers, start=1):
        if number == last:
            counts = (counts[0], counts[1], classes)
        stages += _mlpconv(number, channels, counts, kernel, stride, padding)
        channels = counts[2]
        if number < last:
            small_average = is_small(size) and number == 2
            pool: nn.Module = (
                nn.AvgPool2d(3, 2, ceil_mode=True) if small_average else nn.MaxPool2d(3, 2, ceil_mode=True)
            )
            stages.append((f"pool{number}", pool))
            # The published ImageNet model drops only before its last layer.
            if is_small(size) or number == last - 1:
                stages.append((f"drop{number}", nn.Dropout(dropout)))
    least = smallest(stages)
    stages += [(f"pool{last}", GlobalAveragePool()), ("flatten", nn.Flatten())]
    head = f"cccp{2 * last}"
    net = ClassMapNet(stages, head=head, in_channels=in_channels, size=size, name="nin", min_size=least)
    return net.start()
