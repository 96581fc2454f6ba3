"""A protocol bound to a model: from images to one row of outputs an image, and what that took."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from striate.core.errors import StriateError
from striate.evaluate.protocols import Network, Protocol, View, mean_of_posteriors

if TYPE_CHECKING:
    from striate.model import Model

# For each member of the protocol, the views of one image.
Views = list[list[View]]


class Runner:
    """Runs the views that a protocol takes of images through a model, at most `batch` views at a time.

    Raises:
        StriateError: the protocol has no meaning for this model.
    """

    def __init__(self, protocol: Protocol, model: Model, *, batch: int) -> None:
        self.protocol = protocol
        self.model = model
        self.batch = batch
        self.networks: list[Network] = [member.network(model) for member in protocol.members]
        wanted = [member.at_least(model.preprocess) for member in protocol.members]
        self.at_least = None if None in wanted else max(side for side in wanted if side is not None)
        self.images = 0
        self._seen: Counter[tuple[int, int, int]] = Counter()

    def views(self, image: View) -> Views:
        """The views of an image (H, W, C) uint8; safe to call from several threads.

        Raises:
            StriateError: the image has no such view.
        """
        pairs = zip(self.protocol.members, self.networks, strict=True)
        return [member.all_views(image, self.model.preprocess, network.trim) for member, network in pairs]

    def outputs(self, samples: Sequence[Views]) -> Iterator[tuple[list[int], Tensor]]:
        """Pairs (places, outputs): the outputs (n, K, ...) of the samples at these n places.

        Samples whose views have the same shapes go together, in their order.
        """
        groups: dict[tuple[tuple[int, ...], ...], list[int]] = {}
        for place, sample in enumerate(samples):
            groups.setdefault(tuple(v.shape for views in sample for v in views), []).append(place)
        for places in groups.values():
            yield places, self._group([samples[place] for place in places])

    def _group(self, samples: list[Views]) -> Tensor:
        self.images += len(samples)
        pooled = []
        for m, member in enumerate(self.protocol.members):
            own = [sample[m] for sample in samples]
            pooled.append(member.pool_all(self._run(m, own), self.model.task))
        return pooled[0] if len(pooled) == 1 else mean_of_posteriors(torch.stack(pooled), self.model.task)

    def _run(self, m: int, samples: list[list[View]]) -> Tensor:
        """Outputs (V, n, K, ...) of n samples with V views each; views of one shape share their batches."""
        if not samples[0]:
            raise StriateError(f"protocol {str(self.protocol.members[m])!r} takes no view of an image")
        shapes: dict[tuple[int, ...], list[int]] = {}
        for number, view in enumerate(samples[0]):
            shapes.setdefault(view.shape, []).append(number)
        outputs: list[Tensor] = [torch.empty(0)] * len(samples[0])
        for shape, numbers in shapes.items():
            flat = [sample[number] for number in numbers for sample in samples]
            self._seen[(m, shape[0], shape[1])] += len(flat)
            step = self.networks[m].at_once(self.batch, shape[0], shape[1])
            parts = [
                self.networks[m](torch.from_numpy(np.stack(flat[start : start + step])))
                for start in range(0, len(flat), step)
            ]
            whole = parts[0] if len(parts) == 1 else torch.cat(parts)
            for number, part in zip(numbers, torch.split(whole, len(samples)), strict=True):
                outputs[number] = part
        return torch.stack(outputs) if len(outputs) > 1 else outputs[0][None]

    @property
    def views_per_image(self) -> float:
        """The mean number of views of the images so far."""
        return sum(self._seen.values()) / max(self.images, 1)

    def multiply_adds(self) -> float:
        """The mean number of multiply-adds for one of the images so far."""
        total = sum(
            count * self.networks[m].multiply_adds(height, width)
            for (m, height, width), count in self._seen.items()
        )
        return total / max(self.images, 1)
