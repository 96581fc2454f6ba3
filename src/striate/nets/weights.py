"""Trained weights: reading files safely, and putting them into nets; cards of published files."""

from __future__ import annotations

import os
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from striate.core.errors import BadModelFile, first_line
from striate.core.fetch import sha256
from striate.nets import keys
from striate.nets.net import NETS, Net, skeleton
from striate.nets.published import CARDS, Card, is_published, locate, published, resembles

__all__ = [
    "CARDS", "Card", "empty", "is_published", "load_into", "load_state", "locate", "published", "resembles",
    "restore", "sha256", "translate",
]  # fmt: skip

N = TypeVar("N", bound=nn.Module)
SHOWN = 4


def empty(card: Card) -> Net:
    """The card's net on the meta device: shapes without memory or numbers."""
    facts = card.preprocess
    return skeleton(card.net, len(card.classes), facts["channels"], size=tuple(facts["size"]), **card.options)


def restore(card: Card) -> Net:
    """The card's net with its published weights, in evaluation mode; no random number is drawn.

    The file is fetched where it is not on this machine; see `locate`.

    Raises:
        StriateError: the file is not on this machine and cannot be fetched.
        BadModelFile: it is not the file of the card.
    """
    path = locate(card)
    return load_into(empty(card), load_state(path), where=str(path)).eval()


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
        reason = first_line(error)
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
    given = translate(net, state, where=where)
    on_meta = any(t.is_meta for t in wanted.values())
    fitting = {}
    for key, old in wanted.items():
        new = given.get(key)
        if new is None:
            new = torch.zeros_like(old, device="cpu") if old.is_meta else old
        fitting[key] = new.to(old.dtype).clone(memory_format=torch.contiguous_format) if on_meta else new
    net.load_state_dict(fitting, strict=True, assign=on_meta)
    return net


def translate(net: nn.Module, state: Mapping[str, Tensor], *, where: str = "the file") -> dict[str, Tensor]:
    """The tensors of `state` under the names that they have in `net`; nothing is copied.

    The first of the family's rules under which all fits is taken.

    Raises:
        BadModelFile: as `load_into`; told of the rule that comes nearest.
    """
    wanted = net.state_dict()
    name = getattr(net, "name", "")
    capabilities = NETS.entry(name).capabilities if name in NETS else {}
    rules: tuple[keys.Rule, ...] = (
        dict,
        *keys.RULES.get(capabilities.get("family", ""), {}).values(),
        *capabilities.get("keys", {}).values(),
    )
    tried: list[tuple[int, str]] = []
    for rule in rules:
        given = rule(state)
        problem = _compare(wanted, given)
        if not problem:
            return given
        tried.append((len(wanted.keys() & given.keys()), problem))
    nearest = max(tried, key=lambda pair: pair[0])[1]
    raise BadModelFile(
        f"{where} does not fit {name or type(net).__name__}: {nearest}",
        hint="give the net and the options that the weights were trained with",
    )


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
