"""Invariance: how far features move, and what becomes of the answer, when the picture is moved."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from striate.core.errors import StriateError
from striate.core.settings import setting
from striate.images import geometry
from striate.nets.taps import capture
from striate.visualize.curves import Curve, Curves
from striate.visualize.method import METHODS, Method, Panel, Pixels, class_index, must_be_numbers, net_input
from striate.visualize.scores import run
from striate.visualize.stages import first_with_maps

if TYPE_CHECKING:
    from striate.model import Model

Array = NDArray[np.float32]
TRANSFORMS = {
    "vertical": "vertical translation (pixels)",
    "horizontal": "horizontal translation (pixels)",
    "scale": "scale",
    "rotation": "rotation (degrees)",
}
BORDERS = {
    "reflect": "Beyond the image's border lies its mirror image: no edge comes in that is not in the image.",
    "edge": "Beyond the image's border lie its outermost pixels.",
    "mean": "Beyond the image's border lies the mean colour, 0 at the net's input.",
}
# Pictures that go through the net together.
AT_ONCE = 32


@METHODS.register("invariance", images="one or more", target=True, quick={"transforms": "scale"})
@dataclass(frozen=True)
class Invariance(Method):
    """How features and the answer change when the image is shifted, scaled and turned.

    Each image is moved by each amount; at each stage the Euclidean distance of its feature vector (all
    values of the stage) to that of the image as it is, relative to the latter's length, and the probability
    of the class. What the net sees is moved, in one warp, about its middle; translations go by whole pixels
    (and so do not blur). `border` says what lies beyond the image; with `inset` below 1 the image is first
    reduced to that part of the view, so that nothing of it leaves the view.
    arrays: "vertical", "horizontal" (pixels; down and to the right are positive), "scale", "rotation"
    (degrees, counter-clockwise): the amounts, each with "NAME_distance" (images, stages, amounts), not
    relative, and "NAME_probability" (images, amounts); "length" (images, stages) of the unmoved features;
    "target" (images,).
    Zeiler and Fergus, Visualizing and Understanding Convolutional Networks (arXiv:1311.2901), figure 5.

    Raises:
        StriateError: no such stage or class; a task without one probability for each class; outputs that are
            not numbers.
    """

    name: ClassVar[str] = "invariance"

    stages: str | None = setting(
        None, help="stages, with commas between them; nothing takes the first with maps and the head's input"
    )
    target: int | str | tuple[int | str, ...] | None = setting(
        None, help="the true class, or one for each image; nothing takes the predicted ones"
    )
    transforms: str = setting(
        ",".join(TRANSFORMS), help="which of vertical, horizontal, scale, rotation, with commas"
    )
    shift: float = setting(
        0.25, help="farthest translation, as a part of the view's side", minimum=0.0, maximum=1.0
    )
    zoom: float = setting(1.8, help="largest scale; the smallest is its inverse", minimum=1.0, maximum=10.0)
    turn: float = setting(180.0, help="farthest rotation to both sides, in degrees", minimum=0.0, maximum=180)
    steps: int = setting(
        25, help="amounts for each curve; odd, with the unmoved in the middle", minimum=3, maximum=721
    )
    border: str = setting("reflect", help="what lies beyond the image", choices=tuple(BORDERS))
    inset: float = setting(
        1.0, help="side of the image as a part of the view's, 0.1 to 1", minimum=0.1, maximum=1.0
    )

    def draw(self, model: Model, views: Sequence[Pixels]) -> Curves:
        """The curves; raises StriateError as the class says."""
        names = self._transforms()
        stages = self._stages(model)
        targets = self._targets(model, views)
        amounts = {name: self.amounts(name, [view.shape[:2] for view in views]) for name in names}
        arrays: dict[str, NDArray[Any]] = {}
        found = {name: ([], []) for name in names}  # type: dict[str, tuple[list[Array], list[Array]]]
        lengths = []
        for place, view in enumerate(views):
            clean, chances = _look(model, [self.moved(model, view, "scale", 1.0)], stages)
            if targets[place] is None:
                targets[place] = int(chances[0].argmax())
            lengths.append([float(np.linalg.norm(clean[stage][0])) for stage in stages])
            for name in names:
                distances, probabilities = self._curve(
                    model, view, name, amounts[name], stages, clean, int(targets[place] or 0)
                )
                found[name][0].append(distances)
                found[name][1].append(probabilities)
        length = np.array(lengths, np.float32)
        for name in names:
            arrays[name] = amounts[name]
            arrays[f"{name}_distance"] = np.stack(found[name][0])
            arrays[f"{name}_probability"] = np.stack(found[name][1])
        arrays |= {"length": length, "target": np.array([int(t or 0) for t in targets])}
        labels = [model.classes[int(t or 0)] for t in targets]
        return Curves(
            method=self.name,
            title=f"{model.net.name if hasattr(model.net, 'name') else 'Net'}: {', '.join(names)}",
            note=self._note(),
            arrays=arrays,
            panels=tuple(self._panels(model, views, names, amounts, labels)),
            columns=3,
            curves=tuple(_curves(arrays, names, stages, labels)),
            across=len(stages) + 1,
        )

    def amounts(self, name: str, sizes: Sequence[tuple[int, int]]) -> Array:
        """By how much the images are moved, in rising order; the unmoved image is among them."""
        half = self.steps // 2
        if name == "scale":
            return np.array([self.zoom ** (i / half) for i in range(-half, half + 1)], np.float32)
        if name == "rotation":
            return np.linspace(-self.turn, self.turn, 2 * half + 1, dtype=np.float32)
        side = min(size[0 if name == "vertical" else 1] for size in sizes)
        return np.unique(np.round(np.linspace(-self.shift, self.shift, 2 * half + 1) * side)).astype(
            np.float32
        )

    def moved(self, model: Model, view: Pixels, name: str, amount: float) -> Pixels:
        """A view moved by one transform."""
        height, width = view.shape[:2]
        middle = (width / 2, height / 2)
        matrix = {
            "vertical": lambda: geometry.translate(0, amount),
            "horizontal": lambda: geometry.translate(amount, 0),
            "scale": lambda: geometry.scale(amount, center=middle),
            "rotation": lambda: geometry.rotate(amount, center=middle),
        }[name]()
        if self.inset < 1:
            matrix = geometry.compose(geometry.scale(self.inset, center=middle), matrix)
        if np.array_equal(matrix, np.eye(3)):
            return view
        border = "constant" if self.border == "mean" else self.border
        fill = tuple(float(value) for value in model.preprocess.fill)
        return np.ascontiguousarray(geometry.warp(view, matrix, (height, width), border=border, fill=fill))

    def _curve(
        self, model: Model, view: Pixels, name: str, amounts: Array, stages: Sequence[str],
        clean: dict[str, Array], target: int,
    ) -> tuple[Array, Array]:  # fmt: skip
        """Distances (stages, amounts) and probabilities (amounts,) of one image under one transform."""
        distances: list[list[float]] = [[] for _ in stages]
        probabilities: list[float] = []
        for first in range(0, len(amounts), AT_ONCE):
            some = [self.moved(model, view, name, float(a)) for a in amounts[first : first + AT_ONCE]]
            features, chances = _look(model, some, stages)
            for place, stage in enumerate(stages):
                apart = (features[stage] - clean[stage]).reshape(len(some), -1)
                distances[place] += np.linalg.norm(apart, axis=1).tolist()
            probabilities += chances[:, target].tolist()
        return np.array(distances, np.float32), np.array(probabilities, np.float32)

    def _transforms(self) -> list[str]:
        from striate.core.errors import unknown

        names = list(dict.fromkeys(name.strip() for name in self.transforms.split(",") if name.strip()))
        for name in names:
            if name not in TRANSFORMS:
                raise unknown("transform", name, TRANSFORMS)
        if not names:
            raise StriateError("no transform is named", allowed=TRANSFORMS)
        return names

    def _stages(self, model: Model) -> list[str]:
        if self.stages:
            return list(dict.fromkeys(name.strip() for name in self.stages.split(",") if name.strip()))
        names = list(getattr(model.net, "stage_names", ()))
        head = getattr(model.net, "head", None)
        # The vector that the head sees, or where that is not a stage of its own, the last stage.
        last = names[names.index(head) - 1] if head in names[1:] else None
        first = first_with_maps(model)
        return list(dict.fromkeys([first, *([last] if last else [])]))

    def _targets(self, model: Model, views: Sequence[Pixels]) -> list[int | None]:
        if self.target is None:
            return [None] * len(views)
        given = self.target if isinstance(self.target, tuple) else (self.target,) * len(views)
        if len(given) != len(views):
            raise StriateError(
                f"{len(given)} targets for {len(views)} images", allowed="one, or one an image"
            )
        return [class_index(one, model.classes) for one in given]

    def _panels(
        self, model: Model, views: Sequence[Pixels], names: Sequence[str], amounts: dict[str, Array],
        labels: Sequence[str],
    ) -> Iterator[Panel]:  # fmt: skip
        """For each image and transform: the ends and the unmoved image between them."""
        for view, label in zip(views, labels, strict=True):
            for name in names:
                ends = amounts[name]
                for amount in (ends[0], ends[len(ends) // 2], ends[-1]):
                    text = f"{name} {amount:.3g}" if amount != ends[len(ends) // 2] else label
                    yield Panel(self.moved(model, view, name, float(amount)), text)

    def _note(self) -> str:
        inset = f" The image fills {self.inset:.0%} of the view's side." if self.inset < 1 else ""
        return (
            "Distance: of a stage's features to those of the unmoved image, relative to their length. "
            f"Probability: of the class named. {BORDERS[self.border]}{inset}"
        )


def _look(model: Model, views: Sequence[Pixels], stages: Sequence[str]) -> tuple[dict[str, Array], Array]:
    """Features by stage (n, ...) and probabilities (n, K) of some views of one size."""
    x = torch.cat([net_input(model, view) for view in views])
    with torch.no_grad(), capture(model.net, stages) as seen:
        outputs = run(model, x)
    if outputs.ndim != 2:
        raise StriateError(
            f"{model.task.name} gives no one probability for each class of an image",
            hint="invariance needs a classifier",
        )
    features = {}
    for stage in stages:
        must_be_numbers(seen[stage], f"the activations of {stage!r}")
        features[stage] = _array(seen[stage])
    return features, _array(model.task.posterior(outputs))


def _array(values: Tensor) -> Array:
    found: Array = values.detach().float().cpu().numpy()
    return found


def _curves(
    arrays: dict[str, NDArray[Any]], names: Sequence[str], stages: Sequence[str], labels: Sequence[str]
) -> Iterator[Curve]:
    """One chart a transform and stage, and one of the probability, in rows by transform."""
    length = np.where(arrays["length"] > 0, arrays["length"], 1)
    for name in names:
        chart = Curve(TRANSFORMS[name], "", arrays[name], (), tuple(labels), log=name == "scale")
        for place, stage in enumerate(stages):
            lines = arrays[f"{name}_distance"][:, place] / length[:, place, None]
            yield replace(chart, y=f"distance at {stage}", lines=tuple(lines), top=None)
        yield replace(chart, y="probability", lines=tuple(arrays[f"{name}_probability"]), top=1.0)
