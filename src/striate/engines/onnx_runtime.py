"""ONNX Runtime."""

from __future__ import annotations

from importlib import metadata
from typing import Any

import torch
from torch import Tensor

from striate.core.errors import StriateError, first_line
from striate.engines.engine import ENGINES, Engine, Form, Unusable, processor
from striate.engines.source import Source, installed

COMMAND = "pip install 'striate[engines]'"


@ENGINES.register("onnxruntime")
class OnnxRuntime(Engine):
    """ONNX Runtime on the processor: the net's graph with all of its optimisations."""

    setup = 1.5
    gain = 0.3
    reads_graph = True

    def __init__(self, source: Source, images: Tensor, form: Form) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = form.threads
        options.log_severity_level = 3
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        try:
            graph = source.graph(images)
            self.session: Any = onnxruntime.InferenceSession(
                graph, options, providers=["CPUExecutionProvider"]
            )
        except StriateError as error:
            raise Unusable(str(error)) from error
        except Exception as error:  # the runtime has its own kinds, without a common one
            raise Unusable(f"ONNX Runtime refuses the graph ({first_line(error)})") from error

    @classmethod
    def missing(cls, device: torch.device) -> str | None:
        """It wants `onnx` to write the graph and `onnxruntime` to run it."""
        absent = [name for name in ("onnx", "onnxruntime") if not installed(name)]
        return processor(device) or (f"{' and '.join(absent)} not installed: {COMMAND}" if absent else None)

    @classmethod
    def versions(cls) -> dict[str, str]:
        """The runtime's version."""
        return {"onnxruntime": metadata.version("onnxruntime")}

    def __call__(self, images: Tensor) -> Tensor:
        """Run the graph."""
        (outputs,) = self.session.run(None, {"images": images.contiguous().numpy()})
        return torch.from_numpy(outputs)
