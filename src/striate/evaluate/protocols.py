"""Test protocols: values with a written form that say which views the net sees and how they are pooled."""

from __future__ import annotations

import dataclasses
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import Module

from striate.core import settings
from striate.core.errors import StriateError, unknown
from striate.core.registry import Registry
from striate.core.settings import setting

if TYPE_CHECKING:
    from striate.data.preprocess import Preprocess
    from striate.model import Model
    from striate.tasks.task import Task

View = NDArray[np.uint8]
# A side in pixels, or, as a float, a multiple of the net's own side: written 256 and x1.25.
Scale = int | float
MODIFIERS = ("flip",)
GRAMMAR = "NAME[(...)][+flip][@SIZE,...], several joined by ' + '; such as center+flip or dense@256,x1.5"
LARGEST_SIDE = 16384
LARGEST_FACTOR = 64
PIECE = re.compile(r"(?P<name>[a-z0-9_-]+)(\((?P<values>[^()]*)\))?(@(?P<scales>[^@]*))?", re.IGNORECASE)


class Network:
    """The net as a protocol runs it: a batch of views in, the net's outputs out.

    A protocol that changes how the net runs (as a convolutional one, shifted and stitched) has its own.
    """

    def __init__(self, model: Model) -> None:
        self.model = model

    def __call__(self, views: Tensor) -> Tensor:
        """Views (M, h, w, C) uint8 to outputs (M, K) or (M, K, ...) float32: what `Model.predict` runs."""
        return self.model.forward(views)

    def trim(self, view: View) -> View:
        """The part of a view that the net's answer depends on; the mirrored view is that of this part."""
        return view

    def at_once(self, batch: int, height: int, width: int) -> int:
        """How many views of this height and width make a batch of `batch` views of the net's own size."""
        return batch

    def multiply_adds(self, height: int, width: int) -> int:
        """Multiply-adds of one view."""
        return multiply_adds(self.model.net, height, width, self.model.preprocess.channels)


def multiply_adds(net: Module, height: int, width: int, channels: int) -> int:
    """Multiply-adds of one picture of this height and width, by a pass without numbers."""
    from striate.nets.geometry import ask
    from striate.nets.tracker import walk

    size, count, names = ask(net, (height, width), channels)
    return sum(row.multiply_adds for row in walk(net, size, count, names))


@dataclass(frozen=True)
class Protocol(ABC):
    """How a model is tested: the views of an image, and how the net's outputs for them become one answer.

    A subclass is a frozen dataclass, registered in `PROTOCOLS` under its `name`. Its own fields are what
    stands in parentheses (`grid(5)`), those given by name only behind the others; `takes_flip` and
    `takes_scales` say which endings it has, `takes_maps` whether it can test nets that answer in maps.
    """

    name: ClassVar[str] = ""
    takes_flip: ClassVar[bool] = False
    takes_scales: ClassVar[bool] = False
    takes_maps: ClassVar[bool] = True

    _: KW_ONLY
    flip: bool = setting(False, help="every view also mirrored left to right")
    scales: tuple[Scale, ...] = setting(
        (), help="shorter sides that the image is resized to: pixels, or floats: times the net's own side"
    )

    def __post_init__(self) -> None:
        settings.check(self)
        if self.flip and not self.takes_flip:
            raise StriateError(f"protocol {self.name!r} takes no +flip", allowed=self.form())
        if self.scales and not self.takes_scales:
            raise StriateError(f"protocol {self.name!r} takes no @ sizes", allowed=self.form())
        fits = all(
            0.01 <= scale <= LARGEST_FACTOR if isinstance(scale, float) else 1 <= scale <= LARGEST_SIDE
            for scale in self.scales
        )
        if not fits or len({(type(scale), scale) for scale in self.scales}) < len(self.scales):
            raise StriateError(
                f"sizes @{_listed(self.scales)}",
                allowed=f"different ones of 1 to {LARGEST_SIDE} pixels or x0.01 to x{LARGEST_FACTOR}",
            )

    @abstractmethod
    def views(self, image: View, preprocess: Preprocess) -> list[View]:
        """The views of an image (H, W, C) uint8, each (h, w, C) uint8, without the mirrored ones.

        Runs on loader threads. Raises StriateError where the image has no such view.
        """

    def at_least(self, preprocess: Preprocess) -> int | None:
        """The shorter side, in pixels, that decoding must keep; None = all of it."""
        if not self.scales:
            return preprocess.at_least()
        sides = [in_pixels(scale, preprocess) for scale in self.scales]
        return None if None in sides else max(side for side in sides if side is not None)

    def target(self, mask: NDArray[np.int32], preprocess: Preprocess) -> NDArray[np.int32]:
        """The mask (H, W) in the geometry of the pooled outputs, for tasks whose targets are masks."""
        return preprocess.mask_view(mask)

    def network(self, model: Model) -> Network:
        """The net as this protocol runs it.

        Raises:
            StriateError: the protocol has no meaning for this model.
        """
        self.check(model)
        return Network(model)

    def check(self, model: Model) -> None:
        """Refuse a model that this protocol cannot test.

        Raises:
            StriateError: the model answers in maps, and this protocol's views lie in different places.
        """
        if model.task.dense and not self.takes_maps:
            fits = [entry.name for entry in PROTOCOLS if entry.value.takes_maps]
            raise StriateError(
                f"protocol {self.name!r} cannot test a model for {model.task.name}", allowed=fits
            )

    def pool(self, outputs: Tensor, task: Task) -> Tensor:
        """Outputs of all views (V, N, K, ...) to those of the images (N, K, ...): the mean of posteriors.

        A single view's outputs pass through unchanged.
        """
        return mean_of_posteriors(outputs, task)

    @property
    def members(self) -> tuple[Protocol, ...]:
        """The protocols that this one is the sum of; itself if it is none."""
        return (self,)

    @property
    def parts(self) -> tuple[Protocol, ...]:
        """Protocols, the mean of whose posteriors is that of this one, such as one for each scale."""
        return (self,)

    def all_views(
        self, image: View, preprocess: Preprocess, trim: Callable[[View], View] | None = None
    ) -> list[View]:
        """The views, trimmed, then with `flip` their mirror images in the same order."""
        views = self.views(image, preprocess)
        if trim is not None:
            views = [trim(view) for view in views]
        return [*views, *(np.ascontiguousarray(view[:, ::-1]) for view in views)] if self.flip else views

    def pool_all(self, outputs: Tensor, task: Task) -> Tensor:
        """Pool the outputs of `all_views`; maps of mirrored views are mirrored back first."""
        if self.flip and task.dense:
            plain, mirrored = outputs.chunk(2)
            outputs = torch.cat([plain, mirrored.flip(-1)])
        return self.pool(outputs, task)

    @classmethod
    def form(cls) -> str:
        """What may be written for this protocol."""
        own = ", ".join(field.name for field in _own_fields(cls))
        flip, scales = "[+flip]" if cls.takes_flip else "", "[@SIZE,...]" if cls.takes_scales else ""
        return f"{cls.name}{f'[({own})]' if own else ''}{flip}{scales}"

    def __str__(self) -> str:
        values = []
        for place, field in enumerate(_own_fields(type(self))):
            value = getattr(self, field.name)
            leads = place == 0 and not field.kw_only
            if leads or value != field.default:
                text = str(value).lower() if isinstance(value, bool) else str(value)
                values.append(text if leads else f"{field.name}={text}")
        inside = f"({', '.join(values)})" if values else ""
        scales = f"@{_listed(self.scales)}" if self.scales else ""
        return f"{self.name}{inside}{'+flip' if self.flip else ''}{scales}"


PROTOCOLS: Registry[type[Protocol]] = Registry("protocol", "striate.evaluate")


@dataclass(frozen=True)
class Sum(Protocol):
    """Several protocols on the same images: the mean of their posteriors, each with the same weight."""

    terms: tuple[Protocol, ...] = setting(help="the protocols")

    @property
    def members(self) -> tuple[Protocol, ...]:
        """The protocols."""
        return self.terms

    @property
    def parts(self) -> tuple[Protocol, ...]:
        """The protocols."""
        return self.terms

    def views(self, image: View, preprocess: Preprocess) -> list[View]:
        """The views of all parts; each part is run and pooled on its own."""
        return [view for term in self.terms for view in term.all_views(image, preprocess)]

    def __str__(self) -> str:
        return " + ".join(map(str, self.terms))


def parse_protocol(text: str | Protocol) -> Protocol:
    """The protocol that `text` describes; `str` of it gives the written form back.

    NAME, then values in parentheses, `+flip`, and `@` with sizes, where the protocol takes them; several
    protocols joined by `+` are their sum. Blanks and letter case do not count.

    Raises:
        StriateError: an unknown name (with the nearest), a value that is not allowed, or no such form.
    """
    if isinstance(text, Protocol):
        return text
    if not isinstance(text, str) or not text.strip():
        raise StriateError(f"a protocol is given as {text!r}", allowed=GRAMMAR)
    terms: list[dict[str, Any]] = []
    for piece in _split(text):
        name, values, scales = _piece(piece, text)
        if name not in MODIFIERS:
            terms.append({"kind": _kind(name), "values": values, "scales": scales})
            continue
        if not terms:
            raise StriateError(f"+{name} stands without a protocol in {text!r}", allowed=GRAMMAR)
        term = terms[-1]
        if values or name in term or (scales and term["scales"]):
            raise StriateError(f"cannot read {text!r}", allowed=GRAMMAR)
        term[name] = True
        term["scales"] = term["scales"] or scales
    protocols = [_build(**term) for term in terms]
    return protocols[0] if len(protocols) == 1 else Sum(tuple(protocols))


def mean_of_posteriors(outputs: Tensor, task: Task) -> Tensor:
    """Outputs (V, N, K, ...) to (N, K, ...) whose posterior is the mean of the V posteriors.

    One view's outputs are returned as they are, to the last bit.
    """
    if len(outputs) == 1:
        return outputs[0]
    each = task.posterior(outputs.flatten(0, 1)).reshape(outputs.shape)
    return task.outputs_of(each.mean(0))


def _split(text: str) -> list[str]:
    """The pieces between the `+` signs, those in parentheses apart."""
    depth, pieces = 0, [""]
    for character in "".join(text.split()):
        depth += (character == "(") - (character == ")")
        if character == "+" and depth == 0:
            pieces.append("")
        else:
            pieces[-1] += character
    return pieces


def in_pixels(scale: Scale, preprocess: Preprocess) -> int | None:
    """A scale as a shorter side in pixels; None where it is a multiple and the net has no side of its own."""
    if isinstance(scale, int):
        return scale
    return None if preprocess.size is None else max(1, round(scale * min(preprocess.size)))


def _piece(piece: str, text: str) -> tuple[str, str, tuple[Scale, ...]]:
    found = PIECE.fullmatch(piece)
    if found is None:
        raise StriateError(f"cannot read {piece!r} in protocol {text!r}", allowed=GRAMMAR)
    scales: tuple[Scale, ...] = ()
    if found["scales"] is not None:
        try:
            scales = tuple(
                float(size[1:]) if size[:1].lower() == "x" else int(size)
                for size in found["scales"].split(",")
            )
        except ValueError:
            raise StriateError(
                f"sizes @{found['scales']} in protocol {text!r}",
                allowed="pixels, as in @256,384, or multiples of the net's own side, as in @x1,x1.5",
            ) from None
    return found["name"].lower().replace("_", "-"), found["values"] or "", scales


def _kind(name: str) -> type[Protocol]:
    if name not in PROTOCOLS:
        hint = "'striate list protocols' shows every protocol"
        raise unknown("protocol", name, [*PROTOCOLS.names(), *(f"+{m}" for m in MODIFIERS)], hint=hint)
    return PROTOCOLS.get(name)


def _build(kind: type[Protocol], values: str, scales: tuple[Scale, ...], flip: bool = False) -> Protocol:
    fields = [field.name for field in _own_fields(kind)]
    in_order = [field.name for field in _own_fields(kind) if not field.kw_only]
    given: dict[str, Any] = {}
    for place, part in enumerate(part for part in values.split(",") if part):
        key, equals, value = part.partition("=")
        if not equals:
            key, value = (in_order[place] if place < len(in_order) else ""), part
        key = key.replace("-", "_")
        if key not in fields or key in given:
            raise StriateError(f"protocol {kind.name!r} takes no {part!r}", allowed=kind.form())
        given[key] = _value(value)
    return settings.from_dict(kind, {**given, "flip": flip, "scales": scales})


def _value(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    readers: Sequence[Callable[[str], Any]] = (int, float)
    for read in readers:
        try:
            return read(text)
        except ValueError:
            continue
    return text.lower()


def _own_fields(kind: type[Protocol]) -> list[dataclasses.Field[Any]]:
    """The fields of a protocol besides `flip` and `scales`, those given by name only last."""
    own = [field for field in dataclasses.fields(kind) if field.name not in ("flip", "scales")]
    return sorted(own, key=lambda field: bool(field.kw_only))


def _listed(sizes: Sequence[Scale]) -> str:
    return ",".join(
        f"x{size!r}".removesuffix(".0") if isinstance(size, float) else str(size) for size in sizes
    )
