"""Which maps to trust: what happens as a map's pixels go or come, and as the net's weights are drawn anew."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from striate.core.errors import StriateError, unknown
from striate.core.settings import setting
from striate.images import draw
from striate.visualize.gradients import blurred, top
from striate.visualize.method import METHODS, Method, Panel, Pixels, class_index, net_input, together
from striate.visualize.redraw import drawn_anew
from striate.visualize.sanity_figure import Checked, Row
from striate.visualize.scores import must_have_rivals, run

if TYPE_CHECKING:
    from striate.model import Model

Array = NDArray[np.float32]
TESTS = ("both", "deletion", "randomisation")
# Changed pictures that pass the net at once, by number and by bytes.
AT_ONCE, BYTES = 32, 20_000_000
RANDOM, EDGES = "random order", "edges"
RANDOM_ORDERS = 3
# A map that keeps more of its order than this when all weights are drawn anew does not show the net.
FOLLOWS = 0.5
# By so much the area between the curves must exceed that of random order.
MARGIN = 0.01


@METHODS.register(
    "sanity", images="one or more", target=True, quick={"methods": "saliency,occlusion", "levels": 2}
)
@dataclass(frozen=True)
class Sanity(Method):
    """Which attribution maps to trust on this net: deletion and insertion curves, and random weights.

    Deletion: pixels become the mean colour, those of the largest values first; a map that names what the net
    uses makes the class's probability fall at once, so that the area under the curve is small. Insertion:
    pixels of the image appear on its blurred copy in the same order; the area should be large. `steps` cuts
    the order into equal parts; pixels of equal values come in random order. Two controls stand beside: pixels
    in random order (mean of 3), and in order of the image's edges, which no net has seen.

    Randomisation: stages are drawn anew from the head downwards (He's normal weights, norms and biases as at
    the start), in `levels` steps, the first the head alone, until no weight is left. A map that shows the
    net must change: rank correlation (Spearman's, of the values and of their magnitudes) and SSIM (of
    magnitudes over their largest, Gaussian window of 1.5 pixels) with the trained net's map fall towards 0.

    A map is to be trusted where insertion - deletion exceeds that of random order by 0.01, and the rank
    correlation of magnitudes behind random weights alone is below 0.5.
    arrays, NAME being a method: "map.NAME" (images, H, W), "deletion.NAME" and "insertion.NAME" (images,
    steps + 1) probabilities, "rank.NAME", "magnitude.NAME" and "ssim.NAME" (images, levels); "target"
    (images,), "input" (images, H, W, C) uint8.
    Petsiuk et al., RISE (arXiv:1806.07421), section 4.2; Adebayo et al., Sanity Checks for Saliency Maps
    (arXiv:1810.03292), section 3.1.

    Raises:
        StriateError: masks, a single class, an unknown method, or one named that has no meaning for this
            net; without names such methods are left out, and the note says why.
    """

    name: ClassVar[str] = "sanity"

    target: int | str | None = setting(None, help="class by name or number; nothing takes the predicted one")
    methods: str | None = setting(
        None, help="methods to check, as NAME,NAME; nothing takes all that fit the net"
    )
    test: str = setting("both", help="what to do", choices=TESTS)
    steps: int = setting(32, help="parts in which pixels go and come", minimum=1, maximum=10000)
    levels: int = setting(6, help="steps from the head alone to all weights", minimum=1, maximum=64)

    def draw(self, model: Model, views: Sequence[Pixels]) -> Checked:
        """The picture; raises StriateError as the class says."""
        if model.task.dense:
            raise StriateError("sanity is for one answer an image, not for masks")
        must_have_rivals(model, "sanity")
        wanted = None if self.target is None else class_index(self.target, model.classes)
        targets = [_target(model, view, wanted) for view in views]
        methods, left_out = self._methods(model, views, targets)
        maps = {name: _maps(method, model, views, targets) for name, method in methods.items()}
        maps[EDGES] = [edges(view) for view in views]
        curves = {} if self.test == "randomisation" else self._curves(model, views, targets, maps)
        levels, again = [], dict[str, list[list[Array]]]()
        if self.test != "deletion":
            for label, net in drawn_anew(model.net, self.levels):
                other = copy.copy(model)
                other.net = net
                levels.append(label)
                for name, method in methods.items():
                    again.setdefault(name, []).append(_maps(method, other, views, targets))
        return self._picture(model, views, targets, maps, curves, levels, again, left_out)

    def _methods(
        self, model: Model, views: Sequence[Pixels], targets: Sequence[int]
    ) -> tuple[dict[str, Any], list[str]]:
        """The methods that fit the net, and why others do not."""
        known = explaining()
        named = [part.strip() for part in (self.methods or "").split(",") if part.strip()]
        for name in named:
            if name not in known:
                raise unknown("attribution method", name, known)
        methods, left_out = {}, []
        for name in named or known:
            method = METHODS.get(name)()
            try:
                method.relevance(model, views[0], targets[0])  # type: ignore[attr-defined]
            except StriateError as error:
                if named:
                    raise
                left_out.append(f"{name}: {error.given}")
                continue
            methods[name] = method
        if not methods:
            raise StriateError(f"no attribution method fits this net ({'; '.join(left_out)})")
        return methods, left_out

    def _curves(
        self, model: Model, views: Sequence[Pixels], targets: Sequence[int], maps: dict[str, list[Array]]
    ) -> dict[str, tuple[Array, Array]]:
        """For each map, and random order, the probabilities (images, steps + 1) of both curves."""
        found: dict[str, tuple[Array, Array]] = {}
        draws = np.random.default_rng(0)
        orders = {name: [order(values, draws) for values in some] for name, some in maps.items()}
        chance = [[draws.permutation(v.shape[0] * v.shape[1]) for v in views] for _ in range(RANDOM_ORDERS)]
        for name, some in orders.items():
            pairs = [
                curve_pair(model, *given, self.steps) for given in zip(views, targets, some, strict=True)
            ]
            found[name] = np.stack([p[0] for p in pairs]), np.stack([p[1] for p in pairs])
        several = [
            [curve_pair(model, *given, self.steps) for given in zip(views, targets, some, strict=True)]
            for some in chance
        ]
        mean = np.array(several, np.float32).mean(0)
        found[RANDOM] = mean[:, 0], mean[:, 1]
        return found

    def _picture(
        self, model: Model, views: Sequence[Pixels], targets: Sequence[int], maps: dict[str, list[Array]],
        curves: dict[str, tuple[Array, Array]], levels: list[str], again: dict[str, list[list[Array]]],
        left_out: list[str],
    ) -> Checked:  # fmt: skip
        arrays: dict[str, NDArray[Any]] = {"target": np.array(targets)}
        rows, panels = [], []
        control = None if RANDOM not in curves else _gain(curves[RANDOM])
        for name in [*maps, *([RANDOM] if curves else [])]:
            if name in maps:
                arrays |= together(f"map.{name}", maps[name])
            kept: dict[str, Array] = {}
            if name in curves:
                arrays[f"deletion.{name}"], arrays[f"insertion.{name}"] = curves[name]
            if name in again:
                kept = _likeness(maps[name], again[name])
                arrays |= {f"{kind}.{name}": values for kind, values in kept.items()}
            rows.append(_row(name, curves.get(name), kept, control))
            if name in maps:
                shown = [maps[name][0], *(some[0] for some in again.get(name, []))]
                panels += [_drawn(v, said) for v, said in zip(shown, [name, *levels], strict=False)]
                panels += [_blank(views[0])] * (len(levels) + 1 - len(shown))
        arrays |= together("input", views)
        whose = " and ".join(dict.fromkeys(model.classes[t] for t in targets))
        without = f" Left out: {'; '.join(left_out)}." if left_out else ""
        return Checked(
            self.name, f"Which maps to trust: {whose}",
            _note(bool(curves), bool(levels), len(views)) + without, arrays, tuple(panels),
            len(levels) + 1, rows=tuple(rows), levels=tuple(levels),
        )  # fmt: skip


# ---------------------------------------------------------------- deletion and insertion


def order(values: Array, draws: np.random.Generator) -> NDArray[np.int64]:
    """Pixel numbers of a map (H, W) from the largest value to the smallest; equal ones in random order."""
    flat = values.ravel()
    return np.lexsort((draws.permutation(flat.size), -flat))


def curve_pair(
    model: Model, view: Pixels, target: int, ranked: NDArray[np.int64], steps: int
) -> tuple[Array, Array]:
    """Probabilities (steps + 1,) of the class as pixels go, and as they come, in the order `ranked`."""
    x, soft = net_input(model, view), net_input(model, blurred(view))
    height, width = view.shape[:2]
    rank = np.empty(ranked.size, np.int64)
    rank[ranked] = np.arange(ranked.size)
    place = torch.from_numpy(rank.reshape(height, width)).to(x.device)
    cuts = np.rint(np.linspace(0, ranked.size, steps + 1)).astype(np.int64)
    most = max(1, min(AT_ONCE, BYTES // x.nbytes))
    curves = []
    # Petsiuk et al.: pixels go to a constant, and come on a blurred picture.
    for first, last in ((x, torch.zeros_like(x)), (soft, x)):
        found: list[Tensor] = []
        for done in range(0, len(cuts), most):
            limits = torch.from_numpy(cuts[done : done + most]).to(x.device)
            changed = (place < limits.view(-1, 1, 1))[:, None]
            with torch.no_grad():
                outputs = run(model, torch.where(changed, last, first))
                found.append(model.task.posterior(outputs)[:, target].float().cpu())
        curves.append(torch.cat(found).numpy())
    return curves[0], curves[1]


def area(curve: Array) -> float:
    """The area under curves (..., steps + 1) over 0 .. 1 by trapezoids, mean over all of them."""
    inner = (curve[..., 1:] + curve[..., :-1]) / 2
    return float(inner.mean(dtype=np.float64))


def edges(view: Pixels) -> Array:
    """How steep the picture is at each pixel (H, W): Sobel's two filters, largest over the channels."""
    values = view.astype(np.float32)
    across, down = (cv2.Sobel(values, cv2.CV_32F, a, 1 - a, ksize=3) for a in (1, 0))
    steep = np.hypot(across, down).reshape(*view.shape[:2], -1)
    return np.asarray(steep.max(2), np.float32)


# ---------------------------------------------------------------- likeness of two maps


def rank_correlation(a: Array, b: Array) -> float:
    """Spearman's rank correlation of two maps; equal values share their mean rank; 0 for a flat map."""
    first, second = (_ranks(values.ravel()) for values in (a, b))
    spread = float(first.std() * second.std())
    return float(((first - first.mean()) * (second - second.mean())).mean() / spread) if spread else 0.0


def _ranks(values: NDArray[Any]) -> NDArray[np.float64]:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((counts.cumsum() - (counts - 1) / 2)[place], np.float64)


def ssim(a: Array, b: Array) -> float:
    """Mean structural similarity of two maps (H, W) of values 0 .. 1; Gaussian window of 1.5 pixels.

    Wang et al. 2004, equation 13, with K1 = 0.01, K2 = 0.03 and a range of 1.
    """

    def soft(values: NDArray[Any]) -> NDArray[np.float64]:
        blur = cv2.GaussianBlur(values.astype(np.float64), (11, 11), 1.5, borderType=cv2.BORDER_REFLECT)
        return np.asarray(blur, np.float64)

    mean_a, mean_b = soft(a), soft(b)
    a2, b2, ab = soft(a * a) - mean_a**2, soft(b * b) - mean_b**2, soft(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    up = (2 * mean_a * mean_b + c1) * (2 * ab + c2)
    return float((up / ((mean_a**2 + mean_b**2 + c1) * (a2 + b2 + c2))).mean())


def _in_range(values: Array) -> Array:
    """Magnitudes over the largest one."""
    magnitudes = np.abs(values)
    return (magnitudes / (float(magnitudes.max()) or 1.0)).astype(np.float32)


def _likeness(trained: Sequence[Array], again: Sequence[Sequence[Array]]) -> dict[str, Array]:
    """Each (images, levels): rank correlation of values and of magnitudes, SSIM of magnitudes."""
    found = np.zeros((3, len(trained), len(again)), np.float32)
    for level, some in enumerate(again):
        for image, (a, b) in enumerate(zip(trained, some, strict=True)):
            found[0, image, level] = rank_correlation(a, b)
            found[1, image, level] = rank_correlation(np.abs(a), np.abs(b))
            found[2, image, level] = ssim(_in_range(a), _in_range(b))
    return {"rank": found[0], "magnitude": found[1], "ssim": found[2]}


# ---------------------------------------------------------------- parts


def explaining() -> list[str]:
    """The methods that give each pixel a value for a class: those with a method `relevance`."""
    return [entry.name for entry in METHODS if hasattr(entry.value, "relevance")]


def _maps(method: Any, model: Model, views: Sequence[Pixels], targets: Sequence[int]) -> list[Array]:
    return [method.relevance(model, view, target) for view, target in zip(views, targets, strict=True)]


def _target(model: Model, view: Pixels, wanted: int | None) -> int:
    with torch.no_grad():
        outputs = run(model, net_input(model, view))
    return int(outputs[0].argmax()) if wanted is None else wanted


def _gain(curves: tuple[Array, Array]) -> float:
    return area(curves[1]) - area(curves[0])


def _row(name: str, curves: tuple[Array, Array] | None, kept: dict[str, Array], control: float | None) -> Row:
    """A line of the table: means over the images."""
    deletion, insertion = (None, None) if curves is None else map(area, curves)
    means = {kind: values.mean(0) for kind, values in kept.items()}
    trust = None
    if name not in (EDGES, RANDOM):
        better = curves is None or control is None or _gain(curves) > control + MARGIN
        follows = not means or float(means["magnitude"][-1]) < FOLLOWS
        reasons = [
            *([] if better else ["no better than random order"]),
            *([] if follows else ["does not follow the weights"]),
        ]
        trust = "no: " + ", ".join(reasons) if reasons else "yes"
    return Row(
        name, deletion, insertion,
        None if not means else float(means["magnitude"][0]),
        None if not means else float(means["magnitude"][-1]),
        None if not means else float(means["ssim"][-1]),
        trust,
    )  # fmt: skip


def _drawn(values: Array, caption: str) -> Panel:
    return Panel(draw.heatmap(np.abs(values), low=0.0, high=top(values, 99.0)), caption)


def _blank(view: Pixels) -> Panel:
    return Panel(np.full((*view.shape[:2], 3), 255, np.uint8))


def _note(curves: bool, levels: bool, images: int) -> str:
    several = f" Means over {images} images; maps of the first." if images > 1 else ""
    parts = []
    if curves:
        parts.append(
            "Deletion: probability of the class as the map's pixels go, the strongest first (small area is "
            "good); insertion: as they come on a blurred copy (large area is good)."
        )
    if levels:
        parts.append(
            "Rank correlation and SSIM of the map's magnitudes with those of a net whose weights were drawn "
            f"anew from the head down to the stage named: maps that show the net fall below {FOLLOWS:g}."
        )
    return " ".join(parts) + several
