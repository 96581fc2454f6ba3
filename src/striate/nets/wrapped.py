"""Networks from elsewhere: any PyTorch module under the contract, by its dotted names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from striate.core.errors import StriateError, unknown
from striate.nets.net import Net, Size, check_input, pair
from striate.nets.taps import stepping
from striate.nets.tracker import BETWEEN, walk


class Wrapped(Net):
    """A foreign module that answers the questions of a `Net`; made by `wrap`.

    The stages are its submodules without children, by dotted name, in the order of their first run.
    `reused` names stages that run more than once in a pass (a tap sees the first run), `inplace` those that
    overwrite their input (a tap of the stage before takes a copy), `not_run` those that no pass runs.
    `functional` tells whether multiply-adds are done outside of all stages, where no tap reaches.
    The state dictionary's keys are the module's own with the prefix "module.".
    """

    def __init__(self, module: nn.Module, *, in_channels: int, size: Size) -> None:
        # Not Net.__init__: the stages stay where the module has them.
        nn.Module.__init__(self)
        self.module = module
        self.name = type(module).__name__
        self.options: dict[str, Any] = {}
        self.in_channels = in_channels
        self.input_size = pair(size)
        self.fixed_size = False
        self.min_size = 1
        leaves = {id(m): name for name, m in module.named_modules() if name and not list(m.children())}
        order, self.functional = _order(module, self.input_size, in_channels, list(leaves.values()))
        self._stage_names = tuple(name for name, _, _ in order)
        self.reused = tuple(name for name, calls, _ in order if calls > 1)
        self.inplace = tuple(
            name
            for name in self._stage_names
            if getattr(module.get_submodule(name), "inplace", False) is True
        )
        self.not_run = tuple(name for name in leaves.values() if name not in self._stage_names)
        self.head = ""

    @property
    def tapped(self) -> nn.Module:
        """The wrapped module: its dotted names are the names of the taps."""
        return self.module

    def forward(self, x: Tensor) -> Tensor:
        """Run the module: (N, in_channels, H, W) float -> what it gives.

        Raises:
            StriateError: the input does not have the module's shape or number of channels.
        """
        check_input(x, self.in_channels, self.input_size, self.fixed_size, self.min_size)
        output: Tensor = self.module(x)
        return output

    def features(self, x: Tensor) -> Tensor:
        """The input of the head in one pass: (N, feature_dim) or (N, feature_dim, h, w)."""
        found: list[Tensor] = []

        def enter(_: str, inputs: tuple[Any, ...]) -> None:
            found.append(inputs[0])

        with stepping(self, [self.head], enter=enter):
            self(x)
        return found[0]


def wrap(module: nn.Module, *, in_channels: int = 3, size: Size = 224, head: str | None = None) -> Wrapped:
    """Put any module that takes (N, in_channels, H, W) under the contract of a net.

    `head` is the dotted name of the layer with one output a class; if None, the last linear layer or
    convolution that runs. The module is shared, not copied, and one pass without numbers finds the order of
    its stages; it is left as it was found.

    Raises:
        StriateError: the module cannot take such a picture, has no layer that could be the head, or `head` is
            not a linear layer or convolution of it.
    """
    if isinstance(module, Net):
        raise StriateError(f"{module.name} is a net already", hint="use it as it is")
    if not isinstance(module, nn.Module):
        raise StriateError(f"wrap is given {type(module).__name__}", allowed="a torch.nn.Module")
    net = Wrapped(module, in_channels=in_channels, size=size)
    layers = [n for n in net.stage_names if isinstance(module.get_submodule(n), (nn.Linear, nn.Conv2d))]
    if head is None and not layers:
        raise StriateError(f"{net.name} runs no linear layer and no convolution that could be its head")
    if head is not None and head not in layers:
        raise unknown("head", head, layers)
    net.head = head if head is not None else layers[-1]
    return net


def _order(
    module: nn.Module, size: tuple[int, int], channels: int, leaves: Sequence[str]
) -> tuple[list[tuple[str, int, tuple[int, ...]]], bool]:
    """(name, runs, output shape) of each leaf that ran, in order; whether work was done outside of them."""
    rows = walk(module, size, channels, leaves)
    functional = any(row.name == BETWEEN for row in rows)
    return [(row.name, row.calls, row.shape) for row in rows if row.name != BETWEEN], functional
