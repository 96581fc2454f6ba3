"""Workers of a search in processes of their own; one can be stopped within a trial, to be killed there."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

SPACE = {"lr": "log(1e-2,1)", "batch": "64,128"}
SETTINGS: dict[str, Any] = {"net": "linear", "epochs": 2, "threads": 1, "preflight": False, "augment": "none"}


def work(folder: str, trials: int, stop_in: int) -> None:
    """Work on the study; with `stop_in`, stand still after the first epoch of that many-th own trial."""
    import torch

    from striate.train import search as room

    torch.set_num_threads(1)
    room.POLL = 0.05
    if stop_in:
        tell, begun = room.Watch.__call__, []

        def watch(self: room.Watch, event: str, job: Any) -> None:
            tell(self, event, job)
            if event == "epoch" and job.state.epoch == 1:
                begun.append(self.trial.number)
                if len(begun) == stop_in:
                    Path(folder, "stopped").write_text(str(self.trial.number))
                    time.sleep(600)

        room.Watch.__call__ = watch  # type: ignore[method-assign]
    room.search("digits", space=SPACE, trials=trials, out=folder, progress=False, pruner="none", **SETTINGS)
