"""Decoding by content: every format against the pixels it was made of, and every refusal."""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

import corpus
from striate.core.errors import BadImage, StriateError
from striate.images.containers import declared
from striate.images.declared import Malformed
from striate.images.decode import Limits, decode, decode_index, header, to_image

PIXELS = corpus.picture()
IMAGE = Image.fromarray(PIXELS)
GOOD = corpus.good()


def luma(pixels: np.ndarray) -> np.ndarray:
    return np.rint(pixels @ np.array([0.299, 0.587, 0.114]))


LOSSLESS = ["png", "png-interlaced", "png-animated", "webp-animated", "bmp", "tiff", "tiff-lzw"]


@pytest.mark.parametrize("name", [*LOSSLESS, "tiff-pages", "tiff-big", "ppm"])
def test_lossless_formats_give_the_very_pixels(name: str) -> None:
    decoded = decode(GOOD[name])
    assert decoded.dtype == np.uint8
    assert decoded.flags.c_contiguous
    assert decoded.flags.writeable
    np.testing.assert_array_equal(decoded, PIXELS)


@pytest.mark.parametrize("name", sorted(GOOD))
def test_header_agrees_with_the_pixels(name: str) -> None:
    found, pixels = header(GOOD[name]), decode(GOOD[name])
    assert pixels.shape == (found.height, found.width, 3)
    assert (found.channels == 1) == bool((np.ptp(pixels.astype(int), axis=2) == 0).all())


@pytest.mark.parametrize("name", sorted(GOOD))
def test_grey_is_the_luma_of_the_colours(name: str) -> None:
    grey, colour = decode(GOOD[name], channels=1), decode(GOOD[name])
    assert grey.shape == (*colour.shape[:2], 1)
    # A JPEG's colours were clipped, its luma was not.
    assert abs(grey[..., 0] - luma(colour)).mean() < (2 if name.startswith("jpeg") else 0.6)


@pytest.mark.parametrize("name", ["jpeg", "jpeg-progressive", "jpeg-cmyk", "webp", "tiff-jpeg", "gif"])
def test_lossy_formats_come_close(name: str) -> None:
    assert abs(decode(GOOD[name]).astype(int) - PIXELS).mean() < 12


def test_the_name_of_a_file_says_nothing(tmp_path: Path) -> None:
    for suffix in (".jpg", ".gif", ".txt", ""):
        path = tmp_path / f"picture{suffix}"
        path.write_bytes(GOOD["png"])
        assert header(path).format == "PNG"
        np.testing.assert_array_equal(decode(str(path)), PIXELS)


def test_transparency_is_laid_on_white() -> None:
    alpha = PIXELS[..., 0].astype(float)[..., None] / 255
    expected = PIXELS * alpha + 255 * (1 - alpha)
    assert abs(decode(GOOD["png-alpha"]) - expected).max() <= 0.51
    np.testing.assert_array_equal(decode(GOOD["webp-lossless"]).shape, PIXELS.shape)


def test_a_transparent_palette_entry_and_colour_key_are_white() -> None:
    indices = np.array([[0, 1], [2, 3]], np.uint8)
    palette = Image.fromarray(indices).convert("P")
    palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120])
    pixels = decode(corpus.encoded(palette, "PNG", transparency=2))
    np.testing.assert_array_equal(pixels[1, 0], [255, 255, 255])
    np.testing.assert_array_equal(pixels[0, 1], [40, 50, 60])
    keyed = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8))
    np.testing.assert_array_equal(
        decode(corpus.encoded(keyed, "PNG", transparency=(1, 2, 3)))[0, 0], [255] * 3
    )
    grey = Image.fromarray(np.array([[7, 8]], np.uint8))
    assert decode(corpus.encoded(grey, "PNG", transparency=7))[0, :, 0].tolist() == [255, 8]


def test_sixteen_bits_are_divided_by_257() -> None:
    values = np.array([[0, 128, 129, 257, 385, 386, 65535]], np.uint16)
    for kind in ("PNG", "TIFF"):
        data = corpus.encoded(Image.fromarray(values), kind)
        assert decode(data)[0, :, 0].tolist() == [0, 0, 1, 1, 1, 2, 255]
    # By hand: two pixels of 16-bit RGB, big-endian; the high byte stays.
    rows = b"\0" + bytes([200, 1, 100, 2, 50, 3, 255, 255, 0, 0, 128, 128])
    assert decode(corpus.png(2, 1, rows, bits=16)).tolist() == [[[200, 100, 50], [255, 0, 128]]]


def test_sixteen_bits_are_divided_by_257_in_the_whole_range() -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    np.testing.assert_array_equal(to_image(values, channels=1)[..., 0], np.rint(values / 257))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(kind: str, orientation: int) -> None:
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    if kind == "TIFF":
        data = corpus.encoded(IMAGE, kind, tiffinfo={274: orientation})
    else:
        data = corpus.encoded(IMAGE, kind, exif=corpus.exif(orientation), **options)
    marked = Image.fromarray(PIXELS)
    marked.getexif()[0x112] = orientation
    expected = np.asarray(ImageOps.exif_transpose(marked))
    pixels, found = decode(data), header(data)
    assert pixels.shape == expected.shape
    assert abs(pixels.astype(int) - expected).max() <= (3 if kind == "JPEG" else 0)
    assert (found.height, found.width, found.orientation) == (*expected.shape[:2], orientation)
    opened = Image.open(io.BytesIO(data))
    assert abs(to_image(opened).astype(int) - pixels).max() <= 3


@pytest.mark.parametrize("block", [b"", b"Exif\0\0", corpus.exif(9), corpus.exif(0), corpus.exif(6)[:-9]])
def test_a_broken_exif_block_turns_nothing(block: bytes) -> None:
    assert decode(corpus.encoded(IMAGE, "JPEG", exif=block)).shape == PIXELS.shape


@given(st.integers(8, 90), st.integers(8, 90), st.integers(1, 100))
@settings(max_examples=60, deadline=None)
def test_a_scaled_jpeg_keeps_the_shorter_side_and_is_no_larger_than_needed(
    h: int, w: int, least: int
) -> None:
    data = simplejpeg.encode_jpeg(corpus.picture(h, w))
    pixels = decode(data, at_least=least)
    shorter = min(pixels.shape[:2])
    scale = next(n for n in (1, 2, 4, 8) if -(-h // n) == pixels.shape[0] and -(-w // n) == pixels.shape[1])
    assert shorter >= least or (scale == 1 and shorter == min(h, w))
    assert scale == 8 or -(-min(h, w) // (2 * scale)) < least


def test_a_scaled_jpeg_is_the_mean_of_its_blocks() -> None:
    large = corpus.picture(160, 240)
    data = simplejpeg.encode_jpeg(large, quality=98, colorsubsampling="444")
    small = decode(data, at_least=40)
    assert small.shape == (40, 60, 3)
    assert abs(small - large.reshape(40, 4, 60, 4, 3).mean((1, 3))).max() < 4
    turned = decode(corpus.encoded(Image.fromarray(large), "JPEG", exif=corpus.exif(6)), at_least=80)
    assert turned.shape == (120, 80, 3)


def test_scans_are_counted_only_where_there_can_be_many() -> None:
    whole = corpus.good()["jpeg"]
    frame = whole.index(b"\xff\xc0")
    remark = b"\xff\xfe" + (2 + 4000).to_bytes(2, "big") + b"\xff\xda" * 2000
    # In front of a plain picture's one scan, and after it: neither is a scan of it.
    assert declared(whole[:frame] + remark + whole[frame:]).working == 0
    begin = whole.index(b"\xff\xda")
    assert declared(whole[:begin] + remark + whole[begin:]).working == 0
    assert np.array_equal(decode(whole[:begin] + remark + whole[begin:]), decode(whole))
    # A first scan of one part of three: the others follow, and the decoder keeps all coefficients.
    header_of_one = b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00"
    parts = whole[:begin] + header_of_one * 3
    assert declared(parts).working > 0
    large = bytearray(whole[:begin] + header_of_one * 50)
    large[frame + 5 : frame + 9] = b"\x17\x70\x17\x70"
    with pytest.raises(Malformed, match="50 scans over 6000x6000"):
        declared(bytes(large))


def test_cmyk_jpegs_scale_too() -> None:
    data = corpus.encoded(Image.fromarray(corpus.picture(80, 120)).convert("CMYK"), "JPEG", quality=98)
    small = decode(data, at_least=40)
    assert small.shape == (40, 60, 3)
    assert abs(small - corpus.picture(80, 120).reshape(40, 2, 60, 2, 3).mean((1, 3))).mean() < 3


@pytest.mark.parametrize(
    "name", [name for name in sorted(GOOD) if "digits" not in name and "fax" not in name]
)
def test_files_cut_in_half_are_refused(name: str) -> None:
    data = GOOD[name]
    with pytest.raises(BadImage, match="cannot decode"):
        decode(data[: len(data) // 2 if "pages" not in name and "animated" not in name else len(data) // 8])


def test_jpegs_cut_by_their_last_bytes_are_refused() -> None:
    for cut in (1, 2, 40):
        with pytest.raises(BadImage, match="JPEG"):
            decode(GOOD["jpeg"][:-cut])
    # Bytes after the end, as cameras append them, harm nothing.
    assert decode(GOOD["jpeg"] + b"tail").shape == PIXELS.shape


def test_every_source_that_is_no_image_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "page.jpg").write_bytes(b"<!DOCTYPE html><html></html>")
    os.mkfifo(tmp_path / "pipe.png")
    sources = {
        "empty.png": "is empty",
        "page.jpg": "HTML",
        "pipe.png": "not a regular",
        "none.png": "No such",
    }
    for name, reason in sources.items():
        for read in (decode, header, decode_index):
            with pytest.raises(BadImage, match=reason) as caught:
                read(tmp_path / name)
            assert name in str(caught.value)
    for source in (tmp_path, "/dev/zero", "nul\0character.png", b"", b"\x89PNG\r\n\x1a\n"):
        with pytest.raises(BadImage):
            decode(source)


def test_limits_hold_before_anything_is_decoded(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(GOOD["png"])
    for limits, reason in [
        (Limits(max_bytes=100), "bytes"),
        (Limits(max_pixels=24 * 37 - 1), "37x24 pixels"),
        (Limits(max_memory=5000), "to decode"),
    ]:
        for source in (path, GOOD["png"]):
            with pytest.raises(BadImage, match=reason):
                decode(source, limits=limits)
    assert decode(path, limits=Limits(max_pixels=24 * 37)).shape == PIXELS.shape


def test_numbers_without_a_fixed_range_are_refused() -> None:
    for values in (np.ones((4, 4), np.float32), np.ones((4, 4), np.int32)):
        with pytest.raises(BadImage, match="no fixed range"):
            decode(corpus.encoded(Image.fromarray(values), "TIFF"))


def test_wide_profiles_and_texts_do_not_stand_in_the_way() -> None:
    bombs = corpus.bombs()
    assert not decode(bombs["png-profile"]).any()
    assert not decode(bombs["png-text"]).any()
    np.testing.assert_array_equal(decode(bombs["gif-comment"]), decode(GOOD["gif"]))


def test_every_netpbm_kind_by_hand() -> None:
    assert decode(b"P1 3 2 1 0 1\n010")[..., 0].tolist() == [[0, 255, 0], [255, 0, 255]]
    assert decode(b"P4\n3 2\n\xa0\x40")[..., 0].tolist() == [[0, 255, 0], [255, 0, 255]]
    assert decode(GOOD["pgm-digits"])[..., 0].tolist() == [[0, 85, 170], [255, 17, 34]]
    assert decode(b"P5 2 1 65535 \x01\x01\xff\xff")[..., 0].tolist() == [[1, 255]]
    assert decode(b"P5 2 1 100 \x32\x64")[..., 0].tolist() == [[128, 255]]
    assert decode(b"P3 1 1 255 1 2 3").tolist() == [[[1, 2, 3]]]
    assert decode(b"P6#c\n1 1\n#d\n255\n\x01\x02\x03").tolist() == [[[1, 2, 3]]]
    for broken in (
        b"P5 2 2 255 \0",
        b"P2 2 2 255 1 2 3",
        b"P2 1 1 255 x",
        b"P5 1 1 0 \0",
        b"P5 1 1 70000 \0\0",
    ):
        with pytest.raises(BadImage):
            decode(broken)


def test_index_masks_keep_their_numbers() -> None:
    indices = np.arange(12, dtype=np.uint8).reshape(3, 4)
    palette = Image.fromarray(indices).convert("P")
    palette.putpalette(list(range(36))[::-1])
    deep = Image.fromarray(indices.astype(np.uint16) * 5000)
    for image, expected in (
        (palette, indices),
        (Image.fromarray(indices), indices),
        (deep, indices.astype(int) * 5000),
    ):
        for kind in ("PNG", "TIFF"):
            mask = decode_index(corpus.encoded(image, kind))
            assert mask.dtype == np.int32
            np.testing.assert_array_equal(mask, expected)
    assert (
        decode_index(corpus.encoded(Image.fromarray(indices > 5), "PNG")).tolist() == (indices > 5).tolist()
    )
    # Two bits of grey: 0, 1, 2, 3 in one byte.
    assert decode_index(corpus.png(4, 1, b"\0\x1b", bits=2, colour=0)).tolist() == [[0, 1, 2, 3]]
    for name in ("png", "png-alpha", "jpeg-grey", "webp"):
        with pytest.raises(BadImage, match="class numbers"):
            decode_index(GOOD[name])


@pytest.mark.parametrize(("bits", "row"), [(1, 0b10100000), (2, 0b00011011), (4, 0x1F), (8, 7)])
@pytest.mark.parametrize("photometric", [0, 1])
def test_masks_in_tiff_hold_what_is_stored(bits: int, row: int, photometric: int) -> None:
    width = 8 // bits
    tags = {256: width, 257: 1, 258: bits, 259: 1, 262: photometric, 273: 122, 277: 1, 278: 1, 279: 1}
    file = corpus.tiff([(tag, 4, 1, value) for tag, value in tags.items()], bytes([row]))
    stored = [row >> 8 - bits * (i + 1) & (1 << bits) - 1 for i in range(width)]
    assert decode_index(file).tolist() == [stored]


@pytest.mark.parametrize(
    ("file", "stored"),
    [
        (b"P2\n3 1\n2\n0 1 2\n", [0, 1, 2]),
        (b"P5\n3 1\n2\n\0\1\2", [0, 1, 2]),
        (b"P5\n2 1\n300\n\1\0\0\7", [256, 7]),
        (b"P1\n3 1\n0 1 1\n", [0, 1, 1]),
        (b"P4\n3 1\n\x60", [0, 1, 1]),
    ],
)
def test_masks_of_netpbm_hold_what_is_stored(file: bytes, stored: list[int]) -> None:
    assert decode_index(file).tolist() == [stored]


def test_every_form_of_an_image_gives_the_same(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(GOOD["png"])
    opaque = np.dstack([PIXELS, np.full(PIXELS.shape[:2], 255, np.uint8)])
    forms = [path, str(path), GOOD["png"], bytearray(GOOD["png"]), memoryview(GOOD["png"])]
    forms += [
        PIXELS,
        PIXELS.astype(np.uint16) * 257,
        opaque,
        IMAGE,
        IMAGE.convert("RGBA"),
        PIXELS[:, ::-1][:, ::-1],
    ]
    for form in forms:
        np.testing.assert_array_equal(to_image(form), PIXELS)
        assert to_image(form, channels=1).shape == (24, 37, 1)
    grey = PIXELS[..., 0]
    for form in (grey, grey[..., None], Image.fromarray(grey)):
        np.testing.assert_array_equal(to_image(form, channels=1)[..., 0], grey)
        np.testing.assert_array_equal(to_image(form), np.dstack([grey] * 3))


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (PIXELS / 255.0, "multiply"),
        (PIXELS.astype(np.int64), "astype"),
        (PIXELS.transpose(2, 0, 1), "transpose"),
        (np.zeros((0, 4, 3), np.uint8), "no pixels"),
        (np.zeros(9, np.uint8), "shape"),
        (17, "int"),
        (None, "NoneType"),
    ],
)
def test_other_arrays_are_refused_with_what_to_do(value: object, hint: str) -> None:
    with pytest.raises(BadImage, match=hint):
        to_image(value)


def test_channels_are_one_or_three() -> None:
    with pytest.raises(StriateError, match="channels is 4"):
        decode(GOOD["png"], channels=4)


def test_threads_decode_alike_and_without_a_word() -> None:
    names = sorted(GOOD) * 4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda name: decode(GOOD[name]), names))
    for name, pixels in zip(names, found, strict=True):
        np.testing.assert_array_equal(pixels, decode(GOOD[name]))


@given(st.binary(max_size=300), st.sampled_from(sorted(GOOD)), st.integers(0, 200))
@settings(max_examples=150, deadline=None)
def test_any_bytes_are_decoded_or_refused(noise: bytes, name: str, keep: int) -> None:
    for read in (decode, header, decode_index):
        with contextlib.suppress(BadImage):
            assert read(GOOD[name][:keep] + noise) is not None
