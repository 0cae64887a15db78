"""Forms with a photo each, as a job has stored them: rows in the three tables, and the files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from itel_cabinet.io.delta import FencedTable, TableSpec
from itel_cabinet.pipeline.tables import ATTACHMENTS, FORMS, TRACKING
from itel_cabinet.transforms.enrichment import Photograph
from itel_cabinet.transforms.photos import Album, album_folder
from itel_cabinet.transforms.rows import make_form_row, make_photo_rows, make_tracking_row
from tests.support import cabinet_samples as samples

__all__ = ["fill"]


def fill(tables: Mapping[str, TableSpec], media: Path, times: Mapping[int, str], names: Mapping[int, str]) -> None:
    """A completed form of each assignment in ``times``, with the event's time, and a photo of that id.

    ``names`` are first names, in the rows and in the photos of 100 bytes; "Pat" by default.
    """
    tracked, forms, photos = [], [], []
    for offset, (assignment, time) in enumerate(times.items()):
        name = names.get(assignment, "Pat")
        changes = {"event_id": f"e{assignment}", "assignment_id": assignment, "timestamp": f"{time}+00:00"}
        record, event = samples.record(samples.tracking_message(**changes), offset=offset), samples.event(**changes)
        group = samples.group("Photos", samples.question("Captured Lower Cabinet Box", [assignment]))
        details = samples.details(group, externalLinkData={"firstName": name, "email": f"{name}@example.com"})
        form = samples.parse_form(details)
        file = (
            media / album_folder(Album(event.project_id, event.task_id, assignment, ())) / f"{assignment}_kitchen.jpg"
        )
        file.parent.mkdir(parents=True)
        file.write_bytes((name.encode() * 100)[:100])
        now = event.timestamp
        tracked.append(make_tracking_row(record, event, details, now))
        forms.append(make_form_row(record, event, details, form, now))
        photos += make_photo_rows(record, event, form, now, {assignment: Photograph(str(file), None)})
    for table, rows in ((TRACKING, tracked), (FORMS, forms), (ATTACHMENTS, photos)):
        FencedTable(tables[table]).write(rows)
