"""The names and shapes of the tensors in torchvision's and timm's files, read from `tests/data/keys`."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from torch import Tensor

FOLDER = Path(__file__).parent / "data" / "keys"
NORM = ("weight", "bias", "running_mean", "running_var")


@cache
def sections(library: str) -> dict[str, tuple[str, ...]]:
    """The lines of each section of a library's list; a section that is as another has that one's lines."""
    found: dict[str, tuple[str, ...]] = {}
    name = ""
    for line in (FOLDER / f"{library}.txt").read_text().splitlines():
        if line.startswith("["):
            name, _, same = line[1:].partition("] as ")
            name = name.rstrip("]")
            other, _, section = same.partition(" ")
            found[name] = () if not same else (found if other == library else sections(other))[section]
        elif line and not line.startswith("#"):
            found[name] += (line,)
    return found


def tensors(library: str, name: str, device: str = "meta", *, counters: bool = True) -> dict[str, Tensor]:
    """A state dictionary with these names and shapes; on the meta device it takes no memory."""
    state: dict[str, Tensor] = {}
    for line in sections(library)[name]:
        module, form, *rest = line.split()
        if form == "norm":
            state |= {f"{module}.{leaf}": torch.zeros(int(rest[0]), device=device) for leaf in NORM}
            if counters:
                state[f"{module}.num_batches_tracked"] = torch.zeros((), dtype=torch.int64, device=device)
            continue
        shape = tuple(map(int, form.split("x")))
        state[f"{module}.weight"] = torch.zeros(shape, device=device)
        if rest:
            state[f"{module}.bias"] = torch.zeros(shape[0], device=device)
    return state


def of_card(name: str) -> tuple[str, str]:
    """The library and the section that describe the file of a card."""
    net, _, tag = name.partition(".")
    if tag.startswith("imagenet1k"):
        return "torchvision", net
    return "timm", name if name in sections("timm") else net
