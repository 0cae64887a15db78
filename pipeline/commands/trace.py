"""The command `itel-cabinet trace`: see docs/operations.md."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from itel_cabinet.pipeline.commands.letter_topics import DeadLetterTopic, ItelErrorsTopic, error_topics
from itel_cabinet.pipeline.commands.printing import print_json, print_rows
from itel_cabinet.pipeline.commands.query import table_specs_of
from itel_cabinet.pipeline.commands.shared import (
    AsJson,
    CommandError,
    KafkaConfig,
    StorageOptions,
    TablesRoot,
    table_settings,
)
from itel_cabinet.pipeline.commands.submissions import OptionalServers
from itel_cabinet.pipeline.topics import ITEL_ERRORS, TASK_ERRORS

if TYPE_CHECKING:
    from itel_cabinet.pipeline.operate import Timeline

__all__ = ["trace"]


def trace(
    identity: Annotated[str, typer.Argument(metavar="ASSIGNMENT|EVENT", help="An assignment's id, or an event's.")],
    tables_root: TablesRoot,
    storage_options: StorageOptions = "{}",
    bootstrap_servers: OptionalServers = None,
    statuses: Annotated[
        str, typer.Option("--itel_statuses", metavar="STATUS[,STATUS]", help="Which are submitted, as the job has it.")
    ] = "COMPLETED",
    dead_letter_topic: DeadLetterTopic = TASK_ERRORS,
    itel_errors_topic: ItelErrorsTopic = ITEL_ERRORS,
    kafka_config: KafkaConfig = "{}",
    as_json: AsJson = False,
) -> None:
    """Show what happened to an assignment or an event, as one timeline: its events, form, photos, submissions and dead
    letters, with the coordinates of their records, and what became of each event.

    What cannot be looked at is said, and when an assignment was erased. Shows nothing of what a form or a body holds.
    Exit status 1 if nothing is known.
    """
    from itel_cabinet.pipeline.operate import Timeline, trace_letters, trace_tables

    timeline = Timeline(identity)
    trace_tables(timeline, table_specs_of(tables_root, storage_options))
    topics = (dead_letter_topic, itel_errors_topic)
    if bootstrap_servers is None:
        timeline.not_seen.append(f"the dead letters in {' and '.join(topics)}: give --bootstrap_servers")
    else:
        try:
            with error_topics(bootstrap_servers, kafka_config, topics) as (_, reader):
                trace_letters(timeline, reader, topics)
        except CommandError as error:
            if error.exit_code == 2:
                raise
            timeline.not_seen.append(f"the dead letters: {error.message}")
    erased_at = _erased_at(timeline, tables_root, storage_options)
    erased = None if erased_at is None else f"erased on {erased_at:%Y-%m-%d at %H:%M} UTC, and kept out since"
    if not timeline.moments:
        unseen = f"; not looked at: {'; '.join(timeline.not_seen)}" if timeline.not_seen else ""
        raise CommandError(f"{identity[:100]}: {erased or 'nothing is known of such an assignment or event'}{unseen}")
    fates = timeline.fates({status.strip().upper() for status in statuses.split(",")})
    if as_json:
        print_json({**_plain(timeline, fates), "erased_at": _as_json(erased_at)})
        return
    _print(timeline, fates)
    if erased:
        typer.echo(f"{identity}: {erased}")


def _erased_at(timeline: Timeline, tables_root: str, storage_options: str) -> datetime | None:
    """When the assignment was erased; None if it was not, or if that is not to be seen."""
    from itel_cabinet.io.delta import TableError, get_suppressions
    from itel_cabinet.io.worker import OutageError
    from itel_cabinet.pipeline.tables import suppression_list
    from itel_cabinet.transforms.suppression import ASSIGNMENT

    assignment_id = timeline.assignment_id
    if assignment_id is None:
        return None
    place = suppression_list(table_settings(tables_root=tables_root, storage_options=storage_options))
    people = get_suppressions(place.uri, place.storage_options, place.ids)
    try:
        people.refresh_patiently(max_age=0.0, seconds=0.0)
    except (TableError, OutageError) as error:
        timeline.not_seen.append(str(error))
    return people.since(ASSIGNMENT, assignment_id)


def _plain(timeline: Timeline, fates: Mapping[str, str]) -> dict[str, Any]:
    return {
        "id": timeline.identity,
        "fates": dict(fates),
        "trace_ids": timeline.trace_ids,
        "timeline": [
            {
                "at": _as_json(one.at),
                "what": one.what,
                "event_id": one.event_id,
                "text": one.text,
                "coordinates": one.coordinates,
                **{name: _as_json(value) for name, value in one.details.items()},
            }
            for one in timeline.in_order
        ],
        "not_looked_at": timeline.not_seen,
    }


def _as_json(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return [_as_json(one) for one in value] if isinstance(value, list) else value


def _print(timeline: Timeline, fates: Mapping[str, str]) -> None:
    from itel_cabinet.transforms.dead_letters import shorten

    rows = [
        {
            "at": _as_json(one.at),
            "what": one.what,
            "event_id": one.event_id,
            "text": shorten(one.text, 1_000),
            "coordinates": one.coordinates,
        }
        for one in timeline.in_order
    ]
    print_rows({"at": "at", "what": "what", "event_id": "event", "text": "", "coordinates": "coordinates"}, rows)
    for event, fate in fates.items():
        traces = timeline.trace_ids[event]
        typer.echo(f"{event}: {fate}" + (f" (trace {', '.join(traces)})" if traces else ""))
    for line in timeline.not_seen:
        typer.echo(f"not looked at: {line}")
