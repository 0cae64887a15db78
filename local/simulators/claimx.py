"""A simulator of ClaimX: task details by assignment, media metadata with signed links, and the media themselves.

``python -m itel_cabinet.local.simulators claimx --port 8081`` runs one; another process fills it through
``PUT /_sim/tasks``.
"""

from __future__ import annotations

import argparse
import hashlib
import hmac
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from itel_cabinet.local.simulators.oauth2 import add_client_option, serve_with_clients
from itel_cabinet.local.simulators.simulator import Request, Response, Simulator

__all__ = ["ClaimXSimulator", "MediaFault", "main", "media_bytes", "media_name"]

_ASSIGNMENT = re.compile(r"/customTasks/assignment/(\d+)")
_PROJECT = re.compile(r"/export/project/(\d+)")
_PROJECT_MEDIA = re.compile(r"/export/project/(\d+)/media")
_MEDIA = re.compile(r"/media/(\d+)")


def media_name(media_id: int) -> str:
    """The file name of a photo; with a space in it, as people's photos have."""
    return f"kitchen {media_id}.jpg"


def media_bytes(media_id: int) -> bytes:
    """The photo itself: some 2 KB that begin and end as a JPEG does, the same ones for the same id."""
    return b"\xff\xd8\xff\xe0" + hashlib.sha256(str(media_id).encode()).digest() * 64 + b"\xff\xd9"


@dataclass(frozen=True, slots=True)
class MediaFault:
    """What is odd about one photo; what is left alone is as it should be."""

    unlisted: bool = False
    """The metadata do not list it."""
    name: str | None = None
    """Its ``mediaName``."""
    link: str | None = None
    """Its ``fullDownloadLink``."""
    expired: int = 0
    """So many downloads find the link expired."""
    seconds: float = 0.0
    """A download is answered after so long."""
    status: int = 200
    redirect: str | None = None
    """Where a download is sent to, with ``status`` (302 for one)."""
    content_type: str = "image/jpeg"
    body: bytes | None = None


class ClaimXSimulator(Simulator):
    """ClaimX as domain.md section 3 has it.

    - ``GET /customTasks/assignment/{id}?full=true``: what :meth:`put_task` was given last, else 404.
    - ``GET /export/project/{id}``: its number and a made-up customer; 404 for a project without a task.
    - ``GET /export/project/{id}/media?mediaIds=a,b``: a list of the project's photos, all of them if no ids are named;
      ids of other projects are left out; 404 for a project without a task. The project knows the photos of all its
      tasks, older versions included.
    - ``GET /media/{id}?systemDate=..&expires=..&sign=..``: the photo, for ``link_seconds`` after its link was given
      out, then 403. The token is asked for if ``photos_ask_token``; else the signature will do. With ``photo_store``,
      the base URL of an object store, it redirects there, as ClaimX does.

    ``media_faults``, by media id, may be changed at any time.
    """

    def __init__(
        self,
        *,
        port: int | None = None,
        token: str | None = None,
        seed: int = 0,
        clock: Callable[[], float] = time.time,
        link_seconds: float = 600.0,
        photos_ask_token: bool = False,
        photo_store: str | None = None,
    ) -> None:
        super().__init__(port=port, token=token, seed=seed, clock=clock)
        self.link_seconds = link_seconds
        self.photos_ask_token = photos_ask_token
        self.photo_store = photo_store
        self.media_faults: dict[int, MediaFault] = {}
        self._signing_key = f"claimx-simulator-{seed}".encode()
        # As bytes: a form is ten times larger as objects, and a benchmark holds many.
        self._tasks: dict[int, bytes] = {}
        self._media: dict[int, set[int]] = {}

    def put_task(self, details: Mapping[str, Any]) -> None:
        """Make ``details`` ClaimX's answer for its ``assignmentId``. Thread-safe; the last one put holds."""
        body = json.dumps(details).encode()
        with self._lock:
            self._tasks[int(details["assignmentId"])] = body
            self._media.setdefault(int(details["projectId"]), set()).update(_media_ids(details))

    def put_tasks(self, body: bytes) -> int:
        """Put a JSON list of details, in order; returns how many. Raises ``ValueError`` or ``KeyError`` otherwise."""
        tasks = json.loads(body)
        if not isinstance(tasks, list):
            raise ValueError("not a list of task details")
        for details in tasks:
            self.put_task(details)
        return len(tasks)

    def task(self, assignment_id: int) -> dict[str, Any] | None:
        """The current answer for an assignment, or None."""
        body = self._tasks.get(assignment_id)
        return None if body is None else dict(json.loads(body))

    def lookups(self, assignment_id: int) -> int:
        """How often the details of an assignment were asked for."""
        return self.calls[f"/customTasks/assignment/{assignment_id}"]

    def link(self, media_id: int) -> str:
        """A link to a photo, signed now."""
        signed_at, lifetime = int(self.clock() * 1000), int(self.link_seconds * 1000)
        sign = self._sign(media_id, str(signed_at), str(lifetime))
        return f"{self.url}/media/{media_id}?systemDate={signed_at}&expires={lifetime}&sign={sign}"

    def answer(self, request: Request) -> Response:
        """See the class."""
        if request.method not in {"GET", "HEAD"}:
            return Response.refusal(405, f"{request.method} is not supported", Allow="GET, HEAD")
        if found := _ASSIGNMENT.fullmatch(request.path):
            return self._details(int(found[1]), request.query)
        if found := _PROJECT_MEDIA.fullmatch(request.path):
            return self._metadata(int(found[1]), request.query.get("mediaIds"))
        if found := _PROJECT.fullmatch(request.path):
            return self._project(int(found[1]))
        if found := _MEDIA.fullmatch(request.path):
            return self._photo(int(found[1]), request.query)
        return Response.refusal(404, f"no such path: {request.path}")

    def control(self, request: Request) -> Response | None:
        """``PUT /_sim/tasks`` with a JSON list of task details."""
        if (request.method, request.path) == ("PUT", "/_sim/tasks"):
            return Response.of(200, {"tasks": self.put_tasks(request.body)})
        return None

    def _details(self, assignment_id: int, query: Mapping[str, str]) -> Response:
        body = self._tasks.get(assignment_id)
        if body is None:
            return Response.refusal(404, f"no assignment {assignment_id}")
        if query.get("full") != "true":
            # Without full=true ClaimX leaves the form out.
            return Response.of(200, {**json.loads(body), "response": None})
        return Response(200, body)

    def _metadata(self, project_id: int, wanted: str | None) -> Response:
        with self._lock:
            known = sorted(self._media.get(project_id, ()))
            if project_id not in self._media:
                return Response.refusal(404, f"no project {project_id}")
        if wanted is not None:
            asked = {part.strip() for part in wanted.split(",")}
            known = [media_id for media_id in known if str(media_id) in asked]
        return Response.of(
            200,
            [
                {
                    "mediaID": media_id,
                    "mediaType": "jpg",
                    "mediaName": media_name(media_id) if fault.name is None else fault.name,
                    "fullDownloadLink": self.link(media_id) if fault.link is None else fault.link,
                }
                for media_id in known
                for fault in [self.media_faults.get(media_id, _NO_FAULT)]
                if not fault.unlisted
            ],
        )

    def _project(self, project_id: int) -> Response:
        with self._lock:
            if project_id not in self._media:
                return Response.refusal(404, f"no project {project_id}")
        address = {
            "street1": f"{project_id % 100 + 1} Elm Street",
            "city": "Springfield",
            "stateProvince": "OR",
            "zipPostcode": "97403",
            "country": "US",
        }
        customer = {"firstName": "Robin", "lastName": "Miles", "address": address}
        project = {"projectNumber": f"CLM-{project_id}", "customerInformation": customer}
        return Response.of(200, {"data": {"project": project}})

    def _authorised(self, request: Request) -> bool:
        signed = request.path.startswith("/media/") and not self.photos_ask_token
        return signed or super()._authorised(request)

    def _photo(self, media_id: int, query: Mapping[str, str]) -> Response:
        signed_at, lifetime, sign = (query.get(name, "") for name in ("systemDate", "expires", "sign"))
        if not hmac.compare_digest(sign.encode(), self._sign(media_id, signed_at, lifetime).encode()):
            return Response.refusal(403, "the link is not signed, or not by us")
        if self.clock() * 1000 > int(signed_at) + int(lifetime):
            return Response.refusal(403, "the link has expired")
        with self._lock:
            fault = self.media_faults.get(media_id, _NO_FAULT)
            if fault.expired:
                self.media_faults[media_id] = replace(fault, expired=fault.expired - 1)
                return Response.refusal(403, "the link has expired")
        if fault.seconds and self._server is not None:
            self._server.closed.wait(fault.seconds)
        target, status = fault.redirect, fault.status
        if self.photo_store is not None and target is None and status == 200:
            target, status = f"{self.photo_store}/{media_id}.jpg", 302
        headers = {} if target is None else {"Location": target}
        body = media_bytes(media_id) if fault.body is None else fault.body
        return Response(status, body, fault.content_type, headers)

    def _sign(self, media_id: int, signed_at: str, lifetime: str) -> str:
        return hmac.new(self._signing_key, f"{media_id}/{signed_at}/{lifetime}".encode(), hashlib.sha256).hexdigest()


_NO_FAULT = MediaFault()


def _media_ids(details: Mapping[str, Any]) -> Iterator[int]:
    for group in (details.get("response") or {}).get("groups", ()):
        for question in group["questionAndAnswers"]:
            yield from (question.get("responseAnswerExport") or {}).get("claimMediaIds") or ()


def main(argv: Sequence[str] | None = None) -> int:
    """Run a simulator until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(
        prog="python -m itel_cabinet.local.simulators claimx", description="A simulator of the ClaimX API."
    )
    parser.add_argument("--port", type=int, help="default: a free one")
    parser.add_argument("--token", help="the bearer token, or user:password, to demand; default: none")
    parser.add_argument("--link-seconds", type=float, default=600.0, help="how long a signed link lives (default: 600)")
    add_client_option(parser)
    options = parser.parse_args(argv)
    simulator = ClaimXSimulator(port=options.port, token=options.token, link_seconds=options.link_seconds)
    serve_with_clients("ClaimX", simulator, options.client)
    return 0
