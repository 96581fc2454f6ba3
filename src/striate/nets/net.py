"""The contract of a network: named stages in order, and the same questions to every one of them."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from striate.core.errors import StriateError, unknown
from striate.core.registry import Registry
from striate.layers.initialisation import INITIALISATIONS
from striate.nets.dropping import OPTIONS, put_in

if TYPE_CHECKING:
    from striate.nets.geometry import StageInfo

Size = int | tuple[int, int]
# Pictures at or below this shorter side get a family's small-image form.
SMALL = 64
LIMITS = {"classes": 1_000_000, "in_channels": 4096, "size": 16384}


class Net(nn.Module):
    """A network as a sequence of named stages.

    The stages are direct children under the names that their papers use, so the keys of the state
    dictionary are those names ("conv1_1.weight"). One stage is the head: the layer with one output a class;
    what follows it has no parameters and keeps the classes, or averages a convolution's over the map. Inputs
    are (N, in_channels, H, W) floats, already normalised; outputs are logits (N, classes), of any range.

    `size` is the side of the pictures that the net was built for; with `fixed_size` no other is taken,
    otherwise any from `min_size` upwards.

    Raises:
        ValueError: a stage's name is taken by an attribute, or `head` is not a stage.
    """

    def __init__(
        self,
        stages: Mapping[str, nn.Module] | Iterable[tuple[str, nn.Module]],
        *,
        head: str,
        in_channels: int,
        size: Size,
        name: str,
        fixed_size: bool = False,
        min_size: int = 1,
    ) -> None:
        super().__init__()
        pairs = list(stages.items() if isinstance(stages, Mapping) else stages)
        self.name = name
        self.options: dict[str, Any] = {}
        self.head = head
        self.in_channels = in_channels
        self.input_size = pair(size)
        self.fixed_size = fixed_size
        self.min_size = min_size
        self._stage_names: tuple[str, ...] = tuple(stage for stage, _ in pairs)
        for stage, module in pairs:
            if hasattr(self, stage):
                raise ValueError(f"stage name {stage!r} is taken")
            self.add_module(stage, module)
        if head not in self._stage_names:
            raise ValueError(f"head {head!r} is not a stage")

    @property
    def stage_names(self) -> tuple[str, ...]:
        """The names of the stages in the order in which they run."""
        return self._stage_names

    @property
    def size(self) -> int:
        """The shorter side, in pixels, of the pictures that the net was built for."""
        return min(self.input_size)

    @property
    def tapped(self) -> nn.Module:
        """The module below which taps find their names; the net itself unless it wraps another."""
        return self

    @property
    def head_layer(self) -> nn.Linear | nn.Conv2d:
        """The layer with one output a class."""
        layer = self.tapped.get_submodule(self.head)
        assert isinstance(layer, (nn.Linear, nn.Conv2d))  # by construction, never by the user's doing
        return layer

    @property
    def classes(self) -> int:
        """The number of outputs of the head."""
        layer = self.head_layer
        return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels

    @property
    def feature_dim(self) -> int:
        """The number of inputs of the head: the D of `features`."""
        layer = self.head_layer
        return layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels

    def forward(self, x: Tensor) -> Tensor:
        """Run the stages in order: (N, in_channels, H, W) float -> logits (N, classes).

        Raises:
            StriateError: another number of channels, a size that the net does not take, or integers.
        """
        check_input(x, self.in_channels, self.input_size, self.fixed_size, self.min_size)
        for name in self._stage_names:
            x = self._modules[name](x)  # type: ignore[misc]
        return x

    def features(self, x: Tensor) -> Tensor:
        """What the head sees: (N, in_channels, H, W) float -> (N, feature_dim).

        Where the head is a convolution on a map, the mean over the map: a 1x1 head of it is the mean of the
        head's outputs.

        Raises:
            StriateError: as `forward`.
        """
        check_input(x, self.in_channels, self.input_size, self.fixed_size, self.min_size)
        for name in self._stage_names[: self._stage_names.index(self.head)]:
            x = self._modules[name](x)  # type: ignore[misc]
        return x.mean((2, 3)) if x.ndim == 4 else x

    def reset_head(self, classes: int) -> Self:
        """Replace the head by a newly initialised one with `classes` outputs; returns the net itself.

        Raises:
            StriateError: `classes` is not a positive whole number.
        """
        _count("classes", classes)
        old = self.head_layer
        bias = old.bias is not None
        place: dict[str, Any] = {"device": old.weight.device, "dtype": old.weight.dtype}
        new: nn.Module
        if isinstance(old, nn.Linear):
            new = nn.Linear(old.in_features, classes, bias, **place)
        else:
            if old.groups != 1:
                raise StriateError(f"the head {self.head!r} is a grouped convolution and cannot be reset")
            new = nn.Conv2d(
                old.in_channels,
                classes,
                typing.cast(Any, old.kernel_size),
                typing.cast(Any, old.stride),
                typing.cast(Any, old.padding),
                typing.cast(Any, old.dilation),
                1,
                bias,
                **place,
            )
        new.train(old.training)
        parent, _, child = self.head.rpartition(".")
        setattr(self.tapped.get_submodule(parent), child, initialise(new, "uniform"))
        return self

    def spatial_stages(self, size: Size | None = None) -> tuple[StageInfo, ...]:
        """The stages whose output is still a map, before any flattening or global pooling."""
        from striate.nets.geometry import stage_geometry

        return tuple(info for info in stage_geometry(self, size) if info.spatial)

    def extra_repr(self) -> str:
        """Name and input, for printing."""
        height, width = self.input_size
        return f"{self.name}: {self.in_channels} x {height} x {width} -> {self.classes}"


def check_input(x: Tensor, channels: int, size: tuple[int, int], fixed: bool, minimum: int) -> None:
    """Refuse an input that the net cannot take, naming both sides."""
    if x.ndim != 4:
        raise StriateError(
            f"the input has shape {tuple(x.shape)}", allowed="(images, channels, height, width)"
        )
    if x.shape[1] != channels:
        raise StriateError(
            f"the input has {x.shape[1]} channels, the net takes {channels}",
            hint=f"give pictures of {channels} channels, or create the net with in_channels={x.shape[1]}",
        )
    height, width = x.shape[2], x.shape[3]
    if fixed and (height, width) != size:
        raise StriateError(
            f"the input is {height} x {width} pixels, the net takes {size[0]} x {size[1]} only",
            hint="resize the pictures, or create the net with that size",
        )
    if min(height, width) < minimum:
        raise StriateError(
            f"the input is {height} x {width} pixels",
            allowed=f"at least {minimum} x {minimum}",
            hint="enlarge the pictures, or create the net with size=64 or less for its small-image form",
        )
    if not x.is_floating_point():
        raise StriateError(f"the input holds {x.dtype}", hint="normalise it to floats first")


# Shapes are compared with numbers that symbolic tracing does not have: one node of the graph.
torch.fx.wrap("check_input")

NETS: Registry[Callable[..., Net]] = Registry("net", "striate.nets")


def create_net(
    name: str, classes: int, in_channels: int = 3, *, size: Size | None = None, **options: Any
) -> Net:
    """Build the net called `name` for `classes` classes and pictures of `in_channels` channels.

    `size` is the side (or height and width) of the pictures in pixels; at 64 or less, families that have a
    small-image form take it. `options` are the family's own and those of `dropping.OPTIONS`. The weights are
    drawn from PyTorch's global random state, so that the same seed gives the same net. Under
    `torch.device("meta")` no memory is taken.

    Raises:
        StriateError: an unknown net or option (with the nearest), or a value out of bounds.
    """
    entry = NETS.entry(name)
    _count("classes", classes)
    _count("in_channels", in_channels)
    check_options(name, options)
    chosen = {key: value for key, value in options.items() if key not in OPTIONS}
    if size is None:
        size = entry.capabilities["size"]
    for length in pair(size):
        _count("size", length)
    if "size" in inspect.signature(entry.value).parameters:
        chosen["size"] = size
    net = entry.value(classes, in_channels, **chosen)
    net.name, net.options, net.input_size = name, dict(options), pair(size)
    put_in(net, options)
    if not net.fixed_size and net.size < net.min_size:
        raise StriateError(
            f"size is {net.size}",
            allowed=f"at least {net.min_size} for net {name!r}",
            hint="enlarge the pictures",
        )
    return net


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """The net called `name` exists and has these options, and their values are of the right kinds.

    Raises:
        StriateError: an unknown net or option (with the nearest), or a value of another kind.
    """
    family = NETS.entry(name).value
    parameters = inspect.signature(family).parameters
    known = [key for key, p in parameters.items() if p.kind is p.KEYWORD_ONLY and key != "size"]
    known += OPTIONS
    kinds = typing.get_type_hints(family) | OPTIONS
    for key, value in options.items():
        if key not in known:
            raise unknown(f"option of net {name!r}", key, known)
        _check_option(name, key, value, kinds.get(key))


def usual(name: str) -> dict[str, int]:
    """The numbers of classes and of input channels that a registered net has if nothing is said."""
    parameters = inspect.signature(NETS.get(name)).parameters
    return {key: int(parameters[key].default) for key in ("classes", "in_channels")}


def skeleton(
    name: str, classes: int, in_channels: int = 3, *, size: Size | None = None, **options: Any
) -> Net:
    """As `create_net`, on the meta device: shapes without memory, to be checked and then filled."""
    with torch.device("meta"):
        return create_net(name, classes, in_channels, size=size, **options)


def initialise(module: nn.Module, scheme: str) -> nn.Module:
    """Draw the weights below `module` by a rule of `striate.layers.initialisation`; norms begin at 1 and 0.

    Raises:
        StriateError: an unknown rule, or one that goes by pictures.
    """
    rule = INITIALISATIONS.entry(scheme)
    if rule.capabilities.get("pictures"):
        raise StriateError(f"initialisation {scheme!r} goes by pictures", hint="call it with a batch of them")
    rule.value(module)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d) and layer.affine:
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)
    return module


def finish(net: Net, scheme: str, *, head: float = 1.0) -> Net:
    """Draw a new net's weights by `scheme`, and the head's by "uniform" times `head`: small first logits."""
    initialise(net, scheme)
    initialise(net.head_layer, "uniform")
    with torch.no_grad():
        net.head_layer.weight.mul_(head)
    return net


def pair(size: Size) -> tuple[int, int]:
    """`size` as (height, width)."""
    if isinstance(size, (tuple, list)):
        height, width = size
        return height, width
    return size, size


def is_small(size: Size) -> bool:
    """Whether pictures of this size get the small-image form."""
    return min(pair(size)) <= SMALL


def _count(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= LIMITS[name]:
        raise StriateError(f"{name} is {value!r}", allowed=f"a whole number from 1 to {LIMITS[name]}")


def _check_option(net: str, key: str, value: object, hint: Any) -> None:
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    fits = any(
        isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
        for kind in (*kinds, *((int,) if float in kinds else ()))
    )
    if not fits:
        words = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
        allowed = " or ".join(words.get(kind, str(kind)) for kind in kinds)
        raise StriateError(f"option {key!r} of net {net!r} is {value!r}", allowed=allowed)


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Refuse an option's value outside of [low, high]."""
    if not low <= value <= high:
        raise StriateError(f"{name} is {value!r}", allowed=f"{low:g} to {high:g}")
