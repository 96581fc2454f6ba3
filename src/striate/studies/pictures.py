"""The pictures of a report: images behind confusions, mistakes, masks, and the inside of the network."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from striate.core.errors import BadImage, StriateError
from striate.data.samples import Split
from striate.images import draw
from striate.images.colour import palette
from striate.images.geometry import resize
from striate.model import Model
from striate.report.contents import Confusion, Example, Gallery, Panel, Picture
from striate.report.figures import matrix
from striate.report.html import IMAGES, PER_CELL
from striate.visualize.method import visualize

Bytes = NDArray[np.uint8]
THUMB, SHOT, WIDE = 88, 176, 320  # longest side in pixels: behind a cell, in a gallery, of a mask
ON_DIAGONAL = 6  # images behind a cell of the diagonal
MISTAKES, WORST, LOOKED_AT, MASKS = 12, 12, 6, 4
STAGES, FILTERS, MAPS, TILE = 4, 64, 15, 84
PLUMBING = re.compile(r"(^|_)(relu|act|bn|norm|drop|pad)")  # stages that change little of what is seen
LEGEND = 40  # colours named beside the masks


def fitted(image: Bytes, side: int) -> Bytes:
    """The image with its longer side at most `side` pixels, its shape kept."""
    height, width = image.shape[:2]
    scale = side / max(height, width)
    if scale >= 1:
        return image
    return resize(image, (max(1, round(height * scale)), max(1, round(width * scale))))


def picture(image: Bytes, alt: str, *, label: str = "", sharp: bool = False, side: int = SHOT) -> Picture:
    """An encoded picture: PNG where it is sharp or small and that is shorter, else JPEG."""
    small = fitted(image, side)
    height, width = small.shape[:2]
    if sharp:
        data = draw.encode_png(small)
    else:
        data = draw.encode_jpeg(small, quality=82)
        if max(height, width) <= 64:
            data = min(data, draw.encode_png(small), key=len)
    return Picture(data, alt, width, height, label)


def example(split: Split, model: Model, scores: Mapping[str, Any], place: int, side: int) -> Example | None:
    """The sample at a place of the scores' rows with what was said of it; None where it cannot be read."""
    number = int(scores["index"][place])
    name, classes = split.name_of(number), scores["classes"]
    try:
        image = split.image(number, at_least=side, channels=model.preprocess.channels)
    except (BadImage, IndexError):
        return None
    true, predicted = (_said(scores[key][place], classes) for key in ("true", "predicted"))
    alt = f"{name}: {true or 'nothing'}, predicted {predicted or 'nothing'}"
    sure = scores.get("confidence")
    return Example(
        pictures=(picture(image, alt, side=side),),
        name=name,
        true=true,
        predicted=predicted,
        confidence=None if sure is None else float(sure[place]),
    )


def _said(value: Any, classes: Sequence[str]) -> str:
    """A class number as its name, or zeros and ones as the names of the ones."""
    if np.ndim(value) == 0:
        return str(classes[int(value)])
    return ", ".join(str(classes[int(k)]) for k in np.flatnonzero(np.asarray(value))) or "no label"


def cells(confusion: Confusion, split: Split, model: Model, scores: Mapping[str, Any]) -> Confusion:
    """The confusion matrix with the images behind the cells that the report shows, most confident first.

    At most 12 images a mistake and 6 a hit; all cells get fewer where that would be more than 600.
    """
    shown = matrix(confusion)
    wanted = dict.fromkeys((cell.row, cell.column) for row in shown.rows for cell in row if cell.count)
    wanted |= dict.fromkeys((cell.row, cell.column) for cell in shown.pairs)
    behind: dict[tuple[int, int], list[int]] = {key: [] for key in wanted}
    order = np.argsort(-np.asarray(scores["confidence"], np.float64), kind="stable")
    true, predicted = np.asarray(scores["true"]), np.asarray(scores["predicted"])
    for place in order.tolist():
        key = (int(true[place]), int(predicted[place]))
        limit = ON_DIAGONAL if key[0] == key[1] else PER_CELL
        if key in behind and len(behind[key]) < limit:
            behind[key].append(place)
    most = next(m for m in range(PER_CELL, -1, -1) if sum(min(m, len(b)) for b in behind.values()) <= IMAGES)
    found = {
        key: tuple(_readable(example(split, model, scores, place, THUMB) for place in places[:most]))
        for key, places in behind.items()
    }
    return replace(confusion, cells={key: examples for key, examples in found.items() if examples})


def _readable(examples: Iterable[Example | None]) -> list[Example]:
    return [found for found in examples if found is not None]


def mistakes(split: Split, model: Model, scores: Mapping[str, Any]) -> tuple[Gallery, ...]:
    """The most confident mistakes, and the images whose truth was least expected."""
    score = np.asarray(scores["sample_score"], np.float64)
    true, predicted = np.asarray(scores["true"]), np.asarray(scores["predicted"])
    worst = np.argsort(score, kind="stable").tolist()
    if true.ndim == 2:
        wrong = [place for place in worst if (true[place] != predicted[place]).any()][:MISTAKES]
        made = _readable(example(split, model, scores, place, SHOT) for place in wrong)
        note = "The images with the most labels wrong."
        return (Gallery("Worst images", note, tuple(made)),) if made else ()
    order = np.argsort(-np.asarray(scores["confidence"], np.float64), kind="stable").tolist()
    sure = [place for place in order if true[place] != predicted[place]][:MISTAKES]
    lost = [place for place in worst if true[place] != predicted[place] and place not in sure][:WORST]
    found = (
        (
            sure,
            "Most confident mistakes",
            "The network was sure, and wrong. Look here for wrong labels first.",
        ),
        (lost, "Worst of the others", "Images whose true class got the lowest probability."),
    )
    galleries = []
    for places, title, note in found:
        made = _readable(example(split, model, scores, place, SHOT) for place in places)
        if made:
            galleries.append(Gallery(title, note, tuple(made)))
    return tuple(galleries)


def masks(split: Split, model: Model, scores: Mapping[str, Any]) -> tuple[Gallery, ...]:
    """Images with truth and prediction laid over them: evenly chosen ones, then the worst."""
    order = np.argsort(np.asarray(scores["sample_score"], np.float64), kind="stable").tolist()
    spread = np.linspace(0, len(order) - 1, min(MASKS, len(order))).round().astype(int)
    usual = [order[k] for k in dict.fromkeys(spread.tolist())][::-1]
    rest = [place for place in order[: len(order) // 2] if place not in usual]
    worst = rest[:MASKS] if len(order) >= 3 * MASKS else []
    colours = palette(len(model.classes))[:LEGEND]
    legend = tuple((name, "#" + bytes(c).hex()) for name, c in zip(model.classes, colours, strict=False))
    galleries = []
    for places, title, note in (
        (usual, "From best to worst", "The image, the truth, and the prediction."),
        (worst, "Worst images", "The others with the lowest score."),
    ):
        made = _readable(_masked(split, model, scores, place) for place in places)
        if made:
            galleries.append(
                Gallery(title, note, tuple(made), legend if len(model.classes) <= LEGEND else ())
            )
    return tuple(galleries)


def _masked(split: Split, model: Model, scores: Mapping[str, Any], place: int) -> Example | None:
    number = int(scores["index"][place])
    name = split.name_of(number)
    try:
        image, truth = split.image(number, channels=3), split.mask(number)
        answer = model.predict(image)
    except (BadImage, IndexError):
        return None
    colours = palette(len(model.classes))
    layers = [
        (image, "image"),
        (draw.overlay_mask(image, truth, colours), "truth"),
        (draw.overlay_mask(image, np.asarray(answer.mask), colours), "prediction"),
    ]
    shown = tuple(picture(layer, f"{name}: {label}", label=label, side=WIDE) for layer, label in layers)
    return Example(
        shown,
        name,
        score=float(scores["sample_score"][place]),
        score_name="pixel accuracy",
    )


def inside(
    model: Model, split: Split | None, scores: Mapping[str, Any] | None
) -> tuple[tuple[Panel, ...], Gallery | None, tuple[str, ...]]:
    """Filters, feature maps and saliency, and a line for each that is not possible for this network."""
    panels: list[Panel] = []
    missing: list[str] = []
    samples = _samples(split, model, scores) if split is not None else []
    gallery = None
    try:
        panels.append(_filters(model))
    except StriateError as error:
        missing.append(f"No filters: {error}.")
    if samples:
        try:
            panels += _maps(model, samples[0])
        except StriateError as error:
            missing.append(f"No feature maps: {error}.")
        try:
            gallery = _saliency(model, samples)
        except StriateError as error:
            missing.append(f"No saliency: {error}.")
    return tuple(panels), gallery, tuple(missing)


def _filters(model: Model) -> Panel:
    seen = visualize("filters", model, count=FILTERS)
    return Panel(f"Filters of {seen.title}", seen.note, _tiles(seen, "filter"), tiles=True)


def _maps(model: Model, sample: _Sample) -> list[Panel]:
    panels: list[Panel] = []
    for stage in _stages(model):
        seen = visualize("feature-maps", model, sample.image, stage=stage, count=MAPS)
        note = "" if panels else f"The strongest maps for {sample.name}, which stands first. {seen.note}"
        panels.append(Panel(f"Feature maps of {seen.title}", note, _tiles(seen, "map"), tiles=True))
    return panels


def _tiles(seen: Any, what: str) -> tuple[Picture, ...]:
    """The drawings of a visualisation as small pictures of their own."""
    found = []
    for number, panel in enumerate(seen.panels):
        small = max(panel.pixels.shape[:2]) <= 32
        alt = f"{seen.title}: {panel.caption or f'{what} {number}'}"
        found.append(picture(panel.pixels, alt, sharp=small, side=TILE))
    return tuple(found)


def _saliency(model: Model, samples: Sequence[_Sample]) -> Gallery:
    shown = []
    for sample in samples:
        view, heat = visualize("saliency", model, sample.image).panels[:2]
        two = (
            picture(view.pixels, f"{sample.name}: as the network sees it", label="image"),
            picture(heat.pixels, f"{sample.name}: saliency", label="saliency"),
        )
        shown.append(replace(sample.example, pictures=two))
    note = "Where a small change of a pixel would change the score of the predicted class most."
    return Gallery("Saliency", note, tuple(shown))


class _Sample:
    """An image that is looked at, with its name and what was said of it."""

    def __init__(self, image: Bytes, example: Example) -> None:
        self.image, self.example, self.name = image, example, example.name


def _samples(split: Split, model: Model, scores: Mapping[str, Any] | None) -> list[_Sample]:
    """A few images: for classes, the surest right ones of different classes and the surest mistake."""
    channels = model.preprocess.channels
    if scores is None or "confidence" not in scores:
        places = list(range(0, len(split), max(1, len(split) // LOOKED_AT)))[:LOOKED_AT]
        found = []
        for number in places:
            try:
                image = split.image(number, at_least=2 * SHOT, channels=channels)
            except BadImage:
                continue
            found.append(_Sample(image, Example((), split.name_of(number))))
        return found
    chosen = _chosen(scores)
    found = []
    for place in chosen:
        made = example(split, model, scores, place, SHOT)
        if made is not None:
            number = int(scores["index"][place])
            found.append(_Sample(split.image(number, at_least=2 * SHOT, channels=channels), made))
    return found


def _chosen(scores: Mapping[str, Any]) -> list[int]:
    order = np.argsort(-np.asarray(scores["confidence"], np.float64), kind="stable").tolist()
    true, predicted = np.asarray(scores["true"]), np.asarray(scores["predicted"])
    right: dict[int, int] = {}
    for place in order:
        if true[place] == predicted[place]:
            right.setdefault(int(true[place]), place)
    wrong = [place for place in order if true[place] != predicted[place]][:2]
    return [*[right[k] for k in sorted(right)][: LOOKED_AT - len(wrong)], *wrong]


def _stages(model: Model) -> list[str]:
    """A few stages of different depth that still have a picture's shape, convolutions and blocks first."""
    stages = [info.name for info in model.net.spatial_stages()]  # type: ignore[operator]
    telling = [name for name in stages if not PLUMBING.search(name)] or stages
    places = np.linspace(0, len(telling) - 1, min(STAGES, len(telling))).round().astype(int)
    return [telling[k] for k in dict.fromkeys(places.tolist())]
