"""Inception-ResNet-v2: Szegedy, Ioffe, Vanhoucke & Alemi 2016 (arXiv:1602.07261), section 3.2."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from striate.nets.inception import EPS, LEAST, dotted_branch, head
from striate.nets.mixing import Builder, Conv, Pool, Step
from striate.nets.net import NETS, Net, Size, check_range, finish, is_small

FLAT, TALL = (1, 7), (7, 1)
# Figures 16, 17 and 19: number of blocks, scale of the residual, branches.
BLOCKS: dict[str, tuple[int, float, tuple[tuple[Step, ...], ...]]] = {
    "a": (10, 0.17, ((Conv(32),), (Conv(32), Conv(32, 3)), (Conv(32), Conv(48, 3), Conv(64, 3)))),
    "b": (20, 0.10, ((Conv(192),), (Conv(128), Conv(160, FLAT), Conv(192, TALL)))),
    "c": (10, 0.20, ((Conv(192),), (Conv(192), Conv(224, (1, 3)), Conv(256, (3, 1))))),
}
REDUCTIONS: dict[str, tuple[tuple[Step, ...], ...]] = {
    "a": ((Conv(384, 3, 2),), (Conv(256), Conv(256, 3), Conv(384, 3, 2)), (Pool("max", 2),)),
    "b": (
        (Conv(256), Conv(384, 3, 2)),
        (Conv(256), Conv(288, 3, 2)),
        (Conv(256), Conv(288, 3), Conv(320, 3, 2)),
        (Pool("max", 2),),
    ),
}
FIRST: tuple[tuple[Step, ...], ...] = (
    (Conv(96),),
    (Conv(48), Conv(64, 5)),
    (Conv(64), Conv(96, 3), Conv(96, 3)),
    (Pool("average"), Conv(64)),
)


def from_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """timm's keys of Inception-ResNet-v2: `repeat.0.branch0.conv.weight` is that of `inception_resnet_a1`.

    There it is `inception_resnet_a1.branches.branch0_0.conv.weight`.
    """
    outer = {
        "conv2d_1a": "stem_conv1", "conv2d_2a": "stem_conv2", "conv2d_2b": "stem_conv3",
        "conv2d_3b": "stem_conv4", "conv2d_4a": "stem_conv5", "mixed_5b": "stem_mixed",
        "mixed_6a": "reduction_a", "mixed_7a": "reduction_b", "conv2d_7b": "top_conv", "classif": "fc",
    }  # fmt: skip
    groups = {"repeat": "a", "repeat_1": "b", "repeat_2": "c"}

    def ours(key: str) -> str:
        first, _, rest = key.partition(".")
        if first in outer:
            return f"{outer[first]}.{dotted_branch(rest)}"
        found = re.fullmatch(r"(repeat|repeat_1|repeat_2)\.(\d+)\.(.+)", key)
        if found:
            stage, rest = f"inception_resnet_{groups[found[1]]}{int(found[2]) + 1}", found[3]
        elif first == "block8":
            stage = f"inception_resnet_c{BLOCKS['c'][0]}"
        else:
            return key
        if rest.startswith("conv2d."):
            return f"{stage}.conv.{rest.removeprefix('conv2d.')}"
        return f"{stage}.branches.{dotted_branch(rest)}"

    return {ours(key): tensor for key, tensor in state.items()}


@NETS.register(
    paper="arXiv:1602.07261, figures 15 to 20",
    family="inception",
    size=299,
    small=True,
    quick={"width": 0.0625, "blocks": 2},
    keys={"timm": from_timm},
)
def inception_resnet_v2(
    classes: int = 1000, in_channels: int = 3, *, size: Size = 299, dropout: float = 0.2,
    width: float = 1.0, blocks: int = 20,
) -> Net:  # fmt: skip
    """Inception-ResNet-v2: 10, 20 and 10 scaled residual blocks of branches; 55.8 M parameters.

    The form that the authors released: twice the blocks of figure 15, the stem of Inception-v3 and one
    Inception module without a shortcut in front. The last block is linear. `width` multiplies all numbers
    of maps; there are at most `blocks` blocks of a kind. For pictures of at most 64 pixels the stem keeps
    their size and everything is padded.

    Raises:
        StriateError: a dropout rate outside of 0 to 0.99, a width outside of 0.01 to 4, or no block.
    """
    check_range("dropout", dropout, 0, 0.99)
    check_range("width", width, 0.01, 4)
    check_range("blocks", blocks, 1, 20)
    small = is_small(size)
    b = Builder(in_channels, times=width, eps=EPS, padded=small, count_padding=False)
    b.conv(Conv(32, 3, 1 if small else 2, "stem_conv1"))
    b.conv(Conv(32, 3, 1, "stem_conv2", valid=True))
    b.conv(Conv(64, 3, 1, "stem_conv3"))
    if not small:
        b.pool(Pool("max", 2, "stem_pool1"))
    b.conv(Conv(80, 1, 1, "stem_conv4"))
    b.conv(Conv(192, 3, 1, "stem_conv5", valid=True))
    if not small:
        b.pool(Pool("max", 2, "stem_pool2"))
    b.mix("stem_mixed", *FIRST)
    for letter, (count, scale, branches) in BLOCKS.items():
        count = min(count, blocks)
        for number in range(1, count + 1):
            last = letter == "c" and number == count
            # The block without a ReLU is not scaled either.
            b.residual(f"inception_resnet_{letter}{number}", 1.0 if last else scale, *branches, relu=not last)
        if letter in REDUCTIONS:
            b.mix(f"reduction_{letter}", *REDUCTIONS[letter])
    b.conv(Conv(1536, 1, 1, "top_conv"))
    net = Net(
        head(b, classes, dropout), head="fc", in_channels=in_channels, size=size,
        name="inception_resnet_v2", min_size=1 if small else LEAST,
    )  # fmt: skip
    return finish(net, "he")
