"""From a completed task to what is handed to iTel, and what became of it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from pydantic_core import to_json

from itel_cabinet.transforms.contracts import Body, Contract, Refusal
from itel_cabinet.transforms.enrichment import CabinetTask
from itel_cabinet.transforms.events import TaskEvent
from itel_cabinet.transforms.forms import parse_details
from itel_cabinet.transforms.ledger import Entry, Outcome, refuse
from itel_cabinet.transforms.records import Failure, Record, Skip

__all__ = ["Submission", "Submitted", "build_submissions", "scrub", "scrub_texts"]

_REDACTED = "[redacted]"
_SHORTEST_TAIL = 4  # characters of a value cut off by the end of an excerpt; fewer tell nothing of a person


@dataclass(frozen=True, slots=True)
class Submission:
    """One completed form on its way: ``payload`` is the JSON text that iTel gets, ``event_id`` its idempotency key."""

    record: Record
    event_id: str
    assignment_id: int
    payload: bytes = field(repr=False)
    personal: tuple[str, ...] = field(repr=False)
    """What in the payload, and in what it was made of, is about a person; longest first."""
    project_id: str = ""
    task_id: int = 0
    key: str | None = None
    """The field of the payload by which iTel recognises a repeat, where it is not a header."""
    passing: tuple[str, ...] = field(default=(), repr=False)
    """Texts in the payload that differ from one time to the next for the same form: the key, and signed links."""
    shadow: Submission | None = field(default=None, repr=False)
    """What a second endpoint gets of the same form."""
    event: TaskEvent | None = field(default=None, repr=False)
    """What the ledger is to say of it; without, it holds nothing of it."""
    response_id: str = ""
    """ClaimX's id of the answered form."""
    payload_sha256: str = field(init=False, repr=False, compare=False)
    content_sha256: str = field(init=False, repr=False, compare=False)
    """The same where iTel would learn nothing new: of the answered form and the payload, without what is passing."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "payload_sha256", hashlib.sha256(self.payload).hexdigest())
        content = hashlib.sha256(_without_passing(self))
        content.update(b"\0" + self.response_id.encode(errors="replace"))
        object.__setattr__(self, "content_sha256", content.hexdigest())


@dataclass(frozen=True, slots=True)
class Submitted:
    """A submission that iTel has. ``duplicate``: it had it before this call; ``excerpt`` is free of personal data."""

    submission: Submission
    status: int
    attempts: int
    excerpt: str
    duplicate: bool
    created_id: str | None = field(default=None, compare=False)
    """What iTel calls that which has come of it."""
    entries: tuple[Entry, ...] = field(default=(), compare=False, repr=False)
    """What the ledger is to hold of it."""


def build_submissions(
    tasks: Sequence[CabinetTask],
    *,
    contract: Contract,
    statuses: frozenset[str],
    shadow: Contract | None = None,
    clock: Callable[[], float],
) -> Iterator[Submission | Failure | Skip]:
    """A submission for each task with one of ``statuses`` whose form the contract's gate lets through; a Failure where
    the form, or what the contract requires of it, is missing. With it goes what ``shadow`` makes of the form, if its
    gate lets it through and it has a body for it, no matter which tasks it reads."""
    now = clock()
    for task in tasks:
        record, event = task.record, task.event
        failure = partial(refuse, record, event, "payload")
        if event.task_status not in statuses:
            yield Skip(record, "status_not_submitted")
        elif task.is_ahead:
            error = f"ClaimX says {task.details.status:.40}, the event COMPLETED; replay it once both agree"
            yield failure("not_completed_yet", error, now, now)
        elif task.form is None:
            error = "ClaimX has no form for this task yet; replay the event once it has"
            yield failure("no_form", error, now, now)
        elif not contract.passes(task.details, task.form, event):
            held = Entry(record, event, Outcome.HELD, now, now, "held_by_gate")
            yield Skip(record, "held_by_gate", (held,))
        else:
            body = contract.build(task.details, task.form, event, task.project, task.links)
            if isinstance(body, Refusal):
                yield failure(body.error_class, body.error, now, now)
                continue
            second = None if shadow is None else _shadow(task, shadow)
            yield _submission(task, body, None if second is None else _submission(task, second, None))


def _shadow(task: CabinetTask, contract: Contract) -> Body | None:
    # Read once more: a task keeps of its form what its own contract has read.
    form = contract.read_form(parse_details(task.details.text.encode(), task.details.assignment_id))
    if not contract.passes(task.details, form, task.event):
        return None
    body = contract.build(task.details, form, task.event, task.project, task.links)
    return body if isinstance(body, Body) else None


def _submission(task: CabinetTask, body: Body, shadow: Submission | None) -> Submission:
    event = task.event
    return Submission(
        task.record,
        event.event_id,
        event.assignment_id,
        body.payload,
        body.personal,
        event.project_id,
        event.task_id,
        body.key,
        body.passing,
        shadow,
        event,
        task.details.form_response_id or "",
    )


def _without_passing(submission: Submission) -> bytes:
    content = submission.payload
    for text in submission.passing:
        # Of a link its path stays; of the key nothing.
        stays = "" if text == submission.key else text.partition("?")[0]
        content = content.replace(to_json(text), to_json(stays))
    return content


def scrub(text: str, submissions: Iterable[Submission]) -> str:
    """``text``, such as an answer that repeats what was sent, without the personal data of these submissions.

    Found in any case and with any white space between its words, as it is or as JSON spells it; at the end of ``text``,
    which may be cut off, also its beginning.
    """
    return scrub_texts(text, (value for one in submissions for value in one.personal))


def scrub_texts(text: str, people: Iterable[str]) -> str:
    """As :func:`scrub`, of these values."""
    spellings = sorted({form for value in people for form in _spellings(value)}, key=len)
    one_line = " ".join(text.split()).lower()
    there = [one for one in spellings if _may_hold(text, one_line, one)]
    if there:
        # In one pass, the longest first: a short value must not be sought in the mark that another has left.
        anyone = "|".join(r"\s+".join(map(re.escape, spelling.split())) for spelling in reversed(there))
        text = re.sub(anyone, _REDACTED, text, flags=re.IGNORECASE)
    tail = max((_tail(text, spelling) for spelling in spellings), default=0)
    return text[: len(text) - tail] + _REDACTED if tail else text


def _may_hold(text: str, one_line: str, spelling: str) -> bool:
    """Whether a text may hold a value: quick to see, while a pattern of all of them costs most where none is there."""
    return spelling.lower() in one_line if text.isascii() and spelling.isascii() else True


def _spellings(value: str) -> set[str]:
    """A value as it is and as JSON has it, with plain and with escaped letters; words parted by single spaces."""
    written: tuple[str, ...] = (value,)
    if not (value.isascii() and value.isprintable()) or '"' in value or "\\" in value:
        written += tuple(json.dumps(value, ensure_ascii=ascii_only)[1:-1] for ascii_only in (True, False))
    return {" ".join(form.split()) for form in written}


def _tail(text: str, spelling: str) -> int:
    """How many characters at the end of ``text`` are the beginning of a value, if they are enough to tell."""
    longest = min(len(text), len(spelling))
    if not (text.isascii() and spelling.isascii()):
        lengths = range(longest, _SHORTEST_TAIL - 1, -1)
        return next((n for n in lengths if text[-n:].lower() == spelling[:n].lower()), 0)
    end, value = text[len(text) - longest :].lower(), spelling.lower()
    start = end.find(value[:_SHORTEST_TAIL])
    while 0 <= start <= longest - _SHORTEST_TAIL:
        if value.startswith(end[start:]):
            return longest - start
        start = end.find(value[:_SHORTEST_TAIL], start + 1)
    return 0
