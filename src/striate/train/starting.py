"""A run that starts from trained weights: fine-tuning, on the classes of before or on others."""

from __future__ import annotations

import dataclasses

import torch

from striate.core.errors import StriateError
from striate.data.preprocess import Preprocess
from striate.data.statistics import parse_input
from striate.model import Model, load
from striate.nets.net import NETS, Net
from striate.tasks.task import Task
from striate.train.recipe import Recipe

# Highest rate of a net that has learned before, as a part of that of a net that has not.
GENTLER = 0.1


def open_source(recipe: Recipe) -> Model | None:
    """The model that the recipe's `start_from` names; None where it names none.

    Raises:
        StriateError: there is no such model, it is an ensemble or a wrapped module, or of another net or
            other channels than the recipe asks for; another setting says how the net begins, too.
    """
    if not recipe.start_from:
        return None
    for name, given in (("grow_from", recipe.grow_from), ("first_layer", recipe.first_layer != "drawn")):
        if given:
            raise StriateError(f"{name} and start_from both say how the net begins", hint="leave one out")
    source = load(recipe.start_from)
    net = getattr(source.net, "name", None)
    if source.members:
        raise StriateError(
            f"{recipe.start_from!r} is an ensemble", hint=f"start from one of it: '{recipe.start_from}#1'"
        )
    if net not in NETS:
        raise StriateError(
            f"the net of {recipe.start_from!r} is a module from elsewhere",
            hint="give a model of one of Striate's nets ('striate list nets')",
        )
    if recipe.net not in ("auto", net):
        raise StriateError(
            f"{recipe.start_from!r} is a {net}, and net is {recipe.net!r}",
            hint=f"leave out --net, or give a model of a {recipe.net}; a deeper net grows with --grow_from",
        )
    if recipe.channels not in (None, source.preprocess.channels):
        raise StriateError(
            f"{recipe.start_from!r} sees {source.preprocess.channels} channels, and channels is"
            f" {recipe.channels}",
            hint="leave out --channels: images are brought to those of the model",
        )
    return source


def like_source(recipe: Recipe, source: Model) -> Recipe:
    """The recipe with what it leaves open as the source has it: net, options, size and channels."""
    options, facts = dict(getattr(source.net, "options", {})), source.preprocess
    return recipe.with_(
        net=source.net.name, net_options=options | recipe.net_options,
        size=recipe.size or facts.size or getattr(source.net, "input_size", None),
        channels=recipe.channels or facts.channels,
    )  # fmt: skip


def values_of(source: Model, draft: Preprocess) -> Preprocess:
    """Preprocessing with the geometry of `draft` and the source's values: its mean, deviation and filter.

    Raises:
        StriateError: the source's input statistics are arrays that belong to its data.
    """
    theirs = source.preprocess
    if parse_input(theirs.input) != parse_input(draft.input):
        raise StriateError(
            f"the net of start_from learned with input {theirs.input!r}",
            hint=f"give --input {theirs.input}, computed anew from these data",
        )
    if theirs.array_shapes():
        return draft
    return dataclasses.replace(draft, mean=theirs.mean, std=theirs.std, interpolation=theirs.interpolation)


def start_from(net: Net, task: Task, source: Model) -> tuple[str, ...]:
    """Put the source's weights into the net, in place; returns the names of the layers that it does not give.

    These are the layers with one output a class, where the classes or their order are others.

    Raises:
        StriateError: other weights differ in name or shape.
    """
    ours, theirs = net.state_dict(), source.net.state_dict()
    new: set[str] = set()
    if (task.name, task.classes) != (source.task.name, source.task.classes):
        new = class_layers(net, task)
    kept = {key for key in ours if key.rpartition(".")[0] not in new}
    wrong = sorted(
        key for key in kept if key not in theirs or theirs[key].shape != ours[key].shape
    ) or sorted(key for key in theirs if key not in ours)
    if wrong:
        raise StriateError(
            f"the weights of start_from do not fit this net: {', '.join(wrong[:4])}"
            + (f" and {len(wrong) - 4} more" if len(wrong) > 4 else ""),
            hint="leave the net's options, size and channels as the model has them",
        )
    net.load_state_dict({key: theirs[key] if key in kept else tensor for key, tensor in ours.items()})
    return tuple(name for name, _ in net.named_modules() if name in new)


def class_layers(net: Net, task: Task) -> set[str]:
    """The names of the layers whose shape depends on the number of classes: heads, auxiliary ones too."""
    more = type(task)([str(number) for number in range(len(task.classes) + 1)])
    with torch.device("meta"):
        other = more.build_net(
            str(net.name), in_channels=net.in_channels, size=net.input_size, options=net.options
        ).state_dict()
    ours = net.state_dict()
    return {key.rpartition(".")[0] for key in ours if ours[key].shape != other[key].shape}
