"""Fetch the photos of completed forms: which are there, where the others are, and what became of each.

A photo that cannot be had costs a warning on its row, never its form: `itel-cabinet media backfill` fetches later what
is missing.
"""

from __future__ import annotations

import logging
import queue
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import replace
from typing import Any

from apache_beam.metrics import Metrics

from itel_cabinet.io.worker import metrics
from itel_cabinet.pipeline.steps import NAMESPACE
from itel_cabinet.transforms.enrichment import CabinetTask, Photograph
from itel_cabinet.transforms.photos import Album, Link, PhotoFailed, PhotoLibrary

__all__ = ["fetch_album_photos", "fetch_photos"]

_LOGGER = logging.getLogger(__name__)

_MOST_LOGGED = 10  # of a batch: whoever can write links must not be able to flood the log


def fetch_photos(
    tasks: Sequence[CabinetTask],
    *,
    library: Callable[[], PhotoLibrary],
    pool: Callable[[], Executor],
    deadline_seconds: float,
    clock: Callable[[], float],
) -> list[CabinetTask]:
    """The tasks, in order, each with what became of its form's photos; returns within ``deadline_seconds``.

    What is not there by then has a warning: it may go on in the background, and is found there by the backfill.
    ``clock`` is monotonic, in seconds; ``library`` and ``pool`` are asked on the worker. Never fails a task. Counts
    ``media:stored``, ``media:known`` and ``media:REASON`` (Beam counters).
    """
    wanted: dict[tuple[str, int, int], dict[int, None]] = {}
    for task in tasks:
        if task.form:
            key = (task.event.project_id, task.event.task_id, task.event.assignment_id)
            wanted.setdefault(key, {}).update(dict.fromkeys(photo.claim_media_id for photo in task.form.photos))
    albums = {key: Album(*key, tuple(ids)) for key, ids in wanted.items() if ids}
    if not albums:
        return [*tasks]
    found = fetch_album_photos(
        albums.values(), library=library(), pool=pool(), deadline_seconds=deadline_seconds, clock=clock
    )
    for what, count in Counter(photo.outcome for photos in found.values() for photo in photos.values()).items():
        metrics.PHOTOS.labels(what).inc(count)
        Metrics.counter(NAMESPACE, f"media:{what}").inc(count)
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
    if isinstance(error, PhotoFailed):
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
    except PhotoFailed as error:
        return known | dict.fromkeys(missing, Photograph(None, error.warning)), []
    unlisted = Photograph(None, "not_listed: ClaimX tells no link for it")
    return known | {i: unlisted for i in missing if i not in links}, [links[i] for i in missing if i in links]
