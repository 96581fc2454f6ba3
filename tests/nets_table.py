"""The table of docs/nets.md: reads its rows, and writes their figures anew from the nets.

`python tests/nets_table.py` rewrites the page; what it does not compute, it leaves. Multiply-adds are counted
here by modules, as `cost` counts them by operators: the page holds both counters together.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from striate.core.files import write_text
from striate.nets.net import Net, skeleton

PAGE = Path(__file__).resolve().parent.parent / "docs" / "nets.md"
CLASSES = {"ImageNet": 1000, "CIFAR-10": 10, "MNIST": 10, "zip codes": 10, "membranes": 2}
COLUMNS = ("net", "paper", "year", "data", "picture", "parameters", "multiply-adds", "error")
ROW = re.compile(r"^\| `")


@dataclass(frozen=True)
class Row:
    """One line of the table: what the net is built with, and the figures beside it."""

    line: int
    cells: tuple[str, ...]

    @property
    def name(self) -> str:
        """The registered name."""
        return self.cells[0].split("`")[1]

    @property
    def options(self) -> dict[str, Any]:
        """The family's options behind the name, as in "`alexnet` groups=1"."""
        words = self.cells[0].split("`")[2].split()
        pairs = (word.partition("=") for word in words)
        return {key: int(value) if value.isdigit() else value for key, _, value in pairs}

    def figures(self) -> tuple[str, str]:
        """Parameters and multiply-adds, from the code."""
        channels, height, width = (int(n) for n in self.cells[4].split("x"))
        net = skeleton(self.name, CLASSES[self.cells[3]], channels, size=(height, width), **self.options)
        return f"{sum(p.numel() for p in net.parameters()):,}", f"{products(net):,}"


def products(net: Net) -> int:
    """Multiply-adds of one picture: each weight of a layer once for every position of its output."""
    total = 0

    def count(layer: nn.Module, _: Any, output: torch.Tensor) -> None:
        nonlocal total
        total += layer.weight.numel() * output[0, 0].numel()

    for layer in net.modules():
        weight = getattr(layer, "weight", None)
        # Norms and trained subsampling have one number a map.
        if isinstance(weight, torch.Tensor) and weight.ndim > 1:
            layer.register_forward_hook(count)
    with torch.no_grad():
        net.eval()(torch.empty(1, net.in_channels, *net.input_size, device="meta"))
    return total


def rows(text: str) -> Iterator[Row]:
    """The rows of the table in a page."""
    for number, line in enumerate(text.splitlines()):
        cells = tuple(cell.strip() for cell in line.strip().strip("|").split("|"))
        if ROW.match(line) and len(cells) == len(COLUMNS):
            yield Row(number, cells)


def renewed(text: str) -> str:
    """The page with the figures of this moment's code."""
    lines = text.splitlines()
    for row in rows(text):
        cells = [*row.cells[:5], *row.figures(), *row.cells[7:]]
        lines[row.line] = f"| {' | '.join(cells)} |"
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    write_text(PAGE, renewed(PAGE.read_text(encoding="utf-8")))
