"""The commands `itel-cabinet tables restore` and `tables fence ...`: see docs/maintenance.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from itel_cabinet.pipeline.commands import shared
from itel_cabinet.pipeline.commands.printing import print_json, print_rows
from itel_cabinet.pipeline.commands.shared import (
    PROGRAM,
    AsJson,
    CommandError,
    DryRun,
    KafkaConfig,
    StorageOptions,
    TablesRoot,
    WatchSeconds,
    asking,
    client_settings,
)
from itel_cabinet.pipeline.commands.table_choice import OneTable, TableName, chosen, working
from itel_cabinet.pipeline.jobs import JOB_DEFAULTS, Job

if TYPE_CHECKING:
    from itel_cabinet.io.delta import Move, TableSpec

__all__ = ["fence_app", "restore_table"]

fence_app = typer.Typer(
    help="How far each partition of a topic is in a table: what lies below is written only if the table lacks it."
)
OfTopic = Annotated[str | None, typer.Option("--topic_id", metavar="ID", help="Whose; default: the only one there is.")]


# -------------------------------------------------------------------------------------------------------------- fences


@fence_app.command("show")
def show_fences(
    tables_root: TablesRoot,
    table: OneTable = None,
    version: Annotated[int | None, typer.Option("--version", min=0, help="As they were then; needs --table.")] = None,
    storage_options: StorageOptions = "{}",
    as_json: AsJson = False,
) -> None:
    """Show the first offset of each partition that a table counts as not written."""
    from itel_cabinet.io.delta import fences_at

    if version is not None and table is None:
        raise CommandError("--version: needs --table, since each table has versions of its own", wrong_use=True)
    rows = []
    for spec in chosen(tables_root, storage_options, table):
        with working():
            at, fences = fences_at(spec, version)
        rows += [
            {"table": spec.name, "version": at, "topic_id": topic_id, "partition": partition, "fence": fence}
            for (topic_id, partition), fence in sorted(fences.items())
        ]
    if as_json:
        print_json(rows)
        return
    heads = ("table", "version", "topic_id", "partition", "fence")
    print_rows({head: head.replace("_", " ") for head in heads}, rows)


@fence_app.command("set")
def set_fences(
    tables_root: TablesRoot,
    table: TableName,
    partition: Annotated[int | None, typer.Option("--partition", min=0, help="Default with --to_start: all.")] = None,
    offset: Annotated[
        int | None, typer.Option("--offset", min=0, help="The first offset that counts as not written.")
    ] = None,
    to_start: Annotated[bool, typer.Option("--to_start", help="Nothing counts as written.")] = False,
    topic_id: OfTopic = None,
    watch_seconds: WatchSeconds = 5.0,
    storage_options: StorageOptions = "{}",
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Lower a table's fences after it was emptied, overwritten or restored by another tool.

    Without that, what is read again is looked up in the table, row by row. Refused while a job writes to the table; one
    that has nothing to write cannot be seen, so stop it first. Records are only written again if they are read again:
    see `offsets reset`.
    """
    from itel_cabinet.io.delta import carry_out, plan_fences

    if (offset is None) == (not to_start) or (offset is not None and partition is None):
        raise CommandError("give --partition and --offset, or --to_start", wrong_use=True)

    def wanted(now: Mapping[tuple[str, int], int]) -> dict[tuple[str, int], int]:
        of = topic_id or _only_topic(now)
        if to_start and partition is None:
            return {at: 0 for at in now if at[0] == of}
        assert partition is not None
        return {(of, partition): offset or 0}

    (spec,) = chosen(tables_root, storage_options, table)
    with working():
        change = plan_fences(spec, wanted)
        if not change.moves:
            raise CommandError(f"--topic_id: {spec.name} has no fence of the topic {topic_id}: see `tables fence show`")
        for move in change.moves:
            if move.after > move.before:
                raise CommandError(
                    f"--offset: the fence of partition {move.partition} is at {move.before}, and only a commit of "
                    "rows raises it: to leave records out, set the group's offset beyond them"
                )
        if not dry_run:
            carry_out(spec, change, watch_seconds=watch_seconds)
    if as_json:
        print_json({"table": spec.name, "dry_run": dry_run, "fences": _move_rows(change.moves)})
        return
    typer.echo(f"{spec.name}: fences {'would be set' if dry_run else 'set'}")
    _print_moves(change.moves)


def _only_topic(fences: Mapping[tuple[str, int], int]) -> str:
    topics = sorted({topic_id for topic_id, _ in fences})
    if len(topics) != 1:
        known = f"the table has those of {', '.join(topics)}" if topics else "the table has no fence"
        raise CommandError(f"--topic_id: say whose fence is meant: {known}", wrong_use=True)
    return topics[0]


def _print_moves(moves: Sequence[Move]) -> None:
    heads = {"topic_id": "topic id", "partition": "partition", "before": "before", "after": "after", "means": "means"}
    print_rows(heads, _move_rows(moves))


def _move_rows(moves: Sequence[Move]) -> list[dict[str, Any]]:
    return [
        {"topic_id": m.topic_id, "partition": m.partition, "before": m.before, "after": m.after, "means": _meaning(m)}
        for m in moves
    ]


def _meaning(move: Move) -> str:
    if move.after < move.before:
        return f"[{move.after}, {move.before}) is written when read again"
    return f"[{move.before}, {move.after}) is there again" if move.after > move.before else "as it was"


# ------------------------------------------------------------------------------------------------------------- restore


def restore_table(
    tables_root: TablesRoot,
    table: TableName,
    version: Annotated[int, typer.Option("--version", min=0, help="Whose rows come back; see `tables describe`.")],
    consumer_group: Annotated[
        str | None,
        typer.Option("--group", "--consumer_group", help="That the table's job reads with; default: tracking's."),
    ] = None,
    input_topic: Annotated[
        str | None, typer.Option("--topic", "--input_topic", help="That it reads; default: the jobs'.")
    ] = None,
    bootstrap_servers: Annotated[
        str | None,
        typer.Option(
            "--bootstrap_servers",
            envvar="KAFKA_BOOTSTRAP_SERVERS",
            metavar="HOST:PORT[,HOST:PORT]",
            help="Kafka brokers, to check that the topic still has what the table loses.",
        ),
    ] = None,
    accept_loss: Annotated[
        bool, typer.Option("--accept_loss", help="Although the topic no longer has it all, or nobody can say.")
    ] = False,
    watch_seconds: WatchSeconds = 5.0,
    topic_epoch: Annotated[int, typer.Option("--topic_epoch", min=0, help="As the job has it.")] = 0,
    storage_options: StorageOptions = "{}",
    kafka_config: KafkaConfig = "{}",
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Bring back a table's older version, and lower its fences to what they were, in one commit.

    Stop the table's job first, and set its group's offsets back before it is started again, as this says: it would
    otherwise go on behind the gap. Refused while a job writes to the table.
    """
    from itel_cabinet.io.delta import carry_out, plan_restore

    group = consumer_group or JOB_DEFAULTS[Job.TRACKING]["consumer_group"]
    topic = input_topic or JOB_DEFAULTS[Job.TRACKING]["input_topic"]
    (spec,) = chosen(tables_root, storage_options, table)
    with working():
        change = plan_restore(spec, version)
    lowered = [move for move in change.moves if move.after < move.before]
    starts = _log_starts(bootstrap_servers, kafka_config, topic, topic_epoch) if bootstrap_servers else None
    losses = _losses(spec, change.version, lowered, starts, topic)
    if losses and not (accept_loss or dry_run):
        raise CommandError(f"{'; '.join(losses)}: --accept_loss says to restore the table all the same")
    made = None
    if not dry_run:
        with working():
            made = carry_out(spec, change, watch_seconds=watch_seconds)
    resets = _resets(lowered, starts, group, topic, bootstrap_servers)
    anybody_erased = _is_anybody_erased(spec)
    if as_json:
        print_json(
            {
                "table": spec.name,
                "from_version": change.version,
                "restored": version,
                "as_version": made,
                "fences": _move_rows(change.moves),
                "lost": losses,
                "to_read_again": resets,
                "erased_may_be_back": anybody_erased,
            }
        )
        return
    if made is None:
        typer.echo(f"{spec.name}: version {change.version} would be restored to {version}")
    else:
        typer.echo(f"{spec.name}: restored to version {version}, as version {made}")
    _print_moves(change.moves)
    for loss in losses:
        typer.echo(f"lost: {loss}")
    if anybody_erased:
        typer.echo(
            "people were erased from these tables, and may be back with this version: "
            f"`{PROGRAM} erase --again --tables_root={tables_root}` erases them again"
        )
    if not resets:
        typer.echo("nothing is to be read again")
        return
    typer.echo(
        "then, before a job writes to this table again (on Flink: start it without a savepoint, whose offsets are the "
        "old ones):"
    )
    for line in resets:
        typer.echo(f"  {line}")


def _is_anybody_erased(spec: TableSpec) -> bool:
    """Whether an older version may hold somebody who was erased since."""
    from itel_cabinet.io.delta import at_once, get_suppressions

    place = spec.suppressed
    if place is None:
        return False
    people = get_suppressions(place.uri, place.storage_options, place.ids)
    with working():
        at_once(spec, people.refresh)
    return len(people) > 0


def _log_starts(servers: str, kafka_config: str, topic: str, epoch: int) -> tuple[str, dict[int, int]]:
    """The topic's id, and where its partitions start."""
    from itel_cabinet.io.kafka import Cluster

    with asking(servers):
        cluster = Cluster(client_settings(servers, kafka_config), timeout=shared.BROKER_SECONDS)
        one = cluster.topic(topic, epoch=epoch)
        return one.topic_id, {p: start for p, (start, _) in cluster.bounds(topic, one.partitions).items()}


def _losses(
    spec: TableSpec, version: int, lowered: Sequence[Move], starts: tuple[str, Mapping[int, int]] | None, topic: str
) -> list[str]:
    """What the table, which is at ``version``, would lose and the topic no longer has, in words."""
    from itel_cabinet.io.delta import rows_from

    if starts is None:
        return ["--bootstrap_servers: is not given, so nobody knows whether the topic has the rest"] if lowered else []
    topic_id, start = starts
    losses = []
    for move in lowered:
        end = min(move.before, start.get(move.partition, 0)) if move.topic_id == topic_id else move.before
        with working():
            rows = rows_from(spec, version, move.topic_id, move.partition, range(move.after, end))
        if rows:
            why = (
                f"retention has deleted [{move.after}, {end}) of partition {move.partition}"
                if move.topic_id == topic_id
                else f"[{move.after}, {end}) of partition {move.partition} is of {move.topic_id}, and {topic} is "
                f"{topic_id} now"
            )
            losses.append(f"--topic: {why}: rows that cannot be written again: {rows}")
    return losses


def _resets(
    lowered: Sequence[Move],
    starts: tuple[str, Mapping[int, int]] | None,
    group: str,
    topic: str,
    servers: str | None,
) -> list[str]:
    """The commands that have the rows read again, one for each incarnation of the topic that may still be there."""
    lines = []
    for topic_id in sorted({m.topic_id for m in lowered if starts is None or m.topic_id == starts[0]}):
        first = {m.partition: m.after for m in lowered if m.topic_id == topic_id}
        if starts is not None:
            first = {p: max(offset, starts[1][p]) for p, offset in first.items()}
        offsets = ",".join(f"{p}={offset}" for p, offset in sorted(first.items()))
        lines.append(
            f"{PROGRAM} offsets reset --group={group} --topic={topic} --topic_id={topic_id} --to_offset={offsets} "
            f"--only_back{f' --bootstrap_servers={servers}' if servers else ''}"
        )
    return lines
