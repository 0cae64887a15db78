"""A real object store on this machine that speaks Azure's protocol: Azurite, in a folder of its own.

Example::

    with Azurite.start(Path("azurite")) as store:
        store.create_container("tables")
        run(["itel-cabinet", "tables", "create", "--tables_root=az://tables/cabinet"], env=store.environment)

delta-rs and obstore know Azurite as "the emulator" and must be configured so: with its address as an ordinary endpoint,
no table is found, because Azurite lists a folder from its beginning where it is asked to list from a name on.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path

import requests

from itel_cabinet.local.services.artifacts import AZURITE, node
from itel_cabinet.local.services.guarded import Guarded
from itel_cabinet.local.services.ports import HOST, free_port
from itel_cabinet.local.services.service import Service, answers

__all__ = ["Azurite", "AzuriteError"]

_START_SECONDS = 90.0
_CALL_SECONDS = 30.0

# Of every Azurite, published by its makers: no secret.
_ACCOUNT = "devstoreaccount1"
_KEY = base64.b64decode("Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==")
_PROTOCOL = "2021-08-06"


class AzuriteError(RuntimeError):
    """Azurite did not start, or refuses what was asked; the text ends with its answer or its log."""


@dataclass(eq=False)
class Azurite(Service):
    """One Azurite whose data and log (``azurite.log``) lie in ``folder``.

    Use :meth:`start`, then ``with`` or :meth:`stop`. It never outlives this process, even if that is killed. Not
    thread-safe, but for the properties.
    """

    folder: Path
    port: int = field(default_factory=free_port)
    _process: Guarded | None = field(default=None, repr=False)

    @classmethod
    def start(cls, folder: Path) -> Azurite:
        """Start on a free port and wait until it serves; raises :class:`AzuriteError`, and ``ArtifactError`` if Azurite
        or Node.js is missing.
        """
        store = cls(folder.absolute())
        store.folder.mkdir(parents=True, exist_ok=True)
        store.start_again()
        return store

    @property
    def environment(self) -> Mapping[str, str]:
        """What a process needs in its environment to reach this store by ``az://`` and ``abfss://`` URIs."""
        return {"AZURE_STORAGE_USE_EMULATOR": "true", "AZURITE_BLOB_STORAGE_URL": f"http://{HOST}:{self.port}"}

    @property
    def log(self) -> Path:
        """What Azurite printed, over all its starts."""
        return self.folder / "azurite.log"

    def start_again(self) -> None:
        """Start on the same folder and port, after :meth:`stop`; waits until it serves. Idempotent."""
        if self._process is not None and self._process.running:
            return
        command = [node(), str(AZURITE.script("azurite-blob")), "--blobHost", HOST, "--blobPort", str(self.port)]
        options = ["--location", str(self.folder), "--silent", "--skipApiVersionCheck", "--disableTelemetry"]
        self._process = Guarded([*command, *options], log=self.log, cwd=self.folder)
        self._process.wait_until(self._ready, "Azurite", AzuriteError, _START_SECONDS)

    def stop(self) -> None:
        """End in order (SIGTERM), upon which it writes down what it has in memory. Idempotent."""
        if self._process is not None:
            self._process.stop()

    def create_container(self, name: str) -> None:
        """Make a container; its name has 3 to 63 small letters, digits and hyphens. Raises :class:`AzuriteError`."""
        date = formatdate(usegmt=True)
        # Azure's SharedKey: the method, eleven standard headers that are not sent, Azure's own, and the resource.
        signed = (
            f"PUT{chr(10) * 12}x-ms-date:{date}\nx-ms-version:{_PROTOCOL}\n"
            f"/{_ACCOUNT}/{_ACCOUNT}/{name}\nrestype:container"
        )
        signature = base64.b64encode(hmac.new(_KEY, signed.encode(), hashlib.sha256).digest()).decode()
        answer = requests.put(
            f"http://{HOST}:{self.port}/{_ACCOUNT}/{name}",
            params={"restype": "container"},
            headers={
                "x-ms-date": date,
                "x-ms-version": _PROTOCOL,
                "Authorization": f"SharedKey {_ACCOUNT}:{signature}",
            },
            timeout=_CALL_SECONDS,
        )
        if answer.status_code != 201:
            reason = " ".join(answer.text.split())[:300]
            raise AzuriteError(f"container {name} could not be made: {answer.status_code} {reason}")

    def _ready(self) -> bool:
        return answers(f"http://{HOST}:{self.port}/{_ACCOUNT}")
