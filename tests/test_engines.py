"""The choice of an engine, with engines and a clock that do as the test says."""

from __future__ import annotations

import json
import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clocks import Ticks
from little_models import conv_model
from striate.core.machine import cache_folder
from striate.engines import chooser, race, record
from striate.engines.chooser import Engines
from striate.engines.engine import PLAIN, Engine, Form, Unusable, difference
from striate.engines.record import Record, Timing
from striate.engines.source import Source

BATCH = torch.linspace(-1, 1, 4 * 12).reshape(4, 3, 2, 2)
CPU = torch.device("cpu")


class Ticking(nn.Module):
    """Sums of the channels, for so many seconds a pass."""

    def __init__(self, clock: Ticks, cost: float) -> None:
        super().__init__()
        self.clock, self.cost, self.passes = clock, cost, 0
        self.weight = nn.Parameter(torch.ones(()))
        # Each test has a net of its own in the cache.
        self.label = str(random.random())

    def extra_repr(self) -> str:
        return self.label

    def answers(self, x: Tensor) -> Tensor:
        return x.sum((2, 3)) * self.weight

    def forward(self, x: Tensor) -> Tensor:
        self.clock.now += self.cost
        self.passes += 1
        return self.answers(x)


def fake(cost: float, *, build: float = 1.0, off: float = 0.0, refuses: str = "") -> type[Engine]:
    """An engine with these costs, whose answers are off by so much, or that refuses every net."""

    class Fake(Engine):
        setup, gain, built, passes = 1.0, 0.3, 0, 0

        def __init__(self, source: Source, images: Tensor, form: Form) -> None:
            if refuses:
                raise Unusable(refuses)
            self.net: Any = source.net
            self.net.clock.now += build
            type(self).built += 1

        @classmethod
        def missing(cls, device: torch.device) -> str | None:
            return None

        def __call__(self, images: Tensor) -> Tensor:
            self.net.clock.now += cost
            type(self).passes += 1
            return self.net.answers(images) + off

    return Fake


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Ticks:
    """The clock that the races go by."""
    ticks = Ticks()
    monkeypatch.setattr(race, "time", SimpleNamespace(perf_counter=ticks.perf_counter))
    return ticks


def choice(net: nn.Module, **kinds: type[Engine]) -> Engines:
    """A choice among fake engines."""
    engines = Engines(net)
    engines.ground.allowed = kinds
    return engines


def run(engines: Engines, passes: int, *, of: int | None = None, batch: Tensor = BATCH) -> None:
    """So many batches, of `of` that there will be (None: nobody knows); every answer is right."""
    net: Any = engines.net
    total = None if of is None else of * len(batch)
    with engines.passing(lambda seen: None if total is None else total - seen):
        for _ in range(passes):
            engine = engines.settled(batch)
            outputs = engines(batch) if engine is None else engine(batch)
            assert torch.equal(outputs, net.answers(batch))


def shape_of(engines: Engines, batch: Tensor = BATCH) -> race.Shape:
    return engines.shapes[tuple(batch.shape)]


def test_the_fastest_engine_with_the_nets_answers_wins(clock: Ticks) -> None:
    net = Ticking(clock, 1.0)
    swift, slow, wrong = fake(0.2), fake(3.0), fake(0.1, off=0.01)
    engines = choice(net, swift=swift, slow=slow, wrong=wrong, odd=fake(0.1, refuses="no such layer"))
    run(engines, 40, of=100)
    shape = shape_of(engines)
    assert shape.chosen.form == Form("swift", "", engines.ground.threads)
    assert shape.decided
    assert shape.rates() == pytest.approx((4 / 0.2, 4 / 1.0))
    assert any("wrong" in note and "differ by up to 0.01" in note for note in engines.notes)
    assert any("odd" in note and "no such layer" in note for note in engines.notes)
    # The comparison was the only pass of those that are out, and the net's own work was not done twice.
    assert (slow.passes, wrong.passes) == (1, 1)  # type: ignore[attr-defined]
    assert net.passes <= 2
    assert engines.told().startswith("swift")


def test_what_was_measured_is_kept_and_used_without_a_race(clock: Ticks) -> None:
    net = Ticking(clock, 1.0)
    run(choice(net, swift=fake(0.2), other=fake(0.5)), 40, of=100)
    again, other = fake(0.2), fake(0.5)
    engines = choice(net, swift=again, other=other)
    run(engines, 10, of=100)
    assert shape_of(engines).chosen.form.engine == "swift"
    assert (again.built, other.built) == (1, 0)  # type: ignore[attr-defined]
    # An engine that was never measured still has its race against the best.
    newer = fake(0.05)
    engines = choice(net, swift=fake(0.2), newer=newer)
    run(engines, 40, of=100)
    assert shape_of(engines).chosen.form.engine == "newer"


def test_a_single_cold_pass_decides_nothing_for_good(clock: Ticks) -> None:
    """Neither of the engine that won a race before, nor of one that was never raced."""
    net = Ticking(clock, 1.0)

    class Cold(fake(0.2)):  # type: ignore[misc]
        def __call__(self, images: Tensor) -> Tensor:
            if not self.warm:
                clock.now += 5.0
            self.warm = True
            return super().__call__(images)

        warm = False

    run(choice(net, swift=fake(0.2), other=fake(0.5)), 40, of=100)
    for _ in range(2):
        engines = choice(net, swift=Cold, other=fake(0.5))
        run(engines, 5, of=100)
        assert shape_of(engines).chosen.form.engine == "swift"
    # One that seems hopeless is built by three processes, then given up.
    net = Ticking(clock, 1.0)
    builds = []
    for _ in range(5):
        slow = fake(9.0)
        run(choice(net, slow=slow), 20, of=100)
        builds.append(slow.built)  # type: ignore[attr-defined]
    assert builds == [1, 1, 1, 0, 0]
    # One that was merely cold gets its race the next time.
    net = Ticking(clock, 1.0)
    Cold.warm = False
    run(choice(net, swift=Cold), 20, of=100)
    engines = choice(net, swift=fake(0.2))
    run(engines, 40, of=100)
    assert shape_of(engines).chosen.form.engine == "swift"


def test_what_one_set_of_weights_rules_out_is_tried_with_another(clock: Ticks) -> None:
    net = Ticking(clock, 1.0)
    engines = choice(net, swift=fake(0.2, off=1.0))
    run(engines, 20, of=100)
    assert "differ by up to 1" in engines.notes[0]
    for weight, builds in ((1.0, 0), (2.0, 1)):
        with torch.no_grad():
            net.weight.fill_(weight)
        swift = fake(0.2)
        run(choice(net, swift=swift), 20, of=100)
        assert swift.built == builds  # type: ignore[attr-defined]


@pytest.mark.parametrize("passes", [1, 2, 3])
def test_a_short_job_builds_nothing(clock: Ticks, passes: int) -> None:
    net, swift = Ticking(clock, 0.1), fake(0.01)
    engines = choice(net, swift=swift)
    run(engines, passes, of=passes)
    assert net.passes == passes
    assert swift.built == 0  # type: ignore[attr-defined]
    assert engines.lines() == []
    assert engines.told() == "eager"


def test_a_known_engine_is_built_only_where_that_pays(clock: Ticks) -> None:
    net = Ticking(clock, 1.0)
    run(choice(net, swift=fake(0.2, build=10.0)), 60, of=200)
    for passes, builds in ((5, 0), (30, 1)):
        swift = fake(0.2, build=10.0)
        run(choice(net, swift=swift), passes, of=passes)
        assert swift.built == builds  # type: ignore[attr-defined]


def test_without_a_number_of_images_the_past_tells_the_future(clock: Ticks) -> None:
    net, swift = Ticking(clock, 1.0), fake(0.2)
    engines = choice(net, swift=swift)
    run(engines, 4)
    assert swift.built == 0  # type: ignore[attr-defined]
    run(engines, 40)
    assert shape_of(engines).chosen.form.engine == "swift"


def test_the_net_itself_may_win(clock: Ticks) -> None:
    net = Ticking(clock, 1.0)
    engines = choice(net, worse=fake(1.1))
    run(engines, 40, of=100)
    assert shape_of(engines).chosen.form == PLAIN
    assert engines.lines() == []
    assert net.passes >= 30


def test_a_pass_that_ends_within_the_race_keeps_its_times(clock: Ticks) -> None:
    net = Ticking(clock, 1.0)
    engines = choice(net, swift=fake(0.2), near=fake(0.21))
    run(engines, 9, of=100)
    shape = shape_of(engines)
    assert shape.lanes
    assert not shape.decided
    written = list((cache_folder() / "engines").glob("*.json"))
    kept = [json.loads(path.read_text()) for path in written]
    (mine,) = [k for k in kept if k["about"]["digest"] == record.digest(net)]
    assert {row["engine"] for row in mine["timings"]} == {"plain", "swift", "near"}


def test_the_last_batch_and_other_shapes_run_on_the_net(clock: Ticks) -> None:
    net = Ticking(clock, 1.0)
    engines = choice(net, swift=fake(0.2))
    run(engines, 40, of=40)
    assert shape_of(engines).chosen.form.engine == "swift"
    passes = net.passes
    with engines.passing(lambda seen: 0):
        assert torch.equal(engines(BATCH[:1]), net.answers(BATCH[:1]))
    assert net.passes == passes + 1
    # Beyond a few shapes nothing more is kept in memory.
    for side in range(3, 3 + 2 * chooser.MOST):
        run(engines, 1, of=1, batch=torch.ones(4, 3, side, side))
    assert len(engines.shapes) <= chooser.MOST


def test_hooks_are_heard(clock: Ticks) -> None:
    net, swift = Ticking(clock, 1.0), fake(0.2)
    heard: list[int] = []
    handle = net.register_forward_hook(lambda *_: heard.append(1))
    engines = choice(net, swift=swift)
    run(engines, 30, of=100)
    handle.remove()
    assert len(heard) == 30
    assert not engines.still_for(net, "auto")


def test_the_best_form_counts_its_building() -> None:
    slow, quick = Form("slow"), Form("quick")
    known = Record({PLAIN: Timing(0, 1.0), slow: Timing(1.0, 0.8), quick: Timing(10.0, 0.1)})
    names = ["plain", "slow", "quick"]
    # By hand: 4 passes cost 4, 4.2 and 10.4; 8 cost 8, 7.4 and 10.8; 20 cost 20, 17 and 12.
    assert [known.best(n, names) for n in (4, 8, 20)] == [PLAIN, slow, quick]
    assert known.best(20, ["plain", "slow"]) == slow
    assert Record().best(5, names) == PLAIN


def test_a_record_comes_back_and_a_damaged_one_is_no_record() -> None:
    net = conv_model().net
    about = record.key(net, (1, 3, 8, 8), CPU, 1)
    form = Form("eager", "nchw", 1)
    made = Record({PLAIN: Timing(0.0, 0.5), form: Timing(0.25, 0.125)}, {Form("openvino"): "no"})
    assert record.save(about, made) is None
    assert record.load(about) == made
    path = record.path_of(about)
    for damaged in (
        "",
        "{",
        "[]",
        path.read_text().replace("0.125", "NaN"),
        path.read_text().replace("8", "9"),
    ):
        path.write_text(damaged)
        assert record.load(about) == Record()


def test_a_key_tells_nets_shapes_and_threads_apart() -> None:
    net = conv_model().net
    keys = [
        record.key(net, (1, 3, 8, 8), CPU, 1),
        record.key(net, (2, 3, 8, 8), CPU, 1),
        record.key(net, (1, 3, 8, 8), CPU, 2),
        record.key(conv_model(channels=1).net, (1, 3, 8, 8), CPU, 1),
    ]
    assert len({record.path_of(key) for key in keys}) == 4
    # Other weights are the same net for a clock.
    assert record.key(conv_model(seed=5).net, (1, 3, 8, 8), CPU, 1) == keys[0]


def test_a_cache_that_cannot_be_written_stops_nothing(
    clock: Ticks, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setenv("STRIATE_CACHE", str(file))
    engines = choice(Ticking(clock, 1.0), swift=fake(0.2))
    run(engines, 40, of=100)
    assert shape_of(engines).chosen.form.engine == "swift"
    assert any("is not kept" in note for note in engines.notes)


def test_difference_in_words() -> None:
    a = torch.tensor([1.0, 2.0])
    assert difference(a + 5e-5, a) is None
    assert "differ by up to 0.01" in str(difference(a + 0.01, a))
    wide = torch.tensor([[1000.0, 1.0]])
    assert difference(wide + torch.tensor([[5e-3, 5e-5]]), wide) is None
    assert "0.005" in str(difference(wide + torch.tensor([[6e-3, 5e-3]]), wide))
    endless = torch.tensor([[torch.inf, 1.0]])
    assert "0.5" in str(difference(endless + torch.tensor([[0.0, 0.5]]), endless))
    assert "(1,), not (2,)" in str(difference(a[:1], a))
    assert "inf" in str(difference(a * torch.nan, a))
    assert difference(torch.full((2,), torch.inf), torch.full((2,), torch.inf)) is None
