"""What a run shows: plain lines away from a terminal, a bar on one, nothing when silenced."""

from __future__ import annotations

import io
import time

from striate.train.progress import Progress, Tick, clock

TICK = Tick(2, 30, 5, 10, 0.51234, 0.1, 1234.5, 0.021, 3723.0)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_clock() -> None:
    assert [clock(x) for x in (-1, 0, 59.6, 3599, 3723)] == ["0:00", "0:00", "1:00", "59:59", "1:02:03"]


def test_plain_lines_away_from_a_terminal() -> None:
    stream = io.StringIO()
    with Progress(stream=stream, every=5) as show:
        assert not show.due(time.monotonic())
        assert show.due(time.monotonic() + 6)
        show.tick(TICK)
        show.line("epoch done")
    assert stream.getvalue().splitlines() == [
        "epoch 2/30  5/10  loss 0.5123  lr 0.1  1,234 images/s  data wait 2%  1:02:03 left",
        "epoch done",
    ]


def test_a_bar_on_a_terminal(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("COLUMNS", "160")
    stream = Terminal()
    with Progress(stream=stream) as show:
        assert show.interval <= 1
        show.tick(TICK)
        show.line("[red]no markup")
    assert "loss 0.5123" in stream.getvalue()
    assert "[red]no markup" in stream.getvalue()


def test_silence() -> None:
    stream = io.StringIO()
    show = Progress(False, stream=stream)
    assert not show.due(time.monotonic() + 1e9)
    show.tick(TICK)
    show.line("nothing")
    assert stream.getvalue() == ""
