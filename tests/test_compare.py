"""Nets shown and compared: tables, drawings to scale, times in rounds, energy from counters."""

from __future__ import annotations

import csv
import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from striate import cli
from striate.core.errors import StriateError
from striate.nets.blocks import Block, blocks
from striate.nets.cost import cost
from striate.nets.drawing import draw
from striate.nets.net import create_net, skeleton
from striate.nets.weights import published
from striate.studies import compare_nets, energy, measure
from striate.studies.show_net import show_net

SVG = "{http://www.w3.org/2000/svg}"


# --- show ---------------------------------------------------------------------------------------------


def test_the_page_of_vgg16_is_the_familiar_table(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    drawing = tmp_path / "net.svg"
    assert cli.main(["nets", "show", "vgg16", "--out", str(drawing)]) == 0
    told = capsys.readouterr().out
    for words in (
        r"conv1_1 +3x3 conv, 64 +224x224x64 +1,728 +64 +86,704,128",
        r"pool5 +2x2 max pool, /2 +7x7x512 +0 +0 +0",
        r"fc6 +fc, 4096 +4096 +102,760,448 +4,096 +102,760,448",
        r"total +138,344,128 +13,416 +15,470,264,320",
        r"parameters: +138,357,544 \(convolutions 14,714,688, fully connected 123,642,856\)",
        r"source: arXiv:1409\.1556, table 1",
    ):
        assert re.search(words, told), words
    assert ElementTree.fromstring(drawing.read_text()).tag == f"{SVG}svg"


def test_a_slip_of_the_pen_is_answered_with_the_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["nets", "show", "vgg-16"]) == 2
    assert "did you mean 'vgg16'" in capsys.readouterr().err
    assert cli.main(["nets", "show", "resnet9", "--options.widht", "8"]) == 2
    assert "did you mean 'width'" in capsys.readouterr().err
    assert cli.main(["compare", "nets", "rsenet20"]) == 2
    assert "resnet20" in capsys.readouterr().err


def test_options_size_classes_and_channels_reach_the_net(tmp_path: Path) -> None:
    page = show_net("resnet9", size=16, classes=7, in_channels=1, options={"width": 8})
    assert (page.cost.size, page.cost.in_channels, page.cost.shape[-1]) == ((16, 16), 1, (7,))
    assert page.cost.params == sum(p.numel() for p in create_net("resnet9", 7, 1, width=8).parameters())
    assert json.loads(page.save(tmp_path / "net.json").read_text())["cost"]["params"] == page.cost.params
    assert page.save(tmp_path / "net.csv").read_text().startswith("stage,kind,layer,shape,parameters")
    with pytest.raises(StriateError, match=r"allowed: \.svg, \.csv, \.json"):
        page.save(tmp_path / "net.pdf")


# --- drawing ------------------------------------------------------------------------------------------


def fronts(text: str) -> dict[str, tuple[float, float]]:
    """Width and height of the front of every block of the upper part, by its name."""
    found = {}
    for group in ElementTree.fromstring(text).iter(f"{SVG}g"):
        title, box = group.find(f"{SVG}title"), group.find(f"{SVG}rect[@class='edge']")
        if title is not None and box is not None and ": " in (title.text or ""):
            name = str(title.text).partition(":")[0]
            found[name] = (float(box.attrib["width"]), float(box.attrib["height"]))
    return found


def test_blocks_are_to_scale() -> None:
    boxes = fronts(draw(skeleton("vgg16", 1000)))
    assert len(boxes) == 1 + 13 + 5 + 3
    assert boxes["conv1_1"][1] == pytest.approx(2 * boxes["pool1"][1], abs=0.05)
    assert boxes["conv1_1"][1] == pytest.approx(8 * boxes["pool3"][1], abs=0.1)
    assert boxes["conv4_1"][0] == pytest.approx(2 * boxes["conv3_1"][0], abs=0.05)
    assert boxes["fc6"][0] == pytest.approx(8 * boxes["conv5_1"][0], abs=0.1)


def test_equal_stages_are_drawn_once_and_branches_are_shown() -> None:
    found, table = blocks(skeleton("resnet50", 1000))
    shown = {block.label: block for block in found}
    assert len(shown["res4b … res4f"].names) == 5
    assert sum(block.parameters for block in found) + 128 == table.params
    projected = shown["res4a"].inside
    assert projected is not None
    assert projected.joins == ("+",)
    # Three convolutions on the way, one beside it; batch norm and ReLU are stripes.
    kinds = [node.role for node in projected.nodes]
    assert kinds.count("convolution") == 4
    assert [node.stripes for node in projected.nodes if node.role == "join"] == [("activation",)]
    told = draw(skeleton("resnet50", 1000))
    assert "res4b–f  ×5" in told
    assert Block(("a1", "a10"), "sum", "", (1,), (1,)).short_label == "a1–10"


def test_an_inception_stage_has_four_lanes() -> None:
    found, _ = blocks(skeleton("googlenet", 1000))
    stage = next(block for block in found if block.label == "inception_3a")
    assert stage.role == "branches"
    assert stage.inside is not None
    (join,) = [node for node in stage.inside.nodes if node.role == "join"]
    assert (join.text, len(join.inputs), join.shape) == ("concat", 4, (256, 28, 28))


def test_a_net_that_cannot_be_followed_is_drawn_without_branches() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.fc = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return self.fc(y.mean((2, 3)) if bool(torch.ones(1).sum() > 0) and x.shape[0] else y)

    from striate.nets.wrapped import wrap

    told = draw(wrap(Odd(), size=8))
    assert {"conv", "fc"} <= set(fronts(told))
    # Names from elsewhere are no markup.
    stages = [("a", nn.Flatten()), ("fc", nn.Linear(12, 2))]
    from striate.nets.net import Net

    ElementTree.fromstring(draw(Net(stages, head="fc", in_channels=3, size=2, name='<b>&"net"')))


# --- compare ------------------------------------------------------------------------------------------


def test_figures_are_those_of_cards_and_cost(tmp_path: Path) -> None:
    found = compare_nets.compare_nets(["efficientnet_lite0", "lenet5"])
    table = cost(skeleton("efficientnet_lite0", 1000))
    assert found.names == ("efficientnet_lite0", "lenet5")
    assert found.parameters == (table.params, 61706)
    assert found.multiply_adds[0] == table.macs
    assert found.top1 == (0.751, None)
    assert found.per_parameter[0] == pytest.approx(75.1 / 4.652008)
    assert not found.measured
    assert found.latency_1 == (None, None)
    rows = list(csv.DictReader(found.save(tmp_path / "nets.csv").read_text().splitlines()))
    assert [row["parameters"] for row in rows] == [str(table.params), "61706"]
    assert rows[1]["top1"] == ""
    assert json.loads(found.save(tmp_path / "nets.json").read_text())["top1"] == [0.751, None]
    folder = found.save(tmp_path / "all")
    assert sorted(p.name for p in folder.iterdir()) == ["nets.csv", "nets.json", "nets.png", "nets.svg"]
    assert (folder / "nets.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(StriateError, match=r"allowed: \.csv, \.json"):
        found.save(tmp_path / "nets.pdf")


def test_all_nets_with_published_scores_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    names = compare_nets._all()
    assert "efficientnet_lite0" in names
    scores = [published(name).scores["top1"] for name in names]
    assert scores == sorted(scores, reverse=True)
    monkeypatch.setattr(compare_nets, "_all", lambda: names[-2:])
    found = compare_nets.compare_nets()
    assert found.names == tuple(names[-2:])
    assert len(found.lines()) == 3


def test_one_size_for_all_leaves_published_scores_out() -> None:
    found = compare_nets.compare_nets(["resnet18", "efficientnet_lite0"], size=64)
    assert found.size == ((64, 64), (64, 64))
    assert found.top1 == (None, None)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "TURN", 0.0)
    monkeypatch.setattr(measure, "peak_memory", lambda spec, **_: 1000 + len(spec["name"]))


@pytest.mark.usefixtures("quick")
def test_measured_columns(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(energy, "RAPL", tmp_path / "none")
    random = torch.get_rng_state()
    found = compare_nets.compare_nets(["linear", "lenet5"], measure=True, rounds=3, threads=1, device="cpu")
    assert torch.equal(random, torch.get_rng_state())
    assert all(0 < time < 5 for time in (*found.latency_1, *found.latency_16))
    assert found.throughput[0] == pytest.approx(1 / found.latency_16[0])
    assert found.peak_memory == (1006, 1006)
    assert found.joules == (None, None)
    assert "no counter" in found.energy
    assert found.lines()[-1].startswith("energy: no counter")
    assert "median of 3 rounds" in found.conditions
    assert found.save(tmp_path / "nets.svg").stat().st_size > 1000


@pytest.mark.usefixtures("quick")
def test_energy_and_power_are_told_where_there_is_a_counter(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10_000))
    meter = energy.EnergyMeter("test", lambda: float(next(clock)))
    monkeypatch.setattr(energy, "find", lambda device: (meter, "a test"))
    found = compare_nets.compare_nets(["linear"], measure=True, rounds=1, threads=1, device="cpu")
    # One joule a turn, at least two passes of 16 pictures.
    assert found.joules[0] is not None
    assert 0 < found.joules[0] <= 1 / 32
    assert found.watts[0] == pytest.approx(found.joules[0] / found.latency_16[0])
    assert found.lines()[-1] == "energy: a test"
    found.figure()


def test_rounds_run_forwards_and_backwards_and_leave_nets_as_found() -> None:
    order: list[tuple[str, int]] = []

    class Noted(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def forward(self, x: Tensor) -> Tensor:
            assert not self.training
            order.append((self.name, len(x)))
            return x

    nets = [Noted("a"), Noted("b")]
    speeds = measure.measure(
        [lambda net=net: net for net in nets], [lambda n: torch.zeros(n, 1)] * 2, rounds=2, turn=0.0
    )
    assert len(speeds) == 2
    assert all(net.training for net in nets)
    turns = [entry for i, entry in enumerate(order) if i == 0 or order[i - 1] != entry]
    assert turns == [("a", 1), ("a", 16), ("b", 1), ("b", 16), ("b", 1), ("b", 16), ("a", 1), ("a", 16)]
    with pytest.raises(StriateError, match="rounds is 0"):
        measure.measure([], [], rounds=0)


def test_peak_memory_holds_weights_and_activations() -> None:
    found = measure.peak_memory(
        {"name": "mlp", "classes": 10, "in_channels": 3, "size": 64, "hidden": 4096}, threads=1
    )
    weights = 4 * (4096 * 3 * 64 * 64 + 4096 + 4096 * 10 + 10)
    assert weights < found < 2 * weights
    with pytest.raises(StriateError, match="memory of 'nothing' cannot be measured"):
        measure.peak_memory({"name": "nothing", "classes": 1, "in_channels": 1})


# --- energy -------------------------------------------------------------------------------------------


def zone(folder: Path, name: str, label: str, value: int, limit: int = 1_000_000) -> Path:
    path = folder / name
    path.mkdir(parents=True)
    (path / "name").write_text(f"{label}\n")
    (path / "energy_uj").write_text(f"{value}\n")
    (path / "max_energy_range_uj").write_text(f"{limit}\n")
    return path / "energy_uj"


def test_packages_are_summed_and_overflow_is_followed(tmp_path: Path) -> None:
    first = zone(tmp_path, "intel-rapl:0", "package-0", 900_000)
    second = zone(tmp_path, "intel-rapl:1", "package-1", 5_000)
    zone(tmp_path, "intel-rapl:0:0", "core", 7)
    zone(tmp_path, "intel-rapl:2", "psys", 7)
    meter, source = energy.find("cpu", tmp_path)
    assert meter is not None
    assert "2 packages" in source
    assert meter.joules() == 0
    first.write_text("100000")
    second.write_text("505000")
    # 1.0 - 0.9 + 0.1 beyond the overflow, and 0.5.
    assert meter.joules() == pytest.approx(0.7)
    first.write_text("150000")
    assert meter.joules() == pytest.approx(0.75)


def test_without_a_counter_the_reason_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert energy.find("cpu", tmp_path / "none")[1].startswith("no counter")
    zone(tmp_path, "intel-rapl:2", "psys", 7)
    assert energy.find("cpu", tmp_path) == (
        None,
        f"no counter: {tmp_path} has no zone of a processor package",
    )
    file = zone(tmp_path, "intel-rapl:0", "package-0", 7)
    monkeypatch.setattr(energy.os, "access", lambda path, mode: False)
    assert str(file) in energy.find("cpu", tmp_path)[1]
