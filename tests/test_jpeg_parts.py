"""JPEG decoded little more than is looked at: the same bytes in any coding; damage is found once."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from image_sets import coded
from striate.data.augment import parse
from striate.data.pools import FilePool
from striate.data.preprocess import Preprocess
from striate.data.reader import Reader
from striate.data.samples import Split
from striate.images import jpeg
from striate.images.containers import declared
from striate.images.decode import decode
from striate.images.jpeg import Look
from striate.images.tiles import cut


def picture(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth colours with noise on them."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = np.stack([np.sin(x / 7 + y / 5), np.cos(x / 11), np.sin(y / 3)], -1) * 90 + 128
    return np.clip(waves + rng.normal(0, 12, waves.shape), 0, 255).astype(np.uint8)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 150),
    st.integers(1, 90),
    st.sampled_from([0, 1, 2]),
    st.sampled_from([1, 3]),
    st.sampled_from([None, 8, 20]),
    st.integers(0, 60),
    st.data(),
)
def test_the_box_is_exact(
    height: int,
    width: int,
    sampling: int,
    channels: int,
    at_least: int | None,
    restart: int,
    data: st.DataObject,
) -> None:
    options = {"subsampling": sampling, "quality": 85, "restart_marker_blocks": restart}
    file = coded(picture(height, width), **options)
    whole = decode(file, at_least=at_least, channels=channels)
    x0, x1 = sorted(data.draw(st.integers(0, whole.shape[1])) for _ in range(2))
    y0, y1 = sorted(data.draw(st.integers(0, whole.shape[0])) for _ in range(2))
    look = at((x0, y0, x1, y1))
    part = decode(file, at_least=at_least, channels=channels, look=look)
    assert (look.size or part.shape[:2]) == whole.shape[:2]
    assert look.x <= x0
    assert look.y <= y0
    box = part[y0 - look.y : y1 - look.y, x0 - look.x : x1 - look.x]
    np.testing.assert_array_equal(box, whole[y0:y1, x0:x1])


def at(box: tuple[int, int, int, int]) -> Look:
    """A look at a fixed box."""
    return Look(lambda height, width: box)


def test_decodes_less(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def spy(data: bytes, **options: object) -> object:
        sizes.append(Image.open(io.BytesIO(bytes(data))).size)
        return real(data, **options)

    real = jpeg.simplejpeg.decode_jpeg
    monkeypatch.setattr(jpeg.simplejpeg, "decode_jpeg", spy)
    image = picture(200, 64)
    file = coded(image, subsampling=2)
    decode(file, look=at((0, 0, 9, 31)))
    assert sizes == [(64, 32)]
    decode(file, look=at((40, 20, 50, 32)))
    decode(file, look=at((40, 20, 50, 193)))
    assert sizes[1:] == [(64, 48), (64, 200)]
    tiles = coded(image, subsampling=2, restart_marker_blocks=2)
    decode(tiles, look=at((36, 20, 50, 30)))
    decode(tiles, look=at((2, 16, 30, 199)))  # colours from two pixels beside
    assert sizes[3:] == [(32, 16), (32, 200)]
    rows = coded(image, subsampling=2, restart_marker_rows=3)
    decode(rows, look=at((36, 50, 50, 94)))
    askew = coded(image, subsampling=2, restart_marker_blocks=3)
    decode(askew, look=at((36, 50, 50, 90)))
    assert sizes[5:] == [(64, 48), (64, 96)]


def test_marks_that_are_not_there_are_not_missed() -> None:
    file = coded(picture(96, 96), subsampling=2, restart_marker_blocks=2)
    fewer = file.replace(b"\xff\xd3", b"", 1)
    info = declared(fewer)
    assert info.scan is not None
    assert cut(fewer, info.scan, (96, 96), (0, 0, 20, 20)) is None


def test_progressive_turned_and_other_files_come_whole() -> None:
    image = picture(120, 40)
    exif = Image.Exif()
    exif[0x112] = 6
    files = [coded(image, progressive=True), coded(image, exif=exif)]
    png = io.BytesIO()
    Image.fromarray(image).save(png, "PNG")
    for file in (*files, png.getvalue()):
        np.testing.assert_array_equal(decode(file, look=at((0, 0, 40, 8))), decode(file))


def folder_split(folder: Path, files: list[bytes]) -> Split:
    """Files as a training split of two classes."""
    for i, file in enumerate(files):
        (folder / f"{i}.jpg").write_bytes(file)
    names = [f"{i}.jpg" for i in range(len(files))]
    rows = np.arange(len(files))
    return Split("train", FilePool(folder, names), rows, rows % 2)


@pytest.mark.parametrize(
    "augment",
    ["random-resized-crop", "random-resized-crop+flip", "random-resized-crop+flip+colour",
     "scale-jitter(36,50)+flip", "random-resized-crop+affine(rotate=20)"],
)  # fmt: skip
@pytest.mark.parametrize("channels", [1, 3])
def test_views_are_those_of_the_whole_image(tmp_path: Path, augment: str, channels: int) -> None:
    files = [coded(picture(90 + 7 * i, 130, i), subsampling=2, restart_marker_blocks=i % 3) for i in range(6)]
    preprocess = Preprocess(size=(32, 32), channels=channels, mean=(0.5,) * channels, std=(0.2,) * channels)
    split, pipeline = folder_split(tmp_path, files), parse(augment)
    reader = Reader(split, preprocess, pipeline, 0, True)
    for epoch in range(5):
        u = reader.draw(epoch, reader.order(epoch))
        frames = pipeline.frames(u, 32, 32)
        for row, number in enumerate(reader.order(epoch)):
            frame = None if frames is None else frames[row]
            seen, _ = reader.sample(int(number), u[row], frame)
            whole = split.image(
                int(number), at_least=pipeline.at_least(u[row], preprocess), channels=channels
            )
            np.testing.assert_array_equal(seen, pipeline.view(whole, u[row], preprocess, frame))
    assert reader._sound.all()


def test_damage_is_the_files_not_the_crops(tmp_path: Path) -> None:
    good = coded(picture(160, 60), subsampling=2)
    cut = good[: len(good) * 3 // 4]
    preprocess = Preprocess(size=(16, 16), channels=3, mean=(0.5,) * 3, std=(0.2,) * 3)
    reader = Reader(
        folder_split(tmp_path, [good, cut, good]), preprocess, parse("random-resized-crop"), 3, True
    )
    for epoch in range(3):
        part = reader.read(epoch, 0, reader.draw(epoch, reader.order(epoch)))
        assert 1 not in part.numbers
    assert list(reader.bad) == [1]
