"""Fetching published files: resumed, verified, one process at a time, never where it is forbidden."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from striate.core import fetch as fetching
from striate.core.errors import BadModelFile, StriateError
from striate.core.fetch import Meter, fetch, locked

DATA = bytes((i * i + i // 7) % 251 for i in range(300_000))
SHA = hashlib.sha256(DATA).hexdigest()


@dataclass
class Site:
    """A little web server on this machine and what it was asked for."""

    url: str = ""
    data: bytes = DATA
    etag: str = '"first"'
    ranges: bool = True
    breaks: list[int] = field(default_factory=list)  # bytes after which the next connections break
    codes: list[int] = field(default_factory=list)  # answers to the next requests instead of the file
    redirect: dict[str, str] = field(default_factory=dict)
    slow: float = 0.0
    asked: list[str] = field(default_factory=list)  # the Range header of each request, or an empty text


def handler(site: Site) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            site.asked.append(self.headers.get("Range") or "")
            if site.codes:
                self.send_error(site.codes.pop(0))
                return
            if site.redirect and self.path == "/resolve":
                self.send_response(302)
                self.send_header("Location", f"{site.url}/file")
                for key, value in site.redirect.items():
                    self.send_header(key, value)
                self.end_headers()
                return
            start = self.start()
            if start is not None and start >= len(site.data):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(site.data)}")
                self.end_headers()
                return
            self.send_response(200 if start is None else 206)
            body = site.data[start or 0 :]
            if start is not None:
                self.send_header("Content-Range", f"bytes {start}-{len(site.data) - 1}/{len(site.data)}")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", site.etag)
            self.end_headers()
            time.sleep(site.slow)
            self.wfile.write(body[: site.breaks.pop(0)] if site.breaks else body)

        def start(self) -> int | None:
            """Where the wanted part begins; None for the whole file."""
            wanted = self.headers.get("Range")
            changed = self.headers.get("If-Range") not in (None, site.etag)
            return int(wanted[6:].rstrip("-")) if wanted and site.ranges and not changed else None

    return Handler


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    site = Site()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(site))
    site.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield site
    server.shutdown()
    server.server_close()
    thread.join()


def get(site: Site, target: Path, expected: str = SHA, path: str = "/file") -> str:
    return fetch(f"{site.url}{path}", target, expected=expected, timeout=20, pause=0.001)


def alone(target: Path) -> bool:
    """Whether the file is right, and nothing else is left beside it."""
    return target.read_bytes() == DATA and [p.name for p in target.parent.iterdir()] == [target.name]


@pytest.mark.parametrize("expected", [SHA, SHA[:8], ""])
def test_a_file_is_fetched_once(site, tmp_path, expected, capsys):
    target = tmp_path / "sub" / "w.bin"
    assert get(site, target, expected) == SHA
    assert alone(target)
    assert "fetching w.bin (0.3 MB)" in capsys.readouterr().err
    assert get(site, target, expected) == SHA
    assert site.asked == [""]


def test_a_broken_connection_is_continued(site, tmp_path):
    site.breaks = [100_000, 50_000]
    assert get(site, tmp_path / "w") == SHA
    assert site.asked == ["", "bytes=100000-", "bytes=150000-"]
    assert alone(tmp_path / "w")


def test_an_interrupted_fetch_is_continued_by_the_next(site, tmp_path, monkeypatch):
    step = Meter.step

    def interrupted(self: Meter, count: int) -> None:
        step(self, count)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fetching, "CHUNK", 70_000)
        patch.setattr(Meter, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            get(site, tmp_path / "w")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["w.part", "w.part.etag"]
    assert (tmp_path / "w.part").read_bytes() == DATA[:70_000]
    assert get(site, tmp_path / "w") == SHA
    assert site.asked == ["", "bytes=70000-"]
    assert alone(tmp_path / "w")


def left(tmp_path: Path, data: bytes, etag: str = "") -> Path:
    """What an earlier fetch may have left."""
    (tmp_path / "w.part").write_bytes(data)
    if etag:
        (tmp_path / "w.part.etag").write_text(etag)
    return tmp_path / "w"


def test_a_file_that_changed_is_fetched_anew(site, tmp_path):
    target = left(tmp_path, b"x" * 1000, '"older"')
    assert get(site, target) == SHA
    assert len(site.asked) == 1
    assert alone(target)


def test_a_part_of_something_else_is_thrown_away(site, tmp_path):
    target = left(tmp_path, b"x" * 1000)
    assert get(site, target) == SHA
    assert site.asked == ["bytes=1000-", ""]
    assert alone(target)


@pytest.mark.parametrize(("have", "asked"), [(len(DATA), 1), (len(DATA) + 5, 2)])
def test_a_part_that_is_whole_or_too_long(site, tmp_path, have, asked):
    target = left(tmp_path, (DATA + b"12345")[:have])
    assert get(site, target) == SHA
    assert len(site.asked) == asked
    assert alone(target)


def test_servers_without_ranges_send_all_again(site, tmp_path):
    site.ranges, site.breaks = False, [100_000]
    assert get(site, tmp_path / "w") == SHA
    assert site.asked == ["", "bytes=100000-"]
    assert alone(tmp_path / "w")


@pytest.mark.parametrize("wanted", ["0" * 64, "0" * 8])
def test_wrong_bytes_name_both_hashes_and_are_not_kept(site, tmp_path, wanted):
    with pytest.raises(BadModelFile, match=rf"its sha256 is {SHA}; allowed: {wanted}") as caught:
        get(site, tmp_path / "w", wanted)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_trouble_that_passes_is_waited_for(site, tmp_path):
    site.codes = [503, 429]
    assert get(site, tmp_path / "w") == SHA
    assert len(site.asked) == 3


def test_trouble_that_stays_is_told(site, tmp_path):
    site.codes = [404]
    with pytest.raises(StriateError, match=r"404.*put the file into .* as w") as caught:
        get(site, tmp_path / "w")
    assert len(site.asked) == 1
    assert "\n" not in str(caught.value)
    site.codes = [503] * 99
    with pytest.raises(StriateError, match=r"the same command continues after 0\.0 MB"):
        get(site, tmp_path / "w")
    assert len(site.asked) == 1 + fetching.PATIENCE
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(StriateError, match="http"):
        fetch("file:///etc/hosts", tmp_path / "w")


def test_a_server_that_gives_a_little_each_time_is_borne(site, tmp_path):
    site.breaks = [1000] * 20
    assert get(site, tmp_path / "w") == SHA
    assert len(site.asked) == 21


def test_the_hash_that_the_hub_sends_is_compared(site, tmp_path):
    site.redirect = {"X-Linked-ETag": f'"{SHA}"'}
    assert get(site, tmp_path / "w", "", "/resolve") == SHA
    site.redirect = {"X-Linked-ETag": f'"{"1" * 64}"'}
    with pytest.raises(BadModelFile, match=r"allowed: 1{64}"):
        get(site, tmp_path / "v", "", "/resolve")
    site.redirect = {"X-Linked-ETag": '"no hash"'}
    assert get(site, tmp_path / "v", "", "/resolve") == SHA


def test_a_full_disk_is_told_before_anything_is_written(site, tmp_path, monkeypatch):
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(StriateError, match=r"needs 0 MB.*set STRIATE_CACHE"):
        get(site, tmp_path / "w")
    assert not (tmp_path / "w").exists()


def test_a_folder_that_cannot_be_made(tmp_path, site):
    (tmp_path / "file").write_text("")
    with pytest.raises(StriateError, match="cannot write"):
        get(site, tmp_path / "file" / "w")


TWO = """
import sys
from pathlib import Path
from striate.core.fetch import fetch
print(fetch(sys.argv[1], Path(sys.argv[2]), expected=sys.argv[3], pause=0.01))
"""


def test_two_processes_at_once_fetch_it_once(site, tmp_path):
    site.slow = 1.0
    words = [sys.executable, "-c", TWO, f"{site.url}/file", str(tmp_path / "w"), SHA]
    both = [
        subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    for process in both:
        out, err = process.communicate(timeout=100)
        assert (process.returncode, out.strip()) == (0, SHA), err
    assert site.asked == [""]
    assert alone(tmp_path / "w")


def test_many_threads_hold_the_lock_one_after_the_other(tmp_path):
    inside, most = 0, 0
    guard = threading.Lock()

    def work() -> None:
        nonlocal inside, most
        for _ in range(5):
            with locked(tmp_path / "lock", "it"):
                with guard:
                    inside += 1
                    most = max(most, inside)
                time.sleep(0.002)
                with guard:
                    inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert list(tmp_path.iterdir()) == []


def test_the_meter_on_a_terminal(tmp_path):
    class Terminal:
        text = ""

        def isatty(self) -> bool:
            return True

        def write(self, text: str) -> None:
            self.text += text

        def flush(self) -> None:
            pass

    terminal = Terminal()
    meter = Meter("w", terminal)
    meter.begin(1_000_000, 4_000_000)
    meter.step(2_000_000)
    meter.end()
    assert terminal.text.startswith("\rfetching w  3.0 of 4.0 MB")
    assert terminal.text.endswith("\n")


def test_fetching_needs_no_torch():
    code = "import sys, striate.nets.published; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
