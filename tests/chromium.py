"""A page as headless Chromium shows it: its text, its picture, what it complains of and what it asks the network for.

Chromium is spoken to over its DevTools pipe (two file descriptors, messages of JSON that end with a zero byte), which
needs no package beside it.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Page", "opened"]

_SECONDS = 120.0
# What Chromium itself would do on the network, and the sandbox, which root has not.
_SWITCHES = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions",
    "--remote-debugging-pipe",
]  # fmt: skip


@dataclass
class Page:
    """A page that has been loaded. ``requests`` are the addresses of all that it asked for but itself, even where its
    policy has stopped it; ``complaints`` the console's errors and warnings, exceptions, and what the policy says.
    """

    text: str = ""
    picture: bytes = b""
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


def opened(file: Path, *, width: int = 1400, height: int = 1500, dark: bool = False) -> Page:
    """Open a file, wait until it is loaded and at rest, and tell what happened."""
    url = file.absolute().as_uri()
    page = Page()
    with _started() as browser:
        target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            browser.call(f"{domain}.enable", session)
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        browser.call("Emulation.setDeviceMetricsOverride", session, **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        browser.call("Emulation.setEmulatedMedia", session, features=[scheme])
        browser.call("Page.navigate", session, url=url)
        browser.wait_for("Page.loadEventFired")
        # A round trip through the renderer: what the load has caused is known by then.
        shown = browser.call("Runtime.evaluate", session, expression="document.body.innerText")
        page.text = shown["result"]["value"]
        picture = browser.call("Page.captureScreenshot", session, format="png", captureBeyondViewport=True)
        page.picture = base64.b64decode(picture["data"])
        for event in browser.events:
            _tell(page, event, url)
    return page


def _tell(page: Page, event: dict[str, Any], url: str) -> None:
    told = event["params"]
    match event["method"]:
        case "Network.requestWillBeSent" if told["request"]["url"] != url:
            page.requests.append(told["request"]["url"])
        case "Log.entryAdded":
            page.complaints.append(told["entry"]["text"])
        case "Runtime.exceptionThrown":
            page.complaints.append(told["exceptionDetails"]["text"])
        case "Runtime.consoleAPICalled" if told["type"] in ("error", "warning", "assert"):
            page.complaints.append(json.dumps(told["args"]))


class _Browser:
    def __init__(self, commands: int, answers: int) -> None:
        self._commands, self._answers = commands, answers
        self._buffer = b""
        self._last = 0
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        self._last += 1
        message = {"id": self._last, "method": method, "params": params} | ({"sessionId": session} if session else {})
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next(method)
            if answer.get("id") == self._last:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result

    def wait_for(self, method: str) -> None:
        while not any(event["method"] == method for event in self.events):
            self._next(method)

    def _next(self, waiting_for: str) -> dict[str, Any]:
        deadline = time.monotonic() + _SECONDS
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._answers], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"Chromium does not answer to {waiting_for} within {_SECONDS:.0f} s"
            part = os.read(self._answers, 1 << 16)
            assert part, f"Chromium ended before it answered to {waiting_for}"
            self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        if "method" in message:
            self.events.append(message)
        return message


@contextlib.contextmanager
def _started() -> Iterator[_Browser]:
    program = shutil.which("chromium")
    assert program, "no `chromium` found: run `make setup-tests`"
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        to_browser, commands = os.pipe()
        answers, from_browser = os.pipe()
        # Out of the way of 3 and 4, which Chromium reads from and writes to.
        theirs = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (to_browser, from_browser)]

        def place() -> None:
            os.dup2(theirs[0], 3)
            os.dup2(theirs[1], 4)

        process = subprocess.Popen(
            [program, *_SWITCHES, f"--user-data-dir={profile}", "about:blank"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(3, 4),
            preexec_fn=place,
            start_new_session=True,
        )
        for end in (to_browser, from_browser, *theirs):
            os.close(end)
        try:
            browser = _Browser(commands, answers)
            yield browser
            browser.call("Browser.close")
            process.wait(_SECONDS)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)
            os.close(commands)
            os.close(answers)
