"""Rows and tables for the tests of the Delta sink: readings are appended, forms upserted, photos upserted as sets."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from itel_cabinet.io.delta import Append, TableSpec, Upsert
from itel_cabinet.io.worker import crash_points

SOURCE = [("kafka_topic_id", pa.string()), ("kafka_partition", pa.int32()), ("kafka_offset", pa.int64())]
READINGS = pa.schema([("value", pa.string()), *SOURCE])
PHOTOS = pa.schema(
    [
        ("album", pa.int64()),
        ("question", pa.string()),
        ("photo", pa.int64()),
        ("path", pa.string()),
        ("is_active", pa.bool_()),
        ("event", pa.string()),
        ("at", pa.timestamp("us", tz="UTC")),
        ("created_at", pa.timestamp("us", tz="UTC")),
        *SOURCE,
    ]
)
FORMS = pa.schema(
    [
        ("form", pa.string()),
        ("answer", pa.string()),
        ("path", pa.string()),
        ("at", pa.timestamp("us", tz="UTC")),
        ("created_at", pa.timestamp("us", tz="UTC")),
        *SOURCE,
    ]
)
ORDER = ("at", "kafka_partition", "kafka_offset")
EPOCH = datetime(2026, 1, 10, tzinfo=UTC)


def readings(folder: Path | str, **changes: Any) -> TableSpec:
    return TableSpec(**{"uri": f"{folder}/readings", "schema": READINGS, "mode": Append(), **changes})


def forms(folder: Path | str, **changes: Any) -> TableSpec:
    mode = Upsert(keys=("form",), order=ORDER, insert_only=("created_at",), keep_if_null=("path",))
    return TableSpec(**{"uri": f"{folder}/forms", "schema": FORMS, "mode": mode, **changes})


def albums(folder: Path | str, **changes: Any) -> TableSpec:
    mode = Upsert(
        keys=("album", "question", "photo"),
        order=ORDER,
        insert_only=("created_at",),
        keep_if_null=("path",),
        members_of=("album",),
        active="is_active",
        touch=("event",),
    )
    return TableSpec(**{"uri": f"{folder}/albums", "schema": PHOTOS, "mode": mode, **changes})


def source(offset: int, partition: int = 0, topic_id: str = "Zx3kQ") -> dict[str, Any]:
    return {"kafka_topic_id": topic_id, "kafka_partition": partition, "kafka_offset": offset}


def reading(offset: int, partition: int = 0, topic_id: str = "Zx3kQ", **columns: Any) -> dict[str, Any]:
    return {"value": f"v{offset}", **source(offset, partition, topic_id), **columns}


def form(form_id: str, second: int, offset: int, **columns: Any) -> dict[str, Any]:
    at = EPOCH + timedelta(seconds=second)
    return {"form": form_id, "answer": f"at {second}", "at": at, "created_at": at, **source(offset), **columns}


def album(
    album_id: int, second: int, offset: int, photos: Iterable[int], path: str | None = None
) -> list[dict[str, Any]]:
    """The rows of one record: the complete set of an album's photos, or the marker of an empty one."""
    at = EPOCH + timedelta(seconds=second)
    members: list[tuple[str | None, int | None]] = [("q", photo) for photo in photos]
    return [
        {
            "album": album_id,
            "question": question,
            "photo": photo,
            "path": path,
            "is_active": True,
            "event": f"e{offset}",
            "at": at,
            "created_at": at,
            **source(offset),
        }
        for question, photo in members or [(None, None)]
    ]


def stored(spec: TableSpec, *columns: str) -> list[Any]:
    """The table's rows as sorted tuples of ``columns``; bare values for a single one."""
    rows = DeltaTable(spec.uri).to_pyarrow_table().to_pylist()
    if len(columns) == 1:
        return sorted(row[columns[0]] for row in rows)
    return sorted((tuple(row[c] for c in columns) for row in rows), key=repr)


def version(spec: TableSpec) -> int:
    return int(DeltaTable(spec.uri).version())


def just_before_commit(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Have ``act`` done once, when a writer has decided and is about to commit."""
    waiting = [act]

    def maybe_crash(point: str) -> None:
        if point.startswith("before-commit:") and waiting:
            waiting.pop()()

    monkeypatch.setattr(crash_points, "maybe_crash", maybe_crash)
