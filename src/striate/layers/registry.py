"""The registry of layers."""

from __future__ import annotations

from torch import nn

from striate.core.registry import Registry

LAYERS: Registry[type[nn.Module]] = Registry("layer", "striate.layers")
