"""Nets made from nets: dense form, stages left out, batch norm folded, weights grown from a shallower net."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from striate.core.errors import StriateError
from striate.layers.pooling import GlobalAveragePool, GlobalMaxPool
from striate.layers.regularization import DropConnectLinear, DropConnectWindows
from striate.nets.ablation import Ablated as Ablated
from striate.nets.ablation import ablate as ablate
from striate.nets.ablation import check_chain
from striate.nets.ablation import removable as removable
from striate.nets.folding import fold_batch_norm as fold_batch_norm
from striate.nets.geometry import stage_geometry
from striate.nets.net import Net
from striate.nets.taps import leaves_as_found, shadow
from striate.nets.tracker import FAILURES

Shape = tuple[int, ...]
GLOBAL_MEANS = (GlobalAveragePool, nn.AdaptiveAvgPool2d)
GLOBAL_MAXIMA = (GlobalMaxPool, nn.AdaptiveMaxPool2d)
LINEAR = (nn.Linear, DropConnectLinear)


class Dense(Net):
    """A classifier in fully convolutional form: (N, C, H, W) floats -> logits (N, classes, h, w), any range.

    A picture of the training size gives a map of one position. Larger pictures give the classifier's answer
    at every position of a window of that size which moves by the net's stride; softmax over the classes
    makes them posteriors. At the borders of a window the classifier sees padding where the dense form sees
    the rest of the picture. Made by `dense`.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Run the stages: (N, C, H, W) -> logits (N, classes, h, w).

        Raises:
            StriateError: as of `Net.forward`; a picture below the training size.
        """
        if x.ndim == 4 and (x.shape[2] < self.input_size[0] or x.shape[3] < self.input_size[1]):
            raise StriateError(
                f"the input is {x.shape[2]} x {x.shape[3]} pixels",
                allowed=f"at least {self.input_size[0]} x {self.input_size[1]}, the classifier's own size",
                hint="enlarge the pictures",
            )
        return super().forward(x)


def dense(net: Net) -> Dense:
    """The fully convolutional form of a classifier (arXiv:1312.6229, section 3.5; arXiv:1411.4038).

    The first fully connected layer becomes a convolution over the whole map that it was trained on, the
    others become 1x1 convolutions; global pooling becomes pooling over windows of the size of the map, of
    stride 1. The weights are copied. On the training size the logits are the classifier's up to rounding.

    Raises:
        StriateError: a stage has no such form, or takes maps of one size only; it is named.
    """
    check_chain(net)
    stages: list[tuple[str, nn.Module]] = []
    shape: Shape = (net.in_channels, *net.input_size)
    # The map that a vector was, while it still has its units in that order.
    was: Shape | None = None
    for info in stage_geometry(net):
        module = net.get_submodule(info.name)
        made: nn.Module | None
        if type(module) is nn.Flatten and module.start_dim == 1 and module.end_dim in (-1, 3):
            was, made = was or shape, None
        elif was is None:
            made = _on_map(info.name, module, shape, info.shape)
        else:
            made = _on_vector(info.name, module, was)
            if type(module) in LINEAR or info.shape != shape:
                was = (info.shape[0], 1, 1)
        if made is not None:
            stages.append((info.name, made.train(module.training)))
        shape = info.shape
    made_net = Dense(
        stages, head=net.head, in_channels=net.in_channels, size=net.input_size, name=f"{net.name}-dense",
        min_size=min(net.input_size),
    )  # fmt: skip
    made_net.options = dict(net.options)
    made_net.training = net.training
    _check_larger(made_net)
    return made_net


def _on_map(name: str, module: nn.Module, before: Shape, after: Shape) -> nn.Module | None:
    """The dense form of a stage that works on maps; None if it can be left out."""
    if len(before) != 3 or len(after) != 3:
        raise StriateError(
            f"stage {name!r} ({type(module).__name__}) turns maps into something else",
            hint="the dense form knows Flatten and global pooling only",
        )
    if type(module) not in (*GLOBAL_MEANS, *GLOBAL_MAXIMA):
        return copy.deepcopy(module)
    steps = [whole // parts for whole, parts in zip(before[1:], after[1:], strict=True)]
    if any(whole % parts for whole, parts in zip(before[1:], after[1:], strict=True)):
        raise StriateError(
            f"stage {name!r} pools a map of {before[1]} x {before[2]} to {after[1]} x {after[2]}, in windows "
            f"of several sizes",
            hint="build the net for a size of pictures that is a multiple",
        )
    if steps == [1, 1]:
        return None
    kernel = (steps[0], steps[1])
    stride: Any = (1, 1) if after[1:] == (1, 1) else kernel
    pool = nn.AvgPool2d if type(module) in GLOBAL_MEANS else nn.MaxPool2d
    return pool(kernel, stride)


def _on_vector(name: str, module: nn.Module, was: Shape) -> nn.Module:
    """The dense form of a stage that works on vectors, which were maps of the shape `was`."""
    if type(module) is nn.Linear:
        # Nothing is drawn for weights that are replaced at once: the random state stays as it was.
        conv: nn.Conv2d = nn.utils.skip_init(  # type: ignore[no-untyped-call]
            nn.Conv2d, was[0], module.out_features, (was[1], was[2]), bias=module.bias is not None,
            device=module.weight.device, dtype=module.weight.dtype,
        )  # fmt: skip
        with torch.no_grad():
            # Flatten runs over channels, rows, columns: the order of a kernel.
            conv.weight = _parameter(module.weight.detach().reshape(conv.weight.shape), module.weight)
            if module.bias is not None:
                conv.bias = _parameter(module.bias.detach(), module.bias)
        return conv
    if type(module) is DropConnectLinear:
        return DropConnectWindows(module, (was[1], was[2]))
    if type(module) is nn.BatchNorm1d and was[1:] == (1, 1):
        norm = nn.BatchNorm2d(
            module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats
        ).to(next((t.device for t in (*module.parameters(), *module.buffers())), torch.device("cpu")))
        norm.load_state_dict(module.state_dict())
        return norm
    inner = [layer for layer in module.children() if type(layer) in LINEAR]
    if isinstance(module, nn.Sequential) and inner:
        made = nn.Sequential()
        for key, layer in module.named_children():
            part = _on_vector(f"{name}.{key}", layer, was)
            made.add_module(key, part)
            was = (layer.out_features, 1, 1) if isinstance(layer, LINEAR) else was
        return made
    if not _position_by_position(module, was):
        raise StriateError(
            f"stage {name!r} ({type(module).__name__}) has no dense form",
            allowed="Linear, DropConnectLinear, BatchNorm1d, and layers without weights that treat every"
            " position alike",
        )
    return copy.deepcopy(module)


def _position_by_position(module: nn.Module, was: Shape) -> bool:
    """Whether a layer without weights does to every position of a map what it does to a vector; by trial."""
    if any(True for _ in (*module.parameters(), *module.buffers())):
        return False
    channels, height, width = was
    x = torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), leaves_as_found(module):
        module.eval()
        try:
            on_map = module(x)
            if (height, width) == (1, 1):
                larger = module(x.expand(2, channels, 2, 3).contiguous())
                if not torch.allclose(larger, on_map.expand(*on_map.shape[:2], 2, 3), rtol=1e-5):
                    return False
            on_vector = module(x.flatten(1))
            return on_vector.shape == on_map.flatten(1).shape and torch.allclose(
                on_vector, on_map.flatten(1), rtol=1e-5
            )
        except (*FAILURES, StriateError):
            return False


def _parameter(value: Tensor, like: Tensor) -> nn.Parameter:
    return nn.Parameter(value.clone(memory_format=torch.contiguous_format), like.requires_grad)


def _check_larger(net: Dense) -> None:
    """Try a picture of twice the size without numbers: stages built for one size of maps show themselves."""
    bare = shadow(net)
    kind = next(t.dtype for t in net.parameters() if t.is_floating_point())
    height, width = net.input_size
    x: Any = torch.empty(1, net.in_channels, 2 * height, 2 * width, device="meta", dtype=kind)
    for name in net.stage_names:
        try:
            x = bare.get_submodule(name)(x)
        except (*FAILURES, StriateError) as error:
            raise StriateError(
                f"stage {name!r} ({type(net.get_submodule(name)).__name__}) takes maps of one size only",
                hint="a net with it has no dense form",
            ) from error
    if x.ndim != 4:
        raise StriateError(f"{net.name} gives no map", hint="its last stages have no dense form")


def grow(net: Net, from_net: nn.Module, *, convolutions: int = 4) -> tuple[str, ...]:
    """Start a deeper net from a shallower, trained one, in place; returns the names of the layers copied.

    VGG's way (arXiv:1409.1556, section 3.1): the first `convolutions` convolutions of the shallower net and
    all of its fully connected layers are copied to the layers of the same names, with the norms that follow
    them; the layers between keep what they were drawn with. Layers of another shape are not copied, such as
    the head of other classes.

    Raises:
        StriateError: the nets have no layer in common.
    """
    if not isinstance(from_net, nn.Module):
        raise StriateError(f"the net to grow from is a {type(from_net).__name__}", allowed="a net")
    if isinstance(convolutions, bool) or not isinstance(convolutions, int) or convolutions < 0:
        raise StriateError(f"convolutions is {convolutions!r}", allowed="a whole number from 0 on")
    here, there = dict(_layers(net)), dict(_layers(from_net))
    wanted, passed = [], 0
    for name, layer in there.items():
        passed += isinstance(layer, nn.Conv2d)
        early = passed <= convolutions and convolutions > 0
        if isinstance(layer, nn.Linear) or early:
            wanted.append(name)
    copied = []
    for name in wanted:
        mine, theirs = here.get(name), there[name]
        if mine is None or type(mine) is not type(theirs):
            continue
        state, old = mine.state_dict(), theirs.state_dict()
        if {k: t.shape for k, t in state.items()} != {k: t.shape for k, t in old.items()}:
            continue
        if any(t.is_meta for t in (*state.values(), *old.values())):
            raise StriateError("one of the nets has no weights yet", hint="create or load it first")
        mine.load_state_dict(old)
        copied.append(name)
    if not copied:
        raise StriateError(
            f"no layer of {_called(from_net)} fits one of {_called(net)} by name and shape",
            hint="give a shallower net of the same family",
        )
    return tuple(copied)


def _layers(net: nn.Module) -> Iterable[tuple[str, nn.Module]]:
    """The layers with weights, by dotted name, in order of definition."""
    root = getattr(net, "tapped", net)
    for name, module in root.named_modules():
        if name and any(True for _ in module.parameters(recurse=False)):
            yield name, module


def _called(net: nn.Module) -> str:
    return str(getattr(net, "name", type(net).__name__))
