"""A small HTTP server that misbehaves on request: one scripted act for each request, on a real socket.

Acts are the functions below; each is given the handler of one request. The last act of a script repeats for ever::

    with FaultyServer(answer(503), answer(200, b'{"a": 1}')) as server:
        ...
    assert [seen.path for seen in server.requests] == ["/x", "/x"]
"""

from __future__ import annotations

import contextlib
import io
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

__all__ = [
    "Act",
    "FaultyServer",
    "Seen",
    "answer",
    "cut_body",
    "drip_body",
    "drip_headers",
    "endless_body",
    "garbage",
    "hang",
    "interim",
    "reset",
    "then_more",
    "unused_port",
]


@dataclass
class Seen:
    """One request as the server got it. ``began`` and ``ended`` are monotonic seconds around the answer."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    began: float
    ended: float = field(default=0.0)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: FaultyServer

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        # Header names in lower case, so that a test need not know how the client spells them.
        headers = {name.lower(): value for name, value in self.headers.items()}
        seen = Seen(self.command, self.path, headers, body, time.monotonic())
        with contextlib.suppress(OSError):  # the client may be gone before the act is over
            self.server.next_act(seen)(self)
        seen.ended = time.monotonic()

    do_GET = do_POST = do_PUT = do_CONNECT = _serve

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the tests' output clean."""


class FaultyServer(ThreadingHTTPServer):
    """Serves on a free port of loopback while entered. ``requests`` grows in the order of arrival."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, *script: Act, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self._scheme = "https" if tls else "http"
        if tls:
            self.socket = tls.wrap_socket(self.socket, server_side=True)
        self._script = list(script)
        self._lock = threading.Lock()
        self.stopping = threading.Event()
        self.requests: list[Seen] = []
        self.connections = 0

    @property
    def url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self.server_address[1]}"

    def next_act(self, seen: Seen) -> Act:
        with self._lock:
            self.requests.append(seen)
            return self._script.pop(0) if len(self._script) > 1 else self._script[0]

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections += 1
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Close without the usual farewell, so that ``reset`` can reset."""
        self.close_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that breaks off is what many of these tests are about."""

    def __enter__(self) -> FaultyServer:
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stopping.set()
        self.shutdown()
        self._thread.join()
        self.server_close()


Act = Callable[[_Handler], None]


def answer(status: int, body: bytes = b"{}", delay: float = 0.0, **headers: str) -> Act:
    """A whole answer; ``retry_after="3"`` becomes ``Retry-After: 3``."""

    def act(handler: _Handler) -> None:
        handler.server.stopping.wait(delay)
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return act


def interim(*statuses: int, then: Act) -> Act:
    """Interim answers (1xx), each with a header, before the real one."""

    def act(handler: _Handler) -> None:
        for status in statuses:
            handler.wfile.write(b"HTTP/1.1 %d Wait\r\nLink: </style.css>\r\n\r\n" % status)
        then(handler)

    return act


def then_more(act: Act, extra: bytes) -> Act:
    """An answer, and in the same breath what nobody asked for."""

    def both(handler: _Handler) -> None:
        wire, handler.wfile = handler.wfile, io.BytesIO()
        act(handler)
        handler.flush_headers()
        wire.write(handler.wfile.getvalue() + extra)
        handler.wfile = wire

    return both


def hang(handler: _Handler) -> None:
    """Never answer."""
    handler.server.stopping.wait()
    handler.close_connection = True


def reset(handler: _Handler) -> None:
    """Break the connection off with a RST."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.close_connection = True


def garbage(handler: _Handler) -> None:
    """Answer what is no HTTP."""
    handler.wfile.write(b"\x00\xff nothing like HTTP\r\n\r\n")
    handler.close_connection = True


def cut_body(status: int, body: bytes = b"") -> Act:
    """Promise a longer body, send this much of it, and reset."""

    def act(handler: _Handler) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        handler.wfile.write(body)
        handler.wfile.flush()
        reset(handler)

    return act


def drip_body(handler: _Handler) -> None:
    """One byte of a body of 10,000 every 20 ms."""
    handler.send_response(200)
    handler.send_header("Content-Length", "10000")
    handler.end_headers()
    _drip(handler)


def drip_headers(handler: _Handler) -> None:
    """A status line, then one byte of a header every 20 ms."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    _drip(handler)


def _drip(handler: _Handler) -> None:
    while not handler.server.stopping.wait(0.02):
        handler.wfile.write(b"x")
    handler.close_connection = True


def endless_body(status: int) -> Act:
    """A chunked body without end."""

    def act(handler: _Handler) -> None:
        handler.send_response(status)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        while not handler.server.stopping.is_set():
            handler.wfile.write(b"100000\r\n" + b"x" * 0x100000 + b"\r\n")

    return act


def unused_port() -> int:
    """A port of loopback that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
