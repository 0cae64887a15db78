"""The commands `itel-cabinet reconcile` and `itel-cabinet submissions ...`: see docs/operations.md."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from itel_cabinet.pipeline.commands import shared
from itel_cabinet.pipeline.commands.letter_topics import DeadLetterTopic, ItelErrorsTopic, error_topics
from itel_cabinet.pipeline.commands.printing import print_json, print_rows
from itel_cabinet.pipeline.commands.query import reading, table_specs_of
from itel_cabinet.pipeline.commands.shared import (
    PROGRAM,
    AsJson,
    CommandError,
    DryRun,
    KafkaConfig,
    StorageOptions,
    TablesRoot,
    read_age,
    read_moment,
    read_since,
)
from itel_cabinet.pipeline.topics import ITEL_ERRORS, TASK_ERRORS

if TYPE_CHECKING:
    from itel_cabinet.io.delta import TableSpec
    from itel_cabinet.pipeline.operate import Filed, Place, ReadingGroup
    from itel_cabinet.pipeline.reconciliation import Gap, Reconciliation

__all__ = ["OptionalServers", "reconcile", "submissions_app"]

submissions_app = typer.Typer(help="What became of each form on its way to iTel, as the ledger has it.")
OptionalServers = Annotated[
    str | None,
    typer.Option(
        "--bootstrap_servers",
        envvar="KAFKA_BOOTSTRAP_SERVERS",
        metavar="HOST:PORT[,HOST:PORT]",
        help="Kafka brokers, for what lies on topics.",
    ),
]
_OUTCOMES = ("accepted", "duplicate", "unchanged", "refused", "held", "shadow")
_GAPS = ("never_tried", "refused", "held")


def reconcile(
    tables_root: TablesRoot,
    older_than: Annotated[
        str, typer.Option("--older_than", metavar="AGE", help="How long iTel may lack a form: 15m, 1h, 2d ...")
    ] = "1h",
    since: Annotated[
        str | None,
        typer.Option("--since", metavar="TIME|AGE", help="Only events of then or later; 30d is 30 days back."),
    ] = None,
    leave_out: Annotated[
        list[str] | None,
        typer.Option("--leave_out", metavar="OUTCOME", help="Not these: held, refused, never_tried; may be repeated."),
    ] = None,
    statuses: Annotated[
        str, typer.Option("--itel_statuses", metavar="STATUS[,STATUS]", help="Which are submitted, as the job has it.")
    ] = "COMPLETED",
    limit: Annotated[int, typer.Option("--limit", min=0, help="How many forms are listed, the oldest first.")] = 20,
    storage_options: StorageOptions = "{}",
    resubmit: Annotated[
        bool, typer.Option("--resubmit", help="Put those older than --older_than in line; needs --bootstrap_servers.")
    ] = False,
    dry_run: DryRun = False,
    consumer_group: Annotated[
        str | None,
        typer.Option("--consumer_group", "--group", help="Who is to submit them; default: the group that does now."),
    ] = None,
    bootstrap_servers: OptionalServers = None,
    transactions: Annotated[
        bool, typer.Option("--transactions/--no_transactions", help="Off for brokers without.")
    ] = True,
    dead_letter_topic: DeadLetterTopic = TASK_ERRORS,
    itel_errors_topic: ItelErrorsTopic = ITEL_ERRORS,
    topic_epoch: Annotated[int, typer.Option("--topic_epoch", min=0, help="As the job has it.")] = 0,
    kafka_config: KafkaConfig = "{}",
    as_json: AsJson = False,
) -> int:
    """Say which completed forms iTel lacks, by reason and age. Exit status 1 if any is older than --older_than.

    The history and the kept forms are compared with the ledger of submissions. A form counts as there if iTel accepted
    it or had it, or has one with the same content; one that is older than what iTel has of the assignment counts as
    superseded. Fix the cause before --resubmit, which writes the events' records to their topic again, as
    `dead-letters replay` does, and ends their open dead letters; exit status 1 then if some could not be.
    """
    from itel_cabinet.pipeline.queries import QueryError, Session
    from itel_cabinet.pipeline.reconciliation import reconcile as compare

    now = datetime.now(UTC)
    limit_age = read_age("older_than", older_than)
    start = read_since("since", since, now)
    left_out = {_one_of("leave_out", one, _GAPS) for one in leave_out or ()}
    if resubmit and not bootstrap_servers:
        raise CommandError("--bootstrap_servers is missing: --resubmit writes to a topic", wrong_use=True)
    if dry_run and not resubmit:
        raise CommandError("--dry_run: goes with --resubmit: without it nothing is changed", wrong_use=True)
    specs = table_specs_of(tables_root, storage_options)
    with reading(), Session(specs) as session:
        try:
            found = compare(session, statuses=statuses.upper().split(","), since=start)
        except QueryError:
            raise CommandError(
                f"--itel_statuses: must be statuses with commas between them, got {statuses[:50]!r}", wrong_use=True
            ) from None
    gaps = [gap for gap in found.gaps if gap.outcome not in left_out]
    older = [gap for gap in gaps if now - gap.event_timestamp > limit_age]
    answer = _describe(found, gaps, older, limit_age, now)
    if not resubmit:
        if as_json:
            print_json(answer)
        else:
            _print(answer, left_out, older_than, limit)
        return 1 if older else 0
    topics = (dead_letter_topic, itel_errors_topic)
    places: list[tuple[Gap, Place, str]] = []
    if older:
        with error_topics(str(bootstrap_servers), kafka_config, topics, topic_epoch) as (client, reader):
            places = [
                *_put_in_line(
                    older, client, reader, specs, topics, consumer_group,
                    epoch=topic_epoch, transactions=transactions, dry_run=dry_run,
                )
            ]  # fmt: skip
    counts = Counter(place for _, place, _ in places)
    if as_json:
        forms = [
            {"event_id": gap.event_id, "coordinates": gap.coordinates, "place": place.value, "reason": why or None}
            for gap, place, why in places
        ]
        print_json({**answer, "dry_run": dry_run, "resubmitted": forms})
    else:
        _print(answer, left_out, older_than, limit)
        for place, number in counts.items():
            would = "would be " if dry_run and place.value == "put_in_line" else ""
            typer.echo(f"{number} {would}{place.value.replace('_', ' ')}")
        for gap, _, why in places:
            if why:
                typer.echo(f"{PROGRAM}: {gap.event_id}: {why}", err=True)
    return 1 if any(place.failed for place in counts) else 0


def _one_of(option: str, given: str, known: Sequence[str]) -> str:
    if given not in known:
        raise CommandError(f"--{option}: must be one of {', '.join(known)}, got {given[:50]!r}", wrong_use=True)
    return given


def _describe(
    found: Reconciliation, gaps: Sequence[Gap], older: Sequence[Gap], limit: timedelta, now: datetime
) -> dict[str, Any]:
    from itel_cabinet.pipeline.reconciliation import rank_gaps

    late = {(lack.outcome, lack.reason): lack.forms for lack in rank_gaps(older)}
    return {
        "at": _instant(now),
        "completed": found.completed,
        "settled": found.settled,
        "superseded": found.superseded,
        "left_out": len(found.gaps) - len(gaps),
        "lacking": len(gaps),
        "older_than_seconds": int(limit.total_seconds()),
        "older": len(older),
        "reasons": [
            {
                "outcome": lack.outcome,
                "reason": lack.reason,
                "forms": lack.forms,
                "older": late.get((lack.outcome, lack.reason), 0),
                "oldest_at": _instant(lack.oldest_at),
                "oldest_seconds": int((now - lack.oldest_at).total_seconds()),
            }
            for lack in rank_gaps(gaps)
        ],
        "forms": [
            {
                "event_id": gap.event_id,
                "assignment_id": gap.assignment_id,
                "project_id": gap.project_id,
                "event_at": _instant(gap.event_timestamp),
                "age_seconds": int(gap.age_seconds(now)),
                "outcome": gap.outcome,
                "reason": gap.reason,
                "tried_at": gap.tried_at and _instant(gap.tried_at),
                "topic": gap.kafka_topic,
                "coordinates": gap.coordinates,
            }
            for gap in gaps
        ],
    }


def _print(answer: Mapping[str, Any], left_out: set[str], older_than: str, limit: int) -> None:
    typer.echo(f"{answer['completed']} completed forms, of which iTel has {answer['settled']}")
    if answer["superseded"]:
        typer.echo(f"{answer['superseded']} superseded: iTel lacks them, and has a newer form of the assignment")
    if answer["left_out"]:
        typer.echo(f"{answer['left_out']} left out ({', '.join(sorted(left_out))})")
    typer.echo(f"{answer['lacking']} that iTel lacks, {answer['older']} of them for more than {older_than}")
    if not answer["lacking"]:
        return
    ages = [{**one, "age": _age(one["oldest_seconds"])} for one in answer["reasons"]]
    heads = {"outcome": "outcome", "reason": "reason", "forms": "forms", "older": f"older than {older_than}"}
    print_rows({**heads, "oldest_at": "oldest", "age": "age"}, ages)
    forms = [{**one, "age": _age(one["age_seconds"])} for one in answer["forms"][:limit]]
    heads = {"event_at": "event", "age": "age", "assignment_id": "assignment", "event_id": "event id"}
    if forms:
        print_rows({**heads, "outcome": "outcome", "reason": "reason", "coordinates": "coordinates"}, forms)
    if answer["lacking"] > limit:
        typer.echo(f"and {answer['lacking'] - limit} more: raise --limit, or take --json")


def _age(seconds: float) -> str:
    days, rest = divmod(int(seconds), 86_400)
    hours, rest = divmod(rest, 3_600)
    minutes, rest = divmod(rest, 60)
    return f"{days}d {hours}h" if days else f"{hours}h {minutes}m" if hours else f"{minutes}m {rest}s"


def _put_in_line(
    gaps: Sequence[Gap],
    client: dict[str, object],
    reader: Any,
    specs: Mapping[str, TableSpec],
    topics: tuple[str, str],
    group: str | None,
    *,
    epoch: int,
    transactions: bool,
    dry_run: bool,
) -> Iterator[tuple[Gap, Place, str]]:
    from itel_cabinet.io.kafka import Cluster, LogReader, LogWriter, UnknownTopicError, group_lag
    from itel_cabinet.pipeline.operate import (
        Filter,
        Resubmitter,
        error_log,
        letters_by_gap,
        reading_groups,
        records_in_history,
    )
    from itel_cabinet.pipeline.tables import TRACKING

    cluster = Cluster(client, timeout=shared.BROKER_SECONDS)
    groups: dict[str, ReadingGroup] = {}
    for name in sorted({gap.kafka_topic for gap in gaps}):
        try:
            present = cluster.topic(name, epoch=epoch)
        except UnknownTopicError:  # each of its forms is reported as refused
            continue
        groups.update(reading_groups(cluster.committed_by_all(present), present.topic_id))
    submitting = _submitting_group(groups, group)

    def committed(topic: str) -> dict[int, int | None]:
        lags = group_lag(client, submitting, topic, epoch=epoch, timeout=shared.BROKER_SECONDS)
        return {one.partition: one.committed for one in lags}

    with ExitStack() as stack:
        # Fences a replay of these topics that runs at the same time, and is fenced by one that begins later.
        name = f"{PROGRAM}-replay-{'-'.join(topics)}"
        writer = None if dry_run else LogWriter(client, name, transactions=transactions)
        originals = stack.enter_context(LogReader(client, epoch=epoch))
        stack.enter_context(reading())
        resubmitter = Resubmitter(
            originals=originals,
            writer=writer,
            group=submitting,
            committed=committed,
            letters=letters_by_gap(error_log(reader, topics, Filter()).entries, gaps),
            kept=lambda lost: records_in_history(specs[TRACKING], lost),
        )
        yield from resubmitter.put_in_line(gaps)


def _submitting_group(groups: Mapping[str, ReadingGroup], given: str | None) -> str:
    """The group that the records are for: the one given, or the only one that a submitting job reads with now."""
    if given is not None:
        if given not in groups:
            raise CommandError(f"--consumer_group: the group {given} has no offsets in the forms' topic")
        return given
    now = time.time()
    reads = sorted(one.name for one in groups.values() if one.job in ("api", "cabinet") and one.is_read_with(now))
    if len(reads) == 1:
        return reads[0]
    there = sorted(one.name for one in groups.values() if one.job in ("api", "cabinet"))
    which = f"one of {', '.join(there)}" if there else "the group of the job that submits"
    found = f"{len(reads)} jobs that submit read" if reads else "no job that submits reads"
    raise CommandError(f"--consumer_group is missing: {found} the forms' topic now: give {which}", wrong_use=True)


def _instant(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


# ---------------------------------------------------------------------------------------------------------- the ledger


@submissions_app.command("list")
def list_submissions(
    tables_root: TablesRoot,
    outcome: Annotated[
        list[str] | None,
        typer.Option("--outcome", help=f"Only these: {', '.join(_OUTCOMES)}; may be repeated."),
    ] = None,
    reason: Annotated[str | None, typer.Option("--reason", help="Only this one: refused, timeout, no_form ...")] = None,
    assignment_id: Annotated[int | None, typer.Option("--assignment_id", min=0, help="Only this assignment's.")] = None,
    since: Annotated[
        str | None, typer.Option("--since", metavar="TIME|AGE", help="Only those that ended then or later.")
    ] = None,
    until: Annotated[str | None, typer.Option("--until", metavar="TIME", help="Only those that ended before.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many, the newest.")] = 50,
    storage_options: StorageOptions = "{}",
    as_json: AsJson = False,
) -> None:
    """List what became of submissions, newest first, without what was sent."""
    from itel_cabinet.pipeline.operate import find_filed
    from itel_cabinet.pipeline.tables import LEDGER

    now = datetime.now(UTC)
    outcomes = [_one_of("outcome", one, _OUTCOMES) for one in outcome or ()]
    spec = table_specs_of(tables_root, storage_options)[LEDGER]
    with reading():
        found = find_filed(
            spec,
            outcomes=outcomes,
            reason=reason,
            assignment_id=assignment_id,
            since=read_since("since", since, now),
            until=read_moment("until", until),
            limit=limit,
        )
    if as_json:
        print_json([_plain(one) for one in found])
        return
    heads = (
        "ended",
        "assignment_id",
        "event_id",
        "outcome",
        "reason",
        "status",
        "attempts",
        "created_id",
        "latency_ms",
    )
    rows = [{**one.row, "ended": _instant(one.ended_at)} for one in found]
    print_rows({head: head.replace("_", " ") for head in heads}, [{head: row[head] for head in heads} for row in rows])


@submissions_app.command("show")
def show_submission(
    identity: Annotated[str, typer.Argument(metavar="ASSIGNMENT|EVENT", help="An assignment's id, or an event's.")],
    tables_root: TablesRoot,
    body: Annotated[
        bool, typer.Option("--body", help="With what was sent, which is personal data, where it is kept.")
    ] = False,
    storage_options: StorageOptions = "{}",
    as_json: AsJson = False,
) -> None:
    """Show all that the ledger has of one assignment or event, oldest first. Exit status 1 if it has nothing."""
    from itel_cabinet.pipeline.operate import find_bodies, find_filed_of
    from itel_cabinet.pipeline.tables import BODIES, LEDGER

    specs = table_specs_of(tables_root, storage_options)
    with reading():
        found = find_filed_of(specs[LEDGER], identity)
        if not found:
            raise CommandError(
                f"{identity[:100]}: the ledger has nothing of such an assignment or event: see "
                f"`{PROGRAM} trace` for what else is known"
            )
        bodies = find_bodies(specs[BODIES], found) if body else {}
    shown = [_plain(one) | ({"body": bodies.get(one.sent)} if body else {}) for one in found]
    if as_json:
        print_json(shown)
        return
    for index, one in enumerate(shown):
        if index:
            typer.echo()
        for name, value in one.items():
            if value is not None:
                typer.echo(f"{name}: {value}")
        if body and one["body"] is None:
            typer.echo("body: not kept" if one["body_sha256"] else "body: nothing was sent")


def _plain(filed: Filed) -> dict[str, Any]:
    """A row as JSON has it; the day's columns say nothing new."""
    left_out = {"year", "month", "day"}
    return {
        name: _instant(value) if isinstance(value, datetime) else value
        for name, value in filed.row.items()
        if name not in left_out
    }
