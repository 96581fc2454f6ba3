"""What a net costs: shapes, parameters, multiply-adds, memory, receptive field, stage by stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from striate.core.results import Result
from striate.nets.describe import describe, role
from striate.nets.geometry import ask
from striate.nets.kept import kept_bytes
from striate.nets.net import Size
from striate.nets.taps import places
from striate.nets.tracker import BETWEEN, Passed, walk

HEADINGS = (
    "stage", "layer", "output", "weights", "biases", "multiply-adds", "forward kB", "training kB", "field",
    "stride",
)  # fmt: skip
TEXTS = 3  # so many columns are texts, to the left; the others are numbers


@dataclass(frozen=True)
class Cost(Result):
    """One row a stage, in the order in which they run; for one picture.

    layer: the stage in the words of a paper's table; shape: the output's (C, H, W), without the batch;
    biases: those of the parameters that are called so, the shifts of norms too; multiply_adds: products of
    convolutions and matrix products (half of what is counted as floating-point operations);
    activation_bytes: everything the stage computes, in the net's own number type; training_bytes: what
    autograd keeps for the backward pass, by the stage that keeps it first, the picture too (None where that
    was not asked for, or a foreign module cannot make a pass of training); receptive_field and stride in
    pixels of the picture, None once a unit depends on the whole picture. `kinds` counts the parameters of
    each kind of layer.
    """

    ROWS = (
        "stage", "kind", "layer", "shape", "parameters", "biases", "multiply_adds", "activation_bytes",
        "training_bytes", "receptive_field", "stride",
    )  # fmt: skip

    stage: tuple[str, ...]
    kind: tuple[str, ...]
    layer: tuple[str, ...]
    shape: tuple[tuple[int, ...], ...]
    parameters: tuple[int, ...]
    biases: tuple[int, ...]
    multiply_adds: tuple[int, ...]
    activation_bytes: tuple[int, ...]
    training_bytes: tuple[int | None, ...]
    receptive_field: tuple[int | None, ...]
    stride: tuple[int | None, ...]
    size: tuple[int, int]
    in_channels: int
    params: int
    kinds: dict[str, int]

    @property
    def weights(self) -> tuple[int, ...]:
        """The parameters of each stage without its biases."""
        return tuple(all_ - biases for all_, biases in zip(self.parameters, self.biases, strict=True))

    @property
    def macs(self) -> int:
        """Multiply-adds of one picture, all stages together."""
        return sum(self.multiply_adds)

    @property
    def memory(self) -> int:
        """Bytes of all activations of one picture."""
        return sum(self.activation_bytes)

    @property
    def training_memory(self) -> int | None:
        """Bytes that autograd keeps for one picture; None where it is not known."""
        known = [value for value in self.training_bytes if value is not None]
        return sum(known) if len(known) == len(self.training_bytes) else None

    def lines(self) -> list[str]:
        """The familiar table as text: one line a stage, then the totals."""
        rows: list[tuple[str, ...]] = [HEADINGS]
        rows += [
            (name, layer, by(shape), f"{weights:,}", f"{biases:,}", f"{macs:,}", _kb(memory), _kb(kept),
             "" if name == BETWEEN else "all" if field is None else f"{field:,}",
             "" if step is None else f"{step:,}")
            for name, layer, shape, weights, biases, macs, memory, kept, field, step in zip(
                self.stage, self.layer, self.shape, self.weights, self.biases, self.multiply_adds,
                self.activation_bytes, self.training_bytes, self.receptive_field, self.stride, strict=True,
            )
        ]  # fmt: skip
        rows.append((
            "total", "", "", f"{sum(self.weights):,}", f"{sum(self.biases):,}", f"{self.macs:,}",
            _kb(self.memory), _kb(self.training_memory), "", "",
        ))  # fmt: skip
        return table(rows, texts=TEXTS)


def cost(
    net: nn.Module, size: Size | None = None, in_channels: int | None = None, *, training: bool = True
) -> Cost:
    """The cost of one picture in evaluation, by a pass on the meta device: no memory, nothing computed.

    `size` is the picture's side or (height, width), the net's own if None. Every operator is counted where
    it runs, functional calls too; what runs outside of all stages is the row "(between stages)". Weights
    that two stages share count once. `params` counts all parameters, also those of stages that did not run.
    What training keeps takes two passes more; without `training` it is None.

    Raises:
        StriateError: the net cannot take such a picture.
    """
    height_width, channels, names = ask(net, size, in_channels)
    rows = walk(net, height_width, channels, names)
    kept = kept_bytes(net, height_width, channels, names) if training else None
    if kept and kept.get(BETWEEN) and rows[-1].name != BETWEEN:
        rows.append(Passed(BETWEEN, "", 0))
    found = places(net)
    modules = [found.get(row.name) for row in rows]
    return Cost(
        stage=tuple(row.name for row in rows),
        kind=tuple(row.kind for row in rows),
        layer=tuple("" if module is None else describe(module) for module in modules),
        shape=tuple(row.shape for row in rows),
        parameters=tuple(row.parameters for row in rows),
        biases=_biases(modules),
        multiply_adds=tuple(row.multiply_adds for row in rows),
        activation_bytes=tuple(row.bytes for row in rows),
        training_bytes=tuple(None if kept is None else kept.get(row.name, 0) for row in rows),
        receptive_field=tuple(max(a.high - a.low for a in row.reach) if row.reach else None for row in rows),
        stride=tuple(max(a.stride for a in row.reach) if row.reach else None for row in rows),
        size=height_width,
        in_channels=channels,
        params=sum(p.numel() for p in net.parameters()),
        kinds=_kinds(net),
    )


def _biases(modules: Sequence[nn.Module | None]) -> tuple[int, ...]:
    counted: set[int] = set()
    found = []
    for module in modules:
        own = {
            id(p): p.numel()
            for key, p in (() if module is None else module.named_parameters())
            if key.rpartition(".")[2] == "bias" and id(p) not in counted
        }
        counted.update(own)
        found.append(sum(own.values()))
    return tuple(found)


def _kinds(net: nn.Module) -> dict[str, int]:
    """Parameters by the kind of the layer that holds them; shared ones count where they are met first."""
    counted: set[int] = set()
    found: dict[str, int] = {}
    for module in net.modules():
        for parameter in module.parameters(recurse=False):
            if id(parameter) not in counted:
                counted.add(id(parameter))
                found[role(module)] = found.get(role(module), 0) + parameter.numel()
    return found


def by(shape: Sequence[int]) -> str:
    """A shape (C, H, W) as the papers print it: HxWxC."""
    return "x".join(map(str, (*shape[1:], *shape[:1])))


def short(count: float) -> str:
    """A large number with three digits and k, M or G."""
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= unit * 0.9995:
            value = count / unit
            return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f} {letter}"
    return f"{count:g}"


def table(rows: Sequence[Sequence[str]], *, texts: int) -> list[str]:
    """Rows of cells as lines: the first `texts` columns to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if i < texts else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _kb(count: int | None) -> str:
    return "?" if count is None else f"{count / 1e3:,.1f}"
