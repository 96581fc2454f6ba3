"""Small jobs for the tests of training: data in memory, nets of a few weights, no files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from striate.tasks.classification import Classification
from striate.train.averages import make_average
from striate.train.devices import Place
from striate.train.fit import Job
from striate.train.freezing import make_freezing
from striate.train.optimize import build_optimizer
from striate.train.penalties import make_penalty
from striate.train.recipe import Recipe
from striate.train.schedules import Plan


@dataclass
class Part:
    name: str
    targets: np.ndarray

    def __len__(self) -> int:
        return len(self.targets)


@dataclass
class Batch:
    images: Tensor
    targets: Tensor
    index: np.ndarray


class TensorLoader:
    """The loader's contract over tensors: order by (seed, epoch), any start, a share for each process."""

    preprocess = None

    def __init__(
        self, images: Tensor, targets: Tensor, batch: int, *, train: bool, rank: int = 0, world: int = 1
    ):
        self.images, self.targets, self.batch, self.train = images, targets, batch, train
        self.rank, self.world = rank, world
        self.split = Part("train" if train else "val", targets.numpy())
        self.waited, self.bad = 0.0, []

    def __len__(self) -> int:
        count = len(self.images) // (self.batch * self.world)
        return count if self.train else -(-len(self.images) // self.batch)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        order = np.random.default_rng([7, epoch]).permutation(len(self.images))
        if not self.train:
            order = np.arange(len(self.images))
        for number in range(start, len(self)):
            first = (number * self.world + self.rank) * self.batch
            index = order[first : first + self.batch]
            yield Batch(self.images[index], self.targets[index], index)


def small_net(norm: bool = False, dropout: float = 0.0, classes: int = 3) -> nn.Module:
    torch.manual_seed(5)
    layers: list[nn.Module] = [nn.Conv2d(1, 4, 3)]
    layers += [nn.BatchNorm2d(4)] if norm else []
    layers += [nn.ReLU(), nn.Dropout(dropout), nn.Flatten(), nn.Linear(4 * 36, classes)]
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


def blobs(count: int = 96, classes: int = 3) -> tuple[Tensor, Tensor]:
    """Noise images of 8 x 8 pixels with a bright column at a place that tells the class."""
    draw = torch.Generator().manual_seed(1)
    targets = torch.randint(classes, (count,), generator=draw)
    images = torch.randn(count, 1, 8, 8, generator=draw)
    for k in range(classes):
        images[targets == k, :, :, 2 * k] += 1.5
    return images, targets


def small_job(
    net: nn.Module | None = None, *, count: int = 96, rank: int = 0, world: int = 1, **settings: Any
) -> Job:
    values: dict[str, Any] = {"epochs": 3, "batch": 16, "lr": 0.05, "seed": 3, "threads": 1}
    recipe = Recipe(**(values | settings))
    net = net or small_net()
    images, targets = blobs(count)
    task = Classification(("a", "b", "c"))
    train = TensorLoader(images, targets, recipe.batch // world, train=True, rank=rank, world=world)
    val = TensorLoader(*blobs(40), recipe.batch, train=False)
    optimizer = build_optimizer(net, recipe)
    return Job(
        net, task, optimizer, train, val, recipe,
        Plan.of(recipe, -(-len(train) // recipe.accumulate)),
        Place(torch.device("cpu"), rank, world), make_average(net, recipe),
        make_penalty(net, recipe, optimizer), make_freezing(net, recipe.freeze),
    )  # fmt: skip


def same_weights(one: nn.Module, two: nn.Module) -> bool:
    pairs = zip(one.state_dict().items(), two.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)
