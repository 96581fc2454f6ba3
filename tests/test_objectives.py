"""Objectives of synthesis: values by hand, their written form, and refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from little_models import conv_model, plain_model, preprocess
from striate.core.errors import StriateError
from striate.model import Model
from striate.nets.wrapped import wrap
from striate.tasks.classification import Classification
from striate.visualize.goals import Channel, ClassScore, Diversity, Lp, Norm, TotalVariation, Unit
from striate.visualize.objectives import Place, parse
from striate.visualize.references import Gram
from striate.visualize.studio import Studio
from toys import summing_net


def test_values_worked_out_by_hand() -> None:
    """Ones of 4 x 4: conv1 is 9 on 2 x 2, the logits are 9 and 18."""
    studio = Studio(plain_model(summing_net(), 4), (4, 4))
    x = torch.ones(1, 1, 4, 4)
    with studio.open():
        for text, value in (
            ("channel(conv1, 0)", 9.0),
            ("unit(conv1, 0)", 9.0),
            ("class(1)", 18.0),
            ("norm(conv1)", 81.0),
            ("2*class(0) - channel(pool1, 0)", 9.0),
            ("direction(conv1, -5)", -9.0),
            ("direction(conv1, 2, cosine=3)", 9.0),
            ("lp(6)", 1.0),
            ("tv", 0.0),
        ):
            assert studio.look(parse(text).ready(studio), x).value == pytest.approx(value), text
        # Every pixel of the picture lies in one window or more: the gradient of logit 0 counts the winner's.
        gradient = studio.look(parse("class(0)").ready(studio), x).gradient
        assert float(gradient.sum()) == 9.0


def test_total_variation_and_lp_by_hand() -> None:
    x = torch.tensor([[[[0.0, 1.0], [0.5, 0.5]]]])
    place = Place(0, 0, 2, 2)
    # Down: 0.5, -0.5; right: 1, 0. Pixel by pixel: 0.25 + 1, 0.25, 0, 0.
    assert float(TotalVariation().score(TotalVariation().gather(x, place), place)) == pytest.approx(1.5 / 4)
    assert float(Lp(2).score(Lp(2).gather(x, place), place)) == pytest.approx(2 / 4)


def test_gram_by_hand_and_of_pictures_of_two_sizes() -> None:
    maps = torch.tensor([[[[1.0, 2.0]], [[0.0, 1.0]]]])
    leaf = Gram("conv", None, plain=1, target=torch.zeros(2, 2))
    place = Place(0, 0, 1, 2)
    sums = leaf.gather(maps, place)
    assert sums.tolist() == [[[5.0, 2.0], [2.0, 1.0]]]
    # (5/2)^2 + 2 (2/2)^2 + (1/2)^2 over 4 C^2 = 16.
    assert float(leaf.score(sums, place)) == pytest.approx((6.25 + 2 + 0.25) / 16)
    # A picture tiled twice has the same Gram matrix.
    twice = torch.cat([maps, maps], 3)
    wide = Place(0, 0, 1, 4)
    assert float(leaf.score(leaf.gather(twice, wide), wide)) == pytest.approx(8.5 / 16)


def test_gram_of_a_region_is_that_of_the_region_alone() -> None:
    maps = torch.rand(1, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    mask = np.zeros((4, 6), np.float32)
    mask[:, :2] = 1
    whole, part = Place(0, 0, 4, 6), Place(0, 0, 4, 2)
    target = torch.rand(3, 3)
    masked, alone = Gram("s", None, mask=mask, target=target), Gram("s", None, target=target)
    torch.testing.assert_close(
        masked.score(masked.gather(maps, whole), whole),
        alone.score(alone.gather(maps[..., :2], part), part),
    )


def test_diversity_is_lowest_for_equal_pictures() -> None:
    leaf, place = Diversity("s"), Place(0, 0, 2, 2)
    one = torch.rand(1, 3, 2, 2)
    assert leaf.score(leaf.gather(one.expand(3, -1, -1, -1), place), place).tolist() == pytest.approx(
        [-1] * 3
    )
    apart = torch.eye(3)[:, :, None, None].expand(3, 3, 2, 2)
    assert leaf.score(leaf.gather(apart, place), place).tolist() == pytest.approx([0] * 3)
    assert leaf.score(leaf.gather(one, place), place).tolist() == [0]


def test_objectives_add_and_scale_and_tell() -> None:
    total = 2 * Channel("conv1", 3) - TotalVariation() / 4 + Unit("conv2", 1, column=2) * 0.5
    assert str(total) == "2*channel(conv1, 3) - 0.25*tv + 0.5*unit(conv2, 1, column=2)"
    assert parse(str(total)) == total
    assert str(-Norm("a b")) == '-norm("a b")'
    assert parse('class("12")').terms()[0][1].target == "12"  # type: ignore[attr-defined]
    assert parse("class(12)").terms()[0][1].target == 12  # type: ignore[attr-defined]
    assert str(ClassScore('ox, "Bos"')) == "class('ox, \"Bos\"')"
    with pytest.raises(TypeError):
        Channel("conv1", 3) * "2"  # type: ignore[operator]
    with pytest.raises(StriateError, match="finite"):
        float("nan") * Channel("conv1", 3)


NAMES = st.text(st.characters(codec="ascii", exclude_characters="\"'\n\r\\"), min_size=1, max_size=12).map(
    str.strip
)


@given(NAMES.filter(bool), st.integers(0, 99), st.floats(-1e6, 1e6).filter(lambda w: abs(w) > 1e-6))
def test_any_name_and_weight_is_read_back(name: str, channel: int, weight: float) -> None:
    total = weight * Channel(name, channel)
    back = parse(str(total)).terms()[0]
    assert back[1] == Channel(name, channel)
    assert back[0] == pytest.approx(weight, rel=1e-9)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "empty"),
        ("chanel(conv1, 3)", "channel"),
        ("channel(conv1)", "lacks channel"),
        ("channel(conv1, three)", "a number"),
        ("channel(conv1, 3, 4)", "3 arguments"),
        ("channel(conv1, chan=3)", "channel"),
        ("channel(conv1, 3", "not closed"),
        ("channel(conv1, 3) tv", "where \\+ or -"),
        ("2 tv", "no \\*"),
        ("2*", "the end"),
        ("tv(')", "does not end"),
        ("lp(x)", "a number"),
    ],
)
def test_misread_objectives_are_one_line(text: str, told: str) -> None:
    with pytest.raises(StriateError, match=told) as error:
        parse(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("channel(conv1, 6)", "0 to 5"),
        ("unit(conv1, 0, 8)", "rows below 8"),
        ("class(drak)", "dark"),
        ("direction(conv1, 1 2)", "6, one for each"),
    ],
)
def test_what_is_not_in_the_net_is_told(text: str, told: str) -> None:
    studio = Studio(conv_model(), (8, 8))
    with pytest.raises(StriateError, match=told), studio.open():
        studio.look(parse(text).ready(studio), torch.rand(1, 3, 8, 8))


def test_class_score_stands_before_the_softmax() -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    x = torch.rand(1, 3, 8, 8)
    bare = Studio(Model(wrap(layers, size=8), Classification("abc"), preprocess()), (8, 8))
    ended = nn.Sequential(*layers, nn.Softmax(1))
    soft = Studio(Model(wrap(ended, size=8), Classification("abc"), preprocess()), (8, 8))
    values = []
    for studio in (bare, soft):
        with studio.open():
            values.append(studio.look(ClassScore("b").ready(studio), x).value)
    assert values[0] == pytest.approx(values[1])
