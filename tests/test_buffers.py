"""Buffers are handed out again only when nothing shares their memory."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest
import torch

from striate.core.errors import StriateError
from striate.data.buffers import KEPT, Buffers, can_share, opened


def test_used_again_when_all_views_are_gone() -> None:
    buffers = Buffers()
    first = buffers.take(12)
    place = first.data_ptr()
    held = first.view(3, 4).permute(1, 0)[2:]
    del first
    other = buffers.take(12)
    assert other.data_ptr() != place
    held.fill_(7)
    other.zero_()
    assert (held == 7).all()
    del held
    assert buffers.take(8).data_ptr() == place


def test_gradients_hold_their_input() -> None:
    buffers = Buffers()
    images = buffers.take(6).fill_(2.0)
    weight = torch.ones(6, requires_grad=True)
    loss = (images * weight).sum()
    del images
    buffers.take(6).fill_(5.0)
    loss.backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [2.0] * 6


def test_grows_and_stays_bounded() -> None:
    buffers = Buffers()
    assert buffers.take(4).numel() == 4
    assert buffers.take(9).numel() == 9
    held = [buffers.take(9) for _ in range(2 * KEPT)]
    assert len({tensor.data_ptr() for tensor in held}) == 2 * KEPT
    assert len(buffers._arrays) <= KEPT


@pytest.mark.skipif(not can_share(), reason="no memory that processes can share here")
def test_another_process_writes_into_shared_buffers() -> None:
    buffers = Buffers(shared=True)
    held = [buffers.take(1000).zero_() for _ in range(2)]
    number, path = buffers.name_of(held[1])
    assert number != buffers.name_of(held[0])[0]
    program = f"from striate.data.buffers import opened; opened(({number}, {path!r}))[:3] = 5"
    subprocess.run([sys.executable, "-c", program], check=True)
    assert held[1].sum() == 15
    assert held[0].sum() == 0
    names = {buffers.name_of(tensor) for tensor in held}
    held.clear()
    assert buffers.name_of(buffers.take(900)) in names
    del buffers
    gc.collect()
    with pytest.raises(StriateError, match="cannot share memory"):
        opened((number, path))
