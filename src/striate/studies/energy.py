"""The energy that the machine itself counts: RAPL on processors, NVML on NVIDIA's cards."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

RAPL = Path("/sys/class/powercap")


class EnergyMeter:
    """Joules since the meter was made, from one counter or several; `None` of `find` where there is none."""

    def __init__(self, source: str, read: Callable[[], float]) -> None:
        self.source = source
        self._read = read

    def joules(self) -> float:
        """The counter's value; only differences mean something."""
        return self._read()


def find(device: str = "cpu", folder: Path = RAPL) -> tuple[EnergyMeter | None, str]:
    """The meter of a device, and where it reads; or None, and the reason why there is none."""
    return _nvml(device) if device.startswith("cuda") else _rapl(folder)


def _rapl(folder: Path) -> tuple[EnergyMeter | None, str]:
    """All packages of the processor: /sys/class/powercap/intel-rapl:N, whatever the maker.

    The counters are in microjoules and start again from 0 at `max_energy_range_uj`. Zones inside a package
    (intel-rapl:N:M) are parts of it and are not added.
    """
    if not folder.is_dir():
        return None, f"no counter: {folder} is not on this machine"
    zones = [zone for zone in sorted(folder.glob("*rapl*:*")) if zone.name.count(":") == 1]
    packages = [zone for zone in zones if _text(zone / "name").startswith("package")]
    if not packages:
        return None, f"no counter: {folder} has no zone of a processor package"
    closed = [zone for zone in packages if not os.access(zone / "energy_uj", os.R_OK)]
    if closed or any(_number(zone / "energy_uj") is None for zone in packages):
        return None, f"no counter that this user may read: {(closed or packages)[0] / 'energy_uj'}"
    last = {zone: _number(zone / "energy_uj") or 0 for zone in packages}
    total = dict.fromkeys(packages, 0)

    def read() -> float:
        for zone in packages:
            now = _number(zone / "energy_uj")
            if now is None:
                continue
            step = now - last[zone]
            if step < 0:
                step += _number(zone / "max_energy_range_uj") or 0
            last[zone], total[zone] = now, total[zone] + max(0, step)
        return sum(total.values()) / 1e6

    several = f"{len(packages)} packages" if len(packages) > 1 else "package"
    return EnergyMeter("RAPL", read), f"RAPL, {several} of the processor with all that runs on it"


def _nvml(device: str) -> tuple[EnergyMeter | None, str]:
    try:
        import pynvml  # type: ignore[import-not-found, import-untyped, unused-ignore]

        pynvml.nvmlInit()
        handle: Any = pynvml.nvmlDeviceGetHandleByIndex(int(device.partition(":")[2] or 0))
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except ImportError:
        return None, "no counter: the Python package nvidia-ml-py is not installed"
    except Exception as error:
        return None, f"no counter: NVML says {type(error).__name__}"

    def read() -> float:
        return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3

    return EnergyMeter("NVML", read), "NVML, the whole card"


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    told = _text(path)
    return int(told) if told.isdigit() else None
