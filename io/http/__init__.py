"""One named connection to an HTTP API: credentials, TLS, retries, limits, a circuit breaker; and guarded downloads."""

from __future__ import annotations

from itel_cabinet.io.http.answers import Meaning
from itel_cabinet.io.http.auth import Auth, check_header_name
from itel_cabinet.io.http.breaker import BreakerSettings
from itel_cabinet.io.http.connection import Connection, ConnectionSettings, get_connection
from itel_cabinet.io.http.downloads import AllowedHosts, DownloadError, Downloads, DownloadSettings, get_downloads
from itel_cabinet.io.http.transport import (
    CallError,
    FailureKind,
    Reply,
    TlsFiles,
    Transport,
    TransportSettings,
    check_url,
)

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
