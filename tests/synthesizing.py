"""Pictures, short settings and interruptions for the tests of synthesis."""

from __future__ import annotations

from typing import Any

import numpy as np

QUICK_DREAM: dict[str, Any] = {"stages": "conv2", "octaves": 2, "steps": 4, "tile": 32, "jitter": 3}
QUICK_STYLE: dict[str, Any] = {
    "stages": "conv1,relu1", "content_stages": "relu2", "size": 0, "steps": 8, "scales": 2,
}  # fmt: skip


def stopping(after: int) -> Any:
    """A watcher that stops the run after so many steps in all."""
    count = [0]

    def watch(_: Any) -> None:
        count[0] += 1
        if count[0] == after:
            raise KeyboardInterrupt

    return watch


def big(height: int = 150, width: int = 140, channels: int = 3, seed: int = 0) -> np.ndarray:
    """A smooth picture with some grain."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [128 + 90 * np.sin(x / (9 + 3 * c)) * np.cos(y / (7 + 2 * c)) for c in range(channels)]
    grain = np.random.default_rng(seed).normal(0, 8, (height, width, channels))
    return (np.stack(waves, -1) + grain).clip(0, 255).astype(np.uint8)
