"""What every registered layer must hold. A layer joins by registering with `paper` and `example`.

`example` is a function without arguments that gives (module, input); several inputs are a tuple, of which
only tensors of floats are differentiated. `traceable=False` in the registration: symbolic tracing cannot
follow the layer. `builtin=True`: it is PyTorch's own, documented there.
"""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from striate.layers.registry import LAYERS


def example(name: str, seed: int = 0) -> tuple[nn.Module, tuple[Any, ...]]:
    """The registered example; parameters that begin at a special value (0 or 1) are moved from it."""
    torch.manual_seed(seed)
    module, given = LAYERS.entry(name).capabilities["example"]()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module, given if isinstance(given, tuple) else (given,)


def double(values: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(v.double() if is_float(v) else v for v in values)


def is_float(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def tensors(output: Any) -> tuple[Tensor, ...]:
    return output if isinstance(output, tuple) else (output,)


def assert_same(one: Any, other: Any, **limits: float) -> None:
    for a, b in zip(tensors(one), tensors(other), strict=True):
        torch.testing.assert_close(a, b, **limits)


@pytest.fixture(params=LAYERS.names())
def name(request: pytest.FixtureRequest) -> str:
    """Every registered layer."""
    return request.param


def test_registration_tells_what_is_needed(name):
    entry = LAYERS.entry(name)
    assert issubclass(entry.value, nn.Module)
    assert isinstance(example(name)[0], entry.value)
    assert entry.capabilities["paper"]
    if not entry.capabilities.get("builtin"):
        assert entry.summary.endswith((".", ":"))
        assert re.search(r"\b(19|20)\d\d\b|arXiv|tensorflow\.org", entry.value.__doc__), "name the paper"
        assert entry.value.forward.__doc__ or entry.value.__mro__[1].forward.__doc__


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_gradients_are_right(name, training):
    """Against differences of the outputs, of inputs and parameters; the same random draws in every call."""
    module, values = example(name)
    module, values = module.double().train(training), double(values)
    at = [i for i, value in enumerate(values) if is_float(value)]
    leaves = [values[i].requires_grad_() for i in at]

    def run(*given: Tensor) -> tuple[Tensor, ...]:
        torch.manual_seed(5)
        inputs = list(values)
        for i, value in zip(at, given, strict=False):
            inputs[i] = value
        return tuple(out for out in tensors(module(*inputs)) if is_float(out))

    # The module reads its own parameters; gradcheck moves them in place. The fast mode compares in a random
    # direction, which an error in any one derivative changes.
    assert torch.autograd.gradcheck(run, (*leaves, *module.parameters()), fast_mode=True)
    for out in run(*leaves):
        (out * torch.randn_like(out)).sum().backward(retain_graph=True)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())


def test_double_precision(name):
    module, values = example(name)
    module.eval()
    single = tensors(module(*values))
    exact = tensors(module.double()(*double(values)))
    for a, b in zip(single, exact, strict=True):
        assert b.dtype == (torch.float64 if is_float(a) else a.dtype)
        torch.testing.assert_close(a.to(b.dtype), b, rtol=1e-4, atol=1e-5)


def test_channels_last_gives_the_same_numbers(name):
    module, values = example(name)
    module.eval()
    plain = module(*values)
    module = module.to(memory_format=torch.channels_last)
    other = [
        v.contiguous(memory_format=torch.channels_last) if isinstance(v, Tensor) and v.ndim == 4 else v
        for v in values
    ]
    assert_same(module(*other), plain)
    # Every second element of a larger tensor: strides that no memory format has.
    apart = [torch.stack([v, v], -1)[..., 0] if isinstance(v, Tensor) else v for v in values]
    assert_same(module(*apart), plain)


def test_evaluation_is_deterministic_and_draws_nothing(name):
    module, values = example(name)
    module.eval()
    state = torch.get_rng_state()
    buffers = {key: value.clone() for key, value in module.state_dict().items()}
    assert_same(module(*values), module(*values), rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, buffers[key]) for key, value in module.state_dict().items())


def test_one_example_does_not_depend_on_the_others(name):
    module, values = example(name)
    module.eval()
    alone = module(*[v[:1] if isinstance(v, Tensor) else v for v in values])
    assert_same(alone, tuple(out[:1] for out in tensors(module(*values))))


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_the_input_stays_and_the_seed_decides(name, training):
    module, values = example(name)
    module.train(training)
    kept = copy.deepcopy(values)
    again = copy.deepcopy(module)
    torch.manual_seed(3)
    first = module(*values)
    torch.manual_seed(3)
    assert_same(again(*values), first, rtol=0, atol=0)
    assert all(torch.equal(a, b) for a, b in zip(values, kept, strict=True) if isinstance(a, Tensor))
    assert all(out.isfinite().all() for out in tensors(first))


def test_a_skeleton_tells_the_shape(name):
    """On the meta device, without memory: all that a layer needs comes back with its state dictionary."""
    module, values = example(name)
    module.eval()
    bare = copy.deepcopy(module).to("meta")
    shapes = bare(*[v.to("meta") if isinstance(v, Tensor) else v for v in values])
    outputs = tensors(module(*values))
    assert [out.shape for out in tensors(shapes)] == [out.shape for out in outputs]
    bare.load_state_dict(module.state_dict(), strict=True, assign=True)
    assert_same(bare(*values), module(*values), rtol=0, atol=0)


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_symbolic_tracing_follows_the_layer(name, training):
    known = LAYERS.entry(name).capabilities
    if not known.get("traceable", True):
        pytest.skip("not promised")
    module, values = example(name)
    module.train(training)
    # PyTorch's own are single nodes of a graph only inside of another module.
    traced = torch.fx.symbolic_trace(nn.Sequential(module) if known.get("builtin") else module)
    torch.manual_seed(3)
    expected = copy.deepcopy(module)(*values)
    torch.manual_seed(3)
    assert_same(traced(*values), expected)


def test_mixed_precision_gives_finite_numbers_near_the_exact(name):
    module, values = example(name)
    module.eval()
    exact = module(*values)
    with torch.autocast("cpu", torch.bfloat16):
        rough = module(*values)
    for a, b in zip(tensors(rough), tensors(exact), strict=True):
        torch.testing.assert_close(a.to(b.dtype), b, rtol=0.05, atol=0.05)


def test_a_batch_may_be_empty(name):
    module, values = example(name)
    module.eval()
    outputs = tensors(module(*values))
    empty = tensors(module(*[v[:0] if isinstance(v, Tensor) else v for v in values]))
    assert [out.shape[1:] for out in empty] == [out.shape[1:] for out in outputs]


def test_it_prints_in_one_line_a_module(name):
    text = repr(example(name)[0])
    assert name in text
    assert all(len(line) < 160 for line in text.splitlines())
