"""What lies on the error topics: each dead letter once, whether it was replayed, and what is there that is none."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from itel_cabinet.io.kafka import LogReader
from itel_cabinet.pipeline.jobs import Job
from itel_cabinet.transforms.dead_letters import (
    DeadLetter,
    DeadLetterFormatError,
    ReplayNote,
    decode_dead_letter,
    decode_replay_note,
    shorten,
)
from itel_cabinet.transforms.open_letters import OpenLetters
from itel_cabinet.transforms.records import Record
from itel_cabinet.transforms.replays import Edit, count_replays, find_original, has_row

__all__ = [
    "Entry",
    "ErrorLog",
    "FailureCount",
    "Filter",
    "ForeignMessage",
    "RecentLetters",
    "error_log",
    "failure_counts",
    "letters",
    "original",
    "recent_letters",
]

# Where the iTel branch fails, its record's row is written: by the same bundle, or by the one that repeats it.
_ITEL_STAGES = frozenset({"payload", "submit"})


@dataclass(frozen=True, slots=True)
class ForeignMessage:
    """A message of an error topic that is no dead letter."""

    topic: str
    partition: int
    offset: int
    reason: str


@dataclass(frozen=True, slots=True)
class Entry:
    """A dead letter without the bytes of its record, so that many fit into memory, and where it lies.

    ``times`` says how often its record's event had been replayed when it failed, ``replayed`` how often this letter has
    been since; ``tracked``, that the event has its row; ``repeats``, the coordinates of the record that its record is a
    replay of. ``sent_to`` are the groups that its record has been replayed for, by this letter or another's; ``edits``
    what a person has sent in its place.
    """

    topic: str
    partition: int
    offset: int
    letter: DeadLetter
    times: int
    tracked: bool
    replayed: int = 0
    repeats: str | None = None
    sent_to: frozenset[str] = frozenset()
    edits: tuple[Edit, ...] = ()

    @property
    def identity(self) -> tuple[str, str]:
        """Coordinates and group: letters that agree on them are repeats of one, as a crash leaves them."""
        return self.letter.coordinates, self.letter.group

    @property
    def summary(self) -> dict[str, Any]:
        """All that may be shown without showing the record, which may hold personal data."""
        letter = self.letter.model_dump(mode="json", exclude={"version", "key", "value", "headers"})
        return {
            "coordinates": self.letter.coordinates,
            **letter,
            "times_replayed": self.times + self.replayed,
            "state": "replayed" if self.replayed else "open",
            "error_topic": self.topic,
        }


@dataclass(frozen=True, slots=True)
class FailureCount:
    """How many letters of a stage and reason are open, and how many were replayed."""

    stage: str
    error_class: str
    open: int
    replayed: int


@dataclass(frozen=True, slots=True)
class Filter:
    """Which dead letters are meant; what is None or empty does not matter. ``since`` and ``until`` are aware, and about
    the last try; ``first_offset`` and ``last_offset`` are meant inclusively.
    """

    stage: str | None = None
    error_class: str | None = None
    job: str | None = None
    group: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    topic: str | None = None
    partition: int | None = None
    first_offset: int | None = None
    last_offset: int | None = None
    coordinates: frozenset[str] = frozenset()

    def takes(self, letter: DeadLetter) -> bool:
        """Whether a letter is meant."""
        asked = (
            (self.stage, letter.stage),
            (self.error_class, letter.error_class),
            (self.job, letter.job),
            (self.group, letter.group),
            (self.topic, letter.topic),
            (self.partition, letter.partition),
        )
        return (
            all(wanted in (None, found) for wanted, found in asked)
            and (self.since is None or letter.last_at >= self.since)
            and (self.until is None or letter.last_at < self.until)
            and (self.first_offset is None or letter.offset >= self.first_offset)
            and (self.last_offset is None or letter.offset <= self.last_offset)
            and (not self.coordinates or letter.coordinates in self.coordinates)
        )


@dataclass(frozen=True, slots=True)
class RecentLetters:
    """A group's dead letters among the newest messages of its error topics, by (stage, error class).

    ``open`` of them were not replayed, the oldest of those written at ``oldest_open_at`` (epoch seconds). ``held`` is
    how many messages the topics hold at most, ``read`` how many of them were looked at, ``replayed`` the notes of
    replays among those. If ``partial``, there may be more of the last hour than were looked at.
    """

    counts: Mapping[tuple[str, str], int]
    last_hour: Mapping[tuple[str, str], int]
    open: int
    oldest_open_at: float | None
    replayed: int
    read: int
    held: int
    partial: bool


@dataclass(frozen=True, slots=True)
class ErrorLog:
    """The error topics as they were read: the dead letters in their order, and the foreign messages among them."""

    entries: list[Entry] = field(default_factory=list)
    foreign: list[ForeignMessage] = field(default_factory=list)


def letters(
    reader: LogReader, topics: Iterable[str]
) -> Iterator[tuple[Record, DeadLetter | ReplayNote | ForeignMessage]]:
    """Each message of the error topics and what it is. Raises UnknownTopicError."""
    for topic in dict.fromkeys(topics):
        for message in reader.all(topic):
            note = decode_replay_note(message)
            try:
                yield message, note or decode_dead_letter(message.value or b"")
            except DeadLetterFormatError as error:
                yield message, ForeignMessage(topic, message.partition, message.offset, str(error))


def error_log(reader: LogReader, topics: Iterable[str], wanted: Filter) -> ErrorLog:
    """The ``wanted`` letters of the error topics, of repeats the latest. Raises UnknownTopicError.

    A letter counts as replayed if any of the topics has a note of it.
    """
    found: dict[tuple[str, str], Entry] = {}
    foreign: list[ForeignMessage] = []
    notes: defaultdict[tuple[str, str], list[ReplayNote]] = defaultdict(list)
    sent_to: defaultdict[str, set[str]] = defaultdict(set)
    for message, content in letters(reader, topics):
        if isinstance(content, ForeignMessage):
            foreign.append(content)
        elif isinstance(content, ReplayNote):
            notes[content.coordinates, content.group].append(content)
            sent_to[content.coordinates].add(content.to)
        else:
            entry = _entry(message, content)
            earlier = found.pop(entry.identity, entry)
            latest = max(earlier, entry, key=lambda one: one.letter.last_at)
            found[entry.identity] = replace(latest, tracked=earlier.tracked or entry.tracked)
    entries = [
        replace(
            entry,
            replayed=len(notes[identity]),
            sent_to=frozenset(sent_to[entry.letter.coordinates]),
            edits=tuple(note.edit for note in notes[identity] if note.edit),
        )
        for identity, entry in found.items()
        if wanted.takes(entry.letter)
    ]
    return ErrorLog(entries, foreign)


def recent_letters(
    reader: LogReader, topics: Iterable[str], group: str, *, hour_ago_ms: float, newest: int, go_on: Callable[[], bool]
) -> RecentLetters:
    """Count a group's letters by their headers, at the ``newest`` so many offsets of each partition, while ``go_on()``.

    Repeats count each time. Raises UnknownTopicError.
    """
    counts: Counter[tuple[str, str]] = Counter()
    last_hour: Counter[tuple[str, str]] = Counter()
    open_letters = OpenLetters(group)
    replayed = read = held = 0
    partial = False
    for topic in dict.fromkeys(topics):
        sizes = {partition: end - start for partition, (start, end) in reader.bounds(topic).items()}
        held += sum(sizes.values())
        met: set[int] = set()
        for message in reader.all(topic, newest):
            read += 1
            open_letters.add(message)
            recent = message.timestamp_ms >= hour_ago_ms
            if message.partition not in met:
                met.add(message.partition)
                partial |= recent and sizes.get(message.partition, 0) > newest
            headers = {name: shorten((value or b"").decode(errors="replace"), 250) for name, value in message.headers}
            if headers.get("x-group") == group:
                reason = headers.get("x-stage", "?"), headers.get("x-error-class", "?")
                counts[reason] += 1
                last_hour[reason] += recent
            else:
                note = decode_replay_note(message)
                replayed += note is not None and note.group == group
            if not go_on():
                partial = True
                break
    return RecentLetters(counts, +last_hour, len(open_letters), open_letters.oldest_at, replayed, read, held, partial)


def failure_counts(entries: Iterable[Entry]) -> list[FailureCount]:
    """The letters counted by stage and reason, in the order of those."""
    counts = Counter((entry.letter.stage, entry.letter.error_class, bool(entry.replayed)) for entry in entries)
    reasons = sorted({(stage, error_class) for stage, error_class, _ in counts})
    return [FailureCount(*reason, open=counts[*reason, False], replayed=counts[*reason, True]) for reason in reasons]


def original(reader: LogReader, letter: DeadLetter) -> Record | None:
    """The record of a letter; parts that the letter omits are read from the record's topic, by its coordinates.

    None if they are omitted and the topic no longer has them. Raises UnknownTopicError.
    """
    if not (letter.value_omitted or letter.headers_omitted or letter.key_omitted):
        return letter.record()
    topic = reader.topic(letter.topic)
    if topic.topic_id != letter.topic_id or letter.partition not in topic.partitions:
        return None
    return reader.at(letter.topic, letter.partition, letter.offset)


def _entry(message: Record, letter: DeadLetter) -> Entry:
    record = letter.record()
    tracked = has_row(record) or (letter.job == Job.CABINET and letter.stage in _ITEL_STAGES)
    summary = letter.model_copy(update={"key": None, "value": None, "headers": []})
    repeats = find_original(record)
    return Entry(
        message.topic, message.partition, message.offset, summary, count_replays(record), tracked, repeats=repeats
    )
