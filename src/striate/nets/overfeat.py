"""OverFeat, fast and accurate: Sermanet, Eigen, Zhang, Mathieu, Fergus & LeCun (arXiv:1312.6229)."""

from __future__ import annotations

from torch import nn

from striate.nets.layout import map_size
from striate.nets.net import NETS, Net, Size, check_range, finish

# Each row: maps, kernel, stride, padding of the convolution; side of the pool behind it, 0 for none.
FAST = ((96, 11, 4, 0, 2), (256, 5, 1, 0, 2), (512, 3, 1, 1, 0), (1024, 3, 1, 1, 0), (1024, 3, 1, 1, 2))
ACCURATE = (
    (96, 7, 2, 0, 3), (256, 7, 1, 0, 2), (512, 3, 1, 1, 0), (512, 3, 1, 1, 0),
    (1024, 3, 1, 1, 0), (1024, 3, 1, 1, 3),
)  # fmt: skip


def _overfeat(
    name: str,
    layers: tuple[tuple[int, int, int, int, int], ...],
    hidden: tuple[int, int],
    classes: int,
    in_channels: int,
    size: Size,
    width: int,
    dropout: float,
) -> Net:
    check_range("width", width, 4, 384)
    check_range("dropout", dropout, 0, 0.99)
    stages: list[tuple[str, nn.Module]] = []
    channels = in_channels
    for number, (maps, kernel, stride, padding, pool) in enumerate(layers, start=1):
        conv = nn.Conv2d(channels, maps * width // 96, kernel, stride, padding)
        stages += [(f"conv{number}", conv), (f"relu{number}", nn.ReLU())]
        if pool:
            stages.append((f"pool{number}", nn.MaxPool2d(pool)))
        channels = conv.out_channels
    height, wide = map_size(stages, size, name=name)
    units = channels * height * wide
    stages.append(("flatten", nn.Flatten()))
    first = len(layers) + 1
    for number, outputs in enumerate(hidden, start=first):
        layer = nn.Linear(units, outputs * width // 96)
        stages += [
            (f"fc{number}", layer),
            (f"relu{number}", nn.ReLU()),
            (f"drop{number}", nn.Dropout(dropout)),
        ]
        units = layer.out_features
    head = f"fc{first + 2}"
    stages.append((head, nn.Linear(units, classes)))
    net = Net(stages, head=head, in_channels=in_channels, size=size, name=name, fixed_size=True)
    return finish(net, "he", head=0.1)


@NETS.register(
    paper="arXiv:1312.6229, table 1",
    family="overfeat", size=231, small=False, min_size=71, quick={"width": 12},
)  # fmt: skip
def overfeat_fast(
    classes: int = 1000, in_channels: int = 3, *, size: Size = 231, width: int = 96, dropout: float = 0.5
) -> Net:
    """OverFeat's fast model: five convolutions, pools that do not overlap, fc6 to fc8; 145.9 M parameters.

    Layer 1 is 11x11 of stride 4; no contrast normalisation (section 3.1). The table's 24 x 24 of layer 2 is
    the size before its pool. `width` is the number of maps of conv1; all others, and the hidden units,
    change in proportion.

    Raises:
        StriateError: width outside of 4 to 384, dropout of 0 to 0.99, or pictures that are too small.
    """
    return _overfeat("overfeat_fast", FAST, (3072, 4096), classes, in_channels, size, width, dropout)


@NETS.register(
    paper="arXiv:1312.6229, table 3",
    family="overfeat", size=221, small=False, min_size=77, quick={"width": 12},
)  # fmt: skip
def overfeat_accurate(
    classes: int = 1000, in_channels: int = 3, *, size: Size = 221, width: int = 96, dropout: float = 0.5
) -> Net:
    """OverFeat's accurate model: six convolutions, the first 7x7 of stride 2, fc7 to fc9; 144.7 M parameters.

    Pools of 3x3 behind layers 1 and 6, of 2x2 behind layer 2, none overlapping. Options as of
    `overfeat_fast`.

    Raises:
        StriateError: width outside of 4 to 384, dropout of 0 to 0.99, or pictures that are too small.
    """
    return _overfeat("overfeat_accurate", ACCURATE, (4096, 4096), classes, in_channels, size, width, dropout)
