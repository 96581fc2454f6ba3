"""Class activation maps: where a stage finds what speaks for a class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from striate.core.errors import StriateError
from striate.core.settings import setting
from striate.images import draw
from striate.nets.taps import capture
from striate.visualize.gradients import Array, Attribution, Found, coloured, reduce_channels
from striate.visualize.method import METHODS, Pixels, must_be_numbers, net_input
from striate.visualize.scores import choose, class_gradient, run
from striate.visualize.stages import last_with_maps, must_be_maps, with_maps

if TYPE_CHECKING:
    from striate.model import Model


@dataclass(frozen=True)
class _ClassMap(Attribution):
    """A map of a stage, enlarged to the picture and laid over it."""

    key: ClassVar[str] = "map"
    source: ClassVar[str] = "coarse"

    def reduce(self, one: Found, view: Pixels) -> Array:
        """The map, as large as the picture."""
        return enlarged(one.values[0] if self.signed else one.values[0].clip(0), view)

    def shown(self, one: Found, values: Array, view: Pixels) -> Pixels:
        """The heat of the map over the picture, half and half."""
        heat = draw.heatmap(values, signed=self.signed, low=0.0, high=float(np.abs(values).max()) or 1.0)
        return np.rint(0.5 * draw.rgb(view) + 0.5 * heat).astype(np.uint8)

    def how(self) -> str:
        """How the map is drawn."""
        if self.signed:
            return "Laid over the image: red speaks for the class, blue against it."
        return "Laid over the image: dark is 0, bright the largest."


@METHODS.register("grad-cam", images="one or more", target=True)
@dataclass(frozen=True)
class GradCam(_ClassMap):
    """Where a stage finds what speaks for a class: its maps, weighted by their mean gradients.

    With A the maps of the stage and s the class's logit: L = sum over c of a_c A_c, a_c the mean over
    positions of ds / dA_c; negative values become 0 unless `signed`. Enlarged to the picture by bilinear
    interpolation. arrays: "map" (images, H, W) float32, "coarse" (images, 1, h, w) L as computed, "weights"
    (images, C) the a_c, and as of saliency.
    Selvaraju et al., Grad-CAM (arXiv:1610.02391), section 3, equations 1 and 2.
    """

    name: ClassVar[str] = "grad-cam"
    label: ClassVar[str] = "Grad-CAM"

    stage: str | None = setting(None, help="name of the stage; nothing takes the last one that gives maps")

    def attribute(self, model: Model, view: Pixels, target: int | None) -> Found:
        """The map."""
        return grad_cam(model, view, target, self.stage or last_with_maps(model, view))

    def what(self, where: str) -> str:
        """The first sentence of the note."""
        stage = self.stage or "the last stage with maps"
        return f"Maps of {stage}, weighted by the mean gradients of the class's logit{where}."


@METHODS.register("guided-grad-cam", images="one or more", target=True)
@dataclass(frozen=True)
class GuidedGradCam(GradCam):
    """The detail of guided backpropagation at the places that Grad-CAM finds: their product.

    arrays: "guided" (images, H, W), the largest |product| over the channels, "signal" (images, C, H, W) the
    product, "coarse" (images, 1, h, w) and "weights" (images, C) of Grad-CAM, and as of saliency.
    Selvaraju et al., Grad-CAM (arXiv:1610.02391), section 3.2.

    Raises:
        StriateError: as grad-cam and guided-backprop do.
    """

    name: ClassVar[str] = "guided-grad-cam"
    label: ClassVar[str] = "Guided Grad-CAM"
    key: ClassVar[str] = "guided"
    source: ClassVar[str] = "signal"

    def attribute(self, model: Model, view: Pixels, target: int | None) -> Found:
        """The product."""
        cam = super().attribute(model, view, target)
        _, _, signal = class_gradient(model, view, cam.target, rule="guided")
        where = enlarged(cam.values[0].clip(0), view)
        return Found(cam.score, cam.target, signal * where, {**cam.more, "coarse": cam.values})

    def reduce(self, one: Found, view: Pixels) -> Array:
        """The largest |product| over the channels."""
        return reduce_channels(one.values, signed=self.signed)

    def shown(self, one: Found, values: Array, view: Pixels) -> Pixels:
        """The product in the picture's own colours."""
        return coloured(one.values, self.clip)

    def how(self) -> str:
        """How the map is drawn."""
        return "Times the signal run back by the guided rule. Grey is 0; channels in their own colours."


@METHODS.register("cam", images="one or more", target=True)
@dataclass(frozen=True)
class Cam(_ClassMap):
    """The class's own weights on the last maps, in nets whose head sees nothing but their means.

    With A the maps and w the class's weights: M = sum over c of w_c A_c, so that the mean of M plus the bias
    is the logit; where the head is a convolution averaged over its map, M is that map. Negative values become
    0 unless `signed`. arrays: "map" (images, H, W) float32, "coarse" (images, 1, h, w) M as computed, and as
    of saliency. Zhou et al., Learning Deep Features for Discriminative Localization (arXiv:1512.04150),
    section 2, equation 2.

    Raises:
        StriateError: the logits are not such a sum: the class has no weights on maps; grad-cam needs none.
    """

    name: ClassVar[str] = "cam"
    label: ClassVar[str] = "Class activation map"

    def attribute(self, model: Model, view: Pixels, target: int | None) -> Found:
        """The map."""
        if model.task.dense:
            raise StriateError("cam is for one answer an image, not for masks", hint="grad-cam draws masks")
        x = net_input(model, view)
        names = with_maps(model)
        with torch.no_grad(), capture(model.net, names) as seen:
            outputs = run(model, x)
        score = choose(outputs[0], target, model.classes)
        maps = [seen[name] for name in reversed(names) if seen.calls[name]]
        coarse = _class_map(model, x, outputs, [m for m in maps if m.ndim == 4], score.number)
        return Found(float(outputs[0, score.number]), score.number, coarse[None].float().cpu().numpy())

    def what(self, where: str) -> str:
        """The first sentence of the note."""
        return "Maps before the global average, weighted by the class's weights in the head."


def grad_cam(model: Model, view: Pixels, target: int | None, stage: str) -> Found:
    """Grad-CAM of one view at a stage: values (1, h, w) before any ReLU, and the "weights" (C,).

    Raises:
        StriateError: no such stage, one without maps, or one that the score does not depend on.
    """
    x = net_input(model, view)
    with torch.enable_grad(), capture(model.net, [stage], grad=True) as seen:
        outputs = run(model, x)
        maps = must_be_maps(model, stage, seen[stage])
        score = choose(outputs[0], target, model.classes)
        value = score.of(outputs)[0]
        gradient = None
        if value.requires_grad:
            gradient = torch.autograd.grad(value, maps, allow_unused=True)[0]
    if gradient is None:
        raise StriateError(
            f"the score does not depend on stage {stage!r} by any differentiable path",
            hint="name another stage",
        )
    must_be_numbers(gradient, "the gradients")
    weights = gradient.mean((2, 3))
    coarse = (weights[:, :, None, None] * maps.detach()).sum(1)
    more: dict[str, NDArray[Any]] = {"weights": weights[0].float().cpu().numpy()}
    return Found(float(value.detach()), score.number, coarse.float().cpu().numpy(), more)


def enlarged(values: Array, view: Pixels) -> Array:
    """A map (h, w) as large as the view, by bilinear interpolation between the centres of its positions."""
    size = (view.shape[1], view.shape[0])
    large = cv2.resize(np.ascontiguousarray(values, np.float32), size, interpolation=cv2.INTER_LINEAR)
    return np.asarray(large, np.float32)


def _class_map(model: Model, x: Tensor, outputs: Tensor, maps: list[Tensor], number: int) -> Tensor:
    """M (h, w) from the maps, last ones first; what the net computes is compared, not how it is written."""
    for a in maps:
        if a.shape[1] == outputs.shape[1] and _equal(a.mean((2, 3)), outputs):
            return a[0, number]
    head = getattr(model.net, "head_layer", None)
    if isinstance(head, nn.Linear):
        with torch.no_grad():
            features = model.net.features(x.clone())  # type: ignore[operator]
            if features.ndim == 2 and _equal(head(features), outputs):
                for a in maps:
                    if a.shape[1] == features.shape[1] and _equal(a.mean((2, 3)), features):
                        return torch.einsum("c,chw->hw", head.weight[number], a[0])
    raise StriateError(
        "cam has no meaning for this net: its head does not see the means of maps alone",
        allowed="nets that end in global average pooling and a linear head (or a convolution, averaged)",
        hint="grad-cam asks for no such head",
    )


def _equal(a: Tensor, b: Tensor) -> bool:
    scale = float(b.abs().max())
    return a.shape == b.shape and bool((a - b).abs().max() <= 1e-4 * scale + 1e-7)
