"""Memory: what a step needs, what is free, and what of it decoded pictures may take."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from striate.core.errors import StriateError
from striate.core.machine import free_memory

if TYPE_CHECKING:
    from striate.data.loaders import Loader
    from striate.train.fit import Job

GIB = 1 << 30


def weight_bytes(net: nn.Module) -> int:
    """Bytes of all parameters and buffers."""
    return sum(int(tensor.numel()) * tensor.element_size() for tensor in net.state_dict().values())


def step_bytes(job: Job) -> int | None:
    """Bytes of one step: all activations of the batch kept for the backward pass, and four times the weights.

    None where the cost of the net cannot be worked out.
    """
    from striate.nets.cost import cost

    shape = getattr(job.train.preprocess, "size", None)
    if shape is None:
        return None
    try:
        activations = cost(job.net, shape).memory
    except (StriateError, RuntimeError, AttributeError, TypeError, NotImplementedError):
        return None
    if job.recipe.recompute > 1:
        # One segment's activations at a time, beside those of the last and what passes between segments.
        activations = min(activations, 2 * activations // job.recipe.recompute)
    weights = weight_bytes(job.net)
    return 4 * weights + activations * (job.recipe.batch or 1) // job.place.world


def free_bytes(device: torch.device) -> int | None:
    """Free memory of the device; None where it does not say."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return (free_memory() or None) if device.type == "cpu" else None


def memory_warnings(job: Job) -> list[str]:
    """A warning where a step, or `cache` beside it, is likely to need more memory than there is."""
    recipe, free = job.recipe, free_bytes(job.place.device)
    need = step_bytes(job)
    if need is not None and free is not None and need >= 0.9 * free:
        return [
            f"a step needs about {need / GIB:.1f} GiB and {free / GIB:.1f} are free:"
            f" lower --batch and raise --accumulate, for instance --batch {max(1, (recipe.batch or 2) // 2)}"
            f" --accumulate {2 * recipe.accumulate}"
        ]
    left = free_memory() - _beside(job)
    if not recipe.cache or not streaming(job) or left <= 0 or recipe.cache * GIB < 0.9 * left:
        return []
    return [f"decoded images may take {recipe.cache:g} GiB and {left / GIB:.1f} are left: lower --cache"]


def keep_pictures(job: Job) -> None:
    """Give the loaders their room for decoded pictures: `cache` GiB, or a quarter of the free memory.

    Training and validation share it by their numbers of images, and so do the processes of a run. What a step
    needs is left alone; where it is a quarter, the last quarter of the free memory is too, whoever takes the
    rest: several runs may begin at a time.
    """
    loaders = streaming(job)
    count = sum(len(loader.split) for loader in loaders)
    if not count:
        return
    spare = 0
    if job.recipe.cache is not None:
        room = int(job.recipe.cache * GIB)
    else:
        free = free_memory()
        room, spare = max(0, min(free // 4, free * 9 // 10 - _beside(job))), free // 4
    for loader in loaders:
        loader.keep(room * len(loader.split) // (count * job.place.world), spare)


def streaming(job: Job) -> list[Loader]:
    """The loaders that read their images from files in every epoch."""
    return [loader for loader in (job.train, job.val) if loader is not None and loader.mode != "memory"]


def _beside(job: Job) -> int:
    """Bytes of the machine's memory that the steps of all processes need."""
    return (step_bytes(job) or 0) * job.place.world if job.place.device.type == "cpu" else 0
