"""The picture of the README: a photograph, the filters that see it, what they find, and what decides.

Made by the visualisation methods alone: `python -m striate.studies.picture docs/img/readme.png`.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from striate.images import draw
from striate.images.geometry import resize
from striate.model import Model, load
from striate.studies.demo import NET, photographs

Bytes = NDArray[np.uint8]
SIDE, GAP = 320, 16


def readme_picture(path: str | os.PathLike[str] = "docs/img/readme.png") -> Path:
    """Write a montage of four squares: photograph, first filters, feature maps, saliency of the flower.

    Raises:
        StriateError: the weights of EfficientNet-Lite0 are not installed, or the file cannot be written.
    """
    from striate.images.decode import decode
    from striate.visualize.method import visualize

    model = load(NET)
    flower = next(found for found in photographs() if found.stem == "flower")
    view = model.preprocess.view(decode(flower))
    answer = model.predict(flower, top=1)
    filters = visualize("filters", model)
    maps = visualize("feature_maps", model, flower, stage=_stage(model))
    saliency = visualize("saliency", model, flower)
    squares = [
        (view, f"{answer.label}, {100 * answer.probability:.0f} %"),
        (_sheet(filters.panels[:16]), "filters of the first layer"),
        (_sheet(maps.panels[1:]), f"feature maps of {_stage(model)}"),
        (saliency.panels[-1].pixels, "saliency"),
    ]
    tiles = [draw.caption(_square(image), text, height=22) for image, text in squares]
    return draw.save(path, draw.grid(tiles, columns=len(tiles), pad=GAP))


def _stage(model: Model) -> str:
    """The first rectified stage: fine enough to be seen, and its zeros are zeros."""
    names = [str(info.name) for info in model.net.spatial_stages()]  # type: ignore[operator]
    return next((name for name in names if "relu" in name), names[0])


def _sheet(panels: Sequence[Any]) -> Bytes:
    """Drawings in a square, without captions."""
    side = SIDE // math.isqrt(len(panels)) - 2
    return draw.grid([resize(draw.rgb(panel.pixels), (side, side), "nearest") for panel in panels], pad=2)


def _square(image: Bytes) -> Bytes:
    return resize(draw.rgb(image), (SIDE, SIDE), "nearest" if image.shape[0] < SIDE // 4 else "bilinear")


if __name__ == "__main__":
    print(readme_picture(*sys.argv[1:2]))
