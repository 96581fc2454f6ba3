"""Strips against the whole pass, parametrisations, optimisers, kept states."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from little_models import conv_model, found, pictures, plain_model, preprocess
from striate.core.errors import BadModelFile, StriateError
from striate.data.preprocess import Preprocess
from striate.model import Model
from striate.nets.net import Net, create_net
from striate.nets.wrapped import wrap
from striate.tasks.classification import Classification
from striate.visualize import lean
from striate.visualize.ascent import LBFGS, Adam, climb
from striate.visualize.forms import COLOURS, Form
from striate.visualize.goals import ClassScore, Norm, Unit
from striate.visualize.kept import Keeper
from striate.visualize.objectives import parse
from striate.visualize.references import Content, Gram
from striate.visualize.robustness import Robustness
from striate.visualize.studio import Studio
from striate.visualize.synthesis import Phase, ascend
from toys import summing_net

# ---------------------------------------------------------------------- strips against the whole pass


def odd_net() -> Net:
    """Strides, dilation, a 1x1 convolution of stride 2, average pools, a stage that must go whole."""
    stages: list[tuple[str, nn.Module]] = [
        ("conv1", nn.Conv2d(3, 5, 5, stride=2, padding=1)),
        ("relu1", nn.ReLU()),
        ("conv2", nn.Conv2d(5, 6, 3, padding=2, dilation=2)),
        ("bn2", nn.BatchNorm2d(6)),
        ("pool2", nn.AvgPool2d(3, 2)),
        ("conv3", nn.Conv2d(6, 4, 1, stride=2)),
        ("norm3", nn.LocalResponseNorm(3)),
        ("pool3", nn.MaxPool2d(3, 1, 1)),
        ("avg", nn.AdaptiveAvgPool2d(1)),
        ("flatten", nn.Flatten()),
        ("fc", nn.Linear(4, 3)),
    ]
    return Net(stages, head="fc", in_channels=3, size=32, name="odd")


NETS: dict[str, tuple[Any, list[str]]] = {
    "vgg19": (
        lambda: create_net("vgg19", 3, width=4, head="linear"),
        ["relu1_1", "conv2_1", "pool2", "relu3_2", "relu4_1", "relu5_1"],
    ),
    "efficientnet_lite0": (
        lambda: create_net("efficientnet_lite0", 3, width=0.1),
        ["stem_relu", "block2b", "block4a"],
    ),
    "resnet18": (lambda: create_net("resnet18", 3), ["relu1", "pool1"]),
    "odd": (odd_net, ["conv1", "conv2", "bn2", "conv3", "norm3", "pool3", "fc", ""]),
}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("size", [(37, 50), (64, 33)])
def test_strips_are_exact_on_nets(name: str, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    make, stages = NETS[name]
    net = make().double()
    model = Model(net.eval(), Classification("abc"), Preprocess(size=net.input_size))
    monkeypatch.setattr(lean, "STRIP", 20_000)
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(2, 3, *size, generator=generator, dtype=torch.float64)
    other = torch.rand(1, 3, *size, generator=generator, dtype=torch.float64)
    objective = parse("0.1*tv")
    for place, stage in enumerate(stages):
        objective = objective - (place + 1) * Gram(stage, other) + Norm(stage)
    objective = objective - Content(stages[1], other) + Unit(stages[0], 1, 2, 3)
    looks, used = [], []
    for studio in (
        Studio(model, size, memory="whole"),
        Studio(model, size, memory="tiled", budget=0),
        Studio(model, size, memory="tiled", budget=2_000_000),
    ):
        with studio.open():
            looks.append(studio.look(objective.ready(studio), x))
        used.append([segment for plan in studio._lean.values() if plan for segment in plan.segments])
    assert max(len(segment.strips()) for segment in used[1]) > 2
    assert not any(segment.kept for segment in used[1])
    assert any(segment.kept for segment in used[2])
    scale = float(looks[0].gradient.abs().max())
    for other_look in looks[1:]:
        torch.testing.assert_close(other_look.values, looks[0].values, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(other_look.gradient / scale, looks[0].gradient / scale, rtol=0, atol=1e-12)


def test_what_cannot_go_in_strips_is_refused_or_taken_whole() -> None:
    model = conv_model()
    with pytest.raises(StriateError, match="unknown memory"):
        Studio(model, (8, 8), memory="tile")
    net = wrap(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 3)), size=8)
    foreign = Model(net, Classification("abc"), preprocess())
    x = torch.rand(1, 3, 8, 8)
    tiled = Studio(foreign, (8, 8), memory="tiled")
    with pytest.raises(StriateError, match="not a sequence of stages"), tiled.open():
        tiled.look(Norm("0"), x)
    auto = Studio(foreign, (8, 8), budget=0)
    with auto.open():
        assert auto.look(Norm("0"), x).value > 0


def test_the_choice_follows_the_size() -> None:
    torch.manual_seed(0)
    net = create_net("vgg11", 3, width=4, head="linear")
    model = Model(net.eval(), Classification("abc"), Preprocess(size=(224, 224)))
    small, large = (Studio(model, size, budget=1_000_000) for size in ((32, 32), (256, 256)))
    leaves = [Norm("relu2_1")]
    assert small._way(leaves, torch.empty(1, 3, 32, 32)) is None
    assert large._way(leaves, torch.empty(1, 3, 256, 256)) is not None


# ---------------------------------------------------------------------- parametrisations and robustness


@pytest.mark.parametrize("kind", ["pixels", "fourier"])
@pytest.mark.parametrize("colours", [False, True])
@pytest.mark.parametrize("bounded", [False, True])
@pytest.mark.parametrize("shape", [(1, 3, 6, 9), (2, 1, 5, 5)])
def test_forms_start_from_pictures_and_pull_gradients(
    kind: str, colours: bool, bounded: bool, shape: tuple[int, int, int, int]
) -> None:
    pictures_in = torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 0.9 + 0.05
    form = Form(shape, kind, colours=colours, bounded=bounded).start(pictures_in)
    torch.testing.assert_close(form.draw(), pictures_in, rtol=1e-4, atol=1e-4)
    values = form.values.clone().double()
    way, signal = torch.randn_like(values), torch.randn(shape).double()
    step = 1e-5
    numeric = (form.draw(values + step * way) - form.draw(values - step * way)) / (2 * step)
    expected = float((numeric * signal).sum())
    assert float((form.pull(values, signal) * way).sum()) == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_decorrelated_colours_are_uncorrelated_on_photographs() -> None:
    from sklearn.datasets import load_sample_images

    colours = np.concatenate([image.reshape(-1, 3)[::50] for image in load_sample_images().images]) / 255
    inner = colours @ np.linalg.inv(np.array(COLOURS)).T
    before, after = np.corrcoef(colours.T), np.corrcoef(inner.T)
    off = ~np.eye(3, dtype=bool)
    assert np.abs(after[off]).mean() < 0.5 * np.abs(before[off]).mean()


def test_robustness_is_written_and_read() -> None:
    for text in ("none", "jitter(8)", "jitter(3)+rotate(5)+scale(0.9, 1.1)", "rotate(2.5)"):
        assert str(Robustness.parse(text)) == text
    for text in ("jiter(3)", "jitter", "jitter(a)", "jitter(1,2)", "scale(1.1,0.9)", "rotate(-1)"):
        with pytest.raises(StriateError):
            Robustness.parse(text)


def test_robustness_turns_and_scales_about_the_middle_and_follows_the_seed() -> None:
    x = torch.rand(1, 3, 9, 9)
    assert Robustness().apply(x, 0, 0) is x
    shifted = Robustness(jitter=3).apply(x, 0, 1)
    assert sorted(shifted.flatten().tolist()) == sorted(x.flatten().tolist())
    full = Robustness.parse("jitter(2)+rotate(20)+scale(0.8, 1.3)")
    assert torch.equal(full.apply(x, 5, 7), full.apply(x, 5, 7))
    assert not torch.equal(full.apply(x, 5, 7), full.apply(x, 5, 8))
    dot = torch.zeros(1, 1, 9, 9)
    dot[..., 4, 4] = 1
    turned = Robustness(rotate=40.0).apply(dot, 0, 3)
    assert turned.argmax() == dot.argmax()
    doubled = Robustness(scale=(2.0, 2.0)).apply(torch.ones(1, 1, 8, 8), 0, 0)
    torch.testing.assert_close(doubled, torch.ones(1, 1, 8, 8))


# ---------------------------------------------------------------------- optimisers


def bowl() -> tuple[torch.Tensor, torch.Tensor]:
    """An ill-conditioned quadratic, f = -sum h (x - t)^2 / 2."""
    steep = torch.logspace(0, 3, 40, dtype=torch.float64)
    return steep, torch.randn(40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_lbfgs_finds_the_top_of_an_ill_conditioned_bowl_and_adam_comes_nearer() -> None:
    steep, top = bowl()
    for optimizer, steps, near in ((LBFGS(), 150, 1e-6), (Adam(0.1), 300, 0.1)):
        x = torch.zeros(40, dtype=torch.float64)
        for _ in range(steps):
            value = float(-(steep * (x - top) ** 2).sum() / 2)
            x = optimizer.step(x, steep * (top - x), value)
        assert float((x - top).abs().max()) < near


def test_adam_is_that_of_pytorch() -> None:
    steep, top = bowl()
    x, y = torch.zeros(40, dtype=torch.float64), torch.zeros(40, dtype=torch.float64, requires_grad=True)
    ours, theirs = Adam(0.05), torch.optim.Adam([y], lr=0.05)
    for _ in range(20):
        x = ours.step(x, steep * (top - x), 0.0)
        y.grad = (steep * (y - top)).detach()
        theirs.step()
    torch.testing.assert_close(x, y.detach(), rtol=1e-6, atol=1e-8)


def test_lbfgs_keeps_its_head_where_the_value_is_not_a_number() -> None:
    x = torch.tensor([1.0, 1.0])
    optimizer = LBFGS()
    y = optimizer.step(x, torch.tensor([1.0, 0.5]), 0.0)
    z = optimizer.step(y, torch.tensor([float("nan"), 0.0]), float("nan"))
    assert bool(torch.isfinite(z).all())
    assert float((z - x).norm()) < float((y - x).norm())
    optimizer.shrink = 1e-6
    with pytest.raises(StriateError, match="not a number"):
        optimizer.step(z, torch.tensor([float("nan"), 0.0]), float("nan"))
    with pytest.raises(StriateError, match="adam"):
        climb("adm", 0.1)


# ---------------------------------------------------------------------- runs that stop and go on


def a_phase(studio: Studio, optimizer: str, steps: int = 12) -> Phase:
    objective = parse("class(dark) - 0.1*tv").ready(studio)
    form = Form((1, 3, 8, 8), "fourier", colours=True, bounded=True).noise(0.1, 0)
    rate = {"adam": 0.05, "l-bfgs": 1.0, "ascent": 0.01}[optimizer]
    return Phase(studio, objective, form, climb(optimizer, rate), steps, Robustness.parse("jitter(1)"), 3)


@pytest.mark.parametrize("optimizer", ["adam", "l-bfgs", "ascent"])
@pytest.mark.parametrize("stop", [1, 7, 12])
def test_a_stopped_climb_goes_on_to_equal_bytes(optimizer: str, stop: int, tmp_path: Path) -> None:
    studio = Studio(conv_model(), (8, 8))
    with studio.open():
        past: list[float] = []
        whole = ascend(a_phase(studio, optimizer), history=past)
        keeper = Keeper(tmp_path / "state", {"a": 1})

        def interrupt(step: Any) -> None:
            if step.done == stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            ascend(a_phase(studio, optimizer), watch=interrupt, keeper=keeper)
        state = Keeper(tmp_path / "state", {"a": 1}, resume=True).load()
        assert state is not None
        assert state["phase"]["step"] == stop
        again: list[float] = []
        rest = ascend(a_phase(studio, optimizer), state=state["phase"], history=again)
    assert torch.equal(rest, whole)
    assert again == past
    assert past[-1] > past[0]
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_kept_states_of_other_runs_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "state"
    Keeper(path, {"seed": 1}).save({"x": torch.ones(2), "list": [1, None, {"y": torch.zeros(1)}]})
    back = Keeper(path, {"seed": 1}, resume=True).load()
    assert back is not None
    assert back["x"].tolist() == [1, 1]
    assert back["list"][2]["y"].tolist() == [0]
    assert Keeper(path, {"seed": 1}).load() is None
    with pytest.raises(StriateError, match="whose seed is 1; allowed: 2"):
        Keeper(path, {"seed": 2}, resume=True).load()
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(BadModelFile):
        Keeper(path, {"seed": 1}, resume=True).load()
    with pytest.raises(StriateError, match="--state"):
        Keeper(None, {}, resume=True)


def test_the_net_is_left_as_it_was_found() -> None:
    model = conv_model()
    model.net.train()
    model.net.conv1.weight.requires_grad_(False)
    before = found(model.net)
    studio = Studio(model, (8, 8))

    def stop(_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), studio.open():
        ascend(a_phase(studio, "adam"), watch=stop)
    assert found(model.net) == before


def test_in_place_rectifiers_do_not_change_what_is_seen() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 3)
    values = []
    for inplace in (False, True):
        module = nn.Sequential(conv, nn.ReLU(inplace=inplace), nn.Flatten(), nn.Linear(144, 3))
        studio = Studio(Model(wrap(module, size=8), Classification("abc"), preprocess()), (8, 8))
        x = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        with studio.open():
            values.append(studio.look(parse("norm(0) + norm(1)"), x))
    assert values[0].value == values[1].value
    torch.testing.assert_close(values[0].gradient, values[1].gradient)


def test_pictures_that_a_net_does_not_take_are_refused() -> None:
    studio = Studio(conv_model(), (8, 8))
    with pytest.raises(StriateError, match="1 channels"), studio.open():
        studio.look(Norm("conv2"), torch.rand(1, 1, 8, 8))
    fixed = Studio(plain_model(summing_net(), 4), (6, 6))
    with pytest.raises(StriateError, match="4 x 4"), fixed.open():
        fixed.look(parse("channel(fc, 0)"), torch.rand(1, 1, 6, 6))
    with fixed.open():
        assert fixed.look(parse("channel(pool1, 0)"), torch.ones(1, 1, 6, 6)).value == 9.0


def test_pictures_are_the_views_of_their_pixels() -> None:
    model = conv_model()
    studio = Studio(model, (8, 8))
    image = pictures(1)[0]
    with studio.open():
        score = studio.look(ClassScore("dark").ready(studio), studio.picture(image)).value
    assert score == pytest.approx(float(model.forward(image[None])[0, 0]), rel=1e-5)
