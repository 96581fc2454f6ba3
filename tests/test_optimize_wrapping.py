"""How the loop runs a net: gradient checkpointing, compiling, norms over processes, rates of dropout."""

from __future__ import annotations

import copy
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from processes import start
from striate.core.errors import StriateError
from striate.layers.regularization import DropPath
from striate.nets.net import Net, create_net
from striate.train import wrapping
from striate.train.devices import Place
from striate.train.fit import fit
from striate.train.recipe import Recipe
from striate.train.setup import with_rates
from striate.train.synced import SyncedNorm, synchronise
from striate.train.wrapping import Recomputed, check_wrapping, wrapped
from trials import blobs, same_weights, small_job, small_net

CPU = Place(torch.device("cpu"))


def staged_net() -> Net:
    """Convolutions, norms and dropout as stages."""
    torch.manual_seed(2)
    stages: list[tuple[str, nn.Module]] = []
    channels = 1
    for number in range(1, 5):
        stages += [
            (f"conv{number}", nn.Conv2d(channels, 6, 3, padding=1)),
            (f"bn{number}", nn.BatchNorm2d(6)),
            (f"relu{number}", nn.ReLU()),
            (f"drop{number}", nn.Dropout(0.2)),
        ]
        channels = 6
    stages += [("flatten", nn.Flatten()), ("fc", nn.Linear(6 * 64, 3))]
    return Net(stages, head="fc", in_channels=1, size=8, name="staged")


def kept_bytes(forward: nn.Module, images: torch.Tensor) -> int:
    """Bytes that the forward pass saves for the backward pass."""
    sizes: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        sizes[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward(images).sum().backward()
    return sum(sizes.values())


@pytest.mark.parametrize("segments", [1, 3, 50])
def test_recomputed_gradients_and_statistics_are_the_same_bits(segments: int) -> None:
    plain, net = staged_net().train(), staged_net().train()
    other = Recomputed(net, segments).train()
    images, targets = blobs(16)
    for model in (plain, other):
        for step in range(2):
            torch.manual_seed(step)
            nn.functional.cross_entropy(model(images), targets).backward()
    for ours, theirs in zip(net.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)
    assert same_weights(net, plain)
    assert net.bn1.num_batches_tracked == 2
    assert torch.equal(other.eval()(images), plain.eval()(images))


def test_recomputing_keeps_less() -> None:
    images = torch.randn(8, 1, 8, 8)
    plain, less = staged_net(), staged_net()
    assert kept_bytes(Recomputed(less, 4).train(), images) < 0.6 * kept_bytes(plain.train(), images)


def test_recomputing_in_the_loop_changes_no_bit() -> None:
    first = small_job(staged_net(), epochs=2)
    second = small_job(staged_net(), epochs=2, recompute=3)
    fit(first)
    fit(second)
    assert same_weights(first.net, second.net)
    assert first.state.history == second.state.history


def test_what_cannot_be_wrapped_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StriateError, match="stages run one after the other"):
        check_wrapping(small_net(), Recipe(recompute=2))
    with pytest.raises(StriateError, match="exclude each other"):
        check_wrapping(staged_net(), Recipe(recompute=2, compiled=True))
    monkeypatch.setattr(wrapping, "compiler", lambda: None)
    with pytest.raises(StriateError, match=r"compiler.*install"):
        check_wrapping(staged_net(), Recipe(compiled=True, device="cpu"))


def test_compiling_is_asked_of_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[nn.Module] = []
    monkeypatch.setattr(torch, "compile", lambda net: asked.append(net) or net)
    monkeypatch.setattr(wrapping, "compiler", lambda: "g++")
    net = staged_net()
    assert wrapped(net, Recipe(compiled=True, device="cpu"), CPU) is net
    assert asked == [net]
    assert wrapped(net, Recipe(), CPU) is net
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("settings", "tiles"), [({}, True), ({"winograd": False}, False), ({"compiled": True}, False)]
)
def test_training_takes_tiles_unless_it_is_told_not_to(
    settings: dict[str, Any], tiles: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda net: net)
    monkeypatch.setattr(wrapping, "compiler", lambda: "g++")
    wide = nn.Conv2d(192, 192, 3, padding=1)
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(192, 3))
    net = nn.Sequential(nn.Conv2d(1, 192, 1), nn.ReLU(), wide, *head).to(memory_format=torch.channels_last)
    ran = []
    wide.register_forward_hook(lambda *how: ran.append(type(how[2].grad_fn).__name__))
    fit(small_job(net, epochs=1, batch=96, **settings))
    assert ("TiledBackward" in ran) == tiles
    assert ("ConvolutionBackward0" in ran) != tiles
    assert "forward" not in vars(wide)


# ---------------------------------------------------------------- several processes


def parts(rank: int, port: int, folder: str) -> None:
    """One of two processes: nets with norms over both, and L-BFGS, on half of the images each."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", world_size=2, rank=rank)
    for name, job in jobs(rank, 2).items():
        fit(job)
        if rank == 0:
            state = {key: value.contiguous() for key, value in job.net.state_dict().items()}
            save_file(state, Path(folder) / f"{name}.safetensors")
    torch.distributed.destroy_process_group()


def jobs(rank: int, world: int) -> dict[str, Any]:
    shared: dict[str, Any] = {"epochs": 2, "rank": rank, "world": world}
    smooth = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(144, 3))
    torch.manual_seed(1)
    for layer in (smooth[0], smooth[3]):
        layer.reset_parameters()
    steps = {"optimizer": "lbfgs", "lr": 1.0, "accumulate": 3, "lbfgs_iterations": 2, "l1": 1e-4}
    return {
        "norms": small_job(small_net(norm=True), sync_norm=True, momentum=0.5, **shared),
        "lbfgs": small_job(smooth, **(shared | steps)),
        "thawing": small_job(small_net(norm=True), sync_norm=True, freeze="0@1", **shared),
        "average": small_job(small_net(norm=True), sync_norm=True, swa=0.5, gradient_noise=0.01, **shared),
    }


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    both = [start(parts, rank, port, str(tmp_path)) for rank in (0, 1)]
    alone = jobs(0, 1)
    for job in alone.values():
        fit(job)
    for process in both:
        process.join(60)
        assert process.exitcode == 0
    for name, job in alone.items():
        theirs = load_file(tmp_path / f"{name}.safetensors")
        for key, tensor in job.net.state_dict().items():
            torch.testing.assert_close(theirs[key], tensor, rtol=2e-3, atol=2e-4, msg=f"{name}: {key}")


def test_synchronising_keeps_weights_and_names(monkeypatch: pytest.MonkeyPatch) -> None:
    net = small_net(norm=True)
    before = dict(net.named_parameters())
    keys = list(net.state_dict())
    assert synchronise(net) == 1
    assert synchronise(net) == 0
    assert isinstance(net[1], SyncedNorm)
    assert list(net.state_dict()) == keys
    assert all(parameter is before[name] for name, parameter in net.named_parameters())
    # Of one process alone it is batch norm.
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 1)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: None)
    plain = small_net(norm=True)
    images, targets = blobs(16)
    for model in (net, plain):
        model.train()
        nn.functional.cross_entropy(model(images), targets).backward()
    for ours, theirs in zip(net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(net[1].running_var, plain[1].running_var)
    torch.testing.assert_close(net[1].running_mean, plain[1].running_mean)
    torch.testing.assert_close(net.eval()(images), plain.eval()(images))
    assert same_weights(copy.deepcopy(net), net)


# ---------------------------------------------------------------- rates


def test_rates_of_dropout_and_stochastic_depth_reach_the_net() -> None:
    options = with_rates(Recipe(drop_path=0.4, net_options={"width": 4}), "resnet20")
    assert options == {"width": 4, "drop_path": 0.4}
    net = create_net("resnet20", 10, 3, **options)
    rates = [module.rate for module in net.modules() if isinstance(module, DropPath)]
    # Nine blocks: block l of 9 is dropped with l / 9 of the rate (arXiv:1603.09382, equation 4).
    assert rates == pytest.approx([0.4 * k / 9 for k in range(1, 10)])
    assert not any(
        isinstance(module, DropPath) for module in create_net("resnet20", 10, 3, width=4).modules()
    )
    assert list(net.state_dict()) == list(create_net("resnet20", 10, 3, width=4).state_dict())
    assert with_rates(Recipe(dropout=0.3), "vgg11") == {"dropout": 0.3}
    with pytest.raises(StriateError, match="net 'lenet5' has no dropout rate"):
        with_rates(Recipe(dropout=0.3), "lenet5")


def test_a_dropped_block_is_its_shortcut() -> None:
    torch.manual_seed(0)
    block = create_net("resnet20", 10, 3, width=4, drop_path=0.9).res1b.train()
    block.drop_path.rate = 0.999999
    x = torch.randn(4, 4, 8, 8)
    assert torch.equal(block(x), torch.relu(x))
    bottleneck = create_net("resnet50", 10, 3, size=32, width=4, drop_path=0.9).res2b.train()
    bottleneck.drop_path.rate = 0.999999
    x = torch.randn(2, 16, 8, 8)
    assert torch.equal(bottleneck(x), torch.relu(x))
