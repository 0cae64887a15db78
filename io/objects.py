"""A folder of objects: on this machine, in Azure (``az://``, ``abfss://``, OneLake too), S3 or GCS.

Thin over obstore, which reads the same environment variables as delta-rs. Knows nothing of what the objects are.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, from_url

from itel_cabinet.io.worker import SettingError, describe_error, once_per_process

if TYPE_CHECKING:
    from obstore.store import ObjectStore

__all__ = ["ObjectStoreError", "ObjectStoreSettings", "Objects", "get_objects"]

_SCHEMES = ("az", "azure", "adl", "abfs", "abfss", "s3", "s3a", "gs")
# What obstore takes apart from the store's own options; in delta-rs they are one.
_CLIENT_OPTIONS = frozenset(
    {
        "allow_http",
        "allow_invalid_certificates",
        "connect_timeout",
        "http1_only",
        "http2_only",
        "pool_idle_timeout",
        "pool_max_idle_per_host",
        "proxy_ca_certificate",
        "proxy_excludes",
        "proxy_url",
        "timeout",
        "user_agent",
    }
)
_TRIES = 3
_KEYS_A_CALL = 500
_CALL_SECONDS = "30s"  # a longer upload is given up and tried again


class ObjectStoreError(Exception):
    """The store does not take or tell what was asked. One line, without secrets."""


@dataclass(frozen=True, slots=True)
class ObjectStoreSettings:
    """``root`` is a folder, a ``file://`` URI or an object store's URI. Raises SettingError when made.

    ``options`` are obstore's and may be a mapping; secrets belong in the environment. Hashable.
    """

    root: str
    options: Any = field(default=(), repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", tuple(sorted(dict(self.options).items())))
        scheme, separator, rest = self.root.partition("://")
        if separator and scheme not in ("file", *_SCHEMES):
            raise SettingError(
                f"must be a folder or a URI of {', '.join(_SCHEMES)}, got a URI of {scheme!r}", field="root"
            )
        if not (rest if separator else self.root).strip("/") and self.root != "/":
            raise SettingError("must name a folder, or a container or bucket", field="root")
        if self.folder is None and {"?", "#"} & {*self.root}:
            raise SettingError(
                "must have no query and no fragment; options and secrets are given otherwise", field="root"
            )

    @property
    def folder(self) -> Path | None:
        """The folder that it is, or None for an object store."""
        if "://" not in self.root:
            return Path(self.root).absolute()
        url = urlsplit(self.root)
        return Path(unquote(url.path)) if url.scheme == "file" else None


class Objects:
    """The objects below a root. Thread-safe; made once for its settings by :func:`objects`. Methods raise
    ObjectStoreError.

    A key is segments between single slashes, none of them empty, ``.`` or ``..``: others are refused, so that nothing
    is ever outside the root. An object is there as a whole or not at all.
    """

    def __init__(self, settings: ObjectStoreSettings) -> None:
        self._settings = settings
        self._base = str(settings.folder or settings.root.rstrip("/"))
        self._store: ObjectStore | None = None

    def uri(self, key: str) -> str:
        """Where an object is: an absolute path, or the URI of an object store."""
        return f"{self._base.rstrip('/')}/{key}"

    def names(self, folder: str) -> list[str]:
        """The names of the objects in ``folder``, those in folders below left out; none if there is no such folder."""
        _check_key(folder)
        found = self._do(lambda store: obstore.list_with_delimiter(store, folder))
        return [entry["path"].rpartition("/")[2] for entry in found["objects"]]

    def put(self, key: str, content: IO[bytes]) -> None:
        """Store what is left to read of ``content``, over what may be there."""
        _check_key(key)
        self._do(lambda store: obstore.put(store, key, content))

    def key_of(self, uri: str) -> str | None:
        """The key of an object that :meth:`uri` has named; None for what lies elsewhere."""
        base = self._base.rstrip("/") + "/"
        return uri.removeprefix(base) if uri.startswith(base) else None

    def details(self, folder: str) -> dict[str, tuple[int, datetime]]:
        """The keys of all objects in ``folder`` and in folders below, with their bytes and when they were stored."""
        _check_key(folder)
        pages = self._do(lambda store: [*obstore.list(store, folder)])
        return {entry["path"]: (entry["size"], entry["last_modified"]) for page in pages for entry in page}

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects; one that is not there is no error. Idempotent."""
        for key in keys:
            _check_key(key)
        for start in range(0, len(keys), _KEYS_A_CALL):
            some = keys[start : start + _KEYS_A_CALL]
            self._do(lambda store, some=some: _delete(store, some))

    def check(self) -> None:
        """Raise unless the root can be listed, and where it is a folder also written."""
        if self._settings.folder is not None:
            try:
                self._settings.folder.mkdir(parents=True, exist_ok=True)
                probe = self._settings.folder / ".writable"
                probe.touch()
                probe.unlink()
            except OSError as error:
                raise ObjectStoreError(f"{self._base} cannot be written: {error.strerror}") from None
        self._do(lambda store: obstore.list_with_delimiter(store, "no-such-folder"))

    def _do(self, work: Any) -> Any:
        try:
            if self._store is None:
                self._store = _opened(self._settings)
            return work(self._store)
        except (BaseError, OSError, ValueError) as error:
            text = describe_error(error)
            for _, value in self._settings.options:
                if len(value) > 3:
                    text = text.replace(value, "***")
            raise ObjectStoreError(f"{self._base}: {text}") from None


def _delete(store: ObjectStore, keys: Sequence[str]) -> None:
    try:
        obstore.delete(store, keys)
    except FileNotFoundError:
        for key in keys:  # of several the call ends at the first that is not there
            with contextlib.suppress(FileNotFoundError):
                obstore.delete(store, key)


def _check_key(key: str) -> None:
    if any(part in ("", ".", "..") for part in key.split("/")):
        raise ObjectStoreError("a key must be segments between single slashes, none of them . or ..")


def _opened(settings: ObjectStoreSettings) -> ObjectStore:
    if settings.folder is not None:
        return LocalStore(settings.folder, mkdir=True, automatic_cleanup=True)
    options = dict(settings.options)
    client = {"timeout": _CALL_SECONDS}
    # The one of these that delta-rs reads from the environment; obstore forgets it where any of them is given.
    if "AWS_ALLOW_HTTP" in os.environ:
        client["allow_http"] = os.environ["AWS_ALLOW_HTTP"]
    client |= {name: options.pop(name) for name in _CLIENT_OPTIONS & options.keys()}
    return cast(
        "ObjectStore",
        from_url(settings.root, config=options, client_options=client, retry_config={"max_retries": _TRIES}),  # type: ignore[call-overload]
    )


@once_per_process
def get_objects(settings: ObjectStoreSettings) -> Objects:
    """This process's one store with these settings; nothing is opened before the first call."""
    return Objects(settings)
