"""Where a run computes: device, precision, threads, and its place among several processes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from striate.core.errors import StriateError
from striate.core.machine import check_threads, device_called, processors


@dataclass(frozen=True)
class Place:
    """One process of a run: its device, its rank from 0 among `world` processes, and its precision."""

    device: torch.device
    rank: int = 0
    world: int = 1
    amp: torch.dtype | None = None

    @property
    def first(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The mixed-precision context of the forward pass."""
        if self.amp is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.amp)

    def parallel(self, net: nn.Module) -> nn.Module:
        """The net, wrapped so that gradients are averaged over the processes."""
        if self.world == 1:
            return net
        ids = [self.device] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(net, device_ids=ids)

    def quiet(self, net: nn.Module, on: bool) -> contextlib.AbstractContextManager[Any]:
        """Where `on`, backward passes within do not yet average gradients over the processes."""
        if on and isinstance(net, nn.parallel.DistributedDataParallel):
            no_sync: contextlib.AbstractContextManager[Any] = net.no_sync()
            return no_sync
        return contextlib.nullcontext()

    def gather(self, value: Any) -> list[Any]:
        """`value` of every process, in order of rank."""
        if self.world == 1:
            return [value]
        found: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(found, value)
        return found

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true in any process; a meeting point of all."""
        return any(self.gather(flag))

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of `tensor` over the processes."""
        if self.world > 1:
            tensor = tensor.clone()
            torch.distributed.all_reduce(tensor)
        return tensor


def find_device(name: str, local_rank: int = 0, processes: int = 1) -> torch.device:
    """The device called `name`; auto: a CUDA device, then Apple's, then the CPU.

    Of several processes on a machine each has the CUDA device of its `local_rank`, from 0.

    Raises:
        StriateError: PyTorch does not know it, this machine does not have it, or it has fewer CUDA devices
            than processes, or one of them is named for all processes.
    """
    device = torch.device(device_called(name))
    if device.type != "cuda":
        return device
    count = torch.cuda.device_count()
    if device.index is not None and processes > 1:
        raise StriateError(
            f"device is {name!r}, and {processes} processes would share it",
            hint="give --device cuda, of which each process takes its own",
        )
    if count == 1 and os.environ.get("CUDA_VISIBLE_DEVICES"):
        return torch.device("cuda", 0)  # what started the processes may have shown each its own
    if local_rank >= count:
        raise StriateError(
            f"this machine has no CUDA device for process {local_rank} (from 0)",
            allowed=f"up to {count} process{'es' * (count > 1)}",
            hint=f"give torchrun --nproc-per-node {count}, or train with --device cpu",
        )
    return device if device.index is not None else torch.device("cuda", local_rank)


def computes_bfloat16(device: torch.device) -> bool:
    """Whether the device has bfloat16 units (CPU: AVX-512 BF16 or AMX; CUDA: Ampere or later)."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        return any(
            bool(getattr(torch.cpu, name, lambda: False)())
            for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        )
    return False


def find_precision(amp: str, device: torch.device) -> torch.dtype | None:
    """The type of mixed precision, or None for none.

    Raises:
        StriateError: bfloat16 is asked of a device without it, where it is many times slower.
    """
    if amp == "off":
        return None
    if computes_bfloat16(device):
        return torch.bfloat16
    if amp == "bfloat16":
        raise StriateError(
            f"amp is bfloat16, and {device.type} does not compute it in hardware (it would be slower)",
            allowed="off, auto",
        )
    return None


@contextlib.contextmanager
def threads(count: int | None) -> Iterator[int]:
    """Compute with `count` threads (None: one for each processor) within the block; gives the number.

    Raises:
        StriateError: as of `check_threads`.
    """
    before = torch.get_num_threads()
    wanted = check_threads(count) or processors()
    torch.set_num_threads(wanted)
    try:
        yield wanted
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def place(device: str, amp: str) -> Iterator[Place]:
    """This process's place; under `torchrun` the process group is joined and left again.

    Raises:
        StriateError: no such device or precision, or more processes than CUDA devices.
    """
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    here = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    found = find_device(device, int(os.environ.get("LOCAL_RANK", 0)), here)
    precision = find_precision(amp, found)
    if world == 1:
        yield Place(found, amp=precision)
        return
    if found.type == "cuda":
        torch.cuda.set_device(found)
    joined = not torch.distributed.is_initialized()
    if joined:
        torch.distributed.init_process_group("nccl" if found.type == "cuda" else "gloo")
    try:
        yield Place(found, rank, world, precision)
    finally:
        if joined:
            torch.distributed.destroy_process_group()


def mixed(seed: int, *numbers: int) -> int:
    """A 63-bit seed from a seed and counters (splitmix64: Steele, Lea and Flood 2014)."""
    state = seed
    for number in numbers:
        state = (state + 0x9E3779B97F4A7C15 * (number + 1)) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state & 0x7FFFFFFFFFFFFFFF
