"""A real Toxiproxy on this machine: TCP proxies whose connections become slow, are cut off or lead nowhere.

Example::

    with Toxiproxy.start(Path("toxiproxy")) as proxies:
        port = proxies.open("claimx", "127.0.0.1:8080")
        proxies.poison("claimx", "latency", latency=300, jitter=200)
        proxies.cure("claimx")
        proxies.cut("claimx")
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import requests

from itel_cabinet.local.services.artifacts import TOXIPROXY
from itel_cabinet.local.services.guarded import Guarded
from itel_cabinet.local.services.ports import HOST, free_port
from itel_cabinet.local.services.service import Service, answers

__all__ = ["Toxiproxy", "ToxiproxyError"]

_START_SECONDS = 30.0
_CALL_SECONDS = 10.0


class ToxiproxyError(RuntimeError):
    """Toxiproxy did not start, or refuses what was asked; the text ends with its answer or its log."""


@dataclass(eq=False)
class Toxiproxy(Service):
    """One server and its proxies; its log lies in ``folder``.

    Use :meth:`start`, then ``with`` or :meth:`stop`. It never outlives this process, even if that is killed. Methods
    raise :class:`ToxiproxyError`. Not thread-safe.
    """

    folder: Path
    port: int = field(default_factory=free_port)
    _process: Guarded | None = field(default=None, repr=False)

    @classmethod
    def start(cls, folder: Path) -> Toxiproxy:
        """Start on a free port and wait until it serves; raises also ``ArtifactError`` if it was not built."""
        server = cls(folder.absolute())
        server.folder.mkdir(parents=True, exist_ok=True)
        command = [str(TOXIPROXY.path), "-host", HOST, "-port", str(server.port)]
        server._process = Guarded(command, log=server.folder / "toxiproxy.log", cwd=server.folder)
        server._process.wait_until(
            lambda: answers(f"{server._url}/version"), "Toxiproxy", ToxiproxyError, _START_SECONDS
        )
        return server

    @property
    def _url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def stop(self) -> None:
        if self._process is not None:
            self._process.end()

    def open(self, name: str, upstream: str, port: int | None = None) -> int:
        """Lead a port, by default a free one, to ``upstream`` (``host:port``); the port."""
        port = port or free_port()
        self._call("POST", "proxies", name=name, listen=f"{HOST}:{port}", upstream=upstream, enabled=True)
        return port

    def poison(
        self, name: str, kind: str, *, stream: Literal["upstream", "downstream"] = "downstream", **attributes: int
    ) -> None:
        """Add a toxic to a proxy's connections, those that are open too: ``latency``, ``bandwidth``, ``timeout``,
        ``reset_peer``, ``slicer``, ``limit_data``, with the attributes that Toxiproxy's documentation has.
        """
        self._call("POST", f"proxies/{name}/toxics", type=kind, stream=stream, attributes=attributes)

    def cut(self, name: str) -> None:
        """Close a proxy and its connections until :meth:`cure`."""
        self._call("POST", f"proxies/{name}", enabled=False)

    def cure(self, name: str) -> None:
        """Take all toxics away, and open the proxy if it was cut."""
        for toxic in self._call("GET", f"proxies/{name}/toxics"):
            self._call("DELETE", f"proxies/{name}/toxics/{toxic['name']}")
        self._call("POST", f"proxies/{name}", enabled=True)

    def _call(self, method: str, path: str, **body: Any) -> Any:
        try:
            answer = requests.request(method, f"{self._url}/{path}", json=body or None, timeout=_CALL_SECONDS)
        except requests.RequestException as error:
            raise ToxiproxyError(f"Toxiproxy does not answer: {error}") from None
        if not answer.ok:
            raise ToxiproxyError(f"{method} {path}: {answer.status_code} {answer.text}")
        return answer.json() if answer.content else None
