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


def memory_warnings(job: Job) -> list[str]:
    """A warning where a step, or `cache` beside it, is likely to need more memory than there is."""
    recipe, device = job.recipe, job.place.device
    own = int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else None
    free, need = free_memory(), step_bytes(job)
    if device.type == "cpu" and need is not None:
        own, need = free, need * job.place.world
    if need is not None and own is not None and need >= 0.9 * own:
        return [
            f"a step needs about {need / GIB:.1f} GiB and {own / GIB:.1f} are free:"
            f" lower --batch and raise --accumulate, for instance --batch {max(1, (recipe.batch or 2) // 2)}"
            f" --accumulate {2 * recipe.accumulate}"
        ]
    if not recipe.cache or not streaming(job) or free is None:
        return []
    left = free - (need or 0 if device.type == "cpu" else 0)
    if recipe.cache * GIB < 0.9 * left:
        return []
    return [f"decoded images may take {recipe.cache:g} GiB and {left / GIB:.1f} are left: lower --cache"]


def keep_pictures(job: Job) -> None:
    """Give the loaders their room for decoded pictures: `cache` GiB, or a quarter of the free memory.

    Training and validation share it by their numbers of images, and so do the processes of a run. What a step
    needs is left alone; so is, where it is a quarter, the last tenth of the free memory, whoever takes the
    rest: several runs may begin at a time. Where the system does not tell what is free, nothing is kept
    unless `cache` says so.
    """
    loaders = streaming(job)
    count = sum(len(loader.split) for loader in loaders)
    if not count:
        return
    spare = 0
    if job.recipe.cache is not None:
        room = int(job.recipe.cache * GIB)
    else:
        free = free_memory() or 0
        need = (step_bytes(job) or 0) * job.place.world if job.place.device.type == "cpu" else 0
        spare = free // 10
        room = max(0, min(free // 4, free - spare - need))
    for loader in loaders:
        loader.keep(room * len(loader.split) // (count * job.place.world), spare)


def streaming(job: Job) -> list[Loader]:
    """The loaders that decode their images anew in every epoch."""
    found = [loader for loader in (job.train, job.val) if loader is not None]
    return [loader for loader in found if loader.mode != "memory" and loader.split.pool.pictures is None]


def told(room: int) -> str:
    """Bytes of room in words: "1.5 GiB", "20 MiB"."""
    return f"{room / GIB:.1f} GiB" if room >= GIB else f"{room / (1 << 20):.0f} MiB"
