"""The columns that several tables have: where a row came from, and the day of its event."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from itel_cabinet.transforms.events import TaskEvent
from itel_cabinet.transforms.records import Record

__all__ = ["DAY", "INSTANT", "ORIGIN", "make_day_columns", "make_origin_columns", "required"]

INSTANT = pa.timestamp("us", tz="UTC")


def required(name: str, kind: pa.DataType) -> pa.Field:
    """A column that is never null."""
    return pa.field(name, kind, nullable=False)


ORIGIN = (
    required("event_timestamp", INSTANT),
    required("kafka_topic", pa.string()),
    required("kafka_topic_id", pa.string()),
    required("kafka_partition", pa.int32()),
    required("kafka_offset", pa.int64()),
)
"""Where a row came from; (event_timestamp, kafka_partition, kafka_offset) is also the order of upserts."""
DAY = (pa.field("year", pa.int32()), pa.field("month", pa.int32()), pa.field("day", pa.int32()))
"""The day of the event's own time, by which tables are partitioned."""


def make_origin_columns(records: Sequence[Record], events: Sequence[TaskEvent]) -> dict[str, list[Any]]:
    """The values of ORIGIN, of events and the records that they were read from, by column."""
    return {
        "event_timestamp": [event.timestamp for event in events],
        "kafka_topic": [record.topic for record in records],
        "kafka_topic_id": [record.topic_id for record in records],
        "kafka_partition": [record.partition for record in records],
        "kafka_offset": [record.offset for record in records],
    }


def make_day_columns(events: Sequence[TaskEvent]) -> dict[str, list[Any]]:
    """The values of DAY, by column."""
    return {
        "year": [event.timestamp.year for event in events],
        "month": [event.timestamp.month for event in events],
        "day": [event.timestamp.day for event in events],
    }
