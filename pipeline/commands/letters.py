"""The commands `itel-cabinet dead-letters ...`: see docs/dead-letters.md."""

from __future__ import annotations

import base64
import json
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from itel_cabinet.pipeline.commands.letter_edits import edit_dead_letter, export_dead_letter
from itel_cabinet.pipeline.commands.letter_topics import (
    DeadLetterTopic,
    Goal,
    ItelErrorsTopic,
    OfGroup,
    error_topics,
    find_goal,
    find_letter,
    open_replayer,
    warn_of,
)
from itel_cabinet.pipeline.commands.printing import make_console, print_json
from itel_cabinet.pipeline.commands.shared import (
    PROGRAM,
    AsJson,
    CommandError,
    DryRun,
    KafkaConfig,
    Servers,
    StorageOptions,
    read_moment,
    storing,
)
from itel_cabinet.pipeline.jobs import Job
from itel_cabinet.pipeline.topics import ITEL_ERRORS, TASK_ERRORS

if TYPE_CHECKING:
    from rich.text import Text

    from itel_cabinet.pipeline.operate import (
        FailureCount,
        Filter,
        Outcome,
        Replay,
    )

__all__ = ["letters_app"]

letters_app = typer.Typer(help="The records that the jobs gave up, on the error topics.")
Stage = Annotated[str | None, typer.Option("--stage", help="Only this step's: parse, enrich, payload, submit ...")]
ErrorClass = Annotated[str | None, typer.Option("--error_class", help="Only this reason's: not_json, outage ...")]
OfJob = Annotated[Job | None, typer.Option("--job", help="Only this job's.")]
Since = Annotated[str | None, typer.Option("--since", metavar="TIME", help="Only those that failed then or later.")]
Until = Annotated[str | None, typer.Option("--until", metavar="TIME", help="Only those that failed before.")]
OfTopic = Annotated[str | None, typer.Option("--input_topic", "--topic", help="Only records of this topic ...")]
OfPartition = Annotated[int | None, typer.Option("--partition", min=0, help="... of this partition ...")]
OfOffset = Annotated[
    str | None, typer.Option("--offset", metavar="N[-M]", help="... with this offset, or from N to M.")
]
_MOST_REASONS = 20


def _filter(*, since: str | None, until: str | None, offset: str | None, job: Job | None, **given: Any) -> Filter:
    from itel_cabinet.pipeline.operate import Filter
    from itel_cabinet.transforms.records import STAGES

    if (stage := given.get("stage")) is not None and stage not in STAGES:
        raise CommandError(f"--stage: must be one of {', '.join(STAGES)}, got {stage[:100]!r}", wrong_use=True)
    bounds = re.fullmatch(r"([0-9]{1,18})(?:-([0-9]{1,18}))?", offset or "")
    if offset and not bounds:
        raise CommandError(f"--offset: must be N or N-M, got {offset!r}", wrong_use=True)
    first, last = bounds.groups() if bounds else (None, None)
    return Filter(
        job=job and job.value,
        first_offset=None if first is None else int(first),
        last_offset=None if first is None else int(last or first),
        since=read_moment("since", since),
        until=read_moment("until", until),
        **given,
    )


@letters_app.command("list")
def list_dead_letters(
    bootstrap_servers: Servers,
    stage: Stage = None,
    error_class: ErrorClass = None,
    job: OfJob = None,
    consumer_group: OfGroup = None,
    since: Since = None,
    until: Until = None,
    input_topic: OfTopic = None,
    partition: OfPartition = None,
    offset: OfOffset = None,
    count: Annotated[bool, typer.Option("--count", help="Only how many there are of each stage and reason.")] = False,
    dead_letter_topic: DeadLetterTopic = TASK_ERRORS,
    itel_errors_topic: ItelErrorsTopic = ITEL_ERRORS,
    kafka_config: KafkaConfig = "{}",
    as_json: AsJson = False,
) -> None:
    """Show the dead letters, without what the records hold. Moves no group's offsets."""
    from itel_cabinet.pipeline.operate import error_log, failure_counts

    wanted = _filter(
        stage=stage, error_class=error_class, job=job, group=consumer_group, since=since, until=until,
        topic=input_topic, partition=partition, offset=offset,
    )  # fmt: skip
    topics = (dead_letter_topic, itel_errors_topic)
    with error_topics(bootstrap_servers, kafka_config, topics) as (_, reader):
        log = error_log(reader, topics, wanted)
    warn_of(log.foreign)
    rows = [entry.summary for entry in log.entries]
    if count:
        _print_counts(failure_counts(log.entries), as_json)
    elif as_json:
        print_json(rows)
    else:
        columns = ("last_at", "coordinates", "topic", "job", "stage", "error_class", "state", "error")
        table = Table(*(column.replace("_", " ") for column in columns))
        for row in rows:
            table.add_row(*(_plain(row[column]) for column in columns))
        make_console().print(table)


def _plain(text: str) -> Text:
    """Text that anyone may have written, harmless to a terminal."""
    from rich.text import Text

    from itel_cabinet.transforms.dead_letters import shorten

    return Text(shorten(text, 1_000))


def _print_counts(counts: Sequence[FailureCount], as_json: bool) -> None:
    if as_json:
        print_json([asdict(one) for one in counts])
        return
    table = Table("stage", "error class")
    for column in ("open", "replayed"):
        table.add_column(column, justify="right")
    for one in counts:
        table.add_row(_plain(one.stage), _plain(one.error_class), str(one.open), str(one.replayed))
    make_console().print(table)


@letters_app.command("show")
def show_dead_letter(
    coordinates: Annotated[str, typer.Argument(help="As `list` has them: topic id/partition/offset.")],
    bootstrap_servers: Servers,
    raw: Annotated[bool, typer.Option("--raw", help="Print the record's value as it is, and nothing else.")] = False,
    consumer_group: OfGroup = None,
    dead_letter_topic: DeadLetterTopic = TASK_ERRORS,
    itel_errors_topic: ItelErrorsTopic = ITEL_ERRORS,
    topic_epoch: Annotated[int, typer.Option("--topic_epoch", min=0, help="As the job has it.")] = 0,
    kafka_config: KafkaConfig = "{}",
) -> None:
    """Show a record's latest dead letter, bytes and all, as JSON. What it shows may be personal data.

    `edited` says who had changed the record before it failed, `edits` who has sent what in its place since.
    """
    from itel_cabinet.transforms.replays import read_edit
    from itel_cabinet.transforms.trace_context import read_trace

    topics = (dead_letter_topic, itel_errors_topic)
    with error_topics(bootstrap_servers, kafka_config, topics, topic_epoch) as (client, reader):
        entry, letter, record = find_letter(client, reader, topics, coordinates, consumer_group, topic_epoch)
    if record is None:
        print(
            f"{PROGRAM}: warning: the dead letter had no room for all of the record, and its topic no longer has it",
            file=sys.stderr,
        )
        record = letter.record()
    if raw:
        sys.stdout.buffer.write(record.value or b"")
        sys.stdout.flush()
        return
    own = read_edit(record.headers)
    shown = {
        **entry.summary,
        "trace_id": read_trace(record).trace_id,
        "edited": None if own is None else asdict(own),
        "edits": [asdict(edit) for edit in entry.edits],
        "key": _shown(record.key),
        "headers": [[name, _shown(value)] for name, value in record.headers],
        "value": _shown(record.value),
    }
    print_json(shown)


def _shown(content: bytes | None) -> str | dict[str, str] | None:
    """Bytes as text if they are UTF-8, else ``{"base64": ...}``."""
    if content is None:
        return None
    try:
        return content.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(content).decode()}


@letters_app.command("replay")
def replay_dead_letters(
    bootstrap_servers: Servers,
    coordinates: Annotated[
        list[str] | None, typer.Argument(metavar="[COORDINATES]...", help="Only these, as `list` has them.")
    ] = None,
    stage: Stage = None,
    error_class: ErrorClass = None,
    job: OfJob = None,
    consumer_group: OfGroup = None,
    since: Since = None,
    until: Until = None,
    input_topic: OfTopic = None,
    partition: OfPartition = None,
    offset: OfOffset = None,
    tables_root: Annotated[
        str | None,
        typer.Option("--tables_root", metavar="URI", help="The jobs' tables: what has its row there is left out."),
    ] = None,
    storage_options: StorageOptions = "{}",
    rate: Annotated[
        float | None, typer.Option("--rate", min=0.001, help="Records a second; default: no limit.")
    ] = None,
    max_replays: Annotated[
        int, typer.Option("--max_replays", min=1, help="An event replayed so often is parked: left alone and reported.")
    ] = 3,
    to_group: Annotated[
        str | None,
        typer.Option("--to_group", metavar="GROUP", help="For this group's job, not for the one that gave them up."),
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Those that were replayed already, too.")] = False,
    transactions: Annotated[
        bool,
        typer.Option(
            "--transactions/--no_transactions", help="Off for brokers without: a replay cut off may then repeat some."
        ),
    ] = True,
    dead_letter_topic: DeadLetterTopic = TASK_ERRORS,
    itel_errors_topic: ItelErrorsTopic = ITEL_ERRORS,
    topic_epoch: Annotated[int, typer.Option("--topic_epoch", min=0, help="As the job has it.")] = 0,
    kafka_config: KafkaConfig = "{}",
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> int:
    """Write dead letters' records to their topics again, each once, marked for the group that gave them up.

    Refused where no job reads with that group any more and one with another does: --to_group says which is meant.

    Fix the cause first. A letter is replayed once, however often this is run; its record fails into a new letter if
    the cause is still there. Exit status 1 if some could not be replayed.
    """
    from rich.progress import Progress

    from itel_cabinet.pipeline.operate import Outcome

    wanted = _filter(
        stage=stage, error_class=error_class, job=job, group=consumer_group, since=since, until=until,
        topic=input_topic, partition=partition, offset=offset, coordinates=frozenset(coordinates or ()),
    )  # fmt: skip
    topics = (dead_letter_topic, itel_errors_topic)
    counts: Counter[Outcome] = Counter()
    goals: Counter[Goal] = Counter()
    outcomes: list[Replay] = []
    with error_topics(bootstrap_servers, kafka_config, topics, topic_epoch) as (client, reader):
        opened = open_replayer(
            client, reader, topics, wanted,
            epoch=topic_epoch, writes=not dry_run, transactions=transactions, tables_root=tables_root,
            storage_options=storage_options, to_group=to_group, again=again, max_replays=max_replays, rate=rate,
        )  # fmt: skip
        with opened as (log, replayer):
            console = Console(stderr=True)
            with storing(), Progress(console=console, disable=not console.is_terminal) as progress:
                bar = progress.add_task("replaying", total=len(log.entries))
                try:
                    for one in replayer.replay(log.entries):
                        counts[one.outcome] += 1
                        if one.outcome is Outcome.REPLAYED:
                            goals[find_goal(one, to_group, replayer.groups)] += 1
                        if one.reason:
                            outcomes.append(one)
                        progress.advance(bar)
                finally:
                    progress.stop()
                    _print_replay(counts, outcomes, goals, dry_run=dry_run, as_json=as_json)
    return 1 if any(outcome.failed for outcome in counts) else 0


_TOLD = {
    "replayed": "replayed",
    "already_replayed": "left out, replayed before (--again replays them once more)",
    "in_the_table": "left out, in the tracking table after all",
    "settled": "left out, settled: iTel has what it should, as the ledger says",
    "read_again": "left out, their job has not got beyond them and reads them again by itself",
    "erased": "left out, of people who were erased since",
    "parked": "parked, replayed too often to go on (--max_replays raises the limit)",
    "gone": "gone, no longer to be had",
    "refused": "refused",
}


def _print_replay(
    counts: Mapping[Outcome, int],
    outcomes: Sequence[Replay],
    goals: Mapping[Goal, int],
    *,
    dry_run: bool,
    as_json: bool,
) -> None:
    from itel_cabinet.pipeline.operate import Outcome
    from itel_cabinet.transforms.dead_letters import shorten

    for one in outcomes[:_MOST_REASONS]:
        line = f"{one.entry.letter.coordinates} of {one.entry.letter.topic}: {one.outcome.value}: {one.reason}"
        print(f"{PROGRAM}: {shorten(line, 1_000)}", file=sys.stderr)
    if len(outcomes) > _MOST_REASONS:
        print(f"{PROGRAM}: and {len(outcomes) - _MOST_REASONS} more", file=sys.stderr)
    if as_json:
        by_group = [
            {"group": one.group, "is_read_with": one.is_read_with, "records": goals[one]} for one in sorted(goals)
        ]
        outcomes_by_name = {one.value: counts.get(one, 0) for one in Outcome}
        typer.echo(json.dumps({"dry_run": dry_run} | outcomes_by_name | {"for": by_group}))
        return
    for outcome in Outcome:
        if counts.get(outcome) or outcome is Outcome.REPLAYED:
            meaning = "would be replayed" if dry_run and outcome is Outcome.REPLAYED else _TOLD[outcome.value]
            typer.echo(f"{counts.get(outcome, 0)} {meaning}")
    for goal in sorted(goals):
        waiting = "" if goal.is_read_with else ", which no job reads with now: they wait till one does"
        typer.echo(f"  {goals[goal]} for the group {goal.group}{waiting}")


letters_app.command("export")(export_dead_letter)
letters_app.command("edit")(edit_dead_letter)
