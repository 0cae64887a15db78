"""Free TCP ports for the servers of the local stack."""

from __future__ import annotations

import random
import socket

__all__ = ["HOST", "free_port"]

HOST = "127.0.0.1"

# Below the range from which the system picks client ports. A client that keeps dialling a stopped server inside that
# range sooner or later connects to itself, and then holds the port against the server's return.
_LOWEST, _HIGHEST = 15_000, 32_000
# A server binds its port only seconds after it was drawn. Until this process ends, the UDP port of the same number, for
# which nobody has another use, tells all processes of this machine that it was given out.
_claims: list[socket.socket] = []


def free_port() -> int:
    """A port on the loopback that nobody listens on now, and that no process which still runs was given by this.

    Thread-safe; raises ``OSError`` if a hundred draws find none.
    """
    draw = random.SystemRandom()
    for _ in range(100):
        port = draw.randint(_LOWEST, _HIGHEST)
        if not _claim(port):
            continue
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


def _claim(port: int) -> bool:
    claim = socket.socket(type=socket.SOCK_DGRAM)
    try:
        claim.bind((HOST, port))
    except OSError:
        claim.close()
        return False
    _claims.append(claim)
    return True
