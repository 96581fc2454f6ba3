"""The settings of dream and style: one dataclass a verb, without PyTorch, so that the help is quick."""

from __future__ import annotations

from dataclasses import dataclass

from striate.core import settings
from striate.core.errors import StriateError
from striate.core.settings import setting

COLOURS = ("style", "luminance", "histogram")
STARTS = ("content", "noise")
POOLS = ("as-is", "average")
WAYS = ("auto", "whole", "tiled")


@dataclass(frozen=True)
class Dream:
    """How to dream: what is raised, over which octaves, in which steps."""

    stages: str | None = setting(None, help="stages whose activations are raised, such as block4b,block5c")
    objective: str | None = setting(None, help="any sum of objectives instead, such as 'channel(block4b, 7)'")
    guide: str | None = setting(None, help="a second image whose features are sought")
    size: int = setting(0, help="longer side of the result in pixels; 0 keeps the image's", minimum=0)
    octaves: int = setting(4, help="sizes that are dreamt one after the other", minimum=1, maximum=16)
    octave_scale: float = setting(1.4, help="from one size to the next", minimum=1.01, maximum=4)
    steps: int = setting(20, help="steps at each size", minimum=1, maximum=100_000)
    rate: float = setting(0.012, help="mean change of a pixel (0 to 1) in a step", minimum=0.0, maximum=1)
    jitter: int = setting(32, help="random shift in each step, in pixels", minimum=0, maximum=4096)
    smooth: float = setting(
        0.5, help="share of the gradient's blurred forms: fewer fine grains", minimum=0, maximum=1
    )
    tile: int = setting(512, help="side of the parts that are computed at once, in pixels", minimum=32)
    frames: int = setting(
        0, help="frames of a zoom into the dream; 0 makes one picture", minimum=0, maximum=10_000
    )
    zoom: float = setting(1.04, help="enlargement from frame to frame", minimum=0.5, maximum=2)
    turn: float = setting(0.5, help="turn from frame to frame in degrees", minimum=-180, maximum=180)
    frame_steps: int = setting(6, help="steps at each frame after the first", minimum=1, maximum=10_000)
    rate_of_frames: float = setting(12.0, help="frames a second", minimum=0.1, maximum=240)
    seed: int = setting(0, help="seed of all random draws", minimum=0)

    def __post_init__(self) -> None:
        settings.check(self)
        if sum(value is not None for value in (self.stages, self.objective)) > 1:
            raise StriateError("both stages and objective are given", allowed="one of them")


@dataclass(frozen=True)
class Style:
    """How to paint: what is kept of the content, what is taken of the styles, and how it is optimised."""

    size: int = setting(512, help="longer side of the result in pixels; 0 keeps the content's", minimum=0)
    stages: str | None = setting(
        None, help="stages of style, such as relu1_1,relu2_1; default: one a size of maps"
    )
    content_stages: str | None = setting(None, help="stages of content")
    content_weight: float = setting(1.0, help="weight of the content", minimum=0)
    style_weight: float = setting(100.0, help="weight of all styles together", minimum=0)
    style_weights: str | None = setting(None, help="weight of each style, such as 2,1; default: equal")
    style_scale: float = setting(1.0, help="size of the style's patterns", minimum=0.05, maximum=10)
    tv: float = setting(0.0, help="weight of the total variation: smoothness", minimum=0)
    masks: str | None = setting(None, help="an image for each style, white where it applies: a.png,b.png")
    style_masks: str | None = setting(None, help="an image for each style, white where it is taken from")
    colours: str = setting("style", help="whose colours the result has", choices=COLOURS)
    start: str = setting("content", help="what the optimisation begins with", choices=STARTS)
    scales: int = setting(3, help="sizes from coarse to fine, each half of the next", minimum=1, maximum=8)
    steps: int = setting(300, help="steps of all sizes together", minimum=1, maximum=1_000_000)
    optimizer: str = setting("l-bfgs", help="the optimiser", choices=("l-bfgs", "adam"))
    rate: float = setting(1.0, help="length of steps: about 1 for l-bfgs, 0.02 for adam", minimum=0)
    pools: str = setting("as-is", help="max pools as they are, or averaging as in the paper", choices=POOLS)
    normalised: bool = setting(False, help="scale the filters to mean activation 1 as in the paper")
    memory: str = setting("auto", help="the pass whole, in strips, or as fits", choices=WAYS)
    seed: int = setting(0, help="seed of all random draws", minimum=0)

    def __post_init__(self) -> None:
        settings.check(self)
        if self.content_weight == 0 and self.style_weight == 0:
            raise StriateError("the weights of content and style are both 0", allowed="one above 0")


def words(text: str | None) -> list[str]:
    """The parts of a comma-separated text."""
    return [] if text is None else [word.strip() for word in text.split(",") if word.strip()]
