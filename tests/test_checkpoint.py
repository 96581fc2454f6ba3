"""Checkpoints: the same values back, one whole file or none, and clear words for anything else."""

from __future__ import annotations

import errno
import math
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from striate.core import files
from striate.core.errors import BadModelFile, StriateError
from striate.train.checkpoint import (
    clean,
    pack,
    read_checkpoint,
    restore_net,
    restore_optimizer,
    unpack,
    write_checkpoint,
)

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
TREES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(), inner, max_size=4)
        | st.dictionaries(st.integers(), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(TREES)
def test_plain_trees_come_back(tree: object) -> None:
    import json

    assert unpack(json.loads(json.dumps(pack(tree, {}))), {}) == tree


def test_tensors_of_every_kind_come_back(tmp_path: Path) -> None:
    tree = {
        "conv": torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last),
        "scalar": torch.tensor(2.5),
        "double": torch.zeros((), dtype=torch.float64) + 1 / 3,
        "empty": torch.zeros(0, 3),
        "whole": torch.arange(5),
        "state": {0: {"step": torch.tensor(3.0), "n": 1}, 7: {"buffer": torch.ones(2)}},
        "rows": [{"loss": 0.1, "t": torch.ones(1)}, {"loss": -math.inf}],
    }
    shared = torch.randn(6)
    tree["view"], tree["same"] = shared[::2], shared
    back = read_checkpoint(write_checkpoint(tmp_path / "x.safetensors", tree))
    for name in ("conv", "scalar", "double", "empty", "whole", "view", "same"):
        assert back[name].dtype == tree[name].dtype
        assert torch.equal(back[name], tree[name]), name
    assert torch.equal(back["state"][7]["buffer"], torch.ones(2))
    assert back["state"][0]["n"] == 1
    assert back["rows"][1]["loss"] == -math.inf
    assert back["rows"][0]["loss"] == 0.1


def test_equal_trees_give_equal_bytes(tmp_path: Path) -> None:
    tree = {"net": {f"layer{k}": torch.full((3,), float(k)) for k in range(20)}, "step": 3}
    one = write_checkpoint(tmp_path / "one", tree).read_bytes()
    assert all(write_checkpoint(tmp_path / "two", tree).read_bytes() == one for _ in range(5))


def test_objects_are_refused() -> None:
    with pytest.raises(TypeError, match="a/1: a checkpoint cannot hold set"):
        pack({"a": [1, {2}]}, {})


@pytest.mark.parametrize("cut", [0, 4, 100, -1])
def test_a_damaged_file_is_one_clear_error(tmp_path: Path, cut: int) -> None:
    path = write_checkpoint(tmp_path / "x.safetensors", {"a": torch.ones(100), "b": 1})
    whole = path.read_bytes()
    path.write_bytes(whole[:cut])
    with pytest.raises(BadModelFile, match="not a whole checkpoint"):
        read_checkpoint(path)
    path.write_bytes(b"PK\x03\x04" + whole)
    with pytest.raises(BadModelFile):
        read_checkpoint(path)
    with pytest.raises(BadModelFile):
        read_checkpoint(tmp_path / "missing")


def test_a_model_file_is_no_checkpoint(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.ones(1)}, tmp_path / "m.safetensors", metadata={"striate": "{}"})
    with pytest.raises(BadModelFile, match="not a whole checkpoint"):
        read_checkpoint(tmp_path / "m.safetensors")


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_checkpoint(tmp_path / "last.safetensors", {"step": 1})

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        with pytest.raises(StriateError, match="the disk is full") as caught:
            write_checkpoint(path, {"step": 2, "big": torch.ones(1000)})
    assert "\n" not in str(caught.value)
    assert read_checkpoint(path) == {"step": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.safetensors"]


def test_stale_temporary_files_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".last.safetensors.abc.tmp").write_bytes(b"half")
    (tmp_path / "mine.tmp").write_bytes(b"kept")
    assert clean(tmp_path) == [".last.safetensors.abc.tmp"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["mine.tmp"]


def test_a_checkpoint_of_another_net_is_refused() -> None:
    net = torch.nn.Linear(3, 2)
    with pytest.raises(StriateError, match="does not fit the net: weight"):
        restore_net(net, {"weight": torch.ones(2, 4), "bias": torch.ones(2)})
    with pytest.raises(StriateError, match="extra"):
        restore_net(net, {**net.state_dict(), "extra": torch.ones(1)})


def test_histories_in_lists_go_to_the_device_of_the_weights() -> None:
    """L-BFGS keeps its past steps in lists: read from a file, they lie on the processor."""
    weight = torch.nn.Parameter(torch.empty(2, 3, device="meta"))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    state = {
        "old_dirs": [torch.ones(6), torch.ones(6)], "al": [None, torch.ones(())], "d": torch.ones(6),
        "n_iter": 3, "same": [torch.ones(2, 3)],
    }  # fmt: skip
    restore_optimizer(optimizer, {"state": {0: state}})
    found = optimizer.state[weight]
    placed = [*found["old_dirs"], found["al"][1], found["d"], *found["same"]]
    assert {tensor.device.type for tensor in placed} == {"meta"}
    assert (found["al"][0], found["n_iter"], len(found["old_dirs"])) == (None, 3, 2)
