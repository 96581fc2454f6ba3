"""From settings and data to everything that the loop works on: every `auto` is settled here."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from striate.core import settings
from striate.core.errors import StriateError
from striate.data.augment import parse as parse_augment
from striate.data.loaders import Loader
from striate.data.preprocess import Preprocess
from striate.data.samples import Dataset, Split
from striate.data.statistics import parse_input
from striate.model import Model
from striate.nets.net import NETS, Net, check_options
from striate.tasks.task import Task, make_task
from striate.tasks.upsampling import DECODING
from striate.train.averages import make_average
from striate.train.devices import Place, mixed
from striate.train.fit import Job
from striate.train.freezing import make_freezing
from striate.train.growing import check_growth
from striate.train.initial import begin, check_initialisation
from striate.train.members import bootstrap, check_snapshots
from striate.train.optimize import OPTIMIZERS, build_optimizer
from striate.train.penalties import make_penalty
from striate.train.recipe import Recipe, auto_augment, auto_batch, auto_net, auto_rate, auto_size
from striate.train.resizing import check_steps
from striate.train.room import keep_pictures, told
from striate.train.schedules import SCHEDULES, Plan
from striate.train.starting import GENTLER, Started, like_source, open_source, start_from
from striate.train.whiten import sample_images, whiten
from striate.train.wrapping import check_wrapping

NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.modules.instancenorm._InstanceNorm)


@dataclass
class Setup:
    """A job and what belongs to it: the data, the settled recipe, and the preprocessing of its model."""

    dataset: Dataset
    asked: Recipe
    recipe: Recipe
    preprocess: Preprocess
    job: Job
    started: Started | None = None  # from trained weights, just now

    def close(self) -> None:
        """End the loaders' processes."""
        for loader in (self.job.train, self.job.val):
            if loader is not None:
                loader.close()

    def headline(self) -> str:
        """One line: net, numbers of images, and how it is optimised."""
        recipe, job = self.recipe, self.job
        weights = sum(parameter.numel() for parameter in job.net.parameters())
        train, val = (len(self.dataset.splits.get(name, ())) for name in ("train", "val"))
        loaders = [loader for loader in (job.train, job.val) if loader is not None]
        kept = sum(loader.room for loader in loaders)
        return (
            f"{recipe.net}, {weights:,} parameters, input {recipe.size};"
            f" {train:,} images to train, {val:,} to validate; batch {recipe.batch}, {recipe.augment};"
            f" {recipe.optimizer} lr {recipe.lr:.3g}, {recipe.schedule}"
            + (f"; up to {told(kept)} of decoded images kept in memory" if kept else "")
        )


def check_names(recipe: Recipe) -> None:
    """The recipe's registered names exist, and the settings do not contradict each other.

    Raises:
        StriateError: an unknown net, optimiser, schedule or augmentation, or a contradiction.
    """
    parse_input(recipe.input)
    check_initialisation(recipe)
    check_snapshots(recipe)
    if recipe.net != "auto":
        own = {key: value for key, value in recipe.net_options.items() if key not in DECODING}
        check_options(recipe.net, own)
    OPTIMIZERS.entry(recipe.optimizer)
    schedule = SCHEDULES.entry(recipe.schedule)
    if not schedule.capabilities.get("trains", True):
        raise StriateError(
            f"schedule {recipe.schedule!r} ends at its highest rate and leaves no trained net",
            allowed=[entry.name for entry in SCHEDULES if entry.capabilities.get("trains", True)],
            hint="look for a rate with --range_test",
        )
    if recipe.augment != "auto":
        parse_augment(recipe.augment)
    if OPTIMIZERS.entry(recipe.optimizer).capabilities.get("again"):
        check_again(recipe)


def check_val(recipe: Recipe, val: Split | None) -> None:
    """What goes by validation scores has images to take them from.

    Raises:
        StriateError: patience, or a schedule that goes by them, without any.
    """
    if val is not None:
        return
    if recipe.patience:
        raise StriateError("patience needs validation images", hint="leave out --patience, or give --val 0.1")
    if SCHEDULES.entry(recipe.schedule).capabilities.get("needs_scores"):
        raise StriateError(
            f"schedule {recipe.schedule!r} needs validation images",
            hint="give --val 0.1, or another schedule",
        )


def check_again(recipe: Recipe) -> None:
    """Nothing changes the gradients or weights behind the back of an optimiser that searches along a line.

    Raises:
        StriateError: names the settings that do.
    """
    wrong = {
        "clip": recipe.clip,
        "gradient_noise": recipe.gradient_noise,
        "decay decoupled": recipe.decay == "decoupled",
        "amp": recipe.amp != "off",
    }
    names = [name for name, on in wrong.items() if on]
    if names:
        raise StriateError(
            f"optimizer {recipe.optimizer!r} searches along a line and cannot have {', '.join(names)}",
            hint="leave them out, or choose another optimizer",
        )


def prepare(
    dataset: Dataset, asked: Recipe, place: Place, threads: int, written: Mapping[str, Any] | None = None,
    *, begun: bool = False,
) -> Setup:  # fmt: skip
    """Net, task, loaders, optimiser and average for a recipe and an open data set.

    `written` is the settings.json of the run's earlier part: what was settled then is kept. begun: weights
    will come from a checkpoint of it.

    Raises:
        StriateError: settings that do not fit the data, the net or the machine.
    """
    check_names(asked)
    train, val = training_splits(dataset, asked)
    if not written or asked.patience != written["recipe"].get("patience"):
        check_val(asked, val)
    source = None if begun else open_source(asked)
    if written:
        recipe = settings.from_dict(Recipe, written["recipe"])
        preprocess = Preprocess.from_dict(written["preprocess"], written.get("arrays"))
    else:
        recipe = settle(asked, dataset, len(train), source)
        recipe = recipe.with_(threads=threads, device=str(place.device))
        preprocess = fit_preprocess(recipe, train, source)
    if (recipe.batch or 1) % place.world:
        raise StriateError(
            f"a batch of {recipe.batch} cannot be shared by {place.world} processes",
            hint=f"give --batch a multiple of {place.world}",
        )
    check_steps(recipe, dataset.kind)
    torch.manual_seed(mixed(recipe.seed, 1))
    task = make_task(
        dataset, name=asked.task, label_smoothing=recipe.label_smoothing, class_weights=recipe.class_weights
    )
    net = build_net(task, recipe)
    if not begun:
        begin(net, recipe.initialisation, lambda most, pixels: sample_images(train, preprocess, most, pixels))
    if not written:
        check_growth(net, task, recipe)
    if recipe.first_layer == "whitened":
        whiten(net, train, preprocess)
    started = start_from(net, task, source, dataset) if source else None
    net = net.to(place.device)
    if recipe.channels_last:
        net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if recipe.lr is None:
        recipe = recipe.with_(lr=settle_rate(recipe, net))
    optimizer = build_optimizer(net, recipe)
    check_wrapping(net, recipe)
    loader = training_loader(train, preprocess, recipe, place, len(task.classes))
    plan = Plan.of(recipe, -(-len(loader) // recipe.accumulate))
    tester = validation_loader(val, preprocess, recipe, place)
    job = Job(
        net, task, optimizer, loader, tester, recipe, plan, place, average=make_average(net, recipe),
        penalty=make_penalty(net, recipe, optimizer), freezing=make_freezing(net, recipe.freeze),
    )  # fmt: skip
    keep_pictures(job)
    return Setup(dataset, asked, recipe, preprocess, job, started)


def training_splits(dataset: Dataset, recipe: Recipe) -> tuple[Split, Split | None]:
    """The splits `train`, drawn anew where the recipe says so, and `val` where it is not empty.

    Raises:
        StriateError: no training images, or fewer than two classes among them.
    """
    train = dataset.split("train")
    if not len(train):
        raise StriateError(f"{dataset.name!r} has no training images", hint="see 'striate data check'")
    if len(dataset.classes) < 2:
        raise StriateError(
            f"{dataset.name!r} has one class only ({', '.join(dataset.classes)})", hint="give at least two"
        )
    if recipe.bootstrap:
        train = bootstrap(train, recipe.seed)
    val = dataset.splits.get("val")
    return train, val if val is not None and len(val) else None


def settle(asked: Recipe, dataset: Dataset, count: int, source: Model | None) -> Recipe:
    """The recipe with every `auto` and None worked out, but the rate, which depends on the net."""
    # Which augmentation fits is a matter of the pictures' own colours, not of what the source sees.
    kind, own = dataset.kind, asked.channels or dataset.channels
    asked = like_source(asked, source, dense=kind == "segmentation") if source else asked
    found = dataset.size or dataset.median_size
    size = asked.size or auto_size(found, kind)
    size = (size, size) if isinstance(size, int) else size
    net = asked.net if asked.net != "auto" else auto_net(min(size))
    if asked.size is None and kind != "segmentation":
        size = fitted(size, NETS.entry(net).capabilities)
    channels = asked.channels or dataset.channels
    resize = asked.resize
    if resize == "auto":
        resize = (
            "none"
            if dataset.size == size and asked.crop == 1
            else "squash"
            if kind == "segmentation"
            else "crop"
        )
    batch = min(asked.batch or auto_batch(count, min(size)), count)
    augment = asked.augment if asked.augment != "auto" else auto_augment(size, own, kind)
    return asked.with_(
        net=net, task=kind, size=size, channels=channels, resize=resize, batch=batch, augment=augment,
        net_options=with_rates(asked, net),
    )  # fmt: skip


def with_rates(asked: Recipe, net: str) -> dict[str, Any]:
    """The options of the net, with the dropping of units, weights and blocks that the recipe names.

    Raises:
        StriateError: the net has no such layers.
    """
    options = dict(asked.net_options)
    known = inspect.signature(NETS.get(net)).parameters
    for name in ("dropout", "drop_path"):
        rate = getattr(asked, name)
        if rate is not None and name not in known:
            having = [
                other for other in NETS.names() if name in inspect.signature(NETS.get(other)).parameters
            ]
            raise StriateError(f"net {net!r} has no {name} rate", allowed=having, hint=f"leave out --{name}")
        if rate is not None:
            options[name] = float(rate)
    if asked.stochastic_pooling:
        options["stochastic_pooling"] = True
    if asked.drop_connect is not None:
        options["drop_connect"] = float(asked.drop_connect)
    return options


def fitted(size: tuple[int, int], capabilities: Mapping[str, Any]) -> tuple[int, int]:
    """The size a net is made for, where that of the data is too large or too small for it."""
    own, least = int(capabilities.get("size") or 0), int(capabilities.get("min_size") or 0)
    if 0 < own <= 64 < min(size):
        return (own, own)
    if min(size) < least:
        return (max(own, least), max(own, least))
    return size


def settle_rate(recipe: Recipe, net: nn.Module) -> float:
    """The highest learning rate for the optimiser, the batch of one step and the net."""
    capabilities = OPTIMIZERS.entry(recipe.optimizer).capabilities
    if capabilities.get("fixed_rate"):
        return float(capabilities["lr"])
    normalised = any(isinstance(module, NORMS) for module in net.modules())
    step = (recipe.batch or 1) * recipe.accumulate
    rate, adaptive = float(capabilities.get("lr", 1e-3)), bool(capabilities.get("adaptive", True))
    if recipe.start_from and not adaptive:
        rate *= GENTLER
    return auto_rate(rate, step, normalised=normalised, adaptive=adaptive)


def check_settled(asked: Recipe, dataset: Dataset, source: Model | None) -> Recipe:
    """The recipe with its `auto`s worked out, checked as far as that goes without weights and without images.

    Raises:
        StriateError: as `check_names`, `check_val` and `settle`; an option or a value that the net does not
            take.
    """
    train, val = training_splits(dataset, asked)
    settled = settle(asked, dataset, len(train), source)
    check_names(settled)
    check_val(settled, val)
    check_steps(settled, dataset.kind)
    with torch.device("meta"):
        net = build_net(make_task(dataset, name=settled.task), settled)
    make_freezing(net, settled.freeze)
    check_wrapping(net, settled)
    return settled


def build_net(task: Task, recipe: Recipe) -> Net:
    """The task's net; raises as the task does."""
    return task.build_net(
        recipe.net, in_channels=recipe.channels or 3, size=recipe.size, options=recipe.net_options
    )


def fit_preprocess(recipe: Recipe, train: Split, source: Model | None) -> Preprocess:
    """Preprocessing with the training images' mean and deviation, or the source's, and its filter."""
    size = recipe.size if isinstance(recipe.size, tuple) else None
    how: dict[str, Any] = {"channels": recipe.channels or 3, "crop": recipe.crop, "resize": recipe.resize}
    how["input"] = recipe.input
    if source:
        how["interpolation"] = source.preprocess.interpolation
        if not Preprocess(size=size, **how).array_shapes():
            return Preprocess(size=size, **how, mean=source.preprocess.mean, std=source.preprocess.std)
    return Preprocess.fit(train, size, **how)


def training_loader(
    split: Split, preprocess: Preprocess, recipe: Recipe, place: Place, classes: int
) -> Loader:
    """Batches for training; each process takes its part of `recipe.batch` images."""
    return Loader(
        split, preprocess, batch=(recipe.batch or 1) // place.world, seed=recipe.seed, train=True,
        augment=recipe.augment, workers=recipe.workers, mode=recipe.mode, rank=place.rank, world=place.world,
        classes=classes,
    )  # fmt: skip


def validation_loader(
    split: Split | None, preprocess: Preprocess, recipe: Recipe, place: Place
) -> Loader | None:
    """Batches of this process's share of the validation images; None without any."""
    if split is None:
        return None
    if place.world > 1:
        split = split.select(np.arange(place.rank, len(split), place.world))
    return Loader(
        split, preprocess, batch=max(1, (recipe.batch or 1) // place.world), seed=recipe.seed, train=False,
        workers=recipe.workers, mode=recipe.mode,
    )  # fmt: skip
