"""GoogLeNet: Szegedy et al. 2014, Going deeper with convolutions (arXiv:1409.4842), table 1."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor, nn

from striate.core.errors import StriateError
from striate.layers.normalization import LocalResponseNorm
from striate.layers.pooling import GlobalAveragePool
from striate.nets.mixing import AuxiliaryNet, Branches, Builder, Conv, Pool, Step, named
from striate.nets.net import NETS, Net, Size, check_range, finish, initialise, is_small

PAPER = "arXiv:1409.4842, table 1"
# Maps of 1x1; 3x3 reduce, 3x3; 5x5 reduce, 5x5; pool proj.
TABLE = {
    "3a": (64, 96, 128, 16, 32, 32), "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64), "4b": (160, 112, 224, 24, 64, 64), "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64), "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128), "5b": (384, 192, 384, 48, 128, 128),
}  # fmt: skip
EPS = 1e-3


def branches(
    widths: tuple[int, int, int, int, int, int], *, reduce: bool = True, five: int = 5
) -> tuple[tuple[Step, ...], ...]:
    """The four branches of an Inception module: figure 2 (b), or with reduce=False (a), the naive one.

    widths: maps of 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5 and pool proj; the naive module has no reductions
    and no projection. five: the kernel of the branch "5x5".
    """
    one, reduce3, three, reduce5, wide, projected = widths
    if not reduce:
        return (
            (Conv(one, name="conv1x1"),), (Conv(three, 3, name="conv3x3"),),
            (Conv(wide, five, name="conv5x5"),), (Pool("max", name="pool"),),
        )  # fmt: skip
    return (
        (Conv(one, name="conv1x1"),),
        (Conv(reduce3, name="conv3x3_reduce"), Conv(three, 3, name="conv3x3")),
        (Conv(reduce5, name="conv5x5_reduce"), Conv(wide, five, name="conv5x5")),
        (Pool("max", name="pool"), Conv(projected, name="pool_proj")),
    )


def inception(channels: int, widths: tuple[int, int, int, int, int, int], *, reduce: bool = True) -> Branches:
    """One Inception module alone, without batch norm: (N, channels, H, W) -> (N, M, H, W). See `branches`."""
    return Builder(channels, eps=None).branches(*branches(widths, reduce=reduce))


def _auxiliary(builder: Builder, classes: int, pools: list[tuple[str, nn.Module]]) -> nn.Sequential:
    """Section 5: average pool to 4 x 4, 1x1 convolution of 128 maps, 1024 units, 70 % dropout, head."""
    conv = builder.unit(builder.channels, Conv(128))
    units = builder.maps(1024)
    return named(
        *pools,
        ("conv", conv),
        ("flatten", nn.Flatten()),
        ("fc1", nn.Linear(16 * builder.maps(128), units)),
        ("relu", nn.ReLU()),
        ("dropout", nn.Dropout(0.7)),
        ("fc2", nn.Linear(units, classes)),
    )


def _stem(builder: Builder, small: bool, norm: bool) -> None:
    """The stages up to inception_3a, convolutions and norms as stages of their own."""

    def conv(name: str, width: int, kernel: int, stride: int = 1) -> None:
        place = name.removeprefix("conv")
        maps = builder.maps(width)
        layer = nn.Conv2d(builder.channels, maps, kernel, stride, kernel // 2, bias=not norm)
        builder.add(name, layer)
        if norm:
            builder.add(f"bn{place}", nn.BatchNorm2d(maps, EPS))
        builder.add(f"relu{place}", nn.ReLU())
        builder.channels = maps

    # The constants of the authors' network as Caffe has it; the paper gives none.
    def response(name: str) -> None:
        if not norm:
            builder.add(name, LocalResponseNorm(5, 1e-4, 0.75, 1.0, average=True))

    conv("conv1", 64, 3 if small else 7, 1 if small else 2)
    if not small:
        builder.add("pool1", nn.MaxPool2d(3, 2, ceil_mode=True))
    response("norm1")
    conv("conv2_reduce", 64, 1)
    conv("conv2", 192, 3)
    response("norm2")
    if not small:
        builder.add("pool2", nn.MaxPool2d(3, 2, ceil_mode=True))


def _googlenet(
    name: str,
    classes: int,
    in_channels: int,
    size: Size,
    *,
    norm: bool,
    five: int,
    reduce: bool,
    aux: bool,
    dropout: float,
    width: float,
) -> Net:
    check_range("dropout", dropout, 0, 0.99)
    check_range("width", width, 0.01, 4)
    small = is_small(size)
    builder = Builder(in_channels, times=width, eps=EPS if norm else None)
    _stem(builder, small, norm)
    heads: dict[str, tuple[str, nn.Sequential]] = {}
    for place, widths in TABLE.items():
        if place in ("4a", "5a"):
            # The padded pools of the small form leave ceil(side / 2) positions of any side.
            pool = nn.MaxPool2d(3, 2, 1) if small else nn.MaxPool2d(3, 2, ceil_mode=True)
            if norm and place == "5a" and not small:
                pool = nn.MaxPool2d(2, 2, ceil_mode=True)
            builder.add("pool3" if place == "4a" else "pool4", pool)
        stage = f"inception_{place}"
        builder.mix(stage, *branches(widths, reduce=reduce, five=five))
        if aux and place in ("4a", "4d"):
            # 5x5 windows with stride 3 give 4 x 4 of the paper's 14 x 14; other sides are brought to it.
            pools: list[tuple[str, nn.Module]] = [("pool", nn.AdaptiveAvgPool2d(4))]
            if not (small or norm):
                pools = [("pool", nn.AvgPool2d(5, 3)), ("fit", nn.AdaptiveAvgPool2d(4))]
            heads[f"aux{len(heads) + 1}"] = (stage, _auxiliary(builder, classes, pools))
    builder.add("pool5", GlobalAveragePool())
    builder.add("flatten", nn.Flatten())
    builder.add("dropout", nn.Dropout(dropout))
    builder.add("fc", nn.Linear(builder.channels, classes))
    least = 1 if small else 15 if norm else 79 if aux else 31
    net = AuxiliaryNet(
        builder.stages, head="fc", in_channels=in_channels, size=size, name=name, min_size=least,
        auxiliary=heads, weight=0.3,
    )  # fmt: skip
    # Without batch norm, thirteen max pools let the scale of what they pass on grow.
    finish(net, "he", head=1.0 if norm else 0.1)
    for _, layers in heads.values():
        initialise(layers.get_submodule("fc2"), "uniform")
    return net


def from_torchvision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """torchvision's keys of GoogLeNet to those of `googlenet_bn`; `aux1` and `aux2` keep theirs.

    `inception3a.branch2.1.conv.weight` is `inception_3a.conv3x3.conv.weight`.
    """
    stem = {"conv1": "1", "conv2": "2_reduce", "conv3": "2"}
    inner = {
        "branch1": "conv1x1", "branch2.0": "conv3x3_reduce", "branch2.1": "conv3x3",
        "branch3.0": "conv5x5_reduce", "branch3.1": "conv5x5", "branch4.1": "pool_proj",
    }  # fmt: skip

    def ours(key: str) -> str:
        first, _, rest = key.partition(".")
        kind, _, leaf = rest.partition(".")
        if first in stem and kind in ("conv", "bn"):
            return f"{kind}{stem[first]}.{leaf}"
        found = re.fullmatch(r"inception(\d[a-e])\.(branch\d(?:\.\d)?)\.((?:conv|bn)\..+)", key)
        if found and found[2] in inner:
            return f"inception_{found[1]}.{inner[found[2]]}.{found[3]}"
        return key

    return {ours(key): tensor for key, tensor in state.items()}


def without_auxiliary(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As `from_torchvision`, leaving out the auxiliary classifiers, which published files hold too."""
    return {
        key: tensor
        for key, tensor in from_torchvision(state).items()
        if not key.startswith(("aux1.", "aux2."))
    }


@NETS.register(paper=PAPER, family="googlenet", size=224, small=True, quick={"width": 0.125})
def googlenet(
    classes: int = 1000,
    in_channels: int = 3,
    *,
    size: Size = 224,
    reduce: bool = True,
    aux: bool = False,
    dropout: float = 0.4,
    width: float = 1.0,
) -> Net:
    """GoogLeNet: nine Inception modules, response normalisation, one linear layer; 7.0 M parameters.

    With reduce=False the modules are the naive ones of figure 2 (a), without 1x1 reductions. With `aux` two
    auxiliary classifiers run in training behind inception_4a and -4d, and `forward` gives
    `mixing.Outputs` there. `width` multiplies all numbers of maps. Pictures of at most 64 pixels get a
    3x3 stem and keep their size up to pool3, as is usual on CIFAR.

    Raises:
        StriateError: a dropout rate outside of 0 to 0.99, or a width outside of 0.01 to 4.
    """
    return _googlenet(
        "googlenet", classes, in_channels, size, norm=False, five=5, reduce=reduce, aux=aux,
        dropout=dropout, width=width,
    )  # fmt: skip


@NETS.register(
    paper=f"{PAPER}; batch norm, arXiv:1502.03167",
    family="googlenet",
    size=224,
    small=True,
    quick={"width": 0.125},
    keys={"torchvision": from_torchvision, "torchvision without auxiliary": without_auxiliary},
)
def googlenet_bn(
    classes: int = 1000,
    in_channels: int = 3,
    *,
    size: Size = 224,
    five: int = 3,
    reduce: bool = True,
    aux: bool = False,
    dropout: float = 0.2,
    width: float = 1.0,
) -> Net:
    """GoogLeNet with batch norm instead of response normalisation and biases; 6.6 M parameters.

    The form of the published weights, in which the convolutions called 5x5 have kernels of 3 x 3; `five=5`
    gives the paper's. Other options as of `googlenet`.

    Raises:
        StriateError: `five` is not 3 or 5; otherwise as `googlenet`.
    """
    if five not in (3, 5):
        raise StriateError(f"five is {five!r}", allowed="3 or 5, the kernel of the branch '5x5'")
    return _googlenet(
        "googlenet_bn", classes, in_channels, size, norm=True, five=five, reduce=reduce, aux=aux,
        dropout=dropout, width=width,
    )  # fmt: skip
