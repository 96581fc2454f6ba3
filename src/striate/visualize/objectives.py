"""What a picture made by optimisation is to excite: values that add, scale, and say what they are as text."""

from __future__ import annotations

import dataclasses
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from striate.core.errors import StriateError, unknown
from striate.core.registry import Registry

if TYPE_CHECKING:
    from striate.visualize.studio import Studio

# The stage of objectives that look at the net's outputs.
OUTPUT = ""
# Fields that are looked up by `ready` and are not part of the written form.
HIDDEN = {"hidden": True}


@dataclass(frozen=True)
class Place:
    """Where maps lie in the whole: their first row and column, and the whole's height and width."""

    y: int
    x: int
    height: int
    width: int

    @property
    def positions(self) -> int:
        """The positions of the whole map."""
        return self.height * self.width

    def inside(self, maps: Tensor, y: int, x: int) -> bool:
        """Whether position (y, x) of the whole lies in these maps."""
        return 0 <= y - self.y < maps.shape[-2] and 0 <= x - self.x < maps.shape[-1]

    def cut(self, whole: Tensor, maps: Tensor) -> Tensor:
        """The part of a whole (..., height, width) that lies where `maps` do."""
        return whole[..., self.y : self.y + maps.shape[-2], self.x : self.x + maps.shape[-1]]


class Objective(ABC):
    """A number for each picture that the optimisation makes large; what is to be small has a minus.

    Objectives add and scale: `Channel("conv4", 3) - 0.1 * TotalVariation()`; `str` gives the written form
    that `parse` reads: `channel(conv4, 3) - 0.1*tv`.
    """

    @abstractmethod
    def terms(self) -> tuple[tuple[float, Leaf], ...]:
        """The sum as (weight, leaf) pairs."""

    def ready(self, studio: Studio) -> Objective:
        """The same with everything looked up: classes by name, targets from pictures.

        Raises:
            StriateError: a stage, class, channel or picture that is not there.
        """
        return total((weight, leaf.ready(studio)) for weight, leaf in self.terms())

    def __add__(self, other: Objective) -> Objective:
        return total((*self.terms(), *other.terms())) if isinstance(other, Objective) else NotImplemented

    def __sub__(self, other: Objective) -> Objective:
        return self + -other if isinstance(other, Objective) else NotImplemented

    def __neg__(self) -> Objective:
        return -1.0 * self

    def __mul__(self, factor: float) -> Objective:
        if isinstance(factor, bool) or not isinstance(factor, (int, float)):
            return NotImplemented
        return total((factor * weight, leaf) for weight, leaf in self.terms())

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> Objective:
        return self * (1 / divisor)

    def __str__(self) -> str:
        text = ""
        for weight, leaf in self.terms():
            size = abs(weight)
            sign = ("-" if weight < 0 else "") if not text else (" - " if weight < 0 else " + ")
            text += f"{sign}{leaf.text()}" if size == 1 else f"{sign}{size:.10g}*{leaf.text()}"
        return text


@dataclass(frozen=True, repr=False)
class Total(Objective):
    """A sum of weighted leaves; made by adding and scaling."""

    parts: tuple[tuple[float, Leaf], ...]

    def terms(self) -> tuple[tuple[float, Leaf], ...]:
        """The pairs themselves."""
        return self.parts


@dataclass(frozen=True)
class Leaf(Objective):
    """One objective: a function of sums over the positions of one stage, or of the picture itself.

    value = score(sum over parts of gather(part)): as the sum runs over positions, a map may come in parts,
    and the value is exactly that of the whole. `stage` is None for objectives of the picture in 0 .. 1.
    """

    name: ClassVar[str] = ""

    def terms(self) -> tuple[tuple[float, Leaf], ...]:
        """Itself, once."""
        return ((1.0, self),)

    def ready(self, studio: Studio) -> Leaf:
        """The same with everything looked up."""
        return self

    def where(self) -> str | None:
        """The stage it looks at: a name, OUTPUT for the net's outputs, None for the picture itself."""
        return getattr(self, "stage", None)

    @abstractmethod
    def gather(self, maps: Tensor, place: Place) -> Tensor:
        """Sums (N, ...) over the positions of maps (N, C, h, w) that lie at `place`."""

    def score(self, sums: Tensor, place: Place) -> Tensor:
        """Values (N,) from the sums over a whole map; by default their mean over positions."""
        return sums / place.positions

    def text(self) -> str:
        """The written form: name(arguments), those at their defaults left out."""
        words: list[str] = []
        skipped = False
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.metadata.get("hidden"):
                continue
            if field.default is not dataclasses.MISSING and value == field.default:
                skipped = True
                continue
            shown = written(value)
            words.append(f"{field.name}={shown}" if skipped else shown)
        return f"{self.name}({', '.join(words)})" if words else self.name

    __str__ = Objective.__str__
    __repr__ = Objective.__str__


OBJECTIVES: Registry[type[Leaf]] = Registry("objective", "striate.visualize")


def total(terms: Iterator[tuple[float, Leaf]] | Sequence[tuple[float, Leaf]]) -> Objective:
    """A sum of weighted leaves; one leaf of weight 1 is that leaf.

    Raises:
        StriateError: a weight is not a finite number.
    """
    pairs = tuple((float(weight), leaf) for weight, leaf in terms)
    for weight, leaf in pairs:
        if not abs(weight) < float("inf"):
            raise StriateError(f"the weight of {leaf.text()} is {weight}", allowed="finite numbers")
    return pairs[0][1] if len(pairs) == 1 and pairs[0][0] == 1 else Total(pairs)


def written(value: Any) -> str:
    """An argument as text; names with separators in them stand in quotes."""
    if isinstance(value, str):
        if not re.search(r"[\s,()=+*\"']|^-", value) and _number(value) is None:
            return value
        return f"'{value}'" if '"' in value else f'"{value}"'
    if isinstance(value, tuple):
        return " ".join(written(item) for item in value)
    if isinstance(value, os.PathLike):
        return written(os.fspath(value))
    if hasattr(value, "shape") or hasattr(value, "convert") or isinstance(value, bytes):
        return "a picture"
    return f"{value:.10g}" if isinstance(value, float) else str(value)


class Quoted(str):
    """A word that stood in quotes: never a number."""


TOKEN = re.compile(
    r"""\s*(?:(?P<quoted>"[^"]*"|'[^']*')|(?P<mark>[(),=*+])|(?P<minus>-)|(?P<word>[^\s(),=*+"']+))"""
)


def parse(text: str) -> Objective:
    """Read the written form: `channel(conv4, 3) + 2*class(tabby) - 0.1*tv`.

    Terms are NAME(ARGUMENTS) with an optional factor, joined by + and -; arguments may be named, and names
    with blanks, commas or brackets stand in quotes.

    Raises:
        StriateError: an unknown objective or argument (with the nearest), or text that is no such sum.
    """
    tokens = _tokens(text)
    terms: list[tuple[float, Leaf]] = []
    sign = 1.0
    position = 0
    while position < len(tokens):
        kind, word = tokens[position]
        if kind == "sign":
            sign, position = (-sign if word == "-" else sign), position + 1
            continue
        weight = sign
        while kind == "word" and _number(word) is not None:
            weight *= _number(word) or 0.0
            if position + 1 >= len(tokens) or tokens[position + 1] != ("mark", "*"):
                raise _misread(text, f"no * behind {word}")
            position += 2
            kind, word = tokens[position] if position < len(tokens) else ("end", "the end")
        if kind != "word":
            raise _misread(text, f"{word!r} where an objective is due")
        arguments, position = _arguments(tokens, position + 1, text)
        terms.append((weight, make(word, arguments)))
        sign = 1.0
        if position < len(tokens) and tokens[position][0] != "sign":
            raise _misread(text, f"{tokens[position][1]!r} where + or - is due")
    if not terms:
        raise _misread(text, "it is empty")
    return total(terms)


def make(name: str, arguments: Sequence[tuple[str | None, str]]) -> Leaf:
    """An objective from its name and (name or None, text) arguments."""
    kind = OBJECTIVES.get(name.lower().replace("_", "-"))
    fields = [field for field in dataclasses.fields(kind) if not field.metadata.get("hidden")]
    names = [field.name for field in fields]
    given: dict[str, Any] = {}
    for place, (key, value) in enumerate(arguments):
        if key is None and place >= len(fields):
            raise StriateError(
                f"{name} is given {len(arguments)} arguments", allowed=", ".join(names) or "none"
            )
        if key is not None and key not in names:
            raise unknown(f"argument of {name}", key, names)
        field = fields[place] if key is None else next(f for f in fields if f.name == key)
        given[field.name] = _read(name, field.name, str(field.type), value)
    missing = [f.name for f in fields if f.name not in given and f.default is dataclasses.MISSING]
    if missing:
        raise StriateError(f"{name} lacks {missing[0]}", hint=f"write {name}({', '.join(names)})")
    return kind(**given)


def _read(objective: str, name: str, kind: str, text: str) -> Any:
    """An argument by the annotation of its field."""
    if isinstance(text, Quoted) and "str" in kind:
        return str(text)
    try:
        if kind.startswith("tuple[float"):
            return tuple(float(word) for word in text.split())
        if "int" in kind and re.fullmatch(r"[+-]?\d+", text):
            return int(text)
        if kind.startswith("float"):
            return float(text)
    except ValueError:
        kind = "int"
    if "str" in kind or "Any" in kind:
        return text
    raise StriateError(f"{name} of {objective} is {text!r}", allowed="a number")


def _tokens(text: str) -> list[tuple[str, str]]:
    """Marks, signs and words; a minus is a sign only where a word does not go on with it."""
    found: list[tuple[str, str]] = []
    position, depth = 0, 0
    text = text.rstrip()
    while position < len(text):
        match = TOKEN.match(text, position)
        if match is None:
            raise _misread(text, f"the quote at {text[position:][:12]!r} does not end")
        position = match.end()
        if match["minus"] and depth:
            rest = re.compile(r"[^\s(),=*+\"']*").match(text, position)
            position = rest.end() if rest else position
            found.append(("word", "-" + (rest.group() if rest else "")))
        elif match["minus"] or (match["mark"] == "+" and not depth):
            found.append(("sign", match["minus"] or "+"))
        elif match["mark"]:
            depth += {"(": 1, ")": -1}.get(match["mark"], 0)
            found.append(("mark", match["mark"]))
        elif match["quoted"] is not None:
            found.append(("quoted", Quoted(match["quoted"][1:-1])))
        else:
            found.append(("word", match["word"]))
    return found


def _arguments(
    tokens: list[tuple[str, str]], position: int, text: str
) -> tuple[list[tuple[str | None, str]], int]:
    """The arguments in brackets from `position` on, if there are any, and the position behind them."""
    if position >= len(tokens) or tokens[position] != ("mark", "("):
        return [], position
    found: list[tuple[str | None, str]] = []
    words: list[str] = []
    key: str | None = None
    for place in range(position + 1, len(tokens)):
        kind, word = tokens[place]
        if kind == "mark" and word in ",)":
            if words:
                text_of = Quoted if len(words) == 1 and isinstance(words[0], Quoted) else str
                found.append((key, text_of(" ".join(words))))
            words, key = [], None
            if word == ")":
                return found, place + 1
        elif kind == "mark" and word == "=" and len(words) == 1 and key is None:
            key, words = words[0].replace("-", "_"), []
        elif kind in ("word", "quoted"):
            words.append(word)
        else:
            raise _misread(text, f"{word!r} inside of the brackets")
    raise _misread(text, "a bracket is not closed")


def _number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None


def _misread(text: str, reason: str) -> StriateError:
    return StriateError(
        f"cannot read the objective {text!r}: {reason}",
        allowed="terms such as channel(STAGE, 3) + 2*class(NAME) - 0.1*tv",
        hint="'striate list objectives' names all",
    )
