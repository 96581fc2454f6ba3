"""Little models whose answers can be worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from striate.data.preprocess import Preprocess
from striate.model import Model
from striate.nets.net import Net, create_net
from striate.tasks.classification import Classification, MultiLabel
from striate.tasks.segmentation import Segmentation
from striate.tasks.task import Task

CLASSES = ("dark", "bright", "other")


def preprocess(size: tuple[int, int] | None = (8, 8), channels: int = 3) -> Preprocess:
    """Plain preprocessing to -1 .. 1."""
    return Preprocess(size=size, channels=channels, resize="squash" if size else "none")


def conv_model(task: str = "classification", *, channels: int = 3, seed: int = 0, size: int = 8) -> Model:
    """Two convolutions with dropout and batch norm, so that evaluation mode matters; random weights."""
    torch.manual_seed(seed)
    stages: list[tuple[str, nn.Module]] = [
        ("conv1", nn.Conv2d(channels, 6, 3, padding=1)),
        ("bn1", nn.BatchNorm2d(6)),
        ("relu1", nn.ReLU()),
        ("drop1", nn.Dropout(0.5)),
    ]
    kinds: dict[str, type[Task]] = {
        "classification": Classification,
        "multi-label": MultiLabel,
        "segmentation": Segmentation,
    }
    if task == "segmentation":
        stages += [("score", nn.Conv2d(6, len(CLASSES), 1))]
        head = "score"
    else:
        stages += [("conv2", nn.Conv2d(6, 8, 3, padding=1)), ("relu2", nn.ReLU())]
        stages += [("avgpool", nn.AdaptiveAvgPool2d(1)), ("flatten", nn.Flatten())]
        stages += [("fc3", nn.Linear(8, len(CLASSES)))]
        head = "fc3"
    net = Net(stages, head=head, in_channels=channels, size=size, name="little")
    net.bn1.running_mean.normal_()
    net.bn1.running_var.uniform_(0.5, 2)
    return Model(net.eval(), kinds[task](CLASSES), preprocess((size, size), channels))


def sharp(model: Model, factor: float = 60) -> Model:
    """The model with a head that decides: random little nets give every class a third."""
    assert isinstance(model.net, Net)
    with torch.no_grad():
        model.net.head_layer.weight.mul_(factor)
        model.net.head_layer.bias.zero_()
    return model


def drawn_model(
    seed: int, size: int = 8, classes: tuple[str, ...] = CLASSES, net: str = "linear", **how: Any
) -> Model:
    """A registered net with random weights, larger than drawn, whose posteriors are far from even."""
    torch.manual_seed(seed)
    made = create_net(net, len(classes), 3, size=size, **how)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(3)
    preprocess = Preprocess(size=(size, size), resize="squash", mean=(0.3 + seed / 10,))
    return Model(made.eval(), Classification(classes), preprocess, {"name": f"m{seed}"})


def linear_model(weight: torch.Tensor, *, channels: int = 1, size: int = 2) -> Model:
    """A softmax classifier with these weights (K, channels * size * size) and no bias."""
    layer = nn.Linear(channels * size * size, len(weight), bias=False)
    with torch.no_grad():
        layer.weight.copy_(weight)
    net = Net(
        [("flatten", nn.Flatten()), ("fc", layer)], head="fc", in_channels=channels, size=size, name="linear"
    )
    names = CLASSES[: len(weight)]
    return Model(net.eval(), Classification(names), preprocess((size, size), channels))


def pictures(
    count: int, height: int = 8, width: int = 8, channels: int = 3, seed: int = 0
) -> list[np.ndarray]:
    """Random pictures (height, width, channels) uint8."""
    draws = np.random.default_rng(seed)
    return [draws.integers(0, 256, (height, width, channels), dtype=np.uint8) for _ in range(count)]


def found(net: nn.Module) -> dict[str, object]:
    """Everything that looking inside a net could change, as plain values to compare."""
    hooks: Sequence[str] = (
        "_forward_hooks",
        "_forward_pre_hooks",
        "_backward_hooks",
        "_backward_pre_hooks",
        "_state_dict_hooks",
    )
    return {
        "modes": [module.training for module in net.modules()],
        "hooks": [len(getattr(module, name)) for module in net.modules() for name in hooks],
        "requires_grad": [p.requires_grad for p in net.parameters()],
        "gradients": [None if p.grad is None else (id(p.grad), p.grad.tolist()) for p in net.parameters()],
        "weights": {key: value.tolist() for key, value in net.state_dict().items()},
        "torch": torch.get_rng_state().tolist(),
        "numpy": str(np.random.get_state()),  # noqa: NPY002
        "threads": torch.get_num_threads(),
        "grad mode": torch.is_grad_enabled(),
    }


def plain_model(net: nn.Module, size: int, channels: int = 1, classes: int = 2) -> Model:
    """A model whose input is the picture itself."""
    same = Preprocess(size=(size, size), channels=channels, resize="squash", mean=(0.0,), std=(1.0,))
    return Model(net.eval(), Classification([str(k) for k in range(classes)]), same)
