"""AlexNet in two groups (Krizhevsky et al., NIPS 2012), and in a single column (arXiv:1404.5997)."""

from __future__ import annotations

from torch import nn

from striate.core.errors import StriateError
from striate.layers.normalization import LocalResponseNorm
from striate.nets.layout import map_size
from striate.nets.net import NETS, Net, Size, check_range, finish, is_small

SIDE = 227
Stages = list[tuple[str, nn.Module]]


def _top(stages: Stages, units: int, hidden: tuple[int, int], first: int, classes: int, rate: float) -> str:
    """Add two hidden layers, each with ReLU and dropout behind it, and the head; returns the head's name."""
    stages.append(("flatten", nn.Flatten()))
    for number, width in enumerate(hidden, start=first):
        stages += [
            (f"fc{number}", nn.Linear(units, width)),
            (f"relu{number}", nn.ReLU()),
            (f"drop{number}", nn.Dropout(rate)),
        ]
        units = width
    stages.append((f"fc{first + 2}", nn.Linear(units, classes)))
    return f"fc{first + 2}"


def _small(name: str, classes: int, in_channels: int, size: Size, dropout: float, norm: bool) -> Net:
    """The form for CIFAR: two times 5x5 convolution, pool, norm; then 384, 192, K units."""
    stages: Stages = []
    channels = in_channels
    for number in (1, 2):
        stages += [
            (f"conv{number}", nn.Conv2d(channels, 64, 5, padding=2)),
            (f"relu{number}", nn.ReLU()),
            (f"pool{number}", nn.MaxPool2d(3, 2, 1)),
        ]
        if norm:
            stages.append((f"norm{number}", LocalResponseNorm()))
        channels = 64
    height, width = map_size(stages, size, name=name)
    head = _top(stages, 64 * height * width, (384, 192), 3, classes, dropout)
    net = Net(stages, head=head, in_channels=in_channels, size=size, name=name, fixed_size=True)
    return finish(net, "he", head=0.1)


@NETS.register(
    paper="Krizhevsky, Sutskever & Hinton, NIPS 2012; small form: arXiv:1611.03530, appendix A",
    family="alexnet",
    size=SIDE,
    small=True,
)
def alexnet(
    classes: int = 1000, in_channels: int = 3, *, size: Size = SIDE, groups: int = 2, dropout: float = 0.5
) -> Net:
    """AlexNet in two groups, as its paper splits it over two GPUs: 60,965,224 parameters.

    conv2, conv4 and conv5 see their own half of the maps (figure 2); with `groups` 1 they see all:
    62,378,344 parameters. Response norms behind conv1 and conv2, overlapping pools, dropout behind fc6 and
    fc7. The paper says 224 pixels; its 55 x 55 maps need 227. Weights start by He's rule instead of the
    paper's Gaussian of 0.01.

    Pictures of at most 64 pixels get the small AlexNet of Zhang et al. 2017: two 5x5 convolutions of 64
    maps, each pooled and normalised, then 384 and 192 units; it has no groups. 1,387,786 parameters for
    28 x 28 and 10 classes.

    Raises:
        StriateError: groups other than 1 and 2, a dropout rate outside of 0 to 0.99, or 65 or 66 pixels.
    """
    if groups not in (1, 2):
        raise StriateError(f"groups is {groups!r}", allowed="1 or 2")
    check_range("dropout", dropout, 0, 0.99)
    if is_small(size):
        return _small("alexnet", classes, in_channels, size, dropout, norm=True)
    stages: Stages = [
        ("conv1", nn.Conv2d(in_channels, 96, 11, 4)),
        ("relu1", nn.ReLU()),
        ("norm1", LocalResponseNorm()),
        ("pool1", nn.MaxPool2d(3, 2)),
        ("conv2", nn.Conv2d(96, 256, 5, padding=2, groups=groups)),
        ("relu2", nn.ReLU()),
        ("norm2", LocalResponseNorm()),
        ("pool2", nn.MaxPool2d(3, 2)),
        ("conv3", nn.Conv2d(256, 384, 3, padding=1)),
        ("relu3", nn.ReLU()),
        ("conv4", nn.Conv2d(384, 384, 3, padding=1, groups=groups)),
        ("relu4", nn.ReLU()),
        ("conv5", nn.Conv2d(384, 256, 3, padding=1, groups=groups)),
        ("relu5", nn.ReLU()),
        ("pool5", nn.MaxPool2d(3, 2)),
    ]
    height, width = map_size(stages, size, name="alexnet", small=True)
    head = _top(stages, 256 * height * width, (4096, 4096), 6, classes, dropout)
    net = Net(stages, head=head, in_channels=in_channels, size=size, name="alexnet", fixed_size=True)
    return finish(net, "he", head=0.1)


@NETS.register(
    paper="arXiv:1404.5997; small form: arXiv:1611.03530, appendix A", family="alexnet", size=224, small=True
)
def alexnet_single(
    classes: int = 1000, in_channels: int = 3, *, size: Size = 224, dropout: float = 0.5
) -> Net:
    """AlexNet in a single column without norms, the form of published weights: 61,100,840 parameters.

    Krizhevsky 2014 with 64, 192, 384, 256, 256 maps, as torchvision trained it: dropout before fc6 and fc7.
    Pictures of at most 64 pixels get the small form of `alexnet`, without its norms.

    Raises:
        StriateError: a dropout rate outside of 0 to 0.99.
    """
    check_range("dropout", dropout, 0, 0.99)
    if is_small(size):
        return _small("alexnet_single", classes, in_channels, size, dropout, norm=False)
    stages: Stages = [
        ("conv1", nn.Conv2d(in_channels, 64, 11, 4, 2)),
        ("relu1", nn.ReLU()),
        ("pool1", nn.MaxPool2d(3, 2)),
        ("conv2", nn.Conv2d(64, 192, 5, padding=2)),
        ("relu2", nn.ReLU()),
        ("pool2", nn.MaxPool2d(3, 2)),
        ("conv3", nn.Conv2d(192, 384, 3, padding=1)),
        ("relu3", nn.ReLU()),
        ("conv4", nn.Conv2d(384, 256, 3, padding=1)),
        ("relu4", nn.ReLU()),
        ("conv5", nn.Conv2d(256, 256, 3, padding=1)),
        ("relu5", nn.ReLU()),
        ("pool5", nn.MaxPool2d(3, 2)),
    ]
    height, width = map_size(stages, size, name="alexnet_single", small=True)
    units = 256 * height * width
    stages.append(("flatten", nn.Flatten()))
    for number in (6, 7):
        stages += [
            (f"drop{number}", nn.Dropout(dropout)),
            (f"fc{number}", nn.Linear(units, 4096)),
            (f"relu{number}", nn.ReLU()),
        ]
        units = 4096
    stages.append(("fc8", nn.Linear(units, classes)))
    net = Net(stages, head="fc8", in_channels=in_channels, size=size, name="alexnet_single", fixed_size=True)
    return finish(net, "he", head=0.1)
