"""Tables of paths and labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from image_sets import png, problem, write, zipped
from striate.core.errors import StriateError
from striate.data.formats import open_data


def test_tables_with_and_without_header(tmp_path: Path) -> None:
    root = write(tmp_path / "set", {f"img/{i}.png": png(i) for i in range(6)})
    rows = [f"img/{i}.png,{'ab'[i % 2]},{'train' if i < 4 else 'test'}" for i in range(6)]
    for name, text in {
        "plain.csv": "\n".join(rows),
        "head.csv": "\ufeffImage,Class,Subset\r\n" + "\r\n".join(rows) + "\r\n\r\n",
        "tabs.tsv": "split\tlabel\tpath\n" + "\n".join("\t".join(reversed(row.split(","))) for row in rows),
        "semi.csv": "path;label;split\n" + "\n".join(row.replace(",", ";") for row in rows),
    }.items():
        (root / name).write_text(text, encoding="utf-8")
        data = open_data(root / name, val=0)
        assert data.classes == ("a", "b"), name
        assert list(data.split("train").names) == [f"img/{i}.png" for i in range(4)]
        assert data.counts("test").tolist() == [1, 1]
        assert data.split("test").read(1) == png(5)


def test_several_labels_make_a_multi_label_set(tmp_path: Path) -> None:
    root = write(tmp_path / "set", {f"{i}.png": png(i) for i in range(3)})
    (root / "t.csv").write_text("file,tags\n0.png,sea;sky\n1.png,sky\n2.png,;\n")
    data = open_data(root / "t.csv", test=1)
    assert data.kind == "multi-label"
    assert data.classes == ("sea", "sky")
    targets = data.split("test").targets
    assert targets is not None
    assert targets.dtype == np.uint8
    assert targets.tolist() == [[1, 1], [0, 1], [0, 0]]
    assert data.counts("test").tolist() == [1, 2]


def test_tables_in_folders_and_archives(tmp_path: Path) -> None:
    files = {f"img/{i}.png": png(i) for i in range(4)}
    table = "path,label\n" + "\n".join(f"img/{i}.png,{'xy'[i % 2]}" for i in range(4))
    files |= {"labels.csv": table.encode()}
    for path in (
        write(tmp_path / "set", files),
        zipped(tmp_path / "set.zip", {f"w/{k}": v for k, v in files.items()}),
    ):
        data = open_data(path, test=1)
        assert data.classes == ("x", "y")
        assert data.split("test").read(2) == png(2)


def test_tables_for_each_split(tmp_path: Path) -> None:
    files = {f"{i}.png": png(i) for i in range(6)}
    files["train.csv"] = b"path,label\n0.png,a\n1.png,b\n2.png,a\n3.png,b"
    files["test.csv"] = b"path,label\n4.png,a\n5.png,b"
    data = open_data(write(tmp_path / "set", files), val=0)
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 4, "test": 2}


def test_table_errors(tmp_path: Path) -> None:
    root = write(tmp_path / "set", {f"{i}.png": png(i) for i in range(4)})

    def told(text: str, **options: object) -> str:
        (root / "t.csv").write_text(text)
        return problem(root / "t.csv", **options)

    assert "empty" in told("")
    assert "no label column" in told("path,colour\n0.png,red")
    assert "row 3 of 't.csv' lacks a path or a label" in told("path,label\n0.png,a\n1.png,\n")
    assert "has the split 'tst'" in told("path,label,split\n0.png,a,tst")
    assert "one class only" in told("path,label\n0.png,a\n1.png,a")
    assert "3 of 4 images" in told("path,label\n0.png,a\nx.png,b\ny.png,b\nz.png,b")
    assert "0.png' is in the table" in told("path,label\n0.png,a\n0.png,b")
    assert "did you mean 'kind'" in told("path,label,kind\n0.png,a,b", label_column="kid")
    classes = write(tmp_path / "folder", {f"{name}/{i}.png": png(i) for name in "ab" for i in range(3)})
    assert "are not from a table" in problem(classes, label_column="kind")
    (root / "t.csv").write_text("path,label\n0.png,a\n1.png,b\n2.png,b\n2.png,b\nnone.png,a")
    data = open_data(root / "t.csv", test=1)
    assert len(data) == 3
    assert data.bad[0][0] == "none.png"
    assert any("twice" in note for note in data.notes)


def test_paths_may_leave_the_folder_on_disk_but_not_in_an_archive(tmp_path: Path) -> None:
    write(tmp_path / "img", {"0.png": png(0), "1.png": png(1)})
    text = f"path,label\n../img/0.png,a\n{tmp_path}/img/1.png,b\n"
    write(tmp_path / "tables", {"t.csv": text.encode()})
    data = open_data(tmp_path / "tables" / "t.csv", test=1)
    assert sorted(data.split("test").read(i) for i in range(2)) == sorted([png(0), png(1)])
    packed = zipped(tmp_path / "a.zip", {"t.csv": text.encode(), "x/0.png": png(0)})
    assert "2 of 2 images" in problem(packed)


def test_labels_of_thousands_of_digits_are_names(tmp_path: Path) -> None:
    root = write(tmp_path / "set", {f"{i}.png": png(i) for i in range(4)})
    long = "7" * 5000
    (root / "labels.csv").write_text(f"path,label\n0.png,{long}\n1.png,{long}\n2.png,1\n3.png,1\n")
    assert open_data(root, test=0.5).classes == ("1", long)
    with pytest.raises(StriateError, match="class"):
        open_data(root, test=1, classes=["a", "b"])


def test_an_index_column_lines_up_with_a_models_classes(tmp_path: Path) -> None:
    root = write(tmp_path / "set", {f"{i}.png": png(i) for i in range(3)})
    (root / "labels.tsv").write_text(
        "file\tindex\tlabel\n0.png\t2\tgreat_shark\n1.png\t0\ttench\n2.png\t3\tcrane\n"
    )
    classes = ["tench", "crane", "great white shark, white shark", "crane"]
    for options in ({}, {"label_column": "index"}):
        data = open_data(root, test=1, classes=classes, **options)  # type: ignore[arg-type]
        targets = data.split("test").targets
        assert targets is not None
        assert targets.tolist() == [2, 0, 3]
        assert data.classes == tuple(classes)
