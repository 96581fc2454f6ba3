"""The published weights: which there are, which are on this machine, and whether they are the right ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from striate.core.errors import BadModelFile, StriateError, near
from striate.core.results import Result
from striate.nets.published import CARDS, Card, is_published, locate, on_disk, published
from striate.nets.published import verify as compare

ABSENT = "-"


@dataclass(frozen=True)
class Shelf(Result):
    """Published files: names, nets, scores (proportions or None), megabytes, and where they are here."""

    ROWS = ("names", "nets", "top1", "top5", "megabytes", "licences", "paths")

    names: Sequence[str]
    nets: Sequence[str]
    top1: Sequence[float | None]
    top5: Sequence[float | None]
    megabytes: Sequence[float]
    licences: Sequence[str]
    paths: Sequence[str | None]

    def lines(self) -> list[str]:
        """One line a file, in columns."""
        wide, net_wide = (max([len(title), *map(len, column)]) for title, column in self._texts())
        rows = [f"{'name':<{wide}}  {'net':<{net_wide}}  top-1  top-5      MB  here"]
        for name, net, top1, top5, size, _, path in zip(
            self.names,
            self.nets,
            self.top1,
            self.top5,
            self.megabytes,
            self.licences,
            self.paths,
            strict=True,
        ):
            rows.append(
                f"{name:<{wide}}  {net:<{net_wide}}  {_percent(top1)}  {_percent(top5)}"
                f"  {size:6.1f}  {path or ABSENT}"
            )
        return rows

    def _texts(self) -> tuple[tuple[str, Sequence[str]], tuple[str, Sequence[str]]]:
        return ("name", self.names), ("net", self.nets)


@dataclass(frozen=True)
class Verified(Result):
    """Files that were compared with their cards: names of the cards, paths, SHA-256, and what was found."""

    ROWS = ("names", "paths", "hashes", "findings")

    names: Sequence[str]
    paths: Sequence[str]
    hashes: Sequence[str]
    findings: Sequence[str]

    def lines(self) -> list[str]:
        """One line a file."""
        if not self.names:
            return ["no published weights are on this machine; 'striate weights list' shows what there is"]
        rows = zip(self.names, self.paths, self.hashes, self.findings, strict=True)
        return [f"{name}: {path}: {finding}; sha256 {digest}" for name, path, digest, finding in rows]


def listing(part: str | None = None) -> Shelf:
    """The published files whose name or net contains `part`; all for None.

    Raises:
        StriateError: none does; near matches are given.
    """
    cards = [published(name) for name in CARDS]
    if part is not None:
        cards = [card for card in cards if part.lower() in card.name or part.lower() in card.net]
    if not cards:
        close = " or ".join(map(repr, near(part or "", CARDS)))
        raise StriateError(
            f"no published net is called like {part!r}",
            hint=f"did you mean {close}?" if close else "'striate weights list' shows every one",
        )
    paths = [on_disk(card) for card in cards]
    return Shelf(
        [card.name for card in cards],
        [card.net for card in cards],
        [card.scores.get("top1") for card in cards],
        [card.scores.get("top5") for card in cards],
        [card.megabytes for card in cards],
        [card.licence for card in cards],
        [None if path is None else str(path) for path in paths],
    )


def fetch(name: str | None) -> Verified:
    """Bring the file of a card to this machine, if it is not there, and compare it with the card.

    Raises:
        StriateError: no or an unknown name, or the file cannot be fetched.
        BadModelFile: it is not the published file.
    """
    if name is None:
        raise StriateError("fetch which weights?", hint="give a name: 'striate weights list' shows every one")
    card = published(name)
    return _one(card, locate(card))


def verify(name: str | None = None) -> Verified:
    """Compare files with their cards: hash, and names and shapes of the tensors with the net.

    name: of a card, or a path; None takes every published file that is on this machine.

    Raises:
        StriateError: the file of a named card is not on this machine, or there is no such name.
        BadModelFile: a file is not the published one; what was expected and what was found are named.
    """
    if name is not None and Path(name).is_file() and not is_published(name):
        return _file(Path(name))
    if name is not None:
        card = published(name)
        return _one(card, locate(card, download=False))
    found = [(card, path) for card in map(published, CARDS) if (path := on_disk(card)) is not None]
    good: list[Verified] = []
    bad: list[BadModelFile] = []
    for card, path in found:
        try:
            good.append(_one(card, path))
        except BadModelFile as error:
            bad.append(error)
    if len(bad) == 1:
        raise bad[0]
    if bad:
        told = "; ".join(f"{error.given} (allowed: {error.allowed})" for error in bad)
        raise BadModelFile(f"{len(bad)} of {len(found)} files are wrong: {told}", hint="delete them")
    return Verified(
        [each.names[0] for each in good],
        [each.paths[0] for each in good],
        [each.hashes[0] for each in good],
        [each.findings[0] for each in good],
    )


def _one(card: Card, path: Path) -> Verified:
    """Compare one file with its card."""
    from striate.nets.weights import empty, load_state, translate

    digest = compare(path, card)
    net = empty(card)
    translate(net, load_state(path), where=str(path))
    basis = "the published file" if card.sha256 else f"{_basis(card)}"
    return Verified([card.name], [str(path)], [digest], [f"{basis}, and fits {net.name}"])


def _basis(card: Card) -> str:
    known = f"its sha256 begins with {card.hash_prefix}" if card.hash_prefix else "as it was fetched"
    return f"good as far as is known ({known})"


def _file(path: Path) -> Verified:
    """Say which card a file belongs to, by its hash, else by its name."""
    from striate.core.fetch import sha256
    from striate.nets.weights import load_state

    digest = sha256(path)
    cards = [published(name) for name in CARDS]
    for card in cards:
        if card.expected and digest.startswith(card.expected):
            return _one(card, path)
    for card in cards:
        if path.name == card.file_name:
            return _one(card, path)
    tensors = len(load_state(path))
    return Verified(
        [path.name], [str(path)], [digest], [f"a readable file of {tensors} tensors that no card knows"]
    )


def _percent(score: float | None) -> str:
    return f"{ABSENT:>5}" if score is None else f"{100 * score:5.2f}"
