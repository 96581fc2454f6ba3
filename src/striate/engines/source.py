"""What engines are made from: a net, its form with batch norm folded, and its ONNX graph; each made once."""

from __future__ import annotations

import importlib.util
import io
import math
import time
import warnings
from typing import Any

import torch
from torch import Tensor, fx, nn

from striate.core.errors import StriateError, first_line
from striate.nets.folding import fold_batch_norm

OPSET = 18
# Their layers never decide by what a tensor holds; those of other packages are followed line by line.
KNOWN = ("torch.nn.", "torch.ao.nn.", "striate.")
# In one file of the format; larger nets would need their weights beside it.
MOST_BYTES = 2_000_000_000
# Larger graphs are written again rather than held.
KEPT_BYTES = 200_000_000


class Source:
    """A net in evaluation mode and the forms of it that engines are built from; each is made once."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        self._folded: nn.Module | None = None
        self._graphs: dict[tuple[int, ...], bytes] = {}
        self._spent: dict[tuple[int, ...], float] = {}

    def folded(self) -> nn.Module:
        """The net with its batch norms folded as far as they can be; itself where it has none."""
        if self._folded is None:
            try:
                # Weights of a copy made in inference mode could not be traced.
                with torch.inference_mode(False), torch.no_grad():
                    self._folded = fold_batch_norm(self.net, keep=True)
            except StriateError:
                self._folded = self.net
        return self._folded

    def graph(self, images: Tensor) -> bytes:
        """The net as ONNX for images like these, in batches of any length.

        Raises:
            StriateError: the export fails, the net is too large, or its forward pass may depend on what the
                images hold, which a graph cannot say.
        """
        shape = tuple(images.shape[1:])
        if shape not in self._graphs:
            began = time.perf_counter()
            self._graphs[shape] = export(self.folded(), tuple(images.shape))
            self._spent[shape] = time.perf_counter() - began
        return self._graphs[shape]

    @property
    def seconds(self) -> float:
        """Spent on all graphs so far."""
        return sum(self._spent.values())

    def seconds_of(self, images: Tensor) -> float:
        """Spent on the graph for images like these."""
        return self._spent.get(tuple(images.shape[1:]), 0.0)

    def release(self) -> None:
        """Let go of large graphs: every engine that wanted one has its own."""
        self._graphs = {shape: graph for shape, graph in self._graphs.items() if len(graph) <= KEPT_BYTES}


def export(net: nn.Module, shape: tuple[int, ...]) -> bytes:
    """A net as ONNX bytes: input "images" (N, C, H, W), output "outputs" (N, ...); N is free.

    The exporter that follows one pass is taken: it needs the package `onnx` alone and is several times faster
    than the one through `torch.export`.

    Raises:
        StriateError: as of `Source.graph`.
    """
    decided = value_dependent(net)
    if decided:
        raise StriateError(f"the graph of the net cannot be written ({decided})")
    if sum(t.numel() * t.element_size() for t in (*net.parameters(), *net.buffers())) > MOST_BYTES:
        raise StriateError("the net is too large for one ONNX file (2 GB)")
    found = io.BytesIO()
    free = {"images": {0: "n"}, "outputs": {0: "n"}}
    settings: dict[str, Any] = {
        "input_names": ["images"],
        "output_names": ["outputs"],
        "dynamic_axes": free,
        "opset_version": OPSET,
        "dynamo": False,
    }
    try:
        # A batch of one could leave its length in the graph, where it broadcasts.
        example = torch.linspace(-2, 2, 2 * math.prod(shape[1:])).reshape(2, *shape[1:])
        with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(net, (example,), found, **settings)  # type: ignore[arg-type]
    except Exception as error:  # the exporter raises whatever it meets
        raise StriateError(f"the net cannot be written as ONNX ({first_line(error)})") from error
    return found.getvalue()


def value_dependent(net: nn.Module) -> str | None:
    """Where a forward pass may take another way for other images; None where it is shown that it does not."""
    root: nn.Module = getattr(net, "tapped", net)
    try:
        _Foreign().trace(root)
    except Exception as error:  # the net's own code runs
        return first_line(error)
    return None


class _Foreign(fx.Tracer):
    """Follows the code of modules that are neither PyTorch's nor Striate's own."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return f"{type(m).__module__}.".startswith(KNOWN)


def installed(module: str) -> bool:
    """Whether a package is there, without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False
