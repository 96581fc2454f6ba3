"""JPEG files rewritten with restart markers: the bytes that another encoder writes; the same pixels."""

from __future__ import annotations

import io
import json
import os
import struct
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from image_sets import coded
from striate import cli
from striate.core.errors import StriateError
from striate.data.prepare import KEPT, prepare, prepared
from striate.images.containers import declared
from striate.images.decode import decode
from striate.images.huffman import Damaged, Table
from striate.images.jpeg import Look
from striate.images.restarts import FEWEST, MOST_GROWTH, interval, with_restarts
from striate.images.tiles import tile_lengths


def picture(height: int, width: int, noise: float = 12.0) -> NDArray[np.uint8]:
    """Waves with noise on them."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    waves = np.stack([np.sin(x / 7 + y / 5), np.cos(x / 11), np.sin(y / 3)], -1) * 90 + 128
    return np.clip(waves + rng.normal(0, noise, waves.shape), 0, 255).astype(np.uint8)


def rewritten(data: bytes) -> bytes:
    """With restart markers."""
    return with_restarts(data, declared(data))


def from_scan(data: bytes) -> bytes:
    """The coded data."""
    scan = declared(data).scan
    assert scan is not None
    return data[scan.at :]


@settings(max_examples=40, deadline=None)
@given(
    st.integers(60, 300),
    st.integers(60, 300),
    st.sampled_from([0, 1, 2, "grey"]),
    st.sampled_from([5, 60, 95, 100]),
    st.sampled_from([0, 1, 3, 7]),
    st.sampled_from([0.0, 30.0]),
)
def test_bytes_are_those_of_another_encoder(
    height: int, width: int, sampling: int | str, quality: int, before: int, noise: float
) -> None:
    """libjpeg codes the same picture with and without markers: it must be what the rewriting gives."""
    image = picture(height, width, noise)
    image, options = (image[..., 0], {}) if sampling == "grey" else (image, {"subsampling": sampling})
    file = coded(image, quality=quality, restart_marker_blocks=before, **options)
    scan = declared(file).scan
    assert scan is not None
    across, down = -(-width // scan.columns), -(-height // scan.lines)
    wanted = interval(across, scan.columns)
    other = coded(image, quality=quality, restart_marker_blocks=wanted, **options)
    if rewritten(file) is file:
        listed = 2 * (-(-across * down // wanted)) + 18
        assert across * down < FEWEST or len(other) + listed > MOST_GROWTH * len(file)
        return
    assert from_scan(rewritten(file)) == from_scan(other)
    new, there = declared(rewritten(file)), declared(other)
    assert new.scan is not None
    assert there.scan is not None
    assert new.scan.index[1] == -(-across * down // wanted)
    assert replace(new, scan=replace(new.scan, index=(0, 0), at=there.scan.at)) == there
    listed = tile_lengths(rewritten(file), new.scan, new.scan.index[1])
    found = tile_lengths(rewritten(file), replace(new.scan, index=(0, 0)), new.scan.index[1])
    np.testing.assert_array_equal(listed, found)


@pytest.mark.parametrize("sampling", [0, 1, 2])
def test_tables_that_lack_codes_are_extended(sampling: int) -> None:
    # Optimised tables of a smooth picture have no codes for the large differences that stand for themselves.
    image = picture(200, 320, 0)
    file = coded(image // 16 + 200, subsampling=sampling, quality=98, optimize=True)
    new = rewritten(file)
    assert new != file
    assert len(new) > len(file)
    np.testing.assert_array_equal(decode(new), decode(file))
    look = Look(lambda height, width: (200, 90, 260, 150))
    part = decode(new, look=look)
    assert part.size < decode(new).size / 3
    box = part[90 - look.y : 150 - look.y, 200 - look.x : 260 - look.x]
    np.testing.assert_array_equal(box, decode(file)[90:150, 200:260])
    assert rewritten(new) is new


def test_new_codes_leave_old_ones_alone() -> None:
    table = Table(bytes([0, 1, 2, 3, *[0] * 12]), bytes([3, 1, 2, 4, 5, 0]))
    more = table.with_symbols({3, 7, 9})
    assert {s: more.codes[s] for s in table.codes} == table.codes
    texts = [format(code, f"0{bits}b") for code, bits in more.codes.values()]
    assert len(texts) == 8
    assert not any(a != b and b.startswith(a) for a in texts for b in texts)
    assert not any(set(text) == {"1"} for text in texts)
    with pytest.raises(Damaged, match="no room"):
        Table(bytes([*[0] * 14, 1, 0]), bytes([0])).with_symbols({1, 2})


@pytest.mark.parametrize("sampling", [1, 2])
@pytest.mark.parametrize("at_least", [None, 20])
def test_narrow_parts_at_the_edges_have_the_pixels_of_the_whole(sampling: int, at_least: int | None) -> None:
    """The decoder does not smooth the colours of four columns and fewer: such parts are not decoded alone."""
    for width in range(97, 113):
        file = rewritten(coded(picture(160, width, 40.0), subsampling=sampling))
        whole = decode(file, at_least=at_least)
        for x in (0, whole.shape[1] - 2):
            look = Look(lambda height, width, x=x: (x, 10, x + 2, 30))
            part = decode(file, at_least=at_least, look=look)
            box = part[10 - look.y : 30 - look.y, x - look.x : x + 2 - look.x]
            np.testing.assert_array_equal(box, whole[10:30, x : x + 2])


def test_files_that_would_grow_much_stay() -> None:
    file = coded(picture(600, 600, 0.0)[..., 0], quality=5)
    assert rewritten(file) is file


def test_what_is_not_pixels_is_kept() -> None:
    exif = Image.Exif()
    exif[0x112] = 6
    file = coded(picture(200, 320), exif=exif, comment=b"by hand", icc_profile=b"a profile") + b"a film"
    new = rewritten(file)
    assert new.endswith(b"\xff\xd9a film")
    with Image.open(io.BytesIO(new)) as shown:
        assert shown.getexif()[0x112] == 6
        assert (shown.info["comment"], shown.info["icc_profile"]) == (b"by hand", b"a profile")
    np.testing.assert_array_equal(decode(new), decode(file))


def test_what_cannot_be_rewritten_says_why() -> None:
    image = picture(200, 320)
    whole = coded(image)
    scan = declared(whole).scan
    assert scan is not None
    cmyk = io.BytesIO()
    Image.fromarray(image).convert("CMYK").save(cmyk, "JPEG")
    flat = bytearray(whole)
    struct.pack_into(">H", flat, scan.size_at, 900)
    for data, reason in [
        (coded(image, progressive=True), "several scans"),
        (cmyk.getvalue(), "four colours"),
        (whole[:-600], "end mark"),
        (whole[:-600] + b"\xff\xd9", "too early|no code|do not end|64 values"),
        (bytes(flat), "too early|no code|64 values"),
    ]:
        with pytest.raises(Damaged, match=reason):
            rewritten(data)
        assert prepared(data)[1] == data


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 5000), st.binary(min_size=1, max_size=4))
def test_damage_never_gets_further(place: int, junk: bytes) -> None:
    """Any bytes overwritten: refused, or written with the pixels that the decoder sees."""
    file = bytearray(coded(picture(96, 160), subsampling=2, optimize=True))
    place = 2 + place % (len(file) - 8)
    file[place : place + len(junk)] = junk
    kind, new = prepared(bytes(file))
    if kind == "rewritten":
        np.testing.assert_array_equal(decode(new), decode(bytes(file)))
    else:
        assert new == bytes(file)


def test_a_folder_is_prepared_and_goes_on(tmp_path: Path) -> None:
    source, out = tmp_path / "photos", tmp_path / "ready"
    (source / "a").mkdir(parents=True)
    (source / "empty").mkdir()
    files = {
        "a/1.jpg": coded(picture(200, 320)),
        "a/2.JPEG": coded(picture(200, 320), progressive=True),
        "a/3.jpg": coded(picture(20, 30)),
        "a/4.png": b"no picture at all",
        "labels.csv": b"name,label\n",
    }
    for name, data in files.items():
        (source / name).write_bytes(data)
    result = prepare(source, out, workers=1)
    assert (result.rewritten, result.fit, result.copied, result.found) == (1, 1, 2, 0)
    assert result.left == ["a/2.JPEG"]
    assert "several scans" in result.lines()[-1]
    for name, data in files.items():
        new = (out / name).read_bytes()
        assert (new != data) == (name == "a/1.jpg")
    assert (out / "empty").is_dir()
    np.testing.assert_array_equal(decode(out / "a/1.jpg"), decode(source / "a/1.jpg"))
    again = prepare(source, out, workers=1)
    assert (again.rewritten, again.fit, again.copied, again.found) == (0, 0, 0, 5)
    assert again.left == ["a/2.JPEG"]
    # Of a killed run: a file that is missing, one half-written, and half a line of the list.
    (out / "a/3.jpg").unlink()
    (out / "a/.1.jpg.abc.tmp").write_bytes(b"half")
    with open(out / KEPT, "a") as kept:
        kept.write('["a/9.jpg", "rewr')
    # Another picture of the same name is written, however old it is; what is gone is told.
    (source / "a/1.jpg").write_bytes(coded(picture(200, 320, 40.0)))
    os.utime(source / "a/1.jpg", (0, 0))
    (source / "labels.csv").unlink()
    last = prepare(source, out, workers=1)
    assert (last.rewritten, last.fit, last.copied, last.found) == (1, 1, 0, 2)
    assert last.gone == ["labels.csv"]
    assert "labels.csv" in last.lines()[-1]
    np.testing.assert_array_equal(decode(out / "a/1.jpg"), decode(source / "a/1.jpg"))
    assert not list(out.rglob("*.tmp"))


def test_the_verb_prepares_a_folder_and_says_what_it_did(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "photos" / "a", tmp_path / "ready"
    source.mkdir(parents=True)
    (source / "1.jpg").write_bytes(coded(picture(200, 320)))
    (source / "2.png").write_bytes(b"no picture at all")
    words = ["data", "prepare", str(source.parent), "--out", str(out), "--workers", "1"]
    assert cli.main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["out"], told["rewritten"], told["copied"], told["found"]) == (str(out), 1, 1, 0)
    assert (out / "a/1.jpg").read_bytes() != (source / "1.jpg").read_bytes()
    np.testing.assert_array_equal(decode(out / "a/1.jpg"), decode(source / "1.jpg"))
    assert cli.main(words) == 0
    assert "there already: 2 files" in capsys.readouterr().out


def test_one_name_that_cannot_be_written_does_not_stop_the_others(tmp_path: Path) -> None:
    archive = tmp_path / "odd.zip"
    with zipfile.ZipFile(archive, "w") as odd:
        odd.writestr("c0/x", b"a file")
        odd.writestr("c0/x/y.jpg", coded(picture(20, 30)))
        odd.writestr("c0/z.jpg", coded(picture(200, 320)))
        odd.writestr(f"c0/{'n' * 250}.jpg", coded(picture(200, 320)))
    result = prepare(archive, tmp_path / "out", workers=1)
    assert result.rewritten == 2 - ("n" * 250 + ".jpg" in {Path(name).name for name in result.left})
    assert "x" in result.left
    assert (tmp_path / "out/z.jpg").is_file()


def test_places_that_cannot_be(tmp_path: Path) -> None:
    source = tmp_path / "photos"
    source.mkdir()
    (source / "notes.txt").write_text("nothing")
    with pytest.raises(StriateError, match="holds no images"):
        prepare(source, tmp_path / "out")
    (source / "1.jpg").write_bytes(coded(picture(200, 320)))
    (source / "inner").mkdir()
    (source / "inner" / "2.jpg").write_bytes(coded(picture(200, 320)))
    (tmp_path / "linked").mkdir()
    (source / "link").symlink_to(tmp_path / "linked")
    for out in (source, source / "out", tmp_path, tmp_path / "linked", tmp_path / "linked" / "out"):
        with pytest.raises(StriateError, match="lies in the data"):
            prepare(source, out)
    (source / "link").unlink()
    (tmp_path / "linked" / "mine.txt").write_text("of the user")
    with pytest.raises(StriateError, match="holds other files"):
        prepare(source, tmp_path / "linked")
    with pytest.raises(StriateError, match="is a file"):
        prepare(source, source / "notes.txt")
    with pytest.raises(StriateError, match="not a folder or archive"):
        prepare(source / "1.jpg", tmp_path / "out")
