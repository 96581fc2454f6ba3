"""Crops resampled into given memory: against Pillow's filter, mirrored, in grey, and without vectors."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from striate.data import crops
from striate.data.augment import parse
from striate.data.preprocess import Preprocess
from striate.images import geometry

RNG = np.random.default_rng(5)
PICTURE = RNG.integers(0, 256, (90, 120, 3), dtype=np.uint8)
BOXES = [(0, 0, 120, 90), (3, 7, 20, 30), (11, 2, 118, 34), (40, 20, 72, 44), (5, 5, 6, 90)]
SIZE = (24, 32)


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("channels", [1, 3])
def test_is_pillows_antialiased_bilinear(
    box: tuple[int, int, int, int], channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crops, "EXACT", True)
    image = np.ascontiguousarray(PICTURE[..., :channels])
    x0, y0, x1, y1 = box
    part = image[y0:y1, x0:x1]
    picture = Image.fromarray(part[..., 0] if channels == 1 else part)
    wanted = np.asarray(picture.resize(SIZE[::-1], Image.Resampling.BILINEAR)).reshape(*SIZE, channels)
    seen = crops.crop_view(image, box, SIZE, False)
    assert np.abs(seen.astype(int) - wanted).max() <= 1
    stack = np.zeros((3, *SIZE, channels), dtype=np.uint8)
    crops.crop_view(image, box, SIZE, True, stack[1])
    np.testing.assert_array_equal(stack[1], seen[:, ::-1])
    assert not stack[[0, 2]].any()


def test_without_vectors_it_is_the_warps_bilinear(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crops, "EXACT", False)
    for box in BOXES:
        for turned in (False, True):
            out = np.empty((*SIZE, 3), dtype=np.uint8)
            crops.crop_view(PICTURE, box, SIZE, turned, out)
            wanted = geometry.warp(PICTURE, geometry.crop_resize(box, SIZE), SIZE, "bilinear")
            np.testing.assert_array_equal(out, wanted[:, ::-1] if turned else wanted)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("random-resized-crop", False), ("random-resized-crop+flip(1)", True),
     ("random-resized-crop+flip(0)", False), ("random-resized-crop+vertical-flip(1)", None),
     ("random-resized-crop+lens", None), ("random-resized-crop+flip(1)+flip(1)", False)],
)  # fmt: skip
def test_mirrored_says_what_happens_to_a_view(text: str, wanted: bool | None) -> None:
    pipeline = parse(text)
    u = pipeline.draw(0, 0, [3])
    assert pipeline.mirrored(u[0], SIZE) is wanted
    frames = pipeline.frames(u, *SIZE)
    assert pipeline.mirrored(u[0], SIZE, None if frames is None else frames[0]) is wanted


def test_a_mirrored_crop_is_the_mirrored_view_of_the_crop() -> None:
    preprocess = Preprocess(size=SIZE)
    plain, turned = parse("random-resized-crop"), parse("random-resized-crop+flip(1)")
    u = turned.draw(1, 0, range(5))
    for row in u:
        seen = turned.view(PICTURE, row, preprocess)
        np.testing.assert_array_equal(seen, plain.view(PICTURE, row[: plain.draws], preprocess)[:, ::-1])
