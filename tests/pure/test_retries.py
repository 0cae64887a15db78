"""Whether and when a call is tried again, over all that may come."""

from __future__ import annotations

from email.utils import formatdate

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from itel_cabinet.io.http import CallError, FailureKind, Meaning, Reply
from itel_cabinet.io.http.retries import ALIVE_SECONDS, BACKOFF_CAP_SECONDS, SPREAD_SECONDS, pause_before_retry

NOW = 1_780_000_000.0
TRANSIENT_KINDS = ("timeout", "unreachable", "reset", "outage")
KINDS: tuple[FailureKind, ...] = (*TRANSIENT_KINDS, "too_large", "unauthorized", "breaker_open")  # type: ignore[assignment]

# What a header may hold: seconds, dates around now, and what is neither.
_SENSIBLE = st.integers(0, 10**6).map(str) | st.floats(NOW - 10**6, NOW + 10**6).map(
    lambda s: formatdate(s, usegmt=True)
)
_RETRY_AFTER = st.none() | _SENSIBLE | st.text(max_size=40) | st.integers().map(str) | st.floats().map(str)


def _outcomes() -> st.SearchStrategy[Reply | CallError]:
    replies = st.builds(
        lambda status, asked: Reply(status, {} if asked is None else {"Retry-After": asked}, b""),
        st.integers(200, 999),
        _RETRY_AFTER,
    )
    failures = st.builds(
        lambda kind, asked: CallError(kind, "x", retry_after=asked), st.sampled_from(KINDS), _RETRY_AFTER
    )
    return replies | failures


@given(
    outcome=_outcomes(),
    attempts=st.integers(1, 10_000),
    max_retries=st.integers(0, 100),
    left=st.floats(-10, 120),
    chance=st.floats(0, 1),
    now=st.floats(0, 4e9),
)
@example(Reply(500, {"Retry-After": "9" * 5000}, b""), 1, 9, 30.0, 1.0, NOW)
@example(Reply(500, {"Retry-After": "Fri, 31 Dec 9999 23:59:59 -9999"}, b""), 1, 9, 30.0, 1.0, NOW)
@example(Reply(500, {"Retry-After": "Mon, 01 Jan 0001 00:00:00 +1400"}, b""), 1, 9, 30.0, 1.0, NOW)
def test_the_retry_decision(
    outcome: Reply | CallError, attempts: int, max_retries: int, left: float, chance: float, now: float
) -> None:
    pause = pause_before_retry(outcome, attempts=attempts, max_retries=max_retries, left=left, chance=chance, now=now)
    if isinstance(outcome, Reply):
        worth = outcome.meaning is Meaning.AGAIN
        asked = outcome.headers.get("Retry-After")
    else:
        worth = outcome.kind in TRANSIENT_KINDS
        asked = outcome.retry_after
    if pause is not None:
        assert worth
        assert attempts <= max_retries
        assert 0 <= pause < left
    elif asked is None:
        assert not worth or attempts > max_retries or left <= BACKOFF_CAP_SECONDS
    if asked is None and worth and attempts <= max_retries and left > BACKOFF_CAP_SECONDS:
        assert pause == pytest.approx(chance * min(BACKOFF_CAP_SECONDS, SPREAD_SECONDS * 2.0 ** min(attempts - 1, 16)))


@given(st.integers(0, 10**6), st.floats(0, 1), st.booleans())
def test_what_the_server_asks_for_is_waited_and_a_little_more(seconds: int, chance: float, as_date: bool) -> None:
    asked = formatdate(NOW + seconds, usegmt=True) if as_date else str(seconds)
    pause = pause_before_retry(
        Reply(500, {"Retry-After": asked}, b""), attempts=1, max_retries=1, left=1e9, chance=chance, now=NOW
    )
    assert pause == pytest.approx(seconds + chance * SPREAD_SECONDS, abs=1e-6)


def test_a_date_in_the_past_asks_for_nothing() -> None:
    reply = Reply(500, {"Retry-After": formatdate(NOW - 3600, usegmt=True)}, b"")
    assert pause_before_retry(reply, attempts=5, max_retries=9, left=30, chance=0.5, now=NOW) == 0.25


@pytest.mark.parametrize(
    ("attempts", "most"), [(1, 0.5), (2, 1.0), (3, 2.0), (4, 4.0), (5, 8.0), (6, 10.0), (7, 10.0), (5_000, 10.0)]
)
def test_pauses_double_up_to_a_bound(attempts: int, most: float) -> None:
    def pause(chance: float) -> float | None:
        return pause_before_retry(
            CallError("reset", "x"), attempts=attempts, max_retries=10_000, left=60, chance=chance, now=NOW
        )

    assert (pause(0.0), pause(0.5), pause(1.0)) == (0.0, most / 2, most)  # full jitter


@pytest.mark.parametrize("attempts", [1, 2, 9])
def test_an_api_that_answers_others_is_tried_again_soon(attempts: int) -> None:
    pause = pause_before_retry(
        CallError("reset", "x"), attempts=attempts, max_retries=9, left=60, chance=0.5, now=NOW, is_alive=True
    )
    assert pause == ALIVE_SECONDS / 2
    asked = Reply(500, {"Retry-After": "7"}, b"")
    assert pause_before_retry(asked, attempts=1, max_retries=9, left=60, chance=0.0, now=NOW, is_alive=True) == 7
