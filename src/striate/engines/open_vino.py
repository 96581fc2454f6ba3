"""OpenVINO."""

from __future__ import annotations

from importlib import metadata
from typing import Any

import torch
from torch import Tensor

from striate.core.errors import StriateError, first_line
from striate.engines.engine import ENGINES, Engine, Form, Unusable, processor
from striate.engines.source import Source, installed

COMMAND = "pip install 'striate[engines]'"


@ENGINES.register("openvino")
class OpenVino(Engine):
    """OpenVINO on the processor: the net's graph, compiled for batches of one shape, in float32."""

    setup = 2.0
    gain = 0.3
    reads_graph = True
    any_batch = False

    def __init__(self, source: Source, images: Tensor, form: Form) -> None:
        import openvino

        # Otherwise processors with bfloat16 units round to it.
        settings = {
            "INFERENCE_NUM_THREADS": form.threads,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
        }
        try:
            core = openvino.Core()
            model = core.read_model(source.graph(images))
            model.reshape(list(images.shape))
            compiled = core.compile_model(model, "CPU", settings)
            self.request: Any = compiled.create_infer_request()
        except StriateError as error:
            raise Unusable(str(error)) from error
        except Exception as error:  # its errors are plain RuntimeErrors, and others of the bindings
            raise Unusable(f"OpenVINO refuses the graph ({first_line(error)})") from error

    @classmethod
    def missing(cls, device: torch.device) -> str | None:
        """It wants `onnx` to write the graph and `openvino` to run it."""
        absent = [name for name in ("onnx", "openvino") if not installed(name)]
        return processor(device) or (f"{' and '.join(absent)} not installed: {COMMAND}" if absent else None)

    @classmethod
    def versions(cls) -> dict[str, str]:
        """The runtime's version."""
        return {"openvino": metadata.version("openvino")}

    def __call__(self, images: Tensor) -> Tensor:
        """Run the compiled graph."""
        found = self.request.infer({0: images.contiguous().numpy()}, share_inputs=True)
        return torch.from_numpy(found[0])
