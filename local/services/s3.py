"""An object store on this machine that speaks S3's protocol: moto's server, which honours ``If-None-Match``.

Not S3 itself: it keeps everything in memory and checks no signature. What is tried on it is that a commit which two
writers make at once is made by one (delta-rs puts it with ``If-None-Match: *``), over real sockets.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import requests

from itel_cabinet.local.services.guarded import Guarded
from itel_cabinet.local.services.ports import HOST, free_port
from itel_cabinet.local.services.service import Service, answers

__all__ = ["S3", "S3Error"]

_START_SECONDS = 60.0
_CALL_SECONDS = 30.0


class S3Error(RuntimeError):
    """The server did not start, or refuses what was asked; the text ends with its answer or its log."""


@dataclass(eq=False)
class S3(Service):
    """One server, whose log (``s3.log``) lies in ``folder``.

    Use :meth:`start`, then ``with`` or :meth:`stop`. It never outlives this process, even if that is killed. Not
    thread-safe, but for the properties.
    """

    folder: Path
    port: int = field(default_factory=free_port)
    _process: Guarded | None = field(default=None, repr=False)

    @classmethod
    def start(cls, folder: Path) -> S3:
        """Start on a free port and wait until it serves; raises :class:`S3Error`."""
        store = cls(folder.absolute())
        store.folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "moto.server", "-H", HOST, "-p", str(store.port)]
        store._process = Guarded(command, log=store.log, cwd=store.folder)
        store._process.wait_until(store._ready, "S3's stand-in", S3Error, _START_SECONDS)
        return store

    @property
    def environment(self) -> Mapping[str, str]:
        """What a process needs in its environment to reach this store by ``s3://`` URIs."""
        return {
            "AWS_ENDPOINT_URL": f"http://{HOST}:{self.port}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "anyone",
            "AWS_SECRET_ACCESS_KEY": "anything",
        }

    @property
    def log(self) -> Path:
        """What the server printed."""
        return self.folder / "s3.log"

    def stop(self) -> None:
        """End it; what it holds is gone. Idempotent."""
        if self._process is not None:
            self._process.stop()

    def create_bucket(self, name: str) -> None:
        """Make a bucket. Raises :class:`S3Error`."""
        scope = "Credential=anyone/20260101/us-east-1/s3/aws4_request"
        answer = requests.put(
            f"http://{HOST}:{self.port}/{name}", headers={"Authorization": f"AWS4-HMAC-SHA256 {scope}"},
            timeout=_CALL_SECONDS,
        )  # fmt: skip
        if answer.status_code != 200:
            reason = " ".join(answer.text.split())[:300]
            raise S3Error(f"bucket {name} could not be made: {answer.status_code} {reason}")

    def _ready(self) -> bool:
        return answers(f"http://{HOST}:{self.port}/moto-api/")
