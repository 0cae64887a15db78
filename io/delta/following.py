"""Partitions of a table, read once and then followed: of what is committed later only the new files are read.

For a process that must know what a table holds before each of its own commits, without reading it again each time.
"""

from __future__ import annotations

import contextlib
import functools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import unquote

import pyarrow as pa
from pyarrow import dataset

from itel_cabinet.io.delta.inspect import error_text, is_outage, literal, open_table, storage
from itel_cabinet.io.delta.spec import TableSpec
from itel_cabinet.io.worker import retry_outage

__all__ = ["Partition", "PartitionFollower"]

T = TypeVar("T")

Partition = tuple[int | str, ...]
"""The values of the partition columns, in their order."""

# The log is cleaned after days: who has not looked for so long cannot tell the end from a gap.
_SURELY_WHOLE_SECONDS = 3_600.0


class PartitionFollower:
    """Reads some columns of the partitions of one table. Not thread-safe. ``clock`` is monotonic.

    Methods wait for the table store for the specification's ``outage_seconds``, and then raise OutageError.
    """

    def __init__(self, spec: TableSpec, columns: Sequence[str], *, clock: Callable[[], float] = time.monotonic) -> None:
        self.spec = spec
        self._schema = pa.schema([spec.schema.field(name).with_nullable(True) for name in columns])
        self._clock = clock
        self._folder = storage(spec)
        self._version = -1
        self._looked_at = -_SURELY_WHOLE_SECONDS
        self._files: dict[Partition, set[str]] = {}
        self._plain = True  # no file of the table has rows that a deletion vector hides
        # Of the partitions that were read: the files with rows that came since. They may be gone from the table by now.
        self._unread: dict[Partition, set[str]] = {}

    def refresh(self) -> None:
        """Take in what has been committed by now. Costs one look for a file if that is nothing."""
        self._patiently(self._refresh)

    def partitions(self) -> list[Partition]:
        """Those that hold rows, as of the last refresh."""
        return [partition for partition, files in self._files.items() if files]

    def read(self, partition: Partition) -> tuple[pa.Table, bool] | None:
        """The rows that the partition has had new since it was last read, and whether these are all its rows, because
        it was not read before or has lost rows; None if nothing has changed. As of the last refresh. What a compaction
        has put together is not read again."""
        return self._patiently(lambda: self._rows(partition))

    def forget(self, partition: Partition) -> None:
        """Have the next read give all rows."""
        self._unread.pop(partition, None)

    def _patiently(self, act: Callable[[], T]) -> T:
        def attempt() -> T:
            try:
                return act()
            except Exception:
                self._looked_at = -_SURELY_WHOLE_SECONDS  # begin again with the table as it is
                raise

        return retry_outage(
            attempt,
            what=str(self.spec),
            seconds=self.spec.outage_seconds,
            is_outage=is_outage,
            describe=functools.partial(error_text, self.spec),
        )

    def _refresh(self) -> None:
        now = self._clock()
        if now - self._looked_at >= _SURELY_WHOLE_SECONDS:
            self._open()
        while (actions := self._commit(self._version + 1)) is not None:
            self._apply(actions)
            self._version += 1
        self._looked_at = now

    def _open(self) -> None:
        table = open_table(self.spec)
        names = self.spec.partition_by
        actions = pa.table(table.get_add_actions(flatten=True))
        values = [actions[f"partition.{name}"].to_pylist() for name in names]
        before, self._files = self._files, {}
        for path, *of in zip(actions["path"].to_pylist(), *values, strict=True):
            self._files.setdefault(tuple(of), set()).add(path)
        self._plain = "deletionVectors" not in (table.protocol().writer_features or ())
        for partition, unread in [*self._unread.items()]:
            known, there = before.get(partition, set()), self._files.get(partition, set())
            if self._plain and known <= there:
                unread |= there - known
            else:
                self.forget(partition)
        self._version = table.version()

    def _commit(self, version: int) -> list[dict[str, Any]] | None:
        """The actions of a version; None if it is not there yet."""
        try:
            with self._folder.open_input_stream(f"_delta_log/{version:020}.json") as lines:
                return [json.loads(line) for line in lines.read().splitlines() if line.strip()]
        except FileNotFoundError:
            return None

    def _apply(self, commit: Sequence[Mapping[str, Any]]) -> None:
        """Take in a commit. One that only puts files together says so (``dataChange`` in Delta's protocol)."""
        for removed in (action["remove"] for action in commit if action.get("remove") is not None):
            path = unquote(removed["path"])
            for partition, files in self._files.items():
                if path in files:
                    files.remove(path)
                    if removed.get("dataChange", True):
                        self.forget(partition)
        kinds = [self.spec.schema.field(name).type for name in self.spec.partition_by]
        for added in (action["add"] for action in commit if action.get("add") is not None):
            self._plain = self._plain and added.get("deletionVector") is None
            texts = [added["partitionValues"][name] for name in self.spec.partition_by]
            values = (int(text) if pa.types.is_integer(kind) else text for kind, text in zip(kinds, texts, strict=True))
            path, partition = unquote(added["path"]), tuple(values)
            self._files.setdefault(partition, set()).add(path)
            if added.get("dataChange", True) and partition in self._unread:
                self._unread[partition].add(path)

    def _rows(self, partition: Partition) -> tuple[pa.Table, bool] | None:
        unread, rows = self._unread.get(partition), None
        if unread is not None and not unread:
            return None
        if unread and self._plain:
            with contextlib.suppress(FileNotFoundError):  # a vacuum was faster
                rows = self._read_files(sorted(unread))
        whole = rows is None
        if rows is None:
            files = sorted(self._files.get(partition, ()))
            rows = self._read_files(files) if self._plain else self._scan(partition)
        self._unread[partition] = set()
        return rows, whole

    def _read_files(self, paths: Sequence[str]) -> pa.Table:
        if not paths:
            return self._schema.empty_table()
        files = dataset.dataset(list(paths), schema=self._schema, format="parquet", filesystem=self._folder)
        return files.to_table()

    def _scan(self, partition: Partition) -> pa.Table:
        of_partition = " AND ".join(
            f"`{name}` = {literal(value)}" for name, value in zip(self.spec.partition_by, partition, strict=True)
        )
        rows = open_table(self.spec).scan(columns=self._schema.names, predicate=of_partition)
        return pa.table(rows).cast(self._schema)
