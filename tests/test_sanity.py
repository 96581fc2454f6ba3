"""Sanity checks against values worked out by hand, and against nets whose right answer is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from little_models import CLASSES, conv_model, found, linear_model, pictures, preprocess
from striate.core.errors import StriateError
from striate.model import Model
from striate.nets.net import Net
from striate.tasks.classification import Classification, MultiLabel
from striate.visualize.method import METHODS, net_input, visualize
from striate.visualize.redraw import drawn_anew, redraw
from striate.visualize.sanity import (
    EDGES,
    RANDOM,
    area,
    curve_pair,
    edges,
    explaining,
    order,
    rank_correlation,
    ssim,
)

QUICK = "saliency,integrated-gradients"


def test_every_method_for_a_class_takes_part() -> None:
    known = explaining()
    assert {"saliency", "smoothgrad", "integrated-gradients", "guided-backprop", "grad-cam",
            "guided-grad-cam", "cam", "occlusion"} <= set(known)  # fmt: skip
    model, image = conv_model(), pictures(1)[0]
    for name in known:
        values = METHODS.get(name)().relevance(model, image, 1)  # type: ignore[attr-defined]
        assert values.shape == (8, 8)
        assert values.dtype == np.float32


def test_deletion_and_insertion_of_a_linear_net_by_hand() -> None:
    weight = torch.tensor([[3.0, 0.0, -1.0, 0.5], [0.0, 0.0, 0.0, 0.0]])
    model, image = linear_model(weight), np.array([[255, 255], [255, 255]], np.uint8)
    x = net_input(model, image[..., None])
    ranked = np.array([0, 3, 1, 2])
    gone, come = curve_pair(model, image[..., None], 0, ranked, 4)
    # Pixels are 1, the mean is 0: the logit loses 3, 0.5, 0 and -1 in turn.
    logits = np.array([2.5, -0.5, -1, -1, 0])
    np.testing.assert_allclose(gone, 1 / (1 + np.exp(-logits)), rtol=1e-5)
    # The picture is flat: its blurred copy is itself.
    np.testing.assert_allclose(come, 1 / (1 + np.exp(-2.5)), rtol=1e-4)
    assert x.shape == (1, 1, 2, 2)
    assert area(np.array([1.0, 0.5, 0.0], np.float32)) == pytest.approx(0.5)
    assert area(np.array([[0.0, 1.0], [0.0, 0.0]], np.float32)) == pytest.approx(0.25)
    few, _ = curve_pair(model, image[..., None], 0, ranked, 2)
    np.testing.assert_allclose(few, gone[[0, 2, 4]])


def test_exact_attributions_beat_random_order_and_a_wrong_map_does_not() -> None:
    draws = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 64, generator=draws)
    model, image = linear_model(weight, size=8), pictures(1, 8, 8, 1)[0]
    picture = visualize("sanity", model, image, methods=QUICK, steps=16, levels=1)
    rows = {row.name: row for row in picture.rows}
    assert set(rows) == {"saliency", "integrated-gradients", EDGES, RANDOM}
    exact, chance = rows["integrated-gradients"], rows[RANDOM]
    assert exact.deletion is not None
    assert chance.deletion is not None
    assert exact.deletion < chance.deletion
    assert exact.insertion > chance.insertion  # type: ignore[operator]
    # Contributions hold the image itself, so that their magnitudes may keep their order.
    assert exact.trust in ("yes", "no: does not follow the weights")
    assert chance.trust is None
    names = ["saliency", "integrated-gradients", "edges", "random"]
    assert [line.split()[0] for line in picture.lines()[2:]] == names
    assert picture.brief()["table"][1]["deletion"] == exact.deletion
    # No map is better at deletion than that of the exact contributions, largest first.
    target = int(picture.arrays["target"][0])
    worst = order(-picture.arrays["map.integrated-gradients"][0], np.random.default_rng(0))
    gone, _ = curve_pair(model, image, target, worst, 16)
    assert area(gone) > exact.deletion


def test_a_map_of_the_image_alone_does_not_follow_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = METHODS.get("saliency")
    monkeypatch.setattr(kind, "relevance", lambda self, model, view, target: edges(view))
    picture = visualize("sanity", conv_model(), pictures(2), methods="saliency", test="randomisation")
    assert [row.name for row in picture.rows] == ["saliency", EDGES]
    row = picture.rows[0]
    assert row.deletion is None
    assert row.rank_all == pytest.approx(1)
    assert row.ssim_all == pytest.approx(1)
    assert row.trust == "no: does not follow the weights"
    assert picture.arrays["rank.saliency"].shape == (2, 4)
    assert picture.levels == ("fc3", "conv2", "bn1", "conv1")
    assert "deletion.saliency" not in picture.arrays


def test_weights_go_from_the_head_down() -> None:
    model = conv_model()
    before = {name: value.clone() for name, value in model.net.state_dict().items()}
    changed = []
    for label, net in drawn_anew(model.net, 3):
        state = net.state_dict()
        changed.append((label, {n.split(".")[0] for n, v in before.items() if not torch.equal(v, state[n])}))
        assert net is not model.net
    assert changed == [
        ("fc3", {"fc3"}),
        ("bn1", {"fc3", "conv2", "bn1"}),
        ("conv1", {"fc3", "conv2", "bn1", "conv1"}),
    ]
    assert all(torch.equal(value, model.net.state_dict()[name]) for name, value in before.items())
    assert [label for label, _ in drawn_anew(model.net, 1)] == ["conv1"]


def test_redrawn_layers_are_as_at_the_start() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(8, 64, 3), nn.BatchNorm2d(64), nn.GroupNorm(2, 64), nn.PReLU(64))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(7)
        net[1].running_mean.fill_(3)  # type: ignore[union-attr, operator]
        net[3].weight.normal_(0.2, 0.1)
    redraw(net)
    assert float(net[0].weight.detach().std()) == pytest.approx((2 / 72) ** 0.5, rel=0.05)
    assert not net[0].bias.any()  # type: ignore[union-attr]
    for norm in (net[1], net[2]):
        assert bool((norm.weight == 1).all())
        assert not norm.bias.any()  # type: ignore[union-attr]
    assert not net[1].running_mean.any()  # type: ignore[union-attr, operator]
    assert float(net[3].weight.detach().mean()) == pytest.approx(0.2, abs=0.05)


def test_rank_correlation_is_spearmans() -> None:
    a = np.array([[1, 2, 2, 4]], np.float32)
    b = np.array([[1, 3, 2, 4]], np.float32)
    # Ranks 1, 2.5, 2.5, 4 and 1, 3, 2, 4.
    want = np.corrcoef([1, 2.5, 2.5, 4], [1, 3, 2, 4])[0, 1]
    assert rank_correlation(a, b) == pytest.approx(want)
    assert rank_correlation(a, a**3) == pytest.approx(1)
    assert rank_correlation(a, -a) == pytest.approx(-1)
    assert rank_correlation(a, np.ones_like(a)) == 0


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=4, max_size=12), st.randoms(use_true_random=False))
def test_rank_correlation_is_that_of_scipy(values: list[int], chance: object) -> None:
    from scipy.stats import spearmanr

    a = np.array(values, np.float32)
    b = np.array(chance.sample(values, len(values)), np.float32)  # type: ignore[attr-defined]
    if np.ptp(a):
        assert rank_correlation(a, b) == pytest.approx(spearmanr(a, b).statistic, abs=1e-6)


def test_ssim_by_hand_and_against_another() -> None:
    draws = np.random.default_rng(0)
    a, b = draws.random((2, 24, 20), np.float32)
    assert ssim(a, a) == pytest.approx(1)
    assert ssim(a, b) < 0.3
    # Flat maps: means alone, (2 ab + c1) / (a^2 + b^2 + c1).
    flat = ssim(np.full((9, 9), 0.2, np.float32), np.full((9, 9), 0.4, np.float32))
    assert flat == pytest.approx((0.16 + 1e-4) / (0.2 + 1e-4), rel=1e-5)
    other = pytest.importorskip("skimage.metrics").structural_similarity
    full = other(a, b, data_range=1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True)
    # Its own mean leaves the border out.
    assert ssim(a, b) == pytest.approx(float(full[1].mean()), abs=1e-4)


def test_equal_pixels_come_in_random_order() -> None:
    values = np.array([[0, 0, 0, 5], [0, 0, 0, 7]], np.float32)
    first = order(values, np.random.default_rng(0))
    assert first[:2].tolist() == [7, 3]
    assert sorted(first.tolist()) == list(range(8))
    assert first[2:].tolist() != sorted(first[2:].tolist())


def test_edges_are_sobels() -> None:
    view = np.zeros((5, 6, 3), np.uint8)
    view[:, 3:, 1] = 10
    steep = edges(view)
    assert steep[:, 2:4].tolist() == [[40.0, 40.0]] * 5
    assert not steep[:, [0, 1, 4, 5]].any()


def test_what_has_no_meaning_is_refused_or_left_out(tmp_path: Path) -> None:
    image = pictures(1)[0]
    with pytest.raises(StriateError, match="not for masks"):
        visualize("sanity", conv_model("segmentation"), image)
    with pytest.raises(StriateError, match=r"unknown attribution method 'salency'.*saliency"):
        visualize("sanity", conv_model(), image, methods="salency")
    model = conv_model()
    model.net.relu2 = nn.SiLU()
    with pytest.raises(StriateError, match="no meaning"):
        visualize("sanity", model, image, methods="guided-backprop")
    before = found(model.net)
    picture = visualize("sanity", model, image, test="deletion", steps=4)
    assert found(model.net) == before
    names = [row.name for row in picture.rows]
    assert "saliency" in names
    assert "guided-backprop" not in names
    assert "Left out: guided-backprop: " in picture.note
    assert picture.save(tmp_path / "sanity.svg").stat().st_size > 1000


def one_class(kind: type[Classification | MultiLabel]) -> Model:
    torch.manual_seed(0)
    stages = [("conv1", nn.Conv2d(3, 4, 3)), ("pool", nn.AdaptiveAvgPool2d(1)), ("flatten", nn.Flatten()),
              ("fc", nn.Linear(4, 1))]  # fmt: skip
    net = Net(stages, head="fc", in_channels=3, size=8, name="one")
    return Model(net.eval(), kind(CLASSES[:1]), preprocess())


def test_a_single_class_is_refused_where_its_probability_says_nothing() -> None:
    image = pictures(1)[0]
    for method in ("sanity", "occlusion"):
        with pytest.raises(StriateError, match=f"{method} has no meaning for a net of one class"):
            visualize(method, one_class(Classification), image)
    for method in ("saliency", "grad-cam", "cam", "integrated-gradients", "smoothgrad"):
        assert visualize(method, one_class(Classification), image).arrays["target"].tolist() == [0]
    # One label that may be absent has a probability.
    assert np.ptp(visualize("occlusion", one_class(MultiLabel), image).arrays["probability"]) > 0
    assert visualize("sanity", one_class(MultiLabel), image, methods="saliency", steps=4).rows
