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

__all__ = ["Browser", "Page", "started"]

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
    policy has stopped it; ``complaints`` the console's errors and warnings, exceptions, and what the policy says;
    ``answer`` the value of the expression that it was asked.
    """

    text: str
    picture: bytes
    answer: Any = None
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


class Browser:
    """A running headless Chromium; use :func:`started`. Not thread-safe."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands, self._answers = commands, answers
        self._buffer = b""
        self._last = 0
        self._events: list[dict[str, Any]] = []

    def open(self, file: Path, *, width: int = 1400, height: int = 1500, dark: bool = False, ask: str = "null") -> Page:
        """Open a file in a page of its own, wait until it is loaded and at rest, and tell what happened; ``ask`` is an
        expression in its JavaScript."""
        url = file.absolute().as_uri()
        self._events.clear()
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self._call(f"{domain}.enable", session)
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._call("Emulation.setDeviceMetricsOverride", session, **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", session, features=[scheme])
        self._call("Page.setLifecycleEventsEnabled", session, enabled=True)
        loader = self._call("Page.navigate", session, url=url)["loaderId"]
        # Half a second after the last request; of this page, not of the blank one before it.
        while not any(
            event["method"] == "Page.lifecycleEvent"
            and (event["params"]["loaderId"], event["params"]["name"]) == (loader, "networkIdle")
            for event in self._events
        ):
            self._next("Page.navigate")
        shown = self._call("Runtime.evaluate", session, expression="document.body.innerText")
        asked = self._call("Runtime.evaluate", session, expression=ask, returnByValue=True)
        picture = self._call("Page.captureScreenshot", session, format="png", captureBeyondViewport=True)
        self._call("Target.closeTarget", targetId=target)
        page = Page(shown["result"]["value"], base64.b64decode(picture["data"]), asked["result"].get("value"))
        for event in self._events:
            if event.get("sessionId") == session:
                _tell(page, event, url)
        return page

    def close(self) -> None:
        self._call("Browser.close")

    def _call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        self._last += 1
        message = {"id": self._last, "method": method, "params": params} | ({"sessionId": session} if session else {})
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next(method)
            if answer.get("id") == self._last:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result

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
            self._events.append(message)
        return message


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


@contextlib.contextmanager
def started() -> Iterator[Browser]:
    """A browser with a fresh profile; nothing of it is left at the end."""
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
            browser = Browser(commands, answers)
            yield browser
            browser.close()
            process.wait(_SECONDS)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)
            os.close(commands)
            os.close(answers)
