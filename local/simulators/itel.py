"""A simulator of the iTel Cabinet API: accepts submissions, checks them against the JSON Schema, remembers
Idempotency-Keys.

``python -m itel_cabinet.local.simulators itel --port 8082 --journal FOLDER`` runs one; ``GET /_sim/submissions`` tells
what it has received.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, unquote

from jsonschema.exceptions import ValidationError
from jsonschema.validators import validator_for

from itel_cabinet.local.simulators.oauth2 import add_client_option, serve_with_clients
from itel_cabinet.local.simulators.simulator import Request, Response, Simulator

__all__ = ["ItelSimulator", "Submission", "main", "submission_schema"]

_REASONS_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Submission:
    """An accepted payload; ``received_at`` is when it first came (epoch seconds), ``times`` how often the key came."""

    idempotency_key: str
    assignment_id: int
    body: Mapping[str, Any]
    received_at: float
    times: int


def submission_schema() -> dict[str, Any]:
    """The committed JSON Schema of a submission."""
    path = resources.files("itel_cabinet.transforms") / "schemas" / "cabinet_repair_submission.schema.json"
    return dict(json.loads(path.read_text(encoding="utf-8")))


class ItelSimulator(Simulator):
    """The iTel API: POST a submission to one of ``paths`` with an Idempotency-Key.

    A body that is not JSON or not as ``schema`` demands is refused with 400 and reasons (which name places, not
    values). A new key is answered 201 with ``itel_task_id``; a known one, with any body, 200 ``duplicate``, or if
    ``on_repeat`` is ``"exists"`` 400 ``already exists``. Posted to one of ``batch_paths``, ``{"tasks": [...],
    "batch_size": n}`` is accepted whole, or refused if one of its tasks is not valid; its tasks are remembered under
    the batch's key, as ``<key>/<number>`` from 0. Checking takes about a millisecond of CPU: where the simulator
    must not be what is measured, ``schema={}`` accepts any object with an ``assignmentId``.

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
        paths: Sequence[str] = ("/api/v1/tasks",),
        batch_paths: Sequence[str] = ("/api/v1/tasks/batch",),
        key_header: str = "Idempotency-Key",
        on_repeat: Literal["duplicate", "exists"] = "duplicate",
        schema: Mapping[str, Any] | None = None,
        journal: Path | None = None,
        remember: bool = False,
    ) -> None:
        super().__init__(port=port, token=token, seed=seed, clock=clock)
        self.paths = tuple(paths)
        self.batch_paths = tuple(batch_paths)
        self.key_header = key_header
        self.on_repeat = on_repeat
        self.overlaps = 0
        self.journal = journal
        schema = submission_schema() if schema is None else schema
        self._validator = validator_for(schema)(schema)
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
        if request.path not in self.paths + self.batch_paths:
            return Response.refusal(404, f"no such path: {request.path}")
        if request.method != "POST":
            return Response.refusal(405, f"{request.method} is not supported", Allow="POST")
        key = request.headers.get(self.key_header)
        if not key:
            return Response.refusal(400, f"the header {self.key_header} is missing")
        try:
            body = request.json()
        except ValueError:
            return Response.refusal(400, "the body is not JSON")
        batch = request.path in self.batch_paths
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
            return self._accept(key, body)
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
        assignments = _assignment_ids(request.body)
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
                submission = Submission(key, int(body["assignmentId"]), body, self.clock(), 1)
                if self.journal is not None:
                    _write(self.journal, submission)
                self._submissions[key] = submission
            else:
                self._submissions[key] = submission = replace(known, times=known.times + 1)
        task_id = f"itel-{submission.assignment_id}-{key[:12]}"
        if known is None:
            return Response.of(201, {"itel_task_id": task_id, "status": "accepted"})
        if self.on_repeat == "exists":
            return Response.of(400, {"integration_test_id": [f"'{submission.assignment_id}-{key}' already exists"]})
        return Response.of(200, {"itel_task_id": task_id, "status": "duplicate"})


def _is_batch(body: Any) -> bool:
    tasks = body.get("tasks") if isinstance(body, dict) else None
    return isinstance(tasks, list) and body.keys() == {"tasks", "batch_size"} and body["batch_size"] == len(tasks) > 0


def _reason(problem: ValidationError, task: int | None) -> str:
    place = ".".join(str(part) for part in problem.absolute_path) or "the body"
    fault = problem.message if problem.validator == "required" else f"is not valid by '{problem.validator}'"
    return f"{place}: {fault}" if task is None else f"tasks.{task}: {place}: {fault}"


def _assignment_ids(body: bytes) -> list[int]:
    """The assignments that a submission, or a batch of them, is about."""
    try:
        content = json.loads(body)
    except ValueError:
        return []
    tasks = content.get("tasks", [content]) if isinstance(content, dict) else []
    found = [task.get("assignmentId") for task in tasks if isinstance(task, dict)] if isinstance(tasks, list) else []
    return [assignment_id for assignment_id in found if isinstance(assignment_id, int)]


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


def main(argv: Sequence[str] | None = None) -> int:
    """Run a simulator until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(
        prog="python -m itel_cabinet.local.simulators itel", description="A simulator of the iTel Cabinet API."
    )
    parser.add_argument("--port", type=int, help="default: a free one")
    parser.add_argument("--token", help="the bearer token to demand; default: none")
    parser.add_argument(
        "--path", action="append", help="where submissions are posted; may be repeated (default: /api/v1/tasks)"
    )
    parser.add_argument("--batch-path", action="append", help="where batches are (default: /api/v1/tasks/batch)")
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
        paths=options.path or ("/api/v1/tasks",),
        batch_paths=options.batch_path or ("/api/v1/tasks/batch",),
        on_repeat=options.on_repeat,
        journal=options.journal,
        remember=options.remember,
    )
    serve_with_clients("iTel", simulator, options.client)
    return 0
