"""One named connection to an HTTP API: credentials, TLS, retries, limits, a circuit breaker; and guarded downloads."""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

from itel_cabinet.io.http.auth import Auth, check_header_name
from itel_cabinet.io.http.urls import check_url

if TYPE_CHECKING:
    from itel_cabinet.io.http.answers import Meaning
    from itel_cabinet.io.http.breaker import BreakerSettings
    from itel_cabinet.io.http.connection import Connection, ConnectionSettings, get_connection
    from itel_cabinet.io.http.downloads import AllowedHosts, DownloadError, Downloads, DownloadSettings, get_downloads
    from itel_cabinet.io.http.transport import CallError, FailureKind, Reply, TlsFiles, Transport, TransportSettings

__all__ = [
    "AllowedHosts",
    "Auth",
    "BreakerSettings",
    "CallError",
    "Connection",
    "ConnectionSettings",
    "DownloadError",
    "DownloadSettings",
    "Downloads",
    "FailureKind",
    "Meaning",
    "Reply",
    "TlsFiles",
    "Transport",
    "TransportSettings",
    "check_header_name",
    "check_url",
    "get_connection",
    "get_downloads",
]

# requests and urllib3 take a tenth of a second to import, and a command that sends nothing does without them.
__getattr__, _, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "answers": ["Meaning"],
        "breaker": ["BreakerSettings"],
        "connection": ["Connection", "ConnectionSettings", "get_connection"],
        "downloads": ["AllowedHosts", "DownloadError", "DownloadSettings", "Downloads", "get_downloads"],
        "transport": ["CallError", "FailureKind", "Reply", "TlsFiles", "Transport", "TransportSettings"],
    },
)
