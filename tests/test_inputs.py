"""Input statistics against slow references, and on their way through files and runs."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from striate import modelfile
from striate.core.errors import BadModelFile, StriateError
from striate.data.formats import open_data
from striate.data.preprocess import Preprocess
from striate.data.samples import Dataset, Split
from striate.data.statistics import Arrays, parse_input
from striate.evaluate.evaluate import evaluate
from striate.model import Model, load
from striate.nets.net import create_net
from striate.tasks.classification import Classification
from striate.train.members import with_arrays
from striate.train.recipe import Recipe
from striate.train.session import begin, train
from striate.visualize.method import net_input

CLASSES = ("dark", "bright")


def photos(count: int = 80, size: tuple[int, int] = (8, 7), channels: int = 3, seed: int = 0) -> np.ndarray:
    """Smooth noise, so that neighbours go together."""
    draws = np.random.default_rng(seed)
    rough = draws.normal(0, 1, (count, size[0] + 2, size[1] + 2, channels))
    smooth = sum(rough[:, i : i + size[0], j : j + size[1]] for i in range(3) for j in range(3))
    return np.clip(120 + 20 * smooth, 0, 255).astype(np.uint8)


def dataset(count: int = 80, **how: object) -> Dataset:
    images = photos(count, **how)  # type: ignore[arg-type]
    labels = np.arange(count) % 2
    cut = 3 * count // 4
    return Dataset(
        "photos",
        "classification",
        CLASSES,
        [
            Split.from_arrays("train", images[:cut], labels[:cut]),
            Split.from_arrays("val", 255 - images[cut:], labels[cut:]),
            Split.from_arrays("test", images[cut:] // 2, labels[cut:]),
        ],
    )


def fitted(form: str, images: np.ndarray, **how: object) -> Preprocess:
    split = Split.from_arrays("train", images, np.zeros(len(images), dtype=int))
    size = images.shape[1:3]
    return Preprocess.fit(split, size, channels=images.shape[3], resize="none", input=form, **how)


def values(preprocess: Preprocess, images: np.ndarray) -> np.ndarray:
    """(N, h, w, C)."""
    return preprocess.normalise(images).permute(0, 2, 3, 1).numpy()


# ---------------------------------------------------------------------- slow references


def test_pixels_takes_the_mean_picture_away() -> None:
    images = photos()
    x = images / 255.0
    rest = x - x.mean(axis=0)
    expected = rest / np.sqrt((rest**2).mean(axis=(0, 1, 2)))
    np.testing.assert_allclose(values(fitted("pixels", images), images), expected, atol=1e-5)


def test_pixels_after_channels_has_the_same_values() -> None:
    images = photos()
    found = values(fitted("channels+pixels", images), images)
    np.testing.assert_allclose(found, values(fitted("pixels", images), images), atol=1e-4)


@pytest.mark.parametrize("bias", [10, 0, 250.5])
def test_global_contrast_by_one_image_at_a_time(bias: float) -> None:
    images = photos(6, seed=4)
    found = values(fitted(f"gcn({bias})", images), images)
    for image, got in zip(images.astype(np.float64), found, strict=True):
        rest = image - image.mean()
        np.testing.assert_allclose(got, rest / np.sqrt(bias + (rest**2).mean()), atol=1e-5)


@pytest.mark.parametrize("window", [3, 5, 9])
def test_local_contrast_by_one_pixel_at_a_time(window: int) -> None:
    images = photos(2, size=(7, 6), seed=2)
    half, sigma = window // 2, window / 4
    x = images / 255.0
    height, width = x.shape[1:3]

    def around(maps: np.ndarray, i: int, j: int) -> float:
        """The weighted mean over window and channels, of what lies inside the image."""
        total = weight = 0.0
        for p in range(-half, half + 1):
            for q in range(-half, half + 1):
                if 0 <= i + p < height and 0 <= j + q < width:
                    w = np.exp(-(p**2 + q**2) / (2 * sigma**2))
                    total += w * maps[i + p, j + q].mean()
                    weight += w
        return total / weight

    found = values(fitted(f"lcn({window})", images), images)
    for image, got in zip(x, found, strict=True):
        v = np.array([[image[i, j] - around(image, i, j) for j in range(width)] for i in range(height)])
        d = np.array([[around(v**2, i, j) ** 0.5 for j in range(width)] for i in range(height)])
        expected = v / np.maximum(d, d.mean())[..., None]
        np.testing.assert_allclose(got, expected, atol=2e-4)


def whitening(rows: np.ndarray, epsilon: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean and ZCA matrix by a singular value decomposition of the centred rows."""
    mean = rows.mean(axis=0)
    _, s, vt = np.linalg.svd(rows - mean, full_matrices=True)
    variance = np.zeros(rows.shape[1])
    variance[: len(s)] = s**2 / len(rows)
    return mean, vt.T @ np.diag((variance + epsilon * variance.mean()) ** -0.5) @ vt


@pytest.mark.parametrize("epsilon", [0.1, 0.003])
def test_zca_by_a_singular_value_decomposition(epsilon: float) -> None:
    images = photos(40)
    rows = images.transpose(0, 3, 1, 2).reshape(40, -1) / 255.0
    mean, matrix = whitening(rows, epsilon)
    expected = ((rows - mean) @ matrix).reshape(40, 3, 8, 7).transpose(0, 2, 3, 1)
    np.testing.assert_allclose(values(fitted(f"zca({epsilon})", images), images), expected, atol=2e-3)


def test_zca_leaves_no_correlation_where_nothing_is_added() -> None:
    images = photos(900, size=(4, 3), channels=1)
    y = values(fitted("zca(0.000001)", images), images).reshape(900, -1)
    np.testing.assert_allclose(y.T @ y / 900, np.eye(12), atol=1e-2)


def test_zca_of_patches_whitens_the_patch_around_each_pixel() -> None:
    images = photos(30, size=(6, 7))
    x = images / 255.0
    patches = np.array([
        x[n, i : i + 3, j : j + 3].transpose(2, 0, 1).reshape(-1)
        for n in range(30) for i in range(4) for j in range(5)
    ])  # fmt: skip
    mean, matrix = whitening(patches, 0.1)
    found = values(fitted("zca-patches(3)", images), images)
    edged = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    for n in (0, 17):
        for i in range(6):
            for j in range(7):
                patch = edged[n, i : i + 3, j : j + 3].transpose(2, 0, 1).reshape(-1)
                white = ((patch - mean) @ matrix).reshape(3, 3, 3)
                np.testing.assert_allclose(found[n, i, j], white[:, 1, 1], atol=1e-4)


def test_steps_run_in_the_order_in_which_they_are_written() -> None:
    images = photos(50)
    x = images / 255.0
    rest = x - x.mean(axis=(1, 2, 3), keepdims=True)
    flat = rest / np.sqrt(10 / 255**2 + (rest**2).mean(axis=(1, 2, 3), keepdims=True))
    rows = flat.transpose(0, 3, 1, 2).reshape(50, -1)
    mean, matrix = whitening(rows, 0.1)
    expected = ((rows - mean) @ matrix).reshape(50, 3, 8, 7).transpose(0, 2, 3, 1)
    np.testing.assert_allclose(values(fitted("gcn+zca", images), images), expected, atol=2e-3)


def test_arrays_of_files_are_those_of_the_same_pictures_in_memory(tmp_path: Path) -> None:
    images = photos(24)
    for number, image in enumerate(images):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        folder = tmp_path / CLASSES[number % 2]
        folder.mkdir(exist_ok=True)
        (folder / f"{number:02}.png").write_bytes(buffer.getvalue())
    streamed = open_data(tmp_path, val=0, test=0).split("train")
    order = [int(Path(name).stem) for name in streamed.names]
    held = Split.from_arrays("train", images[order], np.zeros(24, dtype=int))
    for form in ("pixels", "gcn+zca", "zca-patches(3)"):
        made = [Preprocess.fit(part, (8, 7), resize="none", input=form) for part in (streamed, held)]
        assert made[0] == made[1]


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ("zca-patches(5, 0.01)", "zca-patches(5, 0.01)"),
        ("zca-patches(3)", "zca-patches(3)"),
        ("zca(0.123456789)", "zca(0.123456789)"),
        ("gcn(10)+lcn(9)", "gcn+lcn"),
    ],
)
def test_numbers_come_back_as_they_were_written(given: str, written: str) -> None:
    assert "+".join(map(str, parse_input(given))) == written
    assert parse_input(written) == parse_input(given)


# ---------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ("", "input is ''"),
        ("zcaa", "did you mean"),
        ("zca(", "cannot read"),
        ("zca(x)", "no number"),
        ("zca(1,2)", r"2 numbers in 'zca\(1,2\)'; allowed: zca\(epsilon\)"),
        ("zca(-1)", "epsilon is -1"),
        ("zca(nan)", "epsilon is nan"),
        ("lcn(4)", "odd"),
        ("lcn(1e999)", "window is inf"),
        ("gcn+channels", "channels before all others"),
        ("gcn+gcn", "each step once"),
        ("gcn++zca", "cannot read ''"),
    ],
)
def test_what_is_no_input_is_told_in_one_line(form: str, message: str) -> None:
    with pytest.raises(StriateError, match=message) as caught:
        Preprocess(input=form)
    assert "\n" not in str(caught.value)


def test_views_too_large_or_of_no_size_are_refused() -> None:
    images = photos(4, size=(40, 40))
    with pytest.raises(StriateError, match=r"4,800 values; allowed: at most 4,096.*zca-patches"):
        fitted("zca", images)
    split = Split.from_arrays("train", images, [0, 1, 0, 1])
    with pytest.raises(StriateError, match="wants images of one size"):
        Preprocess.fit(split, None, resize="none", input="pixels")
    free = Preprocess.fit(split, None, resize="none", input="zca-patches+lcn")
    assert free.normalise(images[:, :21, :33]).shape == (4, 3, 21, 33)
    with pytest.raises(StriateError, match="window of at most 4"):
        fitted("zca-patches(5)", images[:, :4, :4])


def test_statistics_of_one_size_take_no_other_and_no_dense_form() -> None:
    images = photos(20)
    for form in ("pixels", "zca"):
        preprocess = fitted(form, images)
        with pytest.raises(StriateError, match=r"views \(3, 9, 9\); allowed: views \(3, 8, 7\)"):
            preprocess.normalise(np.zeros((1, 9, 9, 3), dtype=np.uint8))
        with pytest.raises(StriateError, match="statistics that hold for views of any size"):
            evaluate(model(preprocess), dataset(), protocol="dense")


# ---------------------------------------------------------------------- models and runs


def model(preprocess: Preprocess) -> Model:
    torch.manual_seed(0)
    net = create_net("linear", 2, 3, size=preprocess.size)
    return Model(net.eval(), Classification(CLASSES), preprocess)


@pytest.mark.parametrize("form", ["pixels", "gcn+zca", "lcn(3)"])
def test_predict_evaluate_and_visualize_see_the_same_values(form: str, tmp_path: Path) -> None:
    data = dataset()
    made = model(Preprocess.fit(data.split("train"), (8, 7), resize="none", input=form))
    kept = load(made.save(tmp_path / "m.safetensors"))
    assert kept.preprocess == made.preprocess
    test = data.split("test")
    answers = kept.predict([test.image(i) for i in range(len(test))])
    scores = evaluate(made, data).scores
    assert [answer.index for answer in answers] == scores.predicted.tolist()
    np.testing.assert_allclose([a.probability for a in answers], scores.confidence, atol=1e-6)
    inside = net_input(kept, test.image(3))
    assert torch.equal(inside, made.preprocess.normalise(test.image(3)[None]))
    outputs = made.net(inside)[0].detach().softmax(0)
    assert float(outputs.max()) == pytest.approx(answers[3].probability, abs=1e-6)


def test_the_file_holds_arrays_as_tensors_and_not_as_text(tmp_path: Path) -> None:
    made = model(fitted("pixels+zca", photos()))
    path = made.save(tmp_path / "m.safetensors")
    entries, header = modelfile.read_table(path)
    assert header is not None
    assert header["preprocess"]["input"] == "pixels+zca"
    assert "arrays" not in header["preprocess"]
    arrays, _ = modelfile.split_off(entries, modelfile.ARRAYS)
    shapes = {name: entry.shape for name, entry in arrays.items()}
    assert shapes == {
        "0.mean": (3, 8, 7), "0.std": (3, 1, 1), "1.mean": (168,), "1.matrix": (168, 168)
    }  # fmt: skip
    assert load(path).save(tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"preprocess/0.std": None}, "has the arrays"),
        ({"preprocess/0.std": torch.ones(3)}, "has the arrays"),
        ({"preprocess/0.std": torch.ones(3, 1, 1, dtype=torch.int32)}, "no fractions"),
        ({"preprocess/0.mean": torch.full((3, 8, 7), torch.nan)}, "not numbers"),
        ({"preprocess/1.mean": torch.ones(3)}, "has the arrays"),
        ({"preprocess/": torch.ones(3)}, "has the arrays"),
    ],
)
def test_a_file_whose_arrays_do_not_fit_is_refused(
    change: dict[str, torch.Tensor | None], message: str, tmp_path: Path
) -> None:
    made = model(fitted("pixels", photos()))
    path = made.save(tmp_path / "m.safetensors")
    header = modelfile.read_table(path)[1]
    assert header is not None
    tensors = {k: v for k, v in {**made.tensors(), **change}.items() if v is not None}
    with pytest.raises(BadModelFile, match=message):
        load(modelfile.write(path, header, tensors))


@pytest.mark.parametrize("value", ["zca", "pixels+gcn+", 7, None, {"name": "zca"}, "x" * 10_000])
def test_a_header_with_another_input_is_refused(value: object, tmp_path: Path) -> None:
    made = model(fitted("pixels", photos()))
    path = made.save(tmp_path / "m.safetensors")
    header = modelfile.read_table(path)[1]
    assert header is not None
    header["preprocess"]["input"] = value
    with pytest.raises(BadModelFile):
        load(modelfile.write(path, header, made.tensors()))


def test_files_without_the_setting_are_those_of_channels(tmp_path: Path) -> None:
    made = model(Preprocess(size=(8, 7), resize="none", mean=(0.4,), std=(0.2,)))
    header = modelfile.read_table(made.save(tmp_path / "m.safetensors"))[1]
    assert header is not None
    del header["preprocess"]["input"]
    again = load(modelfile.write(tmp_path / "old.safetensors", header, made.tensors()))
    assert again.preprocess == made.preprocess


def test_a_run_computes_them_from_its_training_images_alone_and_keeps_them(tmp_path: Path) -> None:
    data = dataset()
    recipe = Recipe(net="linear", epochs=1, input="zca", augment="none", preflight=False, threads=1)
    run = train(data, recipe, out=tmp_path / "run", progress=False)
    made = load(run.path)
    only = Preprocess.fit(data.split("train"), (8, 8), input="zca")
    assert (made.preprocess.arrays == only.arrays) is True
    assert made.card["recipe"]["input"] == "zca"
    start = begin(data, recipe, None, run.path, True)
    assert start.written is not None
    kept = Preprocess.from_dict(start.written["preprocess"], start.written["arrays"])
    assert kept == made.preprocess
    assert "arrays" not in with_arrays(tmp_path, {})
    longer = train(data, recipe.with_(epochs=2), out=run.path, resume=True, progress=False)
    assert load(longer.path).preprocess == made.preprocess
    with pytest.raises(StriateError, match="did you mean"):
        train(data, recipe, input="zcca", out=tmp_path / "no", progress=False)
    assert not (tmp_path / "no").exists()


def test_arrays_cannot_be_changed() -> None:
    arrays = Arrays({"mean": [1.0, 2.0]})
    with pytest.raises(ValueError, match="read-only"):
        arrays["mean"][0] = 3
    assert parse_input(" ZCA ( 0.2 ) ") == parse_input("zca(0.2)")


@pytest.mark.parametrize("form", ["pixels", "gcn+zca", "lcn(3)"])
def test_synthesis_shows_the_net_the_same_values(form: str) -> None:
    from striate.visualize.studio import Studio

    made = model(fitted(form, photos()))
    studio = Studio(made, (8, 7))
    views = photos(3)
    unit = torch.from_numpy(views).permute(0, 3, 1, 2).float() / 255
    torch.testing.assert_close(studio.spread(unit), made.preprocess.normalise(views), atol=1e-4, rtol=1e-4)
