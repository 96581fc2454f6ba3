"""Training in processes of their own: killed, stopped by signals, or several at once.

A fork server imports PyTorch once (its optimisers import `torch._dynamo` too); processes are forked from it.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any


def server() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["striate.train.session", "sklearn.datasets", "torch._dynamo"])
    return context


def start(target: Callable[..., None], *arguments: Any) -> ForkServerProcess:
    process = server().Process(target=target, args=arguments, daemon=True)
    process.start()
    return process


def train(folder: str, fault: int, data: str, settings: dict[str, Any], share: float = 0.0) -> None:
    """Train or go on in `folder`.

    With a fault, die by SIGKILL at that many calls into writing; with a share, in the third step.
    """
    import torch

    from striate.core.errors import StriateError
    from striate.train import session

    torch.set_num_threads(1)
    if fault:
        die_while_writing(fault)
    if share:
        die_in_a_step(share)
    try:
        session.train(data, out=folder, resume=True, progress=False, threads=1, **settings)
    except StriateError as error:
        Path(folder, "error.txt").write_text(str(error))
        sys.exit(getattr(error, "exit_code", 2))


def die_while_writing(count: int) -> None:
    """Let the process be killed at the `count`-th call of: half a write, a flush, a rename, a log line."""
    left = [count]

    def passed() -> bool:
        left[0] -= 1
        return left[0] <= 0

    def die(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def guarded(work: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *a, **k: die() if passed() else work(*a, **k)

    open_file = os.fdopen

    def fdopen(*arguments: Any, **keywords: Any) -> Any:
        file = open_file(*arguments, **keywords)
        if passed():
            write = file.write

            class Half:
                """A file that takes half of what it is given."""

                def write(self, data: bytes) -> None:
                    write(data[: len(data) // 2])
                    file.flush()
                    die()

                def __enter__(self) -> Half:
                    return self

                def __exit__(self, *_: Any) -> None:
                    die()

                flush = fileno = seek = tell = read = die

            return Half()
        return file

    os.fdopen = fdopen  # type: ignore[assignment]
    os.fsync = guarded(os.fsync)
    os.replace = guarded(os.replace)


def die_in_a_step(share: float) -> None:
    """Let the process be killed in its third step, at this share of the time that the second one took.

    It makes no fourth: how far it comes does not depend on how fast it is. Every step writes a checkpoint.
    """
    from striate.train.checkpoint import LAST

    replace, times = os.replace, []

    def replaced(source: Any, target: Any) -> None:
        replace(source, target)
        if Path(target).name != LAST:
            return
        times.append(time.monotonic())
        if len(times) == 2:
            after = share * (times[1] - times[0])
            threading.Timer(after, os.kill, (os.getpid(), signal.SIGKILL)).start()
        if len(times) == 3:
            time.sleep(60)

    os.replace = replaced


def train_parallel(
    rank: int, world: int, port: int, folder: str, data: str, settings: dict[str, Any]
) -> None:
    """One of several processes, as `torchrun` starts them."""
    import torch

    from striate.train import session

    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    session.train(data, out=folder, progress=False, threads=1, **settings)


def moments(seed: int, count: int, last: int) -> list[int]:
    """Random whole numbers from 1 to `last`."""
    draw = random.Random(seed)
    return [draw.randint(1, last) for _ in range(count)]
