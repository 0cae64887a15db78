"""Outages that are waited for, and the points at which a test may kill the process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from itel_cabinet.io.worker import OutageError, describe_error, full_jitter, outages, retry_outage


class Clock:
    def __init__(self) -> None:
        self.now = 100.0
        self.naps: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.naps.append(seconds)
        self.now += seconds


def failing(*errors: Exception) -> Callable[[], str]:
    left = list(errors)

    def call() -> str:
        if left:
            raise left.pop(0)
        return "done"

    return call


def patiently(call: Callable[[], str], clock: Clock, seconds: float = 60.0) -> str:
    return retry_outage(
        call,
        what="broker at a:1",
        seconds=seconds,
        is_outage=lambda error: isinstance(error, OSError),
        clock=clock,
        sleep=clock.sleep,
        random=lambda: 0.5,
    )


def test_a_call_that_succeeds_is_not_repeated() -> None:
    clock = Clock()
    assert patiently(failing(), clock) == "done"
    assert clock.naps == []


def test_a_process_asked_to_end_bears_an_outage_for_ten_seconds_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outages, "STOP", threading.Event())
    clock = Clock()

    def call() -> str:
        if clock.now >= 104.0:
            outages.STOP.set()
        raise OSError("gone")

    with pytest.raises(OutageError, match=r"^broker at a:1: gone; gave up after 10 s$"):
        patiently(call, clock, seconds=3600.0)
    assert sum(clock.naps) == pytest.approx(10.0)


def test_an_outage_is_waited_for_with_growing_pauses() -> None:
    clock = Clock()
    assert patiently(failing(*[OSError("gone")] * 9), clock) == "done"
    assert clock.naps == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2.5, 2.5, 2.5]


def test_other_errors_are_raised_as_they_are() -> None:
    clock = Clock()
    with pytest.raises(KeyError, match="mine"):
        patiently(failing(OSError("gone"), KeyError("mine")), clock)
    assert len(clock.naps) == 1


def test_the_last_try_is_made_when_the_time_is_up() -> None:
    clock = Clock()
    with pytest.raises(OutageError, match=r"^broker at a:1: no route; gave up after 3 s$") as caught:
        patiently(failing(*[OSError("no\n route")] * 99), clock, seconds=3.0)
    assert clock.now == 103.0
    assert isinstance(caught.value.__cause__, OSError)


def test_without_patience_the_first_error_is_raised() -> None:
    clock = Clock()
    with pytest.raises(OutageError, match=r"^broker at a:1: gone$"):
        patiently(failing(OSError("gone")), clock, seconds=0)
    assert clock.naps == []


def test_an_outage_is_logged_now_and_then_and_its_end_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        patiently(failing(*[OSError("gone")] * 15), Clock())
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [
        ("WARNING", "broker at a:1: gone; trying again for 60 s"),
        ("WARNING", "broker at a:1: gone; trying again for 49 s"),
        ("WARNING", "broker at a:1: gone; trying again for 39 s"),
        ("INFO", "broker at a:1: back after 26 s"),
    ]


def test_waits_are_drawn_from_the_whole_span() -> None:
    draws = iter([0.0, 1.0, 0.5, 1.0, 1.0])
    waits = full_jitter(1.0, 5.0, lambda: next(draws))
    assert [next(waits) for _ in range(5)] == [0.0, 2.0, 2.0, 5.0, 5.0]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            OSError("Generic error\n   \x1b[31m\u21b3\x1b[0m Unable to walk\n   dir"),
            "Generic error: Unable to walk dir",
        ),
        (ValueError(), "ValueError"),
        (ValueError("x" * 400), "x" * 297 + "..."),
        (
            OSError(
                "Generic error\n \u21b3 Error performing GET https://a.example/c?sig=s3cr3t in 13.2ms - Server "
                'returned non-2xx status code\n \u21b3 404 Not Found\n \u21b3 <?xml version="1.0"?>\n<Error>\n'
                "<Code>ContainerNotFound</Code>\n<Message>The container is gone.\nRequestId:1</Message>\n</Error>\n"
            ),
            "Generic error: Error performing GET https://a.example/c?...: 404 Not Found: ContainerNotFound",
        ),
        *(
            (
                OSError(f"Error performing PUT http://a/c in {took} - Server returned non-2xx status code: 409"),
                "Error performing PUT http://a/c: 409",
            )
            for took in ("1.2s", "13.2ms", "961.7µs", "80ns")
        ),
    ],
)
def test_an_error_in_one_line(error: Exception, line: str) -> None:
    assert describe_error(error) == line


CRASHING = """
from itel_cabinet.io.worker import crash_points, prepare
prepare()
for turn in range(3):
    crash_points.maybe_crash("elsewhere")
    crash_points.maybe_crash("after-flush")
    print(turn, flush=True)
"""


@pytest.mark.parametrize(
    ("point", "code", "printed"),
    [
        (None, 0, "0 1 2"),
        ("nowhere", 0, "0 1 2"),
        ("after-flush", -signal.SIGKILL, ""),
        ("after-flush:3", -signal.SIGKILL, "0 1"),
        ("after-flush:9", 0, "0 1 2"),
    ],
)
def test_a_process_dies_at_the_point_named(point: str | None, code: int, printed: str) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "ITEL_CABINET_CRASH_AT"}
    if point is not None:
        environment["ITEL_CABINET_CRASH_AT"] = point
    run = subprocess.run([sys.executable, "-c", CRASHING], env=environment, capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stdout.split()) == (code, printed.split())
