"""LeNet of 1989 and LeNet-5: LeCun et al., Neural Computation 1(4) (1989), Proc. IEEE 86(11) (1998)."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from striate.core.errors import unknown
from striate.layers.activations import ScaledTanh
from striate.layers.convolution import TableConv2d, UntiedBiasConv2d, draw_lecun_1989
from striate.layers.pooling import TrainableSubsample
from striate.nets.geometry import stage_geometry
from striate.nets.net import NETS, Net, Size, finish, pair

# Which maps of H1 each map of H2 sees: 8 of 12. The paper leaves its scheme out; here they go round.
H2_TABLE = tuple(tuple(sorted((first + n) % 12 for n in range(8))) for first in range(12))
# Which maps of S2 each map of C3 sees: table I of the paper.
C3_TABLE = (
    (0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (0, 4, 5), (0, 1, 5),
    (0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (0, 3, 4, 5), (0, 1, 4, 5), (0, 1, 2, 5),
    (0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5), (0, 1, 2, 3, 4, 5),
)  # fmt: skip
OUTPUTS_1989 = ("linear", "tanh")
OUTPUTS_1998 = ("linear", "rbf")
ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh}
POOLINGS = {"max": nn.MaxPool2d, "average": nn.AvgPool2d}


def _pads(size: Size) -> tuple[tuple[int, int], tuple[int, int]]:
    """Padding of LeNet-5's two convolutions for pictures of `size`, and the size of the last map."""
    shorter = min(pair(size))
    pads = (0 if shorter >= 32 else 2, 2 if shorter < 16 else 0)
    height, width = (((n + 2 * pads[0] - 4) // 2 + 2 * pads[1] - 4) // 2 for n in pair(size))
    return pads, (height, width)


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
    pads, (height, width) = _pads(size)
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


class RadialBasis(nn.Linear):
    """LeNet-5's output: minus the squared distance of the input from the code of each class.

    y[k] = -sum over j of (x[j] - weight[k, j])^2; (N, D) -> (N, K). The codes are of +1 and -1 and are not
    trained; they are drawn, as the paper says that they could be (section II.B), where its own are pictures
    of the characters.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)
        self.weight.requires_grad_(False)
        if not self.weight.is_meta:
            self.weight.bernoulli_(0.5).mul_(2).sub_(1)

    def forward(self, x: Tensor) -> Tensor:
        """Distances by their products, at the cost of a linear layer."""
        lengths = x.square().sum(1, keepdim=True) + self.weight.square().sum(1)
        return 2 * F.linear(x, self.weight) - lengths


def _draw(net: Net) -> Net:
    """Draw the full layers uniformly within 2.4 / inputs, biases 0, as both papers do."""
    for layer in net.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)) and not isinstance(layer, RadialBasis):
            draw_lecun_1989(layer.weight, [layer.weight[0].numel()] * len(layer.weight))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return net


@NETS.register(paper="Neural Computation 1(4), section 3", family="lenet", size=16, small=True, channels=1)
def lenet1989(classes: int = 10, in_channels: int = 1, *, size: Size = 16, output: str = "linear") -> Net:
    """LeNet of 1989: 1,256 units, 64,660 connections, 9,760 free parameters; 16 x 16 pixels, 10 classes.

    H1: 12 maps, 5x5, stride 2; H2: 12 maps, 5x5, stride 2, each of 8 maps of H1; H3: 30 units; `classes`
    units. Every unit has a bias of its own. What lies outside of the picture counts as its background, -1.
    The scheme by which H2 chooses its maps is not in the paper: here map m sees maps m to m + 7, modulo 12.
    `output` "tanh" squashes the output units too, as the paper does for its squared errors.

    Raises:
        StriateError: an unknown output.
    """
    if output not in OUTPUTS_1989:
        raise unknown("output", output, OUTPUTS_1989)
    first = tuple(-(-n // 2) for n in pair(size))
    second = tuple(-(-n // 2) for n in first)
    h1 = UntiedBiasConv2d(in_channels, 12, 5, (first[0], first[1]), stride=2, padding=2, pad_value=-1.0)
    h2 = TableConv2d(H2_TABLE, 5, out_size=(second[0], second[1]), stride=2, padding=2, pad_value=-1.0)
    stages: list[tuple[str, nn.Module]] = [
        ("H1", h1),
        ("tanh1", ScaledTanh()),
        ("H2", h2),
        ("tanh2", ScaledTanh()),
        ("flatten", nn.Flatten()),
        ("H3", nn.Linear(12 * math.prod(second), 30)),
        ("tanh3", ScaledTanh()),
        ("output", nn.Linear(30, classes)),
    ]
    if output == "tanh":
        stages.append(("tanh4", ScaledTanh()))
    net = Net(stages, head="output", in_channels=in_channels, size=size, name="lenet1989", fixed_size=True)
    return _draw(net)


@NETS.register(
    paper="Proc. IEEE 86(11), section II.B", family="lenet", size=32, small=True, channels=1, min_size=4
)
def lenet5_1998(classes: int = 10, in_channels: int = 1, *, size: Size = 32, output: str = "linear") -> Net:
    """LeNet-5 as its paper has it: trained subsampling, the connection table of C3, scaled tanh.

    C1: 6 maps, 5x5; S2; C3: 16 maps, 5x5, each of the maps of S2 that table I lists; S4; C5: 120 units; F6:
    84 units. 60,000 parameters for one channel and 32 x 32 pixels, and those of the output: "linear", or
    "rbf", the distances from one fixed code a class, with the paper's 340,908 connections in all. The units
    of every layer up to F6 are squashed, those of C1 and C3 before they are subsampled. Smaller pictures are
    padded as in `lenet5`. `reset_head` gives a linear output.

    Raises:
        StriateError: an unknown output.
    """
    if output not in OUTPUTS_1998:
        raise unknown("output", output, OUTPUTS_1998)
    pads, (height, width) = _pads(size)
    stages: list[tuple[str, nn.Module]] = [
        ("C1", nn.Conv2d(in_channels, 6, 5, padding=pads[0])),
        ("tanh1", ScaledTanh()),
        ("S2", TrainableSubsample(6)),
        ("tanh2", ScaledTanh()),
        ("C3", TableConv2d(C3_TABLE, 5, padding=pads[1])),
        ("tanh3", ScaledTanh()),
        ("S4", TrainableSubsample(16)),
        ("tanh4", ScaledTanh()),
        ("C5", nn.Conv2d(16, 120, (height, width))),
        ("tanh5", ScaledTanh()),
        ("flatten", nn.Flatten()),
        ("F6", nn.Linear(120, 84)),
        ("tanh6", ScaledTanh()),
        ("output", RadialBasis(84, classes) if output == "rbf" else nn.Linear(84, classes)),
    ]
    net = Net(
        stages, head="output", in_channels=in_channels, size=size, name="lenet5_1998", fixed_size=True,
        min_size=4,
    )  # fmt: skip
    return _draw(net)


def connections(net: Net) -> dict[str, int]:
    """The connections of each stage that has any, as the papers count: inputs of every unit, and its bias.

    Of layers whose units see windows or everything: convolutions (with and without tables), trained
    subsampling, linear and radial layers. Inputs in the padding count.
    """
    found: dict[str, int] = {}
    for info in stage_geometry(net):
        layer = net.get_submodule(info.name)
        positions = math.prod(info.shape[1:])
        if isinstance(layer, TableConv2d):
            area = math.prod(layer.kernel_size)
            found[info.name] = positions * sum(len(row) * area + 1 for row in layer.table)
        elif isinstance(layer, TrainableSubsample):
            found[info.name] = math.prod(info.shape) * (math.prod(layer.kernel_size) + 1)
        elif isinstance(layer, (UntiedBiasConv2d, nn.Conv2d, nn.Linear)):
            inputs = layer.weight[0].numel() + (layer.bias is not None)
            found[info.name] = math.prod(info.shape) * inputs
    return found
