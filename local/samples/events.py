"""A seeded generator of realistic events, of the ClaimX answers behind them, and of the ways in which they go wrong.

The same seed and start give the same records, byte for byte. :class:`Generator` makes messages for
`itel.cabinet.task.tracking` (:meth:`Generator.tracking_messages`) and for `claimx.events.enriched`
(:meth:`Generator.claimx_events`); :func:`produce` writes them to Kafka, each after its ClaimX answer.
"""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime, timedelta
from itertools import cycle, islice
from typing import Any, Literal, TypeAlias

import requests
from confluent_kafka import KafkaError, Producer
from confluent_kafka import Message as DeliveryReport

from itel_cabinet.local.samples.forms import SampleForms, is_held
from itel_cabinet.local.simulators import ClaimXSimulator
from itel_cabinet.transforms.contracts import Contract, load_shipped
from itel_cabinet.transforms.events import make_task_row

__all__ = [
    "BAD_KINDS",
    "ENRICHED_BAD_KINDS",
    "Expect",
    "Generator",
    "Produced",
    "Receipt",
    "Shares",
    "produce",
]

_OTHER_TASK_IDS = (24454, 32615, 32513)
_TRIGGER_NAME = "iTel Cabinet Repair Form Task"
_FIRST_ASSIGNMENT_ID = 5_430_000
_FIRST_PROJECT_ID = 5_400_000
_ASSIGNMENTS_PER_PROJECT = 3
_GARBAGE_BYTES = 900_000
_MOST_GARBAGE = 3
_EVERY_FAULT_FROM = 200
_PUT_BATCH = 200
_OTHER_EVENT_TYPES = (
    "PROJECT_CREATED",
    "PROJECT_FILE_ADDED",
    "PROJECT_MFN_ADDED",
    "POLICYHOLDER_INVITED",
    "POLICYHOLDER_JOINED",
    "VIDEO_COLLABORATION_INVITE_SENT",
    "VIDEO_COLLABORATION_COMPLETED",
)

Expect: TypeAlias = Literal["submitted", "tracked", "published", "skipped", "dead_letter"]
Json: TypeAlias = dict[str, Any]

BAD_KINDS = (
    "not_json",
    "not_an_object",
    "wrong_type",
    "missing_key",
    "empty_value",
    "null_value",
    "unknown_assignment",
    "huge_garbage",
)
ENRICHED_BAD_KINDS = (*BAD_KINDS, "missing_assignment")


@dataclass(frozen=True, slots=True)
class Produced:
    """A record to produce, why it is there and what must become of it.

    ``kind`` is why: ``assigned``, ``in_progress``, ``cancelled``, ``completed``, ``resubmitted`` (answers changed, a
    photo less), ``late`` (an older event after the COMPLETED one of its assignment), ``repeated`` (an earlier record
    once more), ``completed_without_form``, ``other_task`` or one of :data:`BAD_KINDS`; on `claimx.events.enriched`
    ``with_task``, ``with_assignment_only``, ``other_task``, ``other_event`` or one of :data:`ENRICHED_BAD_KINDS`.

    ``expect`` is for the `cabinet` job: ``submitted`` (a row, and a submission accepted under ``event_id``),
    ``tracked`` (a row alone; but ``completed_without_form`` has a dead letter ``no_form`` beside its row), ``skipped``
    or ``dead_letter``; for the `trigger` job ``published``, ``skipped`` or ``dead_letter``.

    ``details_json`` is ClaimX's answer from just before the record on; None where that does not change.
    """

    key: bytes
    value: bytes | None = field(repr=False)
    headers: tuple[tuple[str, bytes], ...] = field(repr=False)
    kind: str
    expect: Expect
    details_json: bytes | None = field(default=None, repr=False)
    assignment_id: int | None = None
    event_id: str | None = None

    @property
    def details(self) -> Json | None:
        """``details_json``, decoded again at each call."""
        return None if self.details_json is None else dict(json.loads(self.details_json))


@dataclass(frozen=True, slots=True)
class Receipt:
    """Where a record was written."""

    produced: Produced
    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class Shares:
    """Which part of all records is of which kind; the rest are first completions. ``bad`` is spread over all bad kinds.

    Shares are kept to the record, not left to chance; of 200 records or more, each bad kind is met at least once.
    """

    assigned: float = 0.30
    in_progress: float = 0.04
    cancelled: float = 0.01
    resubmitted: float = 0.06
    late: float = 0.04
    repeated: float = 0.04
    completed_without_form: float = 0.01
    other_task: float = 0.05
    bad: float = 0.06

    def __post_init__(self) -> None:
        values = {found.name: float(getattr(self, found.name)) for found in fields(self)}
        if min(values.values()) < 0 or sum(values.values()) > 1:
            raise ValueError(f"shares must not be negative and must not sum to more than 1: {values}")

    def kinds(self, n: int, bad: int) -> list[str]:
        """The kinds of the ``n - bad`` records that are not bad, without order."""
        counts = {found.name: round(n * getattr(self, found.name)) for found in fields(self) if found.name != "bad"}
        kinds = [kind for kind, count in counts.items() for _ in range(count)]
        return [*kinds, *["completed"] * (n - bad - len(kinds))][: n - bad]


@dataclass(slots=True)
class _Task:
    """An assignment as far as it has come; ``details`` is ClaimX's answer."""

    details: Json
    assigned_at: datetime
    changed_at: datetime

    @property
    def assignment_id(self) -> int:
        return int(self.details["assignmentId"])


class Generator:
    """Makes records; each call goes on where the one before ended (new assignments, a clock that has moved on).

    Event times begin at ``start`` and move on by ``step`` on average, half of it more or less, while late events look
    back. Not thread-safe.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        start: datetime = datetime(2026, 1, 10, 8, tzinfo=UTC),
        step: timedelta = timedelta(seconds=2),
        shares: Shares | None = None,
        contract: Contract | None = None,
    ) -> None:
        """``contract``, by default the one that is the default, says which tasks are completed, and of its gate's
        question every tenth form says no."""
        self._contract = contract or load_shipped()
        self._task_ids = sorted(self._contract.task_ids)
        self._random = random.Random(seed)
        self._seed = seed
        self._now = start
        self._step = step
        self._shares = shares or Shares()
        self._forms = SampleForms(self._random, gate=self._contract.gate_question)
        self._events = 0
        self._assignments = 0
        self._open: deque[_Task] = deque(maxlen=1000)
        self._completed: deque[_Task] = deque(maxlen=200)
        self._repeatable: deque[Produced] = deque(maxlen=200)
        self._turns: Counter[str] = Counter()

    def tracking_messages(self, n: int) -> Iterator[Produced]:
        """``n`` records for `itel.cabinet.task.tracking`."""
        bad = self._bad(BAD_KINDS, n)
        for kind in self._in_order([*bad, *self._shares.kinds(n, len(bad))]):
            produced = self._tracking_message(kind)
            if produced.expect in {"submitted", "tracked"} and kind != "completed_without_form":
                self._repeatable.append(replace(produced, details_json=None))
            yield produced

    def claimx_events(self, n: int) -> Iterator[Produced]:
        """``n`` records for `claimx.events.enriched`.

        Two of five task events bring the assignment's id alone, the others the task row. Of the shares, ``assigned``,
        ``other_task`` (as many events are of no task at all) and ``bad`` apply.
        """
        bad = self._bad(ENRICHED_BAD_KINDS, n)
        others = round(n * self._shares.other_task)
        with_task = max(0, n - len(bad) - 2 * others)
        kinds = ["other_task", "other_event"] * others
        kinds += ["with_assignment_only"] * (with_task * 2 // 5) + ["with_task"] * (with_task - with_task * 2 // 5)
        for kind in self._in_order([*bad, *kinds[: n - len(bad)]]):
            yield self._claimx_event(kind)

    def _bad(self, kinds: tuple[str, ...], n: int) -> list[str]:
        """The bad ones of ``n`` records: all ``kinds`` in turn, but a few huge ones at most."""
        count = round(n * self._shares.bad)
        if count and n >= _EVERY_FAULT_FROM:
            count = max(count, len(kinds))
        chosen = list(islice(cycle(kinds), count))
        garbage = [index for index, kind in enumerate(chosen) if kind == "huge_garbage"]
        for index in garbage[_MOST_GARBAGE:]:
            chosen[index] = "not_json"
        return chosen

    def _in_order(self, kinds: list[str]) -> Iterator[str]:
        self._random.shuffle(kinds)
        if "completed" in kinds:
            # What looks back at a completion needs one to look at.
            kinds.remove("completed")
            kinds.insert(0, "completed")
        for kind in kinds:
            self._now += self._step * self._random.uniform(0.5, 1.5)
            yield kind

    def _turn(self, name: str, *choices: Any) -> Any:
        """The next of ``choices``, one after the other over the calls of that name."""
        turn = self._turns[name]
        self._turns[name] += 1
        return choices[turn % len(choices)]

    # -- itel.cabinet.task.tracking --------------------------------------------------------------------------

    def _tracking_message(self, kind: str) -> Produced:
        match kind:
            case "assigned" | "in_progress" | "cancelled":
                return self._tracked(kind, self._opened(kind), "tracked")
            case "resubmitted" if self._completed:
                task = self._completed_before()
                task.details = self._forms.filled_in_again(task.details, self._now)
                task.changed_at = self._now
                return self._tracked(kind, task, self._completed_end(task))
            case "late" if self._completed:
                return self._late(self._completed_before())
            case "repeated" if self._repeatable:
                return replace(self._random.choice(self._repeatable), kind="repeated")
            case "completed_without_form":
                task = self._new_task("COMPLETED")
                return self._tracked(kind, task, "tracked")
            case "other_task":
                task = self._new_task("COMPLETED", task_id=self._other_task_id())
                return self._from_message(kind, "skipped", self._message(task), task)
            case _ if kind in BAD_KINDS:
                return self._bad_record(kind, self._message(self._new_task("COMPLETED")), "assignment_id")
            case _:
                task = self._newly_completed()
                return self._tracked("completed", task, self._completed_end(task))

    def _tracked(self, kind: str, task: _Task, expect: Expect) -> Produced:
        return replace(self._from_message(kind, expect, self._message(task), task), details_json=_encode(task.details))

    def _late(self, task: _Task) -> Produced:
        """An event of before the newest completion; ClaimX's answer stays as it is."""
        completed = self._turn("late", False, True)
        message = self._message(task)
        when = task.assigned_at + (task.changed_at - task.assigned_at) * self._random.uniform(0.1, 0.9)
        message["timestamp"] = when.isoformat()
        if not completed:
            message |= {
                "event_type": "CUSTOM_TASK_ASSIGNED",
                "task_status": "ASSIGNED",
                "timestamp": task.assigned_at.isoformat(),
            }
            message["task"] |= {"status": "ASSIGNED", "date_completed": None, "form_response_id": None}
        return self._from_message("late", self._completed_end(task) if completed else "tracked", message, task)

    def _from_message(self, kind: str, expect: Expect, message: Json, task: _Task) -> Produced:
        return Produced(
            key=str(task.assignment_id).encode(),
            value=_encode(message),
            headers=_headers(message),
            kind=kind,
            expect=expect,
            assignment_id=task.assignment_id,
            event_id=message["event_id"],
        )

    def _message(self, task: _Task) -> Json:
        """The message about the state that ``task`` is in, with an event id of its own."""
        event_id, details = self._next_event_id(), task.details
        status = str(details["status"])
        return {
            "trigger_name": _TRIGGER_NAME,
            "event_id": event_id,
            "event_type": _event_type(status),
            "project_id": str(details["projectId"]),
            "task_id": details["taskId"],
            "assignment_id": details["assignmentId"],
            "task_name": details["taskName"],
            # Statuses are compared without case, and now and then one comes in lower case.
            "task_status": status if self._turn("case", *[True] * 24, False) else status.lower(),
            "timestamp": self._now.isoformat(),
            "task": self._task_row(details, event_id),
            "project": {"project_id": str(details["projectId"])},
        }

    # -- claimx.events.enriched ------------------------------------------------------------------------------

    def _claimx_event(self, kind: str) -> Produced:
        if kind == "other_event":
            event = self._event(
                self._turn("event", *_OTHER_EVENT_TYPES), str(_FIRST_PROJECT_ID + self._random.randrange(1000))
            )
            event["media_id"] = str(self._random.randrange(10**6)) if "FILE" in event["event_type"] else None
            return Produced(
                event["project_id"].encode(), _encode(event), (), kind, "skipped", event_id=event["event_id"]
            )
        expect: Expect = "published"
        if kind == "other_task":
            task, expect = self._new_task("ASSIGNED", task_id=self._other_task_id()), "skipped"
        elif kind in ENRICHED_BAD_KINDS:
            task, expect = self._new_task("ASSIGNED"), "dead_letter"
        elif self._random.random() < self._shares.assigned:
            task = self._opened("assigned")
        else:
            task = self._newly_completed()
        event = self._event(_event_type(task.details["status"]), str(task.details["projectId"]))
        event["task_assignment_id"] = str(task.assignment_id)
        if kind in {"with_task", "wrong_type"} or (kind == "other_task" and self._turn("row", True, False)):
            event["task"] = self._task_row(task.details, event["event_id"])
            event["project"] = {"project_id": event["project_id"]}
        if kind == "missing_assignment":
            event["task_assignment_id"] = None
            return Produced(
                str(task.assignment_id).encode(), _encode(event), (), kind, expect, event_id=event["event_id"]
            )
        if kind in BAD_KINDS:
            return replace(self._bad_record(kind, event, "task"), headers=())
        return Produced(
            str(task.assignment_id).encode(),
            _encode(event),
            (),
            kind,
            expect,
            _encode(task.details),
            task.assignment_id,
            event["event_id"],
        )

    def _event(self, event_type: str, project_id: str) -> Json:
        return {
            "event_id": self._next_event_id(),
            "event_type": event_type,
            "project_id": project_id,
            "ingested_at": self._now.isoformat(),
            "media_id": None,
            "task_assignment_id": None,
            "video_collaboration_id": None,
            "master_file_name": None,
            "raw_data": {"eventType": event_type},
        }

    # -- what goes wrong -------------------------------------------------------------------------------------

    def _bad_record(self, kind: str, message: Json, subject: str) -> Produced:
        """``message`` spoilt. ``subject`` is the key that names the task: the number or, in a ClaimX event, the row."""
        assignment_id = int(message.get("assignment_id") or message["task_assignment_id"])
        bad = Produced(str(assignment_id).encode(), None, _headers(message), kind, "dead_letter")
        event_id = str(message["event_id"])
        value: bytes | None
        match kind:
            case "unknown_assignment":
                return replace(bad, value=_encode(message), assignment_id=assignment_id, event_id=event_id)
            case "null_value":
                value = None
            case "empty_value":
                value = b""
            case "huge_garbage":
                value = self._random.randbytes(_GARBAGE_BYTES)
            case "not_json":
                spoil: Callable[[bytes], bytes] = self._turn(
                    "not_json",
                    lambda text: text[: len(text) // 2],
                    lambda _: b"\xff\xfe\x00\x01{}",
                    lambda _: b"hello",
                    lambda text: text + b"}",
                )
                value = spoil(_encode(message))
            case "not_an_object":
                value = self._turn(
                    "not_an_object", b"[1, 2]", b'"text"', b"42", b"null", b"true", b"[" + _encode(message) + b"]"
                )
            case "missing_key":
                names = ["event_id", "event_type", "project_id"]
                if subject == "assignment_id":
                    names += ["task_id", "assignment_id", "task_status", "timestamp"]
                missing = self._turn("missing", *names)
                value = _encode({name: part for name, part in message.items() if name != missing})
            case _:
                wrong: list[tuple[str, Any]] = [
                    ("event_id", {}),
                    ("event_type", ["CUSTOM_TASK_COMPLETED"]),
                    ("project_id", {"id": 1}),
                    (subject, "not a task"),
                ]
                if subject == "assignment_id":
                    wrong += [("task_id", [self._task_ids[0]]), ("timestamp", "yesterday")]
                name, part = self._turn("wrong", *wrong)
                value = _encode({**message, name: part})
        return replace(bad, value=value)

    # -- the tasks behind ------------------------------------------------------------------------------------

    def _new_task(self, status: str, *, task_id: int | None = None, before: timedelta = timedelta(0)) -> _Task:
        if task_id is None:
            task_id = self._turn("task", *self._task_ids)
        number, self._assignments = self._assignments, self._assignments + 1
        project_id = str(_FIRST_PROJECT_ID + number // _ASSIGNMENTS_PER_PROJECT)
        assigned_at = self._now - before
        details = self._forms.without_form(_FIRST_ASSIGNMENT_ID + number, project_id, task_id, status, assigned_at)
        return _Task(details, assigned_at, self._now)

    def _other_task_id(self) -> int:
        other: int = self._turn("other", *[one for one in _OTHER_TASK_IDS if one not in self._task_ids])
        return other

    def _completed_end(self, task: _Task) -> Expect:
        """What becomes of a completed task: it is submitted, unless the contract's gate holds it back."""
        answers = (task.details["response"] or {}).get("groups", [])
        return "tracked" if is_held(answers, self._contract.gate_question) else "submitted"

    def _opened(self, kind: str) -> _Task:
        """A task that is assigned just now, or one of those, taken on or given up."""
        if kind == "assigned" or not self._open:
            task = self._new_task(kind.upper())
        else:
            task = self._taken_from(self._open)
            task.details |= {
                "status": kind.upper(),
                "cancelledDate": task.details["dateAssigned"] if kind == "cancelled" else None,
            }
        if kind != "cancelled":
            self._open.append(task)
        return task

    def _newly_completed(self) -> _Task:
        if self._open and self._random.random() < 0.7:
            task = self._taken_from(self._open)
        else:
            task = self._new_task("ASSIGNED", before=timedelta(minutes=self._random.randint(30, 5000)))
        task.details = self._forms.filled_in(task.details, self._now)
        task.changed_at = self._now
        self._completed.append(task)
        return task

    def _completed_before(self) -> _Task:
        return self._random.choice(self._completed)

    def _taken_from(self, tasks: deque[_Task]) -> _Task:
        index = self._random.randrange(len(tasks))
        task = tasks[index]
        del tasks[index]
        return task

    def _next_event_id(self) -> str:
        self._events += 1
        return hashlib.sha256(f"{self._seed}/{self._events}".encode()).hexdigest()

    def _task_row(self, details: Json, event_id: str) -> Json:
        enriched_at = self._now.isoformat()
        times = {"created_at": enriched_at, "updated_at": enriched_at, "last_enriched_at": enriched_at}
        return {**make_task_row(details), "event_id": event_id, **times}


def produce(
    bootstrap_servers: str,
    topic: str,
    produced: Iterable[Produced],
    claimx: ClaimXSimulator | str | None,
    *,
    rate: float | None = None,
) -> list[Receipt]:
    """Write the records to ``topic`` in order, each after its ClaimX answer; returns where they are, in the same order.

    ``claimx`` is the simulator, or its URL if it runs in another process, or None to leave ClaimX alone. Answers are
    put in batches, so ClaimX may know a newer state than a record says. ``rate`` is in records a second. Raises
    ``RuntimeError`` unless every record is acknowledged within two minutes, and ``requests.RequestException`` if ClaimX
    does not take an answer.
    """
    producer = Producer(
        {
            "bootstrap.servers": bootstrap_servers,
            "enable.idempotence": True,
            "linger.ms": 5,
            "partitioner": "murmur2_random",
            "topic.metadata.propagation.max.ms": 3000,
            "log_level": 0,
        }
    )
    receipts: dict[int, Receipt] = {}
    failures: list[str] = []

    def report(index: int, record: Produced) -> Callable[[KafkaError | None, DeliveryReport], None]:
        def delivered(error: KafkaError | None, message: DeliveryReport) -> None:
            if error is not None:
                failures.append(error.str())
            else:
                receipts[index] = Receipt(record, int(message.partition() or 0), int(message.offset() or 0))

        return delivered

    count, started = 0, time.monotonic()
    records = iter(produced)
    while batch := list(islice(records, _PUT_BATCH if rate is None else max(1, min(_PUT_BATCH, int(rate / 10))))):
        _put(claimx, [record.details_json for record in batch if record.details_json is not None])
        for record in batch:
            while True:
                try:
                    producer.produce(
                        topic, record.value, record.key, headers=list(record.headers), on_delivery=report(count, record)
                    )
                    break
                except BufferError:
                    producer.poll(0.1)
            count += 1
        producer.poll(0)
        if rate is not None:
            time.sleep(max(0.0, started + count / rate - time.monotonic()))
    producer.flush(120)
    if len(receipts) != count:
        reason = failures[0] if failures else "no answer from the broker within two minutes"
        raise RuntimeError(f"{count - len(receipts)} of {count} records were not written to topic {topic}: {reason}")
    return [receipts[index] for index in range(count)]


def _put(claimx: ClaimXSimulator | str | None, details: list[bytes]) -> None:
    if claimx is None or not details:
        return
    body = b"[" + b",".join(details) + b"]"
    if isinstance(claimx, ClaimXSimulator):
        claimx.put_tasks(body)
    else:
        requests.put(f"{claimx.rstrip('/')}/_sim/tasks", data=body, timeout=30).raise_for_status()


def _event_type(status: str) -> str:
    return "CUSTOM_TASK_COMPLETED" if status == "COMPLETED" else "CUSTOM_TASK_ASSIGNED"


def _headers(message: Json) -> tuple[tuple[str, bytes], ...]:
    if "trigger_name" not in message:
        return ()
    return (
        ("x-trigger-name", str(message["trigger_name"]).encode()),
        ("x-task-id", str(message["task_id"]).encode()),
        ("x-event-type", str(message["event_type"]).encode()),
    )


def _encode(message: Json) -> bytes:
    return json.dumps(message, separators=(",", ":"), ensure_ascii=False).encode()
