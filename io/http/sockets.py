"""Connections below HTTP: bounded in time, and one answer for each question.

urllib3 leaves a host's look-up unbounded, grants each address the whole connect timeout, and each byte of an answer the
whole read timeout; http.client takes an interim answer for the real one. What is here is put under urllib3's pools, for
calls of an API and for downloads alike.
"""

from __future__ import annotations

import http.client
import io
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError
from urllib3.util.connection import allowed_gai_family

__all__ = ["AddressCheck", "make_pools"]

AddressCheck = Callable[[str, str, str], None]
"""Is given a host, its IP address and the scheme (``http``, ``https``); raises unless a connection may be made."""


class _TimedReads(io.RawIOBase):
    """A socket's bytes until a moment. A socket's own timeout begins again with each byte, so a server that drips
    outlives it."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket) -> None:
        self._raw = raw
        self._sock = sock
        self._end = time.monotonic() + (sock.gettimeout() or 0.0)
        self.over = False
        """Whether nothing more is read from the socket."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if self.over:
            return 0
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._sock.settimeout(left)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _OneAnswer(http.client.HTTPResponse):
    """The final answer to the request just sent.

    Its headers and body together must come within the read timeout that urllib3 has set on the socket. Interim answers
    (1xx) before it are skipped, however many (RFC 9110, 15.2); http.client skips 100 alone. When more bytes have come
    than the answer's own, the connection is not used again: they would be taken for the next one's answer.
    """

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self._sock = sock
        self._reads = _TimedReads(self.fp.detach(), sock)
        self.fp: io.BufferedReader = io.BufferedReader(self._reads)

    def _read_status(self) -> tuple[str, int, str]:
        while True:
            version, status, reason = super()._read_status()  # type: ignore[misc]  # not in the stubs
            if not 100 <= status < 200:
                return version, status, reason
            if status == 101:
                raise http.client.BadStatusLine("101, though no other protocol was asked for")
            http.client.parse_headers(self.fp)

    def _close_conn(self) -> None:
        self._reads.over = True
        try:
            if self.fp.peek(1):
                self._sock.shutdown(socket.SHUT_RDWR)
        except (OSError, ValueError):
            pass  # closed already
        super()._close_conn()  # type: ignore[misc]  # not in the stubs


def make_pools(check: AddressCheck | None = None) -> dict[str, Any]:
    """Connection pools by scheme, for a urllib3 manager's ``pool_classes_by_scheme``.

    The connect timeout holds for the look-up of the host's name and all its addresses together. ``check`` is given each
    address right before it is connected to, so that what was checked is what is connected to, however often the name
    changes its address; what it raises for the last address goes to the caller.
    """

    class Plain(HTTPConnection):
        response_class = _OneAnswer
        scheme = "http"

        def _new_conn(self) -> socket.socket:
            name, seconds = self._dns_host, self.timeout or 0.0
            end = time.monotonic() + seconds
            failure: Exception = ConnectTimeoutError(self, "no address in time")
            try:
                addresses = _look_up(name, self.port, seconds)
                for tried, address in enumerate(addresses):
                    self._dns_host = address
                    self.timeout = max(0.001, (end - time.monotonic()) / (len(addresses) - tried))
                    try:
                        if check is not None:
                            check(name, address, self.scheme)
                        sock = super()._new_conn()
                        sock.settimeout(max(0.001, end - time.monotonic()))  # what is left for TLS to agree
                        return sock
                    except Exception as error:
                        failure = error
            except socket.gaierror as error:
                failure = NameResolutionError(name, self, error)
            except TimeoutError:
                pass
            finally:
                self._dns_host, self.timeout = name, seconds
            raise failure

    class Tls(Plain, HTTPSConnection):
        scheme = "https"

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = Plain

    class TlsPool(HTTPSConnectionPool):
        ConnectionCls = Tls

    return {"http": PlainPool, "https": TlsPool}


def _look_up(host: str, port: int, seconds: float) -> list[str]:
    """What the resolver says, within ``seconds`` (else TimeoutError). It cannot be broken off, so it has a thread of
    its own, which ends when the resolver gives up."""
    answer: Future[list[str]] = Future()

    def look_up() -> None:
        try:
            infos = socket.getaddrinfo(host, port, allowed_gai_family(), socket.SOCK_STREAM)
            answer.set_result(list(dict.fromkeys(str(info[4][0]) for info in infos)))
        except Exception as error:
            answer.set_exception(error)

    threading.Thread(target=look_up, name=f"look-up-{host}", daemon=True).start()
    return answer.result(seconds)
