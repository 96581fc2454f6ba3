"""Every protocol against explicit loops over its windows, one by one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from little_models import CLASSES, conv_model, found, pictures
from protocol_runs import run
from striate.core.errors import StriateError
from striate.data.preprocess import Preprocess
from striate.evaluate.dense import DenseNetwork, FineStrideNetwork, WindowLinear
from striate.evaluate.protocols import Network, View, parse_protocol
from striate.evaluate.runner import Runner
from striate.images import geometry
from striate.layers.pooling import GlobalAveragePool
from striate.model import Model
from striate.nets.net import Net, create_net
from striate.nets.wrapped import wrap
from striate.tasks.classification import Classification


def valid_model(kind: str = "pools", size: tuple[int, int] = (12, 16), crop: float = 1.0) -> Model:
    """A net without padding: windows at every fourth pixel, at every second before the last pooling."""
    torch.manual_seed(1)
    height, width = size
    pool = nn.MaxPool2d(3, 2) if kind == "overlapping" else nn.MaxPool2d(2)
    stages: list[tuple[str, nn.Module]] = [
        ("conv1", nn.Conv2d(3, 5, 3)),
        ("relu1", nn.ReLU()),
        ("pool1", pool),
        ("conv2", nn.Conv2d(5, 6, 2)),
        ("relu2", nn.ReLU()),
        ("pool2", nn.Conv2d(6, 6, 2, 2) if kind == "strided" else nn.AvgPool2d(2)),
    ]
    if kind == "global":
        stages += [("gap", GlobalAveragePool()), ("flatten", nn.Flatten()), ("fc4", nn.Linear(6, 3))]
    else:
        map_size = nn.Sequential(*(module for _, module in stages))(torch.zeros(1, 3, height, width)).shape
        stages += [
            ("flatten", nn.Flatten()),
            ("fc3", nn.Linear(map_size[1:].numel(), 7)),
            ("relu3", nn.ReLU()),
            ("drop3", nn.Dropout(0.5)),
            ("fc4", nn.Linear(7, 3)),
        ]
    net = Net(stages, head="fc4", in_channels=3, size=size, name=f"valid-{kind}", fixed_size=True)
    with torch.no_grad():
        net.fc4.weight.mul_(20)
    return Model(net.eval(), Classification(CLASSES), Preprocess(size=size, crop=crop))


KINDS = ["pools", "overlapping", "global", "strided"]


def each_window(model: Model, image: View, step: int) -> Tensor:
    """Logits (rows, columns, K) of all windows at every `step`-th pixel, each run by itself."""
    size = model.preprocess.size or (0, 0)
    rows = []
    for y in range(0, image.shape[0] - size[0] + 1, step):
        row = []
        for x in range(0, image.shape[1] - size[1] + 1, step):
            part = np.ascontiguousarray(image[y : y + size[0], x : x + size[1]])
            row.append(model.forward(part[None])[0])
        rows.append(torch.stack(row))
    return torch.stack(rows)


def pool(places: Tensor, by: str, of: str) -> Tensor:
    """The posterior of logits (places, K), pooled by an explicit formula."""
    values = places.softmax(1) if of == "posteriors" else places
    values = values.mean(0) if by == "mean" else values.max(0).values
    return values / values.sum() if of == "posteriors" else values.softmax(0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("protocol", ["dense", "dense@x1+flip", "fine-stride@x1", "grid(1)@x1", "grid(4)@x1"])
def test_at_the_training_size_every_dense_form_is_the_centre_crop(kind: str, protocol: str) -> None:
    model, images = valid_model(kind), pictures(3, 12, 16)
    want = run(model, "center+flip" if protocol.endswith("flip") else "center", images)
    got = run(model, protocol, images)
    torch.testing.assert_close(got.softmax(1), want.softmax(1), rtol=0, atol=1e-5)
    if "flip" not in protocol and "grid" not in protocol:
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vgg11", {"size": 32, "width": 4, "head": "512-512"}),
        ("vgg11_bn", {"size": 64, "width": 4, "head": "512-512"}),
        ("resnet20", {"size": 32}),
        ("lenet5", {"size": 28}),
    ],
)
@pytest.mark.parametrize("protocol", ["dense", "fine-stride"])
def test_the_field_s_nets_at_the_training_size(name: str, options: dict[str, int], protocol: str) -> None:
    torch.manual_seed(0)
    size = options["size"]
    net = create_net(name, 3, **options)  # type: ignore[arg-type]
    with torch.no_grad():
        net.head_layer.weight.mul_(20)
    model = Model(net.eval(), Classification(CLASSES), Preprocess(size=(size, size)))
    images = pictures(2, size, size)
    before = found(model.net) if name != "vgg11_bn" else None
    want, got = run(model, "center", images), run(model, protocol, images)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert before is None or found(model.net) == before
    # Larger pictures are taken as well, and give more places.
    larger = DenseNetwork(model, parse_protocol(protocol))  # type: ignore[arg-type]
    view = larger.trim(pictures(1, 2 * size + 3, 2 * size)[0])
    assert larger.maps(torch.from_numpy(view[None])).shape[2] > 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "step", "by", "of"),
    [
        ("dense", 4, "mean", "logits"),
        ("dense", 4, "mean", "posteriors"),
        ("dense", 4, "max", "posteriors"),
        ("fine-stride", 2, "max", "posteriors"),
        ("fine-stride", 2, "mean", "logits"),
        ("fine-stride", 2, "max", "logits"),
    ],
)
def test_dense_forms_pool_the_windows_they_stand_for(
    kind: str, name: str, step: int, by: str, of: str
) -> None:
    height, width = 12 + 3 * step, 16 + 4 * step
    model, images = valid_model(kind), pictures(2, height, width)
    got = run(model, f"{name}(by={by},of={of})@{height}", images).softmax(1)
    for image, posterior in zip(images, got, strict=True):
        windows = each_window(model, image, step)
        assert windows.shape[:2] == (4, 5)
        want = pool(windows.flatten(0, 1), by, of)
        torch.testing.assert_close(posterior, want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("height", "width"), [(12, 16), (13, 19), (14, 18), (20, 25), (27, 22)])
def test_fine_stride_lays_every_shifted_window_in_its_place(kind: str, height: int, width: int) -> None:
    model, image = valid_model(kind), pictures(1, height, width)[0]
    network = FineStrideNetwork(model, parse_protocol("fine-stride"))  # type: ignore[arg-type]
    windows = each_window(model, image, 2).permute(2, 0, 1)
    maps = network.maps(torch.from_numpy(image[None]))[0]
    torch.testing.assert_close(maps, windows, rtol=1e-5, atol=1e-5)
    # What is trimmed off at the borders belongs to no window.
    trimmed = network.trim(image)
    assert [(a - b) // 2 for a, b in zip(trimmed.shape[:2], (12, 16), strict=True)] == [
        n - 1 for n in windows.shape[1:]
    ]


def test_scales_and_mirror_images_of_dense_views_are_averaged_as_posteriors() -> None:
    model, images = valid_model(), pictures(2, 24, 32)
    got = run(model, "dense+flip@x1,24", images).softmax(1)
    for image, posterior in zip(images, got, strict=True):
        parts = []
        for side in (12, 24):
            whole = geometry.resize(image, (side, side * 16 // 12))
            for view in (whole, np.ascontiguousarray(whole[:, ::-1])):
                parts.append(pool(each_window(model, view, 4).flatten(0, 1), "mean", "logits"))
        torch.testing.assert_close(posterior, torch.stack(parts).mean(0), rtol=0, atol=1e-5)


def test_dense_costs_less_than_its_windows_and_says_so() -> None:
    model, image = valid_model(), pictures(1, 24, 32)[0]
    runner = Runner(parse_protocol("dense@24"), model, batch=4)
    list(runner.outputs([runner.views(image)]))
    # conv1: 22 x 30 places, conv2: 10 x 14, fc3: 4 x 5 windows of 2 x 3 x 6 values, fc4.
    by_hand = 22 * 30 * 5 * 27 + 10 * 14 * 6 * 5 * 4 + 20 * (36 * 7 + 7 * 3)
    assert runner.multiply_adds() == by_hand
    assert runner.views_per_image == 1
    assert by_hand < 20 * Network(model).multiply_adds(12, 16) / 2


def test_fully_connected_layers_are_shared_not_copied() -> None:
    model = valid_model()
    network = DenseNetwork(model, parse_protocol("dense"))  # type: ignore[arg-type]
    layer = network.net.get_submodule("fc3")
    assert isinstance(layer, WindowLinear)
    assert layer.weight is model.net.fc3.weight


def test_large_views_run_in_small_batches() -> None:
    network = DenseNetwork(valid_model(), parse_protocol("dense"))  # type: ignore[arg-type]
    assert network.at_once(8, 12, 16) == 8
    assert network.at_once(8, 24, 32) == 2
    assert network.at_once(8, 999, 999) == 1
    images = pictures(5, 24, 32)
    torch.testing.assert_close(
        run(valid_model(), "dense@24", images, batch=8), run(valid_model(), "dense@24", images, batch=999)
    )


# ---------------------------------------------------------------------- views of the net's own size


def square(size: int = 8, crop: float = 1.0) -> Preprocess:
    return Preprocess(size=(size, size), crop=crop)


@pytest.mark.parametrize(
    ("text", "width", "seen"),
    # AlexNet's corners are those of the central square, the others those of the image.
    [("ten-crop@12", 15, slice(None)), ("alexnet@12", 16, slice(2, 14))],
)
def test_ten_views_one_by_one(text: str, width: int, seen: slice) -> None:
    image = pictures(1, 12, width)[0]
    views = parse_protocol(text).all_views(image, square())
    part = image[:, seen]
    left = (part.shape[1] - 8) // 2
    five = [part[:8, :8], part[:8, -8:], part[-8:, :8], part[-8:, -8:], part[2:10, left : left + 8]]
    for got, want in zip(views, [*five, *(part[:, ::-1] for part in five)], strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("upright", [False, True])
def test_googlenet_144_view_by_view(upright: bool) -> None:
    image = pictures(1, 40, 61)[0]
    image = np.ascontiguousarray(image.transpose(1, 0, 2)) if upright else image
    views = parse_protocol("googlenet-144").all_views(image, square(28))
    want: list[np.ndarray] = []
    for side in (32, 36, 40, 44):
        long = round(61 * side / 40)
        whole = geometry.resize(image, (long, side) if upright else (side, long))
        own = []
        for start in (0, round((long - side) / 2), long - side):
            part = whole[start : start + side] if upright else whole[:, start : start + side]
            room = side - 28
            own += [part[:28, :28], part[:28, room:], part[room:, :28], part[room:, room:]]
            own += [part[room // 2 : room // 2 + 28, room // 2 : room // 2 + 28]]
            own += [geometry.resize(np.ascontiguousarray(part), (28, 28))]
        want += [*own, *(part[:, ::-1] for part in own)]
    assert len(views) == len(want) == 144
    for got, expected in zip(views, want, strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_grid_view_by_view(count: int) -> None:
    image = pictures(1, 19, 13)[0]
    views = parse_protocol(f"grid({count})+flip@13").all_views(image, square())
    rows = [5] if count == 1 else [round(i * 11 / (count - 1)) for i in range(count)]
    columns = [2] if count == 1 else [round(i * 5 / (count - 1)) for i in range(count)]
    want = [image[y : y + 8, x : x + 8] for y in rows for x in columns]
    for got, expected in zip(views, [*want, *(part[:, ::-1] for part in want)], strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
    ("text", "by", "of"),
    [
        ("grid(3)+flip@10,13", "mean", "posteriors"),
        ("grid(3,by=max)+flip@10,13", "max", "posteriors"),
        ("grid(3,of=logits)+flip@10,13", "mean", "logits"),
        ("ten-crop(by=max,of=logits)@10", "max", "logits"),
        ("googlenet-144", "mean", "posteriors"),
    ],
)
def test_views_are_pooled_as_written(text: str, by: str, of: str) -> None:
    model, images = conv_model(), pictures(2, 13, 17)
    with torch.no_grad():
        model.net.fc3.weight.mul_(20)
    protocol = parse_protocol(text)
    got = run(model, text, images, batch=7).softmax(1)
    for image, posterior in zip(images, got, strict=True):
        each = [model.forward(v[None])[0] for v in protocol.all_views(image, model.preprocess)]
        torch.testing.assert_close(posterior, pool(torch.stack(each), by, of), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("grid(5)+flip@256,384,512", 150),
        ("googlenet-144", 144),
        ("ten-crop", 10),
        ("alexnet@256", 10),
        ("dense+flip@256,384,512", 6),
    ],
)
def test_the_papers_numbers_of_views(text: str, count: int) -> None:
    image = pictures(1, 300, 400)[0]
    views = parse_protocol(text).all_views(image, square(224, 0.875))
    assert len(views) == count
    if "dense" not in text:
        assert {view.shape for view in views} == {(224, 224, 3)}


# ---------------------------------------------------------------------- scales


def test_scales_are_pixels_or_multiples_of_the_net_s_own_side() -> None:
    image = pictures(1, 40, 60)[0]
    for text in ("dense@x1.5", "dense@12"):
        assert [v.shape[:2] for v in parse_protocol(text).all_views(image, square(8))] == [(12, 18)]
    assert parse_protocol("dense@x1.5,30").at_least(square(8)) == 30


@pytest.mark.parametrize(
    ("crop", "text", "side"),
    [(0.875, "dense", 32), (1.0, "dense", 28), (0.875, "grid(5)", 32), (1.0, "grid(5)", 32)],
)
def test_scale_where_none_is_written(crop: float, text: str, side: int) -> None:
    assert parse_protocol(text).at_least(square(28, crop)) == side


@pytest.mark.parametrize(
    ("resize", "shape"),
    [("crop", (16, 24)), ("squash", (16, 16)), ("pad", (16, 16)), ("none", (16, 24))],
)
def test_the_whole_image_is_resized_as_the_model_does(resize: str, shape: tuple[int, int]) -> None:
    image, how = pictures(1, 20, 30)[0], Preprocess(size=(8, 8), resize=resize)
    assert parse_protocol("dense@16").all_views(image, how)[0].shape[:2] == shape


def test_nets_that_are_not_square_get_windows_inside_the_image() -> None:
    how = Preprocess(size=(8, 12))
    for height, width in ((30, 20), (20, 30), (8, 12)):
        image = pictures(1, height, width)[0]
        whole = parse_protocol("dense@10").all_views(image, how)[0]
        assert whole.shape[0] >= 10
        assert whole.shape[1] >= 15
        assert {v.shape[:2] for v in parse_protocol("grid(3)@10").all_views(image, how)} == {(8, 12)}


# ---------------------------------------------------------------------- what cannot be


class _Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layer(x.flatten(1)) * 2
        return found


def wrapped() -> Model:
    net = wrap(_Twice(), in_channels=3, size=2)
    return Model(net, Classification(CLASSES), square(2))


@pytest.mark.parametrize("text", ["dense", "fine-stride@x2", "grid(5) + dense"])
def test_a_net_without_a_dense_form_is_one_line_with_what_is_left(text: str) -> None:
    with pytest.raises(StriateError, match="needs a net with a dense form") as told:
        Runner(parse_protocol(text), wrapped(), batch=4)
    assert "\n" not in str(told.value)
    assert set((told.value.allowed or "").split(", ")) >= {"center", "ten-crop", "grid"}
    assert "dense" not in (told.value.allowed or "").split(", ")


@pytest.mark.parametrize("text", ["dense", "grid(5)", "ten-crop@9", "fine-stride"])
def test_a_model_without_a_size_is_one_line(text: str) -> None:
    model = conv_model()
    anything = Model(model.net, model.task, Preprocess(size=None, resize="none"))
    with pytest.raises(StriateError, match="any size") as told:
        Runner(parse_protocol(text), anything, batch=4)
    assert "center" in str(told.value)


def test_a_net_that_never_reduces_is_dense_already() -> None:
    model, images = conv_model(), pictures(2, 11, 11)
    fine = run(model, "fine-stride(by=mean,of=logits)@11", images)
    torch.testing.assert_close(fine, run(model, "dense@11", images), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kernel", [(1, 1), (2, 3)])
def test_a_layer_at_every_place_is_a_convolution(kernel: tuple[int, int]) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(5 * kernel[0] * kernel[1], 4), torch.randn(2, 5, 6, 7)
    conv: Callable[..., Tensor] = nn.functional.conv2d
    want = conv(x, layer.weight.reshape(4, 5, *kernel), layer.bias)
    torch.testing.assert_close(WindowLinear(layer, kernel)(x), want)
