"""A contract tried on every answer that ClaimX has given: `itel-cabinet contract backtest`. Nothing is called or
written."""

from __future__ import annotations

import json
import os
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from typing import Any

import pyarrow as pa

from itel_cabinet.io.delta import TableSpec
from itel_cabinet.pipeline.operate.history import details_of, event_of, read_answers
from itel_cabinet.transforms.contracts import Body, Contract, Refusal
from itel_cabinet.transforms.forms import WrongShapeError
from itel_cabinet.transforms.submissions import scrub_texts

__all__ = ["Tally", "backtest"]

_EXAMPLES = 3
_CHARACTERS = 80
_ROWS_A_TURN = 500

_Piece = tuple[pa.RecordBatch, slice]


@dataclass
class Found:
    """How often something was found, and in which assignments first."""

    count: int = 0
    examples: list[Any] = field(default_factory=list)

    def add(self, example: Callable[[], Any]) -> None:
        """Count once more; ``example`` is only asked for one while there are few."""
        self.count += 1
        if len(self.examples) < _EXAMPLES:
            self.examples.append(example())

    def merge(self, other: Found) -> None:
        self.count += other.count
        self.examples += other.examples[: _EXAMPLES - len(self.examples)]


@dataclass
class Tally:
    """What became of the answers.

    ``ends`` counts ``valid``, ``held`` (by the gate), ``invalid``, ``without_form`` and ``unreadable``, and against
    another contract ``only_new`` and ``only_old``: those that only one of the two submits. ``invalid`` is by error
    class and field, ``questions`` the unknown ones by group and text, ``changes`` by field of the body.
    """

    ends: Counter[str] = field(default_factory=Counter)
    invalid: dict[tuple[str, str], Found] = field(default_factory=dict)
    questions: dict[str, Found] = field(default_factory=dict)
    changes: dict[str, Found] = field(default_factory=dict)
    other_tasks: Counter[int] = field(default_factory=Counter)
    peak_megabytes: float = 0.0

    def merge(self, other: Tally) -> None:
        """Take in another one's counts."""
        self.ends += other.ends
        self.other_tasks += other.other_tasks
        _merge(self.invalid, other.invalid)
        _merge(self.questions, other.questions)
        _merge(self.changes, other.changes)
        self.peak_megabytes = max(self.peak_megabytes, other.peak_megabytes)

    @property
    def answers(self) -> int:
        return sum(self.ends[end] for end in ("valid", "held", "invalid", "without_form", "unreadable"))

    def as_json(self) -> dict[str, Any]:
        """Everything, the most frequent first."""
        return {
            "answers": self.answers,
            **{end: self.ends[end] for end in ("valid", "held", "invalid", "without_form", "unreadable")},
            "invalid_by_field": [
                {"error_class": error_class, "field": name, **_found(found)}
                for (error_class, name), found in _ranked(self.invalid)
            ],
            "unknown_questions": [{"question": text, **_found(found)} for text, found in _ranked(self.questions)],
            "other_tasks": {str(task): count for task, count in sorted(self.other_tasks.items())},
        }

    def differences(self) -> dict[str, Any]:
        """What the two contracts do not do alike."""
        return {
            "only_new": self.ends["only_new"],
            "only_old": self.ends["only_old"],
            "changed_fields": [{"field": name, **_found(found)} for name, found in _ranked(self.changes)],
        }


def _merge(mine: dict[Any, Found], others: Mapping[Any, Found]) -> None:
    for key, found in others.items():
        mine.setdefault(key, Found()).merge(found)


def _ranked(found: Mapping[Any, Found]) -> list[tuple[Any, Found]]:
    return sorted(found.items(), key=lambda item: (-item[1].count, item[0]))


def _found(found: Found) -> dict[str, Any]:
    return {"count": found.count, "examples": found.examples}


def backtest(
    spec: TableSpec,
    new: Contract,
    old: Contract | None = None,
    *,
    processes: int | None = None,
    sample: int | None = None,
    advance: Callable[[int], None] = lambda _: None,
    **within: Any,
) -> dict[str, Any]:
    """The whole history through a contract, as one JSON object; `docs/going-live.md` explains it.

    Args:
        spec: the tracking table's.
        new: the contract to try.
        old: the one whose bodies are compared with.
        processes: work side by side in so many; as many as there are cores unless given.
        sample: only about so many answers, evenly spread.
        advance: is called with the number of answers that are done since the last call.
        within: ``since`` and ``until``, as :func:`read_answers` takes them.
    """
    began = time.monotonic()
    tally = Tally()
    workers = processes or os.cpu_count() or 1
    stride = 1
    if sample is not None:
        stride = max(1, sum(len(rows) for rows in read_answers(spec, **within)) // sample)
    chunks = _chunks(read_answers(spec, **within), stride)
    for part in _side_by_side(chunks, new, old, workers):
        tally.merge(part)
        advance(part.answers)
    seconds = time.monotonic() - began
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    result = {"contract": new.label, "sha256": new.sha256, **tally.as_json()}
    if old is not None:
        result |= {"against": old.label, "against_sha256": old.sha256, **tally.differences()}
    return result | {
        "seconds": round(seconds, 1),
        "forms_per_second": round(tally.answers / seconds) if seconds else 0,
        "processes": workers,
        "memory_mb": round(own),
        "memory_mb_per_process": round(tally.peak_megabytes),
    }


def _chunks(batches: Iterable[pa.RecordBatch], stride: int) -> Iterator[_Piece]:
    """The rows in pieces, and which of each piece are tried: every ``stride``-th."""
    first = 0
    for batch in batches:
        for start in range(0, len(batch), _ROWS_A_TURN):
            # As plain text: views would be sent with the whole that they lie in.
            plain = [f.with_type(pa.string()) if f.type == pa.string_view() else f for f in batch.schema]
            piece = batch.slice(start, _ROWS_A_TURN).cast(pa.schema(plain))
            yield piece, slice(first, None, stride)
            first = (first - len(piece)) % stride


def _side_by_side(chunks: Iterator[_Piece], new: Contract, old: Contract | None, workers: int) -> Iterator[Tally]:
    first = next(chunks, None)
    if first is None:
        return
    second = next(chunks, None)
    if workers == 1 or second is None:
        yield try_rows(first, new, old)
        for rows in [second] if second else []:
            yield try_rows(rows, new, old)
        for rows in chunks:
            yield try_rows(rows, new, old)
        return
    # Not forked: delta-rs has threads of its own.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        running: set[Future[Tally]] = {pool.submit(try_rows, rows, new, old) for rows in (first, second)}
        for rows in chunks:
            running.add(pool.submit(try_rows, rows, new, old))
            if len(running) > 2 * workers:
                ended, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (one.result() for one in ended)
        for one in running:
            yield one.result()


def try_rows(piece: _Piece, new: Contract, old: Contract | None) -> Tally:
    """What becomes of these answers."""
    tally = Tally()
    rows, tried = piece
    for row in rows.to_pylist()[tried]:
        _try_row(row, new, old, tally)
    tally.peak_megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return tally


def _try_row(row: Mapping[str, Any], new: Contract, old: Contract | None, tally: Tally) -> None:
    event, assignment = event_of(row), row["assignment_id"]
    if event.task_id not in new.task_ids:
        tally.other_tasks[event.task_id] += 1
    try:
        details = details_of(row)
    except WrongShapeError:
        tally.ends["unreadable"] += 1
        return
    if not details.has_form:
        tally.ends["without_form"] += 1
        return
    form = new.read_form(details)
    for text in form.unknown_questions:
        tally.questions.setdefault(text[:_CHARACTERS], Found()).add(lambda: assignment)
    body = new.build(details, form, event) if new.passes(details, form, event) else None
    if isinstance(body, Body):
        tally.ends["valid"] += 1
    elif body is None:
        tally.ends["held"] += 1
    else:
        tally.ends["invalid"] += 1
        for field_name in _fields(body):
            tally.invalid.setdefault((body.error_class, field_name), Found()).add(lambda: assignment)
    if old is None:
        return
    former_form = old.read_form(details)
    former = old.build(details, former_form, event) if old.passes(details, former_form, event) else None
    if isinstance(body, Body) and isinstance(former, Body):
        if body.payload != former.payload:
            people = (*body.personal, *former.personal)
            for place, before, after in _differences(json.loads(former.payload), json.loads(body.payload), ""):
                example = partial(_example, assignment, before, after, people)
                tally.changes.setdefault(place, Found()).add(example)
    elif isinstance(body, Body):
        tally.ends["only_new"] += 1
    elif isinstance(former, Body):
        tally.ends["only_old"] += 1


def _fields(refusal: Refusal) -> list[str]:
    """What a refusal names, one by one; a form's changes count as one."""
    said = refusal.error.partition(": ")[2]
    match refusal.error_class:
        case "incomplete":
            return said.split(", ")
        case "invalid_payload":
            return said.split("; ")
    return [said[:_CHARACTERS]]


_ABSENT = object()


def _differences(before: Any, after: Any, place: str) -> Iterator[tuple[str, Any, Any]]:
    """Where two bodies differ; the items of a list share one place."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name in dict.fromkeys((*before, *after)):
            yield from _differences(before.get(name, _ABSENT), after.get(name, _ABSENT), f"{place}.{name}".lstrip("."))
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        found: dict[str, tuple[Any, Any]] = {}
        for one, other in zip(before, after, strict=True):
            for inner, old, new in _differences(one, other, f"{place}[]"):
                found.setdefault(inner, (old, new))
        yield from ((inner, old, new) for inner, (old, new) in found.items())
    elif before != after or type(before) is not type(after):
        yield place, before, after


def _example(assignment: int, before: Any, after: Any, people: Sequence[str]) -> dict[str, Any]:
    return {"assignment_id": assignment, "old": _shown(before, people), "new": _shown(after, people)}


def _shown(value: Any, people: Iterable[str]) -> str:
    if value is _ABSENT:
        return "(not there)"
    return scrub_texts(json.dumps(value, ensure_ascii=False), people)[:_CHARACTERS]
