"""What a net costs: shapes, parameters, multiply-adds, activation memory, stage by stage."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from striate.core.results import Result
from striate.nets.geometry import ask
from striate.nets.net import Size
from striate.nets.tracker import walk


@dataclass(frozen=True)
class Cost(Result):
    """One row a stage, in the order in which they run; for one picture.

    shape: the output's, without the batch; multiply_adds: products of convolutions and matrix products (half
    of what is counted as floating-point operations); activation_bytes: everything the stage computes and
    autograd may have to keep, in the net's own number type.
    """

    ROWS = ("stage", "kind", "shape", "parameters", "multiply_adds", "activation_bytes")

    stage: tuple[str, ...]
    kind: tuple[str, ...]
    shape: tuple[tuple[int, ...], ...]
    parameters: tuple[int, ...]
    multiply_adds: tuple[int, ...]
    activation_bytes: tuple[int, ...]
    size: tuple[int, int]
    in_channels: int
    params: int

    @property
    def macs(self) -> int:
        """Multiply-adds of one picture, all stages together."""
        return sum(self.multiply_adds)

    @property
    def memory(self) -> int:
        """Bytes of all activations of one picture."""
        return sum(self.activation_bytes)

    def lines(self) -> list[str]:
        """The familiar table as text, one line a stage, then the totals."""
        rows = [("stage", "kind", "output", "parameters", "multiply-adds", "activations, kB")]
        rows += [
            (name, kind, "x".join(map(str, shape)), f"{params:,}", f"{macs:,}", f"{memory / 1e3:,.1f}")
            for name, kind, shape, params, macs, memory in zip(
                self.stage, self.kind, self.shape, self.parameters, self.multiply_adds,
                self.activation_bytes, strict=True,
            )
        ]  # fmt: skip
        total = ("total", "", "", f"{self.params:,}", f"{self.macs:,}", f"{self.memory / 1e3:,.1f}")
        rows.append(total)
        widths = [max(len(row[i]) for row in rows) for i in range(6)]
        return [
            "  ".join(
                cell.ljust(width) if i < 3 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]


def cost(net: nn.Module, size: Size | None = None, in_channels: int | None = None) -> Cost:
    """The cost of one picture in evaluation, by a pass on the meta device: no memory, nothing computed.

    `size` is the picture's side or (height, width), the net's own if None. Every operator is counted where
    it runs, functional calls too; products outside of all stages are the row "(between stages)". Weights
    that two stages share count once. `params` counts all parameters, also those of stages that did not run.

    Raises:
        StriateError: the net cannot take such a picture.
    """
    height_width, channels, names = ask(net, size, in_channels)
    rows = walk(net, height_width, channels, names)
    return Cost(
        stage=tuple(row.name for row in rows),
        kind=tuple(row.kind for row in rows),
        shape=tuple(row.shape for row in rows),
        parameters=tuple(row.parameters for row in rows),
        multiply_adds=tuple(row.multiply_adds for row in rows),
        activation_bytes=tuple(row.bytes for row in rows),
        size=height_width,
        in_channels=channels,
        params=sum(p.numel() for p in net.parameters()),
    )
