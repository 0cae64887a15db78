"""Tables as jobs leave them, made without a broker: sample events through the steps and the sink, bundle by bundle."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deltalake import DeltaTable

from itel_cabinet.io.delta import FencedTable, TableSpec
from itel_cabinet.local.samples import Generator, Shares
from itel_cabinet.pipeline.options import Settings
from itel_cabinet.pipeline.tables import ATTACHMENTS, FORMS, TRACKING, table_specs
from itel_cabinet.transforms.contracts import Contract
from itel_cabinet.transforms.enrichment import CabinetTask, make_task
from itel_cabinet.transforms.events import TaskEvent, parse_event
from itel_cabinet.transforms.forms import TaskDetails, parse_details
from itel_cabinet.transforms.records import Record
from itel_cabinet.transforms.rows import make_attachment_rows, make_form_rows, make_tracking_rows

__all__ = ["OF_THE_MOMENT", "Known", "known_events", "specs_at", "stored_rows", "write_bundle"]

OF_THE_MOMENT = frozenset({"created_at", "updated_at", "ingested_at", "processed_timestamp"})
Known = tuple[Record, TaskEvent, TaskDetails]


def known_events(number: int, contract: Contract, seed: int = 5) -> list[Known]:
    """Events whose tasks ClaimX knows, a tenth of them resubmissions."""
    return [*_known(number, contract, seed)]


def _known(number: int, contract: Contract, seed: int) -> Iterator[Known]:
    shares = Shares(
        assigned=0.1,
        in_progress=0,
        cancelled=0,
        resubmitted=0.2,
        late=0,
        repeated=0,
        completed_without_form=0.02,
        other_task=0,
        bad=0,
    )
    for offset, produced in enumerate(Generator(seed, shares=shares, contract=contract).tracking_messages(number)):
        record = Record("events", "AbCdEfGhIjKlMnOpQrStUv", 0, offset, 0, None, produced.value)
        event = parse_event(record, 0.0, task_ids=contract.task_ids)
        assert isinstance(event, TaskEvent), event
        assert produced.details_json is not None
        yield record, event, parse_details(produced.details_json, event.assignment_id)


def specs_at(root: Path, contract: Contract) -> dict[str, TableSpec]:
    """The tables under a folder, as a contract has them."""
    given = {"bootstrap_servers": "unused:9092", "claimx_url": "http://unused", "claimx_auth": "none"}
    return table_specs(Settings.of({"job": "tracking", "tables_root": str(root), **given}), contract)


def write_bundle(specs: dict[str, TableSpec], events: list[Known], contract: Contract, moment: float) -> None:
    """What a job does with one bundle, at ``moment`` (epoch seconds)."""
    tasks: list[CabinetTask] = [make_task(*one, read_form=contract.read_form) for one in events]
    for name, make in ((TRACKING, make_tracking_rows), (FORMS, make_form_rows), (ATTACHMENTS, make_attachment_rows)):
        FencedTable(specs[name]).write(make(tasks, clock=lambda: moment))


def stored_rows(spec: TableSpec, *, active: bool = False) -> list[dict[str, Any]]:
    """A table's rows without what is of the moment, in the order of their keys."""
    rows = DeltaTable(spec.uri).to_pyarrow_table().to_pylist()
    kept = [
        {k: v for k, v in row.items() if k not in OF_THE_MOMENT} for row in rows if row.get("is_active") or not active
    ]
    return sorted(
        kept, key=lambda row: (row["assignment_id"], str(row.get("question_key")), row.get("claim_media_id", 0))
    )
