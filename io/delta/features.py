"""What delta-rs can write: the features of a table, as its protocol names them.

A table with another feature can be read, and each commit to it fails in the way that a lost race does. So the features
are looked at before anything is written, or sent elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from deltalake import DeltaTable

from itel_cabinet.io.delta.spec import RETENTION, TableError, TableSpec
from itel_cabinet.io.worker import SettingError

__all__ = ["check_features", "check_properties"]

# Tried one by one with deltalake 1.6.6: append, merge and optimize (tests/process/test_delta_features.py).
_WRITABLE = frozenset(
    {
        "appendOnly",
        "changeDataFeed",
        "checkConstraints",
        "columnMapping",  # allowed, not used: see below
        "deletionVectors",
        "generatedColumns",
        "invariants",
        "timestampNtz",
        "v2Checkpoint",
        "variantType",
    }
)
_LAST_LEGACY_VERSION = 5  # 6 stands for identity columns, 7 for a list of features
_FIRST = {
    "clustering": "CLUSTER BY NONE",
    "inCommitTimestamp": "SET TBLPROPERTIES ('delta.enableInCommitTimestamps' = 'false')",
    "rowTracking": "SET TBLPROPERTIES ('delta.enableRowTracking' = 'false')",
    "typeWidening": "SET TBLPROPERTIES ('delta.enableTypeWidening' = 'false')",
}
"""What has to go before Spark drops the feature, after ALTER TABLE."""
# Others stand on these, so they are dropped last.
_LAST = ("domainMetadata",)


def check_features(spec: TableSpec, table: DeltaTable) -> None:
    """Raises TableError, with the statements that help, if the table has a feature that delta-rs cannot write."""
    protocol, place = table.protocol(), f"ALTER TABLE delta.`{spec.uri}`"
    if table.metadata().configuration.get("delta.columnMapping.mode", "none") != "none":
        raise TableError(
            f"{spec}: its columns are mapped to other names, which delta-rs cannot write: "
            f"{place} SET TBLPROPERTIES ('delta.columnMapping.mode' = 'none')"
        )
    unknown = sorted({*(protocol.writer_features or ())} - _WRITABLE, key=lambda name: (name in _LAST, name))
    if not unknown and _LAST_LEGACY_VERSION < protocol.min_writer_version < 7:
        unknown = ["identityColumns"]
    if unknown:
        statements = [f"{place} {_FIRST[name]}" for name in unknown if name in _FIRST]
        statements += [f"{place} DROP FEATURE {name}" for name in unknown]
        features = "feature" if len(unknown) == 1 else "features"
        raise TableError(
            f"{spec}: delta-rs cannot write its {features} {', '.join(unknown)}: run {'; '.join(statements)}"
        )


_TRUTH = (r"true|false", "true or false")
_NUMBER = (r"[1-9][0-9]{0,8}", "a whole number")
_DURATION = (r"interval +[1-9][0-9]{0,5} +(week|day|hour)s?", "a duration such as interval 30 days")
_SETTABLE = {
    "delta.enableChangeDataFeed": _TRUTH,
    "delta.enableExpiredLogCleanup": _TRUTH,
    "delta.checkpointInterval": _NUMBER,
    "delta.logRetentionDuration": _DURATION,
    "delta.deletedFileRetentionDuration": _DURATION,
}
_STATISTICS = "it would keep texts of rows in the log, where they outlive their rows: leave it out"
_HARMFUL = {
    RETENTION: "it lets the fences of idle partitions expire, and replays would be written twice: leave it out",
    "delta.appendOnly": "then no form could be replaced, and nobody erased: leave it out",
    "delta.columnMapping.mode": "delta-rs cannot write such a table: leave it out",
    "delta.dataSkippingStatsColumns": _STATISTICS,
    "delta.dataSkippingNumIndexedCols": _STATISTICS,
}


def check_properties(properties: Mapping[str, str]) -> None:
    """Raises SettingError for a property that a new table must not have, or whose value delta-rs would take for none:
    it says nothing about a wrong one."""
    for name, value in properties.items():
        if name in _HARMFUL:
            raise SettingError(f"{name}: {_HARMFUL[name]}", field="properties")
        if name not in _SETTABLE:
            raise SettingError(f"{name} cannot be set here: give some of {', '.join(_SETTABLE)}", field="properties")
        pattern, meaning = _SETTABLE[name]
        if not re.fullmatch(pattern, value):
            raise SettingError(f"{name} must be {meaning}, got {value!r}", field="properties")
