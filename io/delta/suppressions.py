"""A list of what must not be written (again), as salted hashes: what a table was rid of stays out of it.

The list is a small Delta table of its own. An entry is a kind (such as ``assignment``) and the HMAC-SHA256 of kind and
id; the salt is made with the table and stands in its description, so that both are there at once or not at all.

That no writer misses an entry rests on the tables that are written, not on time: an eraser puts the list's version into
the properties of each table (:mod:`itel_cabinet.io.delta.erasure`). A commit that was decided on before that fails, as
any does whose table has changed its metadata. It is decided again, by the list at that version or a later one.
"""

from __future__ import annotations

import functools
import hmac
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable, write_deltalake
from deltalake.exceptions import TableNotFoundError

from itel_cabinet.io.delta.inspect import is_outage
from itel_cabinet.io.delta.spec import Pairs, SuppressionList, TableError
from itel_cabinet.io.worker import describe_error, once_per_process, retry_outage

__all__ = ["ANNOUNCED", "Suppressions", "get_suppressions"]

ANNOUNCED = "itel-cabinet.suppressions"
"""The property of a table that holds the version of the list that its writers must know."""

_SCHEMA = pa.schema(
    [
        pa.field("kind", pa.string(), nullable=False),
        pa.field("hash", pa.string(), nullable=False),
        pa.field("suppressed_at", pa.timestamp("us", tz="UTC"), nullable=False),
    ]
)
_DESCRIPTION = "Salted hashes of what was erased and must not be written again. Salt: "

Id = tuple[str, str | int]


@dataclass
class Suppressions:
    """The list as this process knows it. Thread-safe; made once for its place by :func:`get_suppressions`.

    ``clock`` is monotonic, in seconds.
    """

    place: SuppressionList
    clock: Callable[[], float] = time.monotonic
    version: int = field(default=-1, init=False)
    _handle: DeltaTable | None = field(default=None, init=False, repr=False)
    _salt: bytes = field(default=b"", init=False, repr=False)
    _hashes: dict[tuple[str, str], datetime] = field(default_factory=dict, init=False, repr=False)
    _looked_at: float = field(default=float("-inf"), init=False)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._hashes)

    def refresh(self, *, at_least: int = -1, max_age: float = 0.0) -> None:
        """Read what was added, unless that was done within ``max_age`` seconds.

        Raises what delta-rs raises, and TableError if the list is older than a table's writers must know it.
        """
        with self._lock:
            if self.version >= at_least and self.clock() - self._looked_at < max_age:
                return
            self._read()
            self._looked_at = self.clock()
            if self.version < at_least:
                found = "is gone" if self.version < 0 else f"is at version {self.version}"
                raise TableError(
                    f"the list of what was erased, {self.place.uri}, {found}, and tables know it at version "
                    f"{at_least}: bring it back from a backup, or what was erased would be written again"
                )

    def refresh_patiently(self, *, max_age: float, seconds: float) -> None:
        """As :meth:`refresh`, waiting so long for a store that is away. Raises OutageError and TableError."""
        retry_outage(
            lambda: self.refresh(max_age=max_age),
            what=f"the list of what was erased, {self.place.uri},",
            seconds=seconds,
            is_outage=is_outage,
            describe=functools.partial(_describe, self.place),
        )

    def find(self, kind: str, ids: Iterable[str | int | None]) -> set[str | int]:
        """Those of ``ids`` that are on the list, as it was read last."""
        if not self._hashes:
            return set()
        return {one for one in set(ids) if one is not None and (kind, self._hash(kind, one)) in self._hashes}

    def since(self, kind: str, one: str | int) -> datetime | None:
        """When an id was put on the list; None if it is not there."""
        return self._hashes.get((kind, self._hash(kind, one)))

    def keep_others(self, rows: pa.Table) -> pa.Table:
        """The rows without those that are on the list by one of the place's columns; the order is kept."""
        found = {name: self.find(kind, rows[name].unique().to_pylist()) for kind, name in self.place.ids}
        if not any(found.values()):
            return rows
        listed = [pc.is_in(rows[name], pa.array([*ids], type=rows[name].type)) for name, ids in found.items()]
        return rows.filter(pc.invert(functools.reduce(pc.or_, listed)))

    def add(self, ids: Sequence[Id], now: datetime) -> int:
        """Put ids on the list, which is made where it is missing; how many were new. Idempotent; :attr:`version` is
        then one that has them all. Raises what delta-rs raises.
        """
        options = dict(self.place.storage_options)
        DeltaTable.create(
            self.place.uri,
            schema=_SCHEMA,
            mode="ignore",
            description=_DESCRIPTION + secrets.token_hex(32),
            storage_options=options,
        )
        self.refresh()
        new = [one for one in dict.fromkeys(ids) if (one[0], self._hash(*one)) not in self._hashes]
        if new:
            columns = [[kind for kind, _ in new], [self._hash(*one) for one in new], [now] * len(new)]
            write_deltalake(self.place.uri, pa.table(columns, schema=_SCHEMA), mode="append", storage_options=options)
            self.refresh()
        return len(new)

    def _hash(self, kind: str, one: str | int) -> str:
        return hmac.digest(self._salt, f"{kind}\0{one}".encode(errors="surrogatepass"), "sha256").hex()

    def _read(self) -> None:
        if self._handle is None:
            try:
                self._handle = DeltaTable(self.place.uri, storage_options=dict(self.place.storage_options))
            except TableNotFoundError:
                return
        table = self._handle
        try:
            table.update_incremental()
            if table.version() == self.version:
                return
            self._salt = bytes.fromhex(_read_salt(self.place, table))
            rows = pa.table(table.scan(columns=_SCHEMA.names))
        except BaseException:
            self._handle = None  # opened again by the next try, with fresh credentials
            raise
        columns = (rows[name].to_pylist() for name in _SCHEMA.names)
        entries = sorted(zip(*columns, strict=True), key=lambda one: one[2], reverse=True)
        self._hashes = {(kind, digest): at for kind, digest, at in entries}  # of one twice the first counts
        self.version = table.version()


def _read_salt(place: SuppressionList, table: DeltaTable) -> str:
    found = re.fullmatch(re.escape(_DESCRIPTION) + "([0-9a-f]{64})", table.metadata().description or "")
    if found is None:
        raise TableError(f"{place.uri} is no list of what was erased: its description has no salt; move it away")
    return found[1]


def _describe(place: SuppressionList, error: Exception) -> str:
    text = describe_error(error)
    for value in dict(place.storage_options).values():
        text = text.replace(value, "***") if len(value) > 3 else text
    return text


@once_per_process
def get_suppressions(uri: str, storage_options: Pairs, ids: tuple[tuple[str, str], ...]) -> Suppressions:
    """This process's one list at a place; nothing is read before the first refresh."""
    return Suppressions(SuppressionList(uri, ids, storage_options))
