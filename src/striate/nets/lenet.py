"""LeNet-5: LeCun, Bottou, Bengio & Haffner, Proc. IEEE 86(11) (1998)."""

from __future__ import annotations

from torch import nn

from striate.core.errors import unknown
from striate.nets.net import NETS, Net, Size, finish, pair

ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh}
POOLINGS = {"max": nn.MaxPool2d, "average": nn.AvgPool2d}


@NETS.register(
    paper="Proc. IEEE 86(11), section II.B", family="lenet", size=28, small=True, channels=1, min_size=4
)
def lenet5(
    classes: int = 10, in_channels: int = 1, *, size: Size = 28, activation: str = "relu", pool: str = "max"
) -> Net:
    """LeNet-5 in its common present-day form: two 5x5 convolutions with pooling, then 120, 84, K units.

    Every map of conv2 sees all maps of pool1, pooling has no weights, and the output is linear. Pictures
    below 32 pixels are padded by 2 as MNIST's 28 were in the paper; below 16 the second convolution is too.

    Raises:
        StriateError: an unknown activation or pooling.
    """
    if activation not in ACTIVATIONS:
        raise unknown("activation", activation, ACTIVATIONS)
    if pool not in POOLINGS:
        raise unknown("pooling", pool, POOLINGS)
    act, pooling = ACTIVATIONS[activation], POOLINGS[pool]
    shorter = min(pair(size))
    pads = (0 if shorter >= 32 else 2, 2 if shorter < 16 else 0)
    height, width = (((n + 2 * pads[0] - 4) // 2 + 2 * pads[1] - 4) // 2 for n in pair(size))
    stages: list[tuple[str, nn.Module]] = [
        ("conv1", nn.Conv2d(in_channels, 6, 5, padding=pads[0])),
        (f"{activation}1", act()),
        ("pool1", pooling(2)),
        ("conv2", nn.Conv2d(6, 16, 5, padding=pads[1])),
        (f"{activation}2", act()),
        ("pool2", pooling(2)),
        ("flatten", nn.Flatten()),
        ("fc3", nn.Linear(16 * height * width, 120)),
        (f"{activation}3", act()),
        ("fc4", nn.Linear(120, 84)),
        (f"{activation}4", act()),
        ("fc5", nn.Linear(84, classes)),
    ]
    net = Net(
        stages, head="fc5", in_channels=in_channels, size=size, name="lenet5", fixed_size=True, min_size=4
    )
    # Max pooling raises the scale of what it passes on, which makes up for what the ReLU takes.
    return finish(net, "lecun")
