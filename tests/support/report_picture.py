"""Makes docs/report.png anew: `cd tests && python report_picture.py` shows two months of made-up tasks."""

from __future__ import annotations

import itertools
import random
import tempfile
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from itel_cabinet.pipeline.operate import FailureCount, gather, render
from itel_cabinet.pipeline.queries import Session
from itel_cabinet.pipeline.tables import LEDGER
from tests.support import known_history
from tests.support.chromium import started
from tests.support.filed_submissions import append, event, filed
from tests.support.known_history import Told, form

_NOW = datetime(2026, 3, 10, 7, tzinfo=UTC)
_FAILURES = [
    FailureCount("enrich", "unknown_assignment", 7, 0),
    FailureCount("parse", "not_json", 3, 1),
    FailureCount("payload", "no_form", 11, 2),
    FailureCount("submit", "rejected", 5, 9),
]
_SECTIONS = (("Lower", 6, 1.0), ("Upper", 5, 0.6), ("Full Height", 2, 0.15), ("Island", 4, 0.25))


def main() -> None:
    page = Path(__file__).parents[2] / "docs" / "report.png"
    with tempfile.TemporaryDirectory() as folder:
        tasks = _tasks(random.Random(7))
        known_history.write(folder, tasks)
        append(known_history.specs(folder)[LEDGER], _submissions(tasks, random.Random(8)))
        with Session(known_history.specs(folder)) as session:
            report = gather(session, tables_root="az://claims/tables", failures=_FAILURES, now=_NOW)
        file = Path(folder, "report.html")
        file.write_text(render(report), encoding="utf-8")
        with started() as browser:
            picture = browser.open(file, width=1200, height=900).picture
        # A palette of so many colours looks the same and takes a third of the bytes.
        Image.open(BytesIO(picture)).quantize(64).save(page, optimize=True)


def _tasks(chance: random.Random) -> list[Told]:
    told, offsets = [], itertools.count()
    for assignment in range(5430000, 5430620):
        day = chance.triangular(0, 60, 50)
        weekend = (_NOW - timedelta(days=60 - day)).weekday() >= 5
        if weekend and chance.random() < 0.8:
            continue
        began = (_NOW - timedelta(days=60 - day)).replace(hour=chance.randint(8, 18), minute=chance.randint(0, 59))
        ended = began + timedelta(hours=chance.lognormvariate(2.8, 1.2))
        place = f"{5400000 + int(chance.paretovariate(0.6)) % 40}"
        common = {"assignment": assignment, "user": chance.randint(1, 20), "project": place}
        created = _told(began - timedelta(minutes=3))
        if began < _NOW:
            told.append(Told((0, next(offsets)), f"a{assignment}", "ASSIGNED", _told(began), created=created, **common))
        if ended < _NOW and chance.random() < 0.93:
            answers = [
                answer
                for name, most, share in _SECTIONS
                if chance.random() < share
                for answer in (
                    ("Cabinet Types Damaged", f"{name} Cabinets Damaged?", "Yes"),
                    ("Linear Feet Capture", f"{name} Cabinets (linear feet)", round(chance.uniform(2, 20), 1)),
                    (f"{name} Cabinets", f"Enter Number of Damaged {name} Boxes", chance.randint(1, most)),
                )
            ]
            photos = (assignment * 10, assignment * 10 + 1) if chance.random() < 0.9 else ()
            filled = form(*answers, photos=photos) if chance.random() < 0.97 else None
            event = Told(
                (0, next(offsets)), f"c{assignment}", "COMPLETED", _told(ended),
                created=created, completed=_told(ended), form=filled, **common,
            )  # fmt: skip
            told.append(event)
    return told


def _submissions(tasks: list[Told], chance: random.Random) -> list[dict[str, Any]]:
    ends = [("accepted", None)] * 60 + [("duplicate", None)] * 2 + [("refused", "timeout"), ("unchanged", None)]
    rows = []
    for one in tasks:
        if one.status == "COMPLETED":
            outcome, reason = chance.choice(ends) if one.form else ("refused", "no_form")
            of = event(0, event_id=one.event_id, assignment=one.assignment, event_timestamp=known_history.at(one.when))
            rows.append(filed(of, outcome, reason, latency_ms=chance.uniform(40, 90) if one.form else None))
    return rows


def _told(moment: datetime) -> str:
    return moment.isoformat()[:16]


if __name__ == "__main__":
    main()
