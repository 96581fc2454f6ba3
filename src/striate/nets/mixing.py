"""The parts of the Inception families: units, branches side by side, nets with auxiliary heads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from striate.layers.normalization import Scale
from striate.nets.net import Net, check_input, initialise

Kernel = int | tuple[int, int]


@dataclass(frozen=True)
class Conv:
    """A convolution unit to build: maps, kernel (height, width), stride, name.

    With `valid` nothing is padded; if None, that holds for strides above 1.
    """

    width: int
    kernel: Kernel = 1
    stride: int = 1
    name: str = ""
    valid: bool | None = None


@dataclass(frozen=True)
class Pool:
    """A 3x3 pool to build: "max" or "average", stride, name; padded at stride 1 only."""

    kind: str
    stride: int = 1
    name: str = ""


Step = Conv | Pool | tuple[Conv, ...]


class ConvReLU(nn.Module):
    """Convolution, batch norm (unless `eps` is None), ReLU: (N, C, H, W) -> (N, M, H', W').

    With batch norm the convolution has no bias.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        kernel: Kernel = 1,
        stride: int = 1,
        padding: Kernel = 0,
        *,
        eps: float | None = 1e-3,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, kernel, stride, padding, bias=eps is None)
        self.norm = eps is not None
        if eps is not None:
            self.bn = nn.BatchNorm2d(width, eps)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Filter, normalise, rectify."""
        x = self.conv(x)
        y: Tensor = self.relu(self.bn(x) if self.norm else x)
        return y


class Branches(nn.Module):
    """Branches side by side on the same input, their maps one behind the other: (N, C, H, W) -> (N, M, ...).

    `plan` holds, for each branch, its steps, and for each step the names of the children that run on what
    the step before gave; more than one is a fork, whose outputs are all kept.
    """

    def __init__(self, channels: int, branches: Sequence[Sequence[Sequence[tuple[str, nn.Module]]]]) -> None:
        super().__init__()
        self.plan = tuple(tuple(tuple(name for name, _ in step) for step in branch) for branch in branches)
        self.out_channels = 0
        for branch in branches:
            maps = [channels]
            for step in branch:
                for name, module in step:
                    self.add_module(name, module)
                maps = [_maps(module, before) for before in maps for _, module in step]
            self.out_channels += sum(maps)

    def forward(self, x: Tensor) -> Tensor:
        """Run every branch and join them over the channels."""
        outputs: list[Tensor] = []
        for branch in self.plan:
            values = [x]
            for names in branch:
                values = [getattr(self, name)(value) for value in values for name in names]
            outputs += values
        return torch.cat(outputs, 1)


class ResidualBranches(nn.Module):
    """x + scale times a linear 1x1 convolution of branches, then ReLU (unless `relu` is False).

    (N, C, H, W) -> the same. arXiv:1602.07261, figures 16 to 20; the scale of section 3.3 keeps deep nets
    stable.
    """

    def __init__(self, channels: int, branches: Branches, scale: float, relu: bool) -> None:
        super().__init__()
        self.branches = branches
        self.conv = nn.Conv2d(branches.out_channels, channels, 1)
        self.scale = Scale(scale)
        self.relu: nn.Module = nn.ReLU() if relu else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """The scaled residual sum."""
        y: Tensor = self.relu(x + self.scale(self.conv(self.branches(x))))
        return y


class Builder:
    """Collects named stages and keeps count of the maps.

    times: every width is multiplied by it; eps: of the batch norms, None for none; padded: nothing is
    "valid", so that a map keeps ceil(side / stride) positions; count_padding: whether averages count zeros
    of the padding.
    """

    def __init__(
        self,
        channels: int,
        *,
        times: float = 1.0,
        eps: float | None = 1e-3,
        padded: bool = False,
        count_padding: bool = True,
    ) -> None:
        self.channels = channels
        self.times, self.eps, self.padded, self.count_padding = times, eps, padded, count_padding
        self.stages: list[tuple[str, nn.Module]] = []

    def maps(self, width: int) -> int:
        """`width` in the net's own scale, at least 1."""
        return max(1, round(width * self.times))

    def unit(self, channels: int, conv: Conv) -> ConvReLU:
        """The convolution unit that `conv` describes."""
        valid = conv.stride > 1 if conv.valid is None else conv.valid
        height, width = (conv.kernel, conv.kernel) if isinstance(conv.kernel, int) else conv.kernel
        padding = (0, 0) if valid and not self.padded else (height // 2, width // 2)
        return ConvReLU(channels, self.maps(conv.width), (height, width), conv.stride, padding, eps=self.eps)

    def pooling(self, pool: Pool) -> nn.Module:
        """The 3x3 pool that `pool` describes."""
        padding = 1 if pool.stride == 1 or self.padded else 0
        if pool.kind == "max":
            return nn.MaxPool2d(3, pool.stride, padding)
        return nn.AvgPool2d(3, pool.stride, padding, count_include_pad=self.count_padding)

    def add(self, name: str, layer: nn.Module) -> None:
        """Add a stage that keeps the number of maps."""
        self.stages.append((name, layer))

    def conv(self, conv: Conv) -> None:
        """Add one convolution unit as a stage."""
        self.stages.append((conv.name, self.unit(self.channels, conv)))
        self.channels = self.maps(conv.width)

    def pool(self, pool: Pool) -> None:
        """Add one pool as a stage."""
        self.stages.append((pool.name, self.pooling(pool)))

    def branches(self, *branches: Sequence[Step]) -> Branches:
        """Branches on the present maps; steps without a name are called branchI_J, forks branchI_Ja, -b."""
        built: list[list[list[tuple[str, nn.Module]]]] = []
        for number, branch in enumerate(branches):
            channels = self.channels
            steps: list[list[tuple[str, nn.Module]]] = []
            for place, step in enumerate(branch):
                name = f"branch{number}_{place}"
                if isinstance(step, Pool):
                    steps.append([(step.name or name, self.pooling(step))])
                    continue
                fork = step if isinstance(step, tuple) else (step,)
                letters = "ab" if len(fork) > 1 else ("",)
                steps.append(
                    [
                        (conv.name or name + letter, self.unit(channels, conv))
                        for conv, letter in zip(fork, letters, strict=True)
                    ]
                )
                channels = self.maps(fork[0].width)
            built.append(steps)
        return Branches(self.channels, built)

    def mix(self, stage: str, *branches: Sequence[Step]) -> None:
        """Add branches as a stage."""
        module = self.branches(*branches)
        self.stages.append((stage, module))
        self.channels = module.out_channels

    def residual(self, stage: str, scale: float, *branches: Sequence[Step], relu: bool = True) -> None:
        """Add branches beside a shortcut as a stage."""
        module = ResidualBranches(self.channels, self.branches(*branches), scale, relu)
        self.stages.append((stage, module))


class Outputs(NamedTuple):
    """What a net with auxiliary heads gives in training: logits (N, classes), and those of the heads."""

    logits: Tensor
    auxiliary: tuple[Tensor, ...]
    weight: float

    def loss(self, task_loss: Callable[[Tensor, Tensor], Tensor], targets: Tensor) -> Tensor:
        """The loss of the logits plus `weight` times that of each head (arXiv:1409.4842, section 5)."""
        total = task_loss(self.logits, targets)
        for logits in self.auxiliary:
            total = total + self.weight * task_loss(logits, targets)
        return total


class AuxiliaryNet(Net):
    """A net with auxiliary classifiers behind some stages, which run in training only.

    `auxiliary`: name -> (stage behind which it runs, its layers, of which the last is its head). In training
    `forward` gives `Outputs`, in evaluation the logits alone, as every net. Without any it is a plain Net.
    """

    def __init__(
        self,
        stages: Iterable[tuple[str, nn.Module]],
        *,
        auxiliary: Mapping[str, tuple[str, nn.Sequential]],
        weight: float,
        **facts: Any,
    ) -> None:
        super().__init__(stages, **facts)
        self.auxiliary = {name: stage for name, (stage, _) in auxiliary.items()}
        self.auxiliary_weight = weight
        for name, (_, layers) in auxiliary.items():
            self.add_module(name, layers)

    def forward(self, x: Tensor) -> Any:
        """Logits (N, classes); in training with auxiliary heads `Outputs`. Raises as `Net.forward`."""
        if not self.training or not self.auxiliary:
            return super().forward(x)
        check_input(x, self.in_channels, self.input_size, self.fixed_size, self.min_size)
        found: list[Tensor] = []
        for stage in self.stage_names:
            x = self.get_submodule(stage)(x)
            found += [self.get_submodule(name)(x) for name, at in self.auxiliary.items() if at == stage]
        return Outputs(x, tuple(found), self.auxiliary_weight)

    def reset_head(self, classes: int) -> Self:
        """Replace the head, and those of the auxiliary classifiers; returns the net itself.

        Raises:
            StriateError: `classes` is not a positive whole number.
        """
        super().reset_head(classes)
        for name in self.auxiliary:
            layers = self.get_submodule(name)
            key, old = list(layers.named_children())[-1]
            assert isinstance(old, nn.Linear)  # by construction
            new = nn.Linear(old.in_features, classes, device=old.weight.device, dtype=old.weight.dtype)
            setattr(layers, key, initialise(new.train(old.training), "uniform"))
        return self


def named(*layers: tuple[str, nn.Module]) -> nn.Sequential:
    """Layers in a row under their names."""
    row = nn.Sequential()
    for name, layer in layers:
        row.add_module(name, layer)
    return row


def _maps(module: nn.Module, before: int) -> int:
    """The number of maps behind a part of a branch: pools keep it."""
    return module.conv.out_channels if isinstance(module, ConvReLU) else before
