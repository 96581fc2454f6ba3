"""The nets without convolutions: softmax regression and the perceptron with hidden layers."""

from __future__ import annotations

from torch import nn

from striate.nets.net import NETS, Net, Size, check_range, finish, pair


@NETS.register(paper="multinomial logistic regression", family="linear", size=28, small=True)
def linear(classes: int = 10, in_channels: int = 3, *, size: Size = 28) -> Net:
    """The softmax classifier: one weight image a class; C H W K + K parameters. Weights start at 0."""
    height, width = pair(size)
    fc = nn.Linear(in_channels * height * width, classes)
    # The loss is convex: no symmetry is to be broken, and every start but 0 leaves noise in the templates.
    nn.init.zeros_(fc.weight)
    nn.init.zeros_(fc.bias)
    stages: list[tuple[str, nn.Module]] = [("flatten", nn.Flatten()), ("fc", fc)]
    return Net(stages, head="fc", in_channels=in_channels, size=size, name="linear", fixed_size=True)


@NETS.register(
    paper="Rumelhart, Hinton & Williams, Nature 323 (1986), with ReLUs",
    family="linear",
    size=28,
    small=True,
    quick={"hidden": 16},
)
def mlp(
    classes: int = 10,
    in_channels: int = 3,
    *,
    size: Size = 28,
    hidden: int = 300,
    layers: int = 1,
    dropout: float = 0.0,
) -> Net:
    """A perceptron with `layers` hidden layers of `hidden` ReLUs each, with dropout after each.

    Raises:
        StriateError: hidden outside of 1 to 65536, layers of 1 to 32, dropout of 0 to 0.99.
    """
    check_range("hidden", hidden, 1, 65536)
    check_range("layers", layers, 1, 32)
    check_range("dropout", dropout, 0, 0.99)
    height, width = pair(size)
    units = in_channels * height * width
    stages: list[tuple[str, nn.Module]] = [("flatten", nn.Flatten())]
    for number in range(1, layers + 1):
        stages += [(f"fc{number}", nn.Linear(units, hidden)), (f"relu{number}", nn.ReLU())]
        if dropout:
            stages.append((f"drop{number}", nn.Dropout(dropout)))
        units = hidden
    last = f"fc{layers + 1}"
    stages.append((last, nn.Linear(units, classes)))
    net = Net(stages, head=last, in_channels=in_channels, size=size, name="mlp", fixed_size=True)
    return finish(net, "he")
