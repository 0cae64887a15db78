"""`itel-cabinet dead-letters export` and `edit`: one letter's value to a file, and what a person has made of it."""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from itel_cabinet.pipeline.commands.letter_topics import (
    DeadLetterTopic,
    Goal,
    ItelErrorsTopic,
    OfGroup,
    error_topics,
    find_goal,
    find_letter,
    open_replayer,
)
from itel_cabinet.pipeline.commands.printing import print_json
from itel_cabinet.pipeline.commands.shared import (
    PROGRAM,
    AsJson,
    CommandError,
    DryRun,
    KafkaConfig,
    Servers,
    StorageOptions,
    storing,
)
from itel_cabinet.pipeline.topics import ITEL_ERRORS, TASK_ERRORS

if TYPE_CHECKING:
    from itel_cabinet.pipeline.operate import Entry, Replay
    from itel_cabinet.transforms.records import Record
    from itel_cabinet.transforms.replays import Edit

__all__ = ["edit_dead_letter", "export_dead_letter"]

Coordinates = Annotated[str, typer.Argument(help="As `list` has them: topic id/partition/offset.")]
Epoch = Annotated[int, typer.Option("--topic_epoch", min=0, help="As the job has it.")]


def export_dead_letter(
    coordinates: Coordinates,
    bootstrap_servers: Servers,
    to: Annotated[Path, typer.Option("--to", metavar="FILE", help="A new file, which its owner alone may read.")],
    consumer_group: OfGroup = None,
    dead_letter_topic: DeadLetterTopic = TASK_ERRORS,
    itel_errors_topic: ItelErrorsTopic = ITEL_ERRORS,
    topic_epoch: Epoch = 0,
    kafka_config: KafkaConfig = "{}",
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Write the value of a record's latest dead letter to a file, byte for byte. It may be personal data.

    Fix it by hand, send it with `edit`, and remove the file. A file that is there is not overwritten.
    """
    topics = (dead_letter_topic, itel_errors_topic)
    with error_topics(bootstrap_servers, kafka_config, topics, topic_epoch) as (client, reader):
        entry, _, record = find_letter(client, reader, topics, coordinates, consumer_group, topic_epoch)
    value = _require(entry, record).value or b""
    if to.exists():
        raise CommandError(f"--to: {to} is there already: give another name, or remove it")
    if not dry_run:
        _write(to, value)
    report = {
        "dry_run": dry_run,
        "coordinates": coordinates,
        "topic": entry.letter.topic,
        "group": entry.letter.group,
        "file": str(to),
        "size": len(value),
        "sha256": hashlib.sha256(value).hexdigest(),
    }
    if as_json:
        print_json(report)
        return
    typer.echo(f"{'would be written' if dry_run else 'written'}: {to}, {len(value)} bytes, SHA-256 {report['sha256']}")
    if not dry_run:
        typer.echo(f"it may be personal data: fix it, send it with `{PROGRAM} dead-letters edit`, and remove it")


def edit_dead_letter(
    coordinates: Coordinates,
    bootstrap_servers: Servers,
    source: Annotated[Path, typer.Option("--from", metavar="FILE", help="What the record's value is to be.")],
    edited_by: Annotated[
        str | None, typer.Option("--edited_by", metavar="NAME", help="Who has changed it; default: the login's name.")
    ] = None,
    consumer_group: OfGroup = None,
    to_group: Annotated[
        str | None,
        typer.Option("--to_group", metavar="GROUP", help="For this group's job, not the one that gave it up."),
    ] = None,
    tables_root: Annotated[
        str | None,
        typer.Option("--tables_root", metavar="URI", help="The jobs' tables: what they are done with is left out."),
    ] = None,
    storage_options: StorageOptions = "{}",
    again: Annotated[bool, typer.Option("--again", help="Even if the letter was replayed already.")] = False,
    transactions: Annotated[
        bool, typer.Option("--transactions/--no_transactions", help="Off for brokers without.")
    ] = True,
    dead_letter_topic: DeadLetterTopic = TASK_ERRORS,
    itel_errors_topic: ItelErrorsTopic = ITEL_ERRORS,
    topic_epoch: Epoch = 0,
    kafka_config: KafkaConfig = "{}",
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> int:
    """Replay one dead letter with another value, from a file, marked with who has changed it, when, and what it was.

    Key and other headers stay. Refused if the file is the value as it was, or if its job could not read it. Exit status
    1 if it was not sent.
    """
    from itel_cabinet.pipeline.operate import Filter, Outcome
    from itel_cabinet.transforms.replays import make_edit

    editor = _name_editor(edited_by)
    value = _read(source)
    topics = (dead_letter_topic, itel_errors_topic)
    with error_topics(bootstrap_servers, kafka_config, topics, topic_epoch) as (client, reader):
        entry, letter, record = find_letter(
            client, reader, topics, coordinates, consumer_group, topic_epoch, of_one_group=True
        )
        original = _require(entry, record)
        if value == original.value:
            raise CommandError(
                f"--from: {source} is the value as it was: change it, or `{PROGRAM} dead-letters replay`"
            )
        _check_readable(source, value, original, letter.job)
        edit = make_edit(original, value, by=editor, now=time.time())
        wanted = Filter(coordinates=frozenset({coordinates}), group=consumer_group)
        opened = open_replayer(
            client, reader, topics, wanted,
            epoch=topic_epoch, writes=not dry_run, transactions=transactions, tables_root=tables_root,
            storage_options=storage_options, to_group=to_group, again=again, max_replays=sys.maxsize,
            change=lambda _: (value, edit),
        )  # fmt: skip
        with opened as (log, replayer):
            with storing():
                [done] = list(replayer.replay(log.entries))
            sent = done.outcome is Outcome.REPLAYED
            goal = find_goal(done, to_group, replayer.groups) if sent else Goal(to_group or letter.group, False)
    _print_edit(done, edit, goal, dry_run=dry_run, as_json=as_json)
    return 0 if sent else 1


def _print_edit(done: Replay, edit: Edit, goal: Goal, *, dry_run: bool, as_json: bool) -> None:
    from itel_cabinet.pipeline.operate import Outcome
    from itel_cabinet.transforms.dead_letters import shorten

    if as_json:
        content = {"dry_run": dry_run, "outcome": done.outcome.value, "reason": done.reason or None}
        print_json({**content, "topic": done.entry.letter.topic, "group": goal.group, "edit": asdict(edit)})
    if done.outcome is not Outcome.REPLAYED:
        hint = _HINTS.get(done.outcome.value, "")
        line = f"{edit.of}: not sent: {done.outcome.value}{': ' if done.reason or hint else ''}{done.reason or hint}"
        print(f"{PROGRAM}: {shorten(line, 1_000)}", file=sys.stderr)
    elif not as_json:
        waiting = "" if goal.is_read_with else ", which no job reads with now: it waits till one does"
        typer.echo(
            shorten(f"{'would be sent' if dry_run else 'sent'}: {edit.of}, for the group {goal.group}{waiting}", 1_000)
        )
        typer.echo(f"edited by {edit.by}: SHA-256 {edit.before} is now {edit.after}")


_HINTS = {
    "already_replayed": "--again sends it once more",
    "in_the_table": "the event has its row",
    "erased": "it is about somebody who was erased",
    "settled": "iTel has what it should, as the ledger says",
    "read_again": "its job has not got beyond the record and reads it again by itself",
}


def _name_editor(given: str | None) -> str:
    """Who edits. Raises CommandError."""
    from itel_cabinet.transforms.replays import is_editor

    try:
        name = getpass.getuser() if given is None else given
    except (OSError, KeyError):
        raise CommandError("--edited_by: this login has no name: give one", wrong_use=True) from None
    if not is_editor(name):
        raise CommandError(
            f"--edited_by: must be a name of 1 to 100 characters on one line, got {name[:100]!r}", wrong_use=True
        )
    return name


def _require(entry: Entry, record: Record | None) -> Record:
    """The record of a letter, if it is still to be had. Raises CommandError."""
    letter = entry.letter
    if record is None:
        raise CommandError(
            f"{letter.coordinates}: gone: the dead letter has not all of the record ({letter.value_size} bytes), and "
            f"topic {letter.topic} no longer has it"
        )
    return record


def _check_readable(source: Path, value: bytes, original: Record, job: str) -> None:
    """Raises CommandError for a value that the job could not read: it would only fail again."""
    from dataclasses import replace

    from itel_cabinet.pipeline.jobs import Job
    from itel_cabinet.transforms.events import parse_claimx_event, parse_event
    from itel_cabinet.transforms.records import Failure

    edited = replace(original, value=value)
    read = parse_claimx_event(edited, 0.0) if job == Job.TRIGGER else parse_event(edited, 0.0, task_ids=frozenset())
    if isinstance(read, Failure):
        raise CommandError(f"--from: {source}: its job could not read it: {read.error_class}: {read.error}")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CommandError(f"--from: {path} cannot be read: {error.strerror}") from None


def _write(path: Path, content: bytes) -> None:
    """A new file for its owner alone, whole or not at all. Raises CommandError."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise CommandError(f"--to: {path} is there already: give another name, or remove it") from None
    except OSError as error:
        raise CommandError(f"--to: {path} cannot be written: {error.strerror}") from None
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
    except OSError as error:
        with contextlib.suppress(OSError):
            path.unlink()
        raise CommandError(f"--to: {path} cannot be written: {error.strerror}") from None
