"""The grammar of protocols, and pooling against explicit loops."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from little_models import conv_model, pictures
from protocol_runs import run
from striate.core.errors import StriateError
from striate.core.settings import setting
from striate.data.preprocess import Preprocess
from striate.evaluate.center import Center
from striate.evaluate.protocols import PROTOCOLS, Protocol, Sum, View, parse_protocol
from striate.evaluate.runner import Runner
from striate.images import geometry


@dataclass(frozen=True)
class Corners(Protocol):
    """Views of `side` pixels along the diagonal of the image, resized to each scale."""

    name: ClassVar[str] = "toy-corners"
    takes_flip: ClassVar[bool] = True
    takes_scales: ClassVar[bool] = True

    count: int = setting(2, help="views", minimum=1)
    side: int = setting(8, help="side of a view")
    share: float = setting(1.0, help="unused")

    def views(self, image: View, preprocess: Preprocess) -> list[View]:
        found = []
        for size in self.scales or (min(image.shape[:2]),):
            whole = image if min(image.shape[:2]) == size else geometry.resize(image, (size, size))
            if size < self.side:
                raise StriateError(f"a crop of {self.side} from {size} pixels")
            starts = np.linspace(0, size - self.side, self.count).astype(int)
            found += [whole[at : at + self.side, at : at + self.side] for at in starts]
        return found


@dataclass(frozen=True)
class Whole(Protocol):
    """The image itself, whatever its size."""

    name: ClassVar[str] = "toy-whole"

    def views(self, image: View, preprocess: Preprocess) -> list[View]:
        return [image]

    def at_least(self, preprocess: Preprocess) -> int | None:
        return None


@pytest.fixture(autouse=True, scope="module")
def _toys() -> Iterator[None]:
    PROTOCOLS.register("toy-corners")(Corners)
    PROTOCOLS.register("toy-whole")(Whole)
    yield
    for name in ("toy-corners", "toy-whole"):
        del PROTOCOLS._entries[name]


@pytest.mark.parametrize(
    ("text", "protocol"),
    [
        ("toy-corners", Corners()),
        ("toy-corners(5)", Corners(5)),
        ("toy-corners(5, 16)", Corners(5, 16)),
        ("toy-corners(side=16)+flip@256,384", Corners(side=16, flip=True, scales=(256, 384))),
        ("Toy_Corners( share = 0.5 )", Corners(share=0.5)),
        ("toy-corners+flip@9 + center", Sum((Corners(flip=True, scales=(9,)), parse_protocol("center")))),
        ("toy-corners@9+flip", Corners(flip=True, scales=(9,))),
        ("toy-corners@x1,X1.25,9", Corners(scales=(1.0, 1.25, 9))),
        (
            "center+toy-whole+center+flip",
            Sum((Center(), Whole(), Center(flip=True))),
        ),
    ],
)
def test_grammar(text: str, protocol: Protocol) -> None:
    assert parse_protocol(text) == protocol
    assert parse_protocol(str(protocol)) == protocol


toys = st.builds(
    Corners,
    count=st.integers(1, 99),
    side=st.integers(-9, 999),
    share=st.floats(0, 1e6),
    flip=st.booleans(),
    scales=st.lists(
        st.integers(1, 9999) | st.floats(0.01, 64), unique_by=lambda size: (type(size), size), max_size=3
    ).map(tuple),
)


@given(st.lists(toys, min_size=1, max_size=3))
def test_what_is_printed_is_read_back(parts: list[Protocol]) -> None:
    protocol = parts[0] if len(parts) == 1 else Sum(tuple(parts))
    assert parse_protocol(str(protocol)) == protocol


@given(st.text(alphabet="center+flip@,()0123456789 =-x.", max_size=24))
def test_any_text_is_read_or_refused_in_one_line(text: str) -> None:
    try:
        told = str(parse_protocol(text))
    except StriateError as error:
        told = str(error)
    assert told
    assert "\n" not in told


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("toy-corners(0)", "count is 0; allowed: at least 1"),
        ("toy-corners(many)", "count is 'many'; allowed: a whole number"),
        ("toy-corners(1,2,3,4)", "takes no '4'"),
        ("toy-corners(5, count=5)", "takes no 'count=5'"),
        ("toy-whole+flip", "takes no +flip"),
        ("centre", "did you mean 'center'"),
        ("center+flop", "did you mean '+flip'"),
        ("", "given as ''"),
        (None, "given as None"),
    ],
)
def test_errors_say_what_is_allowed(text: str, told: str) -> None:
    with pytest.raises(StriateError) as error:
        parse_protocol(text)
    assert told in str(error.value)
    assert error.value.allowed


def test_one_view_passes_through_to_the_last_bit() -> None:
    model, images = conv_model(), pictures(5, 11, 9)
    want = model.forward(np.stack([model.preprocess.view(image) for image in images]))
    assert torch.equal(run(model, "center", images), want)


@pytest.mark.parametrize("task", ["classification", "multi-label", "segmentation"])
@pytest.mark.parametrize("batch", [1, 4, 64])
def test_views_are_pooled_as_an_explicit_loop_does(task: str, batch: int) -> None:
    model, images = conv_model(task), pictures(3, 12, 12)
    got = model.task.posterior(run(model, "toy-corners(3)@12,20", images, batch))
    for image, pooled in zip(images, got, strict=True):
        posteriors = []
        for size in (12, 20):
            whole = image if size == 12 else geometry.resize(image, (20, 20))
            for at in (0, (size - 8) // 2, size - 8):
                crop = np.ascontiguousarray(whole[at : at + 8, at : at + 8])
                posteriors.append(model.task.posterior(model.forward(crop[None]))[0])
        torch.testing.assert_close(pooled, torch.stack(posteriors).mean(0), rtol=1e-4, atol=1e-6)


def test_flip_of_masks_is_flipped_back() -> None:
    model, images = conv_model("segmentation"), pictures(2)
    got = model.task.posterior(run(model, "center+flip", images))
    for image, pooled in zip(images, got, strict=True):
        plain = model.task.posterior(model.forward(image[None]))[0]
        mirrored = model.task.posterior(model.forward(image[None, :, ::-1].copy()))[0]
        torch.testing.assert_close(pooled, (plain + mirrored.flip(-1)) / 2, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("task", ["classification", "multi-label"])
def test_a_sum_is_the_mean_of_its_members(task: str) -> None:
    model, images = conv_model(task), pictures(4, 12, 12)
    members = [model.task.posterior(run(model, text, images)) for text in ("center", "toy-corners(4)+flip")]
    both = model.task.posterior(run(model, "center + toy-corners(4)+flip", images))
    torch.testing.assert_close(both, torch.stack(members).mean(0), rtol=1e-4, atol=1e-6)


def test_images_of_different_sizes_keep_their_places() -> None:
    model = conv_model()
    images = [pictures(1, size, size + 2, seed=size)[0] for size in (8, 12, 8, 16, 12)]
    got = run(model, "toy-whole", images)
    for image, outputs in zip(images, got, strict=True):
        torch.testing.assert_close(outputs, model.forward(image[None])[0], rtol=1e-4, atol=1e-5)


def test_cost_counts_the_views_that_were_run() -> None:
    model = conv_model()
    images = [pictures(1, size, size)[0] for size in (8, 16)]
    runner = Runner(parse_protocol("center + toy-whole"), model, batch=8)
    list(runner.outputs([runner.views(image) for image in images]))
    # conv1: 3 * 9 * 6, conv2: 6 * 9 * 8 multiply-adds a pixel; fc3: 8 * 3 a view.
    pixel = 3 * 9 * 6 + 6 * 9 * 8
    assert runner.views_per_image == 2
    assert runner.multiply_adds() == (pixel * (64 * 3 + 256) + 4 * 24) / 2


def test_a_view_that_an_image_has_not_is_refused() -> None:
    with pytest.raises(StriateError, match="a crop of 8 from 6 pixels"):
        run(conv_model(), "toy-corners", pictures(1, 6, 6))


@pytest.mark.parametrize("task", ["classification", "multi-label", "segmentation"])
def test_outputs_of_a_posterior_have_that_posterior(task: str) -> None:
    model = conv_model(task)
    posterior = model.task.posterior(torch.linspace(-30, 30, 24).reshape(2, 3, 2, 2))
    torch.testing.assert_close(
        model.task.posterior(model.task.outputs_of(posterior)), posterior, rtol=1e-4, atol=2e-7
    )


def test_posteriors_that_underflow_stay_finite() -> None:
    model = conv_model()
    outputs = model.task.outputs_of(torch.tensor([[1.0, 0.0, 0.0]]))
    assert bool(outputs.isfinite().all())
    torch.testing.assert_close(model.task.posterior(outputs), torch.tensor([[1.0, 0.0, 0.0]]))
