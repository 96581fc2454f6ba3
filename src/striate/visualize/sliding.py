"""Operations that slide a window over a map (convolutions, pools, padding), done on a part of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from striate.layers.convolution import convolve
from striate.layers.windows import sides_of
from striate.layers.winograd import both_ways
from striate.visualize.boxes import Window

CONV = (("weight", None), ("bias", None), ("stride", 1), ("padding", 0), ("dilation", 1), ("groups", 1))
MAX = (("kernel_size", None), ("stride", None), ("padding", 0), ("dilation", 1), ("ceil_mode", False),
       ("return_indices", False))  # fmt: skip
AVERAGE = (("kernel_size", None), ("stride", None), ("padding", 0), ("ceil_mode", False),
           ("count_include_pad", True), ("divisor_override", None))  # fmt: skip
PAD = (("pad", None), ("mode", "constant"), ("value", None))
CONVOLVE = (*CONV, ("value", 0.0))


def sliding(target: Any, x: Tensor, args: Any, kwargs: Any) -> dict[str, Any] | None:
    """The fields of a step for an operation that slides over the map x (1, C, H, W); None for any other."""
    kind = type(target)
    if kind is nn.Conv2d and target.padding_mode == "zeros":
        return _convolution(x, {name: getattr(target, name) for name, _ in CONV})
    if kind is nn.MaxPool2d:
        return _max_pool(x, {name: getattr(target, name) for name, _ in MAX})
    if kind is nn.AvgPool2d:
        return _average(x, {name: getattr(target, name) for name, _ in AVERAGE})
    if kind in (nn.ZeroPad2d, nn.ConstantPad2d):
        return _pad(x, {"pad": target.padding, "mode": "constant", "value": target.value})
    if target in (F.conv2d, torch.conv2d):
        return _convolution(x, _bound(CONV, args, kwargs))
    if target is convolve:
        given = _bound(CONVOLVE, args, kwargs)
        weight, stride, dilation = given["weight"], _two(given["stride"]), _two(given["dilation"])
        shape, kernel = (x.shape[-2], x.shape[-1]), (weight.shape[-2], weight.shape[-1])
        sides = sides_of(given["padding"], shape, kernel, stride, dilation)
        return {**_convolution(x, {**given, "padding": 0}, sides), "fill": float(given["value"])}
    if target in (F.max_pool2d, torch.max_pool2d):
        return _max_pool(x, _bound(MAX, args, kwargs))
    if target is F.avg_pool2d:
        return _average(x, _bound(AVERAGE, args, kwargs))
    if target is F.pad:
        return _pad(x, _bound(PAD, args, kwargs))
    return None


def _bound(names: Sequence[tuple[str, Any]], args: Any, kwargs: Any) -> dict[str, Any]:
    given = dict(zip([name for name, _ in names], args[1:], strict=False))
    return {name: given.get(name, kwargs.get(name, default)) for name, default in names}


def _two(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    return (int(value[0]), int(value[1])) if len(value) > 1 else (int(value[0]), int(value[0]))


def _convolution(
    x: Tensor, given: dict[str, Any], sides: tuple[int, int, int, int] | None = None
) -> dict[str, Any]:
    weight, bias, groups = given["weight"].detach(), given["bias"], int(given["groups"])
    bias = None if bias is None else bias.detach()
    stride, dilation, kernel = _two(given["stride"]), _two(given["dilation"]), weight.shape[-2:]
    if sides is None:
        if given["padding"] == "same":
            total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
            sides = (total[0] // 2, total[0] - total[0] // 2, total[1] // 2, total[1] - total[1] // 2)
        else:
            top, left = (0, 0) if given["padding"] == "valid" else _two(given["padding"])
            sides = (top, top, left, left)
    windows = []
    for axis in (0, 1):
        before, after, inside = sides[2 * axis], sides[2 * axis + 1], x.shape[2 + axis]
        reach = dilation[axis] * (kernel[axis] - 1) + 1
        out = (inside + before + after - reach) // stride[axis] + 1
        windows.append(Window(kernel[axis], stride[axis], before, dilation[axis], inside, out))
    ahead, back = both_ways(weight, bias, stride, dilation, groups)
    return {"run": ahead, "windows": tuple(windows), "macs": weight.numel(), "adjoint": back}


def _max_pool(x: Tensor, given: dict[str, Any]) -> dict[str, Any] | None:
    if given["return_indices"]:
        return None
    kernel, padding, dilation = _two(given["kernel_size"]), _two(given["padding"]), _two(given["dilation"])
    stride = _two(given["stride"] or kernel)
    out = F.max_pool2d(x, kernel, stride, padding, dilation, given["ceil_mode"])
    return {
        "run": lambda part: F.max_pool2d(part, kernel, stride, 0, dilation),
        "windows": _pool_windows(x, out, kernel, stride, padding, dilation),
        "fill": -math.inf,
        "switches": lambda whole: F.max_pool2d(
            whole, kernel, stride, padding, dilation, given["ceil_mode"], return_indices=True
        )[1],
    }


def _average(x: Tensor, given: dict[str, Any]) -> dict[str, Any]:
    kernel, padding = _two(given["kernel_size"]), _two(given["padding"])
    stride, area = _two(given["stride"] or kernel), math.prod(kernel)
    ones = torch.ones_like(x[:, :1])
    shares = (given["ceil_mode"], given["count_include_pad"], given["divisor_override"])
    mean = F.avg_pool2d(ones, kernel, stride, padding, *shares)
    windows = _pool_windows(x, mean, kernel, stride, padding, (1, 1))
    (top, bottom), (left, right) = ((w.before, w.after) for w in windows)
    # Units of the map in each window, over those that count: 1 but for windows at the border.
    inside = F.avg_pool2d(F.pad(ones, (left, right, top, bottom)), kernel, stride)
    scale = mean / inside.clamp_min(1 / area)
    return {
        "run": lambda part: F.avg_pool2d(part, kernel, stride),
        "windows": windows,
        "scale": None if bool((scale == 1).all()) else scale,
    }


def _pool_windows(
    x: Tensor, out: Tensor, kernel: Any, stride: Any, padding: Any, dilation: Any
) -> tuple[Window, Window]:
    y, z = (
        Window(kernel[a], stride[a], padding[a], dilation[a], x.shape[2 + a], out.shape[2 + a])
        for a in (0, 1)
    )
    return y, z


def _pad(x: Tensor, given: dict[str, Any]) -> dict[str, Any] | None:
    pads = given["pad"]
    left, right, top, bottom = (*((pads,) * 4 if isinstance(pads, int) else pads), 0, 0)[:4]
    count = 4 if isinstance(pads, int) else len(pads)
    if given["mode"] != "constant" or count > 4 or min(left, right, top, bottom) < 0:
        return None
    windows = (
        Window(1, 1, top, 1, x.shape[2], x.shape[2] + top + bottom),
        Window(1, 1, left, 1, x.shape[3], x.shape[3] + left + right),
    )
    return {"run": torch.clone, "windows": windows, "fill": float(given["value"] or 0)}
