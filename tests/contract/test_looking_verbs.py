"""Every verb that looks inside: odd pictures are answered or refused in one line, Ctrl-C is harmless."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

import pytest
import torch

from little_models import pictures, preprocess
from striate.cli import main
from striate.images import draw
from striate.model import Model
from striate.nets.net import create_net
from striate.tasks.classification import Classification
from striate.visualize.method import METHODS

QUICK = {
    "invariance": ["--options.steps", "3"],
    "inversion": ["--options.steps", "3"],
    "maximise": ["--options.steps", "3"],
    "sanity": ["--options.levels", "2", "--options.steps", "4", "--options.methods", "saliency"],
}
VERBS = [*METHODS.names(), "dream", "stylize", "units"]
WITHOUT_PASS = ["filters"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with models of 3 classes and of one, colour and grey, and with pictures of every kind."""
    monkeypatch.chdir(tmp_path)
    for name, classes, channels in (("three", 3, 3), ("grey", 3, 1), ("one", 1, 3)):
        torch.manual_seed(0)
        net = create_net("resnet20", classes, channels, size=16)
        task = Classification(("a", "b", "c")[:classes])
        Model(net, task, preprocess((16, 16), channels)).save(f"{name}.safetensors")
    draw.save("photos/colour.png", pictures(1, 20, 24)[0])
    draw.save("photos/little.png", pictures(1, 16, 16, 1)[0])
    return tmp_path


def command(verb: str, model: str, image: str, out: str) -> list[str]:
    model = f"{model}.safetensors"
    if verb == "dream":
        return [verb, model, image, "--steps", "2", "--octaves", "1", "--out", out]
    if verb == "stylize":
        return [verb, image, image, "--model", model, "--size", "16", "--steps", "2", "--scales", "1",
                "--out", out]  # fmt: skip
    if verb == "units":
        return [verb, model, str(Path(image).parent), "--k", "2", "--units", "0-1", "--stages", "conv1",
                "--out", out]  # fmt: skip
    images = [image] if METHODS.get(verb).most_images else []
    return ["visualize", verb, model, *images, *QUICK.get(verb, []), "--out", out]


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    ("model", "image"),
    [("three", "little.png"), ("grey", "colour.png"), ("one", "colour.png")],
)
def test_odd_pictures_and_nets_are_shown_or_refused_in_one_line(
    verb: str, model: str, image: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(folder)
    # The numbers alone where there are any: drawing the figure is tested elsewhere.
    out = "out.npz" if verb in METHODS.names() else "out.png"
    code = main(command(verb, model, f"photos/{image}", out))
    told = capsys.readouterr()
    if code:
        assert code == 2
        assert told.err.startswith("striate: ")
        assert told.err.count("\n") == 1
        assert model == "one"  # every other picture is shown
        assert files(folder) == before
    else:
        assert told.err == ""
        assert files(folder) == sorted([*before, out])


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("moment", ["in the net", "in the file"])
def test_ctrl_c_leaves_no_file_and_says_one_line(
    verb: str, moment: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if moment == "in the net" and verb in WITHOUT_PASS:
        pytest.skip("looks at weights only")
    before = files(folder)

    def press(*_: object, **__: object) -> None:
        signal.raise_signal(signal.SIGINT)
        raise OSError(errno.EINTR, "nobody listens to Ctrl-C")

    if moment == "in the net":
        monkeypatch.setattr(torch.nn.BatchNorm2d, "forward", press)
    else:
        monkeypatch.setattr(os, "replace", press)
    code = main(command(verb, "three", "photos/colour.png", "out.png"))
    assert code == 130
    assert capsys.readouterr().err == "striate: interrupted\n"
    assert files(folder) == before
