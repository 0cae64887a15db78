"""The queries of `queries/`: what they are, what they take, and running them on the tables.

A query's file says all: its number and name are the file's, its first comment tells the purpose and the parameters. The
text is SQL that Spark and DuckDB read alike; here DuckDB runs it, on the columns that it names and nothing else of the
tables. Values are bound, never written into the text.
"""

from __future__ import annotations

import difflib
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from typing import Any, Literal, cast, get_args

import duckdb
import pyarrow as pa
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, DeltaProtocolError, TableNotFoundError

from itel_cabinet.io.delta import TableSpec, at_once, error_text, open_table
from itel_cabinet.io.worker import OutageError
from itel_cabinet.pipeline.tables import FORMS, TRACKING
from itel_cabinet.transforms.contracts import load_shipped
from itel_cabinet.transforms.events import parse_timestamp

__all__ = [
    "Parameter",
    "Query",
    "QueryError",
    "Result",
    "Session",
    "TableMissingError",
    "Value",
    "bind",
    "catalogue",
    "find",
    "open_present",
]

Kind = Literal["integer", "month", "time", "version", "words"]
Value = int | str | datetime | None

_HISTORY = "table_history"
_MOST = 2**63 - 1
_BATCH_ROWS = 4_096
_PARAMETER = re.compile(r"^-- :(\w+) \((\w+)(?:, (optional)|, default (\S+))?\) (.+)$", re.MULTILINE)
_SETTINGS = {
    "TimeZone": "UTC",
    "default_null_order": "NULLS_FIRST_ON_ASC_LAST_ON_DESC",  # Spark's
    "autoinstall_known_extensions": "false",  # nothing is fetched
    # It would compare texts with a join's least and greatest key while reading, which Arrow cannot do in the files that
    # a DELETE of delta-rs leaves (their texts are of the type string_view).
    "disabled_optimizers": "join_filter_pushdown",
}
_SQL_TYPES = {"yes_no": "BOOLEAN", "decimal": "DOUBLE", "integer": "INTEGER", "text": "VARCHAR", "choice": "VARCHAR"}
# The one function of Spark's that DuckDB has under another name.
_MACRO = "CREATE TEMPORARY MACRO UNIX_MICROS(instant) AS EPOCH_US(instant)"


class QueryError(ValueError):
    """There is no such query, or its parameters are wrong. One line with what to do."""


class TableMissingError(Exception):
    """A table that a query reads is not there. One line with what to do."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """What a query takes: an ``integer`` (not negative), a ``month`` (``2026-01``), a ``time`` (ISO; UTC where it names
    no zone), a ``version`` of the tracking table, or ``words`` with commas between them.
    """

    name: str
    kind: Kind
    required: bool
    default: str | None
    meaning: str

    @property
    def usage(self) -> str:
        """The parameter, and how it may be given, in a few words."""
        more = f", default {self.default}" if self.default else "" if self.required else ", optional"
        return f"{self.name} ({self.kind}{more})"


@dataclass(frozen=True, slots=True)
class Query:
    """One file of `queries/`. ``number`` is its place among the twelve, None for one that only the report needs."""

    name: str
    number: int | None
    purpose: str
    parameters: tuple[Parameter, ...]
    sql: str

    def reads(self, names: Iterable[str]) -> list[str]:
        """Those of ``names`` that the query, or a view that it reads, is made of."""
        words = set(re.findall(r"\w+", " ".join([self.sql, *(_views()[view] for view in self.views)])))
        return [name for name in names if name in words]

    @property
    def views(self) -> list[str]:
        """The views that the query reads, each behind those that it reads itself."""
        text = self.sql
        found = []
        for view, statement in reversed(_views().items()):
            if re.search(rf"\b{view}\b", text):
                found.append(view)
                text += statement
        return found[::-1]


@dataclass(frozen=True, slots=True)
class Result:
    """The columns of an answer, and its rows, which are read as they are asked for.

    Instants are aware and in UTC. Asking for a row raises OutageError if the tables cannot be read any further.
    """

    columns: tuple[str, ...]
    rows: Iterator[tuple[Any, ...]]


# ------------------------------------------------------------------------------------------------------- what there is


@cache
def catalogue() -> tuple[Query, ...]:
    """All queries: the numbered ones in their order, then those of the report."""
    found = [
        _parsed(file.name.removesuffix(".sql"), file.read_text(encoding="utf-8"))
        for file in files("itel_cabinet.queries").iterdir()
        if file.name.endswith(".sql") and file.name != "views.sql"
    ]
    # Of the two with number 11 the rows come before the history.
    return tuple(sorted(found, key=lambda query: (query.number or 100, query.name == "history", query.name)))


def find(name: str) -> Query:
    """The query of a name or a number. Raises QueryError, which names the near ones."""
    wanted = name.strip().lower().replace("_", "-")
    for query in catalogue():
        if wanted in (query.name, str(query.number)):
            return query
    near = difflib.get_close_matches(wanted, [query.name for query in catalogue()])
    meant = f"did you mean {' or '.join(near)}?" if near else "see which there are without a name"
    raise QueryError(f"there is no query {name!r}: {meant}")


def bind(query: Query, given: Mapping[str, str], *, now: datetime) -> dict[str, Value]:
    """A value for each parameter of a query; ``now`` is what a time's default ``now`` means. Raises QueryError."""
    known = {parameter.name: parameter for parameter in query.parameters}
    for name in given:
        if name not in known:
            takes = f"it takes {', '.join(p.usage for p in query.parameters)}" if known else "it takes none"
            raise QueryError(f"query {query.name} has no parameter {name!r}: {takes}")
    values: dict[str, Value] = {}
    for parameter in query.parameters:
        text = given.get(parameter.name, parameter.default)
        if text is None and parameter.required:
            example = {
                "integer": "5430007",
                "month": "2026-01",
                "time": "2026-01-10T15:00",
                "version": "0",
                "words": "COMPLETED",
            }
            raise QueryError(
                f"query {query.name} needs {parameter.name}, {parameter.meaning}: "
                f"--param {parameter.name}={example[parameter.kind]}"
            )
        values[parameter.name] = None if text is None else _value(parameter, text, now)
    return values


def _value(parameter: Parameter, text: str, now: datetime) -> Value:
    def refused(must_be: str) -> QueryError:
        return QueryError(f"parameter {parameter.name} must be {must_be}, got {text[:100]!r}")

    match parameter.kind:
        case "integer" | "version":
            if not re.fullmatch(r"[0-9]{1,19}", text) or int(text) > _MOST:
                raise refused(f"a whole number from 0 to {_MOST}")
            return int(text)
        case "words":
            if not re.fullmatch(r"[\w.-]+(,[\w.-]+)*", text):
                raise refused("words with commas between them, such as COMPLETED,CLOSED")
            return text
        case "month":
            parts = re.fullmatch(r"(?!0000)([0-9]{4})-(0[1-9]|1[0-2])", text)
            if not parts:
                raise refused("a month such as 2026-01")
            return datetime(int(parts[1]), int(parts[2]), 1, tzinfo=UTC)
        case "time":
            try:
                return now if text == "now" else parse_timestamp(text)
            except ValueError:
                raise refused("a date and time such as 2026-01-10T15:00 (UTC where no zone is named), or now") from None


def _parsed(stem: str, sql: str) -> Query:
    number, name = re.fullmatch(r"(?:(\d\d)_)?(\w+)", stem).groups()  # type: ignore[union-attr]
    parameters = [
        Parameter(name, cast(Kind, kind), not optional and not default, default or None, meaning)
        for name, kind, optional, default, meaning in _PARAMETER.findall(sql)
    ]
    assert all(parameter.kind in get_args(Kind) for parameter in parameters), stem
    purpose = sql.split("\n", 1)[0].removeprefix("-- ")
    return Query(name.replace("_", "-"), int(number) if number else None, purpose, tuple(parameters), sql)


@cache
def _views() -> dict[str, str]:
    """The statement that makes each view."""
    text = files("itel_cabinet.queries").joinpath("views.sql").read_text(encoding="utf-8")
    return {re.findall(r" VIEW (\w+) AS", statement)[0]: statement for statement in text.split(";\n") if statement}


# ------------------------------------------------------------------------------------------------------------- running


class Session:
    """Queries on one state of the tables: each table stays as it was when a query first read it.

    With ``version`` the tracking table is read as it was then. Use it as a context manager. Not thread-safe.
    """

    def __init__(self, specs: Mapping[str, TableSpec], *, version: int | None = None) -> None:
        self._specs = specs
        self._version = version
        self._there: set[str] = set()
        # Where DuckDB puts what outgrows the memory; else it would be the working directory.
        self._spill = tempfile.TemporaryDirectory(prefix="itel-cabinet-query-", ignore_cleanup_errors=True)
        self._engine = duckdb.connect(config={**_SETTINGS, "temp_directory": self._spill.name})
        self._engine.execute(_MACRO)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give up the tables and what was spilled. Idempotent."""
        self._engine.close()
        self._spill.cleanup()

    def run(self, query: Query, values: Mapping[str, Value]) -> Result:
        """Run a query with the values of :func:`bind`. Its rows are to be read, all of them, before the next is run.

        Raises TableMissingError, and OutageError if a table, or the version asked for, cannot be read.
        """
        for name in query.reads([*self._specs, _HISTORY]):
            if name not in self._there:
                self._provide(name)
                self._there.add(name)
        for view in query.views:
            if view not in self._there:
                with _reading(self._specs):
                    self._engine.execute(_views()[view])
                self._there.add(view)
        bound = {p.name: values[p.name] for p in query.parameters if p.kind != "version"}
        with _reading(self._specs):
            # Spark's `:name` is DuckDB's `$name`.
            relation = self._engine.sql(re.sub(r":(\w+)", r"$\1", query.sql), params=bound)
            reader = relation.to_arrow_reader(_BATCH_ROWS)
        return Result(tuple(reader.schema.names), self._rows(reader))

    def _rows(self, reader: pa.RecordBatchReader) -> Iterator[tuple[Any, ...]]:
        while True:
            with _reading(self._specs):
                batch = next(reader, None)
            if batch is None:
                return
            yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)

    def _provide(self, name: str) -> None:
        if name == _HISTORY:
            table = open_present(self._specs[TRACKING])
            with _reading(self._specs):
                self._engine.register(name, _history(table))
            return
        spec = self._specs[name]
        table = open_present(spec)
        if name == TRACKING and self._version is not None:
            table = _at_version(spec, table.version(), self._version)
        with _reading(self._specs):
            self._register(name, table)

    def _register(self, name: str, table: DeltaTable) -> None:
        """Make a table known to DuckDB. Of forms under another contract, the columns that queries ask for and that it
        does not have are null."""
        there = {column.name for column in table.schema().fields}
        asked = load_shipped().questions if name == FORMS else ()
        missing = [f'NULL::{_SQL_TYPES[one.type]} AS "{one.column}"' for one in asked if one.column not in there]
        if not missing:
            self._engine.register(name, _readable(table))
            return
        self._engine.register(f"{name}_stored", _readable(table))
        self._engine.execute(f'CREATE VIEW "{name}" AS SELECT *, {", ".join(missing)} FROM "{name}_stored"')


def _readable(table: DeltaTable) -> Any:
    """A table for DuckDB: read piece by piece, or, where it has deletion vectors or v2 checkpoints, as a whole."""
    try:
        return table.to_pyarrow_dataset()
    except DeltaProtocolError:
        return pa.table(table.scan())


def open_present(spec: TableSpec) -> DeltaTable:
    """A handle at the newest version. Raises TableMissingError, and OutageError if the store does not answer."""
    try:
        return at_once(spec, lambda: open_table(spec))
    except OutageError as error:
        if isinstance(error.__cause__, TableNotFoundError):
            raise TableMissingError(
                f"there is no table {spec.uri}: `itel-cabinet tables create` makes it, and the jobs fill it"
            ) from None
        raise


def _at_version(spec: TableSpec, newest: int, version: int) -> DeltaTable:
    if version > newest:
        raise OutageError(f"{spec}: there is no version {version} yet, the newest is {newest}")
    try:
        return open_table(spec, version)
    except (DeltaError, OSError) as error:
        raise OutageError(
            f"{spec}: version {version} can no longer be read ({error_text(spec, error)[:120]}); "
            "`itel-cabinet query history` tells which versions there are"
        ) from None


def _history(table: DeltaTable) -> pa.Table:
    entries = table.history()
    return pa.table(
        {
            "version": pa.array([entry["version"] for entry in entries], pa.int64()),
            "timestamp": pa.array([entry.get("timestamp") for entry in entries], pa.int64()).cast(
                pa.timestamp("ms", tz="UTC")
            ),
            "operation": pa.array([entry.get("operation") for entry in entries], pa.string()),
        }
    )


@contextmanager
def _reading(specs: Mapping[str, TableSpec]) -> Iterator[None]:
    """What goes wrong in reading the tables, as a OutageError."""
    spec = specs[TRACKING]
    root = spec.uri.rpartition("/")[0]
    try:
        yield
    except duckdb.BinderException as error:
        reason = error_text(spec, error).partition(" Candidate bindings")[0]
        raise OutageError(f"{root}: the tables are not as the jobs make them ({reason})") from None
    except (duckdb.Error, DeltaError, OSError, pa.ArrowException) as error:
        # DuckDB's words for what came from below it; a vacuum may just have taken a file away.
        below = OSError(re.sub(r"^.*?reading the stream registered as '\w+' failed: (\w+: )?", "", str(error)))
        raise OutageError(f"{root}: reading failed, try again: {error_text(spec, below)}") from None
