"""The W3C trace context of a record: read from its headers, or made from its coordinates, and given to what follows.

Every call and message that a record causes is a child in the record's trace: the trace id stays, the span id is its
own. Nothing here is random, so a record that is read again, after a crash or by another job, has the same ids. All
functions are pure and thread-safe, and are called only where a context is sent: a record that causes nothing costs
nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from hashlib import blake2b

from itel_cabinet.transforms.records import Record

__all__ = [
    "TRACEPARENT",
    "TRACESTATE",
    "TRACE_HEADERS",
    "TraceContext",
    "make_trace",
    "parse_traceparent",
    "parse_tracestate",
    "read_own_trace",
    "read_trace",
    "trace_call",
    "trace_message",
]

TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"
TRACE_HEADERS = frozenset({TRACEPARENT, TRACESTATE})

_SAMPLED, _RANDOM = 1, 2
_LENGTH = 55  # of version 00; later versions may only append to it
_TRACEPARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_MEMBER = re.compile(
    r"([a-z0-9][a-z0-9_*/@-]{0,255})=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
)
_MOST_MEMBERS = 32
_STATE_CHARACTERS = 512  # what everybody must pass on; more is cut at a member's end
_MOST_STATE_BYTES = 32 * 1024  # more is not looked at


@dataclass(frozen=True, slots=True)
class TraceContext:
    """Whose trace something belongs to, and what caused it there.

    ``trace_id`` has 32 hexadecimal digits, ``parent_id`` 16, neither all zeros; of ``flags`` only the bits for sampled
    (1) and for a random trace id (2). ``state`` is ``tracestate`` as it is passed on, empty without one.
    """

    trace_id: str
    parent_id: str
    flags: int = _SAMPLED
    state: str = ""

    @property
    def traceparent(self) -> str:
        """The header's value, version 00."""
        return f"00-{self.trace_id}-{self.parent_id}-{self.flags:02x}"

    @property
    def headers(self) -> dict[str, str]:
        """The one or two headers that carry it."""
        return {TRACEPARENT: self.traceparent, **({TRACESTATE: self.state} if self.state else {})}

    def child(self, name: str) -> TraceContext:
        """The context of what this one causes: of the same ``name`` always the same."""
        parent_id = _digits(f"{self.trace_id} {self.parent_id} {name}", 8)
        return TraceContext(self.trace_id, parent_id, self.flags, self.state)


def parse_traceparent(value: bytes | None) -> TraceContext | None:
    """The context in a header's value; None for what W3C calls invalid. Of a version after 00 the first 55 characters
    count, and of its flags the one for sampled."""
    found = _TRACEPARENT.match(value) if value is not None else None
    if value is None or found is None:
        return None
    version, trace_id, parent_id, flags = (part.decode() for part in found.groups())
    if version == "ff" or not trace_id.strip("0") or not parent_id.strip("0"):
        return None
    if version == "00":
        return (
            None if len(value) > _LENGTH else TraceContext(trace_id, parent_id, int(flags, 16) & (_SAMPLED | _RANDOM))
        )
    if value[_LENGTH : _LENGTH + 1] not in (b"", b"-"):
        return None
    return TraceContext(trace_id, parent_id, int(flags, 16) & _SAMPLED)


def parse_tracestate(values: Iterable[bytes]) -> str:
    """The vendors' list, headers of the name joined in their order; empty if any member of it is malformed or given
    twice. Over 512 characters its last members are left out."""
    content = b",".join(values)
    if len(content) > _MOST_STATE_BYTES:
        return ""
    members = [text for part in content.decode("latin-1").split(",") if (text := part.strip(" \t"))]
    found = [_MEMBER.fullmatch(member) for member in members]
    keys = {match[1] for match in found if match}
    if len(keys) != len(members) or len(members) > _MOST_MEMBERS:
        return ""
    while len(state := ",".join(members)) > _STATE_CHARACTERS:
        members.pop()
    return state


def make_trace(coordinates: str) -> TraceContext:
    """A context for a record that has none, from its coordinates: always the same. Sampled, since logs and ledger tell
    of it."""
    return TraceContext(_digits(f"trace {coordinates}", 16), _digits(f"span {coordinates}", 8))


def read_own_trace(record: Record) -> TraceContext | None:
    """What a record's headers say; None if there is no ``traceparent``, more than one, or a malformed one, and then its
    ``tracestate`` means nothing."""
    if not record.headers:
        return None
    parents = [value for name, value in record.headers if name.lower() == TRACEPARENT]
    context = parse_traceparent(parents[0]) if len(parents) == 1 else None
    if context is None:
        return None
    states = [value for name, value in record.headers if value and name.lower() == TRACESTATE]
    return replace(context, state=parse_tracestate(states)) if states else context


def read_trace(record: Record) -> TraceContext:
    """A record's context: its own, or one made from its coordinates."""
    return read_own_trace(record) or make_trace(record.coordinates)


def trace_call(record: Record, name: str) -> dict[str, str]:
    """The HTTP headers of a call that a record causes; ``name`` tells its calls apart."""
    return _cause(record, name).headers


def trace_message(record: Record, name: str) -> tuple[tuple[str, bytes], ...]:
    """The Kafka headers of a message that a record causes; ``name`` tells its messages apart."""
    return tuple((header, value.encode()) for header, value in _cause(record, name).headers.items())


def _cause(record: Record, name: str) -> TraceContext:
    # Replays and the jobs' own copies of an event share its context; their calls are not each other's.
    return read_trace(record).child(f"{record.coordinates} {name}")


def _digits(text: str, size: int) -> str:
    """So many bytes of a text's hash, in hexadecimal digits, never all zeros."""
    digest = blake2b(text.encode(errors="replace"), digest_size=size)
    return digest.hexdigest() if any(digest.digest()) else f"{1:0{2 * size}x}"
