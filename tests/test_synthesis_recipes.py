"""Dream, maximisation and inversion: what they make, where they stop, and that they go on."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from little_models import conv_model, found
from striate import cli
from striate.core.errors import StriateError
from striate.data.preprocess import Preprocess
from striate.images import draw
from striate.model import Model
from striate.nets.net import create_net
from striate.tasks.classification import Classification
from striate.visualize.animation import write_animation
from striate.visualize.dream import bounds, dream, octave_sizes, tiles
from striate.visualize.goals import Norm
from striate.visualize.maximise import Maximise
from striate.visualize.method import visualize
from striate.visualize.studio import Studio, to_picture
from striate.visualize.synthesis import Reporter
from striate.visualize.wishes import Dream, Style
from synthesizing import QUICK_DREAM, big, stopping

# ---------------------------------------------------------------------- dream


def test_a_dream_raises_what_it_should() -> None:
    model, image = conv_model(), big()
    made = dream(model, image, **QUICK_DREAM)
    assert made.pixels.shape == image.shape
    assert made.history[-1] > made.history[0]
    assert made.objective == "norm(conv2)"
    studio = Studio(model, image.shape[:2])
    with studio.open():
        values = [studio.look(Norm("conv2"), to_picture(p)).value for p in (image, made.pixels)]
    assert values[1] > values[0]


@given(st.integers(1, 900), st.integers(32, 300), st.integers(0, 10**6))
def test_tiles_cover_every_pixel_once(length: int, tile: int, offset: int) -> None:
    parts = bounds(length, tile, offset)
    assert parts[0][0] == 0
    assert parts[-1][1] == length
    assert all(one[1] == two[0] for one, two in itertools.pairwise(parts))
    if len(parts) > 1:
        assert min(high - low for low, high in parts) >= tile // 2
    assert max(high - low for low, high in parts) <= 1.5 * tile
    assert length > tile or parts == [(0, length)]


def test_tiles_differ_from_step_to_step() -> None:
    assert list(tiles((500, 400), 128, 0, 1)) == list(tiles((500, 400), 128, 0, 1))
    assert list(tiles((500, 400), 128, 0, 1)) != list(tiles((500, 400), 128, 0, 2))


def test_octaves_end_at_the_picture_and_stop_at_small_ones() -> None:
    assert octave_sizes((400, 600), 3, 2.0) == [(100, 150), (200, 300), (400, 600)]
    assert octave_sizes((400, 600), 9, 2.0)[0] == (50, 75)
    assert octave_sizes((16, 16), 4, 1.4) == [(16, 16)]


def test_a_guided_dream_takes_the_features_of_another_image(tmp_path: Path) -> None:
    draw.save(tmp_path / "guide.png", big(40, 40, seed=3))
    made = dream(conv_model(), big(60, 60), guide=str(tmp_path / "guide.png"), **QUICK_DREAM)
    assert made.objective.startswith("guide(conv2")
    assert made.history[-1] > made.history[0]


@pytest.mark.parametrize("stop", [1, 5, 8])
def test_a_stopped_dream_goes_on_to_equal_bytes(stop: int, tmp_path: Path) -> None:
    model, image, state = conv_model(), big(), tmp_path / "state"
    whole = dream(model, image, **QUICK_DREAM)
    before = found(model.net)
    with pytest.raises(KeyboardInterrupt):
        dream(model, image, state=state, watch=stopping(stop), **QUICK_DREAM)
    assert found(model.net) == before
    rest = dream(model, image, state=state, resume=True, **QUICK_DREAM)
    np.testing.assert_array_equal(rest.pixels, whole.pixels)
    assert rest.history == whole.history
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyboardInterrupt):
        dream(model, image, state=state, watch=stopping(stop), **QUICK_DREAM)
    with pytest.raises(StriateError, match="whose wish is"):
        dream(model, image, state=state, resume=True, **{**QUICK_DREAM, "seed": 1})


def test_a_zoom_goes_on_from_any_frame_and_is_written_as_a_film(tmp_path: Path) -> None:
    model, image, state = conv_model(), big(49, 51), tmp_path / "state"
    wish = {**QUICK_DREAM, "frames": 3, "frame_steps": 2, "octaves": 1, "zoom": 1.2}
    whole = dream(model, image, **wish)
    assert len(whole.frames) == 3
    with pytest.raises(KeyboardInterrupt):
        dream(model, image, state=state, watch=stopping(7), **wish)
    rest = dream(model, image, state=state, resume=True, **wish)
    for one, two in zip(whole.frames, rest.frames, strict=True):
        np.testing.assert_array_equal(one, two)
    for suffix in (".gif", ".webp"):
        path = whole.save(tmp_path / f"film{suffix}")
        film = Image.open(path)
        assert (film.n_frames, film.size) == (3, (51, 49))
    assert whole.save(tmp_path / "film.mp4").read_bytes()[4:8] == b"ftyp"
    with pytest.raises(StriateError, match=r"\.webp"):
        write_animation(tmp_path / "film.avi", whole.frames, 12)
    assert whole.save(tmp_path / "last.png").exists()


@pytest.mark.parametrize(
    ("channels", "height", "width"), [(1, 16, 16), (3, 16, 16), (1, 40, 90), (3, 300, 8)]
)
def test_dreams_of_grey_small_and_narrow_images(channels: int, height: int, width: int) -> None:
    image = big(height, width, channels)
    made = dream(conv_model(channels=channels), image, **QUICK_DREAM)
    assert made.pixels.shape == (height, width, channels)
    assert dream(conv_model(channels=channels), image, **QUICK_DREAM).pixels.tolist() == made.pixels.tolist()


def test_wrong_dreams_are_refused_in_one_line() -> None:
    for wish, told in (
        ({"stages": "conv3"}, "conv2"),
        ({"stages": "conv2", "objective": "tv"}, "one of them"),
        ({"objective": "chanel(conv2, 1)"}, "channel"),
        ({"octave_scale": 1.0}, "1.01"),
        ({"stages": "conv2", "guide": "nothing.png"}, "nothing.png"),
    ):
        with pytest.raises(StriateError, match=told):
            dream(conv_model(), big(40, 40), **wish)  # type: ignore[arg-type]


# ---------------------------------------------------------------------- maximisation and inversion


@pytest.mark.parametrize("recipe", ["robust", "simonyan", "erhan"])
def test_maximisation_raises_the_score(recipe: str) -> None:
    picture = visualize("maximise", conv_model(), target="bright", recipe=recipe, steps=48)
    history = picture.arrays["history"]
    assert history[-6:].mean() > history[:3].mean()
    assert picture.arrays["pictures"].shape == (1, 8, 8, 3)
    again = visualize("maximise", conv_model(), target="bright", recipe=recipe, steps=48)
    np.testing.assert_array_equal(picture.arrays["pictures"], again.arrays["pictures"])
    other = visualize("maximise", conv_model(), target="bright", recipe=recipe, steps=48, seed=1)
    assert recipe == "simonyan" or (other.arrays["pictures"] != picture.arrays["pictures"]).any()


def test_maximisation_of_maps_units_classes_and_any_objective() -> None:
    model = conv_model()
    for options, count in (
        ({"stage": "conv2", "count": 3}, 3),
        ({"stage": "conv2", "channel": 1}, 1),
        ({"stage": "conv2", "channel": 1, "row": 0, "column": 0}, 1),
        ({"count": 3}, 3),
        ({"target": 0, "count": 2}, 2),
        ({"objective": "channel(conv1, 2) - 0.1*tv", "form": "pixels", "size": 12}, 1),
        ({"objective": "tv", "count": 2}, 2),
    ):
        picture = visualize("maximise", model, steps=3, **options)  # type: ignore[arg-type]
        assert len(picture.panels) == count
        assert picture.arrays["values"].shape == (count,)
    for options, told in (
        ({"stage": "conv3"}, "conv2"),
        ({"stage": "conv2", "target": 1}, "one of"),
        ({"objective": "chanel(conv1, 2)"}, "channel"),
        ({"robustness": "jiter(2)"}, "jitter"),
        ({"stage": "conv2", "channel": 99}, "0 to 7"),
    ):
        with pytest.raises(StriateError, match=told):
            visualize("maximise", model, **{"steps": 2, **options})  # type: ignore[arg-type]
    assert Maximise(count=2).count == 2


def test_pictures_of_one_batch_become_unlike() -> None:
    model = conv_model()

    def likeness(diversity: float) -> float:
        made = visualize("maximise", model, stage="conv2", channel=0, count=3, steps=40, diversity=diversity)
        return float(made.arrays["pictures"].astype(float).std(0).mean())

    assert likeness(20.0) > likeness(0.0)


def test_inversion_finds_a_picture_with_the_same_features() -> None:
    image = big(8, 8)
    picture = visualize("inversion", conv_model(), image, stage="conv1", steps=200)
    assert float(picture.arrays["error"]) < 0.05
    assert picture.arrays["history"][-1] > picture.arrays["history"][0]
    deep = visualize("inversion", conv_model(), image, stage="fc3", steps=60)
    assert deep.arrays["inverted"].shape == image.shape


# ---------------------------------------------------------------------- the command line


def test_previews_are_whole_pictures(tmp_path: Path) -> None:
    watch = Reporter(tmp_path / "preview.png", 3, progress=False)
    dream(conv_model(), big(40, 40), watch=watch, **QUICK_DREAM)
    assert Image.open(tmp_path / "preview.png").size == (40, 40)
    with pytest.raises(StriateError, match=r"\.png"):
        Reporter(tmp_path / "preview.gif")


def test_dream_and_stylize_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    create = create_net("lenet5", 3, 1, size=28)
    model = Model(create.eval(), Classification("abc"), Preprocess(size=(28, 28), channels=1))
    file = model.save(tmp_path / "m.safetensors")
    draw.save(tmp_path / "in.png", big(40, 44, 1))
    draw.save(tmp_path / "style.png", big(30, 30, 1, seed=3))
    words = [str(file), str(tmp_path / "in.png"), "--stages", "conv1", "--steps", "2", "--octaves", "1"]
    assert cli.main(["dream", *words, "--out", str(tmp_path / "out.png")]) == 0
    assert "44 x 40; norm(conv1)" in capsys.readouterr().out
    assert cli.main(["dream", *words, "--frames", "2", "--out", str(tmp_path / "out.gif")]) == 0
    painted = [
        "--model",
        str(file),
        "--stages",
        "conv1",
        "--content-stages",
        "pool1",
        "--steps",
        "2",
        "--size",
        "0",
    ]
    images = [str(tmp_path / "in.png"), str(tmp_path / "style.png")]
    assert cli.main(["stylize", *images, *painted, "--out", str(tmp_path / "p.jpg"), "--json"]) == 0
    assert '"verb": "style"' in capsys.readouterr().out
    assert Image.open(tmp_path / "p.jpg").size == (44, 40)
    assert cli.main(["dream", *words, "--out", str(tmp_path / "out.bmp")]) == 2
    assert ".png" in capsys.readouterr().err
    assert cli.main(["dream", *words[:2], "--stages", "conv8", "--out", str(tmp_path / "no.png")]) == 2
    assert "conv1" in capsys.readouterr().err
    assert not (tmp_path / "no.png").exists()
    assert Dream().octaves == 4
    assert Style().steps == 300
