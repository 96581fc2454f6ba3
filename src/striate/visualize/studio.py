"""Where pictures are made: a model at one picture size, its stages read with gradients, in bounded memory."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from striate.core.errors import StriateError, unknown
from striate.core.machine import sparing_heap
from striate.images import geometry
from striate.images.decode import to_image
from striate.layers.winograd import keep_no_filters, tiled
from striate.nets.net import Net
from striate.nets.taps import leaves_as_found, stage, stepping
from striate.nets.wrapped import Wrapped
from striate.visualize.lean import Lean
from striate.visualize.objectives import OUTPUT, Leaf, Objective, Place

if TYPE_CHECKING:
    from striate.model import Model

Sums = dict[int, tuple[Tensor, Place]]
MEMORY = ("auto", "whole", "tiled")
# Activations that may be held at once before the pass is taken in parts.
BUDGET = 768 * 2**20


class _Enough(Exception):
    """All stages that are looked at have run."""


class Studio:
    """A model that looks at pictures (N, C, h, w) in 0 .. 1 of one size, and tells how to improve them.

    memory: "whole" keeps the graph of the whole pass, "tiled" takes it in segments and strips of rows with
    equal results (`lean.Lean`), "auto" chooses by the activations' size, against `budget` bytes (768 MiB). Of
    a pass in parts an eighth of the budget is kept rather than worked out again; "tiled" has none by itself.

    Raises:
        StriateError: an unknown way, or a size that is not positive.
    """

    def __init__(
        self, model: Model, size: tuple[int, int], *, memory: str = "auto", budget: int | None = None
    ) -> None:
        if memory not in MEMORY:
            raise unknown("memory", memory, MEMORY)
        if min(size) < 1:
            raise StriateError(f"the picture is {size[0]} x {size[1]} pixels", allowed="at least 1 x 1")
        self.model, self.net, self.size = model, model.net, size
        self.memory = memory
        self.budget = budget if budget is not None else 0 if memory == "tiled" else BUDGET
        self.channels = model.preprocess.channels
        self.device = model.device
        shape = (1, -1, 1, 1)
        self._mean = torch.tensor(model.preprocess.mean).view(shape).to(self.device)
        self._std = torch.tensor(model.preprocess.std).view(shape).to(self.device)
        modules = list(self.net.modules())
        shared = any(getattr(module, "inplace", False) is True for module in modules)
        # Behind a tap an in-place operation must find another tensor to overwrite.
        self._shielded = shared or not isinstance(self.net, Net) or isinstance(self.net, Wrapped)
        self._softmax = any(isinstance(module, (nn.Softmax, nn.LogSoftmax)) for module in modules)
        self._lean: dict[tuple[tuple[str, ...], tuple[int, int]], Lean | None] = {}

    @contextmanager
    def open(self) -> Iterator[Studio]:
        """The net in evaluation mode with frozen weights for the block; then exactly as it was found."""
        whole: AbstractContextManager[None] = nullcontext()
        spared = sparing_heap() if self.memory == "tiled" else whole
        with leaves_as_found(self.net), tiled(self.net), spared:
            self.net.eval()
            self.net.requires_grad_(False)
            yield self

    def scores_stage(self) -> str:
        """The stage of class scores before any softmax: the outputs, or the head where a softmax follows."""
        head = getattr(self.net, "head", "")
        return str(head) if self._softmax and head else OUTPUT

    def spread(self, values: Tensor) -> Tensor:
        """Values for the net: (picture - mean) / std per channel, or by the model's input statistics.

        Raises:
            StriateError: statistics of one size, and a picture of another.
        """
        if not self.model.preprocess.plain:
            return self.model.preprocess.standardise(values)
        return (values - self._mean) / self._std

    def picture(self, image: Any, area: float | None = None) -> Tensor:
        """Any image as a picture (1, C, h, w) in 0 .. 1: of this studio's size, or with its aspect kept.

        With `area` its area is about that factor squared of the studio's.
        """
        if isinstance(image, Tensor):
            return image.detach().to(self.device)
        pixels = to_image(image, channels=self.channels)
        size = self.size
        if area is not None:
            height, width = pixels.shape[:2]
            factor = area * math.sqrt(self.size[0] * self.size[1] / (height * width))
            size = (max(1, round(height * factor)), max(1, round(width * factor)))
        return to_picture(resized(pixels, size)).to(self.device)

    def maps(self, picture: Tensor, name: str) -> Tensor:
        """What a stage makes of a picture, (1, C, h, w), without gradients."""
        found: list[Tensor] = []
        with torch.no_grad():
            self._run(picture, {name: lambda maps: found.append(maps.detach().clone())})
        return found[0]

    def gathered(self, picture: Tensor, leaf: Leaf) -> tuple[Tensor, Place]:
        """The sums of one objective for a picture of any size, without gradients."""
        name = leaf.where()
        place = Place(0, 0, picture.shape[2], picture.shape[3])
        if name is None:
            return leaf.gather(picture, place), place
        lean = self._way([leaf], picture)
        if lean is not None:
            with torch.no_grad():
                return lean.forward(self.spread(picture), [leaf])[0]
        found: list[tuple[Tensor, Place]] = []

        def look(maps: Tensor) -> None:
            place = Place(0, 0, maps.shape[2], maps.shape[3])
            found.append((leaf.gather(maps, place), place))

        with torch.no_grad():
            self._run(picture, {name: look})
        return found[0]

    def look(self, objective: Objective, seen: Tensor, picture: Tensor | None = None) -> Look:
        """Value and gradient of a sum of objectives.

        seen: what the net is shown (N, C, h, w), 0 .. 1; picture: what the objectives of the picture itself
        are taken of, the same unless given. The gradients are with respect to each.
        """
        if seen.ndim != 4 or seen.shape[1] != self.channels:
            raise StriateError(
                f"pictures of shape {tuple(seen.shape)}, {seen.shape[1] if seen.ndim > 1 else 0} channels",
                allowed=f"(N, {self.channels}, height, width)",
            )
        terms = objective.terms()
        inner = [(weight, leaf) for weight, leaf in terms if leaf.where() is not None]
        outer = [(weight, leaf) for weight, leaf in terms if leaf.where() is None]
        values: dict[int, Tensor] = {}
        gradient = torch.zeros_like(seen)
        if inner:
            gradient = self._inner(inner, seen, values)
        own = None
        if outer:
            own = self._outer(outer, seen if picture is None else picture, values)
            if picture is None:
                gradient, own = gradient + own, None
        parts: dict[str, float] = {}
        for _, leaf in terms:
            parts[leaf.text()] = parts.get(leaf.text(), 0.0) + float(values[id(leaf)].sum())
        whole = torch.stack([weight * values[id(leaf)].double() for weight, leaf in terms]).sum(0)
        return Look(whole, gradient, own, parts)

    def _inner(self, terms: list[tuple[float, Leaf]], seen: Tensor, values: dict[int, Tensor]) -> Tensor:
        """Gradient of the objectives of stages; their values (N,) go into `values`."""
        leaves = [leaf for _, leaf in terms]
        lean = self._way(leaves, seen)
        if lean is not None:
            x = self.spread(seen.detach()).contiguous(memory_format=torch.channels_last)
            return lean.both(x, terms, values) / self._std
        x = seen.detach().requires_grad_()
        with torch.enable_grad():
            sums: Sums = {}
            self._run(x, self._lookers(leaves, sums))
            whole = x.new_zeros(())
            for weight, leaf in terms:
                value = leaf.score(*sums[id(leaf)])
                values[id(leaf)] = value.detach()
                whole = whole + weight * value.sum()
            if not whole.requires_grad:
                raise StriateError(
                    "the objective does not depend on the picture by any differentiable path",
                    hint="this needs a net of differentiable layers",
                )
            return torch.autograd.grad(whole, x)[0]

    def _outer(self, terms: list[tuple[float, Leaf]], picture: Tensor, values: dict[int, Tensor]) -> Tensor:
        """Gradient of the objectives of the picture itself."""
        x = picture.detach().requires_grad_()
        place = Place(0, 0, x.shape[2], x.shape[3])
        with torch.enable_grad():
            whole = x.new_zeros(())
            for weight, leaf in terms:
                value = leaf.score(leaf.gather(x, place), place)
                values[id(leaf)] = value.detach()
                whole = whole + weight * value.sum()
            return torch.autograd.grad(whole, x)[0]

    def _lookers(self, leaves: Iterable[Leaf], sums: Sums) -> dict[str, Any]:
        by_stage: dict[str, list[Leaf]] = {}
        for leaf in leaves:
            by_stage.setdefault(leaf.where() or OUTPUT, []).append(leaf)

        def looker(several: list[Leaf]) -> Any:
            def look(maps: Tensor) -> None:
                place = Place(0, 0, maps.shape[2], maps.shape[3])
                for leaf in several:
                    sums[id(leaf)] = (leaf.gather(maps, place), place)

            return look

        return {name: looker(several) for name, several in by_stage.items()}

    def _run(self, picture: Tensor, lookers: Mapping[str, Any]) -> None:
        """Show the net a picture, up to the last stage that is looked at; each is seen at its first run."""
        names = [name for name in lookers if name != OUTPUT]
        waiting = set(names)

        def leave(name: str, output: Any) -> Any:
            if name not in waiting:
                return None
            waiting.discard(name)
            lookers[name](as_maps(name, output))
            if not waiting and OUTPUT not in lookers:
                raise _Enough
            return output.clone() if self._shielded else None

        x = self.spread(picture).contiguous(memory_format=torch.channels_last)
        with stepping(self.net, names, leave=leave):
            try:
                outputs = self._through(x, names) if OUTPUT not in lookers else self.net(x.clone())
            except _Enough:
                return
        if waiting:
            raise StriateError(f"stage {sorted(waiting)[0]!r} does not run in a pass of the net")
        lookers[OUTPUT](as_maps("output", outputs))

    def _through(self, x: Tensor, names: list[str]) -> Any:
        """One pass; a net of named stages takes pictures of any size up to its first fixed stage."""
        if not isinstance(self.net, Net) or type(self.net).forward is not Net.forward:
            return self.net(x.clone())
        if x.shape[1] != self.net.in_channels:
            return self.net(x)
        for name in self.net.stage_names:
            try:
                x = self.net._modules[name](x)  # type: ignore[misc]
            except RuntimeError as error:
                raise _misfit(self.net, name, x, error) from error
        return x

    def _way(self, leaves: list[Leaf], picture: Tensor) -> Lean | None:
        """How to take the pass in parts, or None where it is taken whole."""
        if self.memory == "whole":
            return None
        names = tuple(sorted({leaf.where() or OUTPUT for leaf in leaves}))
        size = (picture.shape[2], picture.shape[3])
        key = (names, size)
        if key not in self._lean:
            self._lean[key] = self._plan(names, tuple(picture.shape))
        return self._lean[key]

    def _plan(self, names: tuple[str, ...], shape: tuple[int, ...]) -> Lean | None:
        for name in names:
            if name != OUTPUT:
                stage(self.net, name)
        net = self.net
        reason = Lean.refuses(net, names) if isinstance(net, Net) else "it is not a sequence of stages"
        if not self.model.preprocess.plain:
            reason = f"its input statistics are {self.model.preprocess.input!r}"
        if reason is not None or not isinstance(net, Net):
            return self._only_whole(str(reason)) if self.memory == "tiled" else None
        try:
            lean = Lean(net, names, shape)
        except RuntimeError:
            # Such a picture does not fit the net: the whole pass says where.
            return None
        if self.memory == "tiled" or lean.whole_bytes() > self.budget:
            lean.keep(self.budget // 8)
            keep_no_filters(net)
            return lean
        return None

    def _only_whole(self, reason: str) -> Lean | None:
        raise StriateError(
            f"the pass of this net cannot be taken in parts: {reason}", hint="give memory 'whole' or 'auto'"
        )


class Look:
    """What a look at a picture gives: values (N,), gradients, and each objective's value by its text."""

    def __init__(self, values: Tensor, gradient: Tensor, own: Tensor | None, parts: dict[str, float]) -> None:
        self.values, self.gradient, self.own, self.parts = values, gradient, own, parts

    @property
    def value(self) -> float:
        """The sum over pictures."""
        return float(self.values.sum())


def as_maps(name: str, output: Any) -> Tensor:
    """The output of a stage as maps (N, C, h, w); vectors (N, C) are maps of one position."""
    if isinstance(output, Tensor) and output.ndim == 2:
        return output[:, :, None, None]
    if isinstance(output, Tensor) and output.ndim == 4:
        return output
    shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    raise StriateError(f"stage {name!r} gives {shape}", allowed="maps (N, C, h, w) or vectors (N, C)")


def to_picture(pixels: NDArray[np.uint8]) -> Tensor:
    """uint8 (H, W, C) as (1, C, H, W) float32 in 0 .. 1."""
    # One memory order for all: a run that goes on from a file gives equal bytes.
    planes = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None].contiguous()
    return planes.float().div_(255)


def to_pixels(picture: Tensor) -> NDArray[np.uint8]:
    """A picture (C, H, W) in 0 .. 1 as uint8 (H, W, C), rounded and cut."""
    levels = picture.detach().cpu().float().clamp(0, 1).mul(255).round_().to(torch.uint8)
    return np.ascontiguousarray(levels.permute(1, 2, 0).numpy())


def resized(pixels: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """Pixels at another size, averaged where they shrink."""
    if pixels.shape[:2] == size:
        return pixels
    shrinks = size[0] < pixels.shape[0] or size[1] < pixels.shape[1]
    return geometry.resize(pixels, size, "area" if shrinks else "bicubic")


def _misfit(net: Net, name: str, x: Tensor, error: RuntimeError) -> Exception:
    if not re.search(r"size|shape", str(error)) or "memory" in str(error):
        return error
    height, width = net.input_size
    return StriateError(
        f"stage {name!r} does not take the maps of such a picture",
        hint=f"the net was built for {height} x {width} pixels: take a stage before, or that size",
    )
