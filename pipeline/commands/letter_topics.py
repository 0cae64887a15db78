"""What the commands `itel-cabinet dead-letters ...` share: the error topics, a letter of them, and what replays it."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from itel_cabinet.pipeline.commands import shared
from itel_cabinet.pipeline.commands.shared import (
    PROGRAM,
    CommandError,
    client_settings,
    storing,
    table_settings,
    tables_at,
)
from itel_cabinet.pipeline.jobs import Job

if TYPE_CHECKING:
    from itel_cabinet.io.kafka import LogReader
    from itel_cabinet.pipeline.operate import Entry, ErrorLog, Filter, ForeignMessage, ReadingGroup, Replay, Replayer
    from itel_cabinet.transforms.dead_letters import DeadLetter
    from itel_cabinet.transforms.records import Record

__all__ = [
    "DeadLetterTopic",
    "Goal",
    "ItelErrorsTopic",
    "OfGroup",
    "error_topics",
    "find_goal",
    "find_letter",
    "open_replayer",
    "warn_of",
]

DeadLetterTopic = Annotated[
    str, typer.Option("--dead_letter_topic", help="Where the jobs put records that cannot be processed.")
]
ItelErrorsTopic = Annotated[str, typer.Option("--itel_errors_topic", help="Where they put failed submissions.")]
OfGroup = Annotated[str | None, typer.Option("--consumer_group", "--group", help="Only this group's.")]


@contextmanager
def error_topics(
    bootstrap_servers: str, kafka_config: str, topics: Sequence[str], epoch: int = 0
) -> Iterator[tuple[dict[str, object], LogReader]]:
    """The client's settings, and a reader that knows the error topics."""
    from confluent_kafka import KafkaException

    from itel_cabinet.io.kafka import FencedError, LogReader, UnknownTopicError
    from itel_cabinet.pipeline.refusals import describe_kafka_error, describe_missing_topic

    client = client_settings(bootstrap_servers, kafka_config)
    try:
        with LogReader(client, epoch=epoch) as reader:
            for option, topic in zip(("--dead_letter_topic", "--itel_errors_topic"), topics, strict=True):
                try:
                    reader.topic(topic)
                except UnknownTopicError as error:
                    raise CommandError(f"{option}: {describe_missing_topic(error)}") from None
            yield client, reader
    except KafkaException as error:
        raise CommandError(describe_kafka_error(error, bootstrap_servers)) from None
    except FencedError:
        raise CommandError(
            "another replay of these topics has begun, and this one has stopped: see what that one says"
        ) from None


def warn_of(foreign: Sequence[ForeignMessage]) -> None:
    if foreign:
        first, number = foreign[0], len(foreign)
        print(
            f"{PROGRAM}: warning: {number} {'message is' if number == 1 else 'messages are'} no dead "
            f"{'letter' if number == 1 else 'letters'} and left alone, the first one in {first.topic} at "
            f"{first.partition}/{first.offset}: {first.reason}",
            file=sys.stderr,
        )


def find_letter(
    client: Mapping[str, object],
    reader: LogReader,
    topics: Sequence[str],
    coordinates: str,
    group: str | None,
    epoch: int,
    *,
    of_one_group: bool = False,
) -> tuple[Entry, DeadLetter, Record | None]:
    """A record's latest dead letter, of this group if one is named, and the record; None where the letter had no room
    for it and its topic no longer has it. With ``of_one_group`` it is refused if several groups have one."""
    from itel_cabinet.io.kafka import LogReader, UnknownTopicError
    from itel_cabinet.pipeline.operate import Filter, error_log, original
    from itel_cabinet.transforms.dead_letters import decode_dead_letter

    entries = error_log(reader, topics, Filter(coordinates=frozenset({coordinates}), group=group)).entries
    if not entries:
        raise CommandError(
            f"{coordinates}: has no dead letter in {' or '.join(topics)}: see `{PROGRAM} dead-letters list`"
        )
    others = sorted({one.letter.group for one in entries})
    if of_one_group and len(others) > 1:
        raise CommandError(
            f"{coordinates}: the groups {' and '.join(others)} have each given it up: take one after the other, with "
            "--consumer_group"
        )
    entry = max(entries, key=lambda one: one.letter.last_at)
    message = reader.at(entry.topic, entry.partition, entry.offset)
    letter = decode_dead_letter(message.value or b"") if message else entry.letter
    with LogReader(client, epoch=epoch) as originals:
        try:
            return entry, letter, original(originals, letter) if message else None
        except UnknownTopicError:
            return entry, letter, None


@contextmanager
def open_replayer(
    client: Mapping[str, object],
    reader: LogReader,
    topics: Sequence[str],
    wanted: Filter,
    *,
    epoch: int,
    writes: bool,
    transactions: bool,
    tables_root: str | None,
    storage_options: str,
    to_group: str | None,
    **options: Any,
) -> Iterator[tuple[ErrorLog, Replayer]]:
    """The wanted letters, and what replays them. ``options`` are the Replayer's."""
    from itel_cabinet.io.kafka import Cluster, LogReader, LogWriter, group_lag
    from itel_cabinet.pipeline.operate import Replayer, error_log, reading_groups

    # First of all: from here on no other replay of these topics writes, so what is read of them now stays true.
    name = f"{PROGRAM}-replay-{'-'.join(topics)}"
    writer = LogWriter(client, name, transactions=transactions) if writes else None
    log = error_log(reader, topics, wanted)
    warn_of(log.foreign)
    with LogReader(client, epoch=epoch) as originals:

        @functools.cache
        def committed(group: str, topic: str) -> dict[int, int | None]:
            lags = group_lag(client, group, topic, epoch=epoch, timeout=shared.BROKER_SECONDS)
            return {one.partition: one.committed for one in lags}

        cluster = Cluster(client, timeout=shared.BROKER_SECONDS)

        @functools.cache
        def groups(topic: str) -> Mapping[str, ReadingGroup]:
            present = cluster.topic(topic, epoch=epoch)
            return reading_groups(cluster.committed_by_all(present), present.topic_id)

        yield (
            log,
            Replayer(
                letters=reader,
                originals=originals,
                writer=writer,
                committed=committed,
                groups=groups,
                to_group=to_group,
                error_topics=topics,
                is_erased=_read_list(tables_root, storage_options),
                **_what_tables_know(log.entries, tables_root, storage_options, to_group),
                **options,
            ),
        )


class Goal(NamedTuple):
    """A group that records were written for, and whether a job may read with it now."""

    group: str
    is_read_with: bool


def find_goal(replay: Replay, to_group: str | None, groups: Callable[[str], Mapping[str, ReadingGroup]]) -> Goal:
    name = to_group or replay.entry.letter.group
    seen = groups(replay.entry.letter.topic).get(name)
    return Goal(name, seen is not None and not seen.is_silent(time.time()))


def _what_tables_know(
    entries: Sequence[Entry], tables_root: str | None, storage_options: str, to_group: str | None
) -> dict[str, Any]:
    """The Replayer's ``in_table``, ``tracked`` and ``settled``: which records and events the tables have."""
    from itel_cabinet.io.delta import records_written, table_exists
    from itel_cabinet.pipeline.operate import make_index, may_have_row
    from itel_cabinet.pipeline.tables import LEDGER, TRACKING

    asked = [entry.letter for entry in entries if may_have_row(entry, to_group)]
    if not tables_root:
        if asked:
            warning = "without --tables_root, a record that has its row beside its dead letter gets a second one"
            print(f"{PROGRAM}: warning: {warning}", file=sys.stderr)
        return {}
    specs = tables_at(tables_root, storage_options)
    known: dict[str, Any] = {}
    with storing():
        # Where only `api` has given records up there need not be the tables of another job.
        if any(letter.job != Job.API for letter in asked) or table_exists(specs[TRACKING]):
            rows = [(letter.topic_id, letter.partition, letter.offset) for letter in asked]
            known["in_table"] = records_written(specs[TRACKING], rows) if asked else ()
            known["tracked"] = make_index(specs[TRACKING])
        if table_exists(specs[LEDGER]):
            known["settled"] = make_index(specs[LEDGER], "settled = true")
    return known


def _read_list(tables_root: str | None, storage_options: str) -> Callable[[Record], bool]:
    """Says whether a record is about somebody who was erased; of one that cannot be read nobody knows."""
    from itel_cabinet.io.delta import at_once, get_suppressions
    from itel_cabinet.pipeline.tables import TRACKING, suppression_list, table_specs
    from itel_cabinet.transforms.events import read_ids

    if not tables_root:
        return lambda _: False
    settings = table_settings(tables_root=tables_root, storage_options=storage_options)
    place = suppression_list(settings)
    people = get_suppressions(place.uri, place.storage_options, place.ids)
    with storing():
        at_once(table_specs(settings)[TRACKING], people.refresh)

    def is_erased(record: Record) -> bool:
        ids = read_ids(record)
        return any(people.find(kind, [ids.get(name)]) for kind, name in place.ids)

    return is_erased
