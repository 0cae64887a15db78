"""The photos of a form: what they are called, where ClaimX and the store have them. Pure functions.

One album is one form's photos.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pydantic_core import from_json

from itel_cabinet.transforms.events import INT64_MAX

__all__ = [
    "MEDIA_FOLDER",
    "Album",
    "Link",
    "PhotoFailed",
    "PhotoLibrary",
    "album_folder",
    "media_id_of",
    "object_name",
    "parse_links",
]

MEDIA_FOLDER = "itel_cabinet_form_attachments"
_NAME_BYTES = 120  # with the media id well below the 255 of a file system
_WARNING_CHARACTERS = 200


class PhotoFailed(Exception):
    """A photo, or a list of them, cannot be had. ``reason`` is a stable name; the text is one line, without a URL's
    query and without a file's name, either of which may tell what it should not.
    """

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason

    @property
    def warning(self) -> str:
        return f"{self.reason}: {' '.join(str(self).split())}"[:_WARNING_CHARACTERS]


@dataclass(frozen=True, slots=True)
class Album:
    """The photos of one form, each once."""

    project_id: str
    task_id: int
    assignment_id: int
    media_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Link:
    """Where ClaimX has a photo; ``file_name`` is as ClaimX tells it. Not in the repr: both come from outside."""

    media_id: int
    file_name: str
    url: str

    def __repr__(self) -> str:
        return f"Link({self.media_id})"


class PhotoLibrary(Protocol):
    """The photos as the step sees them. Implementations are thread-safe, bound their own time and raise PhotoFailed."""

    def stored(self, album: Album) -> Mapping[int, str]:
        """The path of each photo of the album that is stored already, by media id."""

    def links(self, album: Album, media_ids: Sequence[int]) -> Mapping[int, Link]:
        """Where ClaimX has these photos; those that it does not know are left out."""

    def fetch(self, album: Album, link: Link) -> str:
        """Store one photo and return its path. Idempotent."""


# --------------------------------------------------------------------------------------------------------------- names


def album_folder(album: Album) -> str:
    """The folder of an album, relative to the media root: five segments that never lead out of it."""
    return f"{MEDIA_FOLDER}/{_segment(album.project_id)}/{int(album.task_id)}/{int(album.assignment_id)}"


def object_name(link: Link) -> str:
    """The name of a photo in its album's folder: ``{media_id}_{file_name}``, the latter made safe.

    Letters, digits, ``.``, ``-`` and ``_`` stay, of any script; all else becomes ``_``. No path, no leading dot, at
    most 120 bytes, of which the extension is kept.
    """
    # Only the ends of what may be megabytes: a name that long is nobody's.
    given = link.file_name if len(link.file_name) <= 1_000 else link.file_name[:500] + link.file_name[-500:]
    name = re.split(r"[/\\]", given)[-1] or f"{link.media_id}.jpg"
    return f"{link.media_id}_{_segment(name)}"


def media_id_of(name: str) -> int | None:
    """The media id in a name that :func:`object_name` has made; None for any other."""
    found = re.match(r"(\d{1,19})_", name, re.ASCII)
    return int(found[1]) if found else None


def _segment(text: str) -> str:
    """``text`` as one segment of a path, never empty, never ``.`` or ``..``."""
    # Composed first, as two spellings of one name would be two files; a lone surrogate is no letter.
    safe = re.sub(r"[^\w.-]", "_", unicodedata.normalize("NFC", text)).lstrip(".")
    stem, dot, extension = safe.rpartition(".")
    if not dot or len(extension.encode()) > 10:
        stem, extension = safe, ""
    room = _NAME_BYTES - len(extension.encode()) - 1
    stem = stem.encode()[:room].decode(errors="ignore")
    return (f"{stem}.{extension}" if extension else stem).rstrip(".") or "_"


# ------------------------------------------------------------------------------------------------------------ metadata


def parse_links(body: bytes, wanted: Sequence[int]) -> dict[int, Link]:
    """ClaimX's answer about photos: a list of objects, one such object, or a list under ``data`` or ``media``.

    Read leniently: what is no photo that was ``wanted``, or has no link, is left out; of two for one id the first
    counts. Raises PhotoFailed for what is no JSON of such a shape.
    """
    try:
        content = from_json(body, allow_inf_nan=False)
    except ValueError:
        raise PhotoFailed("metadata", "ClaimX's answer is not JSON") from None
    if isinstance(content, dict):
        inner = next((content[key] for key in ("data", "media") if isinstance(content.get(key), list | dict)), content)
        content = inner if isinstance(inner, list) else [inner]
    if not isinstance(content, list):
        raise PhotoFailed("metadata", "ClaimX's answer is no list of photos")
    asked = set(wanted)
    links: dict[int, Link] = {}
    for item in content:
        media_id = _media_id(item.get("mediaID")) if isinstance(item, dict) else None
        if media_id not in asked or media_id in links:
            continue
        name, url = item.get("mediaName"), item.get("fullDownloadLink")
        if isinstance(url, str) and url.strip():
            links[media_id] = Link(media_id, name.strip() if isinstance(name, str) else "", url.strip())
    return links


def _media_id(value: Any) -> int | None:
    if isinstance(value, str) and re.fullmatch(r"\d{1,19}", value, re.ASCII):
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= INT64_MAX else None
