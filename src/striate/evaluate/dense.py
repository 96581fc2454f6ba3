"""Dense evaluation: the net runs over the whole image as a convolutional one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from striate.core.errors import StriateError
from striate.core.settings import setting
from striate.evaluate.protocols import PROTOCOLS, Network, Protocol, Scale, View, multiply_adds
from striate.evaluate.scaled import POOLINGS, VALUES, Scaled, by_scale, centre, pooled, side_of
from striate.layers.windows import windows_of
from striate.nets.convert import Dense as DenseNet
from striate.nets.convert import dense
from striate.nets.geometry import StageInfo, stage_geometry

if TYPE_CHECKING:
    from striate.data.preprocess import Preprocess
    from striate.model import Model


class WindowLinear(nn.Linear):
    """A fully connected layer at every place of a map: (N, C, H, W) -> (N, units, h, w), stride 1.

    The weights are the layer's own, not copied. One product of all places with the weights: for few places
    it reads them once, where a convolution brings its much larger weights into another order each time.
    """

    def __init__(self, layer: nn.Linear, kernel: tuple[int, int]) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.kernel = kernel
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """The layer's outputs for the window at every place."""
        if self.kernel == (1, 1):
            places = x.permute(0, 2, 3, 1)
        else:
            places = windows_of(x, self.kernel)
        return functional.linear(places, self.weight, self.bias).permute(0, 3, 1, 2)


def dense_form(model: Model, protocol: Protocol) -> tuple[DenseNet, list[StageInfo]]:
    """The net of a model in its fully convolutional form, in evaluation mode, and the geometry of its stages.

    Raises:
        StriateError: it has none; the stage that is in the way is named, and the protocols that are left.
    """
    if model.preprocess.sized:
        raise StriateError(
            f"protocol {protocol.name!r} needs input statistics that hold for views of any size, and the "
            f"model's are {model.preprocess.input!r}",
            allowed=others(),
        )
    try:
        made = dense(model.net)  # type: ignore[arg-type]
    except StriateError as error:
        raise StriateError(
            f"protocol {protocol.name!r} needs a net with a dense form: {error.given}", allowed=others()
        ) from error
    infos = stage_geometry(made)
    for name, layer in model.net.named_modules():
        if not isinstance(layer, nn.Linear):
            continue
        try:
            copy = made.get_submodule(name)
        except AttributeError:
            continue
        if isinstance(copy, nn.Conv2d):
            parent, _, child = name.rpartition(".")
            kernel = (copy.kernel_size[0], copy.kernel_size[1])
            setattr(made.get_submodule(parent), child, WindowLinear(layer, kernel))
    return made.eval(), infos


def others() -> list[str]:
    """The protocols that need no dense form."""
    return [entry.name for entry in PROTOCOLS if not entry.capabilities.get("dense")]


class DenseNetwork(Network):
    """The dense form of a net: a view of any size in, its map of logits pooled to one row of outputs."""

    def __init__(self, model: Model, protocol: DenseProtocol) -> None:
        super().__init__(model)
        self.protocol = protocol
        self.net, self.stages = dense_form(model, protocol)
        self.size = self.net.input_size
        axes = self.stages[-1].axes
        # Pixels from one window to the next, down and across; 1 where they cannot be told.
        self.step = (axes[0].stride, axes[1].stride) if axes else (1, 1)

    def __call__(self, views: Tensor) -> Tensor:
        """Views (M, h, w, C) uint8 to outputs (M, K) float32."""
        maps = self.maps(views)
        places = maps.flatten(2).permute(2, 0, 1)
        return pooled(places, self.model.task, self.protocol.by, self.protocol.of)

    def maps(self, views: Tensor) -> Tensor:
        """Views (M, h, w, C) uint8 to logits (M, K, rows, columns) float32, one place a window."""
        images = self.model.preprocess.normalise(views.to(self.model.device))
        with torch.inference_mode():
            found: Tensor = self.module()(images)
            return found.float()

    def module(self) -> nn.Module:
        """What is run, for counting too."""
        return self.net

    def trim(self, view: View) -> View:
        """The middle of a view, as large as whole steps of the window reach.

        What is left over at the borders belongs to no window; views of equal shape run in one batch.
        """
        rows, columns = (
            own + (length - own) // step * step
            for length, own, step in zip(view.shape[:2], self.size, self.step, strict=True)
        )
        return centre(view, (rows, columns))

    def at_once(self, batch: int, height: int, width: int) -> int:
        """So many views as have the pixels of `batch` windows, one at least."""
        return max(1, batch * self.size[0] * self.size[1] // (height * width))

    def multiply_adds(self, height: int, width: int) -> int:
        """Multiply-adds of one view."""
        return multiply_adds(self.module(), height, width, self.model.preprocess.channels)


@dataclass(frozen=True)
class DenseProtocol(Scaled):
    """What the dense protocols share: one view a scale, whose map is pooled before views are averaged."""

    _: KW_ONLY
    by: str = setting("mean", help="the mean over the places of the map, or the maximum", choices=POOLINGS)
    of: str = setting("logits", help="what is pooled: before or after softmax", choices=VALUES)

    def usual(self, preprocess: Preprocess) -> tuple[Scale, ...]:
        """The scale of the centre crop."""
        return (round(side_of(preprocess) / preprocess.crop),)

    @property
    def parts(self) -> tuple[Protocol, ...]:
        """One protocol for each scale that is written."""
        return by_scale(self)

    def windows(self, image: View, size: tuple[int, int], interpolation: str) -> list[View]:
        """The whole resized image."""
        return [image]


@PROTOCOLS.register("dense", views="1 a scale, twice with +flip", dense=True)
@dataclass(frozen=True)
class Dense(DenseProtocol):
    """The net over the whole resized image as a fully convolutional one; the class score map is averaged.

    Every place of the map is the net's answer for a window of its own size; windows move by the net's
    stride. The scores are averaged over the places, the posteriors over scales and mirror images. At the
    training size this is the centre crop; at larger sizes the mean over the windows, for nets without
    padding exactly. Simonyan & Zisserman, arXiv:1409.1556, section 3.2.
    """

    name: ClassVar[str] = "dense"

    def network(self, model: Model) -> Network:
        """The net in its dense form.

        Raises:
            StriateError: as of `check`, or there is no dense form.
        """
        self.check(model)
        return DenseNetwork(model, self)


class FineStrideModule(nn.Module):
    """A dense net whose last reducing stage runs at every offset, the maps laid into one another.

    (N, C, H, W) -> logits (N, K, rows, columns), rows and columns as many as windows moved by `step` fit.
    """

    def __init__(self, net: DenseNet, stages: Sequence[StageInfo]) -> None:
        super().__init__()
        self.net = net
        self.split, self.offsets, self.step = last_reduction(stages)

    def forward(self, x: Tensor) -> Tensor:
        """Run the first stages once, the rest at every offset that leaves room for a window."""
        room = [length - own for length, own in zip(x.shape[2:], self.net.input_size, strict=True)]
        rows, columns = (left // step + 1 for left, step in zip(room, self.step, strict=True))
        names = self.net.stage_names
        x = self._run(x, names[: self.split])
        stitched: Tensor | None = None
        for dy in range(min(self.offsets[0], rows)):
            for dx in range(min(self.offsets[1], columns)):
                part = self._run(x[:, :, dy:, dx:], names[self.split :])
                if stitched is None:
                    stitched = part.new_zeros(*part.shape[:2], rows, columns)
                place = stitched[:, :, dy :: self.offsets[0], dx :: self.offsets[1]]
                if part.shape[2] < place.shape[2] or part.shape[3] < place.shape[3]:
                    raise StriateError(
                        f"{self.net.name} cannot be shifted and stitched: its map shrinks too fast",
                        hint="take protocol dense",
                    )
                # Padding can leave room for one more place, whose window would reach beyond the image.
                place.copy_(part[:, :, : place.shape[2], : place.shape[3]])
        assert stitched is not None  # the image is at least as large as a window: the net checks it
        return stitched

    def _run(self, x: Tensor, names: Sequence[str]) -> Tensor:
        for name in names:
            x = self.net.get_submodule(name)(x)
        return x


def last_reduction(stages: Sequence[StageInfo]) -> tuple[int, tuple[int, int], tuple[int, int]]:
    """The last stage that reduces its map: its number, its reduction, and the stride of its input in pixels.

    For most nets it is the last pooling. A net that never reduces gives the number 0 and reduction 1.

    Raises:
        StriateError: the stride of a stage cannot be told.
    """
    before = (1, 1)
    found = (0, (1, 1), (1, 1))
    for number, info in enumerate(stages):
        if info.axes is None:
            raise StriateError(
                f"the stride of stage {info.name!r} cannot be told", hint="take protocol dense"
            )
        after = (info.axes[0].stride, info.axes[1].stride)
        if after != before:
            found = (number, (after[0] // before[0], after[1] // before[1]), before)
        before = after
    return found


class FineStrideNetwork(DenseNetwork):
    """The dense form with every offset of the last pooling."""

    def __init__(self, model: Model, protocol: DenseProtocol) -> None:
        super().__init__(model, protocol)
        self.fine = FineStrideModule(self.net, self.stages).eval()
        self.step = self.fine.step

    def module(self) -> nn.Module:
        """The dense net, shifted and stitched."""
        return self.fine


@PROTOCOLS.register("fine-stride", views="1 a scale, twice with +flip", dense=True)
@dataclass(frozen=True)
class FineStride(DenseProtocol):
    """OverFeat's: as dense, with every offset of the last pooling, so that windows move by a finer stride.

    The stages before the last one that reduces its map run once; from it on the rest runs at each offset of
    that map, and the maps of scores are laid into one another. The maximum over the places is taken after
    softmax, then the mean over scales and mirror images; `by` and `of` choose otherwise. Sermanet et al.,
    arXiv:1312.6229, section 3.3.
    """

    name: ClassVar[str] = "fine-stride"

    _: KW_ONLY
    by: str = setting("max", help="the mean over the places of the map, or the maximum", choices=POOLINGS)
    of: str = setting("posteriors", help="what is pooled: before or after softmax", choices=VALUES)

    def network(self, model: Model) -> Network:
        """The dense form, shifted and stitched.

        Raises:
            StriateError: as of `check`, or there is no dense form.
        """
        self.check(model)
        return FineStrideNetwork(model, self)
