"""Bringing dead letters back: the original's bytes on the original's topic once more, or what a person has made of
them, for the group that gave it up, or another, if that still needs it.

A replay and the note of it on the error topic are written in one transaction, so that a letter is replayed once however
often the command is run, cut off, or run twice at a time.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from itel_cabinet.io.kafka import LogReader, LogWriter, Message, UnknownTopicError, UnwritableError
from itel_cabinet.pipeline.jobs import Job
from itel_cabinet.pipeline.operate.dead_letters import Entry, original
from itel_cabinet.pipeline.operate.readers import ReadingGroup, find_job
from itel_cabinet.pipeline.operate.settled import EventKey, event_key, know_none
from itel_cabinet.pipeline.refusals import describe_missing_topic
from itel_cabinet.transforms.dead_letters import DeadLetter, decode_dead_letter, encode_replay_note
from itel_cabinet.transforms.records import Record
from itel_cabinet.transforms.replays import Edit, count_replays, has_row, make_replay_headers

__all__ = ["Outcome", "Replay", "Replayer", "may_have_row"]

_TOPIC = re.compile(r"(?!__)[a-zA-Z0-9._-]{1,249}")
_CHUNK_RECORDS = 100
_CHUNK_BYTES = 8 * 1024 * 1024


class Outcome(StrEnum):
    """What became of a letter that was asked for."""

    REPLAYED = "replayed"
    ALREADY = "already_replayed"
    TRACKED = "in_the_table"
    """A crash has left it beside the row that its record got after all, or the event has a row by another record."""
    SETTLED = "settled"
    """The ledger has the event as accepted, a duplicate or unchanged, and no table lacks anything of it."""
    PENDING = "read_again"
    """Its group's offset is not yet beyond its record: the job will read that again by itself."""
    ERASED = "erased"
    """It is about somebody who was erased since: written again, it would only be skipped, and kept once more."""
    PARKED = "parked"
    GONE = "gone"
    """The letter omits the record's value, and the topic no longer has it."""
    REFUSED = "refused"

    @property
    def failed(self) -> bool:
        """Whether something was to be replayed and could not."""
        return self in (Outcome.GONE, Outcome.REFUSED)


@dataclass(frozen=True, slots=True)
class Replay:
    """One letter and its outcome; ``reason`` is a line for a person where there is more to say."""

    entry: Entry
    outcome: Outcome
    reason: str = ""


@dataclass(frozen=True, slots=True)
class _Ready:
    """What is to be written for a letter; without a ``record`` only that it is closed."""

    entry: Entry
    record: Message | None
    note: Message


def may_have_row(entry: Entry, to_group: str | None = None) -> bool:
    """Whether only the tracking table can tell if the letter's record has its row. ``api`` itself needs none, but
    another job may."""
    jobs = {Job.TRACKING, Job.CABINET, *([Job.API] if to_group else [])}
    return not entry.tracked and entry.letter.job in jobs


@dataclass
class Replayer:
    """Replays letters. Not thread-safe.

    ``letters`` and ``originals`` read (two, since each keeps its place); without a ``writer`` nothing is written.
    ``is_erased`` says whether a record is about somebody who was erased. ``committed`` tells how far a group is in each
    partition of a topic, ``groups`` who reads a topic, ``in_table`` the records that have their row, ``tracked``
    whether an event has one, and ``settled`` whether the ledger has it as settled. Records are for the group that gave
    them up, or for ``to_group``. ``change`` gives what is written in the place of a record's value, and by whom.
    A letter is parked once its event has been replayed ``max_replays`` times; with ``again`` those that were replayed
    already are replayed once more, within that limit. ``rate`` is in records a second. ``clock`` gives epoch seconds.
    """

    letters: LogReader
    originals: LogReader
    writer: LogWriter | None
    committed: Callable[[str, str], dict[int, int | None]]
    groups: Callable[[str], Mapping[str, ReadingGroup]]
    to_group: str | None = None
    is_erased: Callable[[Record], bool] = lambda _: False
    in_table: Collection[tuple[str, int, int]] = ()
    tracked: Callable[[EventKey], bool] = know_none
    settled: Callable[[EventKey], bool] = know_none
    change: Callable[[Record], tuple[bytes, Edit]] | None = None
    error_topics: Collection[str] = ()
    again: bool = False
    max_replays: int = 3
    rate: float | None = None
    clock: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep
    _free_at: float = field(default=0.0, init=False)
    _sent: set[tuple[str, str]] = field(default_factory=set, init=False)

    def replay(self, entries: Sequence[Entry]) -> Iterator[Replay]:
        """Replay letters in the order given; one outcome for each, given once it is durable.

        Raises what the reader and the writer raise; what has been given by then stays done.
        """
        most = _CHUNK_RECORDS if self.rate is None else max(1, min(_CHUNK_RECORDS, int(self.rate / 2)))
        if self.writer is not None and not self.writer.transactions:
            most = 1  # what is cut off can only be repeated, so let it be one record
        chunk: list[_Ready] = []
        size = 0
        for entry in entries:
            ready = self._leave(entry) or self._prepare(entry)
            if isinstance(ready, Replay):
                yield ready
                continue
            chunk.append(ready)
            size += len(ready.record.value or b"") if ready.record else 0
            if len(chunk) >= most or size >= _CHUNK_BYTES:
                yield from self._write(chunk)
                chunk, size = [], 0
        if chunk:
            yield from self._write(chunk)

    def _leave(self, entry: Entry) -> Replay | None:
        """Why a letter is not replayed, as far as its summary tells."""
        letter = entry.letter
        if entry.replayed and not self.again:
            return Replay(entry, Outcome.ALREADY)
        if entry.times + entry.replayed >= self.max_replays:
            return self._parked(entry, entry.times)
        if not _TOPIC.fullmatch(letter.topic) or letter.topic in self.error_topics:
            # One who may write to an error topic must not be able to have any topic written to.
            return Replay(entry, Outcome.REFUSED, f"topic {letter.topic!r} is none that a job reads")
        try:
            topic = self.originals.topic(letter.topic)
        except UnknownTopicError as error:
            return Replay(entry, Outcome.REFUSED, describe_missing_topic(error))
        unread = self._unread(letter)
        if unread is not None:
            return Replay(entry, Outcome.REFUSED, unread)
        if topic.topic_id == letter.topic_id:
            committed = self.committed(self._goal(letter), letter.topic).get(letter.partition)
            if committed is None or committed <= letter.offset:
                return Replay(entry, Outcome.PENDING)
        if self.change is None and self._is_left_behind(entry):
            return Replay(entry, Outcome.TRACKED)
        return None

    def _goal(self, letter: DeadLetter) -> str:
        """The group that the record is for."""
        return self.to_group or letter.group

    def _job(self, letter: DeadLetter) -> Job | None:
        """Whose group that is."""
        job = find_job(self.to_group, self.groups(letter.topic)) if self.to_group else None
        return Job(job or letter.job) if (job or letter.job) in {*Job} else None

    def _is_written(self, letter: DeadLetter) -> bool:
        return (letter.topic_id, letter.partition, letter.offset) in self.in_table

    def _is_left_behind(self, entry: Entry) -> bool:
        """Whether a crash has left the letter of a job with tables beside its record's row: then that job is done."""
        job = self._job(entry.letter)
        return job is not None and job.writes_tables and may_have_row(entry) and self._is_written(entry.letter)

    def _unread(self, letter: DeadLetter) -> str | None:
        """Why nobody would read the record."""
        groups = self.groups(letter.topic)
        if self.to_group is not None:
            known = self.to_group in groups
            return None if known else f"the group {self.to_group} (--to_group) has no offsets in {letter.topic}"
        now = self.clock()
        own = groups.get(letter.group)
        if own is not None and not own.is_silent(now):
            return None
        jobs = {letter.job, Job.CABINET.value} if letter.job != Job.CABINET else {*Job}
        others = sorted(group.name for group in groups.values() if group.is_read_with(now) and group.job in jobs)
        if not others:
            return None
        return (
            f"no job reads with its group {letter.group} now, but one does with {', '.join(others)}: give "
            f"--to_group={others[0]}, or --to_group={letter.group} if that job will run again"
        )

    def _parked(self, entry: Entry, times: int) -> Replay:
        return Replay(entry, Outcome.PARKED, f"replayed {times + entry.replayed} times")

    def _prepare(self, entry: Entry) -> _Ready | Replay:
        message = self.letters.at(entry.topic, entry.partition, entry.offset)
        if message is None:
            return Replay(entry, Outcome.GONE, "its dead letter has been deleted meanwhile")
        letter = decode_dead_letter(message.value or b"")
        record = original(self.originals, letter)
        if record is None:
            reason = f"the dead letter had no room for the record ({letter.value_size} bytes), its topic has lost it"
            return Replay(entry, Outcome.GONE, reason)
        if self.is_erased(record):
            return Replay(entry, Outcome.ERASED)
        times = max(entry.times, count_replays(record))
        if times + entry.replayed >= self.max_replays:
            return self._parked(entry, times)
        goal = self._goal(letter)
        if self.change is None and self._was_sent(entry, goal):
            return _Ready(entry, None, self._note(entry, None))
        value, edit = self.change(record) if self.change else (record.value, None)
        if edit is not None and self.is_erased(replace(record, value=value)):
            return Replay(entry, Outcome.ERASED)
        job, key, tracked = self._job(letter), event_key(value), entry.tracked or has_row(record)
        is_another = edit is not None and key != event_key(record.value)
        if is_another:
            tracked = False
        known = not is_another and self._is_written(letter)
        if key is not None and job is not None:
            known |= job.writes_tables and self.tracked(key)
            if job.calls_itel and self.settled(key) and (tracked or known or not job.writes_tables):
                return Replay(entry, Outcome.SETTLED)
        if known and not tracked and job is Job.TRACKING:
            return Replay(entry, Outcome.TRACKED)
        self._sent.add((letter.coordinates, goal))
        outgoing = self._outgoing(entry, replace(record, value=value), times, tracked or known, edit)
        return _Ready(entry, outgoing, self._note(entry, edit))

    def _was_sent(self, entry: Entry, goal: str) -> bool:
        """Whether another letter of the same record has brought it to that group: two jobs may both have given it up,
        where now one does the work of both."""
        sent = not self.again and goal in entry.sent_to
        return sent or (entry.letter.coordinates, goal) in self._sent

    def _outgoing(self, entry: Entry, record: Record, times: int, tracked: bool, edit: Edit | None) -> Message:
        # The same partition keeps the order of an assignment's events, no matter who produced them.
        known = record.partition in self.originals.topic(record.topic).partitions
        headers = make_replay_headers(
            record,
            group=self._goal(entry.letter),
            count=times + entry.replayed + 1,
            tracked=tracked,
            edit=edit,
        )
        return Message(record.topic, record.key, record.value, headers, partition=record.partition if known else None)

    def _note(self, entry: Entry, edit: Edit | None) -> Message:
        note = encode_replay_note(entry.letter, self.clock(), to=self._goal(entry.letter), edit=edit)
        return Message(entry.topic, *note)

    def _write(self, chunk: Sequence[_Ready]) -> Iterator[Replay]:
        if self.writer is not None:
            self._keep_to_rate(len(chunk))
            try:
                self.writer.write([one.record for one in chunk if one.record], then=[one.note for one in chunk])
            except UnwritableError as error:
                if len(chunk) == 1:
                    topic = (chunk[0].record or chunk[0].note).topic
                    yield Replay(chunk[0].entry, Outcome.REFUSED, f"{topic} does not take it: {error}")
                else:  # alone, each shows whether it is at fault
                    for one in chunk:
                        yield from self._write([one])
                return
        yield from (Replay(one.entry, Outcome.REPLAYED if one.record else Outcome.ALREADY) for one in chunk)

    def _keep_to_rate(self, records: int) -> None:
        """Wait until so many more records may be written."""
        if self.rate is not None:
            now = self.clock()
            self.sleep(max(0.0, self._free_at - now))
            self._free_at = max(self._free_at, now) + records / self.rate
