"""The net of neural style's paper: average pools, and filters scaled to a mean activation of 1."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from striate.core.errors import StriateError
from striate.model import Model
from striate.nets.net import Net


def paper_form(model: Model, samples: Sequence[Tensor], average: bool) -> Model:
    """A copy of a model as Gatys et al. 2015 used VGG-19; the model itself stays as it is.

    average: max pools become average pools of the same windows. samples: pictures (1, C, h, w) in 0 .. 1;
    with some, the filters of a chain of convolutions and ReLUs are scaled so that the mean activation of each
    over pictures and positions is 1, which leaves the function of the chain as it was up to that scale.

    Raises:
        StriateError: filters are to be scaled in a net that is not such a chain.
    """
    # The linear layers are shared: they are large, and no style is taken from them.
    linear = [m for m in model.net.modules() if isinstance(m, nn.Linear)]
    net = copy.deepcopy(model.net, {id(p): p for layer in linear for p in layer.parameters()})
    if average:
        _average(net)
    made = Model(net, model.task, model.preprocess, model.card)
    if samples:
        _scale(made, samples)
    return made


def _average(net: nn.Module) -> None:
    for parent in net.modules():
        for name, child in parent.named_children():
            if type(child) is nn.MaxPool2d:
                pool: Any = child
                average = nn.AvgPool2d(
                    pool.kernel_size, pool.stride, pool.padding, pool.ceil_mode, count_include_pad=False
                )
                setattr(parent, name, average.train(pool.training))


def _scale(model: Model, samples: Sequence[Tensor]) -> None:
    """Scale each filter by its mean activation, and the next filters' inputs back."""
    net = model.net
    if not isinstance(net, Net) or type(net).forward is not Net.forward:
        raise _no_chain("it is not a sequence of stages")
    maps = [model.preprocess.standardise(sample).to(model.device) for sample in samples]
    conv: nn.Conv2d | None = None
    back: Tensor | None = None
    with torch.no_grad():
        for name in net.stage_names:
            stage = net.get_submodule(name)
            if isinstance(stage, nn.Conv2d) and stage.groups == 1:
                if back is not None:
                    stage.weight.mul_(back.view(1, -1, 1, 1))
                conv, back = stage, None
            elif isinstance(stage, nn.ReLU) and conv is not None:
                level = torch.stack([torch.relu(x).mean((0, 2, 3)) for x in maps]).mean(0)
                # A filter that never answers stays as it is.
                level = torch.where(level > 1e-6, level, torch.ones_like(level))
                conv.weight.div_(level.view(-1, 1, 1, 1))
                if conv.bias is not None:
                    conv.bias.div_(level)
                maps = [x / level.view(1, -1, 1, 1) for x in maps]
                back, conv = level, None
            elif not isinstance(stage, (nn.MaxPool2d, nn.AvgPool2d, nn.Dropout, nn.Dropout2d)):
                if isinstance(stage, (nn.Flatten, nn.Linear, nn.AdaptiveAvgPool2d)) and back is not None:
                    # What follows has no maps to take a style from.
                    return
                raise _no_chain(f"stage {name!r} is {type(stage).__name__}")
            maps = [stage(x) for x in maps]


def _no_chain(reason: str) -> StriateError:
    return StriateError(
        f"the filters of this net cannot be scaled: {reason}",
        allowed="chains of convolutions, ReLUs and pools, such as VGG",
        hint="leave --normalised out",
    )
