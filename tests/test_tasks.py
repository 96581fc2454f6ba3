"""Tasks by hand: losses, scores, answers, and the nets that answer each pixel."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from striate.core.errors import StriateError
from striate.data.preprocess import Preprocess
from striate.data.samples import Dataset, Split
from striate.nets.net import create_net
from striate.nets.taps import capture
from striate.tasks.classification import Classification, MultiLabel
from striate.tasks.scores import ClassificationScores, MultiLabelScores
from striate.tasks.segmentation import Segmentation, SegmentationScores, Segmented
from striate.tasks.task import balanced_weights
from striate.tasks.upsampling import PixelNet, map_shapes, pixel_net

ANIMALS = ("ant", "bee", "cat")


def scores(
    logits: list[list[float]], true: list[int], classes: tuple[str, ...] = ANIMALS
) -> ClassificationScores:
    scorer = Classification(classes).scorer()
    scorer.update(torch.tensor(logits), torch.tensor(true), np.arange(len(true)))
    result = scorer.result()
    assert isinstance(result, ClassificationScores)
    return result


# ---------------------------------------------------------------------------------------- classification


def test_scores_by_hand() -> None:
    ln = math.log
    found = scores([[ln(8), ln(1), ln(1)], [0, 0, ln(2)], [ln(2), 0, 0], [0, ln(6), 0]], [0, 2, 1, 1])
    assert found.top1 == found.main == 0.75
    assert found.top1_error == 0.25
    assert found.correct == 3
    assert found.confusion.tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    assert found.per_class == (1.0, 0.5, 1.0)
    assert found.precision == (0.5, 1.0, 1.0)
    assert found.counts == (1, 2, 1)
    assert found.mean_per_class == pytest.approx(2.5 / 3)
    assert found.confidence.tolist() == pytest.approx([0.8, 0.5, 0.5, 0.75])
    assert found.sample_score.tolist() == pytest.approx([0.8, 0.5, 0.25, 0.75])
    # Confidences 0.8, 0.5 (one of two right), 0.75, each value in a bin of its own.
    assert found.ece == pytest.approx((0.2 + 2 * 0.0 + 0.25) / 4)


def test_top5_needs_five_classes() -> None:
    assert scores([[1.0, 0, 0]], [0]).top5 is None
    assert scores([[1.0, 0, 0]], [0]).top5_error is None
    six = tuple("abcdef")
    logits = [[6.0, 5, 4, 3, 2, 1]] * 6
    found = scores(logits, [0, 1, 2, 3, 4, 5], six)
    assert found.top1 == pytest.approx(1 / 6)
    assert found.top5 == pytest.approx(5 / 6)


def test_a_class_without_samples_has_no_accuracy() -> None:
    found = scores([[1.0, 0, 0], [0, 0, 1]], [0, 0])
    assert found.per_class == (0.5, None, None)
    assert found.low[1] is None
    assert found.precision == (1.0, None, 0.0)
    assert found.mean_per_class == 0.5
    assert found.to_dict()["per_class"] == [0.5, None, None]


def test_equal_logits_give_the_lower_class_in_scores_and_answers() -> None:
    found = scores([[1.0, 1, 0], [0, 1, 1]], [1, 1])
    assert found.predicted.tolist() == [0, 1]
    answers = Classification(ANIMALS).decode(torch.tensor([[1.0, 1, 0], [0, 1, 1]]))
    assert [answer.index for answer in answers] == [0, 1]
    assert answers[0].top.labels == ("ant", "bee", "cat")


def test_rows_of_scores_save_as_a_table(tmp_path) -> None:
    path = scores([[1.0, 0, 0], [0, 0, 1]], [0, 0]).save(tmp_path / "scores.csv")
    lines = path.read_text().splitlines()
    assert lines[0].startswith("classes,counts,hits,per_class")
    assert lines[2].startswith("bee,0,0,,")


def test_cross_entropy_is_that_of_pytorch_without_weights() -> None:
    torch.manual_seed(0)
    logits, true = torch.randn(7, 3), torch.randint(0, 3, (7,))
    for smoothing in (0.0, 0.2):
        assert Classification(ANIMALS, label_smoothing=smoothing).loss(logits, true) == pytest.approx(
            float(functional.cross_entropy(logits, true, label_smoothing=smoothing))
        )
    weights = [0.5, 1.0, 3.0]
    assert Classification(ANIMALS, class_weights=weights).loss(logits, true) == pytest.approx(
        float(functional.cross_entropy(logits, true, torch.tensor(weights))), rel=1e-5
    )


def test_smoothed_loss_by_hand() -> None:
    # p = (1/2, 1/4, 1/4), e = 0.3: target (0.8, 0.1, 0.1).
    logits = torch.tensor([[math.log(2), 0.0, 0.0]])
    loss = Classification(ANIMALS, label_smoothing=0.3).loss(logits, torch.tensor([0]))
    assert float(loss) == pytest.approx(0.8 * math.log(2) + 0.2 * math.log(4))


def test_balanced_weights_by_hand() -> None:
    # 6 samples of 2 occurring classes: 6 / (2 * 4) and 6 / (2 * 2); the absent class keeps 1.
    assert balanced_weights([4, 0, 2]).tolist() == pytest.approx([0.75, 1.0, 1.5])


def test_outputs_of_another_number_of_classes_are_refused() -> None:
    with pytest.raises(StriateError, match="one logit for each class"):
        Classification(ANIMALS).scorer().update(torch.zeros(2, 4), torch.tensor([0, 1]), [0, 1])
    with pytest.raises(StriateError, match="top is 0"):
        Classification(ANIMALS).decode(torch.zeros(2, 3), top=0)


# -------------------------------------------------------------------------------------------- multi-label


def test_multi_label_scores_by_hand() -> None:
    # Truth and decisions (logit >= 0) of three images and three labels; the third label never occurs.
    truth = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 1, 0]]).float()
    logits = torch.tensor([[2.0, -1, -1], [-3, 3, -1], [-2, 1, 1]])
    scorer = MultiLabel(ANIMALS).scorer()
    scorer.update(logits, truth, [0, 1, 2])
    found = scorer.result()
    assert isinstance(found, MultiLabelScores)
    # ant: order 0 (right), 2 (wrong), 1 (right) -> 1/2 * 1 + 1/2 * 2/3; bee: 1, 2 both first -> 1
    assert found.per_class == (pytest.approx(0.5 + 1 / 3), 1.0, None)
    assert found.main == pytest.approx((0.5 + 1 / 3 + 1) / 2)
    assert found.f1 == (pytest.approx(2 / 3), 1.0, 0.0)
    assert found.micro_f1 == pytest.approx(2 * 3 / (4 + 4))
    assert found.macro_f1 == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert found.exact == pytest.approx(1 / 3)
    assert found.sample_score.tolist() == pytest.approx([1, 2 / 3, 2 / 3])


def test_multi_label_answers_list_what_reaches_one_half_best_first() -> None:
    first, none = MultiLabel(ANIMALS).decode(torch.tensor([[0.0, 3.0, -1.0], [-1.0, -2.0, -3.0]]), top=2)
    assert first.labels == ("bee", "ant")
    assert first.probabilities[1] == 0.5
    assert none.labels == ()
    assert none.top.labels == ("ant", "bee")
    assert str(none) == "no label"


def test_weighted_binary_loss_by_hand() -> None:
    weights = [[1.0, 1.0], [3.0, 1.0]]
    task = MultiLabel(("ant", "bee"), class_weights=weights)
    logits, truth = torch.tensor([[math.log(3), 0.0]]), torch.tensor([[1, 0]])
    # -ln(3/4) with weight 3 and -ln(1/2) with weight 1
    assert float(task.loss(logits, truth)) == pytest.approx((3 * math.log(4 / 3) + math.log(2)) / 4)


# ------------------------------------------------------------------------------------------- segmentation


def maps(classes: list[list[int]], k: int = 2) -> torch.Tensor:
    """Logits (1, K, H, W) whose largest is at the given classes."""
    return functional.one_hot(torch.tensor(classes), k).movedim(-1, 0)[None].float() * 4


def test_segmentation_scores_by_hand() -> None:
    task = Segmentation(ANIMALS)
    scorer = task.scorer()
    scorer.update(maps([[0, 0], [1, 1]], 3), torch.tensor([[[0, 1], [1, 255]]]), [1])
    scorer.update(maps([[1, 1]], 3), torch.tensor([[[255, 255]]]), [0])
    found = scorer.result()
    assert isinstance(found, SegmentationScores)
    assert found.confusion.tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 0]]
    assert found.per_class == (0.5, 0.5, None)
    assert found.mean_iou == found.main == 0.5
    assert found.pixel_accuracy == pytest.approx(2 / 3)
    assert found.mean_accuracy == pytest.approx(0.75)
    assert found.pixels == (1, 2, 0)
    assert found.index.tolist() == [0, 1]
    assert found.sample_score.tolist() == pytest.approx([1, 2 / 3])


def test_ignored_pixels_have_no_loss_and_no_gradient() -> None:
    task = Segmentation(("cell", "membrane"), class_weights=[1.0, 2.0])
    outputs = torch.randn(1, 2, 2, 2, requires_grad=True)
    truth = torch.tensor([[[0, 255], [1, 255]]])
    task.loss(outputs, truth).backward()
    assert outputs.grad is not None
    assert (outputs.grad[..., 1] == 0).all()
    assert (outputs.grad[..., 0] != 0).all()
    nothing = task.loss(outputs, torch.full((1, 2, 2), 255))
    assert float(nothing.detach()) == 0
    scorer = task.scorer()
    scorer.update(outputs, torch.full((1, 2, 2), 255), [0])
    assert scorer.result().summary()["mean IoU"] is None


@pytest.mark.parametrize("weights", [None, [1.0, 2.0]])
def test_a_mask_that_does_not_fit_is_told(weights: list[float] | None) -> None:
    task = Segmentation(("cell", "membrane"), class_weights=weights)
    with pytest.raises(StriateError, match="holds the value 7; allowed: 0 to 1, and 255"):
        task.loss(torch.zeros(1, 2, 2, 2), torch.full((1, 2, 2), 7))
    with pytest.raises(StriateError, match="holds the value 7"):
        task.scorer().update(torch.zeros(1, 2, 2, 2), torch.full((1, 2, 2), 7), [0])
    with pytest.raises(StriateError, match="as large as its image"):
        task.loss(torch.zeros(1, 2, 2, 2), torch.zeros(1, 3, 2, dtype=torch.long))
    with pytest.raises(StriateError, match="at most 255"):
        Segmentation([str(i) for i in range(256)])


def test_an_answer_in_the_views_own_geometry() -> None:
    (answer,) = Segmentation(("cell", "membrane")).decode(maps([[0, 1], [1, 1]]))
    assert isinstance(answer, Segmented)
    assert answer.mask.tolist() == [[0, 1], [1, 1]]
    assert answer.fractions == (0.25, 0.75)
    assert str(answer) == "membrane 75.0 %, cell 25.0 %"


def block_image(height: int, width: int) -> np.ndarray:
    """A grey image whose left two fifths are black and whose lower third is white."""
    image = np.full((height, width, 1), 128, np.uint8)
    image[:, : width * 2 // 5] = 0
    image[height * 2 // 3 :] = 255
    return image


@pytest.mark.parametrize("size", [(60, 90), (61, 47), (200, 30)])
@pytest.mark.parametrize("how", ["squash", "pad", "crop", "none"])
def test_masks_are_laid_back_onto_the_original_image(how: str, size: tuple[int, int]) -> None:
    """A net that sees grey values perfectly must give the mask of the original, whatever the view."""
    image = block_image(*size)
    truth = np.digitize(image[..., 0], [64, 192])
    preprocess = Preprocess(size=(40, 64), channels=1, resize=how)
    view = torch.from_numpy(preprocess.view(image)[..., 0].astype(np.float32))
    logits = -(view[None] - torch.tensor([0.0, 128.0, 255.0])[:, None, None]).abs()
    task = Segmentation(("black", "grey", "white"))
    (answer,) = task.decode(logits[None], preprocess=preprocess, sizes=[size])
    assert answer.mask.shape == size
    seen = answer.mask != 255
    # Away from the borders between two classes, every pixel that the view showed is right.
    scale = max(1, *(a / b for a, b in zip(size, (40, 64), strict=True)))
    inside = np.ones(size, bool)
    for axis in (0, 1):
        for step in range(1, math.ceil(scale) + 2):
            changed = np.roll(truth, step, axis) != truth
            inside &= ~changed & ~np.roll(changed, -step, axis)
    assert inside.sum() > 200
    assert (answer.mask == truth)[seen & inside].all()
    x0, y0, x1, y1 = preprocess.box(*size)
    shown = max(0, min(x1, size[1]) - max(x0, 0)) * max(0, min(y1, size[0]) - max(y0, 0))
    assert seen.sum() == pytest.approx(shown, rel=0.1)
    assert sum(answer.fractions) == pytest.approx(1)


def test_balanced_pixels_leave_ignored_ones_out() -> None:
    masks = np.zeros((2, 2, 4), np.int32)
    masks[0, 0, :2], masks[1, 1] = 1, 255
    pictures = np.zeros((2, 2, 4, 1), np.uint8)
    data = Dataset("toy", "segmentation", ("a", "b"), [Split.from_arrays("train", pictures, masks=masks)])
    assert Segmentation.balanced(data).tolist() == pytest.approx([12 / (2 * 10), 12 / (2 * 2)])


# ------------------------------------------------------------------------------------ nets for every pixel


@pytest.mark.parametrize("decoder", ["fcn", "unet"])
@pytest.mark.parametrize("name", ["resnet20", "unet", "lenet5"])
def test_any_size_gives_logits_of_that_size(name: str, decoder: str) -> None:
    torch.manual_seed(0)
    net = pixel_net(name, 3, 1, size=32, decoder=decoder)
    for size in ((32, 32), (33, 47), (64, 18)):
        assert net(torch.randn(2, 1, *size)).shape == (2, 3, *size)
    assert net.stage_names[-1] == "upsample"
    assert net.head == "score"
    assert net.classes == 3
    assert net.features(torch.randn(1, 1, 32, 32)).shape[1] == net.feature_dim


def test_strides_are_found_and_the_last_stage_of_each_is_fused() -> None:
    net = pixel_net("resnet20", 3, 1, size=32, decoder="fcn")
    assert net.skips == ("res1c", "res2c")
    assert [name for name in net.stage_names if name.startswith("score")] == [
        "score",
        "score_res2c",
        "score_res1c",
    ]
    unet = pixel_net("unet", 3, 1, size=32, depth=3, width=4)
    shapes = map_shapes(create_net("unet", 3, 1, size=32, depth=3, width=4))
    assert (shapes["relu1_2"], shapes["relu2_2"], shapes["relu3_2"]) == ((4, 1), (8, 2), (16, 4))
    assert unet.options == {"depth": 3, "width": 4, "decoder": "unet", "decoder_width": 0}


def test_the_fcn_head_is_the_sum_of_enlarged_scores() -> None:
    """A second way to the same logits, from the tapped maps of the encoder."""
    torch.manual_seed(0)
    net = pixel_net("lenet5", 2, 1, size=32, decoder="fcn").eval()
    x = torch.randn(1, 1, 32, 32)
    with torch.no_grad(), capture(net, [*net.skips, net.encoder_stages[-1]]) as seen:
        logits = net(x)
    total = net.score(seen[net.encoder_stages[-1]])
    for name in reversed(net.skips):
        finer = getattr(net, f"score_{name}")(seen[name])
        total = functional.interpolate(total, finer.shape[-2:], mode="bilinear") + finer
    expected = functional.interpolate(total, (32, 32), mode="bilinear")
    assert torch.allclose(logits, expected, atol=1e-6)


def test_a_new_head_answers_with_the_new_classes() -> None:
    net = pixel_net("unet", 3, 1, size=32, decoder="fcn").reset_head(5)
    assert isinstance(net, PixelNet)
    assert net(torch.randn(1, 1, 32, 32)).shape == (1, 5, 32, 32)
    assert {layer.out_channels for layer in net.score_layers} == {5}


def test_wrong_options_of_pixel_nets_are_refused() -> None:
    with pytest.raises(StriateError, match="did you mean 'unet'"):
        pixel_net("unet", 3, 1, decoder="unett")
    with pytest.raises(StriateError, match="depht"):
        pixel_net("unet", 3, 1, depht=3)
    with pytest.raises(StriateError, match="decoder_width"):
        pixel_net("unet", 3, 1, decoder_width=-1)
    with pytest.raises(StriateError, match="resnet99"):
        pixel_net("resnet99", 3, 1)
    with pytest.raises(StriateError, match="channels"):
        pixel_net("unet", 3, 1)(torch.zeros(1, 3, 32, 32))


def test_a_pixel_net_learns_stripes() -> None:
    """Twenty steps on one image teach it which pixels are bright."""
    torch.manual_seed(0)
    image = torch.zeros(1, 1, 24, 24)
    image[..., ::4] = image[..., 1::4] = 1
    truth = (image[:, 0] > 0.5).long()
    task = Segmentation(("dark", "bright"))
    net = task.build_net("unet", in_channels=1, size=24, options={"width": 4, "depth": 2})
    optimizer = torch.optim.Adam(net.parameters(), 0.02)
    for _ in range(40):
        optimizer.zero_grad()
        task.loss(net(image), truth).backward()
        optimizer.step()
    scorer = task.scorer()
    scorer.update(net(image), truth, [0])
    assert scorer.result().main > 0.95
