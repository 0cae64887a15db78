"""Outages of a broker, a store or an API, as opposed to errors of one record: retried for a time, then raised."""

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

from itel_cabinet.io.worker.errors import RefusedError
from itel_cabinet.io.worker.health import beat, waiting_for

__all__ = ["STOP", "OutageError", "describe_error", "full_jitter", "limit_wait", "retry_outage"]

_LOGGER = logging.getLogger(__name__)
_FIRST_SECONDS = 0.1
_MOST_SECONDS = 5.0  # the end of an outage is noticed within this
_QUIET_SECONDS = 10.0  # between two warnings of one outage
_STOPPING_SECONDS = 10.0  # how long a process that has been asked to end still retries
_MOST_CHARACTERS = 300

T = TypeVar("T")

STOP = threading.Event()
"""Set when the process has been asked to end (SIGTERM, SIGINT): readers stop waiting for new records."""


def limit_wait(seconds: float) -> float:
    """How long to retry during an outage: ``seconds``, but 10 at most once the process has been asked to end."""
    return min(seconds, _STOPPING_SECONDS) if STOP.is_set() else seconds


class OutageError(RefusedError):
    """An outage that lasted too long."""


def describe_error(error: BaseException) -> str:
    """An error's text as one short line: no colours, no line breaks, at most 300 characters.

    The query of a URL is left out, since it may be signed; of an object store's answer only status and code are kept.
    """
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    text = re.sub(r"(https?://[^\s?]*)\?[^\s)\"']*", r"\1?...", text)
    text = re.sub(r"<\?xml.*?<Code>(\w+)</Code>.*</Error>", r"\1", text, flags=re.DOTALL)
    text = re.sub(r" in [\d.]+[mµn]?s - Server returned non-2xx status code(?=[:\s])", "", text)
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
    describe: Callable[[Exception], str] = describe_error,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    random: Callable[[], float] = _random.random,
) -> T:
    """Call until there is no outage: again and again for ``seconds`` since the first failure.

    Waits grow from 0.1 s to 5 s with full jitter; the last try is made when the time is up. An outage logs a WARNING at
    its first failure, then at most one each 10 s, and an INFO when it is over. Once the process has been asked to end,
    it is retried for 10 s at most. Thread-safe if ``call`` is.

    Args:
        call: safe to repeat.
        what: what is out of reach, for messages (``Delta table /data/forms``).
        seconds: may be ``math.inf``; 0 raises upon the first failure.
        is_outage: whether an exception of ``call`` is an outage; others are raised as they are.
        describe: turns an exception into one line without secrets.
        clock: monotonic seconds.

    Returns:
        What ``call`` returns.

    Raises:
        OutageError: the time is up.
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
                left = began + limit_wait(seconds) - now
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
