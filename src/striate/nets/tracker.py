"""One pass on the meta device, by operators: what they cost, and which pixels each value depends on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from striate.core.errors import StriateError, first_line
from striate.nets.taps import leaves_as_found, shadow, stage, stepping


@dataclass(frozen=True)
class Axis:
    """Reach along one axis: unit i depends on the pixels from i * stride + low up to, not with, + high."""

    stride: int = 1
    low: int = 0
    high: int = 1

    def window(self, kernel: int, stride: int, padding: int, dilation: int = 1) -> Axis:
        """After a window of `kernel` units (arXiv:1603.07285, relationship 14, run backwards)."""
        reach = dilation * (kernel - 1) - padding
        return Axis(self.stride * stride, self.low - padding * self.stride, self.high + reach * self.stride)

    def shift(self, units: int, step: int = 1) -> Axis:
        """After leaving out `units` units in front (padding: negative) and taking every `step`-th."""
        offset = units * self.stride
        return Axis(self.stride * step, self.low + offset, self.high + offset)

    def join(self, other: Axis) -> Axis | None:
        """Of a value that depends on both; None where they do not lie on one grid."""
        if self.stride != other.stride:
            return None
        return Axis(self.stride, min(self.low, other.low), max(self.high, other.high))


Reach = tuple[Axis, Axis]
# Operators whose output has, at each position, no more than its input there.
SAME = {
    "batch_norm", "_native_batch_norm_legit_no_training", "native_batch_norm", "cudnn_batch_norm",
    "hardtanh", "hardswish", "hardsigmoid", "_prelu_kernel", "prelu", "elu", "mish", "clone", "_to_copy",
    "detach", "alias", "lift_fresh", "native_dropout", "contiguous",
}  # fmt: skip
SHAPES = {
    "view", "_unsafe_view", "reshape", "_reshape_alias", "unsqueeze", "squeeze", "permute", "transpose",
    "expand",
}  # fmt: skip
OVER_CHANNELS = {"mean", "sum", "amax", "amin", "_softmax", "_log_softmax", "max", "min", "argmax"}
POOLS = {"max_pool2d_with_indices", "max_pool2d", "avg_pool2d", "avg_pool3d", "max_pool3d_with_indices"}
# How PyTorch answers an input that a module cannot take.
FAILURES = (RuntimeError, TypeError, ValueError, AttributeError, LookupError)
PADS = {"constant_pad_nd", "reflection_pad2d", "replication_pad2d"}


class Tracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows every operator: multiply-adds and bytes to `spend`, and the reach of every tensor.

    What is not understood counts as depending on the whole picture, never on less than it does.
    """

    def __init__(self, spend: Callable[[int, int], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.spend = spend
        # id -> tensor (kept, so that no id is used twice) and reach; None: the whole picture.
        # What is not in here does not depend on the picture.
        self._known: dict[int, tuple[Tensor, Reach | None]] = {}

    def start(self, x: Tensor) -> None:
        """Take `x` as the picture."""
        self._known[id(x)] = (x, (Axis(), Axis()))

    def reach(self, x: object) -> Reach | None:
        """What a tensor's units depend on along height and width; None for the whole picture."""
        found = self._known.get(id(x))
        return found[1] if found is not None else None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operator and note what it did."""
        kwargs = kwargs or {}
        result: Any = normed(func, args)
        if result is None and func._can_decompose():
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        if result is None or result is NotImplemented:
            result = func(*args, **kwargs)
        name = func._schema.name.split("::")[-1]
        outputs = [t for t in _flat(result) if isinstance(t, Tensor)]
        if outputs:
            output = outputs[0]
            made = not any(r.alias_info is not None for r in func._schema.returns)
            self.spend(multiply_adds(name, args, output), output.numel() * output.element_size() * made)
            inputs = [t for t in _flat((args, tuple(kwargs.values()))) if isinstance(t, Tensor)]
            if any(id(t) in self._known for t in inputs):
                if name.endswith("_"):
                    self._spoil_views(output)
                for other in outputs[1:]:
                    self._known[id(other)] = (other, None)
                self._known[id(output)] = (output, self._follow(name.rstrip("_"), func, args, inputs, output))
        return result

    def _follow(
        self, name: str, func: Any, args: tuple[Any, ...], inputs: list[Tensor], output: Tensor
    ) -> Reach | None:
        if output.ndim < 3:
            return None
        if name == "cat":
            dim = args[1] if len(args) > 1 else 0
            return self._joined(inputs, output) if dim in (1, 1 - output.ndim) else None
        if torch.Tag.pointwise in func.tags and name not in SAME:
            return self._joined(inputs, output)
        first = inputs[0]
        reach = self.reach(first)
        if reach is None or any(id(t) in self._known for t in inputs[1:]):
            return None
        if name in SAME or (
            (name in SHAPES or name in OVER_CHANNELS) and _keeps_maps(name, args, first, output)
        ):
            return reach
        if name == "convolution" and not args[6]:
            return _windows(reach, args[1].shape[2:], args[3], args[4], args[5])
        if name in POOLS:
            stride = args[2] if len(args) > 2 and args[2] else args[1]
            padding = args[3] if len(args) > 3 else 0
            dilation = args[4] if len(args) > 4 and name.startswith("max") else 1
            return _windows(reach, args[1], stride, padding, dilation)
        if name in PADS:
            pads = [*args[1], 0, 0, 0, 0]
            return reach[0].shift(-pads[2]), reach[1].shift(-pads[0])
        if name == "slice":
            return _sliced(reach, args, first)
        return None

    def _joined(self, inputs: Sequence[Tensor], output: Tensor) -> Reach | None:
        """Of a value computed from several maps at the same position."""
        joined: Reach | None = None
        for x in inputs:
            if id(x) not in self._known:
                continue
            reach = self.reach(x)
            if reach is None or x.shape[-2:] != output.shape[-2:]:
                return None
            if joined is None:
                joined = reach
                continue
            y_axis, x_axis = joined[0].join(reach[0]), joined[1].join(reach[1])
            if y_axis is None or x_axis is None:
                return None
            joined = y_axis, x_axis
        return joined

    def _spoil_views(self, changed: Tensor) -> None:
        """After an in-place operation, other views of the same memory depend on who knows what."""
        storage = changed.untyped_storage()._cdata
        for key, (tensor, _) in list(self._known.items()):
            if tensor is not changed and tensor.untyped_storage()._cdata == storage:
                self._known[key] = (tensor, None)


@dataclass
class Passed:
    """What one stage did in a pass of one picture: its output's shape without the batch, and what it cost."""

    name: str
    kind: str
    parameters: int
    shape: tuple[int, ...] = ()
    reach: Reach | None = None
    multiply_adds: int = 0
    bytes: int = 0
    calls: int = 0


BETWEEN = "(between stages)"


def walk(net: nn.Module, size: tuple[int, int], channels: int, names: Sequence[str]) -> list[Passed]:
    """Pass one picture through the named stages, in the order in which they ran; the net is not touched.

    The pass is made on the meta device; where a foreign module cannot run there, on itself with zeros.
    What is computed outside of all stages is the entry "(between stages)", if it costs multiply-adds.

    Raises:
        StriateError: the net cannot take such a picture.
    """
    kind = next((t.dtype for t in net.parameters() if t.is_floating_point()), torch.float32)
    foreign = getattr(net, "tapped", None) is not net
    try:
        return _pass(shadow(net), torch.empty(1, channels, *size, device="meta", dtype=kind), names)
    except (*FAILURES, StriateError) as error:
        if not foreign and isinstance(error, StriateError):
            raise
        failure: Exception = error
    if foreign:
        device = next((t.device for t in (*net.parameters(), *net.buffers())), torch.device("cpu"))
        try:
            with leaves_as_found(net):
                return _pass(net.eval(), torch.zeros(1, channels, *size, device=device, dtype=kind), names)
        except FAILURES as error:
            failure = error
    reason = first_line(failure)
    raise StriateError(
        f"the net cannot take a picture of {channels} x {size[0]} x {size[1]} ({reason})",
        hint="give another size or number of channels",
    ) from failure


def _pass(net: nn.Module, x: Tensor, names: Sequence[str]) -> list[Passed]:
    rows: dict[str, Passed] = {}
    between = Passed(BETWEEN, "", 0)
    running: list[Passed] = []
    counted: set[int] = set()

    def spend(work: int, fresh: int) -> None:
        row = running[-1] if running else between
        row.multiply_adds += work
        row.bytes += fresh

    def enter(name: str, _: tuple[Any, ...]) -> None:
        if name not in rows:
            module = stage(net, name)
            # A module under two names, or weights that two share, count once.
            own = {id(p): p.numel() for p in module.parameters() if id(p) not in counted}
            counted.update(own)
            rows[name] = Passed(name, type(module).__name__, sum(own.values()))
        rows[name].calls += 1
        running.append(rows[name])

    def leave(name: str, output: Any) -> None:
        row = running.pop()
        first = next((t for t in _flat(output) if isinstance(t, Tensor)), None)
        if row.calls == 1 and first is not None:
            row.shape = tuple(first.shape[1:])
            row.reach = tracker.reach(first)

    tracker = Tracker(spend)
    with torch.inference_mode(), stepping(net, names, enter=enter, leave=leave), tracker:
        # Made inside: the picture, too, must be an inference tensor, or its views get new identities.
        picture = torch.zeros_like(x)
        between.bytes = 0
        tracker.start(picture)
        net(picture)
    return [*rows.values(), *([between] if between.multiply_adds else [])]


def normed(func: Any, args: Sequence[Any]) -> Tensor | None:
    """The output of a batch norm in evaluation on the meta device; None for all else.

    It has its input's form; PyTorch works that out through a dozen operators, for half the time of a pass.
    """
    if func is not torch.ops.aten.batch_norm.default or len(args) < 6 or args[5] or not args[0].is_meta:
        return None
    x, *others = args[:5]
    fits = all(t is None or t.shape == x.shape[1:2] for t in others) and others[2] is not None
    return torch.empty_like(x) if fits and x.is_floating_point() else None


class Outlined(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Passes on the meta device take no time for batch norms."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operator."""
        result = normed(func, args)
        return func(*args, **(kwargs or {})) if result is None else result


def multiply_adds(name: str, args: Sequence[Any], output: Tensor) -> int:
    """Products of a convolution or matrix product; biases, norms, activations and pooling count nothing."""
    if name == "convolution":
        # A transposed convolution spreads each input value, an ordinary one gathers each output value.
        values = args[0] if args[6] else output
        return int(values.numel()) * int(args[1][0].numel())
    if name in ("mm", "bmm"):
        return output.numel() * int(args[0].shape[-1])
    if name in ("addmm", "baddbmm"):
        return output.numel() * int(args[1].shape[-1])
    return 0


def _windows(reach: Reach, kernel: Any, stride: Any, padding: Any, dilation: Any) -> Reach:
    y, x = (
        axis.window(_last(kernel, i), _last(stride, i), _last(padding, i), _last(dilation, i))
        for i, axis in ((-2, reach[0]), (-1, reach[1]))
    )
    return y, x


def _last(values: Any, place: int) -> int:
    """The value for an axis counted from the end; one value serves all axes."""
    if isinstance(values, int):
        return values
    return int(values[place] if len(values) > 1 else values[0])


def _keeps_maps(name: str, args: tuple[Any, ...], before: Tensor, after: Tensor) -> bool:
    """Whether a change of shape, or a sum over an axis, leaves height and width where they are."""
    if name in ("view", "_unsafe_view", "reshape", "_reshape_alias", "unsqueeze", "squeeze", "expand"):
        return before.shape[-2:] == after.shape[-2:] and after.ndim >= 3
    n = before.ndim
    if name == "permute":
        return [d % n for d in args[1]][-2:] == [n - 2, n - 1]
    if name == "transpose":
        return all(d % n < n - 2 for d in args[1:3])
    given = args[1] if len(args) > 1 else None
    dims = [given] if isinstance(given, int) else list(given or [])
    return bool(dims) and all(d % n < n - 2 for d in dims) and before.shape[-2:] == after.shape[-2:]


def _sliced(reach: Reach, args: tuple[Any, ...], before: Tensor) -> Reach:
    given = [*args[1:], *[0, None, None, 1][len(args) - 1 :]]
    start, step = given[1], int(given[3])
    place = int(given[0]) % before.ndim - before.ndim
    if place < -2:
        return reach
    length = before.shape[place]
    start = 0 if start is None else max(0, start + length if start < 0 else start)
    y, x = reach
    return (y.shift(start, step), x) if place == -2 else (y, x.shift(start, step))


def _flat(values: Any) -> list[Any]:
    if isinstance(values, (tuple, list)):
        return [leaf for value in values for leaf in _flat(value)]
    return [values]
