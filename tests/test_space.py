"""The search space: its written form, what it draws from, and what is refused."""

from __future__ import annotations

import dataclasses
import itertools
import json
import types
import typing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from striate.core.errors import StriateError
from striate.train.recipe import Recipe
from striate.train.space import SHARED, Dimension, Space, parse

BASE = Recipe()


def one(text: Any, name: str = "lr") -> Dimension:
    return parse({name: text}, BASE).dimensions[0]


@pytest.mark.parametrize(
    ("name", "text", "values"),
    [
        ("batch", "64,128, 256", (64, 128, 256)),
        ("batch", [64, 128], (64, 128)),
        ("lr", "1e-3,1e-2,null", (0.001, 0.01, None)),
        ("net", "lenet5,resnet20", ("lenet5", "resnet20")),
        ("augment", "flip,pad-crop(4)+flip,affine(rotate=10,translate=0.1)",
         ("flip", "pad-crop(4)+flip", "affine(rotate=10,translate=0.1)")),
        ("nesterov", "true,false", (True, False)),
        ("size", "24,[24, 32]", (24, (24, 32))),
        ("betas", [[0.9, 0.99], [0.9, 0.999]], ((0.9, 0.99), (0.9, 0.999))),
        ("lr", "log(1e-4,1e-1,4)", (1e-4, 1e-3, 1e-2, 1e-1)),
        ("momentum", "uniform(0,0.9,4)", (0.0, 0.3, 0.6, 0.9)),
        ("epochs", "log(2,16,4)", (2, 4, 8, 16)),
        ("epochs", "uniform(1,3,9)", (1, 2, 3)),
    ],
)  # fmt: skip
def test_values(name: str, text: Any, values: tuple[Any, ...]) -> None:
    found = one(text, name)
    assert found.values == values
    assert [type(v) for v in found.values] == [type(v) for v in values]


@pytest.mark.parametrize(
    ("name", "text", "ends", "whole"),
    [
        ("lr", "log(1e-4, 1e-1)", (1e-4, 0.1), False),
        ("clip", "uniform(0,1)", (0.0, 1.0), False),
        ("batch", "log(16,256)", (16, 256), True),
        ("net_options.width", "uniform(16,64)", (16, 64), True),
        ("net_options.dropout", "uniform(0.0,1)", (0.0, 1.0), False),
    ],
)
def test_ranges(name: str, text: str, ends: tuple[float, float], whole: bool) -> None:
    found = one(text, name)
    assert (found.kind, found.low, found.high, found.whole) == (text.split("(")[0], *ends, whole)
    assert found.values == ()


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({"learning-rat": "1,2"}, "unknown setting to search 'learning-rat'"),
        ({"label_smoothin": "0,0.1"}, "did you mean 'label_smoothing'"),
        ({"lr.high": "1,2"}, "unknown setting to search 'lr.high'"),
        ({"lr": "loguniform(1e-4,1)"}, "unknown range 'loguniform'; allowed: log, uniform; did you mean"),
        ({"lr": "log(1,1e-3)"}, "LOW below HIGH"),
        ({"lr": "log(1e-3)"}, "LOW below HIGH"),
        ({"lr": "log(0,1)"}, "begins above 0"),
        ({"lr": "log(1e-3,1,1)"}, "1 points; allowed: a whole number from 2 on"),
        ({"lr": "log(1e-3,inf)"}, "LOW below HIGH"),
        ({"lr": "0.1"}, "one value, '0.1'; give several, or give it for all trials with --lr"),
        ({"lr": "0.1,0.1"}, "each once"),
        ({"lr": "0,1"}, "lr is 0"),
        ({"momentum": "uniform(0,2)"}, "momentum is 2.0; allowed: 0 to 0.9999"),
        ({"batch": "8.5,9"}, "batch is 8.5; allowed: a whole number or nothing"),
        ({"batch": "uniform(1.5,8)"}, "allowed: whole numbers"),
        ({"betas": "[0.9,0.8"}, "check its brackets"),
        ({"net": "log(1,2)"}, "net is 1.0; allowed: a text"),
        ({"net_options": "1,2"}, "--space.net_options.NAME"),
        ({}, "no search space given"),
        *[({name: "0.1,0.2"}, "which images the trials are scored by") for name in SHARED],
    ],
)
def test_mistakes_are_told_in_one_line(space: dict[str, Any], words: str) -> None:
    with pytest.raises(StriateError) as error:
        parse(space, BASE)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_given_twice_in_two_spellings() -> None:
    with pytest.raises(StriateError, match="given twice"):
        parse({"weight_decay": "0,1e-4", "weight-decay": "0,1e-3"}, BASE)


def test_every_setting_with_numbers_or_choices_can_be_searched() -> None:
    hints, tried = typing.get_type_hints(Recipe), 0
    for field in dataclasses.fields(Recipe):
        hint = hints[field.name]
        kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        low, choices = field.metadata.get("minimum"), field.metadata.get("choices")
        if field.name in SHARED:
            continue
        if choices:
            values: list[Any] = list(choices)
        elif bool in kinds:
            values = [True, False]
        elif {int, float} & set(kinds):
            values = [max(low or 0, 1) / 2, max(low or 0, 1) / 4] if int not in kinds else [low + 1, low + 2]
        else:
            continue
        if len(values) > 1:
            tried += 1
            assert one(values, field.name).name == field.name
    assert tried > 25


def test_a_trial_changes_the_base_in_the_searched_settings_only() -> None:
    base = Recipe(net="lenet5", net_options={"width": 4, "activation": "tanh"}, epochs=3)
    space = parse({"lr": "log(1e-3,1)", "net_options": {"width": "8,16"}}, base)
    assert space.names == ("lr", "net_options.width")
    recipe = space.recipe(base, {"lr": 0.5, "net_options.width": 16})
    assert recipe == base.with_(lr=0.5, net_options={"width": 16, "activation": "tanh"})


def test_a_grid_is_every_combination_once() -> None:
    space = parse({"lr": "log(1e-2,1,3)", "batch": "64,128", "size": "8,[8,9]"}, BASE)
    found = [tuple(space.decode(space.combination(k)).values()) for k in range(space.combinations())]
    assert found == list(itertools.product((0.01, 0.1, 1.0), (64, 128), (8, (8, 9))))
    with pytest.raises(StriateError, match=r"number of points of lr; write log\(0.01,1,5\)"):
        parse({"lr": "log(1e-2,1)"}, BASE).combinations()
    big = dict.fromkeys(("momentum", "clip", "label_smoothing"), "uniform(0,0.9,200)")
    with pytest.raises(StriateError, match="8,000,000 combinations"):
        parse(big, BASE).combinations()


@pytest.mark.parametrize(
    ("name", "written", "values"),
    [
        ("progressive", "'24@0.5,28@0.8',16@0.5", ("24@0.5,28@0.8", "16@0.5")),
        ("progressive", ["", "24@0.5,28@0.8"], ("", "24@0.5,28@0.8")),
        ("freeze", '"conv1@2,conv2@1","conv1"', ("conv1@2,conv2@1", "conv1")),
        ("augment", ["flip,x", "it's", 'a"b,c', "f(1,2", "3)", " pad"],
         ("flip,x", "it's", 'a"b,c', "f(1,2", "3)", " pad")),
        ("net_options.kind", "'1',2,'it''s, true','[x]',null,'null'",
         ("1", 2, "it's, true", "[x]", None, "null")),
        ("betas", [[0.9, 0.99], [0.9, 1e-5]], ((0.9, 0.99), (0.9, 1e-5))),
    ],
)  # fmt: skip
def test_a_study_reads_back_what_it_wrote(name: str, written: Any, values: tuple[Any, ...]) -> None:
    space = parse({name: written}, BASE)
    assert space.dimensions[0].values == values
    again = parse(json.loads(json.dumps(space.to_dict())), BASE)
    assert again == space
    assert [type(value) for value in again.dimensions[0].values] == [type(value) for value in values]


@given(
    st.lists(st.text(), min_size=2, max_size=4, unique=True), st.sampled_from(["augment", "net_options.x"])
)
def test_texts_read_back_whatever_they_hold(texts: list[str], name: str) -> None:
    first = Space((Dimension(name, "list", tuple(texts)),))
    assert parse(first.to_dict(), BASE) == first


def test_plain_texts_are_written_without_quotes_as_ever() -> None:
    text = "flip,pad-crop(4)+flip,affine(rotate=10,translate=0.1)"
    assert parse({"augment": text}, BASE).to_dict() == {"augment": text}


numbers = st.floats(1e-6, 1e3).map(lambda v: float(f"{v:.6g}"))


@given(st.lists(numbers, min_size=2, max_size=5, unique=True), st.sampled_from(["list", "uniform", "log"]))
def test_the_written_form_reads_back(values: list[float], kind: str) -> None:
    low, high = sorted(values)[:2]
    text = ",".join(map(repr, values)) if kind == "list" else f"{kind}({low!r},{high!r},{len(values)})"
    space = parse({"lr": text}, BASE)
    assert parse(space.to_dict(), BASE) == space
    assert isinstance(space, Space)
    for value in space.dimensions[0].values:
        coded = next(k for k, v in space.dimensions[0].coded().items() if v == value)
        assert space.decode({"lr": coded}) == {"lr": value}
