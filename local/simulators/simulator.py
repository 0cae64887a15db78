"""An HTTP API played by a real server on a real socket, whose faults can be set while it runs.

What :class:`ClaimXSimulator` and :class:`ItelSimulator` have in common. Paths under ``/_sim/`` belong to the person or
test that runs the simulator: they need no credentials and meet no faults.
"""

from __future__ import annotations

import base64
import json
import os
import random
import signal
import socket
import socketserver
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qsl, urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from itel_cabinet.local.services import HOST, free_port

__all__ = ["Faults", "Request", "Response", "Simulator", "serve"]

_HANG_CHECK_SECONDS = 0.02
_RESET = struct.pack("ii", 1, 0)


class Faults(BaseModel):
    """What goes wrong at a simulator; the defaults are a healthy API.

    ``latency_seconds`` delays every answer. ``outage`` answers 503 to everything. The other faults meet a share
    ``error_rate`` of the requests, drawn from the simulator's seed, and if ``times`` is set only so many requests,
    after which all is well.
    """

    model_config = ConfigDict(extra="forbid", validate_assignment=True)

    latency_seconds: float = Field(default=0.0, ge=0)
    outage: bool = False
    """Answer 503 to every request."""
    error_status: int | None = Field(default=None, ge=400, le=599)
    """Answer this status, without doing what was asked."""
    error_rate: float = Field(default=1.0, ge=0, le=1)
    times: int | None = Field(default=None, ge=0)
    retry_after: str | int | None = None
    """The Retry-After header of ``error_status`` and ``outage``: seconds or an HTTP date."""
    reset: bool = False
    """Reset the connection instead of answering, without doing what was asked."""
    reset_after_2xx: bool = False
    """Do what was asked, send the status line, then reset the connection."""
    hang: bool = False
    """Never answer, until this is cleared or the simulator stops."""
    malformed_json: bool = False
    """Do what was asked, then answer with JSON that breaks off in the middle."""


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asks. ``query`` holds the last value of each name; header names compare without case."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Message
    body: bytes

    def json(self) -> Any:
        """The body as JSON; raises ``ValueError`` if it is not."""
        return json.loads(self.body)


@dataclass(frozen=True, slots=True)
class Response:
    """What a simulator answers."""

    status: int
    body: bytes
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, status: int, answer: object, **headers: str) -> Response:
        """``answer`` as JSON."""
        return cls(status, json.dumps(answer).encode(), headers=headers)

    @classmethod
    def refusal(cls, status: int, reason: str, **headers: str) -> Response:
        """An error with a one-line reason."""
        return cls.of(status, {"error": reason}, **headers)


class Simulator:
    """A server that is up from :meth:`start` (or ``with``) to :meth:`stop`, and may be started again on its port with
    its memory kept.

    ``token``, if set, is demanded as ``Authorization: Bearer <token>`` or, for a ``user:password``, as Basic.
    ``authority``, if set, says in its place which Authorization headers are good. ``faults`` may be changed or replaced
    at any time, from any thread; so may ``token`` and ``authority``. ``seed`` decides which requests meet a fault whose
    rate is below 1.
    """

    def __init__(
        self,
        *,
        port: int | None = None,
        token: str | None = None,
        seed: int = 0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.port = port or free_port()
        self.token = token
        self.authority: Callable[[str | None], bool] | None = None
        self.faults = Faults()
        self.clock = clock
        self._random = random.Random(seed)
        self._calls: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._server: _Server | None = None

    @property
    def url(self) -> str:
        """The base URL, without a slash at its end."""
        return f"http://{HOST}:{self.port}"

    @property
    def calls(self) -> Counter[str]:
        """How many requests each path has received, faults included: ``calls["/customTasks/assignment/5430007"]``."""
        with self._lock:
            return Counter(self._calls)

    def start(self) -> None:
        """Listen on the port. Idempotent; raises ``OSError`` if another server holds the port."""
        if self._server is None:
            self._server = _Server(self)
            threading.Thread(
                target=self._server.serve_forever, args=(0.05,), name=f"simulator-{self.port}", daemon=True
            ).start()

    def start_again(self) -> None:
        """The same as :meth:`start`, for the ear: memory and port are those of before."""
        self.start()

    def stop(self) -> None:
        """Refuse connections from now on, and drop the open ones, hanging requests too. Idempotent."""
        server, self._server = self._server, None
        if server is not None:
            server.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def answer(self, request: Request) -> Response:
        """What the API does and says; called on many threads at once."""
        raise NotImplementedError

    def control(self, request: Request) -> Response | None:
        """What a simulator offers under ``/_sim/`` beside faults and calls; None if it does not know the path."""
        del request
        return None

    def handling(self, request: Request) -> AbstractContextManager[object]:
        """Entered while a request is worked on, its latency included and its answer's way back excluded."""
        del request
        return nullcontext()

    def _control(self, request: Request) -> Response:
        try:
            match request.method, request.path:
                case "PUT", "/_sim/faults":
                    self.faults = Faults.model_validate_json(request.body)
                    return Response.of(200, self.faults.model_dump())
                case "GET", "/_sim/faults":
                    return Response.of(200, self.faults.model_dump())
                case "GET", "/_sim/calls":
                    calls = self.calls
                    return Response.of(200, {"total": calls.total(), "by_path": calls})
            found = self.control(request)
        except ValidationError as error:
            return Response.refusal(400, "; ".join(_reason(problem) for problem in error.errors()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            return Response.refusal(400, f"the body of {request.method} {request.path} is not as expected: {error!r}")
        return found or Response.refusal(404, f"the simulator knows no {request.method} {request.path}")

    def _authorised(self, request: Request) -> bool:
        if self.authority is not None:
            return self.authority(request.headers.get("Authorization"))
        token = self.token
        if token is None:
            return True
        basic = base64.b64encode(token.encode()).decode()
        return request.headers.get("Authorization") in {f"Bearer {token}", f"Basic {basic}"}

    def _afflicted(self) -> bool:
        """Whether this request meets the faults that have a rate; counts ``times`` down."""
        with self._lock:
            faults = self.faults
            if not (
                faults.hang or faults.reset or faults.error_status or faults.reset_after_2xx or faults.malformed_json
            ):
                return False
            if faults.times == 0 or self._random.random() >= faults.error_rate:
                return False
            if faults.times is not None:
                faults.times -= 1
            return True

    def _count(self, path: str) -> None:
        with self._lock:
            self._calls[path] += 1


def serve(simulators: Sequence[Simulator], ready: Callable[[], None] = lambda: None) -> None:
    """Run simulators until SIGINT or SIGTERM; for the main thread of a process of their own. ``ready`` is called once
    they listen.

    Ends also when the parent process does, so that a killed script leaves no server behind.
    """
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    parent = os.getppid()
    try:
        for simulator in simulators:
            simulator.start()
        ready()
        while not ended.wait(0.5) and os.getppid() == parent:
            pass
    finally:
        for simulator in simulators:
            simulator.stop()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 1024

    def __init__(self, simulator: Simulator) -> None:
        self.simulator = simulator
        self.closed = threading.Event()
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        super().__init__((HOST, simulator.port), _Handler)

    def server_bind(self) -> None:
        # HTTPServer's own asks the resolver for the host's name, which can take seconds.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = HOST, self.simulator.port

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no error of the simulator's."""

    def close(self) -> None:
        self.closed.set()
        self.shutdown()
        self.server_close()
        with self._lock:
            for connection in self._open:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: _Server

    def _handle(self) -> None:
        url = urlsplit(self.path)
        length = int(self.headers.get("Content-Length") or 0)
        request = Request(self.command, url.path, dict(parse_qsl(url.query)), self.headers, self.rfile.read(length))
        simulator = self.server.simulator
        if request.path.startswith("/_sim/"):
            self._send(simulator._control(request))
            return
        simulator._count(request.path)
        afflicted = simulator._afflicted()
        if afflicted and not self._hang():
            self._drop()
            return
        with simulator.handling(request):
            faults = simulator.faults
            if faults.latency_seconds:
                self.server.closed.wait(faults.latency_seconds)
            response = self._respond(simulator, request, faults, afflicted)
        if response is None or self.server.closed.is_set():
            self._drop()
        elif afflicted and faults.reset_after_2xx and response.status < 300:
            self.wfile.write(f"HTTP/1.1 {response.status} {self.responses[response.status][0]}\r\n".encode())
            self.wfile.flush()
            self._drop()
        elif afflicted and faults.malformed_json and response.content_type == "application/json":
            self._send(Response(response.status, response.body[: len(response.body) // 2], headers=response.headers))
        else:
            self._send(response)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _handle

    def _hang(self) -> bool:
        """Wait while the simulator hangs; False if it was stopped meanwhile."""
        while self.server.simulator.faults.hang:
            if self.server.closed.wait(_HANG_CHECK_SECONDS):
                return False
        return True

    @staticmethod
    def _respond(simulator: Simulator, request: Request, faults: Faults, afflicted: bool) -> Response | None:
        """The answer, or None for a reset."""
        retry_after = {} if faults.retry_after is None else {"Retry-After": str(faults.retry_after)}
        if faults.outage:
            return Response.refusal(503, "out of service", **retry_after)
        if afflicted and faults.reset:
            return None
        if afflicted and faults.error_status is not None:
            return Response.refusal(faults.error_status, "a fault that was asked for", **retry_after)
        if not simulator._authorised(request):
            return Response.refusal(401, "the credentials are missing or wrong", **{"WWW-Authenticate": "Bearer"})
        return simulator.answer(request)

    def _send(self, response: Response) -> None:
        self.send_response(response.status)
        self.send_header("Content-Type", response.content_type)
        self.send_header("Content-Length", str(len(response.body)))
        for name, value in response.headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(response.body)

    def _drop(self) -> None:
        """Reset the connection: close it with a linger of nought, and past the server's own orderly end."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        os.close(self.connection.detach())

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: the calls are counted."""


def _reason(problem: Mapping[str, Any]) -> str:
    name = ".".join(str(part) for part in problem["loc"]) or "the body"
    if problem["type"] == "extra_forbidden":
        return f"unknown fault '{name}': the known ones are {', '.join(Faults.model_fields)}"
    return f"{name}: {problem['msg']}"
