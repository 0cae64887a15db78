"""What is written into a Delta table, and how: settings and results of :mod:`itel_cabinet.io.delta.table`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import pyarrow as pa

__all__ = [
    "RETENTION",
    "Append",
    "Given",
    "Pairs",
    "Row",
    "RowError",
    "SuppressionList",
    "TableError",
    "TableGlance",
    "TableSpec",
    "TableState",
    "Upsert",
    "WriteResult",
]

Row = Mapping[str, Any]
Given = pa.Table | pa.RecordBatch | Sequence[Row | pa.Table | pa.RecordBatch]
"""Rows to write: mappings, or batches of columns (at less cost), or both in one sequence."""
Pairs = Mapping[str, str] | tuple[tuple[str, str], ...]

RETENTION = "delta.setTransactionRetentionDuration"


class TableError(ValueError):
    """This table cannot be written as the specification says. One line with what to do; nothing was written."""


class RowError(ValueError):
    """A row does not fit its table's specification: an error of the program. Names column and types, never values."""


@dataclass(frozen=True)
class Append:
    """Every row is a row of its own.

    ``identity`` columns tell, beside the source, whether a row of the table is of the record that has its coordinates
    now: in a log that was brought back from a backup, other records lie at offsets that were read before.
    """

    identity: tuple[str, ...] = ()


@dataclass(frozen=True)
class Upsert:
    """One row a key; the newest wins, in any order of arrival.

    ``keys`` identify a row: texts or integers, never null. ``order`` columns, compared one after the other with null as
    the oldest, say which of two rows is newer; equal is not newer. They should end in the source's coordinates, to make
    the order total. ``insert_only`` columns (``created_at``) keep the value that the table has, ``keep_if_null``
    columns only where the newer row has none. Of several rows for one key in a bundle only the newest counts.

    With ``members_of`` (some of the keys) and ``active`` (a boolean column) the rows of one source record that agree on
    ``members_of`` are the *complete* set of their group. A newer set replaces an older one: rows of the group that it
    lacks become inactive and take its ``order``, source and ``touch`` columns. An older set changes nothing. An empty
    set is sent as one row whose other keys are null; if the group has no rows, it is remembered as one inactive row
    with blank keys (``""``, 0).
    """

    keys: tuple[str, ...]
    order: tuple[str, ...]
    insert_only: tuple[str, ...] = ()
    keep_if_null: tuple[str, ...] = ()
    members_of: tuple[str, ...] = ()
    active: str | None = None
    touch: tuple[str, ...] = ()


@dataclass(frozen=True)
class SuppressionList:
    """Where the list is of what must not be written (again), and how a row is compared with it. Hashable.

    ``ids``: a kind of entries, such as ``customer``, and the column that holds its id, in turn. See
    :mod:`itel_cabinet.io.delta.suppressions`.
    """

    uri: str
    ids: tuple[tuple[str, str], ...]
    storage_options: Pairs = field(default=(), repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "storage_options", tuple(sorted(dict(self.storage_options).items())))


@dataclass(frozen=True)
class TableSpec:
    """A table and how it is written. Hashable and picklable; equal specifications share one handle a process.

    ``storage_options`` (may hold secrets: not in the repr) and ``properties`` (set on creation) may be mappings.
    ``source`` names the columns of topic id, partition and offset. ``compact_every``: after so many commits of a
    process the table's small files are compacted and its log is cleaned, 0 for never. ``outage_seconds``: how long an
    unreachable store, or losing against other writers, is borne. ``suppressed``: rows that are on this list are not
    written. ``statistics``: the columns whose least and greatest values a new table's log keeps, by default the first
    32.
    """

    uri: str
    schema: pa.Schema
    mode: Append | Upsert
    partition_by: tuple[str, ...] = ()
    storage_options: Pairs = field(default=(), repr=False)
    properties: Pairs = ()
    source: tuple[str, str, str] = ("kafka_topic_id", "kafka_partition", "kafka_offset")
    fence_prefix: str = "itel-cabinet/1"
    compact_every: int = 100
    outage_seconds: float = 120.0
    suppressed: SuppressionList | None = None
    statistics: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("storage_options", "properties"):
            object.__setattr__(self, name, tuple(sorted(dict(getattr(self, name)).items())))
        named: dict[str, tuple[str, ...]] = {"source": self.source, "partition_by": self.partition_by}
        named |= {"statistics": self.statistics}
        named |= {"suppressed": tuple(column for _, column in self.suppressed.ids) if self.suppressed else ()}
        if isinstance(self.mode, Append):
            named |= {"identity": self.mode.identity}
        if isinstance(self.mode, Upsert):
            sets = (self.mode.active,) if self.mode.active else ()
            named |= {"active": sets}
            named |= {n: getattr(self.mode, n) for n in ("keys", "order", "insert_only", "keep_if_null", "touch")}
            if not self.mode.keys or not self.mode.order:
                raise ValueError(f"{self}: Upsert needs keys and an order")
            if bool(self.mode.members_of) != bool(sets) or not set(self.mode.members_of) < {*self.mode.keys, ""}:
                raise ValueError(f"{self}: members_of (some of the keys) and active go together")
        for option, columns in named.items():
            for column in columns:
                if column not in self.schema.names:
                    raise ValueError(f"{self}: {option} names the column {column!r}, which the schema lacks")
        for key in self.mode.keys if isinstance(self.mode, Upsert) else ():
            kind = self.schema.field(key).type
            if not (pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
                raise ValueError(f"{self}: the key {key!r} is {kind}, but must be a text or an integer")
        if RETENTION in dict(self.properties):
            raise ValueError(f"{self}: the property {RETENTION} would let the fences expire; leave it out")

    def __str__(self) -> str:
        return f"Delta table {self.uri}"

    @property
    def name(self) -> str:
        """The last part of the URI."""
        return self.uri.rstrip("/").rpartition("/")[2]

    def fence_id(self, topic_id: str, partition: int) -> str:
        """The application id of a partition's fence: a public format, which other tools may read."""
        return f"{self.fence_prefix}/{topic_id}/{partition}"


@dataclass(frozen=True)
class WriteResult:
    """What became of one bundle's rows, in their order: ``written`` now, or ``replayed``: committed by an earlier
    commit.

    Both are made into mappings when one looks at them, and counted without that. An upsert's rows that were older than
    the table's count as written. ``version`` is the commit's, None where there
    was nothing to change. ``conflicts`` counts how often others' commits made the sink decide again, ``late`` the
    records that were written though they lie below a fence, ``suppressed`` the rows that are on the list of what must
    not be written: they are neither ``written`` nor ``replayed``.
    """

    table: str
    version: int | None
    written: Sequence[Row]
    replayed: Sequence[Row]
    conflicts: int = 0
    late: int = 0
    suppressed: int = 0


@dataclass(frozen=True)
class TableState:
    """A table as it is, or with ``version=None`` as :func:`create_table` would make it.

    ``history``: the latest commits, newest first, as version, time and operation; only a description has it.
    """

    uri: str
    version: int | None
    schema: pa.Schema
    partition_by: tuple[str, ...]
    files: int
    fences: Mapping[str, int]
    properties: Mapping[str, str]
    created: bool = False
    bytes: int = 0
    history: tuple[tuple[int, datetime, str], ...] = ()


@dataclass(frozen=True)
class TableGlance:
    """What a table's log alone tells, with no file of rows read.

    ``newest`` holds the greatest value of each column asked for, to the millisecond and None where the files have no
    statistics of it; ``fences`` those asked for that the table has.
    """

    version: int
    committed_at: datetime | None
    newest: Mapping[str, datetime | None]
    fences: Mapping[str, int]
