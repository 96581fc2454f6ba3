"""Neural style: a picture with the content of one image and the manner of others, on any backbone."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from striate.core.errors import StriateError
from striate.images.decode import to_image
from striate.nets.geometry import stage_geometry
from striate.visualize.ascent import climb
from striate.visualize.colours import luma, match_colours, match_luma, with_colours_of
from striate.visualize.dream import Made
from striate.visualize.fingerprint import of_model, of_pixels
from striate.visualize.forms import Form
from striate.visualize.goals import TotalVariation
from striate.visualize.kept import Keeper
from striate.visualize.objectives import Leaf, Objective, total
from striate.visualize.paper_form import paper_form
from striate.visualize.references import Content, Gram
from striate.visualize.studio import Studio, resized, to_picture, to_pixels
from striate.visualize.synthesis import Phase, Watcher, ascend
from striate.visualize.wishes import Style, words

if TYPE_CHECKING:
    from striate.model import Model

Pixels = NDArray[np.uint8]
# The stages of Gatys et al. 2015 (arXiv:1508.06576, figure 2), where the net has them.
PAPER = (("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1"), ("relu4_2",))
LEAST_SIDE = 64


@dataclasses.dataclass(frozen=True)
class Images:
    """What goes in, at full size: content, styles, and masks 0 .. 1 (None: everywhere)."""

    content: Pixels
    styles: tuple[Pixels, ...]
    masks: tuple[NDArray[np.float32] | None, ...]
    style_masks: tuple[NDArray[np.float32] | None, ...]
    weights: tuple[float, ...]


def stylize(
    model: Model,
    content: Any,
    styles: Sequence[Any] | Any,
    wish: Style | None = None,
    *,
    watch: Watcher | None = None,
    state: str | os.PathLike[str] | None = None,
    resume: bool = False,
    **wishes: Any,
) -> Made:
    """Paint the content in the manner of the styles (Gatys, Ecker & Bethge 2015, arXiv:1508.06576).

    Minimises content_weight * mean over content stages of |F - P|^2 / |P|^2 + style_weight * sum over styles
    of their weights (which add up to 1) * mean over stages of |G - A|^2 / |A|^2 + tv * (total variation),
    with Gram matrices G and A, from coarse to fine. Each distance is relative, so that stages of any
    backbone count alike.

    state: a file to keep the state in; with `resume` a stopped run goes on from it, to equal bytes.

    Raises:
        BadImage: an image cannot be decoded.
        StriateError: an unknown stage, or numbers of weights or masks that do not fit the styles.
    """
    wish = dataclasses.replace(wish or Style(), **wishes) if wishes else wish or Style()
    images = _read(model, content, styles, wish)
    facts = {
        "verb": "style", "wish": wish, "net": of_model(model), "content": of_pixels(images.content),
        "styles": [of_pixels(style) for style in images.styles], "weights": images.weights,
        "masks": [None if m is None else of_pixels(m) for m in (*images.masks, *images.style_masks)],
    }  # fmt: skip
    keeper = Keeper(state, facts, resume=resume)
    own = _stages(model, wish)
    if wish.pools == "average" or wish.normalised:
        samples = [
            to_picture(resized(image, _within(image, 256))) for image in (images.content, *images.styles)
        ]
        model = paper_form(model, samples if wish.normalised else (), wish.pools == "average")
    picture, text, history = _scales(model, images, wish, own, watch, keeper)
    keeper.done()
    return Made("style", text, (finished(picture, images, wish),), tuple(history))


def _scales(
    model: Model,
    images: Images,
    wish: Style,
    stages: tuple[list[str], list[str]],
    watch: Watcher | None,
    keeper: Keeper,
) -> tuple[Tensor, str, list[float]]:
    """All sizes from coarse to fine; goes on from the keeper's state."""
    height, width = images.content.shape[:2]
    sizes = scale_sizes((height, width), wish.scales)
    steps = share_steps(wish.steps, len(sizes))
    saved = keeper.load()
    begin = int(saved["scale"]) if saved is not None else 0
    history = [float(value) for value in saved["history"]] if saved is not None else []
    picture: Tensor | None = None
    text = ""
    for number in range(begin, len(sizes)):
        studio = Studio(model, sizes[number], memory=wish.memory)
        form = Form((1, studio.channels, *studio.size), "pixels")
        if picture is not None:
            enlarged = F.interpolate(picture, studio.size, mode="bicubic", align_corners=False)
            form.start(enlarged.clamp(0, 1))
        elif wish.start == "content":
            form.start(to_picture(_shown(images.content, studio.size, wish)))
        else:
            form.noise(0.1, wish.seed).values.add_(0.5)
        extra = {"scale": number, "history": list(history)}
        past: list[float] = []
        with studio.open():
            objective = painting(studio, images, wish, stages)
            phase = Phase(
                studio, objective, form, climb(wish.optimizer, wish.rate), steps[number], seed=wish.seed,
                label=f"size {number + 1}/{len(sizes)}",
            )  # fmt: skip
            resumed = saved["phase"] if saved is not None and number == begin else None
            picture = ascend(phase, watch=watch, keeper=keeper, state=resumed, around=extra, history=past)
        history.extend(past)
        text = str(objective)
    assert picture is not None  # there is at least one size
    return picture, text, history


def painting(studio: Studio, images: Images, wish: Style, stages: tuple[list[str], list[str]]) -> Objective:
    """The objective at one size, looked up."""
    style_stages, content_stages = stages
    terms: list[tuple[float, Leaf]] = []
    if wish.content_weight:
        weight = wish.content_weight / len(content_stages)
        picture = to_picture(_shown(images.content, studio.size, wish))
        terms += [(-weight, Content(name, picture)) for name in content_stages]
    several = zip(images.styles, images.weights, images.masks, images.style_masks, strict=True)
    for style, share, mask, style_mask in several:
        if wish.style_weight and share:
            weight = wish.style_weight * share / len(style_stages)
            terms += [
                (-weight, Gram(name, style, wish.style_scale, mask=mask, image_mask=style_mask))
                for name in style_stages
            ]
    if wish.tv:
        terms.append((-wish.tv, TotalVariation()))
    return total(terms).ready(studio)


def _shown(content: Pixels, size: tuple[int, int], wish: Style) -> Pixels:
    """The content as the net sees it: in grey where only the luminance is painted."""
    pixels = resized(content, size)
    return (
        np.repeat(luma(pixels), 3, axis=2) if wish.colours == "luminance" and pixels.shape[2] == 3 else pixels
    )


def finished(picture: Tensor, images: Images, wish: Style) -> Pixels:
    """The picture as pixels, in the content's own colours where that is wished."""
    pixels = to_pixels(picture[0])
    if wish.colours == "luminance" and pixels.shape[2] == 3:
        return with_colours_of(pixels, resized(images.content, pixels.shape[:2]))
    return pixels


def _read(model: Model, content: Any, styles: Any, wish: Style) -> Images:
    """Decode and check everything that goes in."""
    channels = model.preprocess.channels
    several = list(styles) if isinstance(styles, (list, tuple)) else [styles]
    if not several:
        raise StriateError("no style is given", hint="give one image or more after the content")
    pixels = to_image(content, channels=channels)
    pixels = resized(pixels, _within(pixels, wish.size)) if wish.size else pixels
    painted = [to_image(style, channels=channels) for style in several]
    if wish.colours == "histogram" and channels == 3:
        painted = [match_colours(style, pixels) for style in painted]
    if wish.colours == "luminance" and channels == 3:
        painted = [match_luma(style, pixels) for style in painted]
    if min(pixels.shape[:2]) < 8:
        raise StriateError(
            f"the content is {pixels.shape[0]} x {pixels.shape[1]} pixels", allowed="at least 8 x 8"
        )
    weights = [_weight(word) for word in words(wish.style_weights)] or [1.0] * len(several)
    masks, style_masks = words(wish.masks), words(wish.style_masks)
    for name, given in (("style-weights", weights), ("masks", masks), ("style-masks", style_masks)):
        if given and len(given) != len(several):
            raise StriateError(f"{len(given)} {name} for {len(several)} styles", allowed="one for each style")
    if not sum(weights) > 0:
        raise StriateError(f"style-weights are {wish.style_weights}", allowed="at least one above 0")
    if wish.colours == "luminance" and channels == 3:
        # Painted in grey; the colours come back at the end.
        painted = [np.repeat(luma(style), 3, axis=2) for style in painted]
    return Images(
        pixels,
        tuple(painted),
        tuple(_mask(name) for name in masks) or (None,) * len(several),
        tuple(_mask(name) for name in style_masks) or (None,) * len(several),
        tuple(weight / sum(weights) for weight in weights),
    )


def _weight(word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise StriateError(f"a weight of style is {word!r}", allowed="numbers, 0 or above, such as 2,1")
    return value


def _mask(name: str) -> NDArray[np.float32] | None:
    """A mask file as 0 .. 1; an empty one is refused. The name `all` is everywhere."""
    if name == "all":
        return None
    mask: NDArray[np.float32] = to_image(name, channels=1)[..., 0].astype(np.float32) / np.float32(255)
    if not mask.any():
        raise StriateError(f"the mask {name!r} is black everywhere", hint="white is where the style applies")
    return mask


def _stages(model: Model, wish: Style) -> tuple[list[str], list[str]]:
    """The stages of style and of content."""
    names = list(getattr(model.net, "stage_names", ()))
    style, content = words(wish.stages), words(wish.content_stages)
    if all(name in names for group in PAPER for name in group):
        return style or list(PAPER[0]), content or list(PAPER[1])
    if not style or not content:
        # Beyond the fourth size maps are too coarse to hold strokes.
        found = one_a_size(model)[:4]
        style = style or found
        content = content or [found[min(2, len(found) - 1)]]
    return style, content


def one_a_size(model: Model) -> list[str]:
    """The last stage of each size of maps, from fine to coarse.

    Raises:
        StriateError: the net does not tell which stages have maps.
    """
    channels = model.preprocess.channels
    size = getattr(model.net, "input_size", (224, 224))
    try:
        infos = [info for info in stage_geometry(model.net, size, in_channels=channels) if info.spatial]
    except StriateError:
        infos = []
    by_size = {info.shape[1:]: info.name for info in infos if min(info.shape[1:]) > 1}
    if not by_size:
        raise StriateError(
            "the net does not tell which stages have maps",
            hint="name some with --stages and --content-stages",
        )
    return list(by_size.values())


def scale_sizes(size: tuple[int, int], count: int) -> list[tuple[int, int]]:
    """Heights and widths from coarse to fine, each half of the next; the last is `size`."""
    found = [size]
    while len(found) < count and min(found[-1]) // 2 >= LEAST_SIDE:
        found.append((round(found[-1][0] / 2), round(found[-1][1] / 2)))
    return found[::-1]


def share_steps(steps: int, count: int) -> list[int]:
    """Steps for each size, from coarse to fine: half of them for the finest, the rest in equal parts."""
    if count == 1 or steps < 2 * count:
        return [0] * (count - 1) + [steps]
    coarse = steps // 2 // (count - 1)
    return [coarse] * (count - 1) + [steps - coarse * (count - 1)]


def _within(pixels: Pixels, longer: int) -> tuple[int, int]:
    factor = longer / max(pixels.shape[:2])
    return max(1, round(pixels.shape[0] * factor)), max(1, round(pixels.shape[1] * factor))
