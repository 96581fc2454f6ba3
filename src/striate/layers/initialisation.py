"""How weights begin, each rule a function of a module and its own settings.

A rule that is registered with `pictures` also takes a batch, as LSUV does (`striate.nets.lsuv`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn

from striate.core.errors import StriateError
from striate.core.registry import Registry

M = TypeVar("M", bound=nn.Module)


INITIALISATIONS: Registry[Callable[..., nn.Module]] = Registry("initialisation", "striate.layers")
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
PLAIN = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)


def weighted(module: nn.Module) -> Iterator[nn.Module]:
    """The layers at and below `module` that these rules are for, in order of definition.

    Linear layers, convolutions, and every layer with a `weight` and a method `fans`; those whose weights are
    fixed (the codes of LeNet-5's output units) or without memory (on the meta device) are left out.
    """
    for layer in module.modules():
        if isinstance(layer, PLAIN) or (hasattr(layer, "fans") and isinstance(layer.weight, Tensor)):
            weight = layer.weight
            assert isinstance(weight, Tensor)  # by the line above
            if weight.requires_grad and not weight.is_meta:
                yield layer


def fans(layer: nn.Module) -> tuple[float, float]:
    """How many inputs a unit has, and how many units an input reaches (at stride 1).

    Layers with weights of another form tell it by a method `fans`. A transposed convolution gathers each
    output from a window of kernel / stride positions along each axis.
    """
    own = getattr(layer, "fans", None)
    if own is not None:
        count_in, count_out = own()
        return float(count_in), float(count_out)
    weight = layer.weight
    assert isinstance(weight, Tensor)  # by `weighted`
    area = weight[0, 0].numel()
    groups = getattr(layer, "groups", 1)
    if isinstance(layer, TRANSPOSED):
        share = area / math.prod(layer.stride)
        return weight.shape[0] // groups * share, weight.shape[1] * area
    return weight.shape[1] * area, weight.shape[0] // groups * area


def _draw(module: M, rule: Callable[[nn.Module, Tensor], None]) -> M:
    with torch.no_grad():
        for layer in weighted(module):
            weight, bias = layer.weight, getattr(layer, "bias", None)
            assert isinstance(weight, Tensor)  # by `weighted`
            rule(layer, weight)
            if isinstance(bias, Tensor):
                bias.zero_()
    return module


@INITIALISATIONS.register(paper="NIPS 2012, section 5 (standard deviation 0.01)")
def gaussian(module: M, std: float = 0.01) -> M:
    """Draw all weights from a normal distribution of standard deviation `std`; biases 0.

    Krizhevsky, Sutskever & Hinton 2012, section 5: 0.01. Acts on every layer that `weighted` finds.

    Raises:
        StriateError: `std` is below 0.
    """
    if not 0 <= std < math.inf:
        raise StriateError(f"std is {std!r}", allowed="a number from 0")
    return _draw(module, lambda _, weight: _normal(weight, std))


@INITIALISATIONS.register(paper="Glorot & Bengio, AISTATS 2010, equation 16")
def xavier(module: M) -> M:
    """Draw weights uniformly with variance 2 / (n + m), n inputs to a unit, m units from an input; biases 0.

    Within sqrt(6 / (n + m)); Glorot & Bengio 2010. In groups, only the group's own units count.
    """

    def rule(layer: nn.Module, weight: Tensor) -> None:
        bound = math.sqrt(6 / sum(fans(layer)))
        weight.uniform_(-bound, bound)

    return _draw(module, rule)


@INITIALISATIONS.register(paper="arXiv:1502.01852, equations 10 and 15")
def he(module: M, slope: float = 0.0) -> M:
    """Draw weights normally with variance 2 / ((1 + slope^2) n), n inputs to a unit; biases 0.

    He et al. 2015: keeps the scale of what passes through layers with rectifiers of this negative slope.
    """

    def rule(layer: nn.Module, weight: Tensor) -> None:
        _normal(weight, math.sqrt(2 / ((1 + slope * slope) * fans(layer)[0])))

    return _draw(module, rule)


@INITIALISATIONS.register(paper="Efficient BackProp, 1998, section 4.6")
def lecun(module: M) -> M:
    """Draw weights normally with variance 1 / n, n inputs to a unit; biases 0.

    LeCun, Bottou, Orr & Mueller 1998: keeps the scale of what passes through linear units.
    """
    return _draw(module, lambda layer, weight: _normal(weight, math.sqrt(1 / fans(layer)[0])))


@INITIALISATIONS.register(paper="PyTorch's own, of its linear layers and convolutions")
def uniform(module: M) -> M:
    """Draw weights and biases uniformly within 1 / sqrt(n), n inputs to a unit: variance 1 / (3 n)."""
    with torch.no_grad():
        for layer in weighted(module):
            bound = fans(layer)[0] ** -0.5
            for values in (layer.weight, getattr(layer, "bias", None)):
                if isinstance(values, Tensor):
                    values.uniform_(-bound, bound)
    return module


@INITIALISATIONS.register(paper="arXiv:1312.6120, section 3")
def orthogonal(module: M, gain: float = 1.0) -> M:
    """Draw weights as random orthogonal matrices times `gain`, one row a unit's weights; biases 0.

    Saxe et al. 2013. With more units than inputs the columns are orthogonal instead. Each group of a
    convolution is a matrix of its own; layers with weights of another form tell theirs by `matrices`.
    """

    def rule(layer: nn.Module, weight: Tensor) -> None:
        own = getattr(layer, "matrices", None)
        for matrix in own() if own is not None else weight.chunk(getattr(layer, "groups", 1)):
            nn.init.orthogonal_(matrix, gain)

    return _draw(module, rule)


def _normal(weight: Tensor, std: float) -> None:
    weight.normal_(0, std) if std > 0 else weight.zero_()
