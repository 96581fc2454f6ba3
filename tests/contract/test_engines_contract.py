"""What every engine must do: give the net's answers, for batches of its own length and of others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from little_models import conv_model
from striate.engines.engine import ENGINES, PLAIN, Engine, Form, Unusable, difference
from striate.engines.race import Padded
from striate.engines.source import Source

CPU = torch.device("cpu")


def kind(name: str) -> type[Engine]:
    """The engine, or a skip where this machine does not have it."""
    found = ENGINES.get(name)
    if reason := found.missing(CPU):
        pytest.skip(f"{name}: {reason}")
    return found


@pytest.mark.parametrize("name", ENGINES.names())
def test_answers_are_the_nets(name: str) -> None:
    made = kind(name)
    net = conv_model(seed=4).net
    images = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with torch.inference_mode():
        wanted, one = net(images), net(images[:1])
        for layout in made.layouts:
            engine = made(Source(net), images, Form(name, layout, 1))
            # Any memory format goes in; the same engine runs twice.
            for x in (images, images.contiguous(memory_format=torch.channels_last)):
                assert difference(engine(x), wanted) is None
            shorter = engine if made.any_batch else Padded(engine, 3)
            assert difference(shorter(images[:1]), one) is None
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


@pytest.mark.parametrize("name", ENGINES.names())
def test_the_registry_tells_what_choosing_needs(name: str) -> None:
    entry = ENGINES.entry(name)
    assert entry.summary
    assert entry.value.layouts
    assert entry.value.setup > 0
    assert 0 < entry.value.gain < 1
    assert Form(name) != PLAIN
    assert str(Form(name, "nchw", 2)) == f"{name}, nchw, 2 threads"


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_net_that_looks_at_values_is_refused(name: str) -> None:
    class Looks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3)) if x.mean() > 0 else x.amax((2, 3))

    with pytest.raises(Unusable, match="graph of the net cannot be written"):
        kind(name)(Source(Looks().eval()), torch.zeros(2, 3, 4, 4), Form(name, "", 1))
