"""EfficientNet-Lite0 to -Lite2: the mobile forms of EfficientNet without gates and with ReLU6."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor, nn

from striate.core.errors import unknown
from striate.layers.convolution import SameConv2d
from striate.layers.pooling import GlobalAveragePool
from striate.nets.mobilenet import InvertedResidual, Rule, block_names, from_timm, round_maps
from striate.nets.net import NETS, Net, Size, check_range, finish, is_small

PAPER = "arXiv:1905.11946, table 1; Lite: github.com/tensorflow/tpu, efficientnet/lite"
# kernel, blocks, stride, expansion, maps
GROUPS = (
    (3, 1, 1, 1, 16), (3, 2, 2, 6, 24), (5, 2, 2, 6, 40), (3, 3, 2, 6, 80),
    (5, 3, 1, 6, 112), (5, 4, 2, 6, 192), (3, 1, 1, 6, 320),
)  # fmt: skip
# Coefficients of the compound scaling: of the maps, of the blocks.
COEFFICIENTS = {0: (1.0, 1.0), 1: (1.0, 1.1), 2: (1.1, 1.2)}
# Padding as TensorFlow's "same"?, eps and momentum of the batch norms.
FORMS = {"tensorflow": (True, 1e-3, 0.01), "pytorch": (False, 1e-5, 0.1)}


def counts(depth: float) -> tuple[int, ...]:
    """Blocks in each group: times `depth`, rounded up; the first and the last group stay as they are."""
    ends = (0, len(GROUPS) - 1)
    return tuple(
        count if place in ends else math.ceil(count * depth) for place, (_, count, *_) in enumerate(GROUPS)
    )


def flat_blocks(depth: float) -> Rule:
    """The rule that translates keys of PyTorch ports in which all blocks are numbered from 0.

    They have leading underscores: `_blocks.3._bn0.weight` is `block3a.expand_bn.weight` of Lite0. A key that
    has no counterpart stays as it is.
    """
    blocks = block_names("block", counts(depth))
    outer = {
        "_conv_stem": "stem_conv",
        "_bn0": "stem_bn",
        "_conv_head": "top_conv",
        "_bn1": "top_bn",
        "_fc": "fc",
    }
    inner = {
        "_expand_conv": "expand_conv", "_bn0": "expand_bn", "_depthwise_conv": "depthwise_conv",
        "_bn1": "depthwise_bn", "_project_conv": "project_conv", "_bn2": "project_bn",
    }  # fmt: skip

    def ours(key: str) -> str:
        parts = key.split(".")
        if parts[0] == "_blocks" and len(parts) == 4 and parts[1].isdigit() and int(parts[1]) < len(blocks):
            return ".".join((blocks[int(parts[1])], inner.get(parts[2], parts[2]), parts[3]))
        return ".".join((outer.get(parts[0], parts[0]), *parts[1:]))

    return lambda state: {ours(key): tensor for key, tensor in state.items()}


def from_flat_blocks(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keys of EfficientNet-Lite0 in which all blocks are numbered from 0, to ours. See `flat_blocks`."""
    return flat_blocks(1.0)(state)


def _efficientnet(
    number: int,
    classes: int,
    in_channels: int,
    size: Size,
    *,
    dropout: float,
    drop_path: float,
    width: float,
    form: str,
) -> Net:
    check_range("dropout", dropout, 0, 0.99)
    check_range("drop_path", drop_path, 0, 0.99)
    check_range("width", width, 0.01, 4)
    if form not in FORMS:
        raise unknown("form", form, FORMS)
    same, eps, momentum = FORMS[form]
    small = is_small(size)
    scale, depth = COEFFICIENTS[number]
    # The stem and the last convolution of the Lite forms are those of Lite0.
    channels, last = round_maps(32 * width), round_maps(1280 * width)
    stem_stride = 1 if small else 2
    stem = SameConv2d(in_channels, channels, 3, stride=stem_stride, bias=False) if same else nn.Conv2d(
        in_channels, channels, 3, stem_stride, 1, bias=False
    )  # fmt: skip
    stages: list[tuple[str, nn.Module]] = [
        ("stem_conv", stem),
        ("stem_bn", nn.BatchNorm2d(channels, eps, momentum)),
        ("stem_relu", nn.ReLU6()),
    ]
    blocks = counts(depth)
    names = block_names("block", blocks)
    done, total = 0, len(names)
    for group, (kernel, _, stride, expansion, maps) in enumerate(GROUPS, start=1):
        wide = round_maps(maps * scale * width)
        for place in range(blocks[group - 1]):
            step = stride if place == 0 and not (small and group == 2) else 1
            block = InvertedResidual(
                channels, wide, kernel, step, expansion,
                drop_path=drop_path * done / total, same=same, eps=eps, momentum=momentum,
            )  # fmt: skip
            stages.append((names[done], block))
            channels, done = wide, done + 1
    stages += [
        ("top_conv", nn.Conv2d(channels, last, 1, bias=False)),
        ("top_bn", nn.BatchNorm2d(last, eps, momentum)),
        ("top_relu", nn.ReLU6()),
        ("avgpool", GlobalAveragePool()),
        ("flatten", nn.Flatten()),
        ("dropout", nn.Dropout(dropout)),
        ("fc", nn.Linear(last, classes)),
    ]
    name = f"efficientnet_lite{number}"
    return finish(Net(stages, head="fc", in_channels=in_channels, size=size, name=name), "he")


@NETS.register(
    paper=PAPER,
    family="efficientnet",
    size=224,
    small=True,
    quick={"width": 0.25},
    keys={"flat-blocks": from_flat_blocks, "timm": from_timm("block")},
)
def efficientnet_lite0(
    classes: int = 1000,
    in_channels: int = 3,
    *,
    size: Size = 224,
    dropout: float = 0.2,
    drop_path: float = 0.2,
    width: float = 1.0,
    form: str = "tensorflow",
) -> Net:
    """EfficientNet-Lite0: sixteen inverted residual blocks, ReLU6, TensorFlow's padding; 4.65 M parameters.

    `dropout` precedes the head; block i of L, from 0, drops its branch at the rate `drop_path` i / L. `width`
    multiplies all numbers of maps. `form` is "tensorflow" (its "same" padding, batch norms with eps 1e-3),
    or "pytorch" (symmetric padding, eps 1e-5), of weights that were trained there. Pictures of at most 64
    pixels are not reduced by the stem and by block2a.

    Raises:
        StriateError: a rate outside of 0 to 0.99, a width outside of 0.01 to 4, or an unknown form.
    """
    return _efficientnet(
        0, classes, in_channels, size, dropout=dropout, drop_path=drop_path, width=width, form=form
    )


@NETS.register(
    paper=PAPER,
    family="efficientnet",
    size=240,
    small=True,
    quick={"width": 0.25},
    keys={"flat-blocks": flat_blocks(COEFFICIENTS[1][1]), "timm": from_timm("block")},
)
def efficientnet_lite1(
    classes: int = 1000,
    in_channels: int = 3,
    *,
    size: Size = 240,
    dropout: float = 0.2,
    drop_path: float = 0.2,
    width: float = 1.0,
    form: str = "tensorflow",
) -> Net:
    """EfficientNet-Lite1: depth 1.1, for 240 pixels; 5.4 M parameters. Options as of `efficientnet_lite0`."""
    return _efficientnet(
        1, classes, in_channels, size, dropout=dropout, drop_path=drop_path, width=width, form=form
    )


@NETS.register(
    paper=PAPER,
    family="efficientnet",
    size=260,
    small=True,
    quick={"width": 0.25},
    keys={"flat-blocks": flat_blocks(COEFFICIENTS[2][1]), "timm": from_timm("block")},
)
def efficientnet_lite2(
    classes: int = 1000,
    in_channels: int = 3,
    *,
    size: Size = 260,
    dropout: float = 0.3,
    drop_path: float = 0.2,
    width: float = 1.0,
    form: str = "tensorflow",
) -> Net:
    """EfficientNet-Lite2: width 1.1, depth 1.2, for 260 pixels; 6.1 M. Options as of `efficientnet_lite0`."""
    return _efficientnet(
        2, classes, in_channels, size, dropout=dropout, drop_path=drop_path, width=width, form=form
    )
