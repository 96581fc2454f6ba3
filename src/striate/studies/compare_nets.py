"""Networks beside each other: accuracy, parameters, operations, and what they take on this machine."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from striate.core import machine
from striate.core.errors import StriateError, unknown
from striate.core.files import write_bytes
from striate.core.results import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".csv", ".json", ".png", ".svg")
# More nets than these are measured only where they are named.
MOST = 64
MEASURED = ("latency_1", "latency_16", "throughput", "peak_memory", "joules", "watts")


@dataclass(frozen=True)
class NetComparison(Result):
    """One row a net; see `compare_nets`.

    weights: the card whose published scores these are, "" for none; top1, top5: proportions on one central
    view; size: of the picture, (height, width); multiply_adds: of one picture; per_parameter: top-1 in
    percent for each million parameters. Measured, else None: latency_1, latency_16: seconds a picture alone
    and in a batch of 16; throughput: pictures a second in that batch; peak_memory: bytes of a process with
    the net and that batch; joules: for a picture in that batch; watts. `energy` says where the last two come
    from, or why there are none; `conditions` how all was measured.
    """

    ROWS = (
        "names", "weights", "top1", "top5", "size", "parameters", "multiply_adds", "per_parameter", *MEASURED,
    )  # fmt: skip

    names: tuple[str, ...]
    weights: tuple[str, ...]
    top1: tuple[float | None, ...]
    top5: tuple[float | None, ...]
    size: tuple[tuple[int, int], ...]
    parameters: tuple[int, ...]
    multiply_adds: tuple[int, ...]
    per_parameter: tuple[float | None, ...]
    latency_1: tuple[float | None, ...]
    latency_16: tuple[float | None, ...]
    throughput: tuple[float | None, ...]
    peak_memory: tuple[int | None, ...]
    joules: tuple[float | None, ...]
    watts: tuple[float | None, ...]
    measured: bool
    energy: str
    conditions: str

    def lines(self) -> list[str]:
        """The table as text, and below it what was measured and how."""
        from striate.nets.cost import short, table

        head = ["net", "weights", "top-1", "top-5", "size", "parameters", "multiply-adds", "top-1 per M"]
        if self.measured:
            head += ["ms, 1", "ms, 16", "images/s", "peak MB", *(["J", "W"] if any(self.joules) else [])]
        rows = [head]
        for i in range(len(self.names)):
            height, width = self.size[i]
            row = [
                self.names[i], self.weights[i] or "–", _percent(self.top1[i]), _percent(self.top5[i]),
                f"{height}x{width}", short(self.parameters[i]),
                short(self.multiply_adds[i]), _number(self.per_parameter[i], 2),
            ]  # fmt: skip
            if self.measured:
                row += [
                    _number(self.latency_1[i], 2, 1e3), _number(self.latency_16[i], 2, 1e3),
                    _number(self.throughput[i], 1), _number(self.peak_memory[i], 0, 1e-6),
                ]  # fmt: skip
                if any(self.joules):
                    row += [_number(self.joules[i], 3), _number(self.watts[i], 1)]
            rows.append(row)
        told = table(rows, texts=2)
        if self.measured:
            told += ["", self.conditions, f"energy: {self.energy}"]
        return told

    def figure(self) -> Figure:
        """The two classic plots side by side: accuracy and size against operations; time and power.

        Canziani, Culurciello & Paszke, An analysis of deep neural network models (arXiv:1605.07678).
        """
        from striate.studies.compare_figure import figure

        return figure(self)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write to `path`: .csv, .json, .png or .svg by its suffix; all four into a folder.

        Raises:
            StriateError: another suffix, or the file cannot be written.
        """
        target = Path(path)
        suffix = target.suffix.lower()
        if suffix in (".png", ".svg"):
            from striate.studies.compare_figure import encoded

            return write_bytes(target, encoded(self.figure(), suffix[1:]))
        if suffix in (".csv", ".json"):
            return super().save(target)
        if suffix and not target.is_dir():
            raise StriateError(
                f"cannot save a comparison as {target.name!r}", allowed=[*SUFFIXES, "a folder"]
            )
        for suffix in SUFFIXES:
            self.save(target / f"nets{suffix}")
        return target


@dataclass(frozen=True)
class _Entry:
    """One net to compare: how it is built, and the scores of its weights."""

    name: str
    weights: str
    spec: dict[str, Any]
    scores: dict[str, float]


def compare_nets(
    names: Sequence[str] | None = None,
    *,
    measure: bool = False,
    size: int | None = None,
    rounds: int = 5,
    threads: int = 0,
    device: str = "auto",
) -> NetComparison:
    """Compare nets by name, or weight files by their cards; if None, all nets with published scores.

    A net's own name stands for its default card. Parameters and operations are counted for the classes and
    the size of picture of the card, or of the net. With `measure` each net runs on this machine, with drawn
    weights: rounds in which every net has its turn, medians over `rounds`; the memory in a process of its
    own. `size` puts pictures of one size through all nets and leaves published scores out.

    Raises:
        StriateError: an unknown name (the nearest is given), a size that a net does not take, a device that
            is not there, or no net with published scores.
    """
    from striate.nets.cost import cost
    from striate.nets.net import skeleton

    entries = [_entry(name, size) for name in (names or _all())]
    tables = []
    for entry in entries:
        spec = dict(entry.spec)
        net = skeleton(spec.pop("name"), spec.pop("classes"), spec.pop("in_channels"), **spec)
        tables.append(cost(net, training=False))
    columns: dict[str, Any] = {column: (None,) * len(entries) for column in MEASURED}
    source, conditions = "not measured", ""
    if measure:
        columns, source, conditions = _measured(entries, rounds, threads, device)
    top1 = tuple(entry.scores.get("top1") for entry in entries)
    return NetComparison(
        names=tuple(entry.name for entry in entries),
        weights=tuple(entry.weights for entry in entries),
        top1=top1,
        top5=tuple(entry.scores.get("top5") for entry in entries),
        size=tuple(table.size for table in tables),
        parameters=tuple(table.params for table in tables),
        multiply_adds=tuple(table.macs for table in tables),
        per_parameter=tuple(
            None if score is None else 100 * score / (table.params / 1e6)
            for score, table in zip(top1, tables, strict=True)
        ),
        **columns,
        measured=measure,
        energy=source,
        conditions=conditions,
    )


def _all() -> list[str]:
    """Every net that a card with scores stands for, the most accurate first."""
    from striate.nets.weights import CARDS, is_published, published

    nets = {published(name).net for name in CARDS}
    scores = {name: published(name).scores for name in nets if is_published(name)}
    best = {name: found["top1"] for name, found in scores.items() if "top1" in found}
    if not best:
        raise StriateError("no net has published scores", hint="name the nets to compare")
    return sorted(best, key=lambda name: (-best[name], name))[:MOST]


def _entry(name: str, size: int | None) -> _Entry:
    from striate.nets.net import NETS, usual
    from striate.nets.weights import CARDS, is_published, published

    if is_published(name) and size is None:
        card = published(name)
        spec = {
            "name": card.net, "classes": len(card.classes), "in_channels": card.preprocess["channels"],
            "size": tuple(card.preprocess["size"]), **card.options,
        }  # fmt: skip
        return _Entry(name, card.name, spec, dict(card.scores))
    if name in CARDS:
        card = published(name)
        return _Entry(name, "", {"name": card.net, **usual(card.net), "size": size, **card.options}, {})
    if name not in NETS:
        raise unknown("net", name, {*NETS.names(), *CARDS}, hint="'striate list nets' shows every net")
    return _Entry(name, "", {"name": name, **usual(name), **({} if size is None else {"size": size})}, {})


def _measured(
    entries: Sequence[_Entry], rounds: int, threads: int, device: str
) -> tuple[dict[str, Any], str, str]:
    """The measured columns, where the energy comes from, and how it was done."""
    import torch

    from striate.nets.net import create_net
    from striate.studies import energy, measure

    place = machine.device_called(device)
    if not place.startswith(("cpu", "cuda")):
        if device != "auto":
            raise StriateError(f"nets are not timed on {device!r}", allowed=["auto", "cpu", "cuda"])
        place = "cpu"
    before = torch.get_num_threads()
    used = machine.check_threads(threads) or machine.processors()

    def maker(entry: _Entry) -> Any:
        spec = dict(entry.spec)
        return lambda: create_net(spec["name"], spec["classes"], spec["in_channels"], **_rest(spec))

    def pictures(entry: _Entry) -> Any:
        net_size = entry.spec.get("size") or _registered_size(entry.spec["name"])
        height, width = net_size if isinstance(net_size, tuple) else (net_size, net_size)
        shape = (entry.spec["in_channels"], height, width)
        return lambda count: torch.rand(count, *shape, generator=torch.Generator().manual_seed(0))

    meter, source = energy.find(place)
    torch.set_num_threads(used)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            speeds = measure.measure(
                [maker(entry) for entry in entries],
                [pictures(entry) for entry in entries],
                rounds=rounds,
                meter=meter,
                device=place,
                told=lambda line: print(line, file=sys.stderr),
            )
    finally:
        torch.set_num_threads(before)
    peaks = [measure.peak_memory(entry.spec, device=place, threads=used) for entry in entries]
    columns = {
        "latency_1": tuple(speed.latency_1 for speed in speeds),
        "latency_16": tuple(speed.latency_16 for speed in speeds),
        "throughput": tuple(1 / speed.latency_16 for speed in speeds),
        "peak_memory": tuple(peaks),
        "joules": tuple(speed.joules for speed in speeds),
        "watts": tuple(speed.watts for speed in speeds),
    }
    where = torch.cuda.get_device_name(place) if place.startswith("cuda") else f"{used} processor threads"
    how = (
        f"measured on {where}, PyTorch {torch.__version__}, 32 bits, drawn weights: median of {rounds} "
        f"rounds in which every net has its turn; batches of 1 and of 16; memory of a process "
        f"with a batch of 16"
    )
    return columns, source, how


def _rest(spec: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in spec.items() if key not in ("name", "classes", "in_channels")}


def _registered_size(name: str) -> int:
    from striate.nets.net import NETS

    return int(NETS.entry(name).capabilities["size"])


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f}%"


def _number(value: float | None, digits: int, times: float = 1.0) -> str:
    return "–" if value is None else f"{value * times:,.{digits}f}"
