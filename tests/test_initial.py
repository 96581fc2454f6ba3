"""How weights begin, as a setting: its written form, every rule on real nets, and what excludes it."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from striate.core.errors import StriateError
from striate.data.samples import Dataset, Split
from striate.layers.initialisation import gaussian, he, weighted
from striate.nets.lsuv import lsuv
from striate.nets.net import create_net, initialise
from striate.nets.taps import capture
from striate.train.devices import Place
from striate.train.initial import INITIALISATIONS, begin, check_initialisation, rule_of
from striate.train.recipe import Recipe
from striate.train.setup import prepare
from striate.train.whiten import sample_images

NET: dict[str, Any] = {"net": "resnet20", "net_options": {"width": 4}, "size": 12, "batch": 8, "workers": 0}


def noise_set(count: int = 60) -> Dataset:
    """Noise of three classes, without validation images."""
    images = np.random.default_rng(2).integers(0, 256, (count, 12, 12, 3)).astype(np.uint8)
    split = Split.from_arrays("train", images, np.arange(count) % 3)
    return Dataset("noise", "classification", ("a", "b", "c"), [split])


def prepared(*, begun: bool = False, **settings: Any) -> Any:
    return prepare(noise_set(), Recipe(**NET | settings), Place(torch.device("cpu")), 1, begun=begun)


def batch_of(most: int, pixels: int) -> Tensor:
    assert min(most, pixels) > 0
    return torch.randn(24, 3, 32, 32, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("net", ["resnet20", "googlenet", "vgg11_bn", "maxout_cifar", "squeezenet1_1"])
@pytest.mark.parametrize("rule", INITIALISATIONS.names())
def test_every_rule_draws_every_layer_of_a_net(net: str, rule: str) -> None:
    torch.manual_seed(0)
    made = create_net(net, 5, 3, size=32, width=4) if net == "vgg11_bn" else create_net(net, 5, 3, size=32)
    before = {name: value.clone() for name, value in made.state_dict().items()}
    chosen = {id(layer) for layer in weighted(made)}
    drawn = {f"{name}.weight" for name, layer in made.named_modules() if id(layer) in chosen}
    drawn |= {name.removesuffix("weight") + "bias" for name in drawn} & set(before)
    begin(made, rule, batch_of)
    after = made.state_dict()
    assert all(torch.isfinite(value).all() for value in after.values())
    same = {name for name, value in before.items() if torch.equal(value, after[name])}
    assert set(before) - drawn <= same
    assert not {name for name in drawn & same if name.endswith("weight")}
    if rule != "uniform":
        assert all(not after[name].any() for name in drawn if name.endswith("bias"))


def test_the_net_s_own_weights_are_left() -> None:
    torch.manual_seed(0)
    net = create_net("resnet20", 3, 3, size=12, width=4)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.get_rng_state()
    begin(net, "own", batch_of)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("text", "by_hand"),
    [
        ("gaussian", partial(gaussian, std=0.01)),
        ("gaussian(0.2)", partial(gaussian, std=0.2)),
        (" he ( slope = 0.5 ) ", partial(he, slope=0.5)),
        ("lsuv(0.5, passes=2)", lambda net: lsuv(net, batch_of(1, 1), tolerance=0.5, passes=2)),
    ],
)
def test_the_written_form_is_the_function_call(text: str, by_hand: Any) -> None:
    nets = []
    for rule in (lambda net: begin(net, text, batch_of), by_hand):
        nets.append(create_net("lenet5", 4, 3, size=32))
        torch.manual_seed(7)
        rule(nets[-1])
    ours, theirs = (net.state_dict() for net in nets)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("xavir", "unknown initialisation 'xavir'.*did you mean 'xavier'"),
        ("owm", "unknown initialisation 'owm'.*did you mean 'own'"),
        ("he(slop=1)", "unknown setting of initialisation 'he' 'slop'.*did you mean 'slope'"),
        ("he(1, 2)", r"2 values in initialisation 'he\(1, 2\)'; allowed: he\(slope\)"),
        ("xavier(1)", "1 values in initialisation 'xavier.1.'; allowed: xavier$"),
        ("he(0.1, slope=0.2)", "slope is given twice"),
        ("he(slope=0.1, 0.2)", "after a named setting.*values without a name come first"),
        ("gaussian(small)", "'small' in initialisation 'gaussian.small.'; allowed: finite numbers"),
        ("gaussian(nan)", "nan in initialisation"),
        ("he + xavier", "initialisation 'he . xavier'; allowed: name or name.*'own' leaves them"),
        ("", "initialisation ''"),
        ("gaussian(-1)", "std is -1; allowed: a number from 0"),
        ("lsuv(0)", "tolerance 0, 10 passes; allowed: a tolerance above 0"),
        ("lsuv(passes=1.5)", "1.5 passes.*a whole number of passes from 1"),
    ],
)
def test_what_is_no_rule(text: str, words: str) -> None:
    with pytest.raises(StriateError, match=words):
        prepared(initialisation=text)


def test_a_rule_sees_training_images_as_the_net_does() -> None:
    setup = prepared(initialisation="lsuv")
    net, images = setup.job.net, sample_images(setup.dataset.split("train"), setup.preprocess)
    chosen = {id(layer) for layer in weighted(net)}
    names = [name for name, layer in net.named_modules() if id(layer) in chosen]
    with torch.no_grad(), capture(net.eval(), names) as seen:
        net(images)
    assert {name: round(maps.var().item(), 1) for name, maps in seen.items()} == dict.fromkeys(names, 1.0)


def test_weights_that_are_fixed_by_design_stay() -> None:
    torch.manual_seed(0)
    net = create_net("lenet5_1998", 10, 1, size=32, output="rbf")
    fixed = {name: value.clone() for name, value in net.named_parameters() if not value.requires_grad}
    assert any(set(value.unique().tolist()) == {-1.0, 1.0} for value in fixed.values())
    batch = torch.randn(8, 1, 32, 32, generator=torch.Generator().manual_seed(3))
    for rule in INITIALISATIONS.names():
        begin(net, rule, lambda *_: batch)
    now = dict(net.named_parameters())
    assert all(torch.equal(now[name], value) for name, value in fixed.items())


def test_a_rule_that_goes_by_pictures_takes_none_of_the_other_ways() -> None:
    with pytest.raises(StriateError, match=r"'lsuv' and grow_from both say how the first layers begin"):
        prepared(initialisation="lsuv", grow_from="resnet20")
    with pytest.raises(StriateError, match="initialisation 'lsuv' goes by pictures"):
        initialise(nn.Linear(2, 2), "lsuv")


def test_the_check_of_a_rule_takes_no_random_numbers() -> None:
    state = torch.get_rng_state()
    check_initialisation(Recipe(initialisation="lsuv(0.1)"))
    check_initialisation(Recipe(initialisation="he(1e308)"))
    assert torch.equal(torch.get_rng_state(), state)


def test_weights_that_come_from_a_checkpoint_are_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("striate.train.setup.begin", lambda *_: pytest.fail("drawn"))
    assert isinstance(prepared(initialisation="lsuv", begun=True).job.net, nn.Module)


def test_the_whitened_layer_comes_after_the_others_and_not_with_lsuv() -> None:
    drawn = prepared(initialisation="orthogonal").job.net.state_dict()
    both = prepared(initialisation="orthogonal", first_layer="whitened").job.net.state_dict()
    assert [name for name in drawn if not torch.equal(drawn[name], both[name])] == ["conv1.weight"]
    with pytest.raises(StriateError, match=r"'lsuv' and first_layer both.*leave one out"):
        prepared(initialisation="lsuv", first_layer="whitened")


def test_every_rule_has_a_paper_and_numbers_for_settings() -> None:
    assert {"gaussian", "he", "lecun", "lsuv", "orthogonal", "uniform", "xavier"} <= set(
        INITIALISATIONS.names()
    )
    for entry in INITIALISATIONS:
        assert entry.capabilities["paper"]
        assert entry.summary.endswith((".", "8", ")"))
        by_pictures = rule_of(entry.name)[1]
        settings = list(inspect.signature(entry.value).parameters.values())[1 + by_pictures :]
        assert all(isinstance(setting.default, (int, float)) for setting in settings)
