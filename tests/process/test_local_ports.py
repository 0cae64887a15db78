"""Ports for the servers of the local stack."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from itel_cabinet.local.services import ports


def test_no_port_is_given_out_twice() -> None:
    drawn = [ports.free_port() for _ in range(100)]
    assert len(set(drawn)) == 100


def test_no_port_is_given_to_two_processes() -> None:
    drawn = ports.free_port()
    draw = (
        "from itel_cabinet.local.services import ports\n"
        f"ports._LOWEST, ports._HIGHEST = {drawn}, {drawn}\n"
        "ports.free_port()"
    )
    other = subprocess.run([sys.executable, "-c", draw], capture_output=True, text=True)
    assert f"no free TCP port between {drawn} and {drawn} on 127.0.0.1" in other.stderr


def test_a_port_that_is_listened_at_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server((ports.HOST, 0)) as server:
        taken = server.getsockname()[1]
        monkeypatch.setattr(ports, "_LOWEST", taken)
        monkeypatch.setattr(ports, "_HIGHEST", taken)
        with pytest.raises(OSError, match=f"^no free TCP port between {taken} and {taken} on 127.0.0.1: stop some"):
            ports.free_port()
