"""Turns and leases: one holder at a time, and the dead are told from the living."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from striate.core import locks
from striate.core.errors import StriateError
from striate.core.locks import Lease, Turn, alive, cut_half_line, only_one


def test_one_holder_at_a_time(tmp_path: Path) -> None:
    inside, most = [0], [0]

    def work() -> None:
        for _ in range(10):
            with Turn(tmp_path / "turn"):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                time.sleep(0.0005)
                inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    assert not (tmp_path / "turn.held").exists()


def test_a_killed_holder_of_this_machine_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "turn.held").write_text(f"{locks.kernel()} 123 someone")
    with Turn(tmp_path / "turn", grace=3600):
        assert (tmp_path / "turn.held").read_text().split()[1] == str(os.getpid())
    assert not (tmp_path / "turn.held").exists()


def test_a_holder_of_another_machine_is_waited_for_until_the_grace_is_over(tmp_path: Path) -> None:
    (tmp_path / "turn.held").write_text("another-kernel 123 someone")
    begun = time.monotonic()
    with Turn(tmp_path / "turn", grace=0.3):
        assert time.monotonic() - begun >= 0.3
    assert list(tmp_path.glob(".*")) == []


def test_without_locks_of_the_system_the_file_alone_excludes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "lock", lambda handle, wait: None)
    (tmp_path / "turn.held").write_text(f"{locks.kernel()} 123 someone")
    begun = time.monotonic()
    with Turn(tmp_path / "turn", grace=0.2):
        assert time.monotonic() - begun >= 0.2


def test_a_holder_that_leads_nowhere_is_taken_away_too(tmp_path: Path) -> None:
    (tmp_path / "held").symlink_to("nothing")
    with Turn(tmp_path / "turn", grace=0.05, held=tmp_path / "held"):
        assert (tmp_path / "held").read_text().split()[0] == locks.kernel()
    assert [p.name for p in tmp_path.iterdir()] == ["turn"]


def test_a_turn_that_was_taken_away_does_not_end_that_of_the_next(tmp_path: Path) -> None:
    turn = Turn(tmp_path / "turn")
    turn.acquire()
    (tmp_path / "turn.held").write_text("another-kernel 5 next")
    turn.release()
    assert (tmp_path / "turn.held").read_text() == "another-kernel 5 next"


def test_a_lease_lives_as_long_as_it_is_held(tmp_path: Path) -> None:
    path = tmp_path / "leases" / "0003"
    assert not alive(path)
    lease = Lease(path, beat=0.01).begin()
    assert alive(path)
    os.utime(path, (1, 1))
    assert alive(path), "on this machine the lock counts, not the age"
    lease.end()
    assert not alive(path)
    assert not path.exists()


def test_a_lease_left_behind_on_this_machine_is_dead_at_once(tmp_path: Path) -> None:
    path = tmp_path / "0003"
    path.write_text(f"{locks.kernel()} 123\n")
    assert not alive(path)


def test_a_lease_of_another_machine_is_told_by_its_last_sign_of_life(tmp_path: Path) -> None:
    path = tmp_path / "0003"
    path.write_text("another-kernel 123\n")
    assert alive(path)
    long_ago = locks.server_time(tmp_path) - locks.SILENCE - 1
    os.utime(path, (long_ago, long_ago))
    assert not alive(path)
    assert alive(path, silence=locks.SILENCE + 60)
    assert [p.name for p in tmp_path.iterdir()] == ["0003"], "the clock's probe is gone"


def test_a_lease_beats_and_notices_that_it_was_taken_away(tmp_path: Path) -> None:
    lease = Lease(tmp_path / "0003", beat=0.01).begin()
    os.utime(lease.path, (1, 1))
    while lease.path.stat().st_mtime < 2:
        time.sleep(0.005)
    lease.path.unlink()
    while not lease.lost:
        time.sleep(0.005)
    lease.path.write_text("of the next one")
    lease.end()
    assert lease.path.read_text() == "of the next one"


def test_only_one_does_it(tmp_path: Path) -> None:
    with only_one(tmp_path / "report") as first, only_one(tmp_path / "report") as second:
        assert (first, second) == (True, False)
    with only_one(tmp_path / "report") as third:
        assert third


def test_a_folder_that_cannot_be_written_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for work in (Turn(tmp_path / "file" / "turn").acquire, Lease(tmp_path / "file" / "0001").begin):
        with pytest.raises(StriateError, match="cannot write"):
            work()


@given(st.lists(st.binary(max_size=12)), st.binary(max_size=12))
def test_half_a_line_is_cut_off(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], half: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "journal"
    whole = b"".join(line.replace(b"\n", b"") + b"\n" for line in lines)
    half = half.replace(b"\n", b"")
    path.write_bytes(whole + half)
    assert cut_half_line(path) == len(half)
    assert path.read_bytes() == whole
    assert cut_half_line(path.with_name("none")) == 0


def test_a_half_line_longer_than_a_block_is_cut_off(tmp_path: Path) -> None:
    (tmp_path / "journal").write_bytes(b"{}\n" + b"x" * 200_000)
    assert cut_half_line(tmp_path / "journal") == 200_000
    assert (tmp_path / "journal").read_bytes() == b"{}\n"
