"""The atlas of units as files, the verb, and how units grow in training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from little_models import conv_model, pictures
from striate import cli, train
from striate.core.errors import StriateError
from striate.core.folders import replacing_folder
from striate.data.preprocess import Preprocess
from striate.data.samples import Split
from striate.images import draw
from striate.model import Model
from striate.nets.net import create_net
from striate.tasks.classification import Classification
from striate.train.recipe import Recipe
from striate.visualize.atlas import PATCHES, draw_stage
from striate.visualize.atlas_folder import AtlasFolder, write_folder, write_page, write_sheet
from striate.visualize.evolution import evolution, kept_models
from striate.visualize.units import Units, find_units


def split_of(count: int, size: int = 8, channels: int = 3) -> Split:
    stack = np.stack(pictures(count, size, size, channels))
    return Split.from_arrays("all", stack, np.zeros(count, int), names=[f"{i}.png" for i in range(count)])


def an_atlas() -> tuple[Model, Split, Units, Any]:
    model, split = conv_model(), split_of(8)
    units = find_units(model, split, ["relu1", "fc3"], k=4, data="noise")

    def drawn() -> Any:
        return (draw_stage(model, split, one, rules=["plain"]) for one in units.stages)

    return model, split, units, drawn


def test_atlas_folder_looks_up_any_unit(tmp_path: Path) -> None:
    _, _, units, drawn = an_atlas()
    page = write_folder(units, drawn(), tmp_path / "atlas")
    atlas = AtlasFolder(tmp_path / "atlas")
    assert atlas.stages == ("relu1", "fc3")
    one = atlas.unit("relu1", 3)
    stage = units.stage("relu1")
    assert [name for name, *_ in one.seen] == [units.names[int(i)] for i in stage.index[3]]
    assert one.statistics["mean"] == pytest.approx(stage.mean[3])
    assert set(one.pictures) == {PATCHES, "plain"}
    assert all(path.is_file() for path in one.pictures.values())
    text = page.read_text("utf-8")
    assert text.count('class="unit"') == 9
    assert "prefers-color-scheme: dark" in text
    assert "http://" not in text.replace("http://www.w3.org", "")
    assert "https://" not in text
    with np.load(tmp_path / "atlas" / "units.npz", allow_pickle=False) as kept:
        np.testing.assert_array_equal(kept["relu1.index"], stage.index)
    with pytest.raises(StriateError, match="0 to 5"):
        atlas.unit("relu1", 6)
    with pytest.raises(StriateError, match="relu1"):
        atlas.unit("relu2", 0)
    with pytest.raises(StriateError, match="no atlas"):
        AtlasFolder(tmp_path)
    before = sorted(p.name for p in tmp_path.iterdir())
    write_folder(units, drawn(), tmp_path / "atlas")
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_atlas_as_one_page_and_as_one_picture(tmp_path: Path) -> None:
    _, _, units, drawn = an_atlas()
    text = write_page(units, drawn(), tmp_path / "atlas.html").read_text("utf-8")
    assert 'src="relu1/' not in text
    assert text.count("data:image/") >= 9
    assert write_sheet(drawn(), tmp_path / "atlas.png").stat().st_size > 500
    assert json.loads(units.save(tmp_path / "u.json").read_text())["k"] == 4


def test_interrupted_atlas_leaves_nothing_and_keeps_the_old_one(tmp_path: Path) -> None:
    _, _, units, drawn = an_atlas()
    write_folder(units, drawn(), tmp_path / "atlas")
    before = {p: p.read_bytes() for p in (tmp_path / "atlas").rglob("*") if p.is_file()}

    def broken() -> Any:
        yield next(drawn())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_folder(units, broken(), tmp_path / "atlas")
    assert {p: p.read_bytes() for p in (tmp_path / "atlas").rglob("*") if p.is_file()} == before
    with pytest.raises(KeyboardInterrupt):
        write_folder(units, broken(), tmp_path / "other")
    assert [p.name for p in tmp_path.iterdir()] == ["atlas"]
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("keep")
    with pytest.raises(StriateError, match="other files"), replacing_folder(mine, "atlas.json"):
        pass
    assert (mine / "notes.txt").read_text() == "keep"


def test_page_escapes_names(tmp_path: Path) -> None:
    model = conv_model(channels=1, size=4)
    split = Split.from_arrays(
        "all", np.full((1, 4, 4), 255, np.uint8), [0], names=["<script>alert(1)</script>"]
    )
    units = find_units(model, split, ["relu1"], k=1, data="<b>")
    text = write_page(
        units, iter([draw_stage(model, split, units.stages[0])]), tmp_path / "a.html"
    ).read_text()
    assert "<script>alert" not in text
    assert "<b>" not in text


# ------------------------------------------------------------------ the verb


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, Path]:
    """A model file, and a folder of unlabelled images."""
    torch.manual_seed(0)
    net = create_net("lenet5", 3, size=28)
    model = Model(net.eval(), Classification(["a", "b", "c"]), Preprocess(size=(28, 28), resize="squash"))
    path = model.save(tmp_path / "model.safetensors")
    for number, image in enumerate(pictures(5, 28, 28)):
        draw.save(tmp_path / "images" / f"{number}.png", image)
    return path, tmp_path / "images"


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = cli.main(list(arguments))
    told = capsys.readouterr()
    return code, told.out + told.err


def test_verb_writes_every_form(
    saved: tuple[Path, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    model, images = map(str, saved)
    for name in ("atlas", "a.html", "a.png", "a.npz", "a.json"):
        out = tmp_path / name
        code, text = said(
            capsys, "units", model, images, "--stages", "relu1,relu2", "--units", "0-2", "--out", str(out)
        )
        assert code == 0, text
        assert out.exists()
        assert "written:" in text
    code, text = said(
        capsys,
        "units",
        model,
        images,
        "--json",
        "--rule",
        "none",
        "--limit",
        "2",
        "--out",
        str(tmp_path / "b"),
    )
    assert json.loads(text)["images"] == 2
    assert AtlasFolder(tmp_path / "b").unit("relu1", 0).pictures.keys() == {PATCHES}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--stages", "rleu1"), "relu1"),
        (("--rule", "deconv"), "deconvnet"),
        (("--units", "a"), "0-15"),
        (("--out", "x.gif"), ".html"),
        (("--units", "99"), "0 to"),
        (("--over-training", "--stages", "relu1"), "keep-every"),
        (("--limit", "0"), "at least 1"),
    ],
)
def test_verb_refuses_in_one_line(
    saved: tuple[Path, Path], capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], told: str,
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    code, text = said(capsys, "units", *map(str, saved), *arguments)
    assert code == 2
    assert told in text
    assert text.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


def test_models_kept_in_training_show_how_units_grow(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    recipe = Recipe(
        net="lenet5", epochs=3, keep_every=2, batch=256, threads=1, workers=0, preflight=False, device="cpu"
    )
    train("digits", recipe, out=str(tmp_path / "run"), progress=False)
    assert [epoch for epoch, _ in kept_models(tmp_path / "run")] == [0, 2]
    split = split_of(12, size=8, channels=1)
    picture = evolution(tmp_path / "run", split, "conv1", [0, 3], rule="none", batch=5)
    assert picture.arrays["index"].shape == picture.arrays["values"].shape == (2, 2)
    assert len(picture.panels) == 4
    assert picture.columns == 2
    assert evolution(tmp_path / "run", split, "conv1", rule="none").arrays["units"].tolist() == list(range(6))
    code, text = said(
        capsys, "units", str(tmp_path / "run"), "digits", "--over-training", "--stages", "conv1",
        "--limit", "20", "--rule", "plain", "--units", "0-3", "--out", str(tmp_path / "e.npz"),
    )  # fmt: skip
    assert code == 0, text
    with np.load(tmp_path / "e.npz") as kept:
        assert kept["epochs"].tolist() == [0, 2]
        assert kept["projection"].shape[:2] == (4, 2)
