"""What the conversions of every registered net must hold."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from built_nets import build, pictures
from striate.core.errors import StriateError
from striate.nets.convert import ablate, dense, fold_batch_norm, removable
from striate.nets.net import NETS, Net

NAMES = NETS.names()
# Their layers belong to one size of maps.
NO_DENSE_FORM = {"lenet1989"}


def close(found: torch.Tensor, wanted: torch.Tensor, part: float = 1e-5) -> bool:
    return bool((found - wanted).abs().max() <= part * wanted.abs().max().clamp(min=1e-3))


def lively(net: Net) -> Net:
    """A net in evaluation whose norms do something: drawn statistics and factors of both signs."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.normal_(0, 0.2, generator=generator)
                module.running_var.uniform_(0.5, 2, generator=generator)
                if module.affine:
                    module.weight.uniform_(0.5, 1.5, generator=generator)
                    module.weight[::3].neg_()
                    module.bias.normal_(0, 0.2, generator=generator)
        if net.name == "linear":
            net.head_layer.weight.normal_(generator=generator)
    return net.eval()


@pytest.mark.parametrize("name", NAMES)
def test_the_dense_form_is_the_classifier(name: str) -> None:
    net = lively(build(name))
    state = copy.deepcopy(net.state_dict())
    x = pictures(name)
    if name in NO_DENSE_FORM:
        with pytest.raises(StriateError, match="stage '"):
            dense(net)
        return
    form = dense(net)
    with torch.no_grad():
        logits = form(x)
        assert logits.shape == (2, 3, 1, 1)
        assert close(logits.flatten(1), net(x))
        # A larger picture gives a map; the classifier's parameters are what they were.
        height, width = net.input_size
        several = form(torch.rand(1, 2, 2 * height, 2 * width + 1))
    assert several.shape[:2] == (1, 3)
    # 33 of 16 pixels: two positions even where the net goes in steps of 32.
    assert max(several.shape[2:]) >= 2
    assert several.isfinite().all()
    assert form.classes == net.classes
    assert not any(isinstance(module, nn.Linear) for module in form.modules())
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_a_folded_net_gives_the_same(name: str) -> None:
    net = lively(build(name))
    norms = [n for n, m in net.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        with pytest.raises(StriateError, match="no batch norm"):
            fold_batch_norm(net)
        return
    state = copy.deepcopy(net.state_dict())
    x = pictures(name, 4)
    folded = fold_batch_norm(net, keep=True)
    left = [n for n, m in folded.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert len(left) < len(norms)
    assert folded.stage_names == net.stage_names
    with torch.no_grad():
        assert close(folded(x), net(x))
        if left:
            with pytest.raises(StriateError, match=f"{len(left)} of {len(norms)} batch norms"):
                fold_batch_norm(net)
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_stages_can_go(name: str) -> None:
    net = build(name).eval()
    names = removable(net)
    assert net.head not in names
    for stage in {*names[:1], *names[-1:]}:
        less = ablate(net, stage)
        assert stage not in less.stage_names
        assert len(less.stage_names) == len(net.stage_names) - 1
        with torch.no_grad():
            assert less.eval()(pictures(name)).shape == (2, 3)
        found, old = less.state_dict(), net.state_dict()
        kept = [key for key in found if key.rpartition(".")[0] not in less.redrawn]
        assert all(torch.equal(found[key], old[key]) for key in kept)
