"""ClaimX's exports of a project and of its media: an Exports of transforms.lookups."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote

from itel_cabinet.io.claimx import ClaimXOutageError, ClaimXSettings, WaitingLookup, describe_refusal, get_claimx
from itel_cabinet.io.http import (
    AllowedHosts,
    CallError,
    Connection,
    ConnectionSettings,
    DownloadError,
    Downloads,
    DownloadSettings,
    get_connection,
    get_downloads,
)
from itel_cabinet.io.worker import once_per_process, retry_outage
from itel_cabinet.transforms.enrichment import TaskLookupError, Trace
from itel_cabinet.transforms.json_text import read_json
from itel_cabinet.transforms.lookups import SentLinks, expiry_of
from itel_cabinet.transforms.photos import PhotoError, parse_links

__all__ = ["ClaimXExports", "ExportSettings", "LinkSettings", "get_exports"]

_LOGGER = logging.getLogger(__name__)
_IDS_A_CALL = 50  # a URL is at most some 2,000 characters on its way


@dataclass(frozen=True, slots=True)
class LinkSettings:
    """``path`` holds ``{project_id}`` and ``{media_ids}``. With ``resolves`` a link's redirect target is what is given;
    one that is valid for less than ``margin_seconds`` is fetched again."""

    path: str
    allowed: AllowedHosts
    margin_seconds: float = 300.0
    resolves: bool = True


@dataclass(frozen=True, slots=True)
class ExportSettings:
    """What of ClaimX's exports is needed: ``project_path`` holds ``{project_id}``; None and no ``links``: not that."""

    connection: ConnectionSettings
    project_path: str | None
    cache_seconds: float
    links: LinkSettings | None
    on_outage: Literal["wait", "divert"]
    outage_seconds: float


@dataclass(frozen=True)
class ClaimXExports:
    """See transforms.lookups.Exports. Thread-safe. ``now`` (epoch seconds) is what a link's end is compared with."""

    settings: ExportSettings
    connection: Connection
    projects: WaitingLookup[Mapping[str, Any]] | None
    downloads: Downloads | None
    now: Callable[[], float] = time.time

    def project(self, project_id: str, trace: Trace) -> Mapping[str, Any] | None:
        """See Exports; answers are cached for ``cache_seconds``."""
        assert self.projects is not None
        try:
            return self.projects.task(project_id, not_before=-math.inf, trace=trace)
        except TaskLookupError as error:
            if error.error_class == "unknown_project":
                return None
            raise

    def links(self, project_id: str, media_ids: Sequence[int], trace: Trace) -> SentLinks:
        """See Exports."""
        found, kept = self._links(project_id, media_ids, trace)
        late = [media_id for media_id, url in found.items() if self._ends_soon(url)]
        if late:
            again, kept_again = self._links(project_id, late, trace)
            found |= again
            kept = kept - {*late} | kept_again
        return SentLinks(found, len(kept))

    def _ends_soon(self, url: str) -> bool:
        links, ends = self.settings.links, expiry_of(url)
        return links is not None and ends is not None and ends.timestamp() - self.now() < links.margin_seconds

    def _links(self, project_id: str, media_ids: Sequence[int], trace: Trace) -> tuple[dict[int, str], set[int]]:
        """The links, and those of them that are as ClaimX gives them, though a redirect was wanted."""
        found: dict[int, str] = {}
        kept: set[int] = set()
        for start in range(0, len(media_ids), _IDS_A_CALL):
            for media_id, url in self._listed(project_id, media_ids[start : start + _IDS_A_CALL], trace).items():
                try:
                    found[media_id] = self._resolved(url)
                except DownloadError as error:
                    _LOGGER.warning("photo %d: its link is not resolved: %s: %s", media_id, error.reason, error)
                    if error.reason != "refused":  # where no link may lead, nobody is sent
                        found[media_id] = url
                        kept.add(media_id)
        return found, kept

    def _resolved(self, url: str) -> str:
        links = self.settings.links
        if links is None or not links.resolves or self.downloads is None:
            return url
        return self.downloads.target(url, self.connection.headers_for)

    def _listed(self, project_id: str, media_ids: Sequence[int], trace: Trace) -> Mapping[int, str]:
        links = self.settings.links
        assert links is not None
        path = links.path.replace("{project_id}", quote(project_id, safe=""))
        path = path.replace("{media_ids}", ",".join(map(str, media_ids)))

        def ask() -> Mapping[int, str]:
            try:
                reply = self.connection.call("GET", path, headers=trace(path))
            except CallError as error:
                raise ClaimXOutageError(str(error), error.attempts) from None
            if not reply.ok:
                if describe_refusal(reply, self.settings.connection, "project") is None:
                    return {}
                raise TaskLookupError("lookup_refused", f"ClaimX answers with {reply.describe()}", reply.attempts)
            try:
                return {media_id: link.url for media_id, link in parse_links(reply.body, media_ids).items()}
            except PhotoError as error:
                raise TaskLookupError("wrong_shape", str(error), reply.attempts) from None

        try:
            return retry_outage(
                ask,
                what="ClaimX",
                seconds=self.settings.outage_seconds if self.settings.on_outage == "wait" else 0.0,
                is_outage=lambda error: self.settings.on_outage == "wait" and isinstance(error, ClaimXOutageError),
            )
        except ClaimXOutageError as error:
            raise TaskLookupError("outage", str(error), error.attempts) from None


def parse_project(body: bytes, _: int | str) -> Mapping[str, Any]:
    """The object in ClaimX's answer about a project. Raises ValueError."""
    content, _repairs = read_json(body)
    if not isinstance(content, dict):
        raise ValueError("the answer is not an object")
    return content


@once_per_process
def get_exports(settings: ExportSettings) -> ClaimXExports:
    """The process's one client with these settings. Raises UnresolvedSecretError."""
    projects = None
    if settings.project_path is not None:
        claimx = ClaimXSettings(settings.connection, settings.project_path, settings.cache_seconds, subject="project")
        projects = WaitingLookup(get_claimx(claimx, parse_project), settings.on_outage, settings.outage_seconds)
    downloads = None
    if settings.links is not None:
        downloads = get_downloads(DownloadSettings(settings.links.allowed))
    return ClaimXExports(settings, get_connection(settings.connection), projects, downloads)
