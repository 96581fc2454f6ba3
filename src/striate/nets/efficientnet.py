"""EfficientNet-Lite0: the mobile form of EfficientNet-B0 without gates and with ReLU6."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from striate.layers.convolution import SameConv2d
from striate.layers.pooling import GlobalAveragePool
from striate.layers.regularization import DropPath
from striate.nets.net import NETS, Net, Size, check_range, finish, is_small

PAPER = "arXiv:1905.11946, table 1; Lite: github.com/tensorflow/tpu, efficientnet/lite"
# kernel, blocks, stride, expansion, maps
GROUPS = (
    (3, 1, 1, 1, 16), (3, 2, 2, 6, 24), (5, 2, 2, 6, 40), (3, 3, 2, 6, 80),
    (5, 3, 1, 6, 112), (5, 4, 2, 6, 192), (3, 1, 1, 6, 320),
)  # fmt: skip
EPS, MOMENTUM = 1e-3, 0.01


def _norm(width: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width, EPS, MOMENTUM)


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise convolution, linear 1x1 projection; a sum where the shape stays.

    (N, C, H, W) -> (N, M, ceil(H/s), ceil(W/s)). arXiv:1801.04381, section 3.3, without the gates of B0.
    """

    def __init__(
        self, channels: int, width: int, kernel: int, stride: int, expansion: int, drop_path: float
    ) -> None:
        super().__init__()
        inner = channels * expansion
        self.expand = expansion != 1
        if self.expand:
            self.expand_conv = nn.Conv2d(channels, inner, 1, bias=False)
            self.expand_bn = _norm(inner)
            self.expand_relu = nn.ReLU6()
        self.depthwise_conv = SameConv2d(inner, inner, kernel, stride=stride, groups=inner, bias=False)
        self.depthwise_bn = _norm(inner)
        self.depthwise_relu = nn.ReLU6()
        self.project_conv = nn.Conv2d(inner, width, 1, bias=False)
        self.project_bn = _norm(width)
        self.residual = stride == 1 and channels == width
        if self.residual:
            self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Expand, filter, project, add."""
        wide = self.expand_relu(self.expand_bn(self.expand_conv(x))) if self.expand else x
        wide = self.depthwise_relu(self.depthwise_bn(self.depthwise_conv(wide)))
        y: Tensor = self.project_bn(self.project_conv(wide))
        if self.residual:
            y = x + self.drop_path(y)
        return y


def from_flat_blocks(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keys of the PyTorch port in which all blocks are numbered from 0, with leading underscores, to ours.

    `_blocks.3._bn0.weight` is `block3a.expand_bn.weight`; a key that has no counterpart stays as it is.
    """
    blocks = [
        f"block{group}{chr(ord('a') + number)}"
        for group, (_, count, *_) in enumerate(GROUPS, start=1)
        for number in range(count)
    ]
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

    return {ours(key): tensor for key, tensor in state.items()}


@NETS.register(
    paper=PAPER, family="efficientnet", size=224, small=True, keys={"flat-blocks": from_flat_blocks}
)
def efficientnet_lite0(
    classes: int = 1000,
    in_channels: int = 3,
    *,
    size: Size = 224,
    dropout: float = 0.2,
    drop_path: float = 0.2,
) -> Net:
    """EfficientNet-Lite0: sixteen inverted residual blocks, ReLU6, TensorFlow's padding; 4.65 M parameters.

    `dropout` precedes the head; `drop_path` is the rate of the last block, rising linearly from 0. Pictures
    of at most 64 pixels are not reduced by the stem and by block2a.

    Raises:
        StriateError: a rate outside of 0 to 0.99.
    """
    check_range("dropout", dropout, 0, 0.99)
    check_range("drop_path", drop_path, 0, 0.99)
    small = is_small(size)
    stages: list[tuple[str, nn.Module]] = [
        ("stem_conv", SameConv2d(in_channels, 32, 3, stride=1 if small else 2, bias=False)),
        ("stem_bn", _norm(32)),
        ("stem_relu", nn.ReLU6()),
    ]
    channels, done, total = 32, 0, sum(count for _, count, *_ in GROUPS)
    for group, (kernel, count, stride, expansion, width) in enumerate(GROUPS, start=1):
        for number in range(count):
            step = stride if number == 0 and not (small and group == 2) else 1
            block = InvertedResidual(channels, width, kernel, step, expansion, drop_path * done / total)
            stages.append((f"block{group}{chr(ord('a') + number)}", block))
            channels, done = width, done + 1
    stages += [
        ("top_conv", nn.Conv2d(channels, 1280, 1, bias=False)),
        ("top_bn", _norm(1280)),
        ("top_relu", nn.ReLU6()),
        ("avgpool", GlobalAveragePool()),
        ("flatten", nn.Flatten()),
        ("dropout", nn.Dropout(dropout)),
        ("fc", nn.Linear(1280, classes)),
    ]
    net = Net(stages, head="fc", in_channels=in_channels, size=size, name="efficientnet_lite0")
    return finish(net, "he")
