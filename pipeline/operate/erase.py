"""People erased from all that this program keeps: `itel-cabinet erase`.

First they are put on the list that jobs and commands look at, and each table is made to name it: from then on no commit
can bring them in. Then their files go, then their rows, then files that were stored meanwhile. Each part may be done
again, so that an erasure that was cut off anywhere ends the same when it is run again.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from importlib.metadata import version
from pathlib import Path

import pyarrow as pa

from itel_cabinet.io.delta import (
    SAFE_RETENTION_HOURS,
    Row,
    Suppressions,
    TableSpec,
    announce,
    append_rows,
    at_once,
    delete_rows,
    describe_table,
    find_rows,
    literal,
    read_hours,
    table_exists,
)
from itel_cabinet.io.objects import Objects
from itel_cabinet.io.worker import RefusedError, crash_points
from itel_cabinet.pipeline.tables import ATTACHMENTS, BODIES, FORMS, LEDGER, TRACKING
from itel_cabinet.transforms.ledger import SETTLED
from itel_cabinet.transforms.photos import MEDIA_FOLDER, assignment_of, project_folder
from itel_cabinet.transforms.suppression import ASSIGNMENT, PROJECT

__all__ = ["RECEIPTS", "Erasure", "Files", "People", "Receipt", "Remainder", "check_roots", "find_listed"]

RECEIPTS = "itel_cabinet_erasures"
"""The table of what was erased when, without ids."""

# The tracking table goes last: it names all that the others may hold.
_ORDER = (BODIES, LEDGER, ATTACHMENTS, FORMS, TRACKING)
_WANTED = ("assignment_id", "project_id", "blob_path", "outcome", "created_id")
_RECEIPT_SCHEMA = pa.schema(
    [
        pa.field("started_at", pa.timestamp("us", tz="UTC")),
        pa.field("ended_at", pa.timestamp("us", tz="UTC")),
        pa.field("assignments", pa.int64()),
        pa.field("projects", pa.int64()),
        pa.field("newly_suppressed", pa.int64()),
        pa.field("rows", pa.string()),  # a JSON object, by table
        pa.field("photos", pa.int64()),
        pa.field("photo_bytes", pa.int64()),
        pa.field("payloads", pa.int64()),
        pa.field("version", pa.string()),
    ]
)


@dataclass(frozen=True)
class People:
    """Whom it is about. ``assignments`` and ``projects`` are as the tables have them."""

    assignments: tuple[int, ...] = ()
    projects: tuple[str, ...] = ()

    @property
    def where(self) -> str:
        """The condition in SQL that their rows meet."""
        parts = {
            "assignment_id": [literal(one) for one in self.assignments],
            "project_id": [literal(one) for one in self.projects],
        }
        return " OR ".join(f"`{name}` IN ({', '.join(ids)})" for name, ids in parts.items() if ids)

    @property
    def ids(self) -> list[tuple[str, str | int]]:
        return [*((ASSIGNMENT, one) for one in self.assignments), *((PROJECT, one) for one in self.projects)]


@dataclass
class Files:
    """Number and bytes of files that were deleted, or in a dry run would be."""

    number: int = 0
    bytes: int = 0

    def add(self, sizes: Sequence[int]) -> None:
        self.number += len(sizes)
        self.bytes += sum(sizes)


@dataclass(frozen=True)
class Remainder:
    """What a table still holds of the deleted rows: in older versions until a vacuum at ``vacuum_at`` or later, and, as
    ids and, in a table that was made before the list was known, as texts, in its log until ``log_until``."""

    table: str
    vacuum_at: datetime
    log_until: datetime
    change_data: bool


@dataclass
class Receipt:
    """What one run has erased, or with ``dry_run`` would erase.

    Attributes:
        new: how many ids were not on the list before.
        rows: deleted, by table.
        unknown: ids of which nothing was found.
        itel_ids: what iTel calls the submissions that it has of them, and ``submissions``, how many those are.
        remainders: of each table that there is: this run or one that was cut off may have deleted rows of it.
    """

    people: People
    dry_run: bool
    started_at: datetime
    ended_at: datetime | None = None
    new: int = 0
    rows: dict[str, int] = field(default_factory=dict)
    photos: Files = field(default_factory=Files)
    payloads: Files = field(default_factory=Files)
    unknown: list[str] = field(default_factory=list)
    submissions: int = 0
    itel_ids: list[str] = field(default_factory=list)
    remainders: list[Remainder] = field(default_factory=list)


@dataclass
class Erasure:
    """Where people are erased from.

    ``specs`` are those of all tables, ``media`` the roots of photos, ``folder`` where ``--itel_url=file:...`` writes
    payloads, ``clock`` gives aware times.
    """

    specs: Mapping[str, TableSpec]
    people: Suppressions
    media: Sequence[Objects] = ()
    folder: Path | None = None

    def erase(self, people: People, *, now: datetime, dry_run: bool = False) -> Receipt:
        """Erase people; ``now`` is aware. Idempotent, and safe beside running jobs.

        Raises:
            RefusedError: rows name photo files that are in none of the roots; nothing was erased.
            TableError, OutageError, ObjectStoreError: what was done stays done; run it again.
        """
        receipt = Receipt(people, dry_run, now)
        there = [self.specs[name] for name in _ORDER if name in self.specs and table_exists(self.specs[name])]
        rows = self._find(there, people)
        check_roots({row["blob_path"] for row in rows.get(ATTACHMENTS, ()) if row["blob_path"]}, self.media)
        if not dry_run:
            place = self.specs[TRACKING]
            receipt.new = at_once(place, lambda: self.people.add(people.ids, now))
            crash_points.maybe_crash("after-suppression")
            for spec in there:
                announce(spec, self.people.version)
            crash_points.maybe_crash("after-announcement")
            rows = self._find(there, people)  # now there will be no more
        self._remove_files(people, rows, receipt)
        crash_points.maybe_crash("after-files")
        for spec in there:
            receipt.rows[spec.name] = delete_rows(spec, people.where, dry_run=dry_run).rows
        if not dry_run:
            self._remove_files(people, rows, receipt)  # what a bundle under way has stored meanwhile
        self._describe(receipt, rows, there, now)
        return receipt

    def keep(self, receipt: Receipt, ended_at: datetime) -> None:
        """Keep a receipt without its ids, in a table. Raises OutageError."""
        receipt.ended_at = ended_at
        crash_points.maybe_crash("before-receipt")
        values = {
            "started_at": receipt.started_at,
            "ended_at": ended_at,
            "assignments": len(receipt.people.assignments),
            "projects": len(receipt.people.projects),
            "newly_suppressed": receipt.new,
            "rows": json.dumps(receipt.rows),
            "photos": receipt.photos.number,
            "photo_bytes": receipt.photos.bytes,
            "payloads": receipt.payloads.number,
            "version": version("itel-cabinet"),
        }
        spec = self.specs[TRACKING]
        uri = f"{spec.uri.removesuffix(TRACKING)}{RECEIPTS}"
        append_rows(uri, pa.Table.from_pylist([values], schema=_RECEIPT_SCHEMA), spec.storage_options)
        crash_points.maybe_crash("after-receipt")

    def _find(self, there: Sequence[TableSpec], people: People) -> dict[str, list[Row]]:
        """Their rows by table, as far as they name something."""
        return {
            spec.name: find_rows(spec, [name for name in _WANTED if name in spec.schema.names], people.where)
            for spec in there
        }

    def _remove_files(self, people: People, rows: Mapping[str, Sequence[Row]], receipt: Receipt) -> None:
        assignments = {*people.assignments, *(row["assignment_id"] for some in rows.values() for row in some)}
        named = {row["blob_path"] for row in rows.get(ATTACHMENTS, ()) if row["blob_path"]}
        for root in self.media:
            keys = {key for path in named if (key := root.key_of(path)) is not None}
            found = {
                key: size
                for folder in self._photo_folders(people, rows)
                for key, (size, _) in root.details(folder).items()
                if key in keys or assignment_of(key) in assignments or _is_in_project(key, people)
            }
            receipt.photos.add([*found.values()])
            if not receipt.dry_run:
                root.delete(sorted(found.keys() | keys))
        for file in self._payloads(assignments):
            receipt.payloads.add([file.stat().st_size])
            if not receipt.dry_run:
                file.unlink(missing_ok=True)

    def _photo_folders(self, people: People, rows: Mapping[str, Sequence[Row]]) -> list[str]:
        """Where their albums are: in their projects, or anywhere if those are not known (any more)."""
        known = {row["assignment_id"]: row["project_id"] for some in rows.values() for row in some}
        if not {*people.assignments} <= known.keys():
            return [MEDIA_FOLDER]
        return sorted({project_folder(project) for project in (*people.projects, *known.values())})

    def _payloads(self, assignments: set[int]) -> Iterator[Path]:
        """Those in the folder, and what a killed process has left unfinished of them."""
        if self.folder is not None and self.folder.is_dir():
            for file in self.folder.iterdir():
                head = file.name.removeprefix(".").partition("-")[0]
                if file.suffix in (".json", ".partial") and head.isdecimal() and int(head) in assignments:
                    yield file

    def _describe(
        self, receipt: Receipt, rows: Mapping[str, Sequence[Row]], there: Sequence[TableSpec], now: datetime
    ) -> None:
        met = [row for some in rows.values() for row in some]
        assignments, projects = {row["assignment_id"] for row in met}, {row["project_id"] for row in met}
        receipt.unknown = [f"{ASSIGNMENT} {one}" for one in receipt.people.assignments if one not in assignments]
        receipt.unknown += [f"{PROJECT} {one}" for one in receipt.people.projects if one not in projects]
        sent = [row for row in rows.get(LEDGER, ()) if row["outcome"] in SETTLED]
        receipt.submissions = len(sent)
        receipt.itel_ids = sorted({row["created_id"] for row in sent if row["created_id"]})
        for spec in there:
            properties = describe_table(spec.uri, spec.storage_options).properties
            log = read_hours(properties, "delta.logRetentionDuration", "interval 30 days")
            receipt.remainders.append(
                Remainder(
                    spec.name,
                    now + timedelta(hours=SAFE_RETENTION_HOURS),
                    now + timedelta(hours=log),
                    properties.get("delta.enableChangeDataFeed") == "true",
                )
            )


def check_roots(paths: Collection[str], media: Sequence[Objects]) -> None:
    """Raises RefusedError if one of these photos is in none of the roots."""
    outside = sum(all(root.key_of(path) is None for root in media) for path in paths)
    if outside:
        raise RefusedError(
            f"rows name {outside} photo files that are in none of the roots given: give each root that the jobs have "
            "stored photos in, as they had it; nothing was deleted",
            field="root",
        )


def _is_in_project(key: str, people: People) -> bool:
    """Whether an object is in the folder of one of the projects, and of no other, whose id only looks alike."""
    return any(
        key.startswith(f"{project_folder(one)}/") for one in people.projects if project_folder(one).endswith(f"/{one}")
    )


def find_listed(specs: Mapping[str, TableSpec], people: Suppressions) -> People:
    """Who is on the list and in a table: a RESTORE, or a backup, has brought them back. Raises OutageError."""
    place = next(iter(specs.values()))
    at_once(place, people.refresh)
    found = Counter[tuple[str, str | int]]()
    for spec in specs.values():
        if people and table_exists(spec):
            for kind, column in people.place.ids:
                values = {row[column] for row in find_rows(spec, [column], f"`{column}` IS NOT NULL")}
                found.update((kind, one) for one in people.find(kind, values))
    return People(
        tuple(sorted(one for kind, one in found if kind == ASSIGNMENT and isinstance(one, int))),
        tuple(sorted(one for kind, one in found if kind == PROJECT and isinstance(one, str))),
    )
