"""Delta tables for Beam, exactly once: a sink whose commits carry a fence, and the tools around the tables. It knows
nothing of cabinets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

from itel_cabinet.io.delta.erasure import Deleted, announce, append_rows, delete_rows, find_rows
from itel_cabinet.io.delta.features import check_properties
from itel_cabinet.io.delta.fences import Move, carry_out, fences_at, plan_fences, plan_restore, rows_from
from itel_cabinet.io.delta.following import Partition, PartitionFollower
from itel_cabinet.io.delta.inspect import (
    at_once,
    create_table,
    describe_table,
    differing_properties,
    error_text,
    glance_at_table,
    is_outage,
    literal,
    open_table,
    records_written,
    table_exists,
)
from itel_cabinet.io.delta.maintenance import SAFE_RETENTION_HOURS, optimize, read_hours, vacuum
from itel_cabinet.io.delta.spec import (
    Append,
    Row,
    RowError,
    SuppressionList,
    TableError,
    TableSpec,
    TableState,
    Upsert,
    WriteResult,
)
from itel_cabinet.io.delta.suppressions import Suppressions, get_suppressions
from itel_cabinet.io.delta.table import FencedTable, get_table

if TYPE_CHECKING:
    from itel_cabinet.io.delta.sink import WriteToDelta

__all__ = [
    "SAFE_RETENTION_HOURS",
    "Append",
    "Deleted",
    "FencedTable",
    "Move",
    "Partition",
    "PartitionFollower",
    "Row",
    "RowError",
    "SuppressionList",
    "Suppressions",
    "TableError",
    "TableSpec",
    "TableState",
    "Upsert",
    "WriteResult",
    "WriteToDelta",
    "announce",
    "append_rows",
    "at_once",
    "carry_out",
    "check_properties",
    "create_table",
    "delete_rows",
    "describe_table",
    "differing_properties",
    "error_text",
    "fences_at",
    "find_rows",
    "get_suppressions",
    "get_table",
    "glance_at_table",
    "is_outage",
    "literal",
    "open_table",
    "optimize",
    "plan_fences",
    "plan_restore",
    "read_hours",
    "records_written",
    "rows_from",
    "table_exists",
    "vacuum",
]

# Beam takes a second to import, and most commands do without it.
__getattr__, _, _ = lazy_loader.attach(__name__, submod_attrs={"sink": ["WriteToDelta"]})
