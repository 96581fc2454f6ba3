"""Units: the streaming pass against full sorts and hand-computed nets, patches, projections and the atlas."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from little_models import conv_model, found, pictures
from striate.core.errors import StriateError
from striate.data.loaders import Loader
from striate.data.preprocess import Preprocess
from striate.data.samples import Split
from striate.model import Model
from striate.nets.geometry import stage_geometry
from striate.nets.net import Net
from striate.nets.taps import capture
from striate.nets.wrapped import wrap
from striate.tasks.classification import Classification
from striate.visualize.atlas import PATCHES, draw_stage, sheet
from striate.visualize.deconvnet import Deconvnet
from striate.visualize.method import visualize
from striate.visualize.patches import Box, Place, cut, project, receptive_box
from striate.visualize.running import Running, strongest
from striate.visualize.units import Watch, find_units
from toys import Functional


def split_of(count: int, size: int = 8, channels: int = 3, seed: int = 0) -> Split:
    stack = np.stack(pictures(count, size, size, channels, seed))
    return Split.from_arrays("all", stack, np.zeros(count, int), names=[f"{i}.png" for i in range(count)])


def grey(pixels: Any) -> Split:
    stack = np.asarray(pixels, np.uint8)
    return Split.from_arrays(
        "all", stack, np.zeros(len(stack), int), names=[f"{i}.png" for i in range(len(stack))]
    )


def pixel_model(size: int = 4) -> Model:
    """conv1 gives the pixel's level and its negative, -1 to 1 for 0 to 255; relu1 cuts them at 0."""
    conv = nn.Conv2d(1, 2, 1, bias=False)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([1.0, -1.0]).view(2, 1, 1, 1))
    stages = [
        ("conv1", conv),
        ("relu1", nn.ReLU()),
        ("avgpool", nn.AdaptiveAvgPool2d(1)),
        ("flatten", nn.Flatten()),
        ("fc", nn.Linear(2, 2)),
    ]
    net = Net(stages, head="fc", in_channels=1, size=size, name="pixels")
    view = Preprocess(size=(size, size), channels=1, resize="squash")
    return Model(net.eval(), Classification(["a", "b"]), view)


def everything(model: Model, split: Split, stage: str) -> NDArray[np.float32]:
    """The stage's output for all images at once."""
    views = np.stack(
        [model.preprocess.view(split.image(i, channels=model.preprocess.channels)) for i in range(len(split))]
    )
    with torch.no_grad(), capture(model.net, [stage]) as seen:
        model.net(model.preprocess.normalise(views))
    output = seen[stage].numpy()
    return output if output.ndim == 4 else output[:, :, None, None]


STAGES = ["conv1", "relu1", "relu2", "avgpool", "fc3"]


@pytest.mark.parametrize("batch", [1, 7, 50])
@pytest.mark.parametrize("k", [1, 4, 9])
def test_top_k_is_that_of_a_full_sort(batch: int, k: int) -> None:
    model, split = conv_model(), split_of(23)
    units = find_units(model, split, STAGES, k=k, batch=batch)
    for stage in STAGES:
        values = everything(model, split, stage)
        n, c, h, w = values.shape
        flat = values.reshape(n, c, h * w)
        responses, places = flat.max(2), flat.argmax(2)
        order = np.argsort(-responses, axis=0, kind="stable")[:k].T
        one = units.stage(stage)
        assert one.shape == ((c, h, w) if stage not in ("fc3",) else (c, 1, 1))
        np.testing.assert_array_equal(one.index, order)
        np.testing.assert_allclose(
            one.values, np.take_along_axis(responses.T, order, 1), rtol=1e-5, atol=1e-6
        )
        expected = np.stack(
            [np.take_along_axis(places.T, order, 1) // w, np.take_along_axis(places.T, order, 1) % w], 2
        )
        np.testing.assert_array_equal(one.places, expected)


def test_statistics_are_those_of_all_values_at_once() -> None:
    model, split = conv_model(), split_of(31, seed=3)
    units = find_units(model, split, STAGES, batch=8)
    for stage in STAGES:
        values = everything(model, split, stage).astype(np.float64)
        one, responses = units.stage(stage), values.max((2, 3))
        for name, expected in (
            ("mean", values.mean((0, 2, 3))),
            ("variance", values.var((0, 2, 3))),
            ("active", (values > 0).mean((0, 2, 3))),
            ("response_mean", responses.mean(0)),
            ("response_variance", responses.var(0)),
            ("response_active", (responses > 0).mean(0)),
        ):
            np.testing.assert_allclose(getattr(one, name), expected, rtol=1e-4, atol=1e-6, err_msg=name)
        r, n = responses.clip(0), len(responses)
        with np.errstate(invalid="ignore"):
            sparse = (1 - r.sum(0) ** 2 / (n * (r**2).sum(0))) / (1 - 1 / n)
        np.testing.assert_allclose(one.sparseness, sparse, rtol=1e-4, atol=1e-6)
        assert one.correlation is not None
        varies = responses.std(0) > 1e-9
        expected = np.corrcoef(responses[:, varies].T)
        np.testing.assert_allclose(
            one.correlation[np.ix_(varies, varies)], np.atleast_2d(expected), atol=1e-4
        )
        assert np.isnan(one.correlation[~varies]).all()


def test_answers_do_not_depend_on_the_batch() -> None:
    model, split = conv_model(), split_of(40, seed=1)
    first = find_units(model, split, STAGES, k=5, batch=40)
    for batch in (1, 9, 64):
        other = find_units(model, split, STAGES, k=5, batch=batch)
        assert first.arrays().keys() == other.arrays().keys()
        for name, values in first.arrays().items():
            np.testing.assert_allclose(other.arrays()[name], values, rtol=1e-4, atol=1e-5, err_msg=name)
            if name.endswith(("index", "places")):
                np.testing.assert_array_equal(other.arrays()[name], values)


def test_hand_computed_units_ties_and_first_position() -> None:
    pixels = np.full((4, 4, 4), 102)
    pixels[1, 2, 3] = pixels[1, 3, 0] = pixels[2, 0, 1] = 255
    pixels[3, 3, 3] = 0
    units = find_units(pixel_model(), grey(pixels), ["conv1", "relu1"], k=3, batch=3)
    bright = units.stage("conv1")
    # Images 1 and 2 reach 1: the earlier one wins, each at its first brightest pixel; then 0 and 3 tie.
    assert bright.index[0].tolist() == [1, 2, 0]
    np.testing.assert_allclose(bright.values[0], [1, 1, -0.2], atol=1e-6)
    assert bright.places[0].tolist() == [[2, 3], [0, 1], [0, 0]]
    dark = units.stage("relu1")
    assert dark.index[1].tolist() == [3, 0, 1]
    np.testing.assert_allclose(dark.values[1], [1, 0.2, 0.2], atol=1e-6)
    np.testing.assert_allclose(dark.response_active, [0.5, 1])
    assert units.names[3] == "3.png"
    # One of two active images of four: (1 - 2^2 / (4 * 2)) / (1 - 1/4).
    np.testing.assert_allclose(dark.sparseness[0], 0.5 / 0.75)


@pytest.mark.parametrize("batch", [1, 2, 6])
def test_equal_images_count_once(batch: int) -> None:
    pixels = np.zeros((6, 4, 4), int)
    for number, level in enumerate((200, 250, 250, 200, 250, 210)):
        pixels[number, 1, 1] = level
    one = find_units(pixel_model(), grey(pixels), ["conv1"], k=4, batch=batch).stage("conv1")
    assert one.index[0].tolist() == [1, 5, 0, -1]
    assert one.values[0, 3] == -np.inf
    assert one.places[0, 3].tolist() == [-1, -1]
    # They count in the statistics.
    np.testing.assert_allclose(one.mean[0], (2 * pixels / 255 - 1).mean(), rtol=1e-5)


def test_kernels_for_both_memory_orders_agree() -> None:
    maps = torch.randn(3, 5, 6, 7)
    # Equal values everywhere, and two equal maxima: the first place in reading order counts.
    maps[0, 0] = -5
    maps[2, 1, 1, 3] = maps[2, 1, 4, 0] = 9
    flat = maps.flatten(2).numpy()
    for order in (torch.contiguous_format, torch.channels_last):
        values, places = strongest(maps.contiguous(memory_format=order))
        np.testing.assert_array_equal(values, flat.max(2))
        np.testing.assert_array_equal(places, flat.argmax(2))
        assert places[2, 1] == 10
    maps[1, 1, 2, 2] = torch.nan
    assert torch.isnan(strongest(maps.contiguous(memory_format=torch.channels_last))[0][1, 1])


def test_memory_holds_the_top_only() -> None:
    model, split = conv_model(), split_of(64)
    watch = Watch(["relu2"], 3, len(split), widest=0)
    running = watch.running["relu2"]
    units = find_units(model, split, ["relu2"], k=3, widest=4)
    assert units.stage("relu2").correlation is None
    assert isinstance(running, Running)
    sizes = set()
    with torch.inference_mode(), watch.on(model.net):
        for batch in Loader(split, model.preprocess, batch=8).batches(0):
            watch.show(model, batch)
            sizes.add(sum(v.numel() for v in vars(running).values() if isinstance(v, torch.Tensor)))
    assert len(sizes) == 1


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_net_is_left_as_found_also_by_a_crash(
    error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, split = conv_model(), split_of(9)
    model.net.train()
    model.net.conv1.weight.requires_grad_(False)
    before = found(model.net)
    units = find_units(model, split, ["relu1"], k=2)
    draw_stage(model, split, units.stages[0])
    assert found(model.net) == before

    def crash(_: torch.Tensor) -> torch.Tensor:
        raise error("inside")

    monkeypatch.setattr(model.net.relu1, "forward", crash)
    with pytest.raises(error):
        find_units(model, split, ["conv1"])
    with pytest.raises(error):
        draw_stage(model, split, units.stages[0])
    assert found(model.net) == before


def test_wrong_stages_and_numbers_are_refused() -> None:
    model, split = conv_model(), split_of(3)
    with pytest.raises(StriateError, match="relu1"):
        find_units(model, split, ["rleu1"])
    with pytest.raises(StriateError, match="k is 0"):
        find_units(model, split, k=0)
    with pytest.raises(StriateError, match="no images"):
        find_units(model, split.select([]))
    units = find_units(model, split, ["relu1"], k=9)
    assert units.stages[0].index.shape == (6, 3)
    with pytest.raises(StriateError, match="relu1"):
        units.stage("relu")
    with pytest.raises(StriateError, match="0 to 5"):
        draw_stage(model, split, units.stages[0], numbers=[6])
    with pytest.raises(StriateError, match="guided"):
        draw_stage(model, split, units.stages[0], rules=["giuded"])
    with torch.no_grad():
        model.net.conv1.weight.fill_(float("nan"))
    with pytest.raises(StriateError, match="not numbers"):
        find_units(model, split, ["relu1"])


def test_projections_of_many_pictures_are_those_of_each() -> None:
    model, split = conv_model(), split_of(4)
    views = [split.image(i) for i in range(4)]
    x = model.preprocess.normalise(np.stack(views))
    maps = everything(model, split, "relu2")
    # Each where its map is strongest, two of them in one picture.
    drawn = [(2, 1), (0, 5), (2, 3), (3, 7)]
    places = [Place(p, unit, *divmod(int(maps[p, unit].argmax()), 8)) for p, unit in drawn]
    assert all(maps[place] > 0 for place in places)
    guided, deconvnet = project(model, x, "relu2", places, ["guided", "deconvnet"])
    info = next(info for info in stage_geometry(model.net, 8) if info.name == "relu2")
    for place, one, other in zip(places, guided, deconvnet, strict=True):
        for rule, signal in (("guided", one), ("deconvnet", other)):
            method = Deconvnet(
                stage="relu2", channel=place.unit, row=place.row, column=place.column, rule=rule
            )
            want = visualize(method, model, views[place.picture]).arrays["projection"][0]
            assert want.any()
            np.testing.assert_allclose(signal.numpy(), want, rtol=1e-4, atol=1e-6)
            x0, y0, x1, y1 = receptive_box(info, place.row, place.column, 8, 8)
            signal[:, max(0, y0) : y1, max(0, x0) : x1] = 0
            assert not signal.any()  # nothing beyond the receptive field
    inner = project(model, x, "fc3", [Place(1, 2, 0, 0)], ["plain"])[0]
    x1 = x[1:2].clone().requires_grad_()
    model.net(x1)[0, 2].backward()
    torch.testing.assert_close(inner, x1.grad)


def test_boxes_have_one_size_and_may_reach_beyond() -> None:
    model = conv_model()
    info = {i.name: i for i in stage_geometry(model.net, 8)}["relu2"]
    assert receptive_box(info, 0, 7, 8, 8) == (5, -2, 10, 3)
    assert receptive_box(info, 4, 4, 8, 8) == (2, 2, 7, 7)
    assert receptive_box(info, 4, 4, 5, 8) == (2, 0, 7, 5)  # as large as the picture: the whole of it
    image = np.arange(64, dtype=np.uint8).reshape(8, 8, 1)
    part = cut(image, Box(5, -2, 10, 3), 7)[..., 0]
    assert part.shape == (5, 5)
    assert (part[:2] == 7).all()
    assert (part[:, 3:] == 7).all()
    np.testing.assert_array_equal(part[2:, :3], image[:3, 5:, 0])
    assert (cut(image, Box(20, 20, 22, 22), 7) == 7).all()


def test_patches_are_cut_where_the_unit_is_strongest() -> None:
    model, split = conv_model(), split_of(12)
    one = find_units(model, split, ["relu1"], k=3).stage("relu1")
    drawn = draw_stage(model, split, one, rules=["deconvnet"], numbers=[4, 1], batch=2)
    assert drawn.tiles[PATCHES].shape == drawn.tiles["deconvnet"].shape == (2, 3, 3, 3, 3)
    assert (drawn.stride, drawn.side) == (1, 3)
    for place, unit in enumerate((4, 1)):
        for slot in range(3):
            row, column = one.places[unit, slot]
            image = split.image(int(one.index[unit, slot]))
            padded = np.full((10, 10, 3), model.preprocess.fill[0], np.uint8)
            padded[1:9, 1:9] = image
            np.testing.assert_array_equal(
                drawn.tiles[PATCHES][place, slot], padded[row : row + 3, column : column + 3]
            )


def test_dead_units_are_grey_and_named() -> None:
    model, split = conv_model(), split_of(6)
    with torch.no_grad():
        model.net.bn1.weight[2], model.net.bn1.bias[2] = 0, -1
    units = find_units(model, split, ["relu1"], k=2)
    dead = units.stages[0].dead.tolist()
    assert 2 in dead
    assert np.isnan(units.stages[0].sparseness[2])
    drawn = draw_stage(model, split, units.stages[0])
    assert not drawn.seen[2].any()
    assert (drawn.tiles[PATCHES][2] == 128).all()
    alone = draw_stage(model, split, units.stages[0], numbers=[2])
    assert sheet(alone).ndim == 3
    assert units.lines()[2].split()[2] == str(len(dead))


def test_functional_and_reused_stages() -> None:
    torch.manual_seed(0)
    net = wrap(Functional(), size=12)
    model = Model(net.eval(), Classification(list("abcde")), Preprocess(size=(12, 12), resize="squash"))
    units = find_units(model, split_of(5, size=12), ["relu", "out"], k=2)
    # relu runs twice: its first run has four maps.
    assert units.stage("relu").values.shape == (4, 2)
    assert units.stage("out").values.shape == (5, 2)
    drawn = draw_stage(model, split_of(5, size=12), units.stage("relu"))
    assert drawn.tiles["deconvnet"].any()
