"""The commands `itel-cabinet offsets ...`: see docs/maintenance.md."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from itel_cabinet.pipeline.commands import shared
from itel_cabinet.pipeline.commands.printing import print_json, print_rows
from itel_cabinet.pipeline.commands.shared import (
    PROGRAM,
    AsJson,
    CommandError,
    DryRun,
    KafkaConfig,
    Servers,
    WatchSeconds,
    asking,
    client_settings,
)
from itel_cabinet.pipeline.jobs import Job

if TYPE_CHECKING:
    from itel_cabinet.io.kafka import ConsumerGroup, PartitionLag, Shift

__all__ = ["offsets_app"]

offsets_app = typer.Typer(help="Where consumer groups stand in topics.")
Group = Annotated[str, typer.Option("--group", "--consumer_group", help="The consumer group.")]
Topic = Annotated[str, typer.Option("--topic", "--input_topic", help="The topic that it reads.")]
TopicEpoch = Annotated[int, typer.Option("--topic_epoch", min=0, help="As the job has it.")]


@contextmanager
def _refusing() -> Iterator[None]:
    """What a group or an offset is refused for in here, as one line."""
    from itel_cabinet.io.kafka import GroupError

    try:
        yield
    except GroupError as refused:
        raise CommandError(str(refused)) from None


def _opened(client: Mapping[str, object], group: str, topic: str, epoch: int) -> ConsumerGroup:
    from itel_cabinet.io.kafka import ConsumerGroup

    return ConsumerGroup(client, group, topic, epoch=epoch, timeout=shared.BROKER_SECONDS)


@offsets_app.command("show")
def show_offsets(
    group: Group,
    topic: Topic,
    bootstrap_servers: Servers,
    topic_epoch: TopicEpoch = 0,
    kafka_config: KafkaConfig = "{}",
    as_json: AsJson = False,
) -> None:
    """Show a group's offsets in a topic, and whether they were committed for the topic as it is now.

    Those of a topic of the same name that was deleted count for nothing. What --json prints can be given back to
    `reset --from_json`.
    """
    with asking(bootstrap_servers), _refusing():
        one = _opened(client_settings(bootstrap_servers, kafka_config), group, topic, topic_epoch)
        one.check_known()
        positions = one.positions()
    rows = [
        {
            "partition": p.partition,
            "committed": p.stale if p.committed is None else p.committed,
            "committed_for": p.topic_id,
            "counts": p.committed is not None,
            "start": p.start,
            "end": p.end,
            "lag": p.lag,
        }
        for p in positions
    ]
    if as_json:
        print_json({"group": group, "topic": topic, "topic_id": one.topic.topic_id, "partitions": rows})
        return
    typer.echo(f"{group} in {topic} ({one.topic.topic_id}): {sum(p.lag for p in positions)} behind")
    heads = {"partition": "partition", "committed": "committed", "start": "log start", "end": "end", "lag": "lag"}
    shown = [{**row, "committed_for": _whose(p)} for p, row in zip(positions, rows, strict=True)]
    print_rows(heads | {"committed_for": "committed for"}, shown)


def _whose(position: PartitionLag) -> str:
    from itel_cabinet.transforms.dead_letters import shorten

    if position.stale is not None:
        return f"another topic of this name: {shorten(position.topic_id or '', 100)}"
    if position.committed is None:
        return "-"
    return "this topic" if position.topic_id else "not said"


@offsets_app.command("reset")
def reset_offsets(
    group: Group,
    topic: Topic,
    bootstrap_servers: Servers,
    to_start: Annotated[bool, typer.Option("--to_start", help="To where the log starts.")] = False,
    to_end: Annotated[bool, typer.Option("--to_end", help="To its end: what is there now is never read.")] = False,
    to_time: Annotated[
        str | None, typer.Option("--to_time", metavar="TIME", help="To the first record of that time or later.")
    ] = None,
    to_offset: Annotated[
        str | None, typer.Option("--to_offset", metavar="P=N[,P=N]", help="To these offsets, by partition.")
    ] = None,
    from_json: Annotated[
        Path | None, typer.Option("--from_json", metavar="FILE", help="To those that `show --json` has printed.")
    ] = None,
    only_back: Annotated[bool, typer.Option("--only_back", help="Leave alone what would not move backwards.")] = False,
    topic_id: Annotated[
        str | None, typer.Option("--topic_id", metavar="ID", help="Refuse if the topic is not this one any more.")
    ] = None,
    new_group: Annotated[bool, typer.Option("--new_group", help="The broker need not know the group.")] = False,
    watch_seconds: WatchSeconds = 5.0,
    topic_epoch: TopicEpoch = 0,
    kafka_config: KafkaConfig = "{}",
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Set a group's offsets. Stop what reads with it first: a job that runs puts them back.

    Refused while the group has members or moves; a job that has nothing to read cannot be seen. Tables drop what they
    have when it is read again; iTel gets submissions again, under the same keys.
    """
    ways = {
        "--to_start": to_start, "--to_end": to_end, "--to_time": to_time, "--to_offset": to_offset,
        "--from_json": from_json,
    }  # fmt: skip
    given = [name for name, value in ways.items() if value]
    if len(given) != 1:
        which = f"not {' and '.join(given)}" if given else "none is there"
        raise CommandError(f"give one of {', '.join(ways)}: {which}", wrong_use=True)
    moment = _milliseconds(to_time) if to_time else None
    offsets = _offsets(to_offset) if to_offset else {}
    with asking(bootstrap_servers), _refusing():
        one = _opened(client_settings(bootstrap_servers, kafka_config), group, topic, topic_epoch)
        if from_json:
            offsets = _read_offsets(from_json, one.topic.topic_id)
        if topic_id and one.topic.topic_id != topic_id:
            raise CommandError(
                f"--topic_id: topic {topic} is {one.topic.topic_id} now, not {topic_id}: it was deleted and created "
                "again, and what these offsets are about is gone"
            )
        if not new_group:
            one.check_known()
        if moment is not None:
            offsets = one.at_time(moment)
        elif to_start or to_end:
            offsets = {p.partition: p.end if to_end else p.start for p in one.positions()}
        one.check_in_range(offsets)
        _move(one, offsets, only_back=only_back, watch_seconds=watch_seconds, dry_run=dry_run, as_json=as_json)


@offsets_app.command("copy")
def copy_offsets(
    from_groups: Annotated[
        list[str],
        typer.Option("--from", metavar="GROUP", help="Whose offsets, such as an old worker's; of several the lowest."),
    ],
    to_group: Annotated[str, typer.Option("--to", metavar="GROUP", help="The group that goes on from there.")],
    topic: Topic,
    bootstrap_servers: Servers,
    job: Annotated[Job | None, typer.Option("--job", help="The job that goes on from there.")] = None,
    accept_loss: Annotated[
        bool, typer.Option("--accept_loss", help="Though what the other half of the work has left is then never done.")
    ] = False,
    watch_seconds: WatchSeconds = 5.0,
    topic_epoch: TopicEpoch = 0,
    kafka_config: KafkaConfig = "{}",
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Let a group go on where another one has stopped, such as a job where an old worker did.

    All must be at rest. `tracking` and `api` become `cabinet` with --from given for both: going on from one alone is
    refused while the other is behind it. Partitions of which one of the groups has no offset are reported; the job
    starts them at their beginning, or where they are in its own group.
    """
    from itel_cabinet.io.kafka import Cluster
    from itel_cabinet.pipeline.operate import describe_left_behind, find_job, lowest_offsets, reading_groups

    if to_group in from_groups:
        raise CommandError(f"--to: is the same group as --from, {to_group}", wrong_use=True)
    with asking(bootstrap_servers), _refusing():
        client = client_settings(bootstrap_servers, kafka_config)
        old = [_opened(client, name, topic, topic_epoch) for name in dict.fromkeys(from_groups)]
        new = _opened(client, to_group, topic, topic_epoch)
        cluster = Cluster(client, timeout=shared.BROKER_SECONDS)
        groups = reading_groups(cluster.committed_by_all(new.topic), new.topic.topic_id)
        for one in old:
            one.check_known()
            if one.name not in groups:
                raise CommandError(
                    f"--from: the group {one.name} has no offsets in topic {topic} ({one.topic.topic_id})"
                )
        taken = [groups[one.name] for one in old]
        offsets = lowest_offsets(taken)
        left = describe_left_behind(taken, (job and job.value) or find_job(to_group, groups), groups)
        if left and not accept_loss:
            raise CommandError(f"--from: {left}; --accept_loss goes on without")
        positions = {one.name: one.positions() for one in old}
        for one in old:
            _check_not_overtaken(one, [p for p in positions[one.name] if p.partition in offsets])
        old[0].check_in_range(offsets)
        if not dry_run:
            for one, group in zip(old, taken, strict=True):
                one.check_at_rest(watch_seconds)
                if one.offsets() != group.offsets:
                    raise CommandError(f"--from: the group {one.name} moves: stop what reads with it first")
        _move(new, offsets, watch_seconds=watch_seconds, dry_run=dry_run, as_json=as_json)
    for name, found in positions.items():
        for p in found:
            if p.committed is None:
                why = "is not there" if p.stale is None else "is of another topic of this name"
                warning = f"partition {p.partition}: its offset in {name} {why}, and is not copied"
                print(f"{PROGRAM}: warning: {warning}", file=sys.stderr)


def _check_not_overtaken(old: ConsumerGroup, positions: Sequence[PartitionLag]) -> None:
    """Refuse offsets below the log's start, with the line that takes what is left."""
    lost = [p for p in positions if p.committed != p.position]
    if lost:
        at = ", ".join(f"[{p.committed}, {p.start}) of partition {p.partition}" for p in lost)
        rest = ",".join(f"{p.partition}={p.position}" for p in positions)
        raise CommandError(
            f"--from: retention has deleted {at} before {old.name} read it; to go on without: `{PROGRAM} offsets reset "
            f"--new_group --topic={old.topic.name} --to_offset={rest} --group=...`"
        )


def _move(
    group: ConsumerGroup,
    offsets: Mapping[int, int],
    *,
    watch_seconds: float,
    dry_run: bool,
    as_json: bool,
    only_back: bool = False,
) -> None:
    from itel_cabinet.io.kafka import shifts

    if not dry_run:
        group.check_at_rest(watch_seconds)
    moved = shifts(group, offsets, only_back=only_back)
    if not dry_run:
        group.move({shift.partition: shift.after for shift in moved})
    _print_shifts(group, moved, dry_run=dry_run, as_json=as_json)


def _print_shifts(group: ConsumerGroup, moved: Sequence[Shift], *, dry_run: bool, as_json: bool) -> None:
    rows = [{"partition": s.partition, "before": s.before, "after": s.after, "means": _meaning(s)} for s in moved]
    if as_json:
        print_json({"group": group.name, "topic": group.topic.name, "dry_run": dry_run, "partitions": rows})
        return
    verb = "would be set" if dry_run else "set"
    number = f"{len(moved)} {'partition' if len(moved) == 1 else 'partitions'}"
    typer.echo(f"{group.name} in {group.topic.name}: {number} {verb}")
    if moved:
        print_rows({name: name for name in ("partition", "before", "after", "means")}, rows)


def _meaning(shift: Shift) -> str:
    if shift.before is None:
        return "had none"
    if shift.after < shift.before:
        return f"reads [{shift.after}, {shift.before}) again"
    return f"never reads [{shift.before}, {shift.after})" if shift.after > shift.before else "as it was"


def _milliseconds(text: str) -> int:
    from itel_cabinet.transforms.events import parse_timestamp

    try:
        return int(parse_timestamp(text).timestamp() * 1000)
    except ValueError as error:
        reason = f"must be a date and time such as 2026-01-10T15:00 (UTC where no zone is named): {error}"
        raise CommandError(f"--to_time: {reason}", wrong_use=True) from None


def _offsets(text: str) -> dict[int, int]:
    pairs = [re.fullmatch(r"\s*([0-9]{1,9})=([0-9]{1,18})\s*", part) for part in text.split(",")]
    offsets = {int(pair[1]): int(pair[2]) for pair in pairs if pair}
    if len(offsets) != len(pairs):
        raise CommandError(
            f"--to_offset: must be partition=offset, each partition once, such as 0=120,1=98: got {text!r}",
            wrong_use=True,
        )
    return offsets


def _read_offsets(file: Path, topic_id: str) -> dict[int, int]:
    """The offsets that `offsets show --json` has printed into a file."""
    from pydantic import BaseModel, NonNegativeInt, ValidationError

    class Row(BaseModel):
        partition: NonNegativeInt
        committed: NonNegativeInt | None
        counts: bool

    class Saved(BaseModel):
        topic_id: str
        partitions: list[Row]

    try:
        saved = Saved.model_validate_json(file.read_bytes())
    except OSError as error:
        raise CommandError(f"--from_json: {file} cannot be read: {error.strerror}", wrong_use=True) from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise CommandError(
            f"--from_json: {file} is not what `{PROGRAM} offsets show --json` prints: {where}: {first['msg']}",
            wrong_use=True,
        ) from None
    if saved.topic_id != topic_id:
        raise CommandError(
            f"--from_json: {file} is about the topic {saved.topic_id}, which was deleted: this one is {topic_id}"
        )
    return {row.partition: row.committed for row in saved.partitions if row.committed is not None and row.counts}
