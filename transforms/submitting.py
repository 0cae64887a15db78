"""Handing completed forms in: the port to iTel, and the step that submits through it.

A submission's end is a value, :class:`Accepted` or :class:`Rejected`, no matter what the API does: one bad task, or an
hour's outage, must not hold up the tables.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Protocol

from cachetools import TTLCache
from pydantic_core import to_json

from itel_cabinet.transforms.ordering import map_in_key_order
from itel_cabinet.transforms.records import Failure, Skip
from itel_cabinet.transforms.submissions import Submission, Submitted, scrub

__all__ = ["REMEMBERED_SECONDS", "Accepted", "Itel", "NewestContents", "Rejected", "submit"]

_ASSIGNMENTS_REMEMBERED = 50_000  # some 15 MB
REMEMBERED_SECONDS = 600.0
"""How long it is remembered what iTel was handed in last."""
_CREATED = 201  # RFC 9110, 15.3.2: something new has come of this very request


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

    def submit(self, submission: Submission) -> Accepted | Rejected:
        """Hand in one form."""

    def submit_batch(self, batch: Sequence[Submission]) -> Accepted | Rejected:
        """Hand in some forms, ``batch_size`` at most and of different assignments: all are accepted, or none is."""


class NewestContents:
    """What iTel was handed in last for each assignment, by this process. Thread-safe.

    ClaimX may report one completion by several events; iTel wants it once. Forgotten after ``seconds``, since another
    process may hand in something else meanwhile, and earlier the assignments of longest ago; with 0, all are handed in.
    ``clock`` is monotonic.
    """

    def __init__(
        self,
        seconds: float = REMEMBERED_SECONDS,
        *,
        most: int = _ASSIGNMENTS_REMEMBERED,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._newest: TTLCache[int, tuple[str, bytes]] = TTLCache(most, seconds, timer=clock)
        self._lock = threading.Lock()

    def hold(self, submission: Submission) -> bool:
        """Whether iTel has just this for the assignment, by another event.

        A repeat of the same event is not: its key tells iTel, and its result may not have been reported.
        """
        with self._lock:
            newest = self._newest.get(submission.assignment_id)
        return newest is not None and newest[0] != submission.event_id and newest[1] == _digest(submission)

    def learn(self, submission: Submission, answer: Accepted | Rejected) -> None:
        """Take in what became of one that was handed in alone.

        It is remembered if iTel has taken it as new. Any other answer may be about a key that an earlier run has sent,
        with what the form was then, or leaves open what iTel has: then nothing is known, unless it is the same event.
        """
        is_new = isinstance(answer, Accepted) and answer.status == _CREATED and not answer.duplicate
        with self._lock:
            newest = self._newest.get(submission.assignment_id)
            if is_new or (newest is not None and newest[0] != submission.event_id):
                self._newest.pop(submission.assignment_id, None)
            if is_new:
                self._newest[submission.assignment_id] = (submission.event_id, _digest(submission))

    def forget(self, submissions: Sequence[Submission]) -> None:
        """Remember nothing of their assignments: the answer to a batch does not say which of it was new."""
        with self._lock:
            for one in submissions:
                self._newest.pop(one.assignment_id, None)


def _digest(submission: Submission) -> bytes:
    content = submission.payload
    for text in submission.passing:
        # Of a link its path stays; of the key nothing.
        stays = "" if text == submission.key else text.partition("?")[0]
        content = content.replace(to_json(text), to_json(stays))
    return blake2b(content, digest_size=16).digest()


def submit(
    submissions: Sequence[Submission],
    *,
    client: Callable[[], Itel],
    newest: Callable[[], NewestContents],
    pool: Callable[[], Executor],
    clock: Callable[[], float],
    count: Callable[[str, Sequence[Submission]], None],
    shadow: Callable[[], Callable[[Submission, str], None]] | None = None,
) -> list[Submitted | Failure | Skip]:
    """Hand in all of them: those of one assignment one after the other in their order, the rest side by side.

    In batches if the client has them; one that is refused is sent again one by one, so that a bad task sinks none of
    its neighbours. What iTel has already by another event is skipped, as ``unchanged``.

    Args:
        submissions: a batch, in the order of their records.
        client: gives the process's client; called on the worker, as ``newest`` and ``pool`` are.
        newest: gives what iTel was handed in before.
        pool: gives the threads to call from.
        clock: epoch seconds.
        count: is called with an outcome and the submissions that ended so, from any of the threads.
        shadow: gives what is called with each submission's shadow and the outcome, from any of the threads; must not
            wait.

    Returns:
        The outcomes in the order of ``submissions``, when every call has ended; so too with what the client raises.
    """
    api, contents = client(), newest()
    offer = None if shadow is None else shadow()

    def skip(submission: Submission) -> Skip:
        count("unchanged", [submission])
        return Skip(submission.record, "unchanged")

    def hand_in(submission: Submission) -> Submitted | Failure | Skip:
        if contents.hold(submission):
            return skip(submission)
        first_at = clock()
        answer = api.submit(submission)
        contents.learn(submission, answer)
        return describe([submission], answer, first_at)[0]

    def hand_in_batch(batch: Sequence[Submission]) -> Sequence[Submitted | Failure | Skip]:
        if len(batch) == 1:
            return [hand_in(batch[0])]
        first_at = clock()
        answer = api.submit_batch(batch)
        contents.forget(batch)
        if isinstance(answer, Rejected) and answer.divisible:
            return [hand_in(one) for one in batch]
        return describe(batch, answer, first_at)

    def describe(
        batch: Sequence[Submission], answer: Accepted | Rejected, first_at: float
    ) -> Sequence[Submitted | Failure]:
        excerpt = scrub(answer.excerpt, batch)
        count(answer.outcome, batch)
        for one in batch if offer else ():
            if offer and one.shadow:
                offer(one.shadow, answer.outcome)
        if isinstance(answer, Accepted):
            return [
                Submitted(one, answer.status, answer.attempts, excerpt, answer.duplicate, answer.created_id)
                for one in batch
            ]
        error = f"{answer.error}: {excerpt}" if excerpt else answer.error
        now = clock()
        return [
            Failure(
                one.record,
                "submit",
                answer.error_class,
                error,
                first_at,
                now,
                answer.attempts,
                one.event_id,
                one.assignment_id,
            )
            for one in batch
        ]

    if api.batch_size == 1:
        return map_in_key_order(submissions, lambda submission: submission.assignment_id, hand_in, pool())
    outcomes: dict[int, Submitted | Failure | Skip] = {}
    for turn in _turns(submissions):
        unchanged = {index: skip(submissions[index]) for index in turn if contents.hold(submissions[index])}
        outcomes.update(unchanged)
        left = [index for index in turn if index not in unchanged]
        batches = [left[start : start + api.batch_size] for start in range(0, len(left), api.batch_size)]
        answers = map_in_key_order(
            batches, lambda batch: batch[0], lambda batch: hand_in_batch([submissions[at] for at in batch]), pool()
        )
        for batch, answer in zip(batches, answers, strict=True):
            outcomes.update(zip(batch, answer, strict=True))
    return [outcomes[index] for index in range(len(submissions))]


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
