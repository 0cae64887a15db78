"""Whether and when a call is tried again: pure, so that it can be tested over all that may come."""

from __future__ import annotations

from datetime import UTC
from email.utils import parsedate_to_datetime

from itel_cabinet.io.http.transport import CallError, Reply

__all__ = ["BACKOFF_CAP_SECONDS", "SPREAD_SECONDS", "is_transient", "pause_before_retry"]

SPREAD_SECONDS = 0.5
"""The first pause at most, and what is added to a pause that the server asks for, so that callers spread."""
BACKOFF_CAP_SECONDS = 10.0


def is_transient(status: int) -> bool:
    """Whether a status is worth another try: 408, 425, 429, and 5xx except 501."""
    return status in (408, 425, 429) or (500 <= status < 600 and status != 501)


def pause_before_retry(
    outcome: Reply | CallError,
    *,
    usable: bool = True,
    attempts: int,
    max_retries: int,
    left: float,
    chance: float,
    now: float,
) -> float | None:
    """Seconds to wait before the next try; None if there shall be none.

    ``attempts`` tries have been made, of which ``outcome`` is the last; ``usable`` is what the caller says of a 2xx.
    ``left`` is how many seconds the whole call has left: a pause always ends before that. ``chance`` (0 to 1) is the
    jitter, ``now`` the time in epoch seconds, which a Retry-After date is compared with.
    """
    if isinstance(outcome, Reply):
        again = is_transient(outcome.status) or (outcome.ok and not usable)
        retry_after = outcome.headers.get("Retry-After")
    else:
        again = outcome.kind in ("timeout", "unreachable", "reset", "outage")
        retry_after = outcome.retry_after
    if not again or attempts > max_retries:
        return None
    asked = None if retry_after is None else _asked(retry_after, now)
    if asked is None:
        pause = chance * min(BACKOFF_CAP_SECONDS, SPREAD_SECONDS * 2.0 ** min(attempts - 1, 16))
    else:
        pause = asked + chance * SPREAD_SECONDS
    return pause if pause < left else None


def _asked(retry_after: str, now: float) -> float | None:
    """The seconds that a Retry-After header asks for, as a number or a date; None if it makes no sense.

    urllib3 reads the header too, but only against the clock of this machine.
    """
    text = retry_after.strip()
    try:
        if text.isascii() and text.isdecimal():
            return float(int(text))
        moment = parsedate_to_datetime(text)
        return max(0.0, (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() - now)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
