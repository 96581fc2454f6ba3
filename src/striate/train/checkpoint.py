"""Checkpoints: a tree of plain values and tensors in one safetensors file, written in one step; no pickle."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from striate.core.errors import BadModelFile, StriateError
from striate.core.files import write_bytes

FORMAT = 1
LAST, BEST = "last.safetensors", "best.safetensors"
KEY = "striate-checkpoint"


def pack(tree: Any, tensors: dict[str, Tensor], where: str = "") -> Any:
    """`tree` as JSON values; its tensors go into `tensors` by their path and leave {"$tensor": path}.

    Mappings whose keys are not all text become {"$map": [[key, value], ...]}.

    Raises:
        TypeError: a value that is no number, text, None, sequence, mapping or tensor.
    """
    if isinstance(tree, Tensor):
        name = where or "value"
        # A fresh contiguous copy: safetensors refuses shared memory and other memory orders.
        tensors[name] = tree.detach().to("cpu", copy=True).contiguous()
        return {"$tensor": name}
    if isinstance(tree, Mapping):
        items = [
            (key, pack(value, tensors, f"{where}/{key}" if where else str(key)))
            for key, value in tree.items()
        ]
        if all(isinstance(key, str) and not key.startswith("$") for key in tree):
            return dict(items)
        return {"$map": [list(item) for item in items]}
    if isinstance(tree, (list, tuple)):
        return [pack(value, tensors, f"{where}/{k}") for k, value in enumerate(tree)]
    if tree is None or isinstance(tree, (bool, int, float, str)):
        return tree
    raise TypeError(f"{where}: a checkpoint cannot hold {type(tree).__name__}")


def unpack(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of `pack`; tuples come back as lists."""
    if isinstance(tree, dict):
        if set(tree) == {"$tensor"}:
            return tensors[tree["$tensor"]]
        if set(tree) == {"$map"}:
            return {key: unpack(value, tensors) for key, value in tree["$map"]}
        return {key: unpack(value, tensors) for key, value in tree.items()}
    if isinstance(tree, list):
        return [unpack(value, tensors) for value in tree]
    return tree


def write_checkpoint(path: str | os.PathLike[str], tree: Mapping[str, Any]) -> Path:
    """Write a tree to one file; the old file stays whole until the new one is.

    Raises:
        StriateError: the disk is full or the folder cannot be written; nothing half-written stays.
    """
    tensors: dict[str, Tensor] = {}
    header = json.dumps({"format": FORMAT, "tree": pack(tree, tensors)})
    # One metadata key only: safetensors keeps several in no fixed order, and equal runs write equal bytes.
    return write_bytes(path, to_bytes(tensors, metadata={KEY: header}))


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what `write_checkpoint` wrote; tensors on the CPU.

    Raises:
        BadModelFile: the file is missing, truncated or of another kind.
    """
    try:
        with safe_open(os.fspath(path), framework="pt", device="cpu") as file:
            header = json.loads((file.metadata() or {})[KEY])
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        if header["format"] != FORMAT:
            raise BadModelFile(
                f"{str(path)!r} has checkpoint format {header['format']}",
                allowed=str(FORMAT),
                hint="use the version of striate that wrote it",
            )
        tree = unpack(header["tree"], tensors)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadModelFile(
            f"{str(path)!r} is not a whole checkpoint ({type(error).__name__})",
            hint="start the run again, or give another checkpoint",
        ) from error
    if not isinstance(tree, dict):
        raise BadModelFile(f"{str(path)!r} is not a checkpoint of a run")
    return tree


def clean(folder: Path) -> list[str]:
    """Remove temporary files that a killed process left in `folder`; returns their names."""
    removed = []
    for path in sorted(folder.glob(".*.tmp")):
        with contextlib.suppress(OSError):
            path.unlink()
            removed.append(path.name)
    return removed


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimiser's state by parameter number; its hyper-parameters come from the recipe instead."""
    return {"state": optimizer.state_dict()["state"]}


def restore_optimizer(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """Give the optimiser a saved state, each tensor in the device and memory order of its parameter.

    Raises:
        BadModelFile: the state belongs to other parameters.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    states = saved["state"]
    if any(not 0 <= int(number) < len(parameters) for number in states):
        raise BadModelFile("the checkpoint's optimiser state belongs to another net")
    optimizer.state.clear()
    for number, state in states.items():
        parameter = parameters[int(number)]
        optimizer.state[parameter] = {name: _placed(value, parameter) for name, value in state.items()}


def _placed(value: Any, parameter: Tensor) -> Any:
    if isinstance(value, list):
        # L-BFGS keeps its history in lists.
        return [_placed(each, parameter) for each in value]
    if not isinstance(value, Tensor):
        return value
    if value.shape == parameter.shape:
        return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
    # Fused steps keep their counter beside the parameters.
    return value.to(parameter.device)


def restore_net(net: nn.Module, saved: Mapping[str, Tensor]) -> None:
    """Copy saved tensors into the net.

    Raises:
        StriateError: names or shapes differ.
    """
    own = net.state_dict()
    wrong = sorted(
        set(own) ^ set(saved) | {k for k in set(own) & set(saved) if own[k].shape != saved[k].shape}
    )
    if wrong:
        raise StriateError(
            f"the checkpoint does not fit the net: {', '.join(wrong[:5])}",
            hint="resume with the settings that the run was started with",
        )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(saved[name])
