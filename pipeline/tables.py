"""The three tables: where they are, what is in them, how rows get there."""

from __future__ import annotations

from functools import partial

from itel_cabinet.io.delta import Append, TableSpec, Upsert
from itel_cabinet.pipeline.options import Settings
from itel_cabinet.transforms.contracts import Contract
from itel_cabinet.transforms.rows import ATTACHMENTS_SCHEMA, TRACKING_SCHEMA, make_forms_schema

__all__ = ["ATTACHMENTS", "FORMS", "TRACKING", "table_specs"]

TRACKING = "itel_cabinet_task_tracking"
FORMS = "claimx_itel_forms"
ATTACHMENTS = "claimx_itel_attachments"

# The order is total: the event's time, then Kafka's coordinates for events of the same microsecond.
_NEWEST_WINS = ("event_timestamp", "kafka_partition", "kafka_offset")


def table_specs(settings: Settings, contract: Contract | None = None) -> dict[str, TableSpec]:
    """The specifications of the three tables under ``--tables_root``, by name; of the forms' columns as a contract has
    them, by default that of the settings."""
    root = settings.tables.root.rstrip("/")
    contract = contract or settings.contract.loaded
    spec = partial(
        TableSpec,
        storage_options=settings.tables.storage_options,
        outage_seconds=settings.outage_patience_seconds,
    )
    return {
        # One row an event.
        TRACKING: spec(
            uri=f"{root}/{TRACKING}",
            schema=TRACKING_SCHEMA,
            mode=Append(identity=("event_id",)),
            partition_by=settings.tables.partition_by,
        ),
        # One row an assignment: its newest completed form.
        FORMS: spec(
            uri=f"{root}/{FORMS}",
            schema=make_forms_schema(contract.questions, contract.file.form.raw_data_after),
            mode=Upsert(keys=("assignment_id",), order=_NEWEST_WINS, insert_only=("created_at",)),
        ),
        # One row a photo; the photos of an assignment are a set that a newer form replaces.
        ATTACHMENTS: spec(
            uri=f"{root}/{ATTACHMENTS}",
            schema=ATTACHMENTS_SCHEMA,
            mode=Upsert(
                keys=("assignment_id", "question_key", "claim_media_id"),
                order=_NEWEST_WINS,
                insert_only=("created_at",),
                keep_if_null=("blob_path",),
                members_of=("assignment_id",),
                active="is_active",
                touch=("event_id", "kafka_topic", "updated_at"),
            ),
        ),
    }
