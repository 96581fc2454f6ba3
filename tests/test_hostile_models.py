"""Model files that were cut, changed or forged: each loads or is refused by one error of one line."""

from __future__ import annotations

import json
import pickle
import random
import resource
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from striate import modelfile
from striate.core.errors import BadModelFile
from striate.data.preprocess import Preprocess
from striate.model import Model, load
from striate.nets.net import create_net
from striate.tasks.classification import Classification

Json = dict[str, Any]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    torch.manual_seed(0)
    net = create_net("mlp", 3, 1, size=4, hidden=5)
    model = Model(net, Classification(("a", "b", "c")), Preprocess(size=(4, 4), channels=1))
    return model.save(tmp_path_factory.mktemp("good") / "model.safetensors").read_bytes()


def refused(path: Path) -> str:
    with pytest.raises(BadModelFile) as caught:
        load(path)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 1500
    return text


def split(data: bytes) -> tuple[Json, Json, bytes]:
    """The table of tensors, Striate's header, and the tensors' bytes of a good file."""
    length = int.from_bytes(data[:8], "little")
    table = json.loads(data[8 : 8 + length])
    return table, json.loads(table["__metadata__"][modelfile.KEY]), data[8 + length :]


def joined(table: Json | bytes, body: bytes, length: int | None = None) -> bytes:
    text = table if isinstance(table, bytes) else json.dumps(table).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + body


def forged(data: bytes, change: Callable[[Json, Json], Any]) -> bytes:
    """The file with `change(table, header)` applied."""
    table, header, body = split(data)
    text = change(table, header)
    table["__metadata__"][modelfile.KEY] = text if isinstance(text, str) else json.dumps(header)
    return joined(table, body)


# ------------------------------------------------------------------------------------------------ by hand


def test_the_forger_leaves_a_good_file_good(good: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_bytes(forged(good, lambda table, header: None))
    assert load(path).classes == ("a", "b", "c")


KINDS = {
    "empty": (b"", "truncated"),
    "three bytes": (b"abc", "truncated"),
    "png": (b"\x89PNG\r\n\x1a\n" + bytes(50), "a PNG image"),
    "jpeg": (b"\xff\xd8\xff\xe0" + bytes(50), "a JPEG image"),
    "pickle": (pickle.dumps({"weights": list(range(99))}, protocol=4), "a pickle"),
    "gzip": (b"\x1f\x8b\x08\x00abcdefgh", "a gzip archive"),
    "text": (b"epoch,loss\n1,2.5\n", "damaged or no model file"),
    "zeros": (bytes(100), "not valid JSON"),
    "lying length": (b"\xff" * 8 + b"{}", "claims 18446744073709551615 bytes"),
    "long length": ((1000).to_bytes(8, "little") + b"{}", "truncated"),
    "list": (joined(b"[1, 2]", b""), "no table"),
    "deep": (joined(b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}", b""), "nested too deeply"),
    "not utf-8": (joined(b'{"\xff\xfe": 1}', b""), "not valid JSON"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds_of_file_are_named(kind: str, tmp_path: Path) -> None:
    data, message = KINDS[kind]
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    assert message in refused(path)


def test_a_renamed_pytorch_checkpoint_is_named_and_not_run(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    torch.save({"weight": torch.zeros(3)}, path)
    assert zipfile.is_zipfile(path)
    assert "a zip archive" in refused(path)


def table_changes() -> dict[str, Callable[[Json, Json], Any]]:
    def entry(**changes: Any) -> Callable[[Json, Json], Any]:
        return lambda table, header: table["fc2.weight"].update(changes)

    return {
        "huge shape": entry(shape=[2**40, 2**40], data_offsets=[0, 2**62]),
        "negative shape": entry(shape=[-3, -5]),
        "shape and bytes disagree": entry(shape=[3, 6]),
        "offsets beyond the end": entry(data_offsets=[10**9, 10**9 + 60]),
        "overlap": lambda table, header: table.update({"fc2.weight": table["fc1.weight"]}),
        "fractions": entry(shape=[3.0, 5.0]),
        "truth values": entry(shape=[True, True]),
        "no offsets": lambda table, header: table["fc2.weight"].pop("data_offsets"),
        "unknown type": entry(dtype="F1024"),
        "type of another size": entry(dtype="F64"),
        "whole numbers": entry(dtype="I32"),
        "no tensor": lambda table, header: table.update({"fc2.weight": 5}),
        "many dimensions": entry(shape=[1] * 500),
        "metadata of numbers": lambda table, header: table["__metadata__"].update({"other": 5}),
    }


@pytest.mark.parametrize("change", table_changes())
def test_tables_that_contradict_themselves(good: bytes, tmp_path: Path, change: str) -> None:
    path = tmp_path / "m"
    path.write_bytes(forged(good, table_changes()[change]))
    refused(path)


def header_changes() -> dict[str, tuple[Callable[[Json, Json], Any], str]]:
    def within(part: str, **changes: Any) -> Callable[[Json, Json], Any]:
        return lambda table, header: header[part].update(changes)

    def top(**changes: Any) -> Callable[[Json, Json], Any]:
        return lambda table, header: header.update(changes)

    return {
        "unknown net": (within("net", name="mpl"), "did you mean 'mlp'"),
        "net of a number": (within("net", name=5), "module from elsewhere"),
        "unknown option": (within("net", options={"hiden": 5}), "did you mean 'hidden'"),
        "option of the wrong kind": (within("net", options={"hidden": "5"}), "hidden"),
        "a terabyte": (within("net", options={"hidden": 65536, "layers": 32}), "does not fit"),
        "too many units": (within("net", options={"hidden": 10**15}), "hidden"),
        "classes as option": (within("net", options={"classes": 3}), "no option"),
        "a book of options": (within("net", options={"hidden": [1] * 9999}), "no short table"),
        "no channels": (within("net", in_channels=0), "in_channels"),
        "many channels": (within("net", in_channels=10**12), "in_channels"),
        "huge size": (within("net", size=[10**6, 10**6]), "sides of 1 to 16384"),
        "size of texts": (within("net", size=["a", "b"]), "size"),
        "another size": (within("net", size=[8, 8]), "does not fit"),
        "one class more": (top(classes=["a", "b", "c", "d"]), "(4, 5) in the net and (3, 5) in the file"),
        "no classes": (top(classes=[]), "without classes"),
        "classes of numbers": (top(classes=[1, 2, 3]), "list of names"),
        "unknown task": (within("task", name="segmentatoin"), "did you mean 'segmentation'"),
        "another task": (within("task", name="segmentation"), "no convolutional stages"),
        "unknown task setting": (within("task", colour=1), "colour"),
        "weights of the task": (within("task", class_weights=[1]), "class weights"),
        "view of terabytes": (within("preprocess", size=[16384 * 99, 4]), "size"),
        "std of 0": (within("preprocess", std=[0.0]), "std"),
        "unknown preprocessing": (within("preprocess", sise=[4, 4]), "did you mean 'size'"),
        "no net": (top(net=None), "'net' is no table"),
        "no format": (top(format=None), "model format None"),
        "truth as format": (top(format=True), "model format True"),
        "not a number": (lambda table, header: '{"format": NaN}', "NaN is not a number"),
        "infinite": (lambda table, header: '{"format": 1e999}', "too large a number"),
        "long number": (lambda table, header: '{"format": ' + "1" * 5000 + "}", "more than 20 digits"),
        "twice": (lambda table, header: '{"format": 1, "format": 1}', "twice"),
        "deep": (lambda table, header: '{"a":' * 100_000 + "1" + "}" * 100_000, "nested too deeply"),
        "text": (lambda table, header: "hello", "not valid JSON"),
        "lines": (within("net", name="mlp\nmlp\r\n\x1b[31m"), "unknown net"),
    }


@pytest.mark.parametrize("change", header_changes())
def test_headers_that_ask_for_what_is_not_there(good: bytes, tmp_path: Path, change: str) -> None:
    function, message = header_changes()[change]
    path = tmp_path / "m"
    path.write_bytes(forged(good, function))
    assert message in refused(path)


def test_a_tensor_named_twice_is_refused(good: bytes, tmp_path: Path) -> None:
    table, _, body = split(good)
    text = json.dumps(table)
    path = tmp_path / "m"
    path.write_bytes(
        joined((text[:-1] + ', "fc1.bias": ' + json.dumps(table["fc1.bias"]) + "}").encode(), body)
    )
    assert "twice" in refused(path)


def test_bytes_after_the_end_are_refused(good: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_bytes(good + b"more")
    assert "4 bytes follow" in refused(path)


# --------------------------------------------------------------------------------------------- by the dozen


def flip(data: bytearray, chance: random.Random) -> bytes:
    header = 8 + int.from_bytes(data[:8], "little")
    for _ in range(chance.choice([1, 1, 2, 8])):
        place = chance.randrange(header if chance.random() < 0.9 else len(data))
        data[place] ^= 1 << chance.randrange(8)
    return bytes(data)


def cut(data: bytearray, chance: random.Random) -> bytes:
    return bytes(data[: chance.randrange(len(data))])


def insert(data: bytearray, chance: random.Random) -> bytes:
    place = chance.randrange(len(data))
    return bytes(data[:place] + chance.randbytes(chance.choice([1, 8, 300])) + data[place:])


def swap(data: bytearray, chance: random.Random) -> bytes:
    a, b = sorted(chance.randrange(len(data)) for _ in range(2))
    return bytes(data[b:] + data[a:b] + data[:a])


ODD_VALUES = [-1, 0, 1, 2**31, 2**63, 1e300, "", "x" * 100, None, True, [], {}, [[]], {"a": 1}]


def number(data: bytearray, chance: random.Random) -> bytes:
    """One number of the JSON replaced, lengths kept consistent."""
    table, header, body = split(bytes(data))
    leaves: list[tuple[Any, Any]] = []

    def collect(value: Any) -> None:
        for key in value if isinstance(value, dict) else range(len(value)):
            if isinstance(value[key], (dict, list)):
                collect(value[key])
            else:
                leaves.append((value, key))

    collect(table if chance.random() < 0.4 else header)
    holder, key = chance.choice(leaves)
    holder[key] = chance.choice(
        [-1, 0, 1, 2**31, 2**63, 1e300, "", "x" * 100, None, True, [], {}, [[]], {"a": 1}]
    )
    if isinstance(table.get("__metadata__"), dict) and holder is not table["__metadata__"]:
        table["__metadata__"][modelfile.KEY] = json.dumps(header)
    return joined(table, body)


@pytest.mark.parametrize("mutate", [flip, cut, insert, swap, number])
def test_a_hundred_mutations_each_load_or_are_refused(
    good: bytes, tmp_path: Path, mutate: Callable[[bytearray, random.Random], bytes]
) -> None:
    chance = random.Random(f"model {mutate.__name__}")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refusals = []
    for _ in range(100):
        path = tmp_path / "m"
        path.write_bytes(mutate(bytearray(good), chance))
        try:
            model = load(path)
        except BadModelFile as error:
            refusals.append(str(error))
        else:
            assert len(model.classes) == 3
    assert len(refusals) >= 30
    assert not any("\n" in text for text in refusals)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    if sys.platform == "linux":
        assert grown < 500 * 1024
