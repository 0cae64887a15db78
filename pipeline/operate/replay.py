"""Bringing dead letters back: the original's bytes on the original's topic once more, for the group that gave it up.

A replay and the note of it on the error topic are written in one transaction, so that a letter is replayed once however
often the command is run, cut off, or run twice at a time.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from itel_cabinet.io.kafka import LogReader, LogWriter, Message, UnknownTopicError, UnwritableError
from itel_cabinet.pipeline.jobs import Job
from itel_cabinet.pipeline.operate.dead_letters import Entry, original
from itel_cabinet.pipeline.operate.readers import ReadingGroup
from itel_cabinet.pipeline.refusals import describe_missing_topic
from itel_cabinet.transforms.dead_letters import DeadLetter, decode_dead_letter, encode_replay_note
from itel_cabinet.transforms.records import Record
from itel_cabinet.transforms.replays import count_replays, has_row, make_replay_headers

__all__ = ["Outcome", "Replay", "Replayer", "may_have_row"]

_TOPIC = re.compile(r"(?!__)[a-zA-Z0-9._-]{1,249}")
_CHUNK_RECORDS = 100
_CHUNK_BYTES = 8 * 1024 * 1024


class Outcome(StrEnum):
    """What became of a letter that was asked for."""

    REPLAYED = "replayed"
    ALREADY = "already_replayed"
    TRACKED = "in_the_table"
    """A crash has left it beside the row that its record got after all."""
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
    entry: Entry
    record: Message
    note: Message


def may_have_row(entry: Entry) -> bool:
    """Whether only the tracking table can tell if the letter's record has its row."""
    return not entry.tracked and entry.letter.job in (Job.TRACKING, Job.CABINET)


@dataclass
class Replayer:
    """Replays letters. Not thread-safe.

    ``letters`` and ``originals`` read (two, since each keeps its place); without a ``writer`` nothing is written.
    ``is_erased`` says whether a record is about somebody who was erased. ``committed`` tells how far a group is in each
    partition of a topic, ``groups`` who reads a topic, ``in_table`` the
    records that have their row. Records are for the group that gave them up, or for ``to_group``.
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
    error_topics: Collection[str] = ()
    again: bool = False
    max_replays: int = 3
    rate: float | None = None
    clock: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep
    _free_at: float = field(default=0.0, init=False)

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
            size += len(ready.record.value or b"")
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
            committed = self.committed(self.to_group or letter.group, letter.topic).get(letter.partition)
            if committed is None or committed <= letter.offset:
                return Replay(entry, Outcome.PENDING)
        if may_have_row(entry) and (letter.topic_id, letter.partition, letter.offset) in self.in_table:
            return Replay(entry, Outcome.TRACKED)
        return None

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
        return _Ready(entry, self._outgoing(entry, record, times), self._note(entry))

    def _outgoing(self, entry: Entry, record: Record, times: int) -> Message:
        # The same partition keeps the order of an assignment's events, no matter who produced them.
        known = record.partition in self.originals.topic(record.topic).partitions
        headers = make_replay_headers(
            record,
            group=self.to_group or entry.letter.group,
            count=times + entry.replayed + 1,
            tracked=entry.tracked or has_row(record),
        )
        return Message(record.topic, record.key, record.value, headers, partition=record.partition if known else None)

    def _note(self, entry: Entry) -> Message:
        return Message(entry.topic, *encode_replay_note(entry.letter, self.clock()))

    def _write(self, chunk: Sequence[_Ready]) -> Iterator[Replay]:
        if self.writer is not None:
            self._keep_to_rate(len(chunk))
            try:
                self.writer.write([one.record for one in chunk], then=[one.note for one in chunk])
            except UnwritableError as error:
                if len(chunk) == 1:
                    yield Replay(chunk[0].entry, Outcome.REFUSED, f"{chunk[0].record.topic} does not take it: {error}")
                else:  # alone, each shows whether it is at fault
                    for one in chunk:
                        yield from self._write([one])
                return
        yield from (Replay(one.entry, Outcome.REPLAYED) for one in chunk)

    def _keep_to_rate(self, records: int) -> None:
        """Wait until so many more records may be written."""
        if self.rate is not None:
            now = self.clock()
            self.sleep(max(0.0, self._free_at - now))
            self._free_at = max(self._free_at, now) + records / self.rate
