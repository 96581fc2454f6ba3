"""The machine that a verb runs on: processors, the memory allocator, the cache folder, the network."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from striate.core.errors import StriateError, unknown

M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1
# Whether large blocks stay on the heap.
_kept = False


def processors() -> int:
    """How many processors this process may use (its affinity mask, not the machine's count)."""
    with contextlib.suppress(AttributeError):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def check_threads(count: int | None, name: str = "threads") -> int:
    """The number of threads or processes that is asked for, 0 for None.

    Raises:
        StriateError: below 0, or so many that the machine would do nothing else: above 64 and four times its
            processors.
    """
    most = max(64, 4 * processors())
    if count is None:
        return 0
    if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= most:
        raise StriateError(
            f"{name} is {count!r}", allowed=f"a whole number from 0 to {most:,} on this machine"
        )
    return count


def device_called(name: str) -> str:
    """The device that `name` stands for; auto: a CUDA device, else Apple's, else the processor.

    Raises:
        StriateError: PyTorch does not know it, or this machine does not have it.
    """
    import torch

    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    have = ["cpu", *(["cuda"] if cards else []), *(["mps"] if torch.backends.mps.is_available() else [])]
    current = torch.accelerator.current_accelerator() if hasattr(torch, "accelerator") else None
    have += [current.type] if current is not None and current.type not in ("cuda", *have) else []
    if name == "auto":
        return next(kind for kind in ("cuda", "mps", "cpu") if kind in have)
    try:
        device = torch.device(name)
    except RuntimeError:
        raise unknown("device", name, ("auto", "cpu", "cuda", "mps")) from None
    if device.type not in have or (device.type == "cuda" and (device.index or 0) >= cards):
        numbered = [f"cuda:{index}" for index in range(cards)]
        raise StriateError(f"this machine has no device {name!r}", allowed=["auto", *have, *numbered])
    return name


def free_memory() -> int | None:
    """Bytes of memory that can still be had: of the machine and the control groups; None where unknown."""
    found = []
    with contextlib.suppress(OSError, ValueError, AttributeError):
        found.append(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with contextlib.suppress(OSError, ValueError, KeyError):
        # With the file cache, which gives way.
        found = [1024 * _numbers(_PROC / "meminfo")["MemAvailable:"]]
    with contextlib.suppress(OSError):
        for line in (_PROC / "self/cgroup").read_text("utf-8").splitlines():
            _, kinds, path = line.split(":", 2)
            if not kinds or "memory" in kinds.split(","):
                found += _group_memory(_GROUPS / kinds, path.strip("/"), *_LIMITS[bool(kinds)])
    if not found:
        with contextlib.suppress(ImportError):
            import psutil  # macOS and Windows

            found.append(int(psutil.virtual_memory().available))
    return max(0, min(found)) if found else None


_PROC, _GROUPS = Path("/proc"), Path("/sys/fs/cgroup")
# By version of the control groups: 2, then 1.
_LIMITS = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))


def _group_memory(root: Path, path: str, most: str, taken: str) -> Iterator[int]:
    """What is left of the limits of a group and of those that it lies in."""
    group = root / path
    for folder in (group, *group.parents):
        if folder != root and root not in folder.parents:
            return
        with contextlib.suppress(OSError, ValueError, KeyError):
            limit, used = (int((folder / name).read_text("ascii")) for name in (most, taken))
            yield limit - used + _numbers(folder / "memory.stat")["inactive_file"]


def _numbers(file: Path) -> dict[str, int]:
    """The second word of each line by its first."""
    lines = (line.split() for line in file.read_text("ascii").splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) > 1}


def end_with_parent() -> None:
    """In a process that another one started: end when that one does, also where it is killed."""
    import multiprocessing.connection
    import threading

    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def keep_heap() -> bool:
    """Tell glibc to keep large blocks on the heap and never give them back; True when done.

    By default each training step's large tensors are mapped, faulted in and unmapped again.
    Only the verbs that compute call this; `STRIATE_KEEP_HEAP=0` opts out.
    """
    global _kept
    if os.environ.get("STRIATE_KEEP_HEAP") == "0":
        return False
    # glibc before 2.35 refuses a threshold above 32 MiB.
    _kept = any(_mallopt(M_MMAP_THRESHOLD, size) for size in (1 << 30, 1 << 25)) and _mallopt(
        M_TRIM_THRESHOLD, -1
    )
    return _kept


@contextlib.contextmanager
def sparing_heap() -> Iterator[None]:
    """In the block glibc gives large blocks back once they are free: less memory at the peak, more time."""
    spared = _mallopt(M_MMAP_THRESHOLD, 1 << 21) and _mallopt(M_TRIM_THRESHOLD, 1 << 21)
    if spared:
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
    try:
        yield
    finally:
        if spared and not (_kept and keep_heap()):
            # The largest that glibc would have come to by itself.
            _mallopt(M_MMAP_THRESHOLD, 1 << 25)


def _mallopt(name: int, value: int) -> bool:
    """Set a parameter of glibc's allocator; False where there is none."""
    if not sys.platform.startswith("linux"):
        return False
    with contextlib.suppress(OSError, AttributeError):
        return bool(ctypes.CDLL(None).mallopt(name, value))
    return False


def cache_folder() -> Path:
    """The folder for downloads: STRIATE_CACHE, else `striate` in XDG_CACHE_HOME or ~/.cache."""
    if chosen := os.environ.get("STRIATE_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "striate"


def offline() -> bool:
    """Whether STRIATE_OFFLINE forbids the network: set, and not 0."""
    return os.environ.get("STRIATE_OFFLINE", "0") not in ("", "0")
