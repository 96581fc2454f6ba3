"""Boxes written into a clean map around them, against loops over the copies."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from striate.visualize.boxes import Boxes, Span, fill, gather, joined, runs

SIZE = 9


def picture(channels: int, seed: int = 0) -> Tensor:
    """A map (C, 9, 9) of different numbers."""
    torch.manual_seed(seed)
    return torch.randn(channels, SIZE, SIZE)


def changed(clean: Tensor, value: Tensor, row: int, column: int) -> Tensor:
    """The map with a box written into it, cut at the border."""
    found = clean.clone()
    for y in range(value.shape[1]):
        for x in range(value.shape[2]):
            if 0 <= row + y < SIZE and 0 <= column + x < SIZE:
                found[:, row + y, column + x] = value[:, y, x]
    return found


@given(data=st.data())
def test_boxes_in_their_surroundings(data: st.DataObject) -> None:
    number = st.integers(0, SIZE - 4)
    count, pad = data.draw(st.integers(1, 5), "copies"), data.draw(st.integers(0, 2), "pad")
    places = st.lists(number, min_size=count, max_size=count).map(np.array)
    y, x, box_y, box_x = (data.draw(places, name) for name in ("y", "x", "box y", "box x"))
    high, wide = data.draw(st.integers(1, 4), "height"), data.draw(st.integers(1, 4), "width")
    values = torch.randn(count, 2, high, wide)
    clean = picture(2)
    padded = torch.nn.functional.pad(clean, (pad,) * 4)
    boxes = Boxes(values, Span(box_y, high), Span(box_x, wide))
    rows, columns = Span(y - pad, 4), Span(x - pad, 4)
    found = fill(torch.full((count, 2, 4, 4), torch.nan), padded, rows, columns, boxes, pad, pad)
    for k in range(count):
        whole = changed(clean, values[k], box_y[k], box_x[k])
        whole = torch.nn.functional.pad(whole, (pad,) * 4)
        assert torch.equal(found[k], whole[:, y[k] : y[k] + 4, x[k] : x[k] + 4])


def test_channels_of_several_maps_side_by_side() -> None:
    maps = [picture(1, 1), picture(3, 2)]
    y, x = Span(np.array([2, 2, 0]), 4), Span(np.array([1, 1, 5]), 4)
    parts = [
        Boxes(gather(maps[0], y, x) + 1, y, x),
        Boxes(torch.randn(3, 3, 2, 2), Span(np.array([3, 3, 1]), 2), Span(np.array([2, 3, 6]), 2)),
    ]
    found = joined(maps, parts, y, x)
    for k in range(3):
        each = [
            changed(clean, part.values[k], part.y.start[k], part.x.start[k])
            for clean, part in zip(maps, parts, strict=True)
        ]
        row, column = y.start[k], x.start[k]
        assert torch.equal(found[k], torch.cat(each)[:, row : row + 4, column : column + 4])


def test_neighbouring_copies_at_one_place() -> None:
    found = list(runs(np.array([3, 3, 3, 5, 3]), np.array([1, 1, 2, 2, 2])))
    assert found == [
        (slice(0, 2), [3, 1]),
        (slice(2, 3), [3, 2]),
        (slice(3, 4), [5, 2]),
        (slice(4, 5), [3, 2]),
    ]
    assert list(runs(np.array([7]))) == [(slice(0, 1), [7])]
