"""All-CNN and its relatives: Springenberg, Dosovitskiy, Brox & Riedmiller (arXiv:1412.6806)."""

from __future__ import annotations

from torch import nn

from striate.core.errors import StriateError, unknown
from striate.layers.pooling import GlobalAveragePool
from striate.nets.layout import smallest
from striate.nets.net import NETS, Net, Size, check_range, is_small
from striate.nets.nin import ClassMapNet

Stages = list[tuple[str, nn.Module]]
MODELS = ("auto", "A", "B", "C")
VARIANTS = ("base", "strided", "convpool", "all")
# Kernels of the convolutions before each pooling, table 1.
KERNELS = {"A": (5,), "B": (5, 1), "C": (3, 3)}
# Maps, kernel, stride and padding of the ImageNet model, table 6 in appendix B.
IMAGENET = (
    (96, 11, 4, 2), (96, 1, 1, 0), (96, 3, 2, 0), (256, 5, 1, 2), (256, 1, 1, 0), (256, 3, 2, 0),
    (384, 3, 1, 1), (384, 1, 1, 0), (384, 3, 2, 0), (1024, 3, 1, 1), (1024, 1, 1, 0),
)  # fmt: skip


def _cifar(model: str, variant: str, width: int) -> list[tuple[int, int, int, int] | None]:
    """Maps, kernel, stride and padding of each convolution but the head; None is a pool (tables 1 and 2)."""
    layers: list[tuple[int, int, int, int] | None] = []
    for maps in (width, 2 * width):
        layers += [(maps, kernel, 1, kernel // 2) for kernel in KERNELS[model]]
        if variant == "strided":
            kernel = KERNELS[model][-1]
            layers[-1] = (maps, kernel, 2, kernel // 2)
        if variant == "convpool":
            layers.append((maps, 3, 1, 1))
        if variant == "all":
            layers.append((maps, 3, 2, 1))
        if variant in ("base", "convpool"):
            layers.append(None)
    # Unpadded: 8 x 8 become the 6 x 6 that table 1 averages.
    return [*layers, (2 * width, 3, 1, 0), (2 * width, 1, 1, 0)]


def _layers(model: str, variant: str, width: int, small: bool) -> list[tuple[int, int, int, int] | None]:
    """The layers of a model as `_cifar` gives them, or those of the ImageNet model."""
    if model not in MODELS:
        raise unknown("model", model, MODELS)
    if variant not in VARIANTS:
        raise unknown("variant", variant, VARIANTS)
    if small:
        return _cifar("C" if model == "auto" else model, variant, width)
    if model in ("auto", "B") and variant == "all":
        return [(maps * width // 96, kernel, stride, padding) for maps, kernel, stride, padding in IMAGENET]
    raise StriateError(
        f"model is {model!r} and variant {variant!r} for pictures of more than 64 pixels",
        allowed="model B, variant 'all'",
        hint="leave both out, or give size=64 or less",
    )


@NETS.register(
    paper="arXiv:1412.6806, tables 1, 2 and 6",
    family="allcnn", size=32, small=True, min_size=9, quick={"width": 16},
)  # fmt: skip
def allcnn(
    classes: int = 10,
    in_channels: int = 3,
    *,
    size: Size = 32,
    model: str = "auto",
    variant: str = "all",
    width: int = 96,
    dropout: float = 0.5,
    input_dropout: float = 0.2,
) -> Net:
    """All-CNN: convolutions only, those of stride 2 instead of pools; All-CNN-C has 1,369,738 parameters.

    `model` is A (one 5x5 convolution before each reduction), B (a 1x1 behind it) or C (two of 3x3);
    `variant` how it reduces: "base" pools of 3x3; "strided" no pools, the convolution before them has stride
    2; "convpool" one more 3x3 convolution before each pool; "all" a 3x3 convolution of stride 2 instead of
    each pool. A last 3x3, two 1x1, a ReLU and the averages of K class maps follow. `width` is the number of
    maps of conv1, doubled after the first reduction; `dropout` follows each reduction, `input_dropout` the
    input.

    Pictures of more than 64 pixels get the ImageNet model, All-CNN-B of twelve convolutions: 9.4 M
    parameters. "auto" is C for small pictures and B for large ones.

    Raises:
        StriateError: an unknown model or variant, width outside of 4 to 384, a rate outside of 0 to 0.99, or
            another model or variant for large pictures than the paper's.
    """
    check_range("width", width, 4, 384)
    check_range("dropout", dropout, 0, 0.99)
    check_range("input_dropout", input_dropout, 0, 0.99)
    layers = _layers(model, variant, width, is_small(size))
    stages: Stages = [("drop0", nn.Dropout(input_dropout))] if is_small(size) else []
    channels, number, group = in_channels, 0, 0
    for layer in layers:
        if layer is None:
            stages.append((f"pool{group + 1}", nn.MaxPool2d(3, 2, 1)))
        else:
            number += 1
            maps, kernel, stride, padding = layer
            stages.append((f"conv{number}", nn.Conv2d(channels, maps, kernel, stride, padding)))
            stages.append((f"relu{number}", nn.ReLU()))
            channels = maps
        if layer is None or (layer[2] == 2):
            group += 1
            # The ImageNet model drops once, before conv10.
            if is_small(size) or group == 3:
                stages.append((f"drop{group}", nn.Dropout(dropout)))
    head = f"conv{number + 1}"
    stages += [(head, nn.Conv2d(channels, classes, 1)), (f"relu{number + 1}", nn.ReLU())]
    least = smallest(stages)
    stages += [("avgpool", GlobalAveragePool()), ("flatten", nn.Flatten())]
    net = ClassMapNet(stages, head=head, in_channels=in_channels, size=size, name="allcnn", min_size=least)
    return net.start()
