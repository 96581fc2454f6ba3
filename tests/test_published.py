"""Cards of published weights: what they say, that their files fit, where files are looked for, the verb."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import keylists
from striate import cli
from striate.core.errors import BadModelFile, StriateError
from striate.core.fetch import sha256
from striate.data.preprocess import Preprocess
from striate.nets import published as cards
from striate.nets.keys import alexnet, vgg
from striate.nets.net import NETS, create_net, skeleton
from striate.nets.published import CARDS, aliases, is_published, locate, on_disk, published
from striate.nets.weights import empty, load_into, translate
from striate.studies import shelf

FETCHED = [name for name in CARDS if "." in name]
PLACES = ("STRIATE_WEIGHTS", "TORCH_HOME", "HF_HOME", "HF_HUB_CACHE", "HF_ENDPOINT", "HF_HUB_OFFLINE")


@pytest.fixture(autouse=True)
def _nothing_here(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No file of the user is found."""
    for name in PLACES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("users")))
    monkeypatch.setenv("STRIATE_CACHE", str(tmp_path_factory.mktemp("cache")))


# ---------------------------------------------------------------- what the cards say


@pytest.mark.parametrize("name", FETCHED)
def test_cards_say_where_the_file_is_and_how_to_see(name):
    card = published(name)
    assert card.name == name
    assert card.net in NETS
    assert card.task == "classification"
    assert len(card.classes) == 1000
    assert card.licence in ("BSD-3-Clause", "Apache-2.0")
    assert card.origin
    assert bool(card.url) != bool(card.hub)
    assert card.address.startswith(("https://download.pytorch.org/models/", "https://huggingface.co/timm/"))
    # torchvision writes the beginning of the hash into the name.
    if card.url:
        prefix = card.file_name.removesuffix(".pth").rpartition("-")[2]
        assert card.expected.startswith(prefix)
    assert len(card.sha256) in (0, 64)
    assert card.sha256 or card.note
    assert card.scores == {} or 0.55 < card.scores["top1"] < card.scores["top5"] < 0.97
    Preprocess.from_dict(card.preprocess)


def test_every_file_has_a_name_of_its_own():
    names = [published(name).file_name for name in CARDS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("resnet50.imagenet1k_v1", (224, 224 / 256, "bilinear", 0.485, 0.229, 0.7613)),
        ("resnet50.imagenet1k_v2", (224, 224 / 232, "bilinear", 0.485, 0.229, 0.80858)),
        ("alexnet.imagenet1k_v1", (224, 0.875, "bilinear", 0.485, 0.229, 0.56522)),
        ("inception_v3.imagenet1k_v1", (299, 299 / 342, "bilinear", 0.5, 0.5, 0.77294)),
        ("googlenet.imagenet1k_v1", (224, 0.875, "bilinear", 0.5, 0.5, 0.69778)),
        ("resnet50.a1_in1k", (288, 1.0, "bicubic", 0.485, 0.229, 0.81214)),
        ("inception_v3.gluon_in1k", (299, 0.875, "bicubic", 0.485, 0.229, 0.78806)),
        ("tf_efficientnet_lite2.in1k", (260, 0.89, "bicubic", 0.5, 0.5, 0.77464)),
    ],
)
def test_preprocessing_and_scores(name, facts):
    size, crop, interpolation, mean, std, top1 = facts
    card = published(name)
    seen = card.preprocess
    assert (seen["size"], seen["interpolation"]) == ([size, size], interpolation)
    assert seen["crop"] == pytest.approx(crop)
    assert (seen["mean"][0], seen["std"][0], card.scores["top1"]) == (mean, std, top1)


@pytest.mark.parametrize("name", ["inception_v3.imagenet1k_v1", "googlenet.imagenet1k_v1"])
def test_what_torchvision_does_to_its_input_is_in_the_preprocessing(name):
    """Normalise by ImageNet's mean and deviation, then x (std / 0.5) + (mean - 0.5) / 0.5 a channel."""
    levels = torch.arange(256, dtype=torch.float64) / 255
    facts = published(name).preprocess
    means, stds = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    for mean, std, ours, spread in zip(means, stds, facts["mean"], facts["std"], strict=True):
        theirs = (levels - mean) / std * (std / 0.5) + (mean - 0.5) / 0.5
        assert torch.allclose((levels - ours) / spread, theirs, atol=1e-12)


def test_names_of_nets_stand_for_their_default_card():
    assert published("resnet50").name == "resnet50.imagenet1k_v2"
    assert published("resnet18").name == "resnet18.imagenet1k_v1"
    assert published("alexnet_single").name == "alexnet.imagenet1k_v1"
    assert published("efficientnet_lite0").package
    assert all(published(name).net == name for name in aliases())
    assert {published(name).net for name in CARDS} == {*aliases(), "efficientnet_lite0"}
    assert not is_published("resnet20")
    with pytest.raises(StriateError, match=r"did you mean 'resnet50\.a1_in1k'"):
        published("resnet50.a1-in1k")


# ---------------------------------------------------------------- the files fit the nets


@pytest.mark.parametrize("name", FETCHED)
def test_the_tensors_of_every_file_fit_the_net(name):
    """Names and shapes of torchvision's and timm's own models, kept as data; no memory is taken."""
    card = published(name)
    net = empty(card)
    given = translate(net, keylists.tensors(*keylists.of_card(name)), where=name)
    wanted = net.state_dict()
    assert given.keys() == wanted.keys()
    assert all(given[key].shape == wanted[key].shape for key in wanted)


def test_auxiliary_classifiers_find_their_places_too():
    for net, name in (("googlenet_bn", "googlenet"), ("inception_v3", "inception_v3")):
        state = keylists.tensors("torchvision", name)
        with_aux = skeleton(net, 1000, aux=True)
        assert len(translate(with_aux, state)) == len(state) > len(translate(skeleton(net, 1000), state))


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "vgg11_bn"])
def test_old_files_lack_the_counters_of_batch_norm(name):
    """They are 0; every other tensor is the file's, each of which holds its own number here."""
    shapes = keylists.tensors("torchvision", name, counters=False)
    file = {
        key: torch.tensor(float(i)).expand(tensor.shape) for i, (key, tensor) in enumerate(shapes.items())
    }
    state = load_into(skeleton(name, 1000), file).state_dict()
    counters = {key for key in state if key.endswith("num_batches_tracked")}
    assert all(state.pop(key) == 0 for key in counters)
    given = translate(skeleton(name, 1000), file)
    assert len(counters) > 5
    assert state.keys() == given.keys()
    assert sorted(tensor.flatten()[0].item() for tensor in state.values()) == list(range(len(file)))
    assert all(torch.equal(state[key], given[key]) for key in given)


def test_numbers_come_to_the_right_places():
    """Every tensor shrunk to one number, its place in torchvision's list."""
    state = keylists.tensors("torchvision", "vgg11_bn")
    small = {key: torch.full((1,) * tensor.ndim, i) for i, (key, tensor) in enumerate(state.items())}
    ours = vgg(small)
    for there, here in (
        ("features.0.weight", "conv1_1.weight"), ("features.1.running_var", "bn1_1.running_var"),
        ("features.4.bias", "conv2_1.bias"), ("features.11.weight", "conv3_2.weight"),
        ("features.25.weight", "conv5_2.weight"), ("features.26.bias", "bn5_2.bias"),
        ("classifier.3.bias", "fc7.bias"), ("classifier.6.weight", "fc8.weight"),
    ):  # fmt: skip
        assert ours[here].item() == small[there].item()
    names = list(alexnet(keylists.tensors("torchvision", "alexnet")))[::2]
    stages = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")
    assert names == [f"{stage}.weight" for stage in stages]


def test_the_convolutions_of_timms_classifier_keep_their_order():
    weight = torch.arange(2.0 * 3 * 7 * 7).reshape(2, 3, 7, 7)
    fc6 = vgg({"pre_logits.fc1.weight": weight})["fc6.weight"]
    x = torch.randn(4, 3, 7, 7)
    assert torch.allclose(
        x.flatten(1) @ fc6.T, torch.nn.functional.conv2d(x, weight)[:, :, 0, 0], rtol=1e-4, atol=1e-2
    )


def test_a_file_of_another_net_is_refused_by_both_sides():
    state = keylists.tensors("torchvision", "vgg13")
    with pytest.raises(BadModelFile) as caught:
        load_into(skeleton("vgg16", 1000), state, where="'vgg13.pth'")
    assert "'vgg13.pth' does not fit vgg16: missing there: conv3_3.weight" in str(caught.value)
    with pytest.raises(BadModelFile, match=r"other shapes: fc8\.weight is 1000x4096 there, 10x4096 here"):
        load_into(skeleton("vgg13", 10), state)


# ---------------------------------------------------------------- where files are


def tiny(tmp_path: Path, name: str = "tiny.safetensors") -> tuple[cards.Card, Path]:
    """A card and its file, of a linear classifier of 2x2 pixels."""
    net = create_net("linear", 2, 1, size=2)
    path = tmp_path / name
    save_file(net.state_dict(), path)
    card = cards.Card(
        name="tiny.test", net="linear", classes=("a", "b"), sha256=sha256(path), url=f"https://none.invalid/{name}",
        preprocess={"size": [2, 2], "channels": 1, "crop": 1.0, "resize": "crop", "interpolation": "bilinear",
                    "mean": [0.5], "std": [0.5]},
        scores={"top1": 0.5}, megabytes=0.1, licence="BSD-3-Clause", origin="a test",
    )  # fmt: skip
    return card, path


def put(path: Path, source: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(source.read_bytes())
    return path


def test_places_in_their_order(tmp_path, monkeypatch):
    card, file = tiny(tmp_path)
    hub = replace(card, url="", hub="timm/tiny.test")
    assert on_disk(card) is None
    torch_home, hub_home, mine = tmp_path / "torch", tmp_path / "hub", tmp_path / "mine"
    monkeypatch.setenv("TORCH_HOME", str(torch_home))
    monkeypatch.setenv("HF_HOME", str(hub_home))
    monkeypatch.setenv("STRIATE_WEIGHTS", f"{tmp_path / 'no'}{cards.os.pathsep}{mine}")
    place = put(torch_home / "hub" / "checkpoints" / file.name, file)
    assert locate(card) == place
    snapshots = hub_home / "hub" / "models--timm--tiny.test"
    place = put(snapshots / "snapshots" / "abc" / "model.safetensors", file)
    assert on_disk(hub) is None
    put(snapshots / "refs" / "main", file).write_text("abc")
    assert locate(hub) == place
    assert locate(replace(hub, revision="abc")) == place
    cached = cards.cache_folder() / "weights"
    for each, name in ((card, file.name), (hub, "tiny.test.safetensors")):
        place = put(cached / name, file)
        assert locate(each) == place
    place = put(mine / "tiny.test" / "model.safetensors", file)
    assert locate(hub) == place
    for each, name in ((card, file.name), (hub, "tiny.test.safetensors")):
        place = put(mine / name, file)
        assert locate(each) == place


def test_the_hubs_cache_names_files_by_their_hash(tmp_path, monkeypatch):
    card, file = tiny(tmp_path)
    hub = replace(card, url="", hub="timm/tiny.test", sha256="")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = tmp_path / "hub" / "models--timm--tiny.test"
    blob = put(folder / "blobs" / sha256(file), file)
    link = folder / "snapshots" / "main" / "model.safetensors"
    link.parent.mkdir(parents=True)
    link.symlink_to(blob)
    assert locate(hub) == link
    blob.write_bytes(b"damaged")
    with pytest.raises(BadModelFile, match=f"allowed: {sha256(file)}"):
        locate(hub)


@pytest.mark.parametrize(
    ("variable", "hub"), [("STRIATE_OFFLINE", False), ("STRIATE_OFFLINE", True), ("HF_HUB_OFFLINE", True)]
)
def test_offline_names_the_file_and_the_folder(tmp_path, monkeypatch, variable, hub):
    monkeypatch.delenv("STRIATE_OFFLINE", raising=False)
    monkeypatch.setenv(variable, "1")
    card = published("resnet50.a1_in1k" if hub else "resnet50.imagenet1k_v2")
    with pytest.raises(StriateError) as caught:
        locate(card)
    text = str(caught.value)
    assert f"{variable}=1 forbids to fetch them" in text
    folder = str(cards.cache_folder() / "weights")
    assert f"put {card.file_name} into {folder!r} (it is https://" in text
    with pytest.raises(StriateError, match=r"striate weights fetch resnet50\.imagenet1k_v1, or put"):
        locate(published("resnet50.imagenet1k_v1"), download=False)


HUB_LOADER = """
from pathlib import Path

def hf_hub_download(repo, file, revision):
    if repo == "timm/gone":
        raise ConnectionError("no route\\nto the hub")
    assert (repo, file, revision) == ("timm/tiny.test", "model.safetensors", "main")
    return {place!r}
"""


def test_the_hubs_own_loader_is_used_where_it_is_installed(tmp_path, monkeypatch):
    monkeypatch.delenv("STRIATE_OFFLINE")
    card, file = tiny(tmp_path)
    hub = replace(card, url="", hub="timm/tiny.test")
    module = tmp_path / "huggingface_hub.py"
    module.write_text(HUB_LOADER.format(place=str(file)))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "huggingface_hub", raising=False)
    assert locate(hub) == file
    with pytest.raises(BadModelFile, match=r"allowed: 0{64}"):
        locate(replace(hub, sha256="0" * 64))
    with pytest.raises(
        StriateError, match=r"ConnectionError: no route\); put model.safetensors of timm/gone"
    ):
        locate(replace(hub, hub="timm/gone"))
    monkeypatch.delitem(sys.modules, "huggingface_hub", raising=False)


def test_a_file_known_by_the_beginning_of_its_hash(tmp_path):
    card, file = tiny(tmp_path)
    whole = card.sha256
    short = replace(card, sha256="", hash_prefix=whole[:8])
    path = put(cards.cache_folder() / "weights" / file.name, file)
    assert locate(short) == path
    wrong = "0" * 8 if whole[:8] != "0" * 8 else "1" * 8
    with pytest.raises(BadModelFile, match=rf"its sha256 is {whole}; allowed: {wrong}\.\.\."):
        locate(replace(short, hash_prefix=wrong))


# ---------------------------------------------------------------- the verb


@pytest.fixture
def one_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[cards.Card, Path]:
    """A shelf that holds the tiny card alone."""
    card, file = tiny(tmp_path)
    monkeypatch.setattr(cards, "CARDS", (card.name,))
    monkeypatch.setattr(shelf, "CARDS", (card.name,))
    monkeypatch.setattr(cards, "_card", lambda _: card)
    monkeypatch.setattr(cards, "aliases", dict)
    return card, file


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    code = cli.main(["weights", *words])
    out = capsys.readouterr()
    return code, out.out + out.err


def test_list_fetch_and_verify(one_card, capsys, monkeypatch):
    card, file = one_card
    assert run(capsys, "verify")[1].startswith("no published weights are on this machine")
    code, text = run(capsys, "fetch", card.name)
    assert (code, "STRIATE_OFFLINE=1 forbids" in text) == (2, True)
    monkeypatch.delenv("STRIATE_OFFLINE")
    monkeypatch.setattr(cards, "fetch", lambda url, target, **_: sha256(put(target, file)))
    code, text = run(capsys, "fetch", card.name)
    assert (code, "the published file, and fits linear" in text) == (0, True)
    path = cards.cache_folder() / "weights" / file.name
    code, text = run(capsys, "list", "--json")
    assert json.loads(text)["paths"] == [str(path)]
    assert "50.00      -     0.1" in run(capsys, "list", "tiny")[1]
    for name in ("tiny.test", str(path), str(file)):
        assert "the published file" in run(capsys, "verify", name)[1]
    path.write_bytes(b"damaged")
    for words in (["verify"], ["verify", card.name], ["verify", str(path)], ["fetch", card.name]):
        code, text = run(capsys, *words)
        assert code == 2
        assert f"its sha256 is {sha256(path)}; allowed: {card.sha256}" in text
        assert text.count("\n") == 1
    save_file({"a": torch.zeros(3)}, file.with_name("other"))
    assert "1 tensors that no card knows" in run(capsys, "verify", str(file.with_name("other")))[1]


def test_a_hash_that_no_card_tells_is_kept_beside_the_file(one_card, capsys, monkeypatch):
    card, file = one_card
    hub = replace(card, url="", hub="timm/tiny.test", sha256="")
    monkeypatch.setattr(cards, "_card", lambda _: hub)
    monkeypatch.delenv("STRIATE_OFFLINE")
    monkeypatch.setattr(cards, "fetch", lambda url, target, **_: sha256(put(target, file)))
    monkeypatch.setattr(cards.importlib.util, "find_spec", lambda _: None)
    assert "good as far as is known (as it was fetched)" in run(capsys, "fetch", card.name)[1]
    path = cards.cache_folder() / "weights" / "tiny.test.safetensors"
    path.write_bytes(path.read_bytes() + b"1")
    code, text = run(capsys, "verify", card.name)
    assert (code, f"allowed: {card.sha256}" in text) == (2, True)


def test_names_that_there_are_not(capsys):
    assert "did you mean 'resnet50" in run(capsys, "list", "resnet-50")[1]
    assert "did you mean 'resnet50" in run(capsys, "fetch", "resnet-50")[1]
    assert run(capsys, "fetch")[0] == 2
    assert cli.main(["predict", "resnet50.a1_in", "x.png"]) == 2
    assert "did you mean 'resnet50.a1_in1k'" in capsys.readouterr().err
    code, text = run(capsys, "list", "efficientnet_lite0")
    assert (code, "tf_efficientnet_lite0.in1k" in text) == (0, True)
