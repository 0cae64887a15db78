"""A simulator of the iTel Cabinet API: accepts submissions, checks them against the JSON Schema, remembers
Idempotency-Keys.

``python -m itel_cabinet.local.simulators itel --port 8082 --journal FOLDER`` runs one; ``GET /_sim/submissions`` tells
what it has received.
"""

from __future__ import annotations

import argparse
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, unquote

import jsonschema_rs

from itel_cabinet.local.simulators.oauth2 import add_client_option, serve_with_clients
from itel_cabinet.local.simulators.simulator import Request, Response, Simulator
from itel_cabinet.transforms.contracts import SHIPPED, Contract, compile_contract, load_shipped, shipped_text

__all__ = ["ItelSimulator", "Submission", "main"]

_REASONS_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Submission:
    """An accepted payload; ``received_at`` is when it first came (epoch seconds), ``times`` how often the key came."""

    idempotency_key: str
    assignment_id: int
    body: Mapping[str, Any]
    received_at: float
    times: int


class ItelSimulator(Simulator):
    """The iTel API as a contract has it: its path, method, key, schema, and what it calls what it has made.

    A body that is not JSON or not as ``schema`` (the contract's, unless given) demands is refused with 400 and reasons
    (which name places, not values). A new key is answered 201 with the contract's ``created_id``; a known one, with any
    body, 200 ``duplicate``, or if ``on_repeat`` is ``"exists"`` 400 ``already exists``, which is what it is by itself
    where the key is a field of the body. Posted to the batch's path, ``{"tasks": [...], "batch_size": n}`` is accepted
    whole, or refused if one of its tasks is not valid; its tasks are remembered under the batch's key, as
    ``<key>/<number>`` from 0. ``headers`` must come with each call, with these values. Where the simulator must not be
    what is measured, ``schema={}`` accepts any object.

    ``journal`` is a folder where each accepted body is written, for people to read, as ``<assignment id>-<key>.json``
    (the key percent-encoded); with ``remember`` the submissions found there at the start count as received.

    ``overlaps`` counts the calls that came in while another one of the same assignment was still being answered. (A
    client that gives up on a slow answer and tries again overlaps too; one that gives up on ``hang`` does not.)
    """

    def __init__(
        self,
        *,
        port: int | None = None,
        token: str | None = None,
        seed: int = 0,
        clock: Callable[[], float] = time.time,
        contract: Contract | None = None,
        paths: Sequence[str] = (),
        batch_paths: Sequence[str] = (),
        key_header: str | None = None,
        headers: Mapping[str, str] | None = None,
        on_repeat: Literal["duplicate", "exists"] = "duplicate",
        schema: Mapping[str, Any] | None = None,
        journal: Path | None = None,
        remember: bool = False,
    ) -> None:
        super().__init__(port=port, token=token, seed=seed, clock=clock)
        contract = load_shipped() if contract is None else contract
        request = contract.file.request
        batch = request.batch.path if request.batch else "/api/v1/tasks/batch"
        self.contract = contract
        self.paths = tuple(map(_path_pattern, paths or (request.path,)))
        self.batch_paths = tuple(map(_path_pattern, batch_paths or (batch,)))
        self.key_header = key_header or request.key.header or ""
        self.headers = dict(headers or {})
        self.on_repeat = on_repeat
        self.overlaps = 0
        self.journal = journal
        self._validator = jsonschema_rs.validator_for(contract.file.body_schema if schema is None else dict(schema))
        self._assignment_field = _find_assignment_field(contract)
        self._submissions: dict[str, Submission] = {}
        self._in_flight: Counter[int] = Counter()
        self._ledger = threading.Lock()
        if journal is not None:
            journal.mkdir(parents=True, exist_ok=True)
            if remember:
                self._submissions.update((found.idempotency_key, found) for found in _journalled(journal))

    def submissions(self) -> list[Submission]:
        """What was accepted, in the order of arrival."""
        with self._ledger:
            return list(self._submissions.values())

    def answer(self, request: Request) -> Response:
        """See the class."""
        batch = any(pattern.fullmatch(request.path) for pattern in self.batch_paths)
        if not batch and not any(pattern.fullmatch(request.path) for pattern in self.paths):
            return Response.refusal(404, f"no such path: {request.path}")
        method = "POST" if batch else self.contract.file.request.method
        if request.method != method:
            return Response.refusal(405, f"{request.method} is not supported", Allow=method)
        wrong = [name for name, value in self.headers.items() if request.headers.get(name) != value]
        if wrong:
            return Response.refusal(401, f"the header {wrong[0]} is missing, or has another value")
        key_field = self.contract.file.request.key.body
        key = request.headers.get(self.key_header) if self.key_header else None
        if not key and not key_field:
            return Response.refusal(400, f"the header {self.key_header} is missing")
        try:
            body = request.json()
        except ValueError:
            return Response.refusal(400, "the body is not JSON")
        if batch and not _is_batch(body):
            return Response.refusal(400, "the body is not a list of tasks with its batch_size")
        tasks = body["tasks"] if batch else [body]
        problems = [_reason(problem, index if batch else None) for index, task in enumerate(tasks)
                    for problem in self._validator.iter_errors(task)]  # fmt: skip
        if problems:
            return Response.of(
                400, {"error": "the submission is not valid", "reasons": sorted(problems)[:_REASONS_SHOWN]}
            )
        if not batch:
            return self._accept(str(key or body[key_field]), body)
        answers = [self._accept(f"{key}/{index}", task) for index, task in enumerate(tasks)]
        return Response.of(max(answer.status for answer in answers), {"tasks": [json.loads(a.body) for a in answers]})

    def control(self, request: Request) -> Response | None:
        """``GET /_sim/submissions``: all of them, and the overlaps."""
        if (request.method, request.path) == ("GET", "/_sim/submissions"):
            return Response.of(
                200, {"submissions": [asdict(found) for found in self.submissions()], "overlaps": self.overlaps}
            )
        return None

    @contextmanager
    def handling(self, request: Request) -> Iterator[None]:
        """Count the calls of one assignment that overlap."""
        assignments = self._assignment_ids(request.body)
        with self._ledger:
            for assignment_id in assignments:
                self.overlaps += self._in_flight[assignment_id] > 0
                self._in_flight[assignment_id] += 1
        try:
            yield
        finally:
            with self._ledger:
                self._in_flight.subtract(assignments)

    def _accept(self, key: str, body: Mapping[str, Any]) -> Response:
        with self._ledger:
            known = self._submissions.get(key)
            if known is None:
                submission = Submission(key, self._assignment_of(body) or 0, body, self.clock(), 1)
                if self.journal is not None:
                    _write(self.journal, submission)
                self._submissions[key] = submission
            else:
                self._submissions[key] = submission = replace(known, times=known.times + 1)
        request, created = self.contract.file.request, self.contract.file.answers.created_id
        task_id = f"itel-{submission.assignment_id}-{key[:12]}"
        if known is None:
            return Response.of(201, {created: task_id, "status": "accepted"})
        if request.key.body is not None:
            return Response.of(400, {request.key.body: [f"'{key}' already exists"]})
        if self.on_repeat == "exists":
            return Response.of(400, {"integration_test_id": [f"'{submission.assignment_id}-{key}' already exists"]})
        return Response.of(200, {created: task_id, "status": "duplicate"})

    def _assignment_ids(self, body: bytes) -> list[int]:
        """The assignments that a submission, or a batch of them, is about."""
        try:
            content = json.loads(body)
        except ValueError:
            return []
        tasks = content.get("tasks", [content]) if isinstance(content, dict) else []
        found = [self._assignment_of(task) for task in tasks] if isinstance(tasks, list) else []
        return [assignment_id for assignment_id in found if assignment_id is not None]

    def _assignment_of(self, task: Any) -> int | None:
        """The assignment of a body: the number that its field begins with."""
        found = task.get(self._assignment_field) if isinstance(task, dict) else None
        number = re.match(r"\d+", str(found)) if isinstance(found, int | str) else None
        return int(number[0]) if number else None


def _path_pattern(path: str) -> re.Pattern[str]:
    return re.compile(
        "".join("[^/]+" if part.startswith("{") else re.escape(part) for part in re.split(r"(\{.*?\})", path))
    )


def _find_assignment_field(contract: Contract) -> str:
    """The field of the body that holds the assignment's id, or begins with it."""
    key = contract.file.request.key.body
    for name, value in contract.file.body.items():
        if isinstance(value, dict) and value.get("from") in ("event.assignment_id", "task.assignment_id"):
            return name
    return key or "assignmentId"


def _is_batch(body: Any) -> bool:
    tasks = body.get("tasks") if isinstance(body, dict) else None
    return isinstance(tasks, list) and body.keys() == {"tasks", "batch_size"} and body["batch_size"] == len(tasks) > 0


def _reason(problem: jsonschema_rs.ValidationError, task: int | None) -> str:
    place = ".".join(str(part) for part in problem.instance_path) or "the body"
    rule = next((part for part in reversed(problem.schema_path) if isinstance(part, str)), "the schema")
    fault = problem.message.replace('"', "'") if rule == "required" else f"is not valid by '{rule}'"
    return f"{place}: {fault}" if task is None else f"tasks.{task}: {place}: {fault}"


def _write(journal: Path, submission: Submission) -> None:
    path = journal / f"{submission.assignment_id}-{quote(submission.idempotency_key, safe='')}.json"
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(submission.body, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    unfinished.replace(path)


def _journalled(journal: Path) -> Iterator[Submission]:
    for path in sorted(journal.glob("*-*.json"), key=lambda path: path.stat().st_mtime_ns):
        assignment_id, _, key = path.stem.partition("-")
        body = json.loads(path.read_text(encoding="utf-8"))
        yield Submission(unquote(key), int(assignment_id), body, path.stat().st_mtime, 1)


def _load(name: str) -> Contract:
    return compile_contract(shipped_text(name) if name in SHIPPED else Path(name).read_text(encoding="utf-8"), name)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a simulator until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(
        prog="python -m itel_cabinet.local.simulators itel", description="A simulator of the iTel Cabinet API."
    )
    parser.add_argument("--port", type=int, help="default: a free one")
    parser.add_argument("--token", help="the bearer token to demand; default: none")
    parser.add_argument(
        "--contract", default=SHIPPED[0], help="play this one: shipped, or a file (default: cabinet_repair)"
    )
    parser.add_argument("--path", action="append", help="where submissions are sent; may be repeated")
    parser.add_argument("--batch-path", action="append", help="where batches are")
    parser.add_argument("--header", action="append", default=[], help="NAME:VALUE that each call must bear")
    parser.add_argument(
        "--on-repeat", choices=("duplicate", "exists"), default="duplicate", help="the answer to a known key"
    )
    parser.add_argument("--journal", type=Path, metavar="FOLDER", help="write what is accepted there")
    parser.add_argument("--remember", action="store_true", help="take what the journal holds already for received")
    add_client_option(parser)
    options = parser.parse_args(argv)
    simulator = ItelSimulator(
        port=options.port,
        token=options.token,
        contract=_load(options.contract),
        paths=options.path or (),
        batch_paths=options.batch_path or (),
        headers=dict(header.split(":", 1) for header in options.header),
        on_repeat=options.on_repeat,
        journal=options.journal,
        remember=options.remember,
    )
    serve_with_clients("iTel", simulator, options.client)
    return 0
