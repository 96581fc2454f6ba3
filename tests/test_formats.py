"""Class folders and archives, and the errors they give."""

from __future__ import annotations

import errno
import os
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from image_sets import CONTAINERS, classes_of, png, problem, tarred, write, zipped
from striate.core.errors import BadImage, StriateError
from striate.data import archives
from striate.data.formats import open_data
from striate.data.trees import FolderTree


@pytest.mark.parametrize("container", CONTAINERS)
def test_class_folders_are_the_same_in_every_container(container: str, tmp_path: Path) -> None:
    files = {
        **classes_of(below="train/", count=12),
        **classes_of(below="valid/"),
        **classes_of(below="Testing/"),
    }
    files |= {"README.md": b"x", "train/cat/.DS_Store": b"x", "__MACOSX/train/cat/._0.png": b"x"}
    data = open_data(CONTAINERS[container](tmp_path, files))
    assert data.name == "set"
    assert data.classes == ("cat", "dog")
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 24, "val": 6, "test": 6}
    train = data.split("train")
    assert list(train.names[:4]) == [f"train/cat/{i}.png" for i in range(4)]
    assert train.names[11] == "train/cat/11.png"
    assert train.targets is not None
    assert train.targets.tolist() == [0] * 12 + [1] * 12
    for i in (0, 11, 12, 23):
        assert train.read(i) == files[train.name_of(i)]
    assert train.image(3).shape == (6, 5, 3)
    assert data.size == (6, 5)
    assert data.digest() == open_data(write(tmp_path / "again", files)).digest()


def test_unsplit_folders_get_seeded_stratified_splits(tmp_path: Path) -> None:
    root = write(tmp_path / "set", classes_of(("a", "b", "c"), 20))
    data = open_data(root, val=0.25, test=0.2)
    assert data.counts("test").tolist() == [4, 4, 4]
    assert data.counts("val").tolist() == [4, 4, 4]
    assert data.counts("train").tolist() == [12, 12, 12]
    assert open_data(root, val=0.25, test=0.2).digest() == data.digest()
    assert len(open_data(root, test=1).split("test")) == 60
    assert sorted(open_data(root).split("all").names) == sorted(classes_of(("a", "b", "c"), 20))


def test_val_is_drawn_from_train_when_only_test_is_given(tmp_path: Path) -> None:
    root = write(tmp_path / "s", {**classes_of(below="train/", count=10), **classes_of(below="test/")})
    assert {n: len(s) for n, s in open_data(root).splits.items()} == {"train": 18, "val": 2, "test": 6}
    assert list(open_data(root, val=0).splits) == ["train", "test"]


def test_grey_images_make_a_grey_set(tmp_path: Path) -> None:
    files = {f"{c}/{i}.png": png(i, grey=True) for c in "ab" for i in range(2)}
    assert open_data(write(tmp_path / "grey", files)).channels == 1
    files["a/9.png"] = png(9)
    assert open_data(write(tmp_path / "mixed", files)).channels == 3


def test_missing_folders_name_their_near_siblings(tmp_path: Path) -> None:
    write(tmp_path / "flowers", classes_of())
    assert "flowers" in problem(tmp_path / "flwers")
    assert "flowers" in problem(tmp_path / "flwers" / "train")
    with pytest.raises(StriateError, match="did you mean 'digits'"):
        open_data("digit")


def test_empty_classes_one_class_and_no_images(tmp_path: Path) -> None:
    one = write(tmp_path / "one", classes_of(("cat",)))
    assert "one class only ('cat')" in problem(one)
    empty = write(tmp_path / "empty", classes_of())
    (empty / "emu").mkdir()
    assert "class folder 'emu'" in problem(empty)
    assert "holds no images" in problem(empty)
    lenient = open_data(empty, strict=False)
    assert len(lenient.problems) == 1
    assert "problem: the class folder 'emu'" in lenient.describe()
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    assert "nothing" in problem(nothing)
    texts = write(tmp_path / "texts", {"a/1.txt": b"x", "b/2.txt": b"x"})
    assert "no data set" in problem(texts)
    single = write(tmp_path, {"x.png": png(1)}) / "x.png"
    assert "is one image" in problem(single)


def test_empty_class_folders_in_archives_are_seen(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", classes_of())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("emu/", b"")
    assert "class folder 'emu'" in problem(path)


def test_labels_without_images_and_strange_folders(tmp_path: Path) -> None:
    root = write(tmp_path / "a", {**classes_of(below="train/"), **classes_of(("cat", "dogs"), below="val/")})
    assert "class 'dogs' is in val but not in train; did you mean 'dog'?" in problem(root)
    listed = write(tmp_path / "b", {**classes_of(), "classes.txt": b"dog\ncat\nemu\n"})
    assert "class 'emu' is in the class list" in problem(listed)
    mixed = write(tmp_path / "c", {**classes_of(below="train/"), **classes_of(("extra",), below="more/")})
    assert "side by side" in problem(mixed)
    twice = write(tmp_path / "d", {**classes_of(below="train/"), **classes_of(below="training/")})
    assert "two folders for one split" in problem(twice)
    boxes = write(tmp_path / "e", {"JPEGImages/1.jpg": png(1), "Annotations/1.xml": b"<a/>"})
    assert "detection" in problem(boxes)


def test_class_lists_give_the_order_and_foreign_files_are_listed(tmp_path: Path) -> None:
    root = write(
        tmp_path / "s", {**classes_of(), "classes.txt": b"dog\ncat\n", "cat/x.heic": b"?", "top.png": png(5)}
    )
    data = open_data(root, test=0, val=0)
    assert data.classes == ("dog", "cat")
    assert data.split("train").name_of(0) == "dog/0.png"
    assert [name for name, _ in data.bad] == ["cat/x.heic"]
    assert "1 images outside class folders are left out" in data.notes


def test_an_image_beside_the_split_folders_is_left_out(tmp_path: Path) -> None:
    files = classes_of(below="train/") | classes_of(count=1, below="test/") | {"cover.png": png(0)}
    for data in (open_data(write(tmp_path / "s", files)), open_data(zipped(tmp_path / "s.zip", files))):
        assert "1 images outside class folders are left out" in data.notes
        assert data.classes == ("cat", "dog")


def test_files_of_the_data_itself_may_be_large(tmp_path: Path) -> None:
    with open(tmp_path / "large", "wb") as file:
        file.truncate(257_000_000)
    tree = FolderTree(tmp_path)
    assert len(tree.read("large", 1 << 30)) == 257_000_000
    with pytest.raises(StriateError, match="at most 1,024"):
        tree.read("large", 1024)


def test_a_folder_that_may_not_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the system answers to who may not: root may read everything, and runs the tests in many places."""
    root = write(tmp_path / "s", classes_of())
    scan, stat = os.scandir, Path.stat

    def closed(path: object, call: Callable[..., object], *words: object, **how: object) -> object:
        inside = call is stat and root in Path(str(path)).parents
        if inside or (call is not stat and Path(str(path)) == root):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return call(path, *words, **how)

    monkeypatch.setattr(os, "scandir", lambda path: closed(path, scan))
    monkeypatch.setattr(os, "listdir", lambda path: closed(path, scan))
    monkeypatch.setattr(Path, "stat", lambda path, **how: closed(path, stat, **how))
    with pytest.raises(StriateError, match=r"cannot read the folder .*check its permissions"):
        open_data(root)
    with pytest.raises(StriateError, match=r"cannot look for .*: Permission denied"):
        open_data(root / "cat")


def test_a_class_called_train_is_a_class(tmp_path: Path) -> None:
    data = open_data(write(tmp_path / "s", classes_of(("bus", "train"))))
    assert data.classes == ("bus", "train")


def test_links_in_circles_end(tmp_path: Path) -> None:
    root = write(tmp_path / "s", classes_of())
    (root / "cat" / "loop").symlink_to(root)
    assert len(open_data(root, test=1).split("test")) == 6


def test_sibling_archives_are_found(tmp_path: Path) -> None:
    train = zipped(tmp_path / "pets-train.zip", classes_of(count=10))
    test = zipped(tmp_path / "pets-test.zip", classes_of(count=2))
    for spec in (str(train), str(tmp_path), f"train={train},test={test}"):
        data = open_data(spec)
        assert {name: len(split) for name, split in data.splits.items()} == {"train": 18, "val": 2, "test": 4}
        assert len(set(data.split("all").names)) == 24
        assert data.split("test").read(1) == png(1)
    assert "found beside" in open_data(train).describe()
    zipped(tmp_path / "other.zip", classes_of())
    assert "several archives" in problem(tmp_path)


def test_two_paths_are_matched_by_class_name(tmp_path: Path) -> None:
    train = write(tmp_path / "a", classes_of(("bee", "cat", "dog")))
    test = write(tmp_path / "b", classes_of(("dog", "cat")))
    data = open_data(f"train={train},test={test}", val=0)
    assert data.counts("test").tolist() == [0, 3, 3]
    assert data.split("test").name_of(0) == "test/cat/0.png"
    other = write(tmp_path / "c", classes_of(("emu", "cat")))
    with pytest.raises(StriateError, match="unknown class 'emu'"):
        open_data(f"train={train},test={other}")


def test_damaged_archives(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", classes_of(count=30))
    whole = path.read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[: len(whole) // 2])
    assert "cannot be opened as an archive" in problem(tmp_path / "cut.zip")
    flipped = bytearray(whole)
    flipped[60] ^= 0xFF
    (tmp_path / "b.zip").write_bytes(bytes(flipped))
    data = open_data(tmp_path / "b.zip", test=0, val=0)
    with pytest.raises(BadImage, match=r"cat/0\.png: the archive is damaged here"):
        data.split("train").image(0)
    assert data.split("train").image(1).shape == (6, 5, 3)
    packed = tarred(tmp_path / "a.tar.gz", classes_of()).read_bytes()
    (tmp_path / "b.tar.gz").write_bytes(packed[:-30])
    assert "cannot be opened as an archive" in problem(tmp_path / "b.tar.gz")


def test_zip_members_cannot_inflate_beyond_their_size_or_the_limit(tmp_path: Path) -> None:
    files = {**classes_of(), "cat/bomb.png": bytes(3_000_000)}
    path = zipped(tmp_path / "a.zip", files)
    data = path.read_bytes()
    # Declare 100 bytes for the bomb, in the central directory and in the local header.
    lying = data.replace(struct.pack("<I", 3_000_000), struct.pack("<I", 100))
    assert lying != data
    path.write_bytes(lying)
    split = open_data(path, test=1).split("test")
    with pytest.raises(BadImage, match="length or checksum differs"):
        split.read(list(split.names).index("cat/bomb.png"))
    path.write_bytes(data.replace(struct.pack("<I", 3_000_000), struct.pack("<I", 4_000_000_000)))
    split = open_data(path, test=1).split("test")
    with pytest.raises(BadImage, match="declares 4,000,000,000 bytes"):
        split.read(list(split.names).index("cat/bomb.png"))


def test_encrypted_archives_are_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", classes_of(), zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    start = 0
    while (start := data.find(b"PK\x01\x02", start)) >= 0:
        data[start + 8] |= 1
        start += 4
    path.write_bytes(bytes(data))
    assert "encrypted" in problem(path)


def test_tar_bombs_and_escaping_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {**classes_of(), "../../out/1.png": png(1), "/etc/2.png": png(2)}
    for path in (tarred(tmp_path / "a.tar", files), zipped(tmp_path / "a.zip", files)):
        assert len(open_data(path, test=1).split("test")) == 6
    monkeypatch.setattr(archives, "SPOOL_FREE", 1000)
    monkeypatch.setattr(archives, "SPOOL_RATIO", 2)
    bomb = tarred(tmp_path / "b.tar.gz", {**classes_of(), "cat/9.png": bytes(10_000_000)})
    assert "inflates to more than" in problem(bomb)


def test_real_archives_open(shared_data: Callable[[str], Path]) -> None:
    data = open_data(shared_data("caltech101-subset.zip"))
    assert len(data.classes) == 101
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 1515, "val": 202}
    assert data.scan() == []
    sample = open_data(shared_data("imagenet-sample"), test=1, classes=[f"class {i}" for i in range(1000)])
    targets = sample.split("test").targets
    assert targets is not None
    assert targets.tolist() == list(range(0, 1000, 2))


def test_the_folder_is_opened_in_place(tmp_path: Path) -> None:
    path = zipped(tmp_path / "set.zip", classes_of())
    before = sorted(tmp_path.rglob("*"))
    data = open_data(path, test=1)
    shutil.rmtree(tmp_path / "nothing", ignore_errors=True)
    assert data.split("test").image(0).shape == (6, 5, 3)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file_that_is_no_data_does_not_open_what_lies_beside_it(tmp_path: Path) -> None:
    table = "".join(f"{i}.png,{'ab'[i % 2]}\n" for i in range(6))
    files = {f"{i}.png": png(i) for i in range(6)}
    folder = write(
        tmp_path / "set", files | {"labels.csv": f"file,label\n{table}".encode(), "notes.txt": b"x"}
    )
    assert len(open_data(folder / "labels.csv")) == 6
    assert "notes.txt' holds no data set" in problem(folder / "notes.txt")
