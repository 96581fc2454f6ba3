"""The network with stochastic pooling: Zeiler & Fergus, Stochastic pooling (arXiv:1301.3557)."""

from __future__ import annotations

from torch import nn

from striate.core.errors import unknown
from striate.layers.normalization import LocalResponseNorm
from striate.layers.pooling import StochasticPool2d
from striate.nets.layout import map_size
from striate.nets.net import NETS, Net, Size, check_range, finish

POOLS = ("stochastic", "max", "average")


def _pool(kind: str) -> nn.Module:
    if kind == "stochastic":
        return StochasticPool2d(3, 2, ceil_mode=True)
    return nn.MaxPool2d(3, 2, ceil_mode=True) if kind == "max" else nn.AvgPool2d(3, 2, ceil_mode=True)


@NETS.register(
    paper="arXiv:1301.3557, section 4.1", family="stochastic", size=32, small=True, min_size=8,
    quick={"width": 8, "last": 8},
)  # fmt: skip
def stochastic_cifar(
    classes: int = 10,
    in_channels: int = 3,
    *,
    size: Size = 32,
    pool: str = "stochastic",
    width: int = 64,
    last: int = 64,
) -> Net:
    """Three 5x5 convolutions, each with stochastic pooling and a response norm; 0.22 M parameters.

    In training each pool draws one of its values in proportion to them; in evaluation it gives their
    weighted mean. Pools are 3x3 of stride 2, and `pool` "max" or "average" gives the nets that the paper
    compares with. `width` maps in conv1 and conv2, `last` in conv3: 64, and 128 for SVHN. The norms over 9
    maps have the constants of the package that the paper refers to (alpha 0.001 / 9, beta 0.75, k 1).

    Raises:
        StriateError: an unknown pooling, or width or last outside of 4 to 512.
    """
    if pool not in POOLS:
        raise unknown("pooling", pool, POOLS)
    check_range("width", width, 4, 512)
    check_range("last", last, 4, 512)
    stages: list[tuple[str, nn.Module]] = []
    channels = in_channels
    for number, maps in enumerate((width, width, last), start=1):
        stages += [
            (f"conv{number}", nn.Conv2d(channels, maps, 5, padding=2)),
            (f"relu{number}", nn.ReLU()),
            (f"pool{number}", _pool(pool)),
            (f"norm{number}", LocalResponseNorm(9, 1e-3, 0.75, 1.0, average=True)),
        ]
        channels = maps
    height, wide = map_size(stages, size, name="stochastic_cifar")
    stages += [("flatten", nn.Flatten()), ("fc4", nn.Linear(channels * height * wide, classes))]
    net = Net(
        stages, head="fc4", in_channels=in_channels, size=size, name="stochastic_cifar", fixed_size=True
    )
    return finish(net, "he", head=0.1)
