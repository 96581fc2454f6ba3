"""The report in a real browser: keys, dialog, themes, phone width, no request to anywhere."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from striate.report import html
from test_report import EVIL, full_report

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--remote-debugging-pipe",
)  # fmt: skip


class Browser:
    """Chromium, spoken to through a pipe in its DevTools protocol."""

    def __init__(self, program: str, home: Path) -> None:
        ours_read, its_write = os.pipe()
        its_read, ours_write = os.pipe()
        # The browser reads from descriptor 3 and writes to 4: first move ours out of the way of these.
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 20) for end in (its_read, its_write)]

        def place() -> None:
            os.dup2(ends[0], 3)
            os.dup2(ends[1], 4)

        self.process = subprocess.Popen(
            [program, *FLAGS, f"--user-data-dir={home}", "about:blank"],
            preexec_fn=place, pass_fds=(3, 4), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        for end in (its_read, its_write, *ends):
            os.close(end)
        self._in, self._out = os.fdopen(ours_read, "rb", 0), os.fdopen(ours_write, "wb", 0)
        self._rest, self._number, self._session = b"", 0, ""
        self.events: list[dict[str, Any]] = []
        target = next(t for t in self("Target.getTargets")["targetInfos"] if t["type"] == "page")
        attached = self("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network"):
            self(f"{domain}.enable")

    def __call__(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        self._out.write(json.dumps(message).encode() + b"\0")
        while True:
            answer = self._message()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return dict(answer["result"])

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            part = self._in.read(1 << 16)
            assert part, "the browser went away"
            self._rest += part
        text, self._rest = self._rest.split(b"\0", 1)
        message: dict[str, Any] = json.loads(text)
        if "method" in message:
            self.events.append(message)
        return message

    def open(self, path: Path, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        self(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 500,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self("Emulation.setEmulatedMedia", media="", features=[scheme])
        self.events.clear()
        self("Page.navigate", url=path.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self._message()

    def js(self, code: str) -> Any:
        answer = self("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def key(self, name: str, code: int) -> None:
        for kind in ("keyDown", "keyUp"):
            self("Input.dispatchKeyEvent", type=kind, key=name, code=name, windowsVirtualKeyCode=code)

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(20)
        self._in.close()
        self._out.close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip("no Chromium on this machine: the report was not opened in a browser")
    started = Browser(program, tmp_path_factory.mktemp("browser"))
    yield started
    started.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return html.write(full_report(EVIL, classes=12), tmp_path_factory.mktemp("page") / "report.html")


def troubles(browser: Browser) -> list[str]:
    """Errors on the console, and requests for anything but the page and the pictures inside it."""
    found = [str(e["params"]) for e in browser.events if e["method"] == "Runtime.exceptionThrown"]
    for event in browser.events:
        if event["method"] == "Network.requestWillBeSent":
            url = event["params"]["request"]["url"]
            found += [url] if not url.startswith(("data:image/", "file:")) else []
        if event["method"] == "Runtime.consoleAPICalled" and event["params"]["type"] == "error":
            found.append(str(event["params"]["args"]))
        if event["method"] == "Page.javascriptDialogOpening":
            found.append("an alert was opened")
    return found


@pytest.mark.parametrize("width", [320, 375, 768, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_no_sideways_scrolling_and_no_trouble(browser: Browser, page: Path, width: int, dark: bool) -> None:
    browser.open(page, width=width, dark=dark)
    assert browser.js("document.documentElement.scrollWidth") <= width
    assert browser.js("document.querySelectorAll('section').length") == 11
    ground = browser.js("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, ground[4:-1].split(","))) < 200) is dark
    assert troubles(browser) == []


def test_a_cell_opens_by_keyboard_and_closes_with_escape(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.js("document.querySelector('#matrix button[tabindex=\"0\"]').focus()")
    before = browser.js("document.activeElement.dataset.cell")
    browser.key("ArrowRight", 39)
    after = browser.js("document.activeElement.dataset.cell")
    assert before == "0,0"
    assert after.split(",")[0] == "0"
    assert int(after.split(",")[1]) > 0
    assert browser.js("document.querySelectorAll('#matrix button[tabindex=\"0\"]').length") == 1
    browser.js("document.activeElement.click()")
    assert browser.js("document.querySelector('#cell').matches(':modal')")
    assert browser.js("document.querySelectorAll('#cell-images img').length") >= 1
    # The browser decodes pictures in its own time; `decode` ends then, and fails for a broken one.
    browser.js(
        "Promise.all([...document.querySelectorAll('#cell img')].map((i) => i.decode())).then(() => 0)"
    )
    assert browser.js("[...document.querySelectorAll('#cell img')].every((i) => i.naturalWidth > 0 && i.alt)")
    assert EVIL.replace("\u2028", " ")[:20] in browser.js("document.querySelector('#cell-title').textContent")
    browser.key("Escape", 27)
    assert not browser.js("document.querySelector('#cell').open")
    assert browser.js("document.activeElement.dataset.cell") == after, "focus goes back to the cell"
    assert troubles(browser) == []


def test_classes_can_be_sorted(browser: Browser, page: Path) -> None:
    browser.open(page)
    first = "document.querySelector('#scores tbody tr').cells[0].textContent.trim().split(' ').pop()"
    click = "document.querySelector('#scores thead button').click()"
    browser.js(click)
    assert browser.js(first) == "0"
    browser.js(click)
    assert browser.js(first) == "11"
    assert browser.js("document.querySelector('#scores thead th').getAttribute('aria-sort')") == "descending"


def test_the_theme_can_be_switched(browser: Browser, page: Path) -> None:
    browser.open(page)
    ground = "getComputedStyle(document.body).backgroundColor"
    light = browser.js(ground)
    browser.js("document.querySelector('#theme').click()")
    assert browser.js(ground) != light
    browser.js("document.querySelector('#theme').click()")
    assert browser.js(ground) == light


def test_a_chart_tells_its_values(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.js("document.querySelector('figure.chart .plot').focus()")
    browser.key("End", 35)
    told = browser.js("document.querySelector('.tip').textContent")
    assert "epoch 2" in told
    assert "0.5" in told
    assert "0.7" in told
    browser.key("Escape", 27)
    assert browser.js("document.querySelectorAll('.tip').length") == 0


def test_it_prints(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert base64.b64decode(browser("Page.printToPDF", printBackground=True)["data"]).startswith(b"%PDF")
