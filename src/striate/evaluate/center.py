"""The centre crop: one view an image, the one that `predict` uses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from striate.evaluate.protocols import PROTOCOLS, Protocol, View

if TYPE_CHECKING:
    from striate.data.preprocess import Preprocess


@PROTOCOLS.register("center", views="1")
@dataclass(frozen=True)
class Center(Protocol):
    """The one view of the model's own preprocessing, as in predict; with +flip also its mirror image."""

    name: ClassVar[str] = "center"
    takes_flip: ClassVar[bool] = True

    def views(self, image: View, preprocess: Preprocess) -> list[View]:
        """The view that `Model.predict` runs."""
        return [preprocess.view(image)]
