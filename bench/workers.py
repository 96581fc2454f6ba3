"""Variants in processes of their own, one each, that measure when they are asked to.

What shares a process shares its heap, its threads and its caches; on a machine that drifts only rounds that
alternate can be compared.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

FLAG = "--worker"


class Worker:
    """A process of the same script that holds one variant, ready to run."""

    def __init__(self, script: str, spec: dict[str, Any]) -> None:
        self.spec = spec
        self.process = subprocess.Popen(
            [sys.executable, str(Path(script).resolve()), FLAG, json.dumps(spec)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ.copy(),
        )  # fmt: skip

    def ask(self, **question: Any) -> dict[str, Any]:
        """The answer to a question; {"error": ...} from a process that has died."""
        assert self.process.stdin
        assert self.process.stdout
        try:
            self.process.stdin.write(json.dumps(question) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return {"error": "the process has ended"}
        line = self.process.stdout.readline()
        return json.loads(line) if line else {"error": "the process has ended"}

    def close(self) -> None:
        """End the process."""
        if self.process.stdin:
            self.process.stdin.close()
        self.process.wait()


def serve(build: Callable[[dict[str, Any]], Callable[..., dict[str, Any]]]) -> bool:
    """In a worker's process: build the variant, then answer questions until there are no more; else False."""
    if FLAG not in sys.argv:
        return False
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries may print
    spec = json.loads(sys.argv[sys.argv.index(FLAG) + 1])
    answer: Callable[..., dict[str, Any]] | None = None
    for line in sys.stdin:
        try:
            answer = answer or build(spec)
            found = answer(**json.loads(line))
        except Exception as error:
            found = {"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
        print(json.dumps(found), file=out, flush=True)
    return True


def pause(text: str) -> None:
    """Say that all is built, and wait for Enter: the machine can be made quiet before anything is timed."""
    print(f"{text}; press Enter to measure", file=sys.stderr, flush=True)
    sys.stdin.readline()
