"""Ports for the servers of the local stack."""

from __future__ import annotations

import socket

import pytest

from itel_cabinet.local.services import ports


def test_no_port_is_given_out_twice() -> None:
    drawn = [ports.free_port() for _ in range(1_000)]
    assert len(set(drawn)) == 1_000


def test_a_port_that_is_listened_at_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server((ports.HOST, ports.free_port())) as server:
        taken = server.getsockname()[1]
        monkeypatch.setattr(ports, "_drawn", set())
        monkeypatch.setattr(ports, "_LOWEST", taken)
        monkeypatch.setattr(ports, "_HIGHEST", taken)
        with pytest.raises(OSError, match=f"^no free TCP port between {taken} and {taken} on 127.0.0.1: stop some"):
            ports.free_port()
