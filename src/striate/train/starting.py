"""A run that starts from trained weights: fine-tuning, on the classes of before or on others."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch

from striate.core.errors import StriateError
from striate.core.runs import MODEL, Run
from striate.data.samples import Dataset
from striate.data.statistics import parse_input
from striate.model import Model, load
from striate.nets import weights
from striate.nets.net import Net
from striate.tasks.task import Task
from striate.train.recipe import Recipe
from striate.train.space import is_study

# Highest rate of a net that has learned before, as a part of that of a net that has not.
GENTLER = 0.1


@dataclass(frozen=True)
class Started:
    """What came of trained weights: the layers that they do not give, the file's SHA-256, and warnings."""

    source: str
    new: tuple[str, ...]
    sha256: str
    warnings: tuple[str, ...]

    def line(self) -> str:
        """What is told of it."""
        return f"started from {self.source}" + (f": all but {', '.join(self.new)}" if self.new else "")


def open_source(recipe: Recipe) -> Model | None:
    """The model that the recipe's `start_from` names; None where it names none.

    Raises:
        StriateError: there is no such model, it is an ensemble, or of another net, other channels or other
            input statistics than the recipe asks for; another setting says how the net begins, too.
    """
    if not recipe.start_from:
        return None
    others = {
        "grow_from": recipe.grow_from, "first_layer": recipe.first_layer != "drawn",
        "initialisation": recipe.initialisation != "own",
    }  # fmt: skip
    for name, given in others.items():
        if given:
            raise StriateError(f"{name} and start_from both say how the net begins", hint="leave one out")
    source = load(recipe.start_from)
    if source.members:
        raise StriateError(
            f"{recipe.start_from!r} is an ensemble", hint=f"start from one of it: '{recipe.start_from}#1'"
        )
    if recipe.net not in ("auto", source.net.name):
        raise StriateError(
            f"{recipe.start_from!r} is a {source.net.name}, and net is {recipe.net!r}",
            hint=f"leave out --net, or give a model of a {recipe.net}; a deeper net grows with --grow_from",
        )
    facts = source.preprocess
    if recipe.channels not in (None, facts.channels):
        raise StriateError(
            f"{recipe.start_from!r} is of inputs with {'1 channel' if facts.channels == 1 else '3 channels'},"
            f" and channels is {recipe.channels}",
            hint="leave out --channels: images are brought to those of the model",
        )
    if parse_input(facts.input) != parse_input(recipe.input):
        raise StriateError(
            f"{recipe.start_from!r} learned with input {facts.input!r}, and input is {recipe.input!r}",
            hint=f"give --input '{facts.input}'",
        )
    return source


def check_apart(folder: Path, source: str) -> None:
    """A new run replaces no model: neither the one that it starts from, nor a study's best, nor any other.

    Raises:
        StriateError: the run's folder holds a model, or a study.
    """
    own, given = folder / MODEL, Path(source)
    if source and own.exists() and own.resolve() in (given.resolve(), (given / MODEL).resolve()):
        raise StriateError(
            f"the run folder {str(folder)!r} holds the model to start from, which the run would replace",
            hint="choose another folder with --out",
        )
    if is_study(folder):
        raise StriateError(
            f"{str(folder)!r} holds a study, not a run", hint="choose another folder with --out"
        )
    check_no_model(folder)


def check_no_model(folder: Path) -> None:
    """A folder for a new run or study holds no model that it would replace.

    Raises:
        StriateError: it does.
    """
    if (folder / MODEL).exists():
        raise StriateError(
            f"{str(folder)!r} holds a model that would be replaced", hint="choose another folder with --out"
        )


def check_same(run: Run, found: Started) -> None:
    """A run that was stopped before its first checkpoint starts again from the very weights of before.

    Raises:
        StriateError: another file is in its place.
    """
    before = [event.get("sha256") for event in run.events() if event.get("event") == "started"]
    if before and before[-1] != found.sha256:
        raise StriateError(
            f"{found.source!r} is not the file that {str(run.path)!r} was started from",
            hint="put that one back, or start a new run with --out",
        )


def like_source(recipe: Recipe, source: Model, *, dense: bool) -> Recipe:
    """The recipe with what it leaves open as the source has it: net, options, size and channels.

    Raises:
        StriateError: one of source and data (dense) has a class for each pixel, the other for each image.
    """
    if source.task.dense != dense:
        here = "each pixel" if dense else "each image"
        raise StriateError(
            f"{recipe.start_from!r} is a model for {source.task.name}, and the data have classes of {here}",
            hint="start from a model for the same task",
        )
    facts, net = source.preprocess, cast(Net, source.net)
    return recipe.with_(
        net=net.name, net_options=net.options | recipe.net_options,
        size=recipe.size or facts.size or net.input_size, channels=facts.channels,
    )  # fmt: skip


def start_from(net: Net, task: Task, source: Model, data: Dataset) -> Started:
    """Put the source's weights into the net, in place.

    The layers with one output a class are left as they are where the classes or their order are others.

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
    before, warnings = source.card.get("data"), []
    if isinstance(before, dict) and before.get("name") == data.name and before.get("digest") != data.digest():
        warnings.append(
            "the model that this starts from was trained on data of the same name, other splits: it may have"
            " learned images that are tests here"
        )
    sha256 = weights.sha256(source.path) if source.path else str(source.card.get("sha256", ""))
    names = tuple(name for name, _ in net.named_modules() if name in new)
    return Started(str(source.path or source.card.get("name", "")), names, sha256, tuple(warnings))


def class_layers(net: Net, task: Task) -> set[str]:
    """The names of the layers whose shape depends on the number of classes: heads, auxiliary ones too."""
    fewer = type(task)([str(number) for number in range(len(task.classes) - 1)])
    with torch.device("meta"):
        other = fewer.build_net(
            str(net.name), in_channels=net.in_channels, size=net.input_size, options=net.options
        ).state_dict()
    ours = net.state_dict()
    return {key.rpartition(".")[0] for key in ours if ours[key].shape != other[key].shape}
