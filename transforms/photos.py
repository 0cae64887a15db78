"""The photos of a form: what they are called, where ClaimX and the store have them, and the step that fetches them.

One album is one form's photos. A photo that cannot be had costs a warning on its row, never its form.
"""

from __future__ import annotations

import logging
import queue
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

from itel_cabinet.transforms.enrichment import CabinetTask, Photograph, Trace
from itel_cabinet.transforms.events import INT64_MAX
from itel_cabinet.transforms.json_text import read_json
from itel_cabinet.transforms.records import Record
from itel_cabinet.transforms.trace_context import trace_call

__all__ = [
    "MEDIA_FOLDER",
    "Album",
    "Link",
    "PhotoError",
    "PhotoLibrary",
    "album_folder",
    "assignment_of",
    "fetch_album_photos",
    "fetch_photos",
    "media_id_of",
    "object_name",
    "parse_links",
    "project_folder",
]

_LOGGER = logging.getLogger(__name__)

MEDIA_FOLDER = "itel_cabinet_form_attachments"
_NAME_BYTES = 120  # with the media id well below the 255 of a file system
_WARNING_CHARACTERS = 200
_MOST_LOGGED = 10  # of a batch: one who can write links must not be able to flood the log


class PhotoError(Exception):
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
    """The photos of one form, each once; ``trace`` puts what ClaimX is asked into its record's trace."""

    project_id: str
    task_id: int
    assignment_id: int
    media_ids: tuple[int, ...]
    trace: Trace | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Link:
    """Where ClaimX has a photo; ``file_name`` is as ClaimX tells it. Not in the repr: both come from outside."""

    media_id: int
    file_name: str
    url: str

    def __repr__(self) -> str:
        return f"Link({self.media_id})"


class PhotoLibrary(Protocol):
    """The photos as the step sees them. Implementations are thread-safe, bound their own time and raise PhotoError."""

    def stored(self, album: Album) -> Mapping[int, str]:
        """The path of each photo of the album that is stored already, by media id."""

    def links(self, album: Album, media_ids: Sequence[int]) -> Mapping[int, Link]:
        """Where ClaimX has these photos; those that it does not know are left out."""

    def fetch(self, album: Album, link: Link) -> str:
        """Store one photo and return its path. Idempotent."""


# --------------------------------------------------------------------------------------------------------------- names


def album_folder(album: Album) -> str:
    """The folder of an album, relative to the media root: five segments that never lead out of it."""
    return f"{project_folder(album.project_id)}/{int(album.task_id)}/{int(album.assignment_id)}"


def project_folder(project_id: str) -> str:
    """The folder of a project's albums, relative to the media root; of two projects with odd ids it may be one."""
    return f"{MEDIA_FOLDER}/{_segment(project_id)}"


def assignment_of(key: str) -> int | None:
    """The assignment in whose album an object is; None for one that is in no album."""
    found = re.fullmatch(rf"{MEDIA_FOLDER}/[^/]+/\d+/(\d{{1,19}})/[^/]+", key, re.ASCII)
    return int(found[1]) if found else None


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

    Read leniently: anything but a photo that was ``wanted``, or has no link, is left out; of two for one id the first
    counts. Raises PhotoError for other than JSON of that shape.
    """
    try:
        content, _ = read_json(body)
    except ValueError:
        raise PhotoError("metadata", "ClaimX's answer is not JSON") from None
    if isinstance(content, dict):
        inner = next((content[key] for key in ("data", "media") if isinstance(content.get(key), list | dict)), content)
        content = inner if isinstance(inner, list) else [inner]
    if not isinstance(content, list):
        raise PhotoError("metadata", "ClaimX's answer is no list of photos")
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


# ------------------------------------------------------------------------------------------------------------ fetching


def fetch_photos(
    tasks: Sequence[CabinetTask],
    *,
    library: Callable[[], PhotoLibrary],
    pool: Callable[[], Executor],
    deadline_seconds: float,
    clock: Callable[[], float],
    count: Callable[[str, int], None],
) -> list[CabinetTask]:
    """The tasks, in order, each with what became of its form's photos; returns within ``deadline_seconds``.

    Never fails a task: a photo that is not there in time has a warning, and may go on in the background, where the
    backfill finds it.

    Args:
        tasks: a batch.
        library: gives the process's library; called on the worker, as ``pool`` is.
        pool: gives the threads to fetch in.
        deadline_seconds: for the whole batch.
        clock: monotonic seconds.
        count: is called with an outcome (``stored``, ``known``, or the reason why not) and a number of photos.
    """
    wanted: dict[tuple[str, int, int], dict[int, None]] = {}
    records: dict[tuple[str, int, int], Record] = {}
    for task in tasks:
        if task.form:
            key = (task.event.project_id, task.event.task_id, task.event.assignment_id)
            wanted.setdefault(key, {}).update(dict.fromkeys(photo.claim_media_id for photo in task.form.photos))
            records.setdefault(key, task.record)
    albums = {key: Album(*key, tuple(ids), partial(trace_call, records[key])) for key, ids in wanted.items() if ids}
    if not albums:
        return [*tasks]
    found = fetch_album_photos(
        albums.values(), library=library(), pool=pool(), deadline_seconds=deadline_seconds, clock=clock
    )
    for outcome, number in Counter(photo.outcome for photos in found.values() for photo in photos.values()).items():
        count(outcome, number)
    refused = [(a, i, p) for a, photos in found.items() for i, p in photos.items() if p.outcome == "refused"]
    for album, media_id, photo in refused[:_MOST_LOGGED]:
        _LOGGER.warning("assignment %d: photo %d: %s", album.assignment_id, media_id, photo.warning)
    by_assignment = {key: found[album] for key, album in albums.items()}
    return [
        replace(task, photographs=by_assignment[key])
        if (key := (task.event.project_id, task.event.task_id, task.event.assignment_id)) in by_assignment
        else task
        for task in tasks
    ]


def fetch_album_photos(
    albums: Iterable[Album],
    *,
    library: PhotoLibrary,
    pool: Executor,
    deadline_seconds: float,
    clock: Callable[[], float],
) -> dict[Album, dict[int, Photograph]]:
    """What became of each photo of each album, as :func:`fetch_photos` has it."""
    until = clock() + deadline_seconds
    ended: queue.SimpleQueue[Future[Any]] = queue.SimpleQueue()
    running: dict[Future[Any], tuple[Album, Link | None]] = {}
    late = Photograph(None, "deadline: not stored in time; `itel-cabinet media backfill` fetches it")
    photos = {album: dict.fromkeys(album.media_ids, late) for album in albums}

    def begin(album: Album, link: Link | None, work: Callable[[], Any]) -> None:
        future = pool.submit(work)
        running[future] = (album, link)
        future.add_done_callback(ended.put)

    for album in photos:
        begin(album, None, lambda album=album: _look(library, album))  # type: ignore[misc]
    while running:
        try:
            future = ended.get(timeout=max(0.0, until - clock()))
        except queue.Empty:
            break
        album, link = running.pop(future)
        try:
            outcome = future.result()
        except Exception as error:
            of = (link.media_id,) if link else album.media_ids
            photos[album].update(dict.fromkeys(of, _failed(error, album)))
            continue
        if link:
            photos[album][link.media_id] = Photograph(outcome, None, new=True)
            continue
        known, links = outcome
        photos[album].update(known)
        for link in links:
            begin(album, link, lambda album=album, link=link: library.fetch(album, link))  # type: ignore[misc]
    for future in running:
        future.cancel()
    return photos


def _failed(error: Exception, album: Album) -> Photograph:
    if isinstance(error, PhotoError):
        return Photograph(None, error.warning)
    # What nobody has thought of must not stop the stream for a photo's sake.
    _LOGGER.error("assignment %d: an error of the program, at a photo", album.assignment_id, exc_info=error)
    return Photograph(None, f"error: {type(error).__name__}")


def _look(library: PhotoLibrary, album: Album) -> tuple[dict[int, Photograph], list[Link]]:
    """What is stored or cannot be had, and the links to all else."""
    stored = library.stored(album)
    known = {media_id: Photograph(stored[media_id], None) for media_id in album.media_ids if media_id in stored}
    missing = [media_id for media_id in album.media_ids if media_id not in stored]
    if not missing:
        return known, []
    try:
        links = library.links(album, missing)
    except PhotoError as error:
        return known | dict.fromkeys(missing, Photograph(None, error.warning)), []
    unlisted = Photograph(None, "not_listed: ClaimX tells no link for it")
    return known | {i: unlisted for i in missing if i not in links}, [links[i] for i in missing if i in links]
