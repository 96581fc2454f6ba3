"""Backward rules: what a rectifier does to the signal that runs back through it.

The rules act on autograd's own record of the pass, node by node, when a gradient is asked for. So it does not
matter how the net calls its rectifiers: as modules, functions or methods, in place, or one module many times;
and max pools send the signal to the very positions that won in that pass (their switches).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from striate.core.errors import StriateError, unknown
from striate.layers.winograd import Tiled

# What a rectifier does to a signal, as a function of the signal alone.
Rectify = Callable[[Tensor], Tensor]

RULES = {
    "plain": "the gradient",
    "deconvnet": "rectifiers rectify the signal, whatever they let through forward",
    "guided": "rectifiers pass the signal where they were active, and rectify it",
}
# Operators that no rule changes: linear ones, choices of a maximum, and the arithmetic of normalisation.
PASSED = {
    "Convolution", "MkldnnConvolution", "CudnnConvolution", "ConvolutionOverrideable", "Addmm", "Mm", "Bmm",
    "Baddbmm", "Mv", "Dot", "Linear", "T", "Transpose", "Permute", "View", "UnsafeView", "Reshape",
    "ReshapeAlias", "ReshapeCopy", "Alias", "AsStrided", "Expand", "Squeeze", "Unsqueeze", "Select", "Slice",
    "Split", "SplitWithSizes", "Unbind", "Cat", "Stack", "Add", "Sub", "Rsub", "Neg", "Mul", "Div", "Mean",
    "Sum", "AvgPool2D", "AvgPool3D", "MkldnnAdaptiveAvgPool2D", "AdaptiveAvgPool2D", "NativeBatchNorm",
    "CudnnBatchNorm", "MiopenBatchNorm", "NativeGroupNorm", "NativeLayerNorm", "MaxPool2DWithIndices",
    "MaxPool3DWithIndices", "AdaptiveMaxPool2D", "FractionalMaxPool2D", "MaxUnpool2D", "Max", "Amax",
    "ConstantPadNd", "ReflectionPad2D", "ReplicationPad2D", "UpsampleNearest2D", "UpsampleNearestExact2D",
    "UpsampleBilinear2D", "UpsampleBicubic2D", "PixelShuffle", "PixelUnshuffle", "Clone", "ToCopy", "Copy",
    "Contiguous", "Gather", "Index", "IndexSelect", "Flip", "Roll", "Pow", "Sqrt", "Rsqrt", "Reciprocal",
    "LiftFresh", "NativeDropout", Tiled.__name__,
}  # fmt: skip


@dataclass
class Rule:
    """A rule at work. `rectifiers` counts those that the last gradient ran through."""

    name: str
    rectifiers: int = 0


class _NoMeaning(Exception):
    """An operator at which a rule says nothing; holds what it is in words."""


@contextmanager
def backward_rule(name: str) -> Iterator[Rule]:
    """Inside the block, every gradient runs back by the rule called `name`.

    For a rectifier y = f(x), f being ReLU, ReLU6, a leaky or parametric ReLU with slopes of at least 0, and
    a signal g on y, the signal on x is: "plain": f'(x) g; "deconvnet": f(g); "guided": f'(x) f(g); ReLU6
    rectifies a signal as ReLU does. All else sends back its gradient: convolutions their transposed filters,
    max pools to their switches, sums to all summands. The forward pass may be made inside or before the
    block; `backward()` and `torch.autograd.grad` called inside follow the rule; nothing is left behind.

    Simonyan et al. (arXiv:1312.6034), section 4; Zeiler and Fergus (arXiv:1311.2901), section 2.1;
    Springenberg et al. (arXiv:1412.6806), section 3.4.

    Raises:
        StriateError: an unknown rule. And where a gradient is asked for: an activation for which
            "deconvnet" and "guided" have no meaning (a smooth or saturating one, or an operator unknown
            here that could be one) lies between the picture and the output.
    """
    if name not in RULES:
        raise unknown("backward rule", name, RULES)
    rule = Rule(name)
    if name == "plain":
        yield rule
        return
    with _Asked(rule):
        yield rule


class _Asked(TorchFunctionMode):  # type: ignore[no-untyped-call, misc, unused-ignore]
    """Puts the rule onto the record of the pass whenever a gradient is asked for."""

    def __init__(self, rule: Rule) -> None:
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]
        self.rule = rule

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run a function; one that asks for a gradient, by the rule."""
        kwargs = kwargs or {}
        if func is torch.autograd.grad:
            roots, inputs = args[0], args[1] if len(args) > 1 else kwargs["inputs"]
        elif func is Tensor.backward or func is torch.autograd.backward:
            roots, inputs = args[0], kwargs.get("inputs")
        else:
            return func(*args, **kwargs)
        with ExitStack() as hooks:
            _attach(self.rule, _tensors(roots), None if inputs is None else _tensors(inputs), hooks)
            return func(*args, **kwargs)


def _attach(rule: Rule, roots: Sequence[Tensor], inputs: Sequence[Tensor] | None, hooks: ExitStack) -> None:
    """Hook every rectifier between the roots and the inputs; `hooks` takes them off again."""
    rule.rectifiers = 0
    for node in _between(roots, inputs):
        try:
            rectify = _rectifier(node)
        except _NoMeaning as error:
            raise StriateError(
                f"the {rule.name} rule has no meaning for {error}",
                allowed="rectifiers: ReLU, leaky ReLU, PReLU, ReLU6",
                hint="the plain gradient has one: saliency, smoothgrad, integrated-gradients",
            ) from None
        if rectify is not None:
            rule.rectifiers += 1
            hooks.callback(node.register_hook(_ruled(rule.name, rectify)).remove)


def _ruled(name: str, rectify: Rectify) -> Callable[[Any, Any], Any]:
    """The hook of one rectifier: its gradients below (of x, and of slopes) from that above."""

    def hook(below: tuple[Tensor | None, ...], above: tuple[Tensor | None, ...]) -> Any:
        signal = above[0] if name == "deconvnet" else below[0]
        # f'(x) >= 0 and f is positively homogeneous, so f'(x) f(g) = f(f'(x) g).
        return (None if signal is None else rectify(signal), *below[1:])

    return hook


def _between(roots: Sequence[Tensor], inputs: Sequence[Tensor] | None) -> list[Any]:
    """The nodes on the way from `roots` to `inputs`; without inputs, to any leaf but the net's weights."""
    wanted = {id(x) for x in inputs or () if x.grad_fn is None}
    targets = {x.grad_fn for x in inputs or () if x.grad_fn is not None}
    leads: dict[Any, bool] = {}
    stack = [(root.grad_fn, False) for root in roots if root.grad_fn is not None]
    while stack:
        node, done = stack.pop()
        below = [child for child, _ in node.next_functions if child is not None]
        if done:
            leads[node] = node in targets or any(leads.get(child, False) for child in below)
        elif node not in leads:
            leads[node] = False
            leaf = getattr(node, "variable", None)
            if leaf is not None:
                leads[node] = id(leaf) in wanted if inputs is not None else not isinstance(leaf, nn.Parameter)
                continue
            stack.append((node, True))
            stack += [(child, False) for child in below if child not in leads]
    return [node for node, led in leads.items() if led and not hasattr(node, "variable")]


def _rectifier(node: Any) -> Rectify | None:
    """What the node does to a signal if it is a rectifier; None for an operator that no rule changes.

    Raises:
        _NoMeaning: it is neither.
    """
    kind = re.sub(r"Backward\d*$", "", node.name().rpartition("::")[2])
    slope = _slope(kind, node)
    if slope is not None:
        return torch.relu if isinstance(slope, float) and slope == 0 else _leaky(slope)
    if kind == "Maximum":
        return torch.relu if _with_zero(node) else None
    if kind == "Mul":
        _refuse_masks(node)
    if kind not in PASSED:
        raise _NoMeaning(f"the operator {kind!r}, which is no rectifier known here")
    return None


def _slope(kind: str, node: Any) -> float | Tensor | None:
    """The slope of a rectifier below 0, 0 for ReLU; None where the node is no rectifier by its name."""
    if kind == "Relu":
        return 0.0
    if kind in ("LeakyRelu", "PreluKernel", "RreluWithNoise"):
        if kind == "RreluWithNoise" and node._saved_training:
            raise _NoMeaning("a randomised ReLU in training")
        slope = (
            node._saved_negative_slope
            if kind == "LeakyRelu"
            else node._saved_weight.detach()
            if kind == "PreluKernel"
            else (node._saved_lower + node._saved_upper) / 2
        )
        if bool((torch.as_tensor(slope) < 0).any()):
            raise _NoMeaning("a ReLU with a negative slope")
        return slope if isinstance(slope, Tensor) else float(slope)
    if kind in ("Hardtanh", "Clamp", "ClampMin", "Threshold"):
        name = {"Hardtanh": "_saved_min_val", "Threshold": "_saved_threshold"}.get(kind, "_saved_min")
        low = getattr(node, name)
        if low is None or (isinstance(low, Tensor) and low.numel() > 1) or float(low) != 0:
            raise _NoMeaning(f"{kind!r}, which does not cut at 0 (it cuts at {low})")
        return 0.0
    return None


def _leaky(slope: float | Tensor) -> Rectify:
    return lambda signal: torch.where(signal > 0, signal, signal * slope)


def _with_zero(node: Any) -> bool:
    """Whether a maximum is one with 0: a ReLU; a maximum of two maps (maxout) chooses."""
    for (source, _), name in zip(node.next_functions, ("_saved_self", "_saved_other"), strict=False):
        if source is None:
            if bool(getattr(node, name).any()):
                raise _NoMeaning("a maximum with a constant other than 0")
            return True
    return False


def _refuse_masks(node: Any) -> None:
    """A product with a mask of 0 and 1 could be a rectifier, x * (x > 0), that no rule would reach."""
    for (source, _), name in zip(node.next_functions, ("_saved_self", "_saved_other"), strict=False):
        factor = getattr(node, name) if source is None else None
        if isinstance(factor, Tensor) and factor.numel() > 1 and factor.ndim > 1:
            zero, one = factor == 0, factor == 1
            if factor.dtype is torch.bool or bool((zero | one).all() and zero.any() and one.any()):
                raise _NoMeaning("a product with a mask of 0 and 1")


def _tensors(values: Any) -> list[Tensor]:
    if isinstance(values, Tensor):
        return [values]
    return [x for x in values if isinstance(x, Tensor)] if isinstance(values, Iterable) else []
