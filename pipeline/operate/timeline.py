"""What happened to an assignment or an event: one timeline of all that the tables and the error topics have of it, and
what became of each event. Shows ids, times and reasons, and nothing of what a form or a body holds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from itel_cabinet.io.delta import TableSpec
from itel_cabinet.io.kafka import LogReader
from itel_cabinet.io.worker import OutageError
from itel_cabinet.pipeline.operate.dead_letters import letters
from itel_cabinet.pipeline.operate.filed import read_assignment_id, rows_about, scan_rows
from itel_cabinet.pipeline.queries import TableMissingError
from itel_cabinet.pipeline.reconciliation import NEVER_TRIED
from itel_cabinet.pipeline.tables import ATTACHMENTS, FORMS, LEDGER, TRACKING
from itel_cabinet.transforms.dead_letters import DeadLetter, ReplayNote
from itel_cabinet.transforms.json_text import read_json
from itel_cabinet.transforms.ledger import Outcome
from itel_cabinet.transforms.records import Record
from itel_cabinet.transforms.replays import find_original
from itel_cabinet.transforms.trace_context import parse_traceparent, read_trace

__all__ = ["Moment", "Timeline", "trace_letters", "trace_tables"]

_PLACE = ("event_timestamp", "kafka_topic", "kafka_topic_id", "kafka_partition", "kafka_offset")
_COLUMNS = {
    TRACKING: (
        *("event_id", "assignment_id", "project_id", "event_type", "task_status", "processed_timestamp"),
        *_PLACE,
    ),
    FORMS: (
        *("event_id", "assignment_id", "project_id", "status", "form_id", "form_response_id", "parse_warnings"),
        *("created_at", "updated_at", *_PLACE),
    ),
    ATTACHMENTS: (
        *("event_id", "assignment_id", "question_key", "claim_media_id", "blob_path", "media_warning", "is_active"),
        *("updated_at", *_PLACE),
    ),
    LEDGER: None,
}
_EVENT_NAMES = frozenset({"eventid"})
_ASSIGNMENT_NAMES = frozenset({"assignmentid", "taskassignmentid"})


@dataclass(frozen=True, slots=True)
class Moment:
    """Something that is known to have happened.

    Attributes:
        at: when; None where nothing says.
        what: ``event``, ``form``, ``photos``, ``submission`` or ``dead letter``.
        text: one line for a person.
        coordinates: the record's, ``topic_id/partition/offset``.
        details: the same for programs.
    """

    at: datetime | None
    what: str
    event_id: str | None
    text: str
    coordinates: str
    details: Mapping[str, Any]


@dataclass
class Timeline:
    """All that is known of an id. ``not_seen`` are lines on what could not be looked at."""

    identity: str
    moments: list[Moment] = field(default_factory=list)
    not_seen: list[str] = field(default_factory=list)

    @property
    def assignment_id(self) -> int | None:
        """The assignment that the id may be of."""
        return read_assignment_id(self.identity)

    @property
    def in_order(self) -> list[Moment]:
        """The moments by their time."""
        last = datetime.max.replace(tzinfo=UTC)
        return sorted(self.moments, key=lambda one: (one.at or last, _KINDS.index(one.what), one.coordinates))

    @property
    def trace_ids(self) -> dict[str, list[str]]:
        """The ids of the traces that submissions and dead letters of each event belong to, oldest first."""
        found: dict[str, list[str]] = {}
        for moment in self.in_order:
            context = parse_traceparent(str(moment.details.get("traceparent") or "").encode())
            ids = found.setdefault(moment.event_id or moment.coordinates, [])
            if context and context.trace_id not in ids:
                ids.append(context.trace_id)
        return found

    def fates(self, statuses: Collection[str]) -> dict[str, str]:
        """What became of each event, in a few words; of a record that could not be read, by its coordinates.

        ``statuses`` are those that are submitted, in upper case.
        """
        by_event: dict[str, list[Moment]] = {}
        for moment in self.in_order:
            by_event.setdefault(moment.event_id or moment.coordinates, []).append(moment)
        return {event: _fate(moments, statuses) for event, moments in by_event.items()}


_KINDS = ("event", "form", "photos", "submission", "dead letter")


def trace_tables(timeline: Timeline, specs: Mapping[str, TableSpec]) -> None:
    """Take in what the tables have of the id; a table that is not there, or cannot be read, is noted as not seen."""
    for name, make in ((TRACKING, _event), (FORMS, _form), (LEDGER, _submission)):
        timeline.moments += map(make, _rows(timeline, specs[name], _COLUMNS[name]))
    timeline.moments += _photos(_rows(timeline, specs[ATTACHMENTS], _COLUMNS[ATTACHMENTS]))


def trace_letters(timeline: Timeline, reader: LogReader, topics: Iterable[str]) -> None:
    """Take in the dead letters about the id: of its records and their replays, and those that name it. Of repeats, as a
    crash leaves them, the latest. Raises what the reader raises.
    """
    places = {moment.coordinates for moment in timeline.moments}
    found: dict[tuple[str, str], tuple[DeadLetter, Record, str]] = {}
    replayed: dict[tuple[str, str], list[datetime]] = {}
    for message, content in letters(reader, topics):
        if isinstance(content, ReplayNote):
            at = datetime.fromtimestamp(message.timestamp_ms / 1000, UTC)
            replayed.setdefault((content.coordinates, content.group), []).append(at)
        elif isinstance(content, DeadLetter):
            record = content.record()
            if content.coordinates in places or find_original(record) in places or _names(record, timeline.identity):
                places.add(content.coordinates)
                key = content.coordinates, content.group
                latest = found.get(key)
                if latest is None or content.last_at >= latest[0].last_at:
                    found[key] = content, record, message.topic
    known = {moment.coordinates: moment.event_id for moment in timeline.moments}
    for key, (letter, record, topic) in found.items():
        event_id = known.get(letter.coordinates) or known.get(find_original(record) or "") or _event_id(record)
        timeline.moments.append(_letter(letter, record, topic, event_id, replayed.get(key, [])))


def _rows(timeline: Timeline, spec: TableSpec, columns: Sequence[str] | None) -> list[dict[str, Any]]:
    try:
        return [*scan_rows(spec, rows_about(timeline.identity), columns)]
    except (TableMissingError, OutageError) as error:
        timeline.not_seen.append(str(error))
        return []


# ------------------------------------------------------------------------------------------------------------- moments


def _event(row: Mapping[str, Any]) -> Moment:
    written = row["processed_timestamp"].astimezone(UTC)
    text = f"{row['task_status']} ({row['event_type']}); row written at {written:%Y-%m-%d %H:%M:%S}"
    details = {
        "assignment_id": row["assignment_id"],
        "project_id": row["project_id"],
        "event_type": row["event_type"],
        "task_status": row["task_status"],
        "row_written_at": row["processed_timestamp"],
    }
    return _moment(row["event_timestamp"], "event", row, text, details)


def _form(row: Mapping[str, Any]) -> Moment:
    warnings = len(json.loads(row["parse_warnings"] or "[]"))
    named = f"form response {row['form_response_id']}" if row["form_response_id"] else "form"
    text = f"{named} kept, the newest of the assignment; {warnings} parse warnings"
    details = {name: row[name] for name in ("form_id", "form_response_id", "status", "created_at")}
    return _moment(row["updated_at"], "form", row, text, details | {"parse_warnings": warnings})


def _photos(rows: Sequence[Mapping[str, Any]]) -> Iterator[Moment]:
    """One moment for the photos of each event."""
    sets: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        sets.setdefault((row["event_id"], row["assignment_id"]), []).append(row)
    for members in sets.values():
        photos = [row for row in members if row["is_active"] and row["claim_media_id"] is not None]
        missing = [row for row in photos if row["blob_path"] is None]
        reasons = sorted({(row["media_warning"] or "not asked for").partition(":")[0] for row in missing})
        text = f"{len(photos)} photos on the form, {len(photos) - len(missing)} with a file"
        text += f"; {len(missing)} without: {', '.join(reasons)}" if missing else ""
        gone = sum(not row["is_active"] and row["claim_media_id"] is not None for row in members)
        text += f"; {gone} no longer on it" if gone else ""
        details = {
            "photos": [
                {name: row[name] for name in ("claim_media_id", "question_key", "blob_path", "media_warning")}
                for row in photos
            ],
            "no_longer_on_the_form": gone,
        }
        newest = max(members, key=lambda row: row["updated_at"])
        yield _moment(newest["updated_at"], "photos", newest, text, details)


def _submission(row: Mapping[str, Any]) -> Moment:
    more = [
        f"HTTP {row['status']}" if row["status"] is not None else "",
        f"{row['attempts']} tries" if row["attempts"] and row["attempts"] > 1 else "",
        f"iTel's id {row['created_id']}" if row["created_id"] else "",
        f"{row['latency_ms']:.0f} ms" if row["latency_ms"] is not None else "",
        f"resubmission {row['resubmission']}" if row["resubmission"] else "",
        f"contract {row['contract_name']} {row['contract_version'] or ''}".rstrip() if row["contract_name"] else "",
    ]
    text = ", ".join(filter(None, [_why(row["outcome"], row["reason"]), *more]))
    left_out = {*_PLACE, "event_id", "year", "month", "day"}
    details = {name: value for name, value in row.items() if name not in left_out}
    return _moment(row["answered_at"] or row["created_at"], "submission", row, text, details)


def _moment(at: datetime, what: str, row: Mapping[str, Any], text: str, details: Mapping[str, Any]) -> Moment:
    coordinates = f"{row['kafka_topic_id']}/{row['kafka_partition']}/{row['kafka_offset']}"
    return Moment(at, what, row["event_id"], text, coordinates, {"topic": row["kafka_topic"], **details})


def _letter(
    letter: DeadLetter, record: Record, topic: str, event_id: str | None, replayed: Sequence[datetime]
) -> Moment:
    state = f"replayed at {replayed[-1]:%Y-%m-%d %H:%M:%S}" if replayed else "open"
    return Moment(
        letter.last_at,
        "dead letter",
        event_id,
        f"{state}: {letter.job}: {letter.stage}: {letter.error_class}: {letter.error}",
        letter.coordinates,
        {
            "topic": letter.topic,
            "error_topic": topic,
            "job": letter.job,
            "group": letter.group,
            "stage": letter.stage,
            "error_class": letter.error_class,
            "error": letter.error,
            "attempts": letter.attempts,
            "state": "replayed" if replayed else "open",
            "replayed_at": [*replayed],
            "replay_of": find_original(record),
            "traceparent": read_trace(record).traceparent,
        },
    )


# --------------------------------------------------------------------------------------------------------------- fates


def _fate(moments: Sequence[Moment], statuses: Collection[str]) -> str:
    tries = [one.details for one in moments if one.what == "submission" and one.details["outcome"] != Outcome.SHADOW]
    settled = [one["outcome"] for one in tries if one["settled"]]
    if settled:
        return str(settled[0])
    failed = [one.details for one in moments if one.what == "dead letter"]
    still_open = [one for one in failed if one["state"] == "open"]
    if still_open:
        return f"dead_letter: {still_open[-1]['stage']}: {still_open[-1]['error_class']}"
    if failed:
        return "replayed, and nothing is known of it since"
    if tries:
        return _why(tries[-1]["outcome"], tries[-1]["reason"])
    status = next((one.details["task_status"] for one in moments if one.what == "event"), None)
    if status is not None and status not in statuses:
        return f"not_submitted: {status}"
    return NEVER_TRIED


def _why(outcome: str, reason: str | None) -> str:
    return outcome if reason in (None, outcome) else f"{outcome}: {reason}"


# -------------------------------------------------------------------------------------------- whom a record is about


def _names(record: Record, identity: str) -> bool:
    """Whether a record names the id as its event's or assignment's; where it is no JSON, whether its text has it."""
    if record.key == identity.encode():
        return True
    value = record.value or b""
    if identity.encode() not in value:
        return False
    content = _content(value)
    if content is None:
        return re.search(rb"(?<![\w-])" + re.escape(identity.encode()) + rb"(?![\w-])", value) is not None
    return identity in {str(one) for one in _values(content, _EVENT_NAMES | _ASSIGNMENT_NAMES)}


def _event_id(record: Record) -> str | None:
    content = _content(record.value or b"")
    return next((one for one in _values(content, _EVENT_NAMES) if isinstance(one, str)), None)


def _content(value: bytes) -> Any:
    try:
        return read_json(value)[0]
    except ValueError:
        return None


def _values(content: Any, names: Collection[str], depth: int = 0) -> Iterator[Any]:
    """What stands under these names, no matter how they are written, in an object and in objects within it."""
    for name, value in content.items() if isinstance(content, dict) and depth < 4 else ():
        if name.replace("_", "").lower() in names:
            yield value
        yield from _values(value, names, depth + 1)
