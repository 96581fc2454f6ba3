"""The model file: safetensors with one JSON header, read without trusting a byte of it.

A file is 8 bytes (little-endian length), a JSON table of tensors (dtype, shape, offsets) and their bytes.
Its metadata holds one key, `striate`: the header, itself JSON. One key only, since the writer keeps the
metadata in a hash map, whose order would differ from run to run: so the same model gives the same bytes.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from striate.core.errors import BadModelFile, StriateError
from striate.core.files import write_bytes
from striate.core.results import plain
from striate.data.preprocess import Preprocess
from striate.nets.net import NETS
from striate.tasks.task import Task

KEY = "striate"
# Stands before the names of the arrays of the preprocessing; no stage of a net is called so.
ARRAYS = "preprocess/"
FORMAT = 1
MAX_HEADER = 16 * 2**20
MAX_TENSORS = 100_000
MAX_SIDE = 1 << 14
MAX_OPTIONS = 4096
SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
FLOATS = ("F64", "F32", "F16", "BF16")
KINDS = (
    (b"PK\x03\x04", "a zip archive (perhaps a PyTorch checkpoint)"),
    (b"\x80\x02", "a pickle"),
    (b"\x80\x03", "a pickle"),
    (b"\x80\x04", "a pickle"),
    (b"\x80\x05", "a pickle"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x89HDF", "an HDF5 file"),
    (b"%PDF", "a PDF document"),
)
TRAIN_HINT = "give a model.safetensors that Striate wrote"


@dataclass(frozen=True)
class Entry:
    """One tensor of a file as its table declares it."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def write(path: str | os.PathLike[str], header: Mapping[str, Any], state: Mapping[str, Tensor]) -> Path:
    """Write tensors and header in one step; the same values give the same bytes.

    Raises:
        StriateError: the file cannot be written.
        ValueError: the header is not plain JSON, or larger than 16 MiB.
    """
    text = json.dumps(header, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"))
    if len(text.encode()) > MAX_HEADER // 2:
        raise ValueError("the header of a model file may hold 8 MiB")
    # Clones, as the writer refuses tensors that share memory, such as tied weights.
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in sorted(state.items())}
    return write_bytes(path, save(plain, metadata={KEY: text}))


def read_table(path: Path) -> tuple[dict[str, Entry], dict[str, Any] | None]:
    """The table of tensors, checked against the file's length, and Striate's header (None: not there).

    Reads the header only: no tensor is loaded.

    Raises:
        BadModelFile: the file is missing, truncated, of another kind, or its table contradicts itself.
    """
    try:
        with open(path, "rb") as file:
            total = os.fstat(file.fileno()).st_size
            table, start = _json_table(path, file, total)
    except OSError as error:
        raise BadModelFile(
            f"cannot read {str(path)!r} ({error.strerror or error})", hint="check the path"
        ) from error
    metadata = table.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise broken(path, "its metadata is not a table of texts")
    if len(table) > MAX_TENSORS:
        raise broken(path, f"it declares {len(table)} tensors")
    entries = {name: _entry(path, name, value) for name, value in table.items()}
    _check_offsets(path, entries, total - start)
    return entries, None if KEY not in metadata else _header(path, metadata[KEY])


def split_off(entries: Mapping[str, Entry], lead: str) -> tuple[dict[str, Entry], dict[str, Entry]]:
    """The tensors whose names begin with `lead`, without it, and the rest."""
    own = {name[len(lead) :]: entry for name, entry in entries.items() if name.startswith(lead)}
    return own, {name: entry for name, entry in entries.items() if not name.startswith(lead)}


def restore(
    path: Path, entries: Mapping[str, Entry], header: Mapping[str, Any], task: Task,
    *, net: nn.Module | None = None, lead: str = "",
) -> tuple[nn.Module, Preprocess]:  # fmt: skip
    """The net and the preprocessing that a header tells of, from the tensors that begin with `lead`.

    entries: those tensors, without it. net: takes the weights instead of the net that the header names.

    Raises:
        BadModelFile, StriateError: tensors or settings that do not fit each other.
    """
    arrays, own = split_off(entries, ARRAYS)
    if any(entry.dtype not in FLOATS for entry in arrays.values()):
        raise BadModelFile(f"{str(path)!r} has arrays of its preprocessing that are no fractions")
    stored = _stored(path, {name: lead + ARRAYS + name for name in arrays})
    preprocess = Preprocess.from_dict(
        part(header, "preprocess"), {name: tensor.float().numpy() for name, tensor in stored.items()}
    )
    check_size(preprocess.size)
    if net is None:
        return build(path, own, task, part(header, "net"), lead), preprocess
    net.load_state_dict(read_tensors(path, own, net, lead), strict=True)
    return net, preprocess


def _stored(path: Path, names: Mapping[str, str]) -> dict[str, Tensor]:
    """Tensors of a file: for each key of `names`, the one stored under its value; copies."""
    try:
        with safe_open(os.fspath(path), framework="pt", device="cpu") as file:
            return {name: file.get_tensor(stored).clone() for name, stored in names.items()}
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise broken(path, str(error)) from error


def read_tensors(
    path: Path, entries: Mapping[str, Entry], skeleton: nn.Module, lead: str = ""
) -> dict[str, Tensor]:
    """The tensors of a checked file in the types of the skeleton, which may lie on the meta device.

    entries: those of the net, under their names in it; in the file `lead` stands before each. float16,
    bfloat16 and float64 files load into float32 nets.

    Raises:
        BadModelFile: names, shapes or kinds of number differ; both sides are told.
    """
    wanted = skeleton.state_dict()
    compare(path, entries, wanted)
    stored = _stored(path, {name: lead + name for name in wanted})
    return {name: stored[name].to(tensor.dtype) for name, tensor in wanted.items()}


def compare(path: Path, entries: Mapping[str, Entry], wanted: Mapping[str, Tensor]) -> None:
    """Raise BadModelFile, telling both sides, unless the file's tensors are those of the net."""
    missing = [name for name in wanted if name not in entries]
    extra = [name for name in entries if name not in wanted]
    if missing or extra:
        raise BadModelFile(
            f"{str(path)!r} does not fit: {len(wanted)} tensors in the net, {len(entries)} in the file; "
            f"missing in the file: {_list(missing)}; unknown to the net: {_list(extra)}",
            hint="load it with the net and the options that it was saved with",
        )
    for name, tensor in wanted.items():
        entry = entries[name]
        if entry.shape != tuple(tensor.shape):
            raise BadModelFile(
                f"{str(path)!r} does not fit the net: {name} is {tuple(tensor.shape)} in the net and "
                f"{entry.shape} in the file",
                hint="load it with the number of classes and the options that it was saved with",
            )
        if (entry.dtype in FLOATS) != tensor.dtype.is_floating_point:
            raise BadModelFile(
                f"{str(path)!r} does not fit the net: {name} is {str(tensor.dtype)[6:]} in "
                f"the net and {entry.dtype} in the file"
            )


def broken(path: Path, reason: str) -> BadModelFile:
    """The error for a file that contradicts itself."""
    return BadModelFile(f"{str(path)!r} is damaged or no model file ({reason})", hint=TRAIN_HINT)


def parse(path: Path, text: bytes | str) -> Any:
    """Strict JSON: no NaN, no key twice, bounded depth; raises BadModelFile."""

    def refuse(value: str) -> Any:
        raise ValueError(f"{value} is not a number")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a key stands there twice")
        return found

    try:
        return json.loads(
            text, parse_constant=refuse, parse_float=_finite, parse_int=_small, object_pairs_hook=unique
        )
    except RecursionError as error:
        raise broken(path, "its header is nested too deeply") from error
    except ValueError as error:
        raise broken(path, f"its header is not valid JSON: {error}") from error


def fill(skeleton: nn.Module, state: Mapping[str, Tensor]) -> bool:
    """Give the tensors to a net built on the meta device; False if something of it is not in the state."""
    skeleton.load_state_dict(state, strict=True, assign=True)
    tensors = [*skeleton.parameters(), *skeleton.buffers()]
    return not any(tensor.device.type == "meta" for tensor in tensors)


def net_facts(net: nn.Module) -> dict[str, Any]:
    """What it takes to build the net again; the name is None for modules from elsewhere, wrapped or not."""
    name = getattr(net, "name", None)
    return {
        "name": name if name in NETS else None,
        "options": plain(dict(getattr(net, "options", {}) or {})),
        "in_channels": getattr(net, "in_channels", None),
        "size": plain(getattr(net, "input_size", None)),
        "classes": getattr(net, "classes", None),
    }


def build(
    path: Path, entries: Mapping[str, Entry], task: Task, facts: Mapping[str, Any], lead: str = ""
) -> nn.Module:
    """The net of a header with the tensors of its file.

    Built without memory first and compared with the file's table, so that a header cannot ask for more
    memory than the file itself holds.
    """
    name, options, size = facts.get("name"), facts.get("options", {}), facts.get("size")
    if not isinstance(name, str):
        raise BadModelFile(
            f"{str(path)!r} holds the weights of a module from elsewhere", hint="load it with net=THE_MODULE"
        )
    if not isinstance(options, dict) or len(json.dumps(options)) > MAX_OPTIONS:
        raise StriateError("the net's options are no short table")
    channels = facts.get("in_channels")
    if type(channels) is not int or not 1 <= channels <= MAX_SIDE:
        raise StriateError(f"the net's in_channels is {str(channels)[:20]}", allowed=f"1 to {MAX_SIDE}")
    shape = tuple(size) if isinstance(size, list) else size
    check_size(shape)

    def new() -> nn.Module:
        return task.build_net(name, in_channels=channels, size=shape, options=options)

    with torch.random.fork_rng(devices=[]):
        with torch.device("meta"):
            net = new()
        state = read_tensors(path, entries, net, lead)
        if not fill(net, state):
            # Something is computed when the net is built and not stored: build it for real.
            net = new()
            net.load_state_dict(state, strict=True)
    return net


def check_size(size: Any) -> None:
    """Raise StriateError unless `size` is None, a side or (height, width), each 1 to 16384."""
    sides = (size,) if isinstance(size, int) else size
    if sides is not None and not all(type(side) is int and 1 <= side <= MAX_SIDE for side in sides):
        raise StriateError(f"an input size of {str(size)[:40]}", allowed=f"sides of 1 to {MAX_SIDE}")


def part(header: Mapping[str, Any], name: str) -> dict[str, Any]:
    """One table of the header; raises StriateError if it is not there."""
    value = header.get(name)
    if not isinstance(value, dict):
        raise StriateError(f"the header's {name!r} is no table")
    return value


def optional_part(header: Mapping[str, Any], name: str) -> dict[str, Any]:
    """One table of the header; empty if it is not there."""
    return part(header, name) if header.get(name) is not None else {}


def json_values(card: Mapping[str, Any]) -> dict[str, Any]:
    """The card as strict JSON: what is not a number there becomes null."""
    text = json.dumps(plain(card), default=str)
    values: dict[str, Any] = json.loads(text, parse_constant=lambda _: None)
    return values


def _json_table(path: Path, file: BinaryIO, total: int) -> tuple[dict[str, Any], int]:
    first = file.read(8)
    if len(first) < 8:
        raise BadModelFile(f"{str(path)!r} is truncated: it has {total} bytes", hint="copy the file again")
    length = int.from_bytes(first, "little")
    if length > MAX_HEADER:
        for magic, kind in KINDS:
            if first.startswith(magic):
                raise BadModelFile(f"{str(path)!r} is {kind}, not a model file", hint=TRAIN_HINT)
        raise broken(path, f"its header claims {length} bytes, allowed are {MAX_HEADER}")
    if length > total - 8:
        raise BadModelFile(
            f"{str(path)!r} is truncated: its header takes {length} bytes, the file has {total}",
            hint="copy the file again",
        )
    table = parse(path, file.read(length))
    if not isinstance(table, dict):
        raise broken(path, "its header is no table")
    return table, 8 + length


def _entry(path: Path, name: str, value: Any) -> Entry:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise broken(path, f"tensor {name[:60]!r} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in SIZES:
        raise broken(path, f"tensor {name[:60]!r} is of type {str(dtype)[:20]!r}")
    whole = all(
        isinstance(part, list) and all(type(number) is int and 0 <= number < 2**62 for number in part)
        for part in (shape, offsets)
    )
    if not whole or len(offsets) != 2 or len(shape) > 16:
        raise broken(path, f"tensor {name[:60]!r} has no valid shape or place")
    begin, end = offsets
    if end - begin != math.prod(shape) * SIZES[dtype]:
        raise broken(path, f"tensor {name[:60]!r} does not have the bytes that its shape needs")
    return Entry(dtype, tuple(shape), begin, end)


def _check_offsets(path: Path, entries: Mapping[str, Entry], size: int) -> None:
    """The tensors must follow each other without gap or overlap, up to the end of the file."""
    place = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != place:
            raise broken(path, f"tensor {name[:60]!r} overlaps another, or leaves a gap")
        place = entry.end
    if place > size:
        raise BadModelFile(
            f"{str(path)!r} is truncated: its tensors take {place} bytes, {size} are there",
            hint="copy the file again",
        )
    if place < size:
        raise broken(path, f"{size - place} bytes follow the last tensor")


def _header(path: Path, text: str) -> dict[str, Any]:
    header = parse(path, text)
    if not isinstance(header, dict):
        raise broken(path, "its Striate header is no table")
    version = header.get("format")
    if version != FORMAT or type(version) is not int:
        raise BadModelFile(
            f"{str(path)!r} is of model format {repr(version)[:20]}",
            allowed=str(FORMAT),
            hint="update Striate if the format is newer, or save the model again with this version",
        )
    return header


def _small(text: str) -> int:
    if len(text) > 20:
        raise ValueError("a number of more than 20 digits")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is too large a number")
    return value


def _list(names: list[str], shown: int = 4) -> str:
    if not names:
        return "none"
    rest = len(names) - shown
    return ", ".join(name[:60] for name in names[:shown]) + (f" and {rest} more" if rest > 0 else "")
