"""What delta-rs can write: the features of a table, as its protocol names them.

A table with another feature can be read, and each commit to it fails in the way that a lost race does. So the features
are looked at before anything is written, or sent elsewhere.
"""

from __future__ import annotations

from deltalake import DeltaTable

from itel_cabinet.io.delta.spec import TableError, TableSpec

__all__ = ["check_features"]

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
