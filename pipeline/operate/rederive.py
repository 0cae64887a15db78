"""Forms and photo lists made again from ClaimX's answers in the tracking table: `itel-cabinet tables rederive`.

A column that a contract has new is filled for the past, and what it reads otherwise is put right. A form is what a job
with the contract from the start would have stored: for each assignment its newest answer, and the photos of all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import pyarrow as pa

from itel_cabinet.io.delta import FencedTable, Row, TableSpec, Upsert
from itel_cabinet.pipeline.operate.history import details_of, event_of, read_answers
from itel_cabinet.pipeline.tables import ATTACHMENTS, FORMS, TRACKING
from itel_cabinet.transforms.contracts import Contract
from itel_cabinet.transforms.enrichment import Photograph
from itel_cabinet.transforms.forms import WrongShapeError
from itel_cabinet.transforms.rows import make_form_row, make_photo_rows, record_of

__all__ = ["Revision", "rederive"]

_SOURCE = ("kafka_topic", "kafka_topic_id", "kafka_partition", "kafka_offset", "original_event", "processed_timestamp")
_ASSIGNMENTS_A_TURN = 20_000
# Of the moment of writing, not of the form.
_OF_THE_MOMENT = frozenset({"created_at", "updated_at", "ingested_at"})

Key = tuple[Any, ...]


@dataclass
class Revision:
    """What is put right in one table.

    Attributes:
        table: its name.
        rows: those that were made again from the history.
        changed: rows whose content differs, and ``added``: those that were not there, and ``removed``: those that no
            job with this contract would have stored.
        columns: how many rows differ in which column.
        newer: rows that are left as they are, since the table has them of an event whose answer the history lacks.
        committed: how many rows the commit has changed; None with a dry run.
    """

    table: str
    rows: int = 0
    changed: int = 0
    added: int = 0
    removed: int = 0
    columns: Counter[str] = field(default_factory=Counter)
    newer: int = 0
    committed: int | None = None
    put: list[Row] = field(default_factory=list, repr=False)
    gone: list[Row] = field(default_factory=list, repr=False)


def rederive(
    specs: Mapping[str, TableSpec],
    contract: Contract,
    *,
    now: datetime,
    dry_run: bool = False,
    advance: Callable[[int, int], None] = lambda _done, _all: None,
) -> tuple[Revision, Revision, int]:
    """Make forms and photo lists again, with one commit a table, and say what that changed.

    Safe beside running jobs: what they have written meanwhile is newer and wins. Interrupted or repeated it ends the
    same. Holds in memory what it changes, some 15 KB a form.

    Args:
        specs: of the tables of events, forms and photos, as the contract has them.
        contract: reads the forms.
        now: aware; ``updated_at`` of what changes.
        dry_run: commit nothing.
        advance: is called with the numbers of assignments that are done and that there are.

    Returns:
        The revisions of forms and attachments, and how many answers in the history cannot be read.
    """
    forms, photos = (FencedTable(specs[name]) for name in (FORMS, ATTACHMENTS))
    revised = Revision(FORMS), Revision(ATTACHMENTS)
    unreadable = 0
    assignments = _assignments(specs[TRACKING])
    for start in range(0, len(assignments), _ASSIGNMENTS_A_TURN):
        turn = assignments[start : start + _ASSIGNMENTS_A_TURN]
        between = f"assignment_id BETWEEN {turn[0]} AND {turn[-1]}"
        there = _by_group(photos.read(between))
        made, unread = _make_again(specs[TRACKING], between, contract, now, there)
        unreadable += unread
        stored = _by_group(forms.read(between))
        for assignment, (form_row, photo_rows) in made.items():
            _compare(revised[0], specs[FORMS], [form_row], stored.get(assignment, []), now)
            _compare(revised[1], specs[ATTACHMENTS], photo_rows, there.get(assignment, []), now)
        advance(start + len(turn), len(assignments))
    if not dry_run:
        for table, revision in zip((forms, photos), revised, strict=True):
            columns = [*revision.columns, "updated_at"] if revision.columns else []
            revision.committed = table.revise(revision.put, revision.gone, columns)
    return *revised, unreadable


def _assignments(spec: TableSpec) -> list[int]:
    found: set[int] = set()
    for batch in read_answers(spec, columns=("assignment_id",)):
        found.update(batch.column("assignment_id").to_pylist())
    return sorted(found)


def _by_group(rows: Sequence[Row]) -> dict[int, list[Row]]:
    groups: dict[int, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["assignment_id"], []).append(row)
    return groups


def _make_again(
    spec: TableSpec, between: str, contract: Contract, now: datetime, there: Mapping[int, Sequence[Row]]
) -> tuple[dict[int, tuple[Row, list[Row]]], int]:
    """By assignment, its form's row and the rows of its photos, those that are no more on the form included; and how
    many answers cannot be read."""
    newest: dict[int, tuple[Key, Row]] = {}
    albums: dict[int, list[tuple[Key, Sequence[Row]]]] = {}
    unreadable = 0
    for row in _rows(spec, between):
        assignment = row["assignment_id"]
        try:
            details = details_of(row)
        except WrongShapeError:
            unreadable += 1
            continue
        if not details.has_form:
            continue
        record, event, form = record_of(row), event_of(row), contract.read_form(details)
        rank = (row["event_timestamp"], row["kafka_partition"], row["kafka_offset"])
        files = {one["claim_media_id"]: one for one in there.get(assignment, ()) if one["blob_path"]}
        photographs = {media_id: Photograph(one["blob_path"], None) for media_id, one in files.items()}
        albums.setdefault(assignment, []).append((rank, make_photo_rows(record, event, form, now, photographs)))
        if assignment not in newest or rank > newest[assignment][0]:
            form_row = make_form_row(record, event, details, form, now) | {"ingested_at": row["processed_timestamp"]}
            newest[assignment] = rank, form_row
    made = {
        assignment: (form_row, _last_state(sorted(albums[assignment], key=lambda one: one[0])))
        for assignment, (_, form_row) in newest.items()
    }
    return made, unreadable


def _rows(spec: TableSpec, between: str) -> Iterator[dict[str, Any]]:
    for batch in read_answers(spec, more=_SOURCE, where=between):
        for start in range(0, len(batch), 500):
            yield from batch.slice(start, 500).to_pylist()


def _last_state(albums: Sequence[tuple[Key, Sequence[Row]]]) -> list[Row]:
    """The rows of all photos that were ever on the form, as upserts of its albums, one after the other, leave them."""
    state: dict[Key, dict[str, Any]] = {}
    for _, rows in albums:
        members = {_photo_key(row): dict(row) for row in rows if row["claim_media_id"] is not None}
        if not members and not state:
            blank = dict(rows[0]) | {"question_key": "", "claim_media_id": 0, "is_active": False}
            members = {_photo_key(blank): blank}
        origin = {name: rows[0][name] for name in (*_ORIGIN, "event_id", "updated_at")}
        left = {key: row | origin | {"is_active": False} for key, row in state.items() if key not in members}
        state = left | members
    return list(state.values())


_ORIGIN = ("event_timestamp", "kafka_topic", "kafka_topic_id", "kafka_partition", "kafka_offset")


def _photo_key(row: Row) -> Key:
    return row["question_key"], row["claim_media_id"]


def _compare(revision: Revision, spec: TableSpec, made: Sequence[Row], there: Sequence[Row], now: datetime) -> None:
    """Take down what of a group has to change."""
    mode = spec.mode
    assert isinstance(mode, Upsert)
    revision.rows += len(made)
    rank = max(tuple(row[name] for name in mode.order) for row in made)
    if there and max(tuple(row[name] for name in mode.order) for row in there) > rank:
        revision.newer += len(there)
        return
    stored = {tuple(row[key] for key in mode.keys): row for row in there}
    wanted = pa.Table.from_pylist(list(made), schema=pa.schema([f.with_nullable(True) for f in spec.schema]))
    put: list[Row] = []
    for row in wanted.to_pylist():
        before = stored.pop(tuple(row[key] for key in mode.keys), None)
        if before is None and there and mode.active and not row[mode.active]:
            continue  # it came and went between two commits: whether a job has stored it is chance
        if before is None:
            revision.added += 1
            put.append(row)
            continue
        differing = [name for name in before if _differs(mode, name, before[name], row.get(name))]
        if differing:
            revision.changed += 1
            revision.columns.update(differing)
            put.append({**row, **{name: before[name] for name in ("ingested_at",) if name in row}, "updated_at": now})
    gone = [{name: row[name] for name in (*mode.keys, *mode.order)} for row in stored.values()]
    revision.removed += len(gone)
    revision.put += put
    revision.gone += gone


def _differs(mode: Upsert, name: str, before: Any, after: Any) -> bool:
    if name in _OF_THE_MOMENT or before == after:
        return False
    return not (name in (*mode.keep_if_null, "media_warning") and after is None)
