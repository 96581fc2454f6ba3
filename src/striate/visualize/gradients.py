"""Attribution by gradients: which pixels a class's score depends on."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from striate.core.settings import setting
from striate.images import draw
from striate.visualize.method import METHODS, Method, Panel, Picture, Pixels, class_index, net_input, together
from striate.visualize.scores import chosen_score, class_gradient, score_gradient

if TYPE_CHECKING:
    from striate.model import Model

Array = NDArray[np.float32]
# Noisy or blended pictures that pass the net at once.
AT_ONCE = 16


@dataclass(frozen=True)
class Found:
    """What a method found for one image: values (C, H, W) at the net's input, and more arrays by name."""

    score: float
    target: int
    values: Array
    more: dict[str, NDArray[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Attribution(Method):
    """A number for each pixel: how much it matters to a class's score, the logit before softmax or sigmoid.

    arrays: the map called `key` (images, H, W) float32, the values behind it (images, C, H, W) under
    `source`, "target" (images,) class numbers, "score" (images,), "input" (images, H, W, C) uint8.
    """

    label: ClassVar[str] = ""
    key: ClassVar[str] = "saliency"
    source: ClassVar[str] = "gradient"

    target: int | str | None = setting(None, help="class by name or number; nothing takes the predicted one")
    signed: bool = setting(False, help="keep the sign: red raises the score, blue lowers it")
    clip: float = setting(
        99.0, help="per cent of the pixels drawn below full strength", minimum=50, maximum=100
    )

    @abstractmethod
    def attribute(self, model: Model, view: Pixels, target: int | None) -> Found:
        """What the method finds for one view; None takes the predicted class."""

    def relevance(self, model: Model, view: Pixels, target: int) -> Array:
        """How much each pixel speaks for a class (H, W): the map."""
        return self.reduce(self.attribute(model, view, target), view)

    def reduce(self, one: Found, view: Pixels) -> Array:
        """The map (H, W) that is shown, from the values (C, H, W)."""
        return reduce_channels(one.values, signed=self.signed)

    def shown(self, one: Found, values: Array, view: Pixels) -> Pixels:
        """The drawing of one map."""
        return draw.heatmap(values, signed=self.signed, low=0.0, high=top(values, self.clip))

    @abstractmethod
    def what(self, where: str) -> str:
        """The first sentence of the note; `where` says over which pixels a score of masks is summed."""

    def draw(self, model: Model, views: Sequence[Pixels]) -> Picture:
        """The picture; raises StriateError for an unknown class, or a score without a gradient."""
        wanted = None if self.target is None else class_index(self.target, model.classes)
        found = [self.attribute(model, view, wanted) for view in views]
        maps = [self.reduce(one, view) for one, view in zip(found, views, strict=True)]
        panels = []
        for view, one, values in zip(views, found, maps, strict=True):
            panels += [
                Panel(view, model.classes[one.target]),
                Panel(self.shown(one, values, view), f"score {one.score:.3g}"),
            ]
        across = len(views) if len(views) <= 3 else 4
        more: dict[str, NDArray[Any]] = {}
        for name in found[0].more:
            more |= together(name, [one.more[name] for one in found])
        return Picture(
            method=self.name,
            title=self.label if wanted is None else f"{self.label} of {model.classes[wanted]}",
            note=self.note(model, found, maps),
            arrays={
                "target": np.array([one.target for one in found]),
                "score": np.array([one.score for one in found], np.float32),
                **together(self.key, maps),
                **together(self.source, [one.values for one in found]),
                **more,
                **together("input", views),
            },
            panels=tuple(panels),
            columns=2 * across,
        )

    def note(self, model: Model, found: Sequence[Found], maps: Sequence[Array]) -> str:
        """How to read the picture."""
        where = " summed over the pixels given to it" if model.task.dense else ""
        whose = "" if self.target is not None else " The class is the predicted one."
        flat = sum(not values.any() for values in maps)
        still = f" For {flat} of {len(maps)} images it is 0 everywhere." if flat else ""
        return f"{self.what(where)} {self.how()}{whose}{still}"

    def how(self) -> str:
        """How the map is drawn."""
        full = "largest" if self.clip == 100 else f"strongest {100 - self.clip:g} % of its pixels"
        if self.signed:
            return (
                "Per pixel the channel of largest |gradient|: red raises the score, blue lowers it, full "
                f"colour is the image's {full}."
            )
        return f"Per pixel the largest |gradient| over the channels: dark is 0, bright the image's {full}."


@METHODS.register("saliency", images="one or more", target=True)
@dataclass(frozen=True)
class Saliency(Attribution):
    """How much each pixel moves a class's score: the gradient of the logit before softmax or sigmoid.

    M = max over channels of |d score / d x|, x being the net's normalised input; with `signed`, of the same
    channel d score / d x itself. For masks the score is the sum over the pixels that the net gives to the
    class. arrays: "saliency" (images, H, W) float32, "gradient" (images, C, H, W), "target" (images,) class
    numbers, "score" (images,), "input" (images, H, W, C) uint8.
    Simonyan et al., Deep Inside Convolutional Networks (arXiv:1312.6034), section 3.
    """

    name: ClassVar[str] = "saliency"
    label: ClassVar[str] = "Saliency"

    def attribute(self, model: Model, view: Pixels, target: int | None) -> Found:
        """The gradient."""
        return Found(*class_gradient(model, view, target))

    def what(self, where: str) -> str:
        """The first sentence of the note."""
        return f"Gradient of the class's logit{where}, before softmax, at the net's normalised input."


@METHODS.register("smoothgrad", images="one or more", target=True)
@dataclass(frozen=True)
class SmoothGrad(Attribution):
    """Saliency without its grain: the mean gradient over noisy copies of the image.

    With x the net's input, z normal noise of standard deviation `noise` * (max x - min x): the mean of
    d score(x + z) / d x over `samples` draws from a fixed seed. The class, and for masks its pixels, are
    those of the clean image. arrays as of saliency.
    Smilkov et al., SmoothGrad (arXiv:1706.03825), section 3.
    """

    name: ClassVar[str] = "smoothgrad"
    label: ClassVar[str] = "SmoothGrad"

    samples: int = setting(25, help="noisy copies", minimum=1, maximum=10000)
    noise: float = setting(
        0.15, help="standard deviation, as a part of the image's range", minimum=0, maximum=10
    )

    def attribute(self, model: Model, view: Pixels, target: int | None) -> Found:
        """The mean gradient."""
        x = net_input(model, view)
        score, value = chosen_score(model, x, target)
        source = torch.Generator().manual_seed(0)
        deviation = self.noise * float(x.max() - x.min())
        total = torch.zeros_like(x, dtype=torch.float32)
        for count in _parts(self.samples):
            z = torch.randn((count, *x.shape[1:]), generator=source).to(x.device)
            total += score_gradient(model, x + deviation * z, score)[1].sum(0, keepdim=True)
        return Found(value, score.number, (total / self.samples)[0].cpu().numpy())

    def what(self, where: str) -> str:
        """The first sentence of the note."""
        return (
            f"Mean gradient of the class's logit{where} over {self.samples} copies with noise of "
            f"{100 * self.noise:g} % of the image's range."
        )


BASELINES = ("mean", "black", "white", "blur")


@METHODS.register("integrated-gradients", images="one or more", target=True)
@dataclass(frozen=True)
class IntegratedGradients(Attribution):
    """What each pixel adds to the score on the straight way from a baseline picture to the image.

    (x - b) times the mean of d score / d x over the points b + a (x - b), a in 0 .. 1 at the `steps` places
    of Gauss and Legendre. The map sums the channels. Its sum is score(x) - score(b) (completeness):
    "completeness" (images, 3) holds the sum, that difference, and |sum - difference| / |difference|.
    Baselines b: the mean colour of the preprocessing, black, white, or the image without its detail.
    arrays: "attribution" (images, H, W), "values" (images, C, H, W), and as of saliency.
    Sundararajan et al., Axiomatic Attribution (arXiv:1703.01365), sections 3 and 5.
    """

    name: ClassVar[str] = "integrated-gradients"
    label: ClassVar[str] = "Integrated gradients"
    key: ClassVar[str] = "attribution"
    source: ClassVar[str] = "values"

    signed: bool = setting(True, help="keep the sign: red raises the score, blue lowers it")
    steps: int = setting(50, help="points between the baseline and the image", minimum=1, maximum=1000)
    baseline: str = setting("mean", help="the picture that says nothing", choices=BASELINES)

    def attribute(self, model: Model, view: Pixels, target: int | None) -> Found:
        """The attributions, and how complete they are."""
        x = net_input(model, view)
        b = baseline_input(model, view, self.baseline)
        score, value = chosen_score(model, x, target)
        places, weights = np.polynomial.legendre.leggauss(self.steps)
        points = torch.from_numpy((places + 1) / 2).float().to(x.device)
        shares = torch.from_numpy(weights / 2).float().to(x.device)
        total, done = torch.zeros_like(x[0], dtype=torch.float32), 0
        for count in _parts(self.steps):
            part = slice(done, done + count)
            _, gradient = score_gradient(model, b + points[part].view(-1, 1, 1, 1) * (x - b), score)
            total += (shares[part].view(-1, 1, 1, 1) * gradient).sum(0)
            done += count
        values: Array = (total * (x - b)[0]).cpu().numpy()
        with torch.no_grad():
            difference = value - float(score.of(model.net(b.clone()))[0])
        got = float(values.sum(dtype=np.float64))
        error = abs(got - difference) / abs(difference) if difference else float(got != 0)
        figures = np.array([got, difference, error], np.float32)
        return Found(value, score.number, values, {"completeness": figures})

    def reduce(self, one: Found, view: Pixels) -> Array:
        """The sum over channels, so that the map, too, adds up to the difference of the scores."""
        total: Array = one.values.sum(0)
        return total if self.signed else np.abs(total)

    def what(self, where: str) -> str:
        """The first sentence of the note."""
        return f"What each pixel adds to the class's logit{where}, seen from the baseline ({self.baseline})."

    def how(self) -> str:
        """How the map is drawn."""
        if self.signed:
            return "Channels are summed: red raises the score, blue lowers it."
        return "Channels are summed, then the sign is dropped: dark is 0."

    def note(self, model: Model, found: Sequence[Found], maps: Sequence[Array]) -> str:
        """How to read the picture, and how far the sum is from what it must be."""
        worst = max(float(one.more["completeness"][2]) for one in found)
        said = f" The sum misses the difference of the scores by {100 * worst:.2g} %"
        advice = ": take more steps." if worst > 0.05 else "."
        return super().note(model, found, maps) + said + advice


@METHODS.register("guided-backprop", images="one or more", target=True)
@dataclass(frozen=True)
class GuidedBackprop(Attribution):
    """The gradient of a class's score in which rectifiers hold back every negative signal.

    At each rectifier the signal passes where its input was positive and itself is positive. It shows detail
    that excites the net rather than what tells one class from another: compare with weights drawn at random.
    arrays: "guided" (images, H, W), the largest |signal| over the channels, "signal" (images, C, H, W), and
    as of saliency. Springenberg et al., Striving for Simplicity (arXiv:1412.6806), section 3.4.

    Raises:
        StriateError: activations that do not rectify (GELU, SiLU, tanh, ...): the rule has no meaning there.
    """

    name: ClassVar[str] = "guided-backprop"
    label: ClassVar[str] = "Guided backpropagation"
    key: ClassVar[str] = "guided"
    source: ClassVar[str] = "signal"

    def attribute(self, model: Model, view: Pixels, target: int | None) -> Found:
        """The signal at the picture."""
        return Found(*class_gradient(model, view, target, rule="guided"))

    def shown(self, one: Found, values: Array, view: Pixels) -> Pixels:
        """The signal in the picture's own colours."""
        return coloured(one.values, self.clip)

    def what(self, where: str) -> str:
        """The first sentence of the note."""
        return f"Signal of the class's logit{where}, run back by the guided rule."

    def how(self) -> str:
        """How the map is drawn."""
        return "Grey is 0; channels in their own colours."


def reduce_channels(gradient: Array, *, signed: bool = False) -> Array:
    """Gradient (C, H, W) to (H, W): max over channels of the absolute value; signed: that channel's value."""
    place = np.abs(gradient).argmax(axis=0)[None]
    values: Array = np.take_along_axis(gradient, place, axis=0)[0]
    return values if signed else np.abs(values)


def top(values: Array, clip: float) -> float:
    """The absolute value drawn at full strength: few pixels stand out so far that all else would be dark."""
    return float(np.percentile(np.abs(values), clip)) or float(np.abs(values).max()) or 1.0


def coloured(values: Array, clip: float = 99.0) -> Pixels:
    """A signal (C, H, W) around 0 as a picture (H, W, C) uint8: grey is 0, `clip` per cent are in range."""
    levels = 127.5 + 127.5 * values / top(values, clip)
    pixels: Pixels = np.rint(levels.clip(0, 255)).astype(np.uint8).transpose(1, 2, 0)
    return pixels


def baseline_input(model: Model, view: Pixels, kind: str) -> Tensor:
    """A picture that says nothing, as the net's input (1, C, H, W): "mean", "black", "white", or "blur"."""
    if kind == "mean":
        return torch.zeros_like(net_input(model, view))
    if kind == "blur":
        return net_input(model, blurred(view))
    return net_input(model, np.full_like(view, 0 if kind == "black" else 255))


def blurred(view: Pixels) -> Pixels:
    """The view without its detail: a Gaussian blur of a tenth of the shorter side."""
    import cv2

    deviation = max(1.0, min(view.shape[:2]) / 10)
    soft = cv2.GaussianBlur(view, (0, 0), deviation, borderType=cv2.BORDER_REPLICATE)
    return np.ascontiguousarray(soft.reshape(view.shape))


def _parts(count: int) -> Iterator[int]:
    """`count` in parts of at most AT_ONCE."""
    for done in range(0, count, AT_ONCE):
        yield min(AT_ONCE, count - done)
