"""JPEG decoded only as far down as it is looked at: the same bytes in any coding; damage is found once."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from striate.data.augment import parse
from striate.data.pools import FilePool
from striate.data.preprocess import Preprocess
from striate.data.reader import Reader
from striate.data.samples import Split
from striate.images import jpeg
from striate.images.decode import decode


def picture(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth colours with noise on them."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = np.stack([np.sin(x / 7 + y / 5), np.cos(x / 11), np.sin(y / 3)], -1) * 90 + 128
    return np.clip(waves + rng.normal(0, 12, waves.shape), 0, 255).astype(np.uint8)


def coded(image: NDArray[np.uint8], **options: object) -> bytes:
    """As JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", **options)
    return buffer.getvalue()


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
def test_upper_rows_are_exact(
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
    wanted = data.draw(st.integers(0, len(whole)))
    partly = decode(file, at_least=at_least, channels=channels, rows=lambda *_: wanted)
    assert partly.shape == whole.shape
    np.testing.assert_array_equal(partly[:wanted], whole[:wanted])


def test_decodes_less(monkeypatch: pytest.MonkeyPatch) -> None:
    heights = []

    def spy(data: bytes, **options: object) -> object:
        heights.append(Image.open(io.BytesIO(bytes(data))).height)
        return real(data, **options)

    real = jpeg.simplejpeg.decode_jpeg
    monkeypatch.setattr(jpeg.simplejpeg, "decode_jpeg", spy)
    file = coded(picture(200, 60), subsampling=2)
    decode(file, rows=lambda height, width: 31 if (height, width) == (200, 60) else 0)
    assert heights == [32]
    decode(file, rows=lambda height, width: 32)
    decode(file, rows=lambda height, width: 193)
    assert heights == [32, 48, 200]


def test_progressive_turned_and_other_files_come_whole() -> None:
    image = picture(120, 40)
    exif = Image.Exif()
    exif[0x112] = 6
    files = [coded(image, progressive=True), coded(image, exif=exif)]
    png = io.BytesIO()
    Image.fromarray(image).save(png, "PNG")
    for file in (*files, png.getvalue()):
        np.testing.assert_array_equal(decode(file, rows=lambda *_: 8), decode(file))


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
    files = [coded(picture(90 + 7 * i, 130, i), subsampling=2) for i in range(6)]
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
