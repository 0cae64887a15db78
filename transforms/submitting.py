"""Handing completed forms in: the port to iTel, and the step that submits through it.

A submission's end is a value, :class:`Accepted` or :class:`Rejected`, no matter what the API does: one bad task, or an
hour's outage, must not hold up the tables.
"""

from __future__ import annotations

import hashlib
import itertools
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Protocol

from itel_cabinet.transforms.ledger import Entry, Outcome, Resubmission, Sent
from itel_cabinet.transforms.ordering import map_in_key_order
from itel_cabinet.transforms.records import Failure, Skip
from itel_cabinet.transforms.submissions import Submission, Submitted, scrub

__all__ = [
    "ASSIGNMENTS_REMEMBERED",
    "CREATED",
    "REMEMBERED_SECONDS",
    "Accepted",
    "Itel",
    "NewestContents",
    "Rejected",
    "digest_event",
    "submit",
]

ASSIGNMENTS_REMEMBERED = 50_000
"""Of how many assignments it is remembered what iTel was handed in last; some 10 MB."""
REMEMBERED_SECONDS = 600.0
"""How long it is remembered, where there is no ledger that says what others have handed in."""
CREATED = 201  # RFC 9110, 15.3.2: something new has come of this very request


@dataclass(frozen=True, slots=True)
class Accepted:
    """iTel has the submission. ``duplicate``: it had it before this call. ``excerpt`` is the answer's beginning, one
    line; ``created_id`` what it calls that which has come of the submission."""

    status: int
    attempts: int
    excerpt: str
    duplicate: bool = False
    created_id: str | None = field(default=None, compare=False)

    @property
    def outcome(self) -> str:
        """As it is counted."""
        return "duplicate" if self.duplicate else "accepted"


@dataclass(frozen=True, slots=True)
class Rejected:
    """iTel does not have the submission, as far as is known.

    ``error_class`` is a stable name: ``refused``, ``unauthorized`` (the credentials, or a proxy's), ``redirected``,
    ``outage`` (an answer that may pass, to the last try), ``timeout``, ``unreachable``, ``reset``, ``breaker_open``
    (not even tried: too many calls have failed). ``status`` is that of the last answer, if one came. ``error`` is one
    line for a person, without anything from the answer's body; ``excerpt`` is the body's beginning, which may repeat
    what was sent.
    """

    error_class: str
    status: int | None
    attempts: int
    error: str
    excerpt: str = ""

    @property
    def outcome(self) -> str:
        """As it is counted."""
        return self.error_class

    @property
    def outage(self) -> bool:
        """Whether iTel, its address or credentials are at fault, so that the submission may well be accepted later."""
        return self.error_class != "refused"

    @property
    def divisible(self) -> bool:
        """Of a batch: whether one of its submissions may be at fault, so that each must be tried alone.

        That a server breaks (500) over one of them is likelier than that it is down, which gateways tell by 502 to 504.
        """
        return self.error_class == "refused" or self.status == 500


class Itel(Protocol):
    """Where submissions go. Thread-safe; a call may be repeated, which the other side recognises by its key."""

    @property
    def batch_size(self) -> int:
        """How many submissions one call may take; with 1 there are no batches."""

    def calls_at_once(self) -> int:
        """How many calls iTel bears side by side now."""

    def submit(self, submission: Submission) -> Accepted | Rejected:
        """Hand in one form."""

    def submit_batch(self, batch: Sequence[Submission]) -> Accepted | Rejected:
        """Hand in some forms, ``batch_size`` at most and of different assignments: all are accepted, or none is."""


# What iTel has of an assignment: since when (epoch seconds), until when that is believed (monotonic), by which event (a
# digest), and the content, if that can be known. As bytes: in objects 50,000 take 20 MB, scattered over the heap.
_NEWEST = struct.Struct("dd16s?32s")


class NewestContents:
    """What iTel was handed in last for each assignment, as far as is known. Thread-safe.

    ClaimX may report one completion by several events; iTel wants it once. Forgotten after ``seconds``, for where
    another process may hand in something else without a word, and earlier the assignments of longest ago; with 0, all
    are handed in. ``clock`` is monotonic.
    """

    def __init__(
        self,
        seconds: float = REMEMBERED_SECONDS,
        *,
        most: int = ASSIGNMENTS_REMEMBERED,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._newest: dict[int, bytes] = {}  # what was taken in last is the last
        self._seconds, self._most, self._clock = seconds, most, clock
        self._lock = threading.Lock()

    def hold(self, submission: Submission) -> bool:
        """Whether iTel has just this for the assignment, by another event.

        A repeat of the same event is not: its key tells iTel, and its result may not have been reported.
        """
        with self._lock:
            newest = self._newest.get(submission.assignment_id)
        if newest is None:
            return False
        _, until, event, is_known, content = _NEWEST.unpack(newest)
        if until <= self._clock() or event == digest_event(submission.event_id):
            return False
        return bool(is_known) and content == _content(submission)

    def learn(self, submission: Submission, answer: Accepted | Rejected, at: float = 0.0) -> None:
        """Take in what became of one that was handed in alone, at ``at`` (epoch seconds).

        It is remembered if iTel has taken it as new. Any other answer may be about a key that an earlier run has sent,
        with what the form was then, or leaves open what iTel has: then nothing is known, unless it is the same event.
        """
        is_new = isinstance(answer, Accepted) and answer.status == CREATED and not answer.duplicate
        self.take([(submission.assignment_id, at, submission.event_id, _content(submission) if is_new else None)])

    def forget(self, submissions: Sequence[Submission], at: float = 0.0) -> None:
        """Remember nothing of their assignments: the answer to a batch does not say which of it was new."""
        self.take((one.assignment_id, at, "", None) for one in submissions)

    def take(self, calls: Iterable[tuple[int, float, str, bytes | None]]) -> None:
        """Take in what iTel was handed in: assignment, time (epoch seconds), event and content. What is known of later
        stays. Without a content nothing is known of what iTel has since then, unless it was the same event."""
        if not self._seconds:
            return
        with self._lock:
            held, until = self._newest, self._clock() + self._seconds
            for assignment_id, at, event_id, content in calls:
                newest, event = held.get(assignment_id), digest_event(event_id)
                if newest is not None:
                    known_at, _, known_event, *_ = _NEWEST.unpack(newest)
                    if known_at > at or (content is None and known_event == event):
                        continue
                    del held[assignment_id]
                held[assignment_id] = _NEWEST.pack(at, until, event, content is not None, content or b"")
            for assignment_id in [*itertools.islice(held, max(0, len(held) - self._most))]:
                del held[assignment_id]


def digest_event(event_id: str) -> bytes:
    """What stands for an event's id where many are held: 16 bytes."""
    return hashlib.blake2b(event_id.encode(errors="replace"), digest_size=16).digest()


def _content(submission: Submission) -> bytes:
    return bytes.fromhex(submission.content_sha256)


def no_key(_: Sequence[Submission]) -> None:
    """For those who keep no ledger."""


def submit(
    submissions: Sequence[Submission],
    *,
    client: Callable[[], Itel],
    newest: Callable[[], NewestContents],
    pool: Callable[[], Executor],
    clock: Callable[[], float],
    count: Callable[[str, Sequence[Submission]], None],
    shadow: Callable[[], Callable[[Submission, str], None]] | None = None,
    key: Callable[[Sequence[Submission]], str | None] = no_key,
    resubmission: Resubmission | None = None,
) -> list[Submitted | Failure | Skip]:
    """Hand in all of them: those of one assignment one after the other in their order, the rest side by side.

    In batches if the client has them; one that is refused is sent again one by one, so that a bad task sinks none of
    its neighbours. What iTel has already by another event is skipped, as ``unchanged``; an event that the batch holds
    twice, as ``already_submitted`` once iTel has it.

    Args:
        submissions: a batch, in the order of their records.
        client: gives the process's client; called on the worker, as ``newest`` and ``pool`` are.
        newest: gives what iTel was handed in before.
        pool: gives the threads to call from.
        clock: epoch seconds.
        count: is called with an outcome and the submissions that ended so, from any of the threads.
        shadow: gives what is called with each submission's shadow and the outcome, from any of the threads; must not
            wait.
        key: the idempotency key under which these go out together, for the ledger.
        resubmission: what is sent even if it is unchanged.

    Returns:
        The outcomes in the order of ``submissions``, when every call has ended; so too with what the client raises.
    """
    api, contents = client(), newest()
    offer = None if shadow is None else shadow()

    submitted: set[str] = set()

    def skip(submission: Submission) -> Skip | None:
        """Why it need not be sent."""
        if submission.event_id in submitted:
            return Skip(submission.record, "already_submitted")
        is_wanted = resubmission is not None and resubmission.covers(submission.assignment_id)
        if is_wanted or not contents.hold(submission):
            return None
        count("unchanged", [submission])
        now = clock()
        entry = _enter(submission, Outcome.UNCHANGED, now, now, sent=_sent(submission, None, is_kept=False))
        return Skip(submission.record, "unchanged", entry)

    def hand_in(submission: Submission) -> Submitted | Failure | Skip:
        if (skipped := skip(submission)) is not None:
            return skipped
        first_at = clock()
        answer = api.submit(submission)
        now = clock()
        contents.learn(submission, answer, now)
        return describe([submission], answer, first_at, now)[0]

    def hand_in_batch(batch: Sequence[Submission]) -> Sequence[Submitted | Failure | Skip]:
        if len(batch) == 1:
            return [hand_in(batch[0])]
        first_at = clock()
        answer = api.submit_batch(batch)
        now = clock()
        contents.forget(batch, now)
        if isinstance(answer, Rejected) and answer.divisible:
            return [hand_in(one) for one in batch]
        return describe(batch, answer, first_at, now)

    def describe(
        batch: Sequence[Submission], answer: Accepted | Rejected, first_at: float, now: float
    ) -> Sequence[Submitted | Failure]:
        excerpt = scrub(answer.excerpt, batch)
        count(answer.outcome, batch)
        name = key(batch)
        described: list[Submitted | Failure] = []
        for one in batch:
            offered: tuple[Entry, ...] = ()
            if offer and one.shadow:
                offer(one.shadow, answer.outcome)
                offered = _enter(one, Outcome.SHADOW, now, now, sent=_sent(one.shadow, None))
            if isinstance(answer, Accepted):
                submitted.add(one.event_id)
                outcome, reason = Outcome(answer.outcome), None
            else:
                outcome, reason = Outcome.REFUSED, answer.error_class
            own = _enter(one, outcome, first_at, now, reason, _sent(one, name), answer)
            described.append(_describe(one, answer, excerpt, first_at, now, (*own, *offered)))
        return described

    if api.batch_size == 1:
        return map_in_key_order(submissions, lambda one: one.assignment_id, hand_in, pool(), api.calls_at_once)
    outcomes: dict[int, Submitted | Failure | Skip] = {}
    for turn in _turns(submissions):
        skipped = {index: one for index in turn if (one := skip(submissions[index])) is not None}
        outcomes.update(skipped)
        left = [index for index in turn if index not in skipped]
        batches = [left[start : start + api.batch_size] for start in range(0, len(left), api.batch_size)]
        answers = map_in_key_order(
            batches,
            lambda batch: batch[0],
            lambda batch: hand_in_batch([submissions[at] for at in batch]),
            pool(),
            api.calls_at_once,
        )
        for batch, answer in zip(batches, answers, strict=True):
            outcomes.update(zip(batch, answer, strict=True))
    return [outcomes[index] for index in range(len(submissions))]


def _describe(
    submission: Submission,
    answer: Accepted | Rejected,
    excerpt: str,
    first_at: float,
    now: float,
    entries: tuple[Entry, ...],
) -> Submitted | Failure:
    if isinstance(answer, Accepted):
        said = (answer.status, answer.attempts, excerpt, answer.duplicate, answer.created_id)
        return Submitted(submission, *said, entries=entries)
    error = f"{answer.error}: {excerpt}" if excerpt else answer.error
    who = (submission.event_id, submission.assignment_id)
    return Failure(
        submission.record, "submit", answer.error_class, error, first_at, now, answer.attempts, *who, entries=entries
    )


def _sent(submission: Submission, key: str | None, *, is_kept: bool = True) -> Sent:
    return Sent(submission.payload, submission.payload_sha256, submission.content_sha256, key, is_kept)


def _enter(
    submission: Submission,
    outcome: Outcome,
    first_at: float,
    answered_at: float,
    reason: str | None = None,
    sent: Sent | None = None,
    answer: Accepted | Rejected | None = None,
) -> tuple[Entry, ...]:
    """The entry of one end; none for a submission that names no event."""
    if submission.event is None:
        return ()
    status, attempts = (None, None) if answer is None else (answer.status, answer.attempts)
    created_id = answer.created_id if isinstance(answer, Accepted) else None
    who = (submission.record, submission.event, outcome)
    return (Entry(*who, first_at, answered_at, reason, sent, status, attempts, created_id),)


def _turns(submissions: Sequence[Submission]) -> list[list[int]]:
    """Indices of submissions: the first of each assignment, then the second of each that has more, and so on.

    Turn by turn, no batch holds two of one assignment, and a later one is sent when the earlier is answered.
    """
    turns: list[list[int]] = []
    seen: Counter[int] = Counter()
    for index, submission in enumerate(submissions):
        turn = seen[submission.assignment_id]
        seen[submission.assignment_id] += 1
        if turn == len(turns):
            turns.append([])
        turns[turn].append(index)
    return turns
