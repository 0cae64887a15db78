"""Whether and when a call is tried again: pure, so that it can be tested over all that may come."""

from __future__ import annotations

from itel_cabinet.io.http.answers import Meaning, read_retry_after
from itel_cabinet.io.http.transport import CallError, Reply

__all__ = ["ALIVE_SECONDS", "BACKOFF_CAP_SECONDS", "SPREAD_SECONDS", "pause_before_retry"]

ALIVE_SECONDS = 0.2
"""The longest pause while the API answers others: it fails at random, and a batch waits for its unluckiest call."""

SPREAD_SECONDS = 0.5
"""The first pause at most, and what is added to a pause that the server asks for, so that callers spread."""
BACKOFF_CAP_SECONDS = 10.0


def pause_before_retry(
    outcome: Reply | CallError,
    *,
    attempts: int,
    max_retries: int,
    left: float,
    chance: float,
    now: float,
    is_alive: bool = False,
) -> float | None:
    """Seconds to wait before the next try; None if there shall be none.

    ``attempts`` tries have been made, of which ``outcome`` is the last. ``left`` is how many seconds the whole call has
    left: a pause always ends before that. ``chance`` (0 to 1) is the jitter, ``now`` the time in epoch seconds, which a
    Retry-After date is compared with. ``is_alive``: the API answers other calls meanwhile.
    """
    if isinstance(outcome, Reply):
        again = outcome.meaning is Meaning.AGAIN
    else:
        again = outcome.kind in ("timeout", "unreachable", "reset", "outage")
    if not again or attempts > max_retries:
        return None
    asked = read_retry_after(outcome.retry_after, now)
    if asked is None:
        growing = min(BACKOFF_CAP_SECONDS, SPREAD_SECONDS * 2.0 ** min(attempts - 1, 16))
        pause = chance * (ALIVE_SECONDS if is_alive else growing)
    else:
        pause = asked + chance * SPREAD_SECONDS
    return pause if pause < left else None
