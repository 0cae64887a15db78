"""Free TCP ports for the servers of the local stack."""

from __future__ import annotations

import random
import socket
import threading

__all__ = ["HOST", "free_port"]

HOST = "127.0.0.1"

# Below the range from which the system picks client ports. A client that keeps dialling a stopped server inside that
# range sooner or later connects to itself, and then holds the port against the server's return.
_LOWEST, _HIGHEST = 15_000, 32_000
# A server binds its port only seconds after it was drawn, so none is given out twice.
_drawn: set[int] = set()
_lock = threading.Lock()


def free_port() -> int:
    """A port on the loopback that nobody listens on now, and that this process was not given before.

    Thread-safe; raises ``OSError`` if a hundred draws find none.
    """
    draw = random.SystemRandom()
    for _ in range(100):
        port = draw.randint(_LOWEST, _HIGHEST)
        with _lock:
            if port in _drawn:
                continue
            _drawn.add(port)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port
    raise OSError(
        f"no free TCP port between {_LOWEST} and {_HIGHEST} on {HOST}: stop some of the servers that run there"
    )
