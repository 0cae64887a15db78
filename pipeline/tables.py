"""The tables: where they are, what is in them, how rows get there, and which job writes which."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from itel_cabinet.io.delta import Append, SuppressionList, TableSpec, Upsert
from itel_cabinet.pipeline.jobs import Job
from itel_cabinet.pipeline.options import Settings
from itel_cabinet.transforms.contracts import Contract
from itel_cabinet.transforms.ledger import BODIES_SCHEMA, LEDGER_SCHEMA
from itel_cabinet.transforms.rows import ATTACHMENTS_SCHEMA, TRACKING_SCHEMA, make_forms_schema
from itel_cabinet.transforms.suppression import ASSIGNMENT, PROJECT

__all__ = [
    "ATTACHMENTS",
    "BODIES",
    "FORMS",
    "LEDGER",
    "SUPPRESSIONS",
    "TRACKING",
    "suppression_list",
    "table_specs",
    "tables_of_job",
]

TRACKING = "itel_cabinet_task_tracking"
FORMS = "claimx_itel_forms"
ATTACHMENTS = "claimx_itel_attachments"
LEDGER = "itel_cabinet_submissions"
BODIES = "itel_cabinet_submission_bodies"
SUPPRESSIONS = "itel_cabinet_suppressions"
"""Not a table of rows: the list of what was erased."""

# The order is total: the event's time, then Kafka's coordinates for events of the same microsecond.
_NEWEST_WINS = ("event_timestamp", "kafka_partition", "kafka_offset")
# Fixed, since a lookup by an event reads its day alone.
_BY_DAY = ("year", "month", "day")
# What a table's log keeps of the values in a file, for readers to leave it out: ids and times, but no text of a form or
# an answer, which would stay in the log after its row is deleted.
_STATISTICS = (
    "assignment_id",
    "task_id",
    "claim_media_id",
    "event_timestamp",
    "processed_timestamp",
    "created_at",
    "updated_at",
    "kafka_topic_id",
    "kafka_partition",
    "kafka_offset",
)


def table_specs(settings: Settings, contract: Contract | None = None) -> dict[str, TableSpec]:
    """The specifications of all tables under ``--tables_root``, by name; of the forms' columns as a contract has
    them, by default that of the settings."""
    root = settings.tables.root.rstrip("/")
    contract = contract or settings.contract.loaded
    suppressed = suppression_list(settings)

    def spec(schema: pa.Schema, **how: Any) -> TableSpec:
        return TableSpec(
            schema=schema,
            storage_options=settings.tables.storage_options,
            properties=settings.tables.properties,
            outage_seconds=settings.outage_patience_seconds,
            suppressed=suppressed,
            statistics=tuple(name for name in _STATISTICS if name in schema.names),
            **how,
        )

    # A job's tables are compacted after unlike numbers of commits: in one batch they took 280 MB at the same time.
    return {
        # One row an event.
        TRACKING: spec(
            uri=f"{root}/{TRACKING}",
            compact_every=110,
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
            compact_every=90,
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
        # One row for each end that a completed event has come to: settled once, refused once for each reason, and all
        # that once more for each resubmission.
        LEDGER: spec(
            uri=f"{root}/{LEDGER}",
            compact_every=95,
            schema=LEDGER_SCHEMA,
            mode=Append(identity=("event_id", "settled", "reason", "resubmission")),
            partition_by=_BY_DAY,
        ),
        # One row for each body that iTel was sent for an event.
        BODIES: spec(
            uri=f"{root}/{BODIES}",
            compact_every=105,
            schema=BODIES_SCHEMA,
            mode=Append(identity=("event_id", "body_sha256", "contract_name")),
            partition_by=_BY_DAY,
        ),
    }


def suppression_list(settings: Settings) -> SuppressionList:
    """Where the list is of what was erased, and which columns of the tables, and fields of events, are on it."""
    return SuppressionList(
        f"{settings.tables.root.rstrip('/')}/{SUPPRESSIONS}",
        ((ASSIGNMENT, "assignment_id"), (PROJECT, "project_id")),
        settings.tables.storage_options,
    )


def tables_of_job(job: Job, *, ledger: bool = True, bodies: bool = True) -> tuple[str, ...]:
    """The names of the tables that a job writes; of those about submissions only what it is to keep."""
    tracked = (TRACKING, FORMS, ATTACHMENTS) if job.writes_tables else ()
    kept = {LEDGER: ledger, BODIES: ledger and bodies} if job.calls_itel else {}
    return (*tracked, *(name for name, is_kept in kept.items() if is_kept))
