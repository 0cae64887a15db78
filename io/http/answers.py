"""What an answer's status means: one table for all of them, and what ``Retry-After`` says.

The statuses are those of RFC 9110, section 15, and of the registry that it names. A status that is not listed means
what the first of its class does (section 15: ``x00``); one over 599 counts as a 5xx, as the RFC wants it.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from enum import StrEnum

__all__ = ["Meaning", "read_retry_after", "read_status"]


class Meaning(StrEnum):
    """What a caller does about an answer."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    """The API had it before this call; only the API's own client can see that, from the body."""
    AGAIN = "again"
    """The same request may well succeed a little later."""
    BACK_PRESSURE = "back_pressure"
    """The API takes no calls for a while, from anyone."""
    REDIRECTED = "redirected"
    CREDENTIALS = "credentials"
    """Who calls is not let in: no fault of what was asked."""
    REFUSED = "refused"


_CREDENTIALS = frozenset({401, 403, 407, 511})  # 407 is the proxy's, 511 that of a network that wants a login
_AGAIN = frozenset({408, 421, 425})
# Answers to parts of a request, or about several at once: not what was asked for.
_PARTIAL = frozenset({206, 207, 208, 226})
# The server will not do this later either: 501 and 505 of RFC 9110, 506 and 510 of RFC 2295 and 2774.
_NEVER = frozenset({501, 505, 506, 510})


def read_status(status: int, headers: Mapping[str, str]) -> Meaning:
    """The meaning of a status from 200 to 999. ``headers`` ignore case."""
    if 200 <= status < 300:
        return Meaning.REFUSED if status in _PARTIAL else Meaning.ACCEPTED
    if 300 <= status < 400:
        return Meaning.REDIRECTED
    if status in _CREDENTIALS:
        return Meaning.CREDENTIALS
    asks_to_wait = read_retry_after(headers.get("Retry-After"), 0.0) is not None
    if status == 429 or (status == 503 and asks_to_wait):
        return Meaning.BACK_PRESSURE
    # 409, 413 and 423 pass by themselves at times, and then say when.
    if status in _AGAIN or (status < 500 and asks_to_wait) or (status >= 500 and status not in _NEVER):
        return Meaning.AGAIN
    return Meaning.REFUSED


def read_retry_after(value: str | None, now: float) -> float | None:
    """The seconds that a ``Retry-After`` asks for, as a number or a date; None if there is none, or it makes no sense.

    ``now`` (epoch seconds) is what a date is compared with. urllib3 reads the header too, but only against the clock of
    this machine.
    """
    if value is None:
        return None
    text = value.strip()
    try:
        if text.isascii() and text.isdecimal():
            return float(int(text))
        moment = parsedate_to_datetime(text)
        return max(0.0, (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() - now)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
