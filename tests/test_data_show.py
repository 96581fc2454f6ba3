"""The contact sheet: the loader's own batches, as pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from striate.cli import main
from striate.core.errors import StriateError
from striate.data.formats import open_data
from striate.data.loaders import Loader
from striate.data.preprocess import Preprocess
from striate.data.samples import Dataset, Split
from striate.studies.sheet import show_augmented

SIDE = 12


def dataset(kind: str = "classification", count: int = 24) -> Dataset:
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)
    if kind == "segmentation":
        split = Split.from_arrays("train", pictures, masks=rng.integers(0, 2, (count, SIDE, SIDE)))
    else:
        split = Split.from_arrays("train", pictures, np.arange(count) % 2)
    return Dataset("toy", kind, ("cat", "dog"), {"train": split})


def cell(picture: np.ndarray, row: int, column: int, side: int = 96, bar: int = 18) -> np.ndarray:
    top, left = 4 + row * (side + bar + 4), 4 + column * (side + 4)
    return picture[top : top + side, left : left + side]


def test_cells_are_what_the_training_loader_gives() -> None:
    data, augment = dataset(), "pad-crop(2)+flip+mixup(1)"
    sheet = show_augmented(data, out=None, images=3, views=2, augment=augment, batch=8, seed=5)
    assert sheet.augment == "pad-crop(pixels=2)+flip+mixup(alpha=1)"
    assert sheet.picture.shape == (4 + 3 * 118, 4 + 3 * 100, 3)
    assert not sheet.path
    train = data.split("train")
    view = Preprocess.fit(train, (SIDE, SIDE), resize="none")
    loader = Loader(train, view, batch=8, seed=5, train=True, augment=augment, classes=2, workers=0)
    batch = next(loader.batches(0))
    for row in range(3):
        plain = train.image(int(batch.index[row]))
        np.testing.assert_array_equal(cell(sheet.picture, row, 0), plain.repeat(8, 0).repeat(8, 1))
        seen = view.invert(batch.images)[row].repeat(8, 0).repeat(8, 1)
        np.testing.assert_array_equal(cell(sheet.picture, row, 1), seen)
        assert sheet.names[row] == train.name_of(int(batch.index[row]))


def test_repeats_and_masks_have_their_cells() -> None:
    sheet = show_augmented(
        dataset("segmentation"), out=None, images=2, views=3, augment="vertical-flip+cutmix+repeat(3)",
        batch=6, net="unet", size=SIDE,
    )  # fmt: skip
    for row in range(2):
        for column in range(4):
            assert cell(sheet.picture, row, column).std() > 10


def test_the_verb_writes_the_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "sheet.png"
    words = ["data", "show", "digits", "--augment", "affine(rotate=20)", "--images", "2", "--views", "3"]
    assert main([*words, "--out", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["path"] == str(out)
    assert told["size"] == [8, 8]
    assert Image.open(out).size == (4 + 4 * 100, 4 + 2 * 118)
    assert main(["data", "show", "digits", "--augment", "mixupp", "--out", str(out)]) == 2
    assert "did you mean 'mixup'" in capsys.readouterr().err
    with pytest.raises(StriateError, match="1 to 100"):
        show_augmented("digits", images=0)


@pytest.mark.parametrize("action", ["check", "describe", "show"])
def test_the_verb_opens_data_as_training_does(
    action: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for k in range(20):
        Image.new("RGB", (8, 8), (10 * k, 40, 90)).save(f"{k}.png")
    rows = [f"{k}.png,{'dark' if k < 10 else 'light'},{k % 2}" for k in range(20)]
    Path("t.csv").write_text("\n".join(["path,shade,parity", *rows]))
    found = []
    for column in ("shade", "parity"):
        words = f"data {action} t.csv --label_column {column} --test 0.5 --val 0 --seed 3".split()
        assert main([*words, "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out))
    if action == "check":
        assert found[0]["counts"] == {"train": [5, 5], "test": [5, 5]}
    elif action == "describe":
        assert [one["classes"] for one in found] == [["dark", "light"], ["0", "1"]]
    else:
        data = open_data("t.csv", label_column="parity", test=0.5, val=0, seed=3).split("train")
        assert set(found[1]["names"]) <= {data.name_of(i) for i in range(len(data))}
