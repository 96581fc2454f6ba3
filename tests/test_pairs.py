"""Images with index masks: pairing, classes, ignored values, contiguous splits."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from image_sets import png, problem, write, zipped
from little_models import conv_model
from striate.core.errors import BadImage
from striate.data.formats import open_data
from striate.data.loaders import Loader
from striate.data.preprocess import Preprocess
from striate.evaluate.evaluate import evaluate


def mask(values: np.ndarray | list[list[int]], mode: str = "L") -> bytes:
    array = np.asarray(values)
    image = Image.fromarray(array.astype(np.uint16 if mode == "I;16" else np.uint8))
    if mode == "P":
        image = Image.fromarray(array.astype(np.uint8), "L").convert("L")
        image = Image.frombytes("P", image.size, image.tobytes())
        image.putpalette(bytes(range(256)) * 3)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def noise(seed: int, values: list[int], size: tuple[int, int] = (6, 5)) -> np.ndarray:
    return np.random.default_rng(seed).choice(values, size)


def stack(values: list[int], count: int = 10, masks: str = "labels") -> dict[str, bytes]:
    files = {f"images/{i}.png": png(i) for i in range(count)}
    return files | {f"{masks}/{i}.png": mask(noise(i, values)) for i in range(count)}


LAYOUTS: dict[str, Callable[[str, str], tuple[str, str]]] = {
    "camvid": lambda split, name: (f"{split}/{name}.png", f"{split}annot/{name}.png"),
    "split inside": lambda split, name: (f"images/{split}/{name}.png", f"masks/{split}/{name}.png"),
    "split outside": lambda split, name: (f"{split}/images/{name}.png", f"{split}/annotations/{name}.png"),
    "named masks": lambda split, name: (f"{split}/images/{name}.png", f"{split}/masks/{name}_mask.png"),
    "masks beside": lambda split, name: (f"{split}/{name}.png", f"masks/{split}/{name}.png"),
    "folder suffix": lambda split, name: (f"{split}_images/{name}.png", f"{split}_masks/{name}.png"),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_pairs_the_same_files(layout: str, packed: bool, tmp_path: Path) -> None:
    files: dict[str, bytes] = {}
    truth: dict[str, tuple[bytes, np.ndarray]] = {}
    for split, count in (("train", 4), ("val", 2)):
        for i in range(count):
            image, target = LAYOUTS[layout](split, f"{split}x{i}")
            values = noise(i + count, [0, 1, 2])
            files |= {image: png(i + 10 * count), target: mask(values)}
            truth[image] = (files[image], values)
    if packed:
        root = zipped(tmp_path / "s.zip", {f"w/{k}": v for k, v in files.items()})
    else:
        root = write(tmp_path / "s", files)
    data = open_data(root)
    assert data.kind == "segmentation"
    assert data.classes == ("0", "1", "2")
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 4, "val": 2}
    for split in data.splits.values():
        for i, name in enumerate(split.names):
            assert split.read(i) == truth[name][0]
            assert np.array_equal(split.mask(i), truth[name][1])
            assert split.mask(i).dtype == np.int32


@pytest.mark.parametrize(
    ("values", "classes", "expected"),
    [
        ([0, 255], ("0", "255"), {0: 0, 255: 1}),
        ([0, 1], ("0", "1"), {0: 0, 1: 1}),
        ([1, 2], ("1", "2"), {1: 0, 2: 1}),
        ([0, 1, 255], ("0", "1"), {0: 0, 1: 1, 255: 255}),
        ([0, 128, 254], ("0", "128", "254"), {0: 0, 128: 1, 254: 2}),
    ],
)
def test_values_become_classes_in_rising_order(
    values: list[int], classes: tuple[str, ...], expected: dict[int, int], tmp_path: Path
) -> None:
    data = open_data(write(tmp_path / "s", stack(values)), test=1)
    assert data.classes == classes
    split = data.split("test")
    for i in range(len(split)):
        raw = noise(i, values)
        assert np.array_equal(split.mask(i), np.vectorize(expected.get)(raw))


def classified(
    tmp_path: Path, values: list[int], name: str, text: str
) -> tuple[tuple[str, ...], dict[int, int]]:
    """The classes, and mask value -> class, of a set with a class file."""
    files: Mapping[str, bytes] = {**stack(values), name: text.encode()}
    data = open_data(write(tmp_path / "s", files), test=1)
    found: dict[int, int] = {}
    for i in range(len(data)):
        found |= dict(
            zip(noise(i, values).ravel().tolist(), data.split("test").mask(i).ravel().tolist(), strict=True)
        )
    return data.classes, dict(sorted(found.items()))


def test_class_files(tmp_path: Path) -> None:
    found = classified(tmp_path / "a", [0, 255], "classes.txt", "membrane\ninterior\n")
    assert found == (("membrane", "interior"), {0: 0, 255: 1})
    found = classified(tmp_path / "b", [0, 1, 255], "classes.txt", "sea\nsky\n")
    assert found == (("sea", "sky"), {0: 0, 1: 1, 255: 255})
    text = "index\tname\tcolour\n0\tSky\t#111\n1\tVoid\t#000\n2\tRoad\t#222\n"
    assert classified(tmp_path / "c", [0, 1, 2], "classes.tsv", text) == (
        ("Sky", "Road"),
        {0: 0, 1: 255, 2: 1},
    )
    found = classified(tmp_path / "d", [0, 3, 7], "classes.csv", "3,cat\n7,dog\n9,emu\n")
    assert found == (("background", "cat", "dog", "emu"), {0: 0, 3: 1, 7: 2})
    found = classified(tmp_path / "e", [0, 1], "classes.txt", "0 sea\n1 blue sky\n")
    assert found == (("sea", "blue sky"), {0: 0, 1: 1})


def test_class_file_errors(tmp_path: Path) -> None:
    files = stack([0, 1, 5])
    assert "no class (5)" in problem(write(tmp_path / "a", {**files, "classes.txt": b"sea\nsky\nx\ny\n"}))
    assert "lists a class twice" in problem(write(tmp_path / "b", {**files, "classes.txt": b"sea\nsea\n"}))
    assert "one class only" in problem(write(tmp_path / "c", stack([3])))


def test_object_numbers_colours_and_wide_masks(tmp_path: Path) -> None:
    objects = {f"images/{i}.png": png(i, (20, 20)) for i in range(2)}
    objects |= {f"masks/{i}.png": mask(np.arange(400).reshape(20, 20), "I;16") for i in range(2)}
    assert "object numbers" in problem(write(tmp_path / "a", objects))
    wide = {"images/0.png": png(0, (2, 2)), "masks/0.png": mask([[0, 1000], [1000, 0]], "I;16")}
    data = open_data(write(tmp_path / "c", wide), test=1)
    assert data.split("test").mask(0).tolist() == [[0, 1], [1, 0]]
    palette = {"images/0.png": png(0, (2, 2)), "masks/0.png": mask([[0, 1], [2, 0]], "P")}
    data = open_data(write(tmp_path / "d", palette), test=1)
    assert data.split("test").mask(0).tolist() == [[0, 1], [2, 0]]


def test_colour_masks_are_refused_with_the_file(tmp_path: Path) -> None:
    files = {f"images/{i}.png": png(i) for i in range(3)} | {f"masks/{i}.png": png(i) for i in range(3)}
    assert "masks/" in problem(write(tmp_path / "s", files))


def test_numbered_slices_split_in_ranges_others_at_random(tmp_path: Path) -> None:
    root = write(tmp_path / "s", stack([0, 1], 20))
    data = open_data(root, val=0.25, test=0.2)
    assert data.split("test").names == [f"images/{i}.png" for i in range(16, 20)]
    assert data.split("val").names == [f"images/{i}.png" for i in range(12, 16)]
    assert data.split("train").names == [f"images/{i}.png" for i in range(12)]
    other = open_data(root, val=0.25, test=0.2, contiguous=False)
    assert [len(split) for split in other.splits.values()] == [12, 4, 4]
    assert other.split("test").names != data.split("test").names
    named = {k.replace("/1", "/one").replace("/2", "/two"): v for k, v in stack([0, 1], 20).items()}
    data = open_data(write(tmp_path / "t", named))
    assert not any("last ones" in note for note in data.notes)


def test_lonely_files_are_told_and_double_names_refused(tmp_path: Path) -> None:
    files = stack([0, 1])
    del files["labels/3.png"]
    del files["images/4.png"]
    data = open_data(write(tmp_path / "a", files), test=1)
    assert len(data) == 8
    assert any("images/3.png" in note for note in data.notes)
    assert any("labels/4.png" in note for note in data.notes)
    files["images/5.jpg"] = files["images/5.png"]
    assert "have one name" in problem(write(tmp_path / "b", files))


def test_a_mask_of_another_size_or_value_is_found(tmp_path: Path) -> None:
    files = stack([0, 1, 2])
    files["labels/3.png"] = mask(noise(0, [0, 1], (4, 4)))
    files["labels/5.png"] = b"broken"
    root = write(tmp_path / "s", {**files, "classes.txt": b"a\nb\nc\n"})
    data = open_data(root, test=1)
    (root / "labels" / "7.png").write_bytes(mask(noise(0, [0, 9])))
    with pytest.raises(BadImage, match=r"labels/7\.png: mask value 9 is no class"):
        data.split("test").mask(7)
    found = data.scan(full=True)
    assert sorted(name for name, _ in found) == ["images/3.png", "images/5.png", "images/7.png"]
    assert len(data.split("test")) == 7


@pytest.mark.parametrize("mode", ["memory", "stream"])
def test_a_mask_of_another_shape_is_left_out_everywhere(mode: str, tmp_path: Path) -> None:
    files = stack([0, 1, 2], 12)
    file = io.BytesIO()
    turned = Image.Exif()
    turned[0x112] = 6
    Image.open(io.BytesIO(files["images/3.png"])).save(file, "JPEG", exif=turned)
    files = {**files, "images/3.jpg": file.getvalue(), "labels/5.png": mask(noise(5, [0, 1, 2], (5, 6)))}
    del files["images/3.png"]
    data = open_data(write(tmp_path / "s", files), val=0, test=0.5, contiguous=False)
    view = Preprocess(size=(8, 8))
    named = []
    for name in ("train", "test"):
        loader = Loader(data.split(name), view, batch=1, train=name == "train", mode=mode)
        list(loader.batches(0))
        named += loader.bad
        loader.close()
    assert sorted(name.rpartition("/")[2] for name, _ in named) == ["3.jpg", "5.png"]
    assert all("the mask is" in reason and "its image" in reason for _, reason in named)
    model = conv_model("segmentation")
    model.task.classes = data.classes
    tested = evaluate(model, data, split="all")
    assert (tested.n, len(tested.bad)) == (10, 2)


def test_lossy_masks_are_refused_and_previews_are_no_masks(tmp_path: Path) -> None:
    files = stack([0, 1], 12)
    lossy = {name.replace(".png", ".jpg"): data for name, data in files.items() if name.startswith("labels")}
    for name, data in lossy.items():
        file = io.BytesIO()
        Image.open(io.BytesIO(data)).save(file, "JPEG")
        lossy[name] = file.getvalue()
    images = {name: data for name, data in files.items() if name.startswith("images")}
    assert "holds no exact class numbers" in problem(write(tmp_path / "a", images | lossy))
    assert len(open_data(write(tmp_path / "b", files | lossy), test=1).split("test")) == 12


def test_class_folders_called_labels_are_not_masks(tmp_path: Path) -> None:
    files = {f"images/{i}.png": png(i) for i in range(3)} | {f"labels/x{i}.png": png(i) for i in range(3)}
    data = open_data(write(tmp_path / "s", files), test=1)
    assert data.kind == "classification"
    assert data.classes == ("images", "labels")


def test_real_sets(shared_data: Callable[[str], Path]) -> None:
    data = open_data(shared_data("isbi-membranes"))
    assert data.classes == ("0", "255")
    assert [len(split) for split in data.splits.values()] == [17, 2, 5]
    assert data.split("test").names[-1] == "images/28.png"
    assert data.channels == 1
    assert set(np.unique(data.split("train").mask(0))) == {0, 1}
    camvid = open_data(shared_data("camvid.zip"))
    assert camvid.classes[0] == "Sky"
    assert len(camvid.classes) == 11
    assert {name: len(split) for name, split in camvid.splits.items()} == {"train": 367, "val": 101}
    assert set(np.unique(camvid.split("val").mask(5))) <= {*range(11), 255}
