"""What every registered net must hold."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from built_nets import build, built, pictures, quick, side
from striate.core.errors import StriateError
from striate.nets.cost import cost
from striate.nets.net import NETS, skeleton
from striate.nets.taps import capture
from toys import hooks


@pytest.fixture(scope="module", params=NETS.names())
def name(request: pytest.FixtureRequest) -> str:
    """Every registered net; all tests of one before those of the next."""
    return request.param


def test_registration_tells_what_is_needed(name):
    entry = NETS.entry(name)
    assert entry.capabilities["paper"]
    assert entry.capabilities["family"]
    assert entry.capabilities["size"] >= 1
    assert entry.summary.endswith((".", ":"))


def test_contract(name):
    net = build(name)
    x = pictures(name)
    assert (net.name, net.classes, net.in_channels, net.size) == (name, 3, 2, side(name))
    assert net.options == quick(name)
    assert net.head in net.stage_names
    assert all(net.get_submodule(stage) is dict(net.named_children())[stage] for stage in net.stage_names)
    # Evaluation: taps, features and the head say the same; memory format does not count.
    net.eval()
    with torch.no_grad(), capture(net, net.stage_names) as seen:
        out = net(x)
    assert hooks(net) == 0
    assert out.shape == (2, 3)
    assert out.isfinite().all()
    assert set(seen) == set(net.stage_names)
    assert set(seen.calls.values()) == {1}
    assert torch.equal(seen[net.stage_names[-1]], out)
    features = net.features(x)
    assert features.shape == (2, net.feature_dim)
    of_head = seen[net.head]
    if of_head.ndim == 4:
        # A convolution of 1x1 is linear: its mean over the map is what it makes of the mean.
        features, of_head = features[..., None, None], of_head.mean((2, 3), keepdim=True)
    torch.testing.assert_close(net.head_layer(features), of_head)
    with torch.no_grad():
        other = copy.deepcopy(net).to(memory_format=torch.channels_last)(
            x.to(memory_format=torch.channels_last)
        )
        torch.testing.assert_close(other, out, rtol=1e-4, atol=1e-4)
        # One picture does not depend on the others in the batch.
        torch.testing.assert_close(net(x[:1]), out[:1], rtol=1e-4, atol=1e-4)
    # Shapes are those that the pass without numbers finds.
    table = cost(net)
    assert dict(zip(table.stage, table.shape, strict=True)) == {
        n: tuple(t.shape[1:]) for n, t in seen.items()
    }
    assert table.params == sum(p.numel() for p in net.parameters())
    assert sum(table.parameters) == table.params
    assert table.macs > 0


def test_backward_reaches_every_parameter(name):
    net = build(name).train()
    net(pictures(name, 4)).square().sum().backward()
    for key, parameter in net.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        # Dropout may silence a linear layer's output, nothing silences a whole convolution.
    assert net.head_layer.weight.grad.abs().sum() > 0 or name == "linear"


def test_the_seed_gives_the_weights(name):
    first, other = build(name).state_dict(), build(name, seed=1).state_dict()
    built.cache_clear()
    again = build(name).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    if name != "linear":
        assert any(not torch.equal(first[key], other[key]) for key in first)


def test_modes_are_honoured(name):
    net = build(name)
    x = pictures(name, 4)
    state = copy.deepcopy(net.state_dict())
    net.eval()
    assert torch.equal(net(x), net(x))
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    net.train()
    net(x)
    running = [key for key in state if key.endswith("running_mean")]
    trained = net.state_dict()
    assert all(not torch.equal(trained[key], state[key]) for key in running)


def test_activations_are_modules_used_once_and_not_in_place(name):
    net = build(name).eval()
    kinds = (nn.ReLU, nn.ReLU6, nn.Tanh)
    names = [key for key, module in net.named_modules(remove_duplicate=False) if isinstance(module, kinds)]
    assert len({id(net.get_submodule(key)) for key in names}) == len(names)
    assert not any(getattr(module, "inplace", False) for module in net.modules())
    with capture(net, names) as seen, torch.no_grad():
        net(pictures(name, 1))
    assert all(count == 1 for count in seen.calls.values())


def test_wrong_input_is_refused(name):
    net = build(name)
    size = side(name)
    with pytest.raises(StriateError, match="has 5 channels, the net takes 2"):
        net(torch.zeros(1, 5, size, size))
    with pytest.raises(StriateError, match="channels"):
        net.features(torch.zeros(1, 1, size, size))
    with pytest.raises(StriateError, match="shape"):
        net(torch.zeros(2, size, size))
    with pytest.raises(StriateError, match="normalise it to floats first"):
        net(torch.zeros(1, 2, size, size, dtype=torch.uint8))
    if net.fixed_size:
        with pytest.raises(StriateError, match=f"{size + 1} x {size} pixels, the net takes"):
            net(torch.zeros(1, 2, size + 1, size))
    else:
        net.eval()(torch.zeros(1, 2, size + 3, size + 6))
    if net.min_size > 1:
        with pytest.raises(StriateError, match="pixels"):
            net(torch.zeros(1, 2, net.min_size - 1, size))


def test_the_smallest_size_works(name):
    net = build(name).eval()
    if not net.fixed_size:
        assert net(torch.zeros(1, 2, net.min_size, net.min_size)).isfinite().all()


def test_the_state_dictionary_makes_a_round_trip(name):
    net = build(name).eval()
    twin = build(name, seed=1).eval()
    twin.load_state_dict(net.state_dict())
    assert torch.equal(twin(pictures(name)), net(pictures(name)))
    bare = skeleton(name, 3, 2, size=side(name), **quick(name))
    assert all(tensor.is_meta for tensor in bare.state_dict().values())
    ours = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    assert {key: tuple(value.shape) for key, value in bare.state_dict().items()} == ours


def test_the_head_can_be_reset(name):
    net = build(name).eval()
    old = {key: value.clone() for key, value in net.state_dict().items() if not key.startswith(net.head)}
    assert net.reset_head(7) is net
    assert net.classes == 7
    assert net(pictures(name)).shape == (2, 7)
    kept = net.state_dict()
    assert all(torch.equal(kept[key], value) for key, value in old.items())


def test_double_precision(name):
    net = build(name).eval()
    x = pictures(name)
    with torch.no_grad():
        single, double = net(x), net.double()(x.double())
    assert double.dtype == torch.float64
    torch.testing.assert_close(single.double(), double, rtol=1e-3, atol=1e-3)


def test_first_logits_are_small(name):
    """The loss of a new net is near ln K: the classes start about equally probable."""
    net = build(name, classes=10).train()
    targets = torch.arange(20) % 10
    with torch.no_grad():
        loss = nn.functional.cross_entropy(net(pictures(name, 20)), targets)
    assert 2.0 < loss < 3.6


def test_symbolic_tracing_follows_the_net(name):
    net = build(name).eval()
    traced = torch.fx.symbolic_trace(net)
    with torch.no_grad():
        torch.testing.assert_close(traced(pictures(name)), net(pictures(name)))


def test_the_form_for_large_pictures(name):
    """On the meta device: every net in the size that it is registered with, and its standard classes."""
    entry = NETS.entry(name)
    with torch.device("meta"):
        net = entry.value().eval()
    assert net.size == entry.capabilities["size"]
    assert net(torch.empty(2, net.in_channels, *net.input_size, device="meta")).shape == (2, net.classes)
