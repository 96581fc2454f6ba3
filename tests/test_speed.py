"""What keeps the machine busy: no waiting for the device in the loop, the heap, profiles that add up."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import striate
from striate import cli
from striate.core import machine
from striate.core.answer import Answer
from striate.core.errors import StriateError
from striate.engines import race
from striate.nets.net import create_net
from striate.studies import clock as clocks
from striate.studies.bench import bench_verb
from striate.studies.clock import BACKWARD, FORWARD, Clock, timed_stages
from striate.studies.peak import Peak, peak
from striate.studies.profiles import Profile, stage_rows, work_of
from striate.train.fit import fit
from trials import small_job

# What makes the host wait until the device has a number, or until all numbers are there.
WAITS = ("aten._local_scalar_dense", "aten.is_nonzero", "aten.item", "aten.nonzero", "aten.equal")


class Reads(TorchDispatchMode):
    """Counts the operators that read a number of the device."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        if name.startswith(WAITS):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"accumulate": 2, "clip": 1.0, "ema": 0.9},
        {"optimizer": "adamw", "schedule": "cosine"},
        {"input_noise": 0.1, "weight_noise": 0.01, "gradient_noise": 0.01, "l1": 1e-4},
        {"optimizer": "muon"},
    ],
)
def test_no_step_reads_from_the_device(settings: dict[str, Any]) -> None:
    """Between the first batch of an epoch and its last step the loop asks the device for nothing."""
    reads, at = Reads(), []

    def listen(event: str, _: Any) -> None:
        if event == "epoch-start":
            at.append([len(reads.names)])
        elif event == "step":
            at[-1].append(len(reads.names))

    with reads:
        fit(small_job(epochs=2, **settings), listen)
    for counts in at:
        assert len(counts) > 2
        assert len(set(counts)) == 1, reads.names[counts[0] : counts[-1]]
    # The count itself works: the loss is read once an epoch at least.
    assert len(reads.names) >= 2


def test_the_heap_is_kept_by_the_verbs_that_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    monkeypatch.setattr(machine, "keep_heap", lambda: called.append("kept"))
    for name in cli.VERBS:
        monkeypatch.setitem(cli.VERBS, name, lambda: Answer([]))
        called.clear()
        assert cli._run(name, []) == 0
        assert called == ([] if name in cli.LIGHT else ["kept"])
    assert set(cli.LIGHT) < set(cli.VERBS)
    assert {"train", "evaluate", "predict", "visualize", "compare", "bench", "demo"}.isdisjoint(cli.LIGHT)


def test_the_heap_is_never_kept_at_import() -> None:
    for path in Path(striate.__path__[0]).rglob("*.py"):
        text = path.read_text("utf-8")
        for node in ast.parse(text).body if "keep_heap" in text or "mallopt" in text else ():
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                continue
            calls = [n.func for n in ast.walk(node) if isinstance(n, ast.Call)]
            names = {getattr(f, "attr", getattr(f, "id", "")) for f in calls}
            assert not names & {"keep_heap", "mallopt"}, path


def test_the_opt_out_of_the_allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRIATE_KEEP_HEAP", "0")
    assert machine.keep_heap() is False


class Steady:
    """A clock that moves by one second each time it is read."""

    now = 0.0

    def perf_counter(self) -> float:
        self.now += 1.0
        return self.now


def test_the_clock_gives_every_stage_its_forward_and_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clocks, "time", Steady())
    net = create_net("lenet5", 10, 1, size=28)
    names = list(net.stage_names)
    clock = Clock(torch.device("cpu"))
    plain = create_net("lenet5", 10, 1, size=28)
    plain.load_state_dict(net.state_dict())
    x = torch.randn(2, 1, 28, 28)
    with timed_stages(net, names, clock):
        clock.start()
        outputs = net(x)
        outputs.sum().backward()
        clock.mark(BACKWARD, names[0])
    # Each part was marked once, so that each took one second.
    ahead = {stage: s for (part, stage), s in clock.seconds.items() if part == FORWARD}
    behind = {stage: s for (part, stage), s in clock.seconds.items() if part == BACKWARD}
    assert ahead == dict.fromkeys(names, 1.0)
    assert behind == dict.fromkeys(names, 1.0)
    plain(x).sum().backward()
    for one, two in zip(net.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one.grad, two.grad)  # type: ignore[arg-type]


def test_operations_of_a_training_step() -> None:
    adds = {"conv1": 100, "relu1": 0, "fc": 10}
    assert work_of(list(adds), adds, training=False) == 220
    # Forward 110, backward by the weights 110, backward by the input 10 (nobody wants that of conv1).
    assert work_of(list(adds), adds, training=True) == 2 * (110 + 110 + 10)
    rows = stage_rows(list(adds), {"conv1": 1e-6, "fc": 1e-6}, {"conv1": 1e-6, "fc": 1e-6}, adds, 5)
    # conv1: 5 pictures x 2 x 100 x 2 passes in 2 microseconds are 1 GFLOP/s; fc: 5 x 2 x 10 x 3 are 0.15.
    assert rows["stage_gflops"] == pytest.approx((1.0, None, 0.15))


def test_the_peak_is_the_best_trial() -> None:
    found = peak(seconds=0.0, matrices=(32,), convolutions=((1, 4, 8),))
    assert found.best == max(found.gflops) > 0
    assert {"PyTorch", "NumPy"} <= {trial.split(", ")[-1] for trial in found.trial}
    higher = Peak(found.trial, tuple(2 * rate for rate in found.gflops))
    assert found.joined(higher).gflops == higher.gflops
    assert f"{found.best:,.0f} GFLOP/s" in found.lines()[0]


def test_profile_of_training_adds_up(tmp_path: Path) -> None:
    found = bench_verb("train", "lenet5", batch=4, steps=2, with_peak=False, threads=1)
    assert found.stage == create_net("lenet5", 10, 1).stage_names
    # The parts are the whole time of a batch; the stages are the forward and the backward part.
    assert sum(found.parts.values()) == pytest.approx(1e3 * 4 / found.images_per_second)
    assert sum(found.forward_ms) == pytest.approx(found.parts["forward"])
    assert sum(found.backward_ms) == pytest.approx(found.parts["backward"])
    assert all(ms > 0 for ms in (*found.forward_ms, *found.backward_ms))
    text = "\n".join(found.lines())
    assert "waiting for data" in text
    assert "conv1" in text
    assert found.save(tmp_path / "profile.json").read_text().startswith("{")


def test_profile_of_prediction_names_the_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(race, "TURN", 0.01)
    found = bench_verb("predict", "lenet5", batch=2, steps=2, with_peak=False, threads=1, engine="eager")
    assert "the net as it is" in found.engines
    assert found.images_per_second == max(found.engines.values())
    assert set(found.parts) == {"view of each picture", "normalise", "net", "answers"}
    assert not any(found.backward_ms)
    assert not any("earlier race" in note for note in found.notes)
    again = bench_verb("predict", "lenet5", batch=2, steps=2, with_peak=False, threads=1, engine="eager")
    assert any("earlier race" in note for note in again.notes)


def test_profile_of_loading(tmp_path: Path) -> None:
    from image_sets import classes_of, write

    found = bench_verb("load", str(write(tmp_path, classes_of(count=8))), size=4, batch=4, steps=2, threads=1)
    assert isinstance(found, Profile)
    assert set(found.parts) == {"read the bytes", "decode", "augment and resample", "normalise"}
    assert found.images_per_second > 0
    assert found.fraction is None


def test_wrong_profiles_are_refused() -> None:
    with pytest.raises(StriateError, match="unknown action 'fly'"):
        bench_verb("fly", "lenet5")
    with pytest.raises(StriateError, match="batch is 0"):
        bench_verb("train", "lenet5", batch=0)
    with pytest.raises(StriateError, match="lenet5"):
        bench_verb("train", "lenet6", with_peak=False)
