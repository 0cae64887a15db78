"""Errors of the world - broker, store, API - as opposed to those of one record: borne with patience, then raised."""

from __future__ import annotations

import logging
import math
import random as _random
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TypeVar

from itel_cabinet.io.worker.health import beat, waiting_for

__all__ = ["STOP", "OutageError", "full_jitter", "last_outage_error", "one_line", "patience", "retry_outage"]

_LOGGER = logging.getLogger(__name__)
_FIRST_SECONDS = 0.1
_MOST_SECONDS = 5.0  # an outage's end is noticed within this
_QUIET_SECONDS = 10.0  # between two warnings of one outage
_STOPPING_SECONDS = 10.0  # the patience of a process that has been asked to end
_MOST_CHARACTERS = 300

T = TypeVar("T")

STOP = threading.Event()
"""Set when the process has been asked to end (SIGTERM, SIGINT): what waits for new work stops waiting."""


def patience(seconds: float) -> float:
    """How long an outage is to be borne: ``seconds``, but 10 at most once the process has been asked to end."""
    return min(seconds, _STOPPING_SECONDS) if STOP.is_set() else seconds


_last: str | None = None


class OutageError(Exception):
    """An error of the world that outlived its patience. The message is one line for an operator, free of secrets.

    The last one raised in this process stays readable through :func:`last_outage_error`.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        global _last
        _last = message


def last_outage_error() -> str | None:
    """The message of the latest :class:`OutageError` of this process, or None.

    Beam's FnApiRunner wraps what a bundle raises in text of its own; the launcher prints this line instead.
    """
    return _last


def one_line(error: BaseException) -> str:
    """What an error says, as one short line: no colours, no line breaks, at most 300 characters.

    The query of a URL is left out, since it may be signed; of an object store's answer only status and code are told.
    """
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    text = re.sub(r"(https?://[^\s?]*)\?[^\s)\"']*", r"\1?...", text)
    text = re.sub(r"<\?xml.*?<Code>(\w+)</Code>.*</Error>", r"\1", text, flags=re.DOTALL)
    text = re.sub(r" in [\d.]+m?s - Server returned non-2xx status code(?=[:\s])", "", text)
    text = " ".join(re.sub(r"\s*↳\s*", ": ", text).split()) or type(error).__name__
    return text if len(text) <= _MOST_CHARACTERS else text[: _MOST_CHARACTERS - 3] + "..."


def full_jitter(first: float, most: float, random: Callable[[], float]) -> Iterator[float]:
    """Endless waits in seconds, each evenly drawn from [0, limit), the limit doubling from ``first`` to ``most``."""
    limit = first
    while True:
        yield random() * limit
        limit = min(most, limit * 2)


def retry_outage(
    call: Callable[[], T],
    *,
    what: str,
    seconds: float,
    is_outage: Callable[[Exception], bool],
    describe: Callable[[Exception], str] = one_line,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    random: Callable[[], float] = _random.random,
) -> T:
    """Return ``call()``, calling again while it raises errors of the world, for ``seconds`` since the first of them.

    ``seconds`` may be ``math.inf``. ``what`` names the thing that is away (``Delta table /data/forms``); ``describe``
    turns an error into one line without secrets. Waits grow from 0.1 s to 5 s with full jitter; the last try is made
    when the time is up. An outage logs a WARNING at its first failure, then one at most each 10 s, and an INFO when it
    is over. Once the process has been asked to end, an outage is borne for 10 s at most: see :func:`patience`.

    Raises what ``call`` raises if ``is_outage`` says no to it, and :class:`OutageError` when the time is up: with
    ``seconds=0`` upon the first error. ``call`` must be safe to repeat. Thread-safe if ``call`` is.
    """
    waits = full_jitter(_FIRST_SECONDS, _MOST_SECONDS, random)
    began: float | None = None
    warned = 0.0
    with ExitStack() as outage:
        while True:
            try:
                answer = call()
            except Exception as error:
                if not is_outage(error):
                    raise
                beat()
                now = clock()
                if began is None:
                    began = now
                    outage.enter_context(waiting_for(what))
                left = began + patience(seconds) - now
                if left <= 0:
                    waited = f"; gave up after {now - began:.0f} s" if seconds else ""
                    raise OutageError(f"{what}: {describe(error)}{waited}") from error
                if now == began or now - warned >= _QUIET_SECONDS:
                    until = "until it is back" if math.isinf(left) else f"for {left:.0f} s"
                    _LOGGER.warning("%s: %s; trying again %s", what, describe(error), until)
                    warned = now
                sleep(min(next(waits), left))
            else:
                if began is not None:
                    _LOGGER.info("%s: back after %.0f s", what, clock() - began)
                return answer
