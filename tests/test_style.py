"""Style: what it makes, where it stops, and that it goes on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from little_models import conv_model, found
from striate.core.errors import StriateError
from striate.data.preprocess import Preprocess
from striate.images import draw
from striate.model import Model
from striate.nets.net import Net, create_net
from striate.tasks.classification import Classification
from striate.visualize.colours import match_colours, match_luma, with_colours_of
from striate.visualize.paper_form import paper_form
from striate.visualize.studio import Studio, to_picture
from striate.visualize.style import share_steps, stylize
from synthesizing import QUICK_STYLE, big, stopping


def test_style_lowers_its_loss_and_any_stop_goes_on_to_equal_bytes(tmp_path: Path) -> None:
    model, content, style = conv_model(), big(130, 140), big(90, 80, seed=7)[:, ::-1]
    whole = stylize(model, content, style, **QUICK_STYLE)
    assert whole.pixels.shape == content.shape
    assert whole.history[-1] > whole.history[-3]
    before = found(model.net)
    for stop in (2, 6):
        with pytest.raises(KeyboardInterrupt):
            stylize(model, content, style, state=tmp_path / "s", watch=stopping(stop), **QUICK_STYLE)
        assert found(model.net) == before
        rest = stylize(model, content, style, state=tmp_path / "s", resume=True, **QUICK_STYLE)
        np.testing.assert_array_equal(rest.pixels, whole.pixels)
        assert rest.history == whole.history
    assert list(tmp_path.iterdir()) == []


def test_whole_and_tiled_memory_give_one_picture() -> None:
    made = [
        stylize(conv_model(), big(70, 66), big(50, 50, seed=4), memory=memory, optimizer="adam", rate=0.02,
                **{**QUICK_STYLE, "steps": 4}).pixels.astype(int)
        for memory in ("whole", "tiled")
    ]  # fmt: skip
    assert np.abs(made[0] - made[1]).max() <= 1


def test_a_mask_keeps_a_style_in_its_region(tmp_path: Path) -> None:
    mask = np.zeros((64, 64), np.uint8)
    mask[:, :32] = 255
    draw.save(tmp_path / "left.png", mask)
    content = big(64, 64)
    made = stylize(
        conv_model(), content, big(50, 50, seed=4), masks=str(tmp_path / "left.png"), content_weight=0.0,
        **{**QUICK_STYLE, "scales": 1},
    )  # fmt: skip
    change = np.abs(made.pixels.astype(int) - content).mean((0, 2))
    # Two convolutions of 3 x 3 see two pixels beyond the border.
    assert change[:32].mean() > 1
    assert change[35:].max() == 0


def test_weights_masks_and_stages_must_fit_the_styles(tmp_path: Path) -> None:
    model, one, two = conv_model(), big(20, 20), big(24, 20, seed=1)
    draw.save(tmp_path / "black.png", np.zeros((9, 9), np.uint8))
    for wish, told in (
        ({"style_weights": "1,2,3"}, "one for each"),
        ({"style_weights": "1,x"}, "numbers"),
        ({"style_weights": "0,0"}, "above 0"),
        ({"masks": "a.png"}, "one for each"),
        ({"masks": f"all,{tmp_path / 'black.png'}"}, "black"),
        ({"stages": "conv9"}, "conv1"),
        ({"style_weight": 0.0, "content_weight": 0.0}, "both 0"),
        ({"colours": "grey"}, "luminance"),
    ):
        with pytest.raises(StriateError, match=told):
            stylize(model, one, [one, two], **{**QUICK_STYLE, **wish})  # type: ignore[arg-type]
    with pytest.raises(StriateError, match="no style"):
        stylize(model, one, [], **QUICK_STYLE)
    with pytest.raises(StriateError, match="at least 8 x 8"):
        stylize(model, big(5, 40), one, **QUICK_STYLE)


def test_a_style_of_weight_0_is_as_if_not_given() -> None:
    model, content, style, other = conv_model(), big(20, 20), big(24, 20, seed=1), big(24, 24, seed=2)
    one = stylize(model, content, style, **QUICK_STYLE)
    two = stylize(model, content, [style, other], style_weights="3,0", **QUICK_STYLE)
    np.testing.assert_array_equal(one.pixels, two.pixels)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("colours", ["style", "luminance", "histogram"])
def test_grey_and_small_paintings(channels: int, colours: str) -> None:
    content = big(16, 16, channels)
    made = stylize(
        conv_model(channels=channels), content, big(16, 20, channels, seed=2), colours=colours, start="noise",
        **QUICK_STYLE,
    )  # fmt: skip
    assert made.pixels.shape == content.shape
    if colours == "luminance" and channels == 3:
        grey = np.asarray([0.299, 0.587, 0.114])
        turned = [p.astype(float) - (p @ grey)[..., None] for p in (made.pixels, content)]
        inside = ((made.pixels > 0) & (made.pixels < 255)).all(-1)
        assert np.abs(turned[0] - turned[1])[inside].max() < 2


def test_colours_are_matched_by_mean_and_covariance() -> None:
    source = big(60, 50)[..., ::-1] // 2 + 60
    target = (big(40, 70, seed=5) // 3 + 70).astype(np.uint8)
    made = match_colours(source, target).reshape(-1, 3).astype(float)
    wanted = target.reshape(-1, 3).astype(float)
    np.testing.assert_allclose(made.mean(0), wanted.mean(0), atol=0.6)
    np.testing.assert_allclose(np.cov(made.T), np.cov(wanted.T), rtol=0.03, atol=4)
    flat = np.full((4, 4, 3), 9, np.uint8)
    assert match_colours(flat, flat).tolist() == flat.tolist()


def test_luma_is_matched_and_colours_come_back() -> None:
    source, target = big(30, 30), big(30, 30, seed=2) // 2 + 40
    grey = np.asarray([0.299, 0.587, 0.114])
    made = match_luma(source // 2 + 30, target)
    assert float((made @ grey).mean()) == pytest.approx(float((target @ grey).mean()), abs=0.6)
    same = with_colours_of(target, target)
    assert np.abs(same.astype(int) - target).max() <= 1


def test_steps_are_shared_out_and_none_is_lost() -> None:
    assert share_steps(300, 3) == [75, 75, 150]
    assert share_steps(5, 3) == [0, 0, 5]
    assert share_steps(7, 1) == [7]
    assert all(sum(share_steps(n, k)) == n for n in range(1, 40) for k in range(1, 5))


def test_the_form_of_the_paper_averages_and_has_mean_activations_of_1() -> None:
    torch.manual_seed(0)
    net = create_net("vgg11", 3, width=4, head="linear")
    model = Model(net.eval(), Classification("abc"), Preprocess(size=net.input_size))
    before = found(model.net)
    sample = to_picture(big(64, 64))
    made = paper_form(model, [sample], True)
    assert found(model.net) == before
    assert not any(isinstance(m, nn.MaxPool2d) for m in made.net.modules())
    studio = Studio(made, (64, 64))
    with studio.open():
        for stage in ("relu1_1", "relu2_1", "relu3_2", "relu5_1"):
            level = studio.maps(sample, stage).mean((0, 2, 3))
            alive = level > 1e-5
            torch.testing.assert_close(level[alive], torch.ones(int(alive.sum())), rtol=1e-3, atol=1e-3)
            assert alive.any()
    # Scaling filters and the next ones' inputs leaves what they compute as it was, up to a factor a map.
    with torch.no_grad():
        one, two = (Studio(m, (64, 64)).maps(sample, "conv5_2") for m in (paper_form(model, [], True), made))
    factor = (one.abs().sum((2, 3)) / two.abs().sum((2, 3)))[..., None, None]
    torch.testing.assert_close(two * factor, one, rtol=1e-3, atol=1e-4)
    with pytest.raises(StriateError, match="VGG"):
        paper_form(conv_model(), [to_picture(big(8, 8))], False)


def test_a_net_whose_forward_pass_is_its_own_is_taken_too() -> None:
    class Odd(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(torch.flip(x, (2,)))

    base = conv_model()
    odd = Odd(list(base.net.named_children()), head="fc3", in_channels=3, size=8, name="odd")
    made = stylize(
        Model(odd.eval(), base.task, base.preprocess), big(16, 16), big(16, 16, seed=1), **QUICK_STYLE
    )
    assert made.pixels.shape == (16, 16, 3)
