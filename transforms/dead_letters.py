"""What is kept of a record that could not go on: the format of the error topics.

A dead letter holds the original bytes and their coordinates, so that it can be replayed, and why the record failed. It
fits into a message of the size allowed, however large the record. Beside the dead letters stand notes of those that
were replayed. All functions are pure and thread-safe.
"""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from itel_cabinet.transforms.records import Failure, Record
from itel_cabinet.transforms.replays import Edit, read_edit
from itel_cabinet.transforms.trace_context import trace_message

__all__ = [
    "DeadLetter",
    "DeadLetterFormatError",
    "ReplayNote",
    "decode_dead_letter",
    "decode_replay_note",
    "encode_dead_letter",
    "encode_replay_note",
    "shorten",
]

_ERROR_CHARACTERS = 500
_NAME_CHARACTERS = 250
_REPLAYED_FOR = "x-replayed-for"
_REPLAYED_TO = "x-replayed-to"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class DeadLetterFormatError(ValueError):
    """Not a dead letter; names the fields at fault, never their values."""


def _base64(text: str) -> str:
    base64.b64decode(text, validate=True)
    return text


_Base64 = Annotated[str, AfterValidator(_base64)]


class DeadLetter(BaseModel):
    """One record of an error topic, version 1 of the format.

    ``key``, ``value`` and the values of ``headers`` are standard base64 of the original bytes, or null where the record
    had none. What would make the dead letter too large is left out, first the value, then the headers, then the key,
    and marked as omitted; ``value_size`` (bytes) and ``value_sha256`` (hex) are always there, and the original can be
    read by its coordinates. ``timestamp`` is Kafka's, null where the record had none. ``group`` is the consumer group,
    ``contract`` the name, version and hash of the contract, where the letter says so.
    """

    model_config = ConfigDict(frozen=True)

    version: Literal[1] = 1
    topic: str
    topic_id: str
    partition: Annotated[int, Field(ge=0, lt=2**31)]
    offset: Annotated[int, Field(ge=0, lt=2**63)]
    timestamp: AwareDatetime | None
    key: _Base64 | None
    value: _Base64 | None
    headers: list[tuple[str, _Base64 | None]]
    key_omitted: bool = False
    value_omitted: bool = False
    headers_omitted: bool = False
    value_size: int
    value_sha256: str
    stage: str
    error_class: str
    error: str
    attempts: int
    first_at: AwareDatetime
    last_at: AwareDatetime
    job: str
    group: str
    contract: str | None = None

    @model_serializer(mode="wrap")
    def _without_an_unknown_contract(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = serialize(self)
        if self.contract is None:
            content.pop("contract", None)
        return content

    @property
    def coordinates(self) -> str:
        """``topic_id/partition/offset`` of the original; the key of the dead letter."""
        return f"{self.topic_id}/{self.partition}/{self.offset}"

    def record(self) -> Record:
        """The original record. Parts that were omitted are None or empty: read those by the coordinates."""
        return Record(
            topic=self.topic,
            topic_id=self.topic_id,
            partition=self.partition,
            offset=self.offset,
            timestamp_ms=-1 if self.timestamp is None else round((self.timestamp - _EPOCH) / timedelta(milliseconds=1)),
            key=_decoded(self.key),
            value=_decoded(self.value),
            headers=tuple((name, _decoded(value)) for name, value in self.headers),
        )


@dataclass(frozen=True, slots=True)
class ReplayNote:
    """A note on an error topic: the dead letter of these coordinates and this group has been replayed, ``to`` the same
    group or another, its value put right by an ``edit`` or as it was."""

    coordinates: str
    group: str
    to: str
    edit: Edit | None = None


def encode_replay_note(
    letter: DeadLetter, now: float, *, to: str | None = None, edit: Edit | None = None
) -> tuple[bytes, None, tuple[tuple[str, bytes], ...]]:
    """Key, value and headers of the note that a letter was replayed ``to`` a group at ``now`` (epoch seconds).

    It has the letter's key and no value: a tombstone for those who keep a copy of an error topic by key.
    """
    at = datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds")
    elsewhere = ((_REPLAYED_TO, to.encode()),) if to not in (None, letter.group) else ()
    headers = (
        (_REPLAYED_FOR, letter.group.encode()),
        ("x-replayed-at", at.encode()),
        *elsewhere,
        *(edit.headers if edit else ()),
    )
    return letter.coordinates.encode(), None, headers


def decode_replay_note(record: Record) -> ReplayNote | None:
    """The note in a record of an error topic; None for any other record."""
    if record.value is not None or record.key is None:
        return None
    headers = dict(record.headers)
    group = headers.get(_REPLAYED_FOR)
    if group is None:
        return None
    letter_of = group.decode(errors="replace")
    to = (headers.get(_REPLAYED_TO) or group).decode(errors="replace")
    return ReplayNote(record.key.decode(errors="replace"), letter_of, to, read_edit(record.headers))


def encode_dead_letter(
    failure: Failure, *, job: str, group: str, contract: str | None = None, max_bytes: int = 900_000
) -> tuple[bytes, bytes, tuple[tuple[str, bytes], ...]]:
    """Key, value and headers of a failure's dead letter.

    The key is the record's coordinates, so that a repeat shows. The value is JSON of at most ``max_bytes`` (about 5,000
    are always needed). ``error`` becomes one line of at most 500 characters. The headers have the same in short,
    and the record's trace context.
    """
    record = failure.record
    original = record.value or b""
    letter = DeadLetter(
        topic=record.topic,
        topic_id=record.topic_id,
        partition=record.partition,
        offset=record.offset,
        timestamp=_kafka_time(record.timestamp_ms),
        key=_encoded(record.key),
        value=_encoded(record.value),
        headers=[(_unicode(name), _encoded(value)) for name, value in record.headers],
        value_size=len(original),
        value_sha256=hashlib.sha256(original).hexdigest(),
        stage=shorten(failure.stage, _NAME_CHARACTERS),
        error_class=shorten(failure.error_class, _NAME_CHARACTERS),
        error=shorten(failure.error, _ERROR_CHARACTERS),
        attempts=failure.attempts,
        first_at=datetime.fromtimestamp(failure.first_at, UTC),
        last_at=datetime.fromtimestamp(failure.last_at, UTC),
        job=shorten(job, _NAME_CHARACTERS),
        group=shorten(group, _NAME_CHARACTERS),
        contract=None if contract is None else shorten(contract, _NAME_CHARACTERS),
    )
    value = _bounded(letter, max_bytes)
    headers = (
        ("x-stage", letter.stage),
        ("x-error-class", letter.error_class),
        ("x-error", letter.error),
        ("x-topic", letter.topic),
        ("x-topic-id", letter.topic_id),
        ("x-partition", str(letter.partition)),
        ("x-offset", str(letter.offset)),
        ("x-attempts", str(letter.attempts)),
        ("x-job", letter.job),
        ("x-group", letter.group),
        *([] if letter.contract is None else [("x-contract", letter.contract)]),
    )
    encoded = tuple((name, text.encode()) for name, text in headers)
    return letter.coordinates.encode(), value, encoded + trace_message(record, "dead letter")


def decode_dead_letter(value: bytes) -> DeadLetter:
    """The dead letter in a message of an error topic; unknown keys are ignored. Raises DeadLetterFormatError."""
    try:
        return DeadLetter.model_validate_json(value)
    except ValidationError as error:
        fields = sorted({str(problem["loc"][0]) for problem in error.errors(include_input=False) if problem["loc"]})
        reason = f"missing or wrong: {', '.join(fields)}" if fields else "not a JSON object"
        raise DeadLetterFormatError(f"not a dead letter of version 1: {reason}") from None


def shorten(text: str, limit: int) -> str:
    """``text`` on one line of at most ``limit`` characters, without control characters and lone surrogates."""
    line = " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", " ", text[: 4 * limit]).split())
    return line if len(line) <= limit else f"{line[: limit - 3]}..."


def _bounded(letter: DeadLetter, max_bytes: int) -> bytes:
    content = letter.model_dump_json().encode()
    for part, nothing in (("value", None), ("headers", []), ("key", None)):
        if len(content) <= max_bytes:
            break
        letter = letter.model_copy(update={part: nothing, f"{part}_omitted": getattr(letter, part) != nothing})
        content = letter.model_dump_json().encode()
    return content


def _encoded(content: bytes | None) -> str | None:
    return None if content is None else base64.b64encode(content).decode()


def _decoded(text: str | None) -> bytes | None:
    return None if text is None else base64.b64decode(text)


def _unicode(text: str) -> str:
    return text.encode(errors="replace").decode()


def _kafka_time(timestamp_ms: int) -> datetime | None:
    # Kafka says -1 for none, and a producer may write any 64-bit number.
    try:
        return _EPOCH + timedelta(milliseconds=timestamp_ms) if timestamp_ms >= 0 else None
    except OverflowError:
        return None
