"""Inception-v3 (Szegedy et al. 2015, arXiv:1512.00567) and Inception-v4 (2016, arXiv:1602.07261)."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor, nn

from striate.layers.pooling import GlobalAveragePool
from striate.nets.mixing import AuxiliaryNet, Builder, Conv, Pool, Step, named
from striate.nets.net import NETS, Net, Size, check_range, finish, initialise, is_small

EPS = 1e-3
# The least side of a picture that the unpadded stem and reductions of the large forms leave a position of.
LEAST = 75


def head(builder: Builder, classes: int, dropout: float) -> list[tuple[str, nn.Module]]:
    """The stages of the builder and behind them the average pool, dropout and linear layer of the family."""
    builder.add("avgpool", GlobalAveragePool())
    builder.add("flatten", nn.Flatten())
    builder.add("dropout", nn.Dropout(dropout))
    builder.add("fc", nn.Linear(builder.channels, classes))
    return builder.stages


def _module_a(pool: int) -> tuple[tuple[Step, ...], ...]:
    """Figure 5: the 5x5 beside two 3x3."""
    return (
        (Conv(64, name="branch1x1"),),
        (Conv(48, name="branch5x5_1"), Conv(64, 5, name="branch5x5_2")),
        (
            Conv(64, name="branch3x3dbl_1"),
            Conv(96, 3, name="branch3x3dbl_2"),
            Conv(96, 3, name="branch3x3dbl_3"),
        ),
        (Pool("average", name="pool"), Conv(pool, name="branch_pool")),
    )


def _module_c(inner: int) -> tuple[tuple[Step, ...], ...]:
    """Figure 6: 7x7 convolutions factored into 1x7 and 7x1."""
    flat, tall = (1, 7), (7, 1)
    return (
        (Conv(192, name="branch1x1"),),
        (
            Conv(inner, name="branch7x7_1"),
            Conv(inner, flat, name="branch7x7_2"),
            Conv(192, tall, name="branch7x7_3"),
        ),
        (
            Conv(inner, name="branch7x7dbl_1"),
            Conv(inner, tall, name="branch7x7dbl_2"),
            Conv(inner, flat, name="branch7x7dbl_3"),
            Conv(inner, tall, name="branch7x7dbl_4"),
            Conv(192, flat, name="branch7x7dbl_5"),
        ),
        (Pool("average", name="pool"), Conv(192, name="branch_pool")),
    )


def _module_e() -> tuple[tuple[Step, ...], ...]:
    """Figure 7: 1x3 and 3x1 side by side, for many maps on a coarse grid."""
    flat, tall = (1, 3), (3, 1)
    return (
        (Conv(320, name="branch1x1"),),
        (
            Conv(384, name="branch3x3_1"),
            (Conv(384, flat, name="branch3x3_2a"), Conv(384, tall, name="branch3x3_2b")),
        ),
        (
            Conv(448, name="branch3x3dbl_1"),
            Conv(384, 3, name="branch3x3dbl_2"),
            (Conv(384, flat, name="branch3x3dbl_3a"), Conv(384, tall, name="branch3x3dbl_3b")),
        ),
        (Pool("average", name="pool"), Conv(192, name="branch_pool")),
    )


def _reductions() -> dict[str, tuple[tuple[Step, ...], ...]]:
    """Section 5, figure 10: stride 2 in the branches and beside them a pool."""
    return {
        "Mixed_6a": (
            (Conv(384, 3, 2, "branch3x3"),),
            (
                Conv(64, name="branch3x3dbl_1"),
                Conv(96, 3, name="branch3x3dbl_2"),
                Conv(96, 3, 2, "branch3x3dbl_3"),
            ),
            (Pool("max", 2, "pool"),),
        ),
        "Mixed_7a": (
            (Conv(192, name="branch3x3_1"), Conv(320, 3, 2, "branch3x3_2")),
            (
                Conv(192, name="branch7x7x3_1"),
                Conv(192, (1, 7), name="branch7x7x3_2"),
                Conv(192, (7, 1), name="branch7x7x3_3"),
                Conv(192, 3, 2, "branch7x7x3_4"),
            ),
            (Pool("max", 2, "pool"),),
        ),
    }


def _auxiliary(builder: Builder, classes: int, small: bool) -> nn.Sequential:
    """The classifier beside the 17 x 17 maps: to 5 x 5, 1x1, 5x5 over all of it, head."""
    first = builder.unit(builder.channels, Conv(128))
    last = builder.maps(768)
    second = Builder(builder.maps(128), times=builder.times, eps=builder.eps)
    pools: list[tuple[str, nn.Module]] = [("fit", nn.AdaptiveAvgPool2d(5))]
    if not small:
        # 5 x 5 already for the 17 x 17 of pictures of 299 pixels.
        pools.insert(0, ("pool", nn.AvgPool2d(5, 3)))
    return named(
        *pools,
        ("conv0", first),
        ("conv1", second.unit(second.channels, Conv(768, 5, valid=True))),
        ("flatten", nn.Flatten()),
        ("fc", nn.Linear(last, classes)),
    )


def without_auxiliary(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """torchvision's and timm's keys of Inception-v3 are ours; the auxiliary classifier is left out."""
    return {key: tensor for key, tensor in state.items() if not key.startswith("AuxLogits.")}


@NETS.register(
    paper="arXiv:1512.00567, table 1",
    family="inception",
    size=299,
    small=True,
    quick={"width": 0.0625},
    keys={"torchvision": without_auxiliary, "timm": without_auxiliary},
)
def inception_v3(
    classes: int = 1000,
    in_channels: int = 3,
    *,
    size: Size = 299,
    aux: bool = False,
    dropout: float = 0.5,
    width: float = 1.0,
) -> Net:
    """Inception-v3: factored 5x5, 7x7 and 3x3 windows in eleven modules, batch norm; 23.8 M parameters.

    The stages have the names of the authors' published network. With `aux` an auxiliary classifier runs in
    training behind Mixed_6e, and `forward` gives `mixing.Outputs` there; 27.2 M. `width` multiplies all
    numbers of maps. For pictures of at most 64 pixels the stem keeps their size and everything is padded.

    Raises:
        StriateError: a dropout rate outside of 0 to 0.99, or a width outside of 0.01 to 4.
    """
    check_range("dropout", dropout, 0, 0.99)
    check_range("width", width, 0.01, 4)
    small = is_small(size)
    b = Builder(in_channels, times=width, eps=EPS, padded=small)
    b.conv(Conv(32, 3, 1 if small else 2, "Conv2d_1a_3x3"))
    b.conv(Conv(32, 3, 1, "Conv2d_2a_3x3", valid=True))
    b.conv(Conv(64, 3, 1, "Conv2d_2b_3x3"))
    if not small:
        b.pool(Pool("max", 2, "maxpool1"))
    b.conv(Conv(80, 1, 1, "Conv2d_3b_1x1"))
    b.conv(Conv(192, 3, 1, "Conv2d_4a_3x3", valid=True))
    if not small:
        b.pool(Pool("max", 2, "maxpool2"))
    for letter, pool in (("b", 32), ("c", 64), ("d", 64)):
        b.mix(f"Mixed_5{letter}", *_module_a(pool))
    reductions = _reductions()
    b.mix("Mixed_6a", *reductions["Mixed_6a"])
    for letter, inner in (("b", 128), ("c", 160), ("d", 160), ("e", 192)):
        b.mix(f"Mixed_6{letter}", *_module_c(inner))
    heads = {"AuxLogits": ("Mixed_6e", _auxiliary(b, classes, small))} if aux else {}
    b.mix("Mixed_7a", *reductions["Mixed_7a"])
    for letter in "bc":
        b.mix(f"Mixed_7{letter}", *_module_e())
    net = AuxiliaryNet(
        head(b, classes, dropout), head="fc", in_channels=in_channels, size=size, name="inception_v3",
        min_size=1 if small else 107 if aux else LEAST, auxiliary=heads, weight=0.4,
    )  # fmt: skip
    finish(net, "he")
    if aux:
        initialise(net.get_submodule("AuxLogits.fc"), "uniform")
    return net


# Inception-v4, figures 4 to 8: the branches in the paper's order from the right, the pool last.
FLAT, TALL = (1, 7), (7, 1)
A: tuple[tuple[Step, ...], ...] = (
    (Conv(96),),
    (Conv(64), Conv(96, 3)),
    (Conv(64), Conv(96, 3), Conv(96, 3)),
    (Pool("average"), Conv(96)),
)
REDUCTION_A: tuple[tuple[Step, ...], ...] = (
    (Conv(384, 3, 2),),
    (Conv(192), Conv(224, 3), Conv(256, 3, 2)),
    (Pool("max", 2),),
)
B: tuple[tuple[Step, ...], ...] = (
    (Conv(384),),
    (Conv(192), Conv(224, FLAT), Conv(256, TALL)),
    (Conv(192), Conv(192, TALL), Conv(224, FLAT), Conv(224, TALL), Conv(256, FLAT)),
    (Pool("average"), Conv(128)),
)
REDUCTION_B: tuple[tuple[Step, ...], ...] = (
    (Conv(192), Conv(192, 3, 2)),
    (Conv(256), Conv(256, FLAT), Conv(320, TALL), Conv(320, 3, 2)),
    (Pool("max", 2),),
)
C: tuple[tuple[Step, ...], ...] = (
    (Conv(256),),
    (Conv(384), (Conv(256, (1, 3)), Conv(256, (3, 1)))),
    (Conv(384), Conv(448, (3, 1)), Conv(512, (1, 3)), (Conv(256, (1, 3)), Conv(256, (3, 1)))),
    (Pool("average"), Conv(256)),
)
GROUPS = (("a", 4, A), ("b", 7, B), ("c", 3, C))


def _v4_names() -> list[str]:
    """The stages with weights, in order, as timm numbers them."""
    names = ["stem_conv1", "stem_conv2", "stem_conv3", "stem_mixed1", "stem_mixed2", "stem_mixed3"]
    for letter, count, _ in GROUPS:
        names += [f"inception_{letter}{number}" for number in range(1, count + 1)]
        names += [f"reduction_{letter}"] if letter != "c" else []
    return names


def v4_from_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """timm's keys of Inception-v4 to ours: `features.6.branch1.0.conv` is `inception_a1.branch1_0.conv`."""
    names = _v4_names()

    def ours(key: str) -> str:
        if key.startswith("last_linear."):
            return "fc." + key.removeprefix("last_linear.")
        found = re.fullmatch(r"features\.(\d+)\.(.+)", key)
        if not found or int(found[1]) >= len(names):
            return key
        stage, rest = names[int(found[1])], found[2]
        # Two modules of the stem have but one convolution, beside a pool, and give it no branch.
        alone = {"stem_mixed1": "branch1_0.", "stem_mixed3": "branch0_0."}.get(stage)
        rest = alone + rest.removeprefix("conv.") if alone else dotted_branch(rest)
        return f"{stage}.{rest}"

    return {ours(key): tensor for key, tensor in state.items()}


def dotted_branch(rest: str) -> str:
    """timm's names of convolutions in branches to ours: `branch1.0.bn.bias` is `branch1_0.bn.bias`."""
    rest = re.sub(r"^branch(\d)\.(?=conv\.|bn\.)", r"branch\1_0.", rest)
    return re.sub(r"^branch(\d)\.(\d)\.", r"branch\1_\2.", rest)


def v4_stem(b: Builder, small: bool) -> None:
    """Figure 3: 299 x 299 pixels to 384 maps of 35 x 35."""
    b.conv(Conv(32, 3, 1 if small else 2, "stem_conv1"))
    b.conv(Conv(32, 3, 1, "stem_conv2", valid=True))
    b.conv(Conv(64, 3, 1, "stem_conv3"))
    step = 1 if small else 2
    b.mix("stem_mixed1", (Pool("max", step),), (Conv(96, 3, step),))
    b.mix(
        "stem_mixed2",
        (Conv(64), Conv(96, 3, valid=True)),
        (Conv(64), Conv(64, FLAT), Conv(64, TALL), Conv(96, 3, valid=True)),
    )
    b.mix("stem_mixed3", (Conv(192, 3, step),), (Pool("max", step),))


@NETS.register(
    paper="arXiv:1602.07261, figures 3 to 9",
    family="inception",
    size=299,
    small=True,
    quick={"width": 0.0625, "blocks": 1},
    keys={"timm": v4_from_timm},
)
def inception_v4(
    classes: int = 1000, in_channels: int = 3, *, size: Size = 299, dropout: float = 0.2,
    width: float = 1.0, blocks: int = 7,
) -> Net:  # fmt: skip
    """Inception-v4: a branching stem, 4 Inception-A, 7 -B, 3 -C and two reductions; 42.7 M parameters.

    `width` multiplies all numbers of maps; there are at most `blocks` modules of a kind. For pictures of at
    most 64 pixels the stem keeps their size and everything is padded.

    Raises:
        StriateError: a dropout rate outside of 0 to 0.99, a width outside of 0.01 to 4, or no block.
    """
    check_range("dropout", dropout, 0, 0.99)
    check_range("width", width, 0.01, 4)
    check_range("blocks", blocks, 1, 7)
    small = is_small(size)
    b = Builder(in_channels, times=width, eps=EPS, padded=small, count_padding=False)
    v4_stem(b, small)
    for letter, count, branches in GROUPS:
        for number in range(1, min(count, blocks) + 1):
            b.mix(f"inception_{letter}{number}", *branches)
        if letter != "c":
            b.mix(f"reduction_{letter}", *(REDUCTION_A if letter == "a" else REDUCTION_B))
    net = Net(
        head(b, classes, dropout), head="fc", in_channels=in_channels, size=size, name="inception_v4",
        min_size=1 if small else LEAST,
    )  # fmt: skip
    return finish(net, "he")
