"""Activation maximisation: the picture that a unit, a map or a class answers to most."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from torch import Tensor

from striate.core.errors import StriateError
from striate.core.settings import setting
from striate.visualize.ascent import climb
from striate.visualize.fingerprint import of_model
from striate.visualize.forms import FORMS, Form
from striate.visualize.goals import Channel, ClassScore, Diversity, Each, Lp, Unit
from striate.visualize.kept import Keeper
from striate.visualize.method import METHODS, Method, Panel, Picture, Pixels, class_index
from striate.visualize.objectives import Leaf, Objective, parse
from striate.visualize.robustness import Robustness
from striate.visualize.stages import last_with_maps, with_maps
from striate.visualize.studio import Studio, to_pixels
from striate.visualize.synthesis import Phase, Reporter, ascend

if TYPE_CHECKING:
    from striate.model import Model

RECIPES = ("robust", "simonyan", "erhan")
MOST = 64


@METHODS.register("maximise", images="none", target=True, runs=True, quick={"steps": 16})
@dataclass(frozen=True)
class Maximise(Method):
    """The picture, made from noise, that excites a class, a map, a unit or any objective most.

    recipe "robust": Fourier parametrisation, decorrelated colours, shifts, turns and changes of size (Olah
    et al. 2017), with coefficients over frequency^1.5 that fade by 3 % a step; "simonyan": the class score
    less lambda times the picture's L2 norm, from mid grey (Simonyan et al. 2013, equation 1); "erhan":
    gradient ascent from noise on pictures of one norm (Erhan et al. 2009). Without target, stage and
    objective: the first class, or map. arrays: "pictures"
    (count, H, W, C) uint8; "values" (count,) of the objective at the end; "history" (steps,), their sum.
    """

    name: ClassVar[str] = "maximise"
    least_images: ClassVar[int] = 0
    most_images: ClassVar[int] = 0

    target: int | str | None = setting(None, help="class name or number")
    stage: str | None = setting(None, help="name of the stage of the map or unit")
    channel: int | None = setting(
        None, help="number of the map; nothing takes the first 'count' ones", minimum=0
    )
    row: int | None = setting(None, help="row of one unit of the map", minimum=0)
    column: int | None = setting(None, help="column of one unit of the map", minimum=0)
    objective: str | None = setting(None, help="any sum of objectives, such as 'channel(conv4, 3) - 0.1*tv'")
    recipe: str = setting("robust", help="how it is made", choices=RECIPES)
    count: int = setting(
        1, help="pictures; several of one objective are made unlike", minimum=1, maximum=MOST
    )
    diversity: float = setting(1.0, help="weight of being unlike", minimum=0)
    steps: int = setting(192, help="steps of the optimiser", minimum=1, maximum=1_000_000)
    rate: float | None = setting(None, help="step size; nothing takes the recipe's own", minimum=0)
    size: int | None = setting(
        None, help="side of the picture; nothing takes the net's", minimum=1, maximum=4096
    )
    form: str | None = setting(None, help="parametrisation: pixels or fourier", choices=(None, *FORMS))
    robustness: str | None = setting(None, help="such as jitter(8)+rotate(5)+scale(0.9, 1.1), or none")
    preview: str | None = setting(None, help="a .png or .jpg file to write every few steps")
    state: str | None = setting(None, help="a file to keep the state in, now and then and at Ctrl-C")
    resume: bool = setting(False, help="go on from the state of a stopped run")
    seed: int = setting(0, help="seed of the start and all draws", minimum=0)

    def draw(self, model: Model, views: Sequence[Pixels]) -> Picture:
        """The picture; raises StriateError for what is not in the net."""
        size = self._size(model)
        studio = Studio(model, size)
        objective, captions, fixed = self._objective(model, size)
        watch = Reporter(self.preview, max(1, self.steps // 20)) if self.preview else None
        history: list[float] = []
        own = dataclasses.replace(self, preview=None, state=None, resume=False)
        keeper = Keeper(self.state, {"wish": own, "net": of_model(model)}, resume=self.resume)
        with studio.open():
            phase = self._phase(studio, objective, len(captions))
            saved = (keeper.load() or {}).get("phase")
            pictures = ascend(phase, watch=watch, keeper=keeper, state=saved, history=history)
            keeper.done()
            look = studio.look(phase.objective, pictures.to(studio.device))
        pixels = [to_pixels(picture) for picture in pictures]
        values = look.values.detach().cpu().numpy().astype(np.float64)
        shown = zip(pixels, captions, values, strict=True)
        return Picture(
            method=self.name,
            title=fixed,
            note=f"Made by {self.steps} steps, recipe {self.recipe}: {_cut(str(objective))}.",
            arrays={
                "pictures": np.stack(pixels),
                "values": values,
                "history": np.asarray(history, np.float64),
            },
            panels=tuple(
                Panel(picture, f"{text}: {value:.4g}".strip(": ")) for picture, text, value in shown
            ),
            columns=max(1, int(np.ceil(np.sqrt(len(pixels) * 1.5)))) if len(pixels) > 1 else 1,
        )

    def _size(self, model: Model) -> tuple[int, int]:
        if self.size is not None:
            return self.size, self.size
        own = model.preprocess.size or getattr(model.net, "input_size", None)
        return own if own is not None else (224, 224)

    def _objective(self, model: Model, size: tuple[int, int]) -> tuple[Objective, list[str], str]:
        """What to raise, a caption for each picture, and the title."""
        given = [name for name in ("target", "stage", "objective") if getattr(self, name) is not None]
        if len(given) > 1:
            raise StriateError(f"{' and '.join(given)} are given", allowed="one of target, stage, objective")
        if self.objective is not None:
            wanted = parse(self.objective)
            return self._several(wanted, model, size), [""] * self.count, f"What raises {_cut(str(wanted))}"
        if self.stage is not None:
            return self._maps(model, size)
        if self.target is None and self.count > 1:
            most = min(self.count, len(model.classes))
            leaves: list[Leaf] = [ClassScore(number) for number in range(most)]
            return Each("", tuple(leaves)), list(model.classes[:most]), "What the classes look like"
        if self.target is None and not with_maps(model) and not model.classes:
            raise StriateError("nothing to maximise", hint="give target, stage or objective")
        number = class_index(0 if self.target is None else self.target, model.classes)
        wanted = self._several(ClassScore(number), model, size)
        return wanted, [model.classes[number]] * self.count, f"What {model.classes[number]!r} looks like"

    def _maps(self, model: Model, size: tuple[int, int]) -> tuple[Objective, list[str], str]:
        stage = self.stage or ""
        if self.channel is not None:
            leaf: Leaf = Channel(stage, self.channel)
            if self.row is not None or self.column is not None:
                leaf = Unit(stage, self.channel, self.row, self.column)
            return self._several(leaf, model, size), [""] * self.count, f"What raises {leaf}"
        leaves = [
            Channel(stage, k)
            if self.row is None and self.column is None
            else Unit(stage, k, self.row, self.column)
            for k in range(self.count)
        ]
        return (
            Each(stage, tuple(leaves)),
            [f"map {k}" for k in range(self.count)],
            f"What the maps of {stage} answer to",
        )

    def _several(self, wanted: Objective, model: Model, size: tuple[int, int]) -> Objective:
        """With diversity where several pictures are made of one objective."""
        if self.count == 1 or not self.diversity:
            return wanted
        places = [leaf.where() for _, leaf in wanted.terms() if leaf.where()]
        channels = model.preprocess.channels
        stage = places[0] or last_with_maps(model, np.zeros((*size, channels), np.uint8)) if places else None
        if stage is None:
            stage = last_with_maps(model, np.zeros((*size, channels), np.uint8))
        return wanted + self.diversity * Diversity(stage)

    def _phase(self, studio: Studio, objective: Objective, count: int) -> Phase:
        shape = (count, studio.channels, *studio.size)
        robust = self.recipe == "robust"
        kind = self.form or ("fourier" if robust else "pixels")
        natural = robust and kind == "fourier"
        form = Form(shape, kind, colours=robust, bounded=robust, decay=1.5 if natural else 1.0)
        form.noise(0.01 if robust else 0.05 if self.recipe == "erhan" else 0.0, self.seed)
        rates = {"robust": 0.02 if natural else 0.05, "simonyan": 0.02, "erhan": 0.01}
        rate = rates[self.recipe] if self.rate is None else self.rate
        # Coefficients that the objective does not ask for at every step fade: soft contrast, little grain.
        project = _faded if natural else None
        if self.recipe != "robust":
            form.values = form.values + (0.5 if kind == "pixels" else 0.0)
            project = _one_norm if self.recipe == "erhan" and kind == "pixels" else None
        if self.recipe == "simonyan":
            objective = objective - 4.0 * Lp(2.0)
        least = min(studio.size)
        usual = f"jitter({max(1, least // 8)})+rotate(15)+scale(0.6, 1.3)" if robust else "none"
        robustness = Robustness.parse(self.robustness if self.robustness is not None else usual)
        optimizer = climb("adam", rate)
        return Phase(
            studio, objective.ready(studio), form, optimizer, self.steps, robustness, self.seed,
            project=project,
        )  # fmt: skip


def _faded(values: Tensor) -> Tensor:
    return values * 0.97


def _one_norm(values: Tensor) -> Tensor:
    """Pictures about mid grey whose mean square contrast is that of photographs, 0.25 squared."""
    contrast = values - 0.5
    length = contrast.square().mean((1, 2, 3), keepdim=True).sqrt().clamp_min(1e-8)
    return 0.5 + contrast * (0.25 / length)


def _cut(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."
