"""A deep net that starts from a shallower, trained one of its family: VGG's pre-initialisation."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from striate.core.errors import StriateError, unknown
from striate.core.files import place_of
from striate.model import load
from striate.nets import weights
from striate.nets.convert import grow
from striate.nets.net import NETS
from striate.tasks.task import Task
from striate.train.fit import Job
from striate.train.recipe import Recipe

# Where, in the folder of its run, the shallower net is trained.
SHALLOW = "shallow"


def to_train_first(recipe: Recipe) -> bool:
    """Whether the net to grow from is an architecture that has yet to be trained.

    Raises:
        StriateError: it is neither a file nor a folder, a published net or an architecture.
    """
    name = recipe.grow_from
    if not name or place_of(name).exists() or (name not in NETS and weights.is_published(name)):
        return False
    if name not in NETS:
        raise unknown("net", name, NETS.names(), hint="grow_from may also be a run or a .safetensors file")
    return True


def shallow_recipe(asked: Recipe) -> Recipe:
    """How the shallower net is trained: as the deeper one is, but for its own architecture and length."""
    return asked.with_(
        net=asked.grow_from, grow_from="", grow_epochs=None, epochs=asked.grow_epochs or asked.epochs
    )


def check_growth(net: nn.Module, task: Task, recipe: Recipe) -> None:
    """The net to grow from has layers that fit, before it is trained.

    Raises:
        StriateError: there is no such net, or it has none.
    """
    if recipe.grow_from and recipe.first_layer == "whitened":
        raise StriateError(
            "first_layer 'whitened' and grow_from both say how the first layer begins", hint="leave one out"
        )
    if not to_train_first(recipe):
        if recipe.grow_from:
            grow(copy.deepcopy(net), load(recipe.grow_from).net)  # type: ignore[arg-type]
        return
    with torch.device("meta"):
        shallow = task.build_net(
            recipe.grow_from, in_channels=recipe.channels or 3, size=recipe.size, options=recipe.net_options
        )
    own = net.state_dict()
    theirs = shallow.state_dict()
    if not any(name in own and own[name].shape == tensor.shape for name, tensor in theirs.items()):
        raise StriateError(
            f"no layer of {recipe.grow_from!r} fits one of {recipe.net!r} by name and shape",
            hint="give grow_from a shallower net of the same family",
        )


def grow_job(job: Job, source: str | Path) -> tuple[str, ...]:
    """Start a job's net, and its average, from a trained model; returns the names of the layers copied.

    The first four convolutions and all fully connected layers (arXiv:1409.1556, section 3.1).

    Raises:
        StriateError: there is no such model, or none of its layers fits.
    """
    net: Any = job.net
    copied = grow(net, load(source).net)
    if job.average:
        job.average.begin()
    return copied
