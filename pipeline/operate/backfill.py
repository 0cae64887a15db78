"""Fetch the photos that rows of the attachments table still lack: `itel-cabinet media backfill`."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from itel_cabinet.io.delta import FencedTable, Row, get_table
from itel_cabinet.pipeline.tables import FORMS
from itel_cabinet.pipeline.wiring import Wiring
from itel_cabinet.transforms.enrichment import Photograph
from itel_cabinet.transforms.photos import Album, fetch_album_photos

__all__ = ["BackfillStoppedError", "backfill_photos", "missing_photos"]

_ALBUMS_A_COMMIT = 100
_NEVER = 86_400.0  # seconds: each photo has a deadline of its own
_OF_THE_WORLD = frozenset({"metadata", "store"})


class BackfillStoppedError(RuntimeError):
    """Nothing can be fetched at present; one line."""


def missing_photos(table: FencedTable) -> list[Row]:
    """The rows of photos that are on their forms but have no file: their keys, project and warning."""
    columns = ("assignment_id", "question_key", "claim_media_id", "project_id", "media_warning")
    return table.select(columns, "blob_path IS NULL AND is_active")


def backfill_photos(
    wiring: Wiring,
    table: FencedTable,
    missing: Sequence[Row],
    *,
    clock: Callable[[], float] = time.time,
) -> Iterator[Counter[str]]:
    """Fetch the files of ``missing`` rows, a commit for some assignments at a time.

    Yields after each how many rows ended how: ``stored``, ``known`` (in the store already), or the reason why there is
    still no file, which the row says too. Safe beside running jobs and beside itself; may be interrupted and
    repeated. Raises BackfillStoppedError when ClaimX or the store fails for all of them, and as FencedTable.fill does.
    """
    groups: dict[tuple[str, int], list[Row]] = {}
    for row in missing:
        groups.setdefault((row["project_id"], row["assignment_id"]), []).append(row)
    forms = get_table(wiring.tables[FORMS])
    todo = iter(groups.items())
    while some := dict(itertools.islice(todo, _ALBUMS_A_COMMIT)):
        tasks = _find_tasks(forms, [assignment for _, assignment in some])
        albums = {
            Album(
                project, tasks[assignment], assignment, tuple(dict.fromkeys(row["claim_media_id"] for row in rows))
            ): rows
            for (project, assignment), rows in some.items()
            if assignment in tasks
        }
        found = fetch_album_photos(
            albums,
            library=wiring.get_photos(),
            pool=wiring.get_media_pool(),
            deadline_seconds=_NEVER,
            clock=time.monotonic,
        )
        ended = [(row, found[album][row["claim_media_id"]]) for album, rows in albums.items() for row in rows]
        counts = Counter(photograph.outcome for _, photograph in ended)
        if counts.keys() <= _OF_THE_WORLD:
            raise BackfillStoppedError(next(str(photograph.warning) for _, photograph in ended))
        now = datetime.fromtimestamp(clock(), UTC)
        news = [(row, photograph) for row, photograph in ended if _is_news(row, photograph)]
        table.fill([_filled(row, photograph, now) for row, photograph in news], "blob_path")
        yield counts


def _find_tasks(forms: FencedTable, assignments: Sequence[int]) -> dict[int, int]:
    """The task template of each assignment whose form is there, and with it the folder of its photos."""
    rows = forms.select(("assignment_id", "task_id"), f"assignment_id IN ({', '.join(map(str, assignments))})")
    return {row["assignment_id"]: row["task_id"] for row in rows}


def _is_news(row: Row, photograph: Photograph) -> bool:
    return photograph.path is not None or photograph.warning != row["media_warning"]


def _filled(row: Row, photograph: Photograph, now: datetime) -> dict[str, Any]:
    return {
        **{key: row[key] for key in ("assignment_id", "question_key", "claim_media_id")},
        "blob_path": photograph.path,
        "media_warning": photograph.warning,
        "updated_at": now,
    }
