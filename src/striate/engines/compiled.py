"""PyTorch's compiler: one program for one net and shape."""

from __future__ import annotations

import copy
import shutil
import sys
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from striate.core.errors import first_line
from striate.engines.engine import ENGINES, Engine, Form, Unusable, computing_with
from striate.engines.source import Source


@ENGINES.register("compiled")
class Compiled(Engine):
    """PyTorch's compiler on the folded net. Compiling takes half a minute or more: only long jobs try it."""

    layouts = ("channels-last",)
    setup = 40.0
    any_batch = False

    def __init__(self, source: Source, images: Tensor, form: Form) -> None:
        self.threads = form.threads
        try:
            with torch.inference_mode(False), torch.no_grad():
                net = copy.deepcopy(source.folded()).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
                self.run: Callable[[Tensor], Tensor] = torch.compile(net, dynamic=False)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self(images)
        except Exception as error:  # the compiler raises whatever it meets
            raise Unusable(f"the net cannot be compiled ({first_line(error)})") from error

    @classmethod
    def missing(cls, device: torch.device) -> str | None:
        """On processors it wants a C++ compiler."""
        if device.type == "cpu":
            names = ("cl",) if sys.platform == "win32" else ("g++", "clang++", "c++")
            if not any(map(shutil.which, names)):
                return "there is no C++ compiler: install g++ or clang++"
        return None if device.type in ("cpu", "cuda") else f"it does not compile for {device.type}"

    def __call__(self, images: Tensor) -> Tensor:
        """Run the program."""
        with computing_with(self.threads):
            outputs: Tensor = self.run(images.contiguous(memory_format=torch.channels_last))
        return outputs
