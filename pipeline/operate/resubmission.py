"""Putting completed forms in line that iTel lacks: their events' records once more on their topic, for the group of the
job that submits, as a replay of a dead letter is.

An event's record and the notes that end its open dead letters are written in one transaction. What is in line already
is left out, so that this may be repeated; and a job that keeps a ledger sends nothing twice that iTel has.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from itel_cabinet.io.delta import TableSpec
from itel_cabinet.io.kafka import LogReader, LogWriter, Message, UnknownTopicError, UnwritableError
from itel_cabinet.pipeline.operate.dead_letters import Entry
from itel_cabinet.pipeline.operate.filed import scan_rows
from itel_cabinet.pipeline.reconciliation import Gap
from itel_cabinet.pipeline.refusals import describe_missing_topic
from itel_cabinet.transforms.dead_letters import encode_replay_note
from itel_cabinet.transforms.records import Record
from itel_cabinet.transforms.replays import REPLAY_FOR, REPLAY_OF, count_replays, make_replay_headers
from itel_cabinet.transforms.rows import record_of

__all__ = ["Place", "Resubmitter", "letters_by_gap", "records_in_history"]

_CHUNK_RECORDS = 100


class Place(StrEnum):
    """Where a form's event is now."""

    IN_LINE = "put_in_line"
    WAITING = "in_line_already"
    """An earlier resubmission or replay of it is still to be read."""
    UNREAD = "still_to_be_read"
    """The group's offset is not yet beyond its record."""
    GONE = "gone"
    """Neither the topic nor the history has its record any more."""
    REFUSED = "refused"

    @property
    def failed(self) -> bool:
        """Whether something was to be put in line and could not be."""
        return self in (Place.GONE, Place.REFUSED)


def letters_by_gap(entries: Sequence[Entry], gaps: Sequence[Gap]) -> dict[str, list[Entry]]:
    """The open letters of the gaps' events, by the gap's coordinates: of its record, and of replays of it."""
    repeats = {entry.letter.coordinates: entry.repeats for entry in entries}
    wanted = {gap.coordinates for gap in gaps}
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        at: str | None = entry.letter.coordinates
        seen: set[str] = set()
        while at is not None and at not in wanted and at not in seen:
            seen.add(at)
            at = repeats.get(at)
        if at in wanted and at is not None and not entry.replayed:
            found.setdefault(at, []).append(entry)
    return found


def records_in_history(spec: TableSpec, gaps: Sequence[Gap]) -> dict[str, Record]:
    """The records of events, by coordinates, as far as the tracking table has kept them. Raises OutageError."""
    columns = [
        "event_id",
        "original_event",
        "event_timestamp",
        "kafka_topic",
        "kafka_topic_id",
        "kafka_partition",
        "kafka_offset",
    ]
    wanted = {gap.event_id for gap in gaps if gap.tracked}
    if not wanted:
        return {}
    first, last = (end(gap.event_timestamp for gap in gaps).isoformat() for end in (min, max))
    within = f"event_timestamp >= '{first}' AND event_timestamp <= '{last}'"
    records = (record_of(row) for row in scan_rows(spec, within, columns) if row["event_id"] in wanted)
    return {record.coordinates: record for record in records}


@dataclass
class Resubmitter:
    """Puts events in line. Not thread-safe; without a ``writer`` nothing is written.

    Attributes:
        originals: reads the records.
        group: who is to read them.
        committed: tells how far that group is in each partition of a topic.
        letters: the open letters of each, by coordinates.
        kept: gives those of some events that the history has, by coordinates.
    """

    originals: LogReader
    writer: LogWriter | None
    group: str
    committed: Callable[[str], Mapping[int, int | None]]
    letters: Mapping[str, Sequence[Entry]]
    kept: Callable[[Sequence[Gap]], Mapping[str, Record]]
    clock: Callable[[], float] = time.time

    def put_in_line(self, gaps: Sequence[Gap]) -> Iterator[tuple[Gap, Place, str]]:
        """Each gap, where its event is now, and a line on why where it could not be done; given once it is durable.

        Raises what the reader and the writer raise; what has been given by then stays done.
        """
        waiting: dict[str, set[str]] = {}
        ready: list[tuple[Gap, Record]] = []
        lost: list[Gap] = []
        for gap in gaps:
            try:
                topic = self.originals.topic(gap.kafka_topic)
            except UnknownTopicError as error:
                yield gap, Place.REFUSED, describe_missing_topic(error)
                continue
            if gap.kafka_topic not in waiting:
                waiting[gap.kafka_topic] = self._waiting(gap.kafka_topic)
            if gap.coordinates in waiting[gap.kafka_topic]:
                yield gap, Place.WAITING, ""
                continue
            is_there = topic.topic_id == gap.kafka_topic_id and gap.kafka_partition in topic.partitions
            committed = self.committed(gap.kafka_topic).get(gap.kafka_partition)
            if is_there and (committed is None or committed <= gap.kafka_offset):
                yield gap, Place.UNREAD, ""
                continue
            record = self.originals.at(gap.kafka_topic, gap.kafka_partition, gap.kafka_offset) if is_there else None
            if record is None:
                lost.append(gap)
            else:
                ready.append((gap, record))
        kept = self.kept(lost) if lost else {}
        for gap in lost:
            if gap.coordinates in kept:
                ready.append((gap, kept[gap.coordinates]))
            else:
                yield gap, Place.GONE, f"{gap.kafka_topic} no longer has its record, and the history has none of it"
        ready.sort(key=lambda one: (one[0].event_timestamp, one[0].kafka_partition, one[0].kafka_offset))
        for start in range(0, len(ready), _CHUNK_RECORDS):
            yield from self._write(ready[start : start + _CHUNK_RECORDS])

    def _waiting(self, topic: str) -> set[str]:
        """The records of which a replay for the group lies on the topic that it has not read yet."""
        unread = {partition: offset for partition, offset in self.committed(topic).items() if offset is not None}
        found: set[str] = set()
        for record in self.originals.all(topic, since=unread):
            marks = dict(record.headers)
            if marks.get(REPLAY_FOR) == self.group.encode():
                found.add((marks.get(REPLAY_OF) or b"").decode(errors="replace"))
        return found

    def _write(self, chunk: Sequence[tuple[Gap, Record]]) -> Iterator[tuple[Gap, Place, str]]:
        if self.writer is not None:
            entries = [entry for gap, _ in chunk for entry in self.letters.get(gap.coordinates, ())]
            notes = [
                Message(one.topic, *encode_replay_note(one.letter, self.clock(), to=self.group)) for one in entries
            ]
            try:
                self.writer.write([self._message(*one) for one in chunk], then=notes)
            except UnwritableError as error:
                if len(chunk) == 1:
                    yield chunk[0][0], Place.REFUSED, f"{chunk[0][1].topic} does not take it: {error}"
                else:  # alone, each shows whether it is at fault
                    for one in chunk:
                        yield from self._write([one])
                return
        for gap, _ in chunk:
            yield gap, Place.IN_LINE, ""

    def _message(self, gap: Gap, record: Record) -> Message:
        letters = self.letters.get(gap.coordinates, ())
        times = max([count_replays(record), *(one.times + one.replayed for one in letters)])
        headers = make_replay_headers(record, group=self.group, count=times + 1, tracked=gap.tracked)
        # The key is the one under which triggers publish; the same partition keeps the order of an assignment's events.
        key = record.key if record.key is not None else str(gap.assignment_id).encode()
        known = record.partition in self.originals.topic(record.topic).partitions
        return Message(record.topic, key, record.value, headers, partition=record.partition if known else None)
