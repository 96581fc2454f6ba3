"""Feature inversion: what a stage still knows of an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from striate.core.settings import setting
from striate.visualize.ascent import climb
from striate.visualize.forms import FORMS, Form
from striate.visualize.goals import Lp, TotalVariation
from striate.visualize.method import METHODS, Method, Panel, Picture, Pixels, must_be_numbers
from striate.visualize.references import Content
from striate.visualize.stages import last_with_maps
from striate.visualize.studio import Studio, to_picture, to_pixels
from striate.visualize.synthesis import Phase, ascend

if TYPE_CHECKING:
    from striate.model import Model


@METHODS.register("inversion", images="one", quick={"steps": 16})
@dataclass(frozen=True)
class Inversion(Method):
    """A picture, made from noise, whose activations at a stage are those of the image.

    Minimises ||F(x) - F(image)||^2 / ||F(image)||^2 + lp * |2x - 1|^6 + tv * (total variation) as Mahendran &
    Vedaldi 2014 (arXiv:1412.0035, section 3). arrays: "inverted" and "input" (H, W, C) uint8; "error", the
    first term at the end; "history" (steps,).
    """

    name: ClassVar[str] = "inversion"
    most_images: ClassVar[int] = 1

    stage: str | None = setting(None, help="name of the stage; nothing takes the last one with maps")
    steps: int = setting(192, help="steps of the optimiser", minimum=1, maximum=1_000_000)
    rate: float = setting(0.05, help="step size", minimum=0)
    tv: float = setting(0.5, help="weight of the total variation", minimum=0)
    lp: float = setting(0.02, help="weight of |2x - 1|^6", minimum=0)
    form: str = setting("fourier", help="parametrisation", choices=FORMS)
    seed: int = setting(0, help="seed of the start", minimum=0)

    def draw(self, model: Model, views: Sequence[Pixels]) -> Picture:
        """The picture; raises StriateError for an unknown stage."""
        view = views[0]
        stage = self.stage or last_with_maps(model, view)
        studio = Studio(model, (view.shape[0], view.shape[1]))
        history: list[float] = []
        with studio.open():
            content = Content(stage, to_picture(view)).ready(studio)
            must_be_numbers(content.target, f"the activations of {stage!r}")  # type: ignore[attr-defined]
            objective = -content - self.tv * TotalVariation() - self.lp * Lp(6.0)
            form = Form((1, *to_picture(view).shape[1:]), self.form, colours=True, bounded=True)
            phase = Phase(
                studio, objective, form.noise(0.05, self.seed), climb("adam", self.rate), self.steps,
                seed=self.seed,
            )  # fmt: skip
            pictures = ascend(phase, history=history)
            error = studio.look(content, pictures.to(studio.device)).value
        made = to_pixels(pictures[0])
        return Picture(
            method=self.name,
            title=f"What {stage} knows of the image",
            note=f"Squared distance of the activations over that of the image's to 0: {error:.3g}, after "
            f"{self.steps} steps from noise.",
            arrays={
                "inverted": made,
                "input": view,
                "error": np.asarray(error),
                "history": np.asarray(history),
            },
            panels=(Panel(view, "input"), Panel(made, f"from {stage}")),
            columns=2,
        )
