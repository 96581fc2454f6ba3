"""What every objective must hold: a written form, a gradient, a value that strips of the map add up to."""

from __future__ import annotations

import re

import pytest
import torch

from little_models import conv_model, pictures
from striate.core.errors import StriateError
from striate.visualize import lean
from striate.visualize.objectives import OBJECTIVES, Objective, parse
from striate.visualize.studio import Studio, to_picture

# One of each, on the stages of the little model; IMAGE is a picture of its size.
EXAMPLES = {
    "unit": ["unit(conv2, 3)", "unit(conv2, 1, 7, column=0)"],
    "channel": ["channel(relu1, 2)", "channel(fc3, 1)"],
    "class": ["class(bright)", "class(2)"],
    "direction": ["direction(conv1, 1 -2 0 0.5 0 3)", "direction(conv2, cosine=2, seed=4)"],
    "norm": ["norm(conv2)"],
    "tv": ["tv", "tv(1.5)"],
    "lp": ["lp", "lp(6)"],
    "diversity": ["diversity(conv2)"],
    "content": ["content(conv2, IMAGE)", "content(relu2, IMAGE, plain=1)"],
    "gram": ["gram(conv2, IMAGE)", "gram(relu1, IMAGE, plain=1)", "gram(relu1, IMAGE, scale=0.5)"],
    "guide": ["guide(conv2, IMAGE)"],
}
# The stage in an example, if there is one.
STAGE = r"(?<=\()(?:conv|relu|fc)\d"
ALL = [text for name in OBJECTIVES.names() for text in EXAMPLES.get(name, [])]


def double_studio() -> Studio:
    model = conv_model()
    model.net.double()
    return Studio(model, (8, 8))


def ready(text: str, studio: Studio) -> Objective:
    """The objective of a text, with IMAGE replaced by a picture in double precision."""
    terms = parse(text).terms()
    for _, leaf in terms:
        if getattr(leaf, "image", None) == "IMAGE":
            object.__setattr__(leaf, "image", to_picture(pictures(1, seed=5)[0]).double())
    return sum((weight * leaf for weight, leaf in terms[1:]), terms[0][0] * terms[0][1]).ready(studio)


@pytest.mark.parametrize("name", OBJECTIVES.names())
def test_every_objective_has_an_example_here(name: str) -> None:
    assert EXAMPLES.get(name), f"give an example of {name} in this file"
    assert OBJECTIVES.get(name).name == name
    assert OBJECTIVES.entry(name).summary


@pytest.mark.parametrize("text", ALL)
def test_written_form_is_read_back(text: str) -> None:
    once = str(parse(text))
    assert str(parse(once)) == once
    assert parse(once) == parse(text)
    assert str(parse(f"-2.5*{text} + {text}")) == f"-2.5*{once} + {once}"


@pytest.mark.parametrize("text", ALL)
def test_gradient_is_that_of_finite_differences(text: str) -> None:
    studio = double_studio()
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(2, 3, 8, 8, generator=generator, dtype=torch.float64)
    way = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    with studio.open():
        objective = ready(text, studio)
        look = studio.look(objective, x)
        step = 1e-6
        above, below = studio.look(objective, x + step * way), studio.look(objective, x - step * way)
    numeric = (above.value - below.value) / (2 * step)
    assert float((look.gradient * way).sum()) == pytest.approx(numeric, rel=2e-5, abs=1e-8)
    assert bool(torch.isfinite(look.values).all())
    assert look.values.shape == (2,)


@pytest.mark.parametrize("text", ALL)
def test_strips_give_the_value_and_the_gradient_of_the_whole(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lean, "STRIP", 2000)
    whole = double_studio()
    parts = Studio(whole.model, (8, 8), memory="tiled", budget=0)
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with whole.open():
        one, two = (studio.look(ready(text, studio), x) for studio in (whole, parts))
    torch.testing.assert_close(two.values, one.values, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(two.gradient, one.gradient, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("text", [text for text in ALL if re.search(STAGE, text)])
def test_unknown_stages_are_answered_with_near_matches(text: str) -> None:
    stage, studio = re.findall(STAGE, text)[0], double_studio()
    with pytest.raises(StriateError, match=rf"did you mean .*'{stage}'"), studio.open():
        studio.look(ready(text.replace(stage, f"{stage}2"), studio), torch.rand(1, 3, 8, 8).double())
