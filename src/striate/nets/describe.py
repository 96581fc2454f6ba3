"""What a layer is, in the short form of the papers' tables: "3x3 conv, 64, /2"."""

from __future__ import annotations

from typing import Any

from torch import nn

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm)
# Registered layers of this project are known by the ends of their names: a new file needs no edit here.
ROLES = {
    "norm": ("norm",),
    "activation": ("relu", "relu6", "elu", "tanh", "sigmoid", "maxout", "hardswish", "silu", "gelu", "prelu"),
    "pool": ("pool", "pool1d", "pool2d", "pool3d", "subsample", "switches"),
    "dropout": ("dropout", "dropout2d", "droppath"),
    "convolution": ("conv", "conv2d"),
    "connected": ("linear",),
}
NAMES = {
    "LocalResponseNorm": "local response norm",
    "LocalContrastNorm": "local contrast norm",
    "GlobalAveragePool": "global average pool",
    "GlobalMaxPool": "global max pool",
    "BatchNorm1d": "batch norm",
    "BatchNorm2d": "batch norm",
    "Flatten": "flatten",
    "Identity": "identity",
    "PadShortcut": "subsampling, zero maps",
}


def role(module: nn.Module | None) -> str:
    """What a module is for: convolution, connected, pool, norm, activation, dropout, shape, or other."""
    if isinstance(module, CONVOLUTIONS):
        return "convolution"
    if isinstance(module, nn.Linear):
        return "connected"
    if isinstance(module, NORMS):
        return "norm"
    if isinstance(module, (nn.Flatten, nn.Identity)):
        return "shape"
    kind = type(module).__name__.lower()
    for name, ends in ROLES.items():
        if kind.endswith(ends):
            return name
    if type(module).__module__ == "torch.nn.modules.activation":
        return "activation"
    return "other"


def describe(module: nn.Module) -> str:
    """A module in the words of a paper's table; composite ones by their weighted layers and pools."""
    kind = role(module)
    if kind == "convolution" and hasattr(module, "kernel_size"):
        return _convolution(module)
    if kind == "connected":
        units = getattr(module, "out_features", None)
        pieces = f", {module.pieces} pieces" if hasattr(module, "pieces") else ""
        return (f"fc, {units}" if units is not None else type(module).__name__) + pieces
    if kind == "pool" and hasattr(module, "kernel_size"):
        return _pool(module)
    if isinstance(module, nn.Dropout):
        return f"dropout {module.p:g}"
    name = type(module).__name__
    children = list(module.children())
    if children and name not in NAMES:
        return composite(module)
    return NAMES.get(name, name)


def composite(module: nn.Module) -> str:
    """The convolutions and linear layers below a module in order of definition, about 64 letters."""
    parts = []
    for layer in module.modules():
        if not any(True for _ in layer.children()) and role(layer) in ("convolution", "connected"):
            parts.append(describe(layer).replace(" conv,", "").replace("fc, ", "fc "))
    told, last = "", ""
    for part in parts:
        last = told
        told = f"{told}; {part}" if told else part
        if len(told) > 64:
            return f"{last}; ..." if last else told
    return told or type(module).__name__


def _convolution(layer: Any) -> str:
    # Convolutions with tables or biases of their own have neither groups nor dilation.
    channels, groups = layer.in_channels, getattr(layer, "groups", 1)
    parts = [f"{_by(layer.kernel_size)} conv", str(layer.out_channels)]
    if max(_all(layer.stride)) > 1:
        parts.append(f"/{_short(layer.stride)}")
    if groups > 1:
        parts.append("depthwise" if groups == channels == layer.out_channels else f"{groups} groups")
    if max(_all(getattr(layer, "dilation", 1))) > 1:
        parts.append(f"dilation {_short(layer.dilation)}")
    if isinstance(layer, CONVOLUTIONS[3:]):
        parts[0] = f"{_by(layer.kernel_size)} transposed conv"
    return ", ".join(parts)


def _pool(layer: Any) -> str:
    name = type(layer).__name__.lower().removesuffix("2d").removesuffix("pool")
    name = {"avg": "average", "": "", "trainablesubsample": "trainable"}.get(name, name)
    stride = getattr(layer, "stride", None) or layer.kernel_size
    return " ".join(filter(None, [_by(layer.kernel_size), name, "pool"])) + f", /{_short(stride)}"


def _all(values: Any) -> tuple[int, ...]:
    return (values,) if isinstance(values, int) else tuple(values)


def _by(values: Any) -> str:
    several = _all(values)
    return "x".join(map(str, several if len(several) > 1 else several * 2))


def _short(values: Any) -> str:
    several = _all(values)
    return str(several[0]) if len(set(several)) == 1 else "x".join(map(str, several))
