"""Costs: by hand, and by PyTorch's own counter."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from built_nets import counted
from striate.nets.cost import cost
from striate.nets.net import create_net, skeleton
from toys import Functional, summing_net


def test_by_hand():
    found = cost(summing_net())
    assert found.stage == ("conv1", "relu1", "pool1", "flatten", "fc")
    assert found.shape == ((1, 2, 2), (1, 2, 2), (1, 1, 1), (1,), (2,))
    assert found.parameters == (9, 0, 0, 0, 2)
    # Four windows of nine; one input for two logits.
    assert found.multiply_adds == (36, 0, 0, 0, 2)
    # Floats of four bytes; a view costs nothing.
    assert found.activation_bytes == (16, 16, 4, 0, 8)
    assert (found.params, found.macs, found.memory) == (11, 38, 44)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        # Sizes other than those of tests/contract/test_cost_contract.py.
        ("lenet5", 8), ("vgg11_bn", 32), ("vgg16", 224), ("resnet50", 64), ("efficientnet_lite0", 33),
        ("googlenet", 224), ("inception_v3", 299),
    ],
)  # fmt: skip
def test_the_second_counter_agrees(name, size):
    net = skeleton(name, 10, 3, size=size)
    assert 2 * cost(net).macs == counted(net, 3, (size, size))


def test_figures_of_the_literature():
    vgg = cost(skeleton("vgg16", 1000))
    rows = dict(zip(vgg.stage, vgg.parameters, strict=True))
    # 7 x 7 x 512 x 4096, and 4096 biases.
    assert rows["fc6"] == 102_760_448 + 4096
    assert vgg.macs == 15_470_264_320
    assert cost(skeleton("resnet50", 1000)).macs == 4_089_184_256
    assert cost(skeleton("resnet18", 1000)).macs == 1_814_073_344


def test_another_size_and_oblong_pictures():
    net = skeleton("resnet20", 10)
    assert cost(net, 64).macs - 640 == 4 * (cost(net).macs - 640)
    oblong = cost(net, size=(32, 64))
    assert oblong.shape[0] == (16, 32, 64)
    assert oblong.size == (32, 64)


def test_functional_work_is_counted_and_shared_weights_once():
    net = Functional()
    found = cost(net, 16, 3)
    assert found.stage == ("conv", "relu", "out", "(between stages)")
    between = dict(zip(found.stage, found.multiply_adds, strict=True))["(between stages)"]
    assert between == 2 * 7 * 7 * 4 * 9
    assert found.params == sum(p.numel() for p in net.parameters())
    shared = nn.Conv2d(2, 2, 1, bias=False)
    twice = cost(nn.Sequential(shared, nn.ReLU(), shared), 4, 2)
    assert twice.params == 4
    assert sum(twice.parameters) == 4
    assert twice.macs == 2 * 4 * 16


def test_transposed_and_grouped_convolutions():
    net = nn.Sequential(nn.ConvTranspose2d(2, 6, 3, 2), nn.Conv2d(6, 6, 3, groups=3))
    found = cost(net, 5, 2)
    assert found.multiply_adds == (2 * 25 * 6 * 9, 6 * 9 * 9 * 2 * 9)
    assert 2 * found.macs == counted(net.to("meta"), 2, (5, 5))


def test_activations_are_what_pytorch_allocates():
    """Every module's output of a plain chain, by its own size."""
    net = create_net("vgg11_bn", 10, size=32).eval()
    sizes: dict[str, int] = {}
    x = torch.zeros(1, 3, 32, 32)
    with torch.no_grad():
        for name in net.stage_names:
            y = net.get_submodule(name)(x)
            sizes[name] = 0 if y.data_ptr() == x.data_ptr() else y.numel() * y.element_size()
            x = y
    found = cost(net)
    ours = dict(zip(found.stage, found.activation_bytes, strict=True))
    assert ours == sizes


@pytest.mark.parametrize("name", ["lenet5", "resnet20", "vgg11_bn"])
def test_training_memory_is_what_the_allocator_gave_out(name):
    """Bytes given out less bytes taken back in a pass of training, by PyTorch's record of its allocator."""
    torch.manual_seed(0)
    net = create_net(name, 10, 3, size=32).train()

    def held(count: int) -> int:
        x = torch.rand(count, 3, 32, 32)
        net(x)
        with torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
        ) as seen:
            output = net(x)
        # The picture was there before; the logits are held by us, not by the graph.
        ours = x.nbytes - output.nbytes
        return sum(event.self_cpu_memory_usage for event in seen.key_averages()) + ours

    assert cost(net, 32).training_memory == held(3) - held(2)


def test_receptive_field_stride_and_biases_are_in_the_table():
    found = cost(skeleton("vgg16", 1000))
    row = {name: i for i, name in enumerate(found.stage)}
    assert (found.receptive_field[row["conv3_3"]], found.stride[row["conv3_3"]]) == (40, 4)
    assert (found.receptive_field[row["pool5"]], found.stride[row["pool5"]]) == (212, 32)
    assert found.receptive_field[row["fc6"]] is None
    assert (found.weights[row["fc6"]], found.biases[row["fc6"]]) == (102_760_448, 4096)
    assert found.layer[row["conv1_1"]] == "3x3 conv, 64"
    assert found.kinds == {"convolution": 14_714_688, "connected": 123_642_856}
    assert sum(found.weights) + sum(found.biases) == 138_357_544


def test_training_memory_by_hand():
    """conv keeps the picture (64 B), ReLU its output (16), pooling 64-bit indices (8), fc its input (4)."""
    found = cost(summing_net())
    assert found.training_bytes == (64, 16, 8, 0, 4)
    # A frozen net keeps nothing.
    assert cost(summing_net().requires_grad_(False)).training_memory == 0


def test_counting_draws_no_random_number():
    net = create_net("efficientnet_lite0", 10, size=32)
    state = torch.get_rng_state()
    cost(net)
    assert torch.equal(torch.get_rng_state(), state)


def test_double_precision_takes_twice_the_memory():
    assert cost(summing_net().double()).memory == 88


def test_table_and_files(tmp_path):
    found = cost(skeleton("lenet5", 10, 1))
    lines = found.lines()
    assert len(lines) == len(found.stage) + 2
    assert lines[-1].split()[:3] == ["total", "61,470", "236"]
    assert json.loads(found.save(tmp_path / "cost.json").read_text())["params"] == 61706
    assert found.save(tmp_path / "cost.csv").read_text().startswith("stage,kind,layer,shape")
