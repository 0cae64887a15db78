"""The photos of a form, from ClaimX into an object store: a PhotoLibrary of transforms.albums."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote

from itel_cabinet.io.delta import SuppressionList, Suppressions, TableError, get_suppressions, is_outage
from itel_cabinet.io.http import (
    CallError,
    Connection,
    ConnectionSettings,
    DownloadError,
    Downloads,
    DownloadSettings,
    get_connection,
    get_downloads,
)
from itel_cabinet.io.objects import Objects, ObjectStoreError, ObjectStoreSettings, get_objects
from itel_cabinet.io.worker import SettingError, crash_points
from itel_cabinet.transforms.photos import (
    Album,
    Link,
    PhotoError,
    album_folder,
    media_id_of,
    object_name,
    parse_links,
)

__all__ = ["MediaSettings", "Photos", "get_photos"]

_IDS_A_CALL = 50  # a URL is at most some 2,000 characters on its way


@dataclass(frozen=True, slots=True)
class MediaSettings:
    """``path`` holds ``{project_id}`` and ``{media_ids}``. Raises SettingError when made."""

    connection: ConnectionSettings
    store: ObjectStoreSettings
    downloads: DownloadSettings
    path: str = "/export/project/{project_id}/media?mediaIds={media_ids}"

    def __post_init__(self) -> None:
        rest = self.path.replace("{project_id}", "").replace("{media_ids}", "")
        holds_both = "{project_id}" in self.path and "{media_ids}" in self.path
        if not holds_both or "{" in rest or "}" in rest or not self.path.startswith("/"):
            message = f"must begin with / and hold {{project_id}} and {{media_ids}}, got {self.path!r}"
            raise SettingError(message, field="media_path")


@dataclass(frozen=True)
class Photos:
    """See transforms.albums.PhotoLibrary. Thread-safe.

    A photo is known by its media id: once an object of that id is in its album's folder, it is not fetched again.
    """

    path: str
    claimx: Connection
    store: Objects
    downloads: Downloads
    suppressions: Suppressions | None = None

    def stored(self, album: Album) -> Mapping[int, str]:
        folder = album_folder(album)
        try:
            names = sorted(self.store.names(folder))
        except ObjectStoreError as error:
            raise PhotoError("store", str(error)) from None
        ids = {media_id_of(name): name for name in reversed(names)}
        return {i: self.store.uri(f"{folder}/{ids[i]}") for i in album.media_ids if i in ids}

    def links(self, album: Album, media_ids: Sequence[int]) -> Mapping[int, Link]:
        found: dict[int, Link] = {}
        for start in range(0, len(media_ids), _IDS_A_CALL):
            some = media_ids[start : start + _IDS_A_CALL]
            path = self.path.replace("{project_id}", quote(album.project_id, safe=""))
            path = path.replace("{media_ids}", ",".join(map(str, some)))
            try:
                reply = self.claimx.call("GET", path, headers=album.trace(path) if album.trace else None)
            except CallError as error:
                raise PhotoError("metadata", f"ClaimX: {error.kind}") from None
            if not reply.ok:
                raise PhotoError("metadata", f"ClaimX answers with {reply.describe()}")
            found |= parse_links(reply.body, some)
        return found

    def fetch(self, album: Album, link: Link) -> str:
        try:
            return self._fetch(album, link)
        except DownloadError as error:
            if error.reason != "expired":
                raise PhotoError(error.reason, str(error)) from None
        # A link lives for minutes, and in a long queue it may grow old.
        fresh = self.links(album, [link.media_id]).get(link.media_id)
        if fresh is None:
            raise PhotoError("not_listed", "ClaimX tells no link for it any more")
        try:
            return self._fetch(album, fresh)
        except DownloadError as error:
            raise PhotoError(error.reason, str(error)) from None

    def _fetch(self, album: Album, link: Link) -> str:
        key = f"{album_folder(album)}/{object_name(link)}"
        # Links of ClaimX itself need its login, and redirect to where nobody may see that.
        with self.downloads.image(link.url, self.claimx.headers_for) as content:
            try:
                self.store.put(key, content)
            except ObjectStoreError as error:
                raise PhotoError("store", str(error)) from None
        crash_points.maybe_crash("after-photo")
        self._leave_erased(album, key)
        return self.store.uri(key)

    def _leave_erased(self, album: Album, key: str) -> None:
        """Remove what was just stored if it may not be there. An erasure that begins later finds it by itself."""
        people = self.suppressions
        if people is None:
            return
        try:
            people.refresh()
            if not any(people.find(kind, [getattr(album, name)]) for kind, name in people.place.ids):
                return
            reason, why = "erased", "its assignment or project was erased meanwhile"
        except Exception as error:
            if not isinstance(error, TableError) and not is_outage(error):
                raise
            reason, why = "store", f"the list of what was erased: {type(error).__name__}"
        try:
            self.store.delete([key])
        except ObjectStoreError as error:
            raise PhotoError("store", str(error)) from None
        raise PhotoError(reason, why)


def get_photos(settings: MediaSettings, suppressed: SuppressionList | None = None) -> Photos:
    """The process's photos with these settings, but for those on the list. Raises UnresolvedSecretError."""
    place = suppressed
    return Photos(
        settings.path,
        get_connection(settings.connection),
        get_objects(settings.store),
        get_downloads(settings.downloads),
        None if place is None else get_suppressions(place.uri, place.storage_options, place.ids),
    )
