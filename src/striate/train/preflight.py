"""Checks before the first epoch: what would go wrong is said now, in one line."""

from __future__ import annotations

import contextlib
import copy
import math
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from striate.core.errors import StriateError, first_line
from striate.train.fit import loss_of
from striate.train.idle import idle_settings
from striate.train.optimize import OPTIMIZERS
from striate.train.resizing import parse_steps, shrink
from striate.train.room import memory_warnings, weight_bytes

if TYPE_CHECKING:
    from striate.train.fit import Job

MIB = 1 << 20


def preflight(job: Job, folder: Path | None, *, seconds: float = 1.5) -> list[str]:
    """Check a job before it runs; returns warnings, one line each. The job is left exactly as found.

    `seconds` bounds the trial of memorising a batch; a slow net skips it.

    Raises:
        StriateError: what would end the run: head against classes, targets out of range, a first batch that
            the net refuses, a loss that is no number, a folder that cannot be written, too little disk.
    """
    check_head(job)
    check_targets(job)
    if folder is not None:
        check_folder(folder, checkpoint_bytes(job))
    warnings = idle_settings(job.recipe) + memory_warnings(job)
    batch = first_batch(job)
    with undisturbed():
        images = batch.images.to(job.place.device)
        targets = batch.targets.to(job.place.device)
        trial = copy.deepcopy(job.net).train()
        began = time.monotonic()
        loss, outputs = trial_loss(job, trial, images, targets)
        took = time.monotonic() - began
        warnings += check_loss(job, loss, outputs)
        for side, _ in parse_steps(job.recipe.progressive)[:1]:
            trial_loss(job, trial, shrink(images, side), targets)
        known = job.task.expected_initial_loss()
        learned = known is not None and float(loss) < 0.5 * known
        if 20 * took < seconds and not learned:
            warnings += memorise(job, trial, images[:16], targets[:16], seconds)
    return warnings


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Put every random state back after the block."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(0)
        yield


def check_head(job: Job) -> None:
    """The head has one output a class.

    Raises:
        StriateError: names both numbers.
    """
    classes = getattr(job.net, "classes", None)
    wanted = len(job.task.classes)
    if isinstance(classes, int) and classes != wanted:
        raise StriateError(
            f"the net has {classes} outputs and the data {wanted} classes",
            hint="call net.reset_head(classes)",
        )


def check_targets(job: Job) -> None:
    """Class numbers of the training and validation images are 0 to K - 1.

    Raises:
        StriateError: names the split and the value.
    """
    classes = len(job.task.classes)
    for loader in (job.train, job.val):
        targets = None if loader is None else getattr(loader.split, "targets", None)
        if loader is None or targets is None or not len(targets):
            continue
        low, high = int(np.min(targets)), int(np.max(targets))
        top = classes - 1 if np.ndim(targets) == 1 else 1
        if low < 0 or high > top:
            raise StriateError(
                f"split {loader.split.name!r} holds target {low if low < 0 else high}", allowed=f"0 to {top}"
            )


def first_batch(job: Job) -> Any:
    """The first batch of the first epoch.

    Raises:
        StriateError: there is none.
    """
    batches = job.train.batches(0)
    try:
        batch = next(iter(batches), None)
    finally:
        close = getattr(batches, "close", None)
        if close is not None:
            close()
    if batch is None:
        raise StriateError(
            f"{len(job.train.split)} training images do not fill one batch of {job.recipe.batch}",
            hint="lower --batch, or give more images",
        )
    return batch


def trial_loss(job: Job, net: nn.Module, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and outputs of the first batch.

    Raises:
        StriateError: the net or the loss refuses the shapes.
    """
    layout = torch.channels_last if job.recipe.channels_last else torch.contiguous_format
    try:
        with torch.no_grad(), job.place.autocast():
            outputs = net(images.contiguous(memory_format=layout))
            outputs = getattr(outputs, "logits", outputs)  # auxiliary classifiers start as the net's own does
            loss = job.task.loss(outputs, targets)
    except StriateError:
        raise
    except (RuntimeError, ValueError, IndexError) as error:
        raise StriateError(
            f"the net {job.recipe.net!r} cannot take a batch {tuple(images.shape)} with targets"
            f" {tuple(targets.shape)} ({first_line(error)})",
            hint="check --size, --channels and --batch",
        ) from error
    return loss, outputs


def check_loss(job: Job, loss: Tensor, outputs: Tensor) -> list[str]:
    """The first loss is a number near that of a net that knows nothing.

    Raises:
        StriateError: it is no number, or no scalar.
    """
    if loss.ndim:
        raise StriateError(f"the loss has shape {tuple(loss.shape)}", allowed="a single number")
    value, expected = float(loss), job.task.expected_initial_loss()
    if not math.isfinite(value):
        finite = bool(torch.isfinite(outputs).all())
        raise StriateError(
            f"the first loss is {value}" + ("" if finite else ": the net's outputs are no numbers"),
            hint="check the input's mean and standard deviation, the class weights and the initialisation",
        )
    if expected is not None and value > 3 * expected + 1:
        return [
            f"the first loss is {value:.2f}, where {expected:.2f} is expected of a net that knows nothing:"
            " check initialisation and input scale"
        ]
    return []


def memorise(job: Job, net: nn.Module, images: Tensor, targets: Tensor, seconds: float) -> list[str]:
    """Whether a copy of the net can halve its loss on up to 16 images in 40 steps of Adam; warns if not."""
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    layout = torch.channels_last if job.recipe.channels_last else torch.contiguous_format
    images = images.contiguous(memory_format=layout)
    if targets.is_floating_point():
        # Of mixed samples the larger share counts: soft targets leave a loss that no net can get below.
        targets = (targets > 0.5).to(targets.dtype)
    end, losses = time.monotonic() + seconds, []
    for _ in range(40):
        optimizer.zero_grad()
        with job.place.autocast():
            loss = loss_of(job.task, net(images), targets)
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]) or losses[-1] < 0.5 * losses[0] or time.monotonic() > end:
            break
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    if len(losses) == 40 and not min(losses) < 0.7 * losses[0]:
        return [
            f"{len(images)} images could not be memorised in 40 steps (loss {losses[0]:.2f} to"
            f" {losses[-1]:.2f}): check labels, input scale and net"
        ]
    return []


def checkpoint_bytes(job: Job) -> int:
    """Bytes of one checkpoint: weights, optimiser moments and the average."""
    weights = weight_bytes(job.net)
    moments = OPTIMIZERS.entry(job.recipe.optimizer).capabilities.get("moments", 2)
    moments = int(moments(job.recipe) if callable(moments) else moments)
    return weights * (1 + moments + (1 if job.average else 0)) + 4096


def check_folder(folder: Path, checkpoint: int) -> None:
    """The run folder can be written and holds two checkpoints and two models.

    Raises:
        StriateError: it cannot, or the disk has too little room.
    """
    place = folder
    while not place.exists():
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise StriateError(f"cannot write in {str(place)!r}", hint="choose another folder with --out")
    need, free = 4 * checkpoint, shutil.disk_usage(place).free
    if free < need:
        raise StriateError(
            f"there is no room for {str(folder)!r}: {free / MIB:,.1f} MiB are free, and checkpoints need"
            f" {need / MIB:,.1f}",
            hint="free some space, or choose another folder with --out",
        )
