"""Rows and photos deleted by age: `itel-cabinet tables purge`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from itel_cabinet.io.delta import Row, TableSpec, delete_rows, describe_table, find_rows
from itel_cabinet.io.objects import Objects
from itel_cabinet.io.worker import crash_points
from itel_cabinet.pipeline.operate.erase import check_roots
from itel_cabinet.pipeline.tables import ATTACHMENTS
from itel_cabinet.transforms.photos import MEDIA_FOLDER

__all__ = ["Purged", "purge"]

_DAY = ("year", "month", "day")


@dataclass
class Purged:
    """What was deleted, or with a dry run would be: rows by table, and photos with their bytes."""

    before: datetime
    rows: dict[str, int] = field(default_factory=dict)
    photos: int = 0
    photo_bytes: int = 0


def purge(
    specs: Sequence[TableSpec], before: datetime, *, media: Sequence[Objects] = (), dry_run: bool = False
) -> Purged:
    """Delete the rows of events from before an instant (aware), and the photos that only such rows named.

    Idempotent, and safe beside running jobs: a photo that a newer row names stays. Photos go before the rows that name
    them, so that a run that was cut off is made good by the next. Those that no row names, as a job that was killed
    leaves them, go as well, once they have been stored before the same instant.

    Args:
        specs: of the tables to purge, which exist.
        media: the roots of photos; looked at if the attachments table is purged.

    Raises:
        RefusedError: rows name photos that are in none of the roots; nothing was deleted.
        TableError, OutageError, ObjectStoreError: what was done stays done; run it again.
    """
    purged = Purged(before)
    conditions = {spec.name: _older(spec, before) for spec in specs}
    attachments = next((spec for spec in specs if spec.name == ATTACHMENTS), None)
    if attachments is not None:
        named = _paths(find_rows(attachments, ["blob_path"], f"({conditions[ATTACHMENTS]}) AND blob_path IS NOT NULL"))
        check_roots(named, media)
        where = f"NOT ({conditions[ATTACHMENTS]}) AND blob_path IS NOT NULL"
        kept = _paths(find_rows(attachments, ["blob_path"], where))
        for root in media:
            _delete_photos(root, named, kept, purged, dry_run=dry_run)
    crash_points.maybe_crash("after-purged-photos")
    for spec in specs:
        purged.rows[spec.name] = delete_rows(spec, conditions[spec.name], dry_run=dry_run).rows
    return purged


def _older(spec: TableSpec, before: datetime) -> str:
    """The condition for rows of earlier events; partitions that can have none are not looked at."""
    condition = f"event_timestamp < '{before.isoformat()}'"
    if not {*_DAY} <= {*describe_table(spec.uri, spec.storage_options).partition_by}:
        return condition
    year, month, day = before.year, before.month, before.day
    same_year = f"year = {year} AND (month < {month} OR (month = {month} AND day <= {day}))"
    return f"(year < {year} OR ({same_year})) AND {condition}"


def _paths(rows: Sequence[Row]) -> set[str]:
    return {row["blob_path"] for row in rows}


def _delete_photos(root: Objects, named: set[str], kept: set[str], purged: Purged, *, dry_run: bool) -> None:
    found: Mapping[str, tuple[int, datetime]] = root.details(MEDIA_FOLDER)
    gone = {
        key: size
        for key, (size, stored_at) in found.items()
        if root.uri(key) not in kept and (root.uri(key) in named or stored_at < purged.before)
    }
    purged.photos += len(gone)
    purged.photo_bytes += sum(gone.values())
    if not dry_run:
        root.delete(sorted(gone))
